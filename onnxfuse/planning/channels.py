"""Which axis of each tensor holds its channels: the second, unless linear layers say the last.

A Gemm or MatMul sums over the last axis of what it reads. That axis is followed through operators
that work on each position by itself, and through Transposes; tensors that a window reads or writes
keep their second axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from onnxfuse.algebra.joining import Concat, Select
from onnxfuse.algebra.laws import Alias, Linear, Scale, Sum
from onnxfuse.algebra.layouts import Permute
from onnxfuse.algebra.reshaping import Reshape

if TYPE_CHECKING:
    from onnxfuse.planning.problem import Step

Axes = tuple[int | None, ...]
"""What each axis of one tensor is in another."""
_SAME = (Alias, Concat, Scale, Select, Sum)
"""Laws whose operands and result have their channels on one axis."""


def channel_axes(steps: Iterable[Step]) -> dict[str, int]:
    """The channels' axis by tensor, where it is another than the second."""
    steps = list(steps)
    links: dict[str, list[tuple[str, Axes | None]]] = {}
    windowed: set[str] = set()
    found: dict[str, int] = {}
    for step in steps:
        for operand in step.lifted.operands:
            for tensor, other, axes in _links(step, operand):
                links.setdefault(tensor, []).append((other, axes))
        if isinstance(step.law, Linear):
            found[step.tensor] = found[step.lifted.operands[0]] = step.law.axis
        elif not isinstance(step.law, (*_SAME, Permute, Reshape)):
            windowed.update((step.tensor, *step.lifted.operands))
    found = {tensor: axis for tensor, axis in found.items() if tensor not in windowed}
    queue = list(found)
    for tensor in queue:
        for other, axes in links.get(tensor, []):
            if other not in found and other not in windowed:
                axis = found[tensor] if axes is None else axes[found[tensor]]
                if axis is not None:
                    found[other] = axis
                    queue.append(other)
    return {tensor: axis for tensor, axis in found.items() if axis != 1}


def _links(step: Step, operand: str) -> Iterator[tuple[str, str, Axes | None]]:
    """Pairs of tensors, the second's axis following from the first's (``None``: the same)."""
    if isinstance(step.law, _SAME):
        yield operand, step.tensor, None
        yield step.tensor, operand, None
    elif isinstance(step.law, Permute):
        turn = step.law.permutation
        yield step.tensor, operand, turn
        yield operand, step.tensor, tuple(turn.index(axis) for axis in range(len(turn)))
    elif isinstance(step.law, Reshape):
        places = [None if place is None else place[0] for place in step.law.places]
        rank = len(step.law.after)
        yield operand, step.tensor, tuple(places)
        back = [places.index(at) if at in places else None for at in range(rank)]
        yield step.tensor, operand, tuple(back)
