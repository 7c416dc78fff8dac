"""Arrays that are read in pieces: kernels of which no room is for the whole in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

LARGE, PIECE = 1 << 20, 1 << 18
"""Arrays of more elements than the first are read in pieces of the second, which the caches of a
processor hold, if their shapes allow."""


def recycle() -> None:
    """Let the C library keep the memory of arrays for the next ones.

    glibc hands back what was large when it was freed, and takes as large what is larger than
    anything freed before, up to 32 MiB. So one array of that size is freed first; pieces would
    else be given to the system and cleared by it each time, which takes longer than all the rest.
    """
    np.empty((1 << 25) - (1 << 16), np.uint8)


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
        step = max(count * PIECE // max(prod(self.shape), 1), 1)
        for start in range(0, count, step):
            yield start, min(start + step, count)


def pieces(array: Any, axis: int) -> Iterator[tuple[int, int, Any]]:
    """An array in runs along an axis, with where each starts and stops; a plain one is one run."""
    if not isinstance(array, Parts):
        yield 0, array.shape[axis], array
        return
    for start, stop in array.runs(axis):
        yield start, stop, array.take(axis, start, stop)
