"""Which integers a model is given: as many kinds of them as its graph is seen to take.

Integers are pixels, indices of a table, sizes, masks. A few small ones leave most of a table and
of the range of a pixel untried; large ones are out of bounds, or ask for terabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf

import onnx

from onnxfuse.errors import InputError
from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.shapes import Shape, infer
from onnxfuse.model.tensors import dtype_of
from onnxfuse.verify.session import FEW

GUESSES = (range(1000), range(100))
"""What indices of unknown tables may be, tried one after the other."""

MOVES = {
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators whose results are entries of their first inputs."""
COMPUTES = MOVES | {
    "Abs", "Add", "Ceil", "Clip", "Div", "Floor", "Max", "Min", "Mul", "Range", "ReduceMax",
    "ReduceMin", "ReduceProd", "ReduceSum", "Round", "Sub", "Sum", "Where",
}  # fmt: skip
SIZES: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,),
    "Expand": (1,), "EyeLike": (0,), "Loop": (0,), "MaxUnpool": (2,), "OneHot": (1,), "Pad": (1,),
    "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4),
    "Split": (1,), "SplitToSequence": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,),
    "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip
"""Where operators read sizes, positions and axes."""

Ranges = dict[str, range]


def rungs(models: Sequence[onnx.ModelProto], inputs: Sequence[onnx.ValueInfoProto]) -> list[Ranges]:
    """Ranges of the integer inputs, the widest first and the smallest last.

    One follows the next only where it was a guess; the last is worth a run of its own.
    """
    graphs = [graph for graph in map(_graph, models) if graph is not None]
    integers = {
        value.name: dtype_of(value.type.tensor_type.elem_type)
        for value in inputs
        if dtype_of(value.type.tensor_type.elem_type).kind in "iu"
    }
    known: Ranges = {}
    guessed = []
    for name, dtype in integers.items():
        limit = min((_limit(graph, name) for graph in graphs), default=inf)
        if dtype.itemsize == 1:
            low, high = (-128, 128) if dtype.kind == "i" else (0, 256)
            known[name] = range(low, high) if limit == inf else range(int(min(limit, high)))
        elif limit < inf:
            known[name] = range(max(1, int(limit)))
        elif any(_is_size(graph, name) for graph in graphs):
            known[name] = FEW
        else:
            guessed.append(name)
    few = {name: range(min(4, known.get(name, FEW).stop)) for name in integers}
    found = [known | dict.fromkeys(guessed, guess) for guess in (*GUESSES, FEW)]
    steps = found if guessed else found[:1]
    return [step for step in steps if step != few] + [few]


def _graph(model: onnx.ModelProto) -> Graph | None:
    try:
        return Graph(model)
    except InputError:
        return None


def _limit(graph: Graph, name: str) -> float:
    """The length of the shortest axis that an input's values are indices of."""
    tables = [
        (node, node.attributes.get("axis", 0))
        for node, position in _readers(graph, name, MOVES)
        if node.op_type == "Gather" and position == 1
    ]
    if not tables:
        return inf
    shapes = infer(graph, {}).certain
    found = (_length(graph, shapes, node.input(0), axis) for node, axis in tables)
    return min((length for length in found if length), default=inf)


def _length(graph: Graph, shapes: Mapping[str, Shape], name: str, axis: int) -> int:
    """The length of a tensor along an axis, 0 where that is not known."""
    stored = graph.initializers.get(name)
    shape: Shape = tuple(stored.dims) if stored is not None else shapes.get(name) or ()
    return shape[axis] or 0 if -len(shape) <= axis < len(shape) else 0


def _is_size(graph: Graph, name: str) -> bool:
    return any(
        position in SIZES.get(node.op_type, ())
        for node, position in _readers(graph, name, COMPUTES)
    )


def _readers(graph: Graph, name: str, through: set[str]) -> Iterator[tuple[Node, int]]:
    """The nodes that read an input's values, and in which place, after others passed them on."""
    seen, stack = {name}, [name]
    while stack:
        current = stack.pop()
        for node in graph.consumers.get(current, []):
            if not node.standard:
                continue
            for position in (i for i, read in enumerate(node.inputs) if read == current):
                yield node, position
                if node.op_type in through and (position == 0 or node.op_type in PASSING):
                    fresh = [out for out in node.outputs if out and out not in seen]
                    seen.update(fresh)
                    stack += fresh


PASSING = COMPUTES - MOVES | {"Concat"}
"""Operators of which every input is passed on."""
