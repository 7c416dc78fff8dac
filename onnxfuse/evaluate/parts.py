"""Arrays that are read in pieces: kernels of which no room is for the whole in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

LARGE = 1 << 20
"""Elements that are held of such an array at once, if its shape allows."""


@dataclass(frozen=True, slots=True)
class Parts:
    """An array of ``shape``; ``take(axis, start, stop)`` gives a run of it along one axis."""

    shape: tuple[int, ...]
    dtype: Any
    take: Callable[[int, int, int], Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def whole(self) -> Any:
        """All of it."""
        return self.take(0, 0, self.shape[0])

    def runs(self, axis: int) -> Iterator[tuple[int, int]]:
        """The runs along an axis that it is read in."""
        count = self.shape[axis]
        step = max(count * LARGE // max(prod(self.shape), 1), 1)
        for start in range(0, count, step):
            yield start, min(start + step, count)


def pieces(array: Any, axis: int) -> Iterator[tuple[int, int, Any]]:
    """An array in runs along an axis, with where each starts and stops; a plain one is one run."""
    if not isinstance(array, Parts):
        yield 0, array.shape[axis], array
        return
    for start, stop in array.runs(axis):
        yield start, stop, array.take(axis, start, stop)
