"""Which tensors of a model are rounded values of its inputs, and how coarsely.

What follows from shapes alone is left out: noise there would change sizes. So is what is constant,
and what an operator only moves, chooses or makes whole. Rows of a table and pixels count as inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet

import onnx

from onnxfuse.model import walk
from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.tensors import FLOATS

# Operators whose results are entries of their inputs, or whole numbers, and so are not rounded.
EXACT = {
    "Abs", "CenterCropPad", "Ceil", "Clip", "Compress", "Concat", "ConcatFromSequence",
    "ConstantOfShape", "DepthToSpace", "Dropout", "Expand", "EyeLike", "Flatten", "Floor", "Gather",
    "GatherElements", "GatherND", "GlobalMaxPool", "Hardmax", "Identity", "Max", "MaxPool",
    "MaxRoiPool", "MaxUnpool", "Min", "Mod", "Neg", "OneHot", "Optional", "OptionalGetElement",
    "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence", "Round", "Scatter",
    "ScatterElements", "ScatterND", "SequenceAt", "Sign", "Slice", "SpaceToDepth", "Split",
    "SplitToSequence", "Squeeze", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unique",
    "Unsqueeze", "Where",
}  # fmt: skip
LOOKUPS = {"Gather", "GatherElements", "GatherND"}
PIXELS = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
UNSIZED = {"Shape", "Size"}
"""Operators whose results do not depend on values."""


def depending(graph: Graph) -> list[Node]:
    """The nodes whose results depend on the values of the model's inputs."""
    data = graph.inputs_set - graph.initializers.keys() - graph.sparse
    known = set(data)
    found: list[Node] = []
    for node in graph.order:
        if node.standard and node.op_type in UNSIZED:
            continue
        if not known.isdisjoint(_read(graph.model.graph.node[node.index])):
            known.update(name for name in node.outputs if name)
            found.append(node)
    return found


def _read(node: onnx.NodeProto) -> set[str]:
    """The names a node reads; its subgraphs may read more than they were given."""
    found = set(node.input) - {""}
    stack = list(walk.subgraphs(node))
    while stack:
        inner = stack.pop()
        found.update(value.name for value in inner.output)
        for other in inner.node:
            found.update(other.input)
            stack.extend(walk.subgraphs(other))
    return found - {""}


def levels(
    graph: Graph,
    types: Mapping[str, int],
    asked: Callable[[list[str]], Mapping[str, int]],
    units: float,
) -> tuple[dict[str, float], dict[str, int]]:
    """Noise of ``units`` roundoffs for each rounded tensor, and the types of those tensors.

    ``asked`` tells the types of tensors that inference does not know.
    """
    nodes = depending(graph)
    unknown = [out for node in nodes for out in node.outputs if out and not types.get(out)]
    known = dict(types) | dict(asked(unknown) if unknown else {})
    data = graph.inputs_set - graph.initializers.keys() - graph.sparse
    moved = data.union(*(node.outputs for node in nodes))
    names = [*data]
    for node in nodes:
        if not _exact(node, known) or _looks_up(node, moved) or _is_pixel(node, data, known):
            names += filter(None, node.outputs)
    found = _floats(names, known)
    return {name: units * FLOATS[kind] for name, kind in found.items()}, found


def _floats(names: Iterable[str], types: Mapping[str, int]) -> dict[str, int]:
    return {name: types[name] for name in names if types.get(name, 0) in FLOATS}


def _looks_up(node: Node, moved: AbstractSet[str]) -> bool:
    """Whether a node reads rows of a table that is constant, which the input only chooses."""
    return node.standard and node.op_type in LOOKUPS and node.input(0) not in moved


def _is_pixel(node: Node, data: AbstractSet[str], types: Mapping[str, int]) -> bool:
    """Whether a node makes floats of an input of bytes."""
    source = node.input(0)
    return node.op_type == "Cast" and source in data and types.get(source, 0) in PIXELS


def _exact(node: Node, types: Mapping[str, int]) -> bool:
    """Whether a node's results hold no rounding of their own."""
    if not node.standard:
        return False
    if node.op_type == "Cast":
        before, after = (
            FLOATS.get(types.get(n, 0), 0.0) for n in (node.inputs[0], node.outputs[0])
        )
        return before >= after or not before
    sums = node.attributes.get("reduction", "none") in ("add", "mul")  # of a Scatter
    return node.op_type in EXACT and not sums
