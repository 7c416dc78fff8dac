"""Running a region by its own nodes, and by what replaces them, in a given arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxfuse.algebra.form import usual_size
from onnxfuse.algebra.laws import Alias
from onnxfuse.emit import Weight
from onnxfuse.errors import ProofError
from onnxfuse.evaluate import IN_PIECES, evaluate
from onnxfuse.evaluate.linear import LINEAR
from onnxfuse.evaluate.parts import LARGE, Parts
from onnxfuse.evaluate.tensor import TENSOR
from onnxfuse.lift import View
from onnxfuse.model.graph import Node
from onnxfuse.model.tensors import FLOATS
from onnxfuse.realise import Replacement


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How values are kept: ``store`` rounds every node's output; ``compute`` is the type."""

    compute: Any
    store: Any


DOUBLE = Arithmetic(np.float64, np.float64)
SINGLE = Arithmetic(np.float32, np.float32)


def rounded(array: Any, arithmetic: Arithmetic) -> Any:
    """An array as it is kept in an arithmetic: rounded to its storage, widened to compute."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.asarray(array).astype(arithmetic.store, copy=False)
        return stored.astype(arithmetic.compute, copy=False)


def run_original(
    replacement: Replacement,
    view: View,
    inputs: Mapping[str, Any],
    arithmetic: Arithmetic,
    *,
    magnitude: bool = False,
    target: str | None = None,
) -> Any:
    """The root (or ``target``) by the nodes that stand in the file, from the region's sources.

    With ``magnitude``, every constant and operation is replaced by its absolute counterpart.
    """
    values: dict[str, Any] = {n: array for n, array in inputs.items() if n != target}
    if magnitude:
        values = {name: np.abs(array) for name, array in values.items()}
    root = target or replacement.root
    interior = {s.node.index for s in replacement.region.interior}
    aliases = {
        s.node.index: s.lifted.operands[0]
        for s in replacement.region.interior
        if isinstance(s.law, Alias)
    }
    borders = _border_constants(replacement)
    stack = [root]
    while stack:
        name = stack[-1]
        if name in values:
            stack.pop()
            continue
        node = view.graph.producer.get(name)
        if view.constants.known(name):
            stored = view.constants.value(name)
            pieces = name not in borders
            values[name] = _constant(stored, arithmetic, magnitude, pieces=pieces)
            if name in borders and magnitude and values[name].dtype.kind == "f":
                values[name] = np.maximum(values[name], usual_size(values[name]))
            continue
        if node is None or not (node.index in interior or node.op_type in AUXILIARY):
            values[name] = UNKNOWN
            continue
        missing = [n for n in node.inputs if n and n not in values]
        if missing:
            stack += missing
            continue
        arrays = [_read(values[n], node, at) if n else None for at, n in enumerate(node.inputs)]
        outputs = _known_outputs(node, view, arrays, magnitude and node.index in interior)
        if outputs[0] is UNKNOWN and node.index in aliases:  # what it ignores need not be known
            outputs = [values[aliases[node.index]]]
        for out, array in zip(node.outputs, outputs, strict=False):
            values[out] = array if array is UNKNOWN else _stored(array, arithmetic)
    if values[root] is UNKNOWN:
        raise ProofError(
            f"region {replacement.region.root.node.label!r}: tensor {root!r} depends on sizes that "
            "are not known; please report this"
        )
    return values[root]


def _border_constants(replacement: Replacement) -> set[str]:
    """What may stand on border strips.

    Such constants count with their usual size at least: so far their match is accepted.
    """
    writing = ("Add", "Sub", "Concat", "ScatterND", "ScatterElements")
    nodes = [s.node for s in replacement.region.interior if s.node.op_type in writing]
    return {name for node in nodes for name in node.inputs}


UNKNOWN = object()
"""Stands for a value that depends on tensors outside the region, such as another tensor's size."""

AUXILIARY = {*TENSOR, *LINEAR, "Shape", "Size"} - {
    "Conv",
    "ConvTranspose",
    "BatchNormalization",
    "AveragePool",
    "Gemm",
}
"""Operators that a region may read sizes and constants through although they are not its own."""


def _known_outputs(node: Node, view: View, arrays: list[Any], magnitude: bool) -> list[Any]:
    """A node's outputs; a constant expanded to an unknown size is left to broadcast."""
    if all(array is not UNKNOWN for array in arrays):
        return _evaluate(node, view, arrays, magnitude)
    shape = view.shape(node.outputs[0])
    if node.op_type == "Expand" and arrays[0] is not UNKNOWN and shape is not None:
        data = arrays[0].reshape((1,) * (len(shape) - arrays[0].ndim) + arrays[0].shape)
        certain = view.expanded(node) or data.shape
        sizes = [h if s is None else s for h, s in zip(data.shape, certain, strict=True)]
        return [np.broadcast_to(data, sizes)]
    return [UNKNOWN] * len(node.outputs)


def _stored(array: Any, arithmetic: Arithmetic) -> Any:
    if array.dtype.kind != "f" or arithmetic.store == arithmetic.compute:
        return array
    return rounded(array, arithmetic)


def _constant(array: Any, arithmetic: Arithmetic, magnitude: bool, *, pieces: bool) -> Any:
    """A constant as an arithmetic has it; a large one is left where it is, to be read in pieces."""
    if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
        return np.asarray(array)

    def wide(part: Any) -> Any:
        found = rounded(part, arithmetic)
        return np.abs(found) if magnitude else found

    if not pieces or array.size <= LARGE:
        return wide(array)
    dtype = np.dtype(arithmetic.compute)
    return Parts(array.shape, dtype, lambda *run: wide(array[places(*run)]))


