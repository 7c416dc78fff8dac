"""Which tensors are constant, and their values, computed only when asked for.

A tensor is constant if it is an initializer that no caller can override, a Constant node's, or
computed from such by an operator of the evaluator's table. Random operators and training-mode
Dropout are not in that table's reach. Sizes are bounded before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from onnx import TensorProto

from onnxfuse.evaluate import OPERATORS, evaluate
from onnxfuse.evaluate.tensor import MAX_ELEMENTS
from onnxfuse.model import tensors
from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.partial import integers
from onnxfuse.model.shapes import Shape, Shapes, infer, nominal_shapes

_CONSTANT_VALUES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class Weight(Protocol):
    """A constant of known shape whose value is computed on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def value(self) -> Any: ...


class Constants:
    """Lazy, memoised constants of one graph. ``base`` is the model file's directory.

    ``pending`` are constants that earlier fusing made and that no file holds yet.
    """

    def __init__(
        self,
        graph: Graph,
        shapes: Shapes,
        base: Path | None,
        values: Mapping[str, Any] | None = None,
        pending: Mapping[str, Weight] | None = None,
    ) -> None:
        self._pending = pending or {}
        self._graph = graph
        self._shapes = shapes
        self._base = base
        self._values: dict[str, Any] = dict(values or {})
        self._known: dict[str, bool] = dict.fromkeys(self._values, True)

    def overridable(self, name: str) -> bool:
        """Whether a tensor is an initializer that is also a graph input."""
        return name in self._graph.initializers and name in self._graph.inputs_set

    def known(self, name: str) -> bool:
        """Whether a tensor is constant; nothing is read."""
        stack = [name]
        while stack:
            current = stack[-1]
            if current in self._known:
                stack.pop()
                continue
            answer, needs = self._step(current)
            missing = [need for need in needs if need not in self._known]
            if missing and answer:
                stack.extend(missing)
                continue
            self._known[current] = answer and all(self._known[need] for need in needs)
            stack.pop()
        return self._known[name]

    def _step(self, name: str) -> tuple[bool, list[str]]:
        """Whether a tensor may be constant, and what else must be for that."""
        if name in self._graph.initializers:
            return not self.overridable(name), []
        node = self._graph.producer.get(name)
        if node is None or not node.standard:
            return False, []
        if node.op_type == "Constant":
            return self._literal(node) is not None, []
        if node.op_type in ("Shape", "Size"):
            return True, [] if self._static(node) is not None else [node.inputs[0]]
        if node.op_type in ("Gather", "Slice") and self._sizes(node) is not None:
            return True, []
        if node.op_type not in OPERATORS or node.op_type == "Dropout":
            return False, []
        if node.outputs[0] != name and node.op_type != "Split":
            return False, []
        return True, [need for need in node.inputs if need]

    def _sizes(self, node: Node) -> Any:
        """The sizes that a Gather or Slice takes from a shape that is certain there."""
        source = self._graph.producer.get(node.inputs[0])
        if source is None or source.op_type != "Shape" or not source.standard:
            return None
        if not all(self.known(name) for name in node.inputs[1:] if name):
            return None
        found = integers(
            node.outputs[0], self._graph, self._operand(node), self._shapes.certain.get
        )
        if found is None or any(entry is None for entry in found.reshape(-1)):
            return None
        return found.astype(np.int64)

    def _operand(self, node: Node) -> Callable[[str], Any]:
        """The constants among the operands of a node, and no others."""
        return lambda name: self.value(name) if name in node.inputs[1:] else None

    def partial(self, name: str) -> Any:
        """Integers known in part: an object array with ``None`` where an entry is open."""
        return integers(name, self._graph, self.value, self._shapes.certain.get)

    def pending(self, name: str) -> bool:
        """Whether a constant was made by earlier fusing and is computed only when written."""
        return name in self._pending

    def _static(self, node: Node) -> Any:
        """The value of a Shape or Size whose input has a certain shape."""
        shape = self._shapes.certain.get(node.inputs[0])
        return None if shape is None else self._shape_value(node, shape)

    def _shape_value(self, node: Node, shape: Shape) -> Any:
        if node.op_type == "Size":
            return None if None in shape else np.array(prod(size or 0 for size in shape), np.int64)
        part = shape[slice(node.attributes.get("start", 0), node.attributes.get("end"))]
        return None if None in part else np.array(part, np.int64)

    def _literal(self, node: Node) -> Any:
        """A Constant node's tensor or numbers; ``None`` for strings and sparse ones."""
        for key, value in node.attributes.items():
            if key == "value" and isinstance(value, TensorProto):
                return value
            if key in _CONSTANT_VALUES:
                return np.asarray(value, _CONSTANT_VALUES[key])
        return None

    def shape(self, name: str) -> Shape | None:
        """The shape of a constant, without reading it where the file tells."""
        tensor = self.stored(name)
        if tensor is not None:
            return tuple(tensor.dims)
        inferred = self._shapes.certain.get(name)
        if inferred is not None and None not in inferred:
            return inferred
        value = self.value(name)
        return None if value is None else tuple(value.shape)

    def at_hand(self, name: str) -> bool:
        """Whether a constant needs no computation."""
        node = self._graph.producer.get(name)
        literal = node is not None and node.op_type == "Constant"
        return name in self._pending or literal or self.stored(name) is not None

    def stored(self, name: str) -> TensorProto | None:
        """The TensorProto that holds a constant as it stands in the file."""
        if name in self._graph.initializers:
            initializer: TensorProto = self._graph.initializers[name]
            return initializer
        node = self._graph.producer.get(name)
        if node is not None and node.op_type == "Constant" and node.standard:
            literal = self._literal(node)
            return literal if isinstance(literal, TensorProto) else None
        return None

    def value(self, name: str) -> Any:
        """The array of a constant, or ``None`` where it is not one or cannot be computed."""
        if not self.known(name):
            return None
        stack = [name]
        while stack:
            current = stack[-1]
            if current in self._values:
                stack.pop()
                continue
            node = self._graph.producer.get(current)
            ready = self._read(current, node)
            if ready is not None or node is None:
                self._values[current] = ready
                stack.pop()
                continue
            missing = [n for n in node.inputs if n and n not in self._values]
            if missing:
                stack.extend(missing)
                continue
            self._values[current] = self._compute(node, node.outputs.index(current))
            stack.pop()
        return self._values[name]

    def _read(self, name: str, node: Node | None) -> Any:
        """What needs no computation."""
        if name in self._pending:
            return self._pending[name].value
        tensor = self.stored(name)
        if tensor is not None:
            return tensors.read(tensor, self._base)
        if node is not None and node.op_type == "Constant":
            return self._literal(node)
        if node is not None and node.op_type in ("Shape", "Size"):
            return self._static(node)
        if node is not None and node.op_type in ("Gather", "Slice") and node.standard:
            return self._sizes(node)
        return None

    def _compute(self, node: Node, output: int) -> Any:
        inputs = [self._values[name] if name else None for name in node.inputs]
        if any(name and value is None for name, value in zip(node.inputs, inputs, strict=True)):
            return None
        if node.op_type in ("Shape", "Size"):
            return self._shape_value(node, tuple(np.asarray(inputs[0]).shape))
        try:
            value = evaluate(node.op_type, self.attributes(node), inputs)[output]
        except (
            ArithmeticError, AssertionError, LookupError, MemoryError, TypeError, ValueError
        ):  # fmt: skip
            return None
        return value if value.size <= MAX_ELEMENTS else None

    def attributes(self, node: Node) -> dict[str, Any]:
        """A node's attributes with tensors read and types translated for the evaluator."""
        attributes = dict(node.attributes)
        if node.op_type == "Split":
            attributes["num_outputs"] = len(node.outputs)
        if node.op_type == "Cast":
            attributes["to"] = tensors.dtype_of(attributes["to"])
        for key, value in attributes.items():
            if isinstance(value, TensorProto):
                attributes[key] = tensors.read(value, self._base)
        return attributes


