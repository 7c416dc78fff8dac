"""Quantisation next to linear operators: a value that is rounded to integers is another value.

Nothing merges across it, and a kernel that is stored as integers has no place for a merged one:
its scales were chosen for what it is.
"""

from __future__ import annotations

from onnxfuse.lift.common import Lifted, View
from onnxfuse.model.graph import Node
from onnxfuse.refusal import Code, Refusal

DOMAINS = ("", "ai.onnx", "com.microsoft")
ROUNDING = ("QuantizeLinear", "DequantizeLinear")
ON_INTEGERS = {
    "ConvInteger", "MatMulInteger", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
    "QLinearConv", "QLinearMatMul", "QLinearMul",
}  # fmt: skip
"""Linear operators between integers."""
_COPIES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_EITHER = ("Add", "Sub", "Mul", "Div", "MatMul", "Sum")


def is_one(node: Node | None, *kinds: str) -> bool:
    """Whether a node is one of these operators, the standard's or onnxruntime's."""
    return node is not None and node.op_type in kinds and node.domain in DOMAINS


def before(name: str, view: View) -> tuple[str, Node | None]:
    """The tensor that a dequantised one was, and the node that rounded it: ``None`` where none did.

    A tensor of integers is followed too. What an operator on integers writes is not dequantised
    from anything else; then the node is the DequantizeLinear.
    """
    rounding, graph = None, view.graph
    while True:
        node = graph.producer.get(name)
        copied = rounding is not None and is_one(node, *_COPIES)
        if node is None or not (copied or is_one(node, *ROUNDING)):
            return name, rounding
        if rounding is None or node.op_type == "QuantizeLinear":
            rounding = node
        name = node.input(0)


def stored_as_integers(node: Node, found: Lifted | Refusal | None, view: View) -> Refusal | None:
    """The refusal of a node one of whose constants comes from a DequantizeLinear.

    A constant as large as the result is a tensor like any other, so such a node may be lifted.
    """
    operands = frozenset(found.operands) if isinstance(found, Lifted) else frozenset()
    for name in node.inputs if node.op_type in _EITHER else node.inputs[1:]:
        whole = view.shape(name) == view.shape(node.outputs[0])
        if not name or (isinstance(found, Lifted) and (whole or name not in operands)):
            continue
        origin, rounding = before(_behind_copies(name, view), view)
        if rounding is not None and view.constants.known(origin):
            text = f"its constant {name!r} is stored as integers"
            return Refusal(Code.QUANTISED, f"{text}; fuse the model before it is quantised")
    return None


def _behind_copies(name: str, view: View) -> str:
    node = view.graph.producer.get(name)
    while is_one(node, *_COPIES):
        assert node is not None
        name = node.input(0)
        node = view.graph.producer.get(name)
    return name
