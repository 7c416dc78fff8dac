"""What of two models belongs together: inputs by name, outputs by name or by position.

What they do not share is an error or a note; nothing is run here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxfuse.errors import InputError
from onnxfuse.model.shapes import Shape
from onnxfuse.verify.judge import Bounds

KINDS = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What is allowed by output name, "" being all outputs; empty where it is to be derived."""

    rtol: Mapping[str, float]
    atol: Mapping[str, float]

    def of(self, name: str) -> Bounds | None:
        """The bounds of an output, the one of the two that was not given being 0."""
        given = [table.get(name, table.get("")) for table in (self.rtol, self.atol)]
        if given == [None, None]:
            return None
        return Bounds(*(bound or 0.0 for bound in given))


@dataclass(frozen=True, slots=True)
class Pair:
    """An output by the name A gives it, and its position in each model, -1 if missing."""

    name: str
    a: int
    b: int

    @property
    def common(self) -> bool:
        return self.a >= 0 and self.b >= 0


def inputs(a: onnx.ModelProto, b: onnx.ModelProto) -> tuple[list[onnx.ValueInfoProto], list[str]]:
    """The inputs of both models, a size being fixed where one of them fixes it, which is noted."""
    ours, theirs = _given(a), _given(b)
    for here, there, names in (("A", "B", ours.keys() - theirs), ("B", "A", theirs.keys() - ours)):
        if names:
            known = ", ".join(map(repr, theirs if there == "B" else ours)) or "none"
            raise InputError(
                f"input {min(names)!r} of {here} is missing in {there}, whose inputs are {known}; "
                "give both models the same inputs"
            )
    notes: list[str] = []
    return [_joined(value, theirs[name], notes) for name, value in ours.items()], notes


def _given(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The inputs that a caller must give."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return {value.name: value for value in model.graph.input if value.name not in stored}


def _joined(
    a: onnx.ValueInfoProto, b: onnx.ValueInfoProto, notes: list[str]
) -> onnx.ValueInfoProto:
    what = f"input {a.name!r}"
    kinds = [_kind(value.type) for value in (a, b)]
    if kinds[0] != kinds[1]:
        raise InputError(f"{what} is {kinds[0]} in A and {kinds[1]} in B; make them the same type")
    joined = onnx.ValueInfoProto()
    joined.CopyFrom(a)
    if not a.type.HasField("tensor_type") or not b.type.tensor_type.HasField("shape"):
        return joined
    if not a.type.tensor_type.HasField("shape"):
        joined.CopyFrom(b)
        return joined
    dims, others = joined.type.tensor_type.shape.dim, b.type.tensor_type.shape.dim
    if len(dims) != len(others):
        raise InputError(
            f"{what} has {len(dims)} dimensions in A and {len(others)} in B; "
            "export both for the same input"
        )
    for axis, (dim, other) in enumerate(zip(dims, others, strict=True)):
        if dim.dim_value > 0 and other.dim_value > 0 and dim.dim_value != other.dim_value:
            raise InputError(
                f"dimension {axis} of {what} is {dim.dim_value} in A and {other.dim_value} in B; "
                "export both at the same size, or leave it open in one"
            )
        if (dim.dim_value > 0) != (other.dim_value > 0):
            fixed, free = ("A", "B") if dim.dim_value > 0 else ("B", "A")
            dim.dim_value = max(dim.dim_value, other.dim_value)
            notes.append(
                f"dimension {axis} of {what} is open in {free}, and {dim.dim_value} in {fixed}: "
                "other sizes were not compared"
            )
    return joined


def _kind(value: onnx.TypeProto) -> str:
    """A type in words, without its shape."""
    if value.HasField("tensor_type"):
        kind = value.tensor_type.elem_type
        name = onnx.TensorProto.DataType.Name(kind) if kind in KINDS else f"type {kind}"
        return f"a tensor of {str(name).lower()}"
    return f"a {str(value.WhichOneof('value') or 'thing of no type').removesuffix('_type')}"


def check_shapes(inputs: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, Shape]) -> None:
    """Raise `InputError` where a shape is not that of an input of both models."""
    values = {value.name: value for value in inputs}
    for name, shape in shapes.items():
        if name not in values:
            raise InputError(
                f"the models have no input {name!r}; their inputs are "
                f"{', '.join(map(repr, values))}"
            )
        kind = values[name].type.tensor_type
        dims = kind.shape.dim
        if kind.HasField("shape") and len(dims) != len(shape):
            raise InputError(f"input {name!r} has {len(dims)} dimensions, not {len(shape)}")
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=False)):
            if dim.dim_value > 0 and dim.dim_value != size:
                raise InputError(
                    f"dimension {axis} of input {name!r} is {dim.dim_value} in the models, "
                    f"not {size}"
                )


def paired(a: onnx.ModelProto, b: onnx.ModelProto) -> tuple[list[Pair], list[str]]:
    """Outputs of one name, and by position those that are left over, if they are as many."""
    ours, theirs = ([value.name for value in model.graph.output] for model in (a, b))
    left = [name for name in ours if name not in theirs]
    over = [name for name in theirs if name not in ours]
    position = {name: index for index, name in enumerate(theirs)}
    notes = []
    if [name for name in ours if name in theirs] != [name for name in theirs if name in ours]:
        notes.append("the outputs are in another order in B; they are compared by name")
    if left and len(ours) == len(theirs):
        for name, other in zip(left, over, strict=True):
            position[name] = position[other]
            notes.append(f"output {name!r} of A is compared with {other!r} of B, by position")
        over = []
    pairs = [Pair(name, index, position.get(name, -1)) for index, name in enumerate(ours)]
    return pairs + [Pair(name, -1, position[name]) for name in over], notes


def check_tolerance(tolerance: Tolerance, pairs: Sequence[Pair]) -> None:
    """Raise `InputError` where a tolerance is not that of an output of one of the models."""
    names = [pair.name for pair in pairs]
    for name in (*tolerance.rtol, *tolerance.atol):
        if name and name not in names:
            raise InputError(
                f"the models have no output {name!r}; their outputs are "
                f"{', '.join(map(repr, names))}"
            )