SHAPED_BY_INPUT = {
    "ConstantOfShape", "Expand", "Pad", "Reshape", "Resize", "Slice",
    "Split", "Squeeze", "Tile", "Unsqueeze",
}  # fmt: skip
"""Operators whose output shape is in an input that onnx's inference may not see through."""
ROUNDS = 32


def analyse(
    graph: Graph,
    base: Path | None,
    sizes: Mapping[str, Shape],
    pending: Mapping[str, Weight] | None = None,
) -> tuple[Shapes, Constants]:
    """Shapes and constants together: each may need the other, a few rounds settle both."""
    known: dict[str, Any] = {}
    for _ in range(ROUNDS):
        shapes = infer(graph, sizes, known)
        constants = Constants(graph, shapes, base, known, pending)
        found = _computed(graph, shapes, constants, known)
        if not found:
            break
        known.update(found)
    if shapes.assumed:
        shapes = replace(shapes, nominal=_nominal(graph, base, shapes, known, pending))
        constants = Constants(graph, shapes, base, known, pending)
    return shapes, constants


def _nominal(
    graph: Graph,
    base: Path | None,
    shapes: Shapes,
    known: Mapping[str, Any],
    pending: Mapping[str, Weight] | None,
) -> Mapping[str, Shape]:
    """The nominal shapes, with what shapes are computed from taken at the nominal sizes."""
    sized, values = shapes, dict(known)
    for _ in range(ROUNDS):
        sized = replace(sized, certain=sized.nominal)
        constants = Constants(graph, sized, base, values, pending)
        found = _computed(graph, sized, constants, values)
        if not found:
            break
        values.update(found)
        sized = replace(sized, nominal=nominal_shapes(graph, shapes.assumed, values))
    return sized.nominal


def _computed(
    graph: Graph, shapes: Shapes, constants: Constants, known: Mapping[str, Any]
) -> dict[str, Any]:
    """New values of the inputs that decide shapes which are still unknown."""
    names = (name for name in _shape_inputs(graph, shapes) if name not in known)
    values = {name: constants.value(name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _shape_inputs(graph: Graph, shapes: Shapes) -> Iterator[str]:
    """Computed inputs that decide shapes which are still unknown."""
    for node in graph.nodes:
        if node.op_type in SHAPED_BY_INPUT and node.standard:
            shape = shapes.certain.get(node.outputs[0])
            if shape is None or None in shape:
                first = 0 if node.op_type == "ConstantOfShape" else 1
                yield from (n for n in node.inputs[first:] if n in graph.producer)