def places(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    """The index of a run along one axis."""
    return (slice(None),) * axis + (slice(start, stop),)


def _read(value: Any, node: Node, position: int) -> Any:
    """A value as a node takes it: in pieces if it can."""
    if isinstance(value, Parts) and not (position == 1 and node.op_type in IN_PIECES):
        return value.whole()
    return value


def _evaluate(node: Node, view: View, arrays: list[Any], magnitude: bool) -> list[Any]:
    if node.op_type in ("Shape", "Size"):
        shape = np.array(np.shape(arrays[0]), np.int64)
        if node.op_type == "Size":
            return [np.array(shape.prod())]
        return [shape[slice(node.attributes.get("start", 0), node.attributes.get("end"))]]
    if node.op_type == "Cast" and view.shapes.type_of(node.outputs[0]) in FLOATS:
        return [arrays[0]]  # lifted only where it changes nothing; the arithmetic is given
    attributes = view.constants.attributes(node)
    if node.op_type == "Concat" and arrays[0].ndim > 1:
        arrays = _stretched(arrays, attributes["axis"] % arrays[0].ndim)
    counterpart = _MAGNITUDE.get(node.op_type, _same) if magnitude else _same
    return counterpart(node, attributes, arrays)


def _same(node: Node, attributes: Any, arrays: list[Any]) -> list[Any]:
    return evaluate(node.op_type, attributes, arrays)


def _add(node: Node, attributes: Any, arrays: list[Any]) -> list[Any]:
    return [arrays[0] + arrays[1]]


def _stretched(arrays: list[Any], axis: int) -> list[Any]:
    """Operands of a Concat; one expanded to an unknown size takes that of its neighbours."""
    sizes = [max(array.shape[at] for array in arrays) for at in range(arrays[0].ndim)]
    return [
        np.broadcast_to(array, [*sizes[:axis], array.shape[axis], *sizes[axis + 1 :]])
        for array in arrays
    ]


def _positive_pad(node: Node, attributes: Any, arrays: list[Any]) -> list[Any]:
    return evaluate("Pad", {**attributes, "value": abs(attributes.get("value", 0.0))}, arrays)


def _gemm(node: Node, attributes: Any, arrays: list[Any]) -> list[Any]:
    factors = {name: abs(attributes.get(name, 1.0)) for name in ("alpha", "beta")}
    return evaluate("Gemm", {**attributes, **factors}, arrays)


def _batch_normalization(node: Node, attributes: Any, arrays: list[Any]) -> list[Any]:
    x, scale, bias, mean, variance = arrays[:5]
    return evaluate("BatchNormalization", attributes, [x, scale, bias, -mean, variance])


_MAGNITUDE: dict[str, Callable[[Node, Any, list[Any]], list[Any]]] = {
    "Sub": _add,
    "Neg": lambda node, attributes, arrays: [arrays[0]],
    "BatchNormalization": _batch_normalization,
    "Pad": _positive_pad,
    "Gemm": _gemm,
}


Watch = Callable[[str, int, int, Any], None]
"""Is shown each run of each weight as it is folded."""


def _unseen(name: str, start: int, stop: int, part: Any) -> None:
    """Nobody looks."""


def run_replacement(
    replacement: Replacement,
    inputs: Mapping[str, Any],
    arithmetic: Arithmetic,
    watch: Watch = _unseen,
) -> Any:
    """The root tensor by the new nodes; weights are unrounded where ``arithmetic`` is double."""
    values: dict[str, Any] = {**inputs, **replacement.integers}
    known = replacement.region.cover.form.sources if replacement.region.cover else {}
    sizes = {
        name: known[name].lying(np.shape(array)) for name, array in inputs.items() if name in known
    }
    for name, source in replacement.region.constants.items():
        assert source.load is not None
        values[name] = rounded(source.load(), arithmetic)
    for name, weight in replacement.weights.items():
        at = replacement.maps.get(name)
        if at is not None:
            values[name] = rounded(at(sizes), arithmetic)
        else:
            values[name] = _weight(name, weight, arithmetic, watch)
    for node in replacement.nodes:
        arrays = [values[name] for name in node.inputs]
        if node.op_type == "Shape":
            shape = np.array(np.shape(arrays[0]), np.int64)
            values[node.output] = shape[node.attributes.get("start", 0) :]
            continue
        output = evaluate(node.op_type, node.attributes, arrays)[0]
        values[node.output] = _stored(output, arithmetic)
    return values[replacement.root]


def _weight(name: str, weight: Weight, arithmetic: Arithmetic, watch: Watch) -> Any:
    """A weight as an arithmetic has it; a large one is folded, or read where it is, in pieces."""
    exact = arithmetic == DOUBLE
    stored = None if weight.stored is None else weight.stored.array
    if not exact and stored is not None:
        return _constant(stored, arithmetic, False, pieces=True)
    if weight.size <= LARGE:
        value = weight.value
        if exact:
            watch(name, 0, weight.channels, value)
        return rounded(value, arithmetic)

    def take(axis: int, start: int, stop: int) -> Any:
        if axis != weight.axis:
            return rounded(weight.value[places(axis, start, stop)], arithmetic)
        part = weight.part(start, stop)
        if exact:
            watch(name, start, stop, part)
        return rounded(part, arithmetic)

    return Parts(weight.shape, np.dtype(arithmetic.compute), take)
