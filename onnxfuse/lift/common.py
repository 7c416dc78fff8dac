"""What the lifting functions share: the view of a model, and reading its small integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxfuse.algebra.laws import Law
from onnxfuse.model.constants import Constants
from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.shapes import Shape, Shapes
from onnxfuse.model.tensors import FLOATS
from onnxfuse.refusal import Code, Refusal


@dataclass(frozen=True, slots=True)
class View:
    """A model as the lifting functions see it."""

    graph: Graph
    shapes: Shapes
    constants: Constants

    def shape(self, name: str) -> Shape | None:
        return self.shapes.certain.get(name)

    def known(self, name: str) -> bool:
        """Whether a tensor is a constant that can be had: stored, or computed without fail."""
        constants = self.constants
        return constants.known(name) and (
            constants.at_hand(name) or constants.value(name) is not None
        )

    def expanded(self, node: Node) -> Shape | None:
        """What is certain of the shape of an Expand, its computed sizes included."""
        shape, sizes = self.constants.shape(node.inputs[0]), self.constants.partial(node.inputs[1])
        if shape is None or sizes is None:
            return None
        rank = max(len(shape), sizes.size)
        data = (*[1] * (rank - len(shape)), *shape)
        wanted = (*[1] * (rank - sizes.size), *sizes.reshape(-1))
        return tuple(size if have == 1 else have for have, size in zip(data, wanted, strict=True))

    def ints(self, node: Node, position: int) -> list[int] | None:
        """The integers of a constant input; ``None`` where it is absent or not constant."""
        value = self.constants.value(node.input(position)) if node.input(position) else None
        return None if value is None else [int(v) for v in np.asarray(value).reshape(-1)]

    def given(self, node: Node, name: str, position: int) -> list[int] | None:
        """Integers that older operator sets keep in an attribute and newer ones in an input."""
        held: list[int] | None = node.attributes.get(name)
        return self.ints(node, position) if held is None else held

    def float64(self, name: str) -> Any:
        """The array of a constant, widened."""
        return np.asarray(self.constants.value(name)).astype(np.float64)

    def part(self, name: str, start: int, stop: int, axis: int = 0) -> Any:
        """A run of a constant along one axis, widened; a mapped file is read no further."""
        places = (slice(None),) * axis + (slice(start, stop),)
        return np.asarray(self.constants.value(name)[places]).astype(np.float64)

    def dynamic(self, name: str, what: str) -> Refusal:
        """The refusal of an input that should be constant and is not."""
        if self.constants.overridable(name):
            return Refusal(
                Code.OVERRIDABLE,
                f"{what} {name!r} is also a graph input, which a caller may override",
            )
        return Refusal(Code.DYNAMIC_WEIGHTS, f"{what} {name!r} is not constant")


@dataclass(frozen=True, slots=True, eq=False)
class Lifted:
    """A node read as a law over ``operands``; several outputs have a law each.

    ``fixed`` says that the law holds only at the sizes the model has now.
    """

    node: Node
    operands: tuple[str, ...]
    laws: Mapping[str, Law] = field(repr=False)
    fixed: bool = False

    @classmethod
    def one(cls, node: Node, law: Law, *operands: str, fixed: bool = False) -> Lifted:
        return cls(node, operands or (node.inputs[0],), {node.outputs[0]: law}, fixed)


def operand_types_ok(node: Node, view: View) -> bool:
    """Whether a node computes on floating-point tensors that are not all constant."""
    if view.shapes.type_of(node.outputs[0]) not in FLOATS:
        return False
    return not all(view.constants.known(name) for name in node.inputs if name)


FLOATING = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Sum", "Mul", "Div", "PRelu", "Concat",
    "BatchNormalization",
}  # fmt: skip
"""Operators all of whose inputs are floating-point, and of one type but for BatchNormalization."""


def mixed_types(node: Node, view: View) -> Refusal | None:
    """The refusal of a node whose operands cannot be of the types they have."""
    wanted = view.shapes.type_of(node.outputs[0])
    for name in node.inputs if node.op_type in FLOATING else ():
        kind = view.shapes.type_of(name) if name else 0
        mixed = node.op_type == "BatchNormalization" and kind in FLOATS
        if kind and wanted and kind != wanted and not mixed:
            return Refusal(Code.MALFORMED, f"the type of {name!r} is not that of its result")
    return None


def unknown_shape(name: str) -> Refusal:
    return Refusal(
        Code.UNKNOWN_SHAPE,
        f"the shape of {name!r} cannot be inferred; a custom operator before it may hide it",
    )
