"""Folding lazy values: each part once, whole or a run of output channels, without recursion.

A run asks of each part only the run that it needs, so that no kernel need be in memory whole.
This room knows geometry and arrays; what values are made of is for `onnxfuse.algebra.expression`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxfuse.algebra.geometry import Geometry
from onnxfuse.algebra.weights import Array

Fold = Callable[[Sequence[Array]], Array]
Run = tuple[int, int] | None
"""A run of output channels, first and last but one; ``None`` is all of them."""
Rows = Callable[[int, int], tuple[Sequence[Run], Fold]]
"""Which run of each part a run of the whole needs, and how it is computed from those.

An empty run is not handed over.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Lazy:
    """A value to be computed from ``parts``; compared by identity, folded once.

    Without ``rows`` a run of its channels is cut from the whole.
    """

    text: str
    parts: tuple[Lazy, ...]
    compute: Fold = field(repr=False)
    rows: Rows | None = field(default=None, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class Kernel(Lazy):
    """A kernel of shape ``geometry.kernel_shape``; `identity` marks the bare x."""

    geometry: Geometry
    identity: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Vector(Lazy):
    """A per-channel constant of shape ``(channels,)``; `heavy` if a kernel must be read."""

    heavy: bool = False


def fold(root: Lazy, memo: dict[int, Array] | None = None, run: Run = None) -> Array:
    """The float64 array of ``root``, or of a run of its output channels.

    Shared parts are computed once; ``memo`` keeps those that were needed whole across calls.
    """
    whole = {} if memo is None else memo
    cut: dict[tuple[int, Run], Array] = {}

    def held(node: Lazy, wanted: Run) -> Array | None:
        return whole.get(id(node)) if wanted is None else cut.get((id(node), wanted))

    stack = [(root, run)]
    while stack:
        node, wanted = stack[-1]
        if held(node, wanted) is not None:
            stack.pop()
            continue
        needs, compute = _step(node, wanted)
        found = [held(*need) for need in needs]
        missing = [need for need, array in zip(needs, found, strict=True) if array is None]
        if missing:
            stack.extend(missing)
            continue
        with np.errstate(all="ignore"):  # what is not finite is refused when it is written
            made = compute([array for array in found if array is not None])
        if wanted is None:
            whole[id(node)] = made
        else:
            cut[id(node), wanted] = made
        stack.pop()
    done = held(root, run)
    assert done is not None
    return done


def _step(node: Lazy, run: Run) -> tuple[list[tuple[Lazy, Run]], Fold]:
    """What must be there before a run of a value can be computed, and how it then is."""
    if run is None:
        return [(part, None) for part in node.parts], node.compute
    if node.rows is None:
        return [(node, None)], lambda whole: whole[0][slice(*run)]
    runs, compute = node.rows(*run)
    needs = zip(node.parts, runs, strict=True)
    return [(part, r) for part, r in needs if r is None or r[0] < r[1]], compute


def largest(root: Lazy) -> int:
    """The elements of the largest kernel that a value is computed from."""
    seen: set[int] = set()
    most, stack = 0, [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Kernel):
            most = max(most, prod(node.geometry.kernel_shape))
        stack += node.parts
    return most


def alike(count: int, compute: Fold) -> Rows:
    """The rows of what works on each output channel by itself: the same run of each part."""
    return lambda start, stop: ([(start, stop)] * count, compute)


def shares(sizes: Sequence[int], start: int, stop: int) -> list[Run]:
    """The run of each of some parts that follow each other, of ``sizes`` channels, in a run."""
    found: list[Run] = []
    first = 0
    for size in sizes:
        begin, end = (min(max(place - first, 0), size) for place in (start, stop))
        found.append((begin, end))
        first += size
    return found
