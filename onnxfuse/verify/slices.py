"""How far two arrays are apart, slice by slice, against what rounding explains there.

One number for a whole tensor would let its large entries speak for its small ones: boxes of
hundreds of pixels for scores of a hundredth, thousands of pixels for one. So each index of each
axis is a slice with a scale of its own, and of each the sum of squares and the greatest entry are
compared. Arrays are read in blocks: a large output is not copied to double precision at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FACTOR = 6.0
"""How many times the response to noise a slice of B may differ by.

Of the fixtures and what they are fused to, none needs more than 3.4."""
FROM_RUN_TO_RUN = 4.0
BLOCK = 1 << 18
"""Elements that are looked at together."""

Index = tuple[slice, ...]
DIFFERENCE, EXPLAINED, RERUN, MAGNITUDE = range(4)
Quantities = Callable[[Index], Sequence[Any]]
"""|B-A|, what noise explains of it, what A changes from run to run, and |A|, of a block."""


@dataclass(frozen=True, slots=True)
class Place:
    """A slice, the whole where ``axis`` is -1; ``peak`` says its greatest entries are meant."""

    axis: int = -1
    index: int = 0
    peak: bool = False

    def __str__(self) -> str:
        where = f"at index {self.index} of axis {self.axis}" if self.axis >= 0 else ""
        return f"in one entry {where}".strip() if self.peak else where


@dataclass(frozen=True, slots=True)
class Distance:
    """A difference and what it may be, both relative to the size of A in the same place."""

    place: Place
    error: float
    allowed: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Measured:
    """The whole, the place with the greatest ratio, and the greatest |B-A| over A's largest."""

    whole: Distance
    worst: Distance
    largest: float


def blocks(shape: tuple[int, ...]) -> Iterator[Index]:
    """Parts of an array along its longest axis."""
    longest = int(np.argmax(shape))
    size = shape[longest]
    step = max(1, BLOCK * size // max(1, int(np.prod(shape, dtype=np.int64))))
    for start in range(0, size, step):
        yield tuple(
            slice(start, min(start + step, size)) if axis == longest else slice(None)
            for axis in range(len(shape))
        )


def measured(shape: tuple[int, ...], quantities: Quantities, least: float) -> Measured:
    """The distances of an array of at least one axis, whose quantities are relative to its peak.

    ``least`` is what is always allowed where a slice of A is all zeros.
    """
    sums = _sums(shape, quantities)
    squares, peaks = next(iter(sums.values()))
    whole = squares.sum(axis=1, keepdims=True), peaks.max(axis=1, keepdims=True)
    found = [*_distances(-1, *whole, least)]
    first = found[0]
    for axis, (squares, peaks) in sums.items():
        found += _distances(axis, squares, peaks, least)
    worst = max(found, key=lambda one: one.ratio)
    return Measured(first, worst if worst.ratio > 0 else first, float(whole[1][DIFFERENCE, 0]))


def _sums(shape: tuple[int, ...], quantities: Quantities) -> dict[int, tuple[Any, Any]]:
    """Sums of squares and greatest entries of the quantities, by axis and index of it."""
    axes = [axis for axis, size in enumerate(shape) if size > 1] or [0]
    found = {axis: (np.zeros((4, shape[axis])), np.zeros((4, shape[axis]))) for axis in axes}
    for block in blocks(shape):
        for row, values in enumerate(quantities(block)):
            _gather(found, row, block, values * values, values)
    return found


def _gather(
    found: Mapping[int, tuple[Any, Any]], row: int, block: Index, square: Any, values: Any
) -> None:
    """Add a block to the sums; the last axis first, so that the rest is reduced but once."""
    for axis in range(len(block) - 1, -1, -1):
        if axis in found:
            squares, peaks = found[axis]
            rest, part = tuple(range(axis)), block[axis]
            squares[row, part] += square.sum(axis=rest)
            peaks[row, part] = np.maximum(peaks[row, part], values.max(axis=rest))
        square, values = square.sum(axis=-1), values.max(axis=-1)


def _distances(axis: int, squares: Any, peaks: Any, least: float) -> Iterator[Distance]:
    """The worst of an axis by root mean square, and by greatest entry.

    The root of a sum stands for that of a mean: both sides are of as many elements. A slice of A
    that is all zeros has no scale, and is judged by its greatest entry and the scale of the whole.
    """
    zero = peaks[MAGNITUDE] == 0
    for peak, values in ((False, np.sqrt(squares)), (True, peaks)):
        allowed = FACTOR * values[EXPLAINED] + FROM_RUN_TO_RUN * values[RERUN]
        if peak:
            allowed = np.where(zero, np.maximum(allowed, least), allowed)
        difference = values[DIFFERENCE]
        ratio = np.where(difference > 0, difference / allowed, 0.0)
        if not peak:
            ratio = np.where(zero, 0.0, ratio)
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        at = int(np.argmax(ratio))
        size = float(values[MAGNITUDE, at]) or 1.0
        place = Place(axis, at if axis >= 0 else 0, peak)
        yield Distance(
            place, float(difference[at]) / size, float(allowed[at]) / size, float(ratio[at])
        )
