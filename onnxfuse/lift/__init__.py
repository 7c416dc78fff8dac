"""Lifting: how each operator reads as a law of the algebra, or the reason why it cannot.

`lift` looks a node up in `LIFT`; to teach onnxfuse an operator, write one function that returns
a `Lifted` or a `Refusal` and add a row. Nothing is changed here, and no kernel is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxfuse.lift.arithmetic import (
    lift_add,
    lift_batch_normalization,
    lift_div,
    lift_mul,
    lift_neg,
    lift_sub,
    lift_sum,
)
from onnxfuse.lift.border import lift_scatter_nd
from onnxfuse.lift.common import Lifted, View, mixed_types, operand_types_ok
from onnxfuse.lift.matrix import lift_gemm, lift_matmul
from onnxfuse.lift.quantised import stored_as_integers
from onnxfuse.lift.reshape import lift_flatten, lift_reshape
from onnxfuse.lift.shape import (
    lift_cast,
    lift_concat,
    lift_dropout,
    lift_identity,
    lift_leaky_relu,
    lift_pad,
    lift_prelu,
    lift_slice,
    lift_split,
    lift_squeeze,
    lift_transpose,
    lift_unsqueeze,
)
from onnxfuse.lift.strips import lift_scatter_elements
from onnxfuse.lift.window import lift_average_pool, lift_conv, lift_conv_transpose
from onnxfuse.model.graph import Node
from onnxfuse.model.tensors import FLOATS
from onnxfuse.refusal import Code, Refusal

LIFT: Mapping[str, Callable[[Node, View], Lifted | Refusal | None]] = {
    "Conv": lift_conv,
    "ConvTranspose": lift_conv_transpose,
    "AveragePool": lift_average_pool,
    "Gemm": lift_gemm,
    "MatMul": lift_matmul,
    "BatchNormalization": lift_batch_normalization,
    "Add": lift_add,
    "Sub": lift_sub,
    "Sum": lift_sum,
    "Mul": lift_mul,
    "Div": lift_div,
    "Neg": lift_neg,
    "Identity": lift_identity,
    "Dropout": lift_dropout,
    "LeakyRelu": lift_leaky_relu,
    "PRelu": lift_prelu,
    "Pad": lift_pad,
    "Slice": lift_slice,
    "Split": lift_split,
    "Concat": lift_concat,
    "ScatterND": lift_scatter_nd,
    "ScatterElements": lift_scatter_elements,
    "Transpose": lift_transpose,
    "Cast": lift_cast,
    "Unsqueeze": lift_unsqueeze,
    "Squeeze": lift_squeeze,
    "Reshape": lift_reshape,
    "Flatten": lift_flatten,
}


def lift(node: Node, view: View) -> Lifted | Refusal | None:
    """How ``node`` reads in the algebra; ``None`` where it is no linear operator of tensors."""
    row = LIFT.get(node.op_type)
    if row is not None and node.opaque and view.shapes.type_of(node.input(0)) in FLOATS:
        text = "an attribute of it is set by whoever calls the function"
        return Refusal(Code.DYNAMIC_WEIGHTS, text, node.label)
    if row is None or not node.standard or not operand_types_ok(node, view):
        return None
    if view.graph.opset < 7:
        return Refusal(
            Code.UNSUPPORTED, "the model's opset is older than 7; convert it first", node.label
        )
    lifted = mixed_types(node, view) or row(node, view)
    lifted = stored_as_integers(node, lifted, view) or lifted
    return lifted.at(node.label) if isinstance(lifted, Refusal) else lifted


__all__ = ["LIFT", "Lifted", "View", "lift"]
