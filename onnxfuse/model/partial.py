"""Integers that are known in part: shapes computed in the graph, of which some sizes are open.

Exporters compute the size of a border strip from Shape, of which batch, height or width may be
open while the strip's own width is a number. Entries that are not certain are ``None``; nothing
is guessed from names of dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.shapes import Shape

DEPTH = 200
"""Chains longer than this are not followed."""
MAX_ENTRIES = 64

Lookup = Callable[[str], Any]


def integers(
    name: str, graph: Graph, value: Lookup, shape: Callable[[str], Shape | None], depth: int = 0
) -> Any:
    """A small tensor as an object array with ``None`` where an entry is open; ``None`` if unseen.

    ``value`` gives constants (``None`` for others), ``shape`` what is certain of a tensor's shape.
    """
    known = value(name)
    if known is not None:
        known = np.asarray(known)
        return known.astype(object) if known.size <= MAX_ENTRIES else None
    node = graph.producer.get(name)
    if node is None or not node.standard or depth > DEPTH:
        return None
    if node.op_type == "Shape":
        found = shape(node.inputs[0])
        if found is None:
            return None
        part = found[slice(node.attributes.get("start", 0), node.attributes.get("end"))]
        return np.array(part, object)
    rule = _RULES.get(node.op_type)
    if rule is None:
        return None
    inputs = [integers(n, graph, value, shape, depth + 1) if n else None for n in node.inputs]
    if any(array is None for n, array in zip(node.inputs, inputs, strict=True) if n):
        return None
    try:
        return rule(node, inputs)
    except (ValueError, IndexError, TypeError, ArithmeticError):
        return None


def _cast(node: Node, inputs: Sequence[Any]) -> Any:
    """Between integers and floats of this size a Cast keeps whole numbers."""
    whole = all(entry is None or float(entry).is_integer() for entry in inputs[0].reshape(-1))
    return (
        np.vectorize(lambda e: None if e is None else int(e), [object])(inputs[0])
        if whole
        else None
    )


def _numbers(node: Node, inputs: Sequence[Any], name: str, position: int) -> list[int] | None:
    if name in node.attributes:
        return list(node.attributes[name])
    if len(inputs) > position and inputs[position] is not None:
        return [int(entry) for entry in inputs[position].reshape(-1)]
    return None


def _slice(node: Node, inputs: Sequence[Any]) -> Any:
    starts, ends = _numbers(node, inputs, "starts", 1), _numbers(node, inputs, "ends", 2)
    steps = _numbers(node, inputs, "steps", 4) or [1]
    if inputs[0].ndim != 1 or starts is None or ends is None or len(starts) != 1 or steps[0] < 1:
        return None
    return inputs[0][starts[0] : ends[0] : steps[0]]


def _squeezed(node: Node, inputs: Sequence[Any]) -> Any:
    axes = _numbers(node, inputs, "axes", 1)
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


def _elementwise(function: Callable[..., Any]) -> Callable[[Node, Sequence[Any]], Any]:
    def entry(*values: Any) -> Any:
        return None if any(value is None for value in values) else function(*values)

    return lambda node, inputs: np.asarray(np.frompyfunc(entry, len(inputs), 1)(*inputs), object)


_RULES: dict[str, Callable[[Node, Sequence[Any]], Any]] = {
    "Identity": lambda node, inputs: inputs[0],
    "Cast": _cast,
    "Slice": _slice,
    "Squeeze": _squeezed,
    "Unsqueeze": lambda node, inputs: np.expand_dims(
        inputs[0], tuple(_numbers(node, inputs, "axes", 1) or [])
    ),
    "Reshape": lambda node, inputs: inputs[0].reshape(
        tuple(_numbers(node, inputs, "shape", 1) or [])
    ),
    "Gather": lambda node, inputs: np.asarray(inputs[0][inputs[1].astype(np.int64)], object),
    "Concat": lambda node, inputs: np.concatenate(list(inputs), axis=node.attributes["axis"]),
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Max": _elementwise(lambda *values: max(values)),
    "Min": _elementwise(lambda *values: min(values)),
}
