"""A graph in layers: which row and column each vertex has, so that lines only run downwards.

Rows by longest path; what passes a row does so in a lane, one for all its readers. Rows are
ordered by sweeps of barycentres. Columns are set by isotonic regression, then chains are drawn
straight where nothing stands in the way. Nothing recurses; no two vertices ever overlap.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate, pairwise
from math import inf

SWEEPS = 8
GAP = 16
"""Space between neighbours of a row."""
LANE = 4
"""The width of a lane."""

Nets = Mapping[str, tuple[int, Sequence[int]]]
"""By name: the vertex that writes it, and those that read it."""


@dataclass(frozen=True, slots=True)
class Link:
    """A piece of a net, from a vertex or lane to one in the next row."""

    upper: int
    lower: int
    net: str


@dataclass(frozen=True, slots=True)
class Layers:
    """Rows from the top, links between neighbouring rows, and the centre of each vertex and lane.

    Lanes have the numbers beyond those of the vertices.
    """

    rows: list[list[int]]
    links: list[Link]
    centres: dict[int, float]


def arrange(widths: Sequence[int], nets: Nets) -> Layers:
    """Lay a graph out; a writer has a smaller number than its readers, or reads nothing itself."""
    rows, links = _rows(len(widths), nets)
    rows = _ordered(rows, links)
    apart = {number: float(width) for number, width in enumerate(widths)}
    apart.update((n, float(LANE)) for row in rows for n in row if n >= len(widths))
    return Layers(rows, links, _straight(rows, links, apart, _centres(rows, links, apart)))


def _rows(count: int, nets: Nets) -> tuple[list[list[int]], list[Link]]:
    written = {reader for _, readers in nets.values() for reader in readers}
    row = [0] * count
    for writer, readers in sorted(nets.values(), key=lambda net: (net[0] in written, net[0])):
        for reader in readers:
            row[reader] = max(row[reader], row[writer] + 1)
    ends: dict[int, int] = {}
    for writer, readers in nets.values():
        nearest = min((row[reader] for reader in readers), default=row[writer] + 1)
        ends[writer] = min(ends.get(writer, nearest), nearest)
    for writer, nearest in ends.items():
        if writer not in written:
            row[writer] = nearest - 1
    rows: list[list[int]] = [[] for _ in range(max(row, default=-1) + 1)]
    for number, where in enumerate(row):
        rows[where].append(number)
    links = []
    for name, (writer, readers) in nets.items():
        due: dict[int, list[int]] = {}
        for reader in readers:
            due.setdefault(row[reader], []).append(reader)
        at, last = writer, max(due, default=0)
        for where in range(row[writer] + 1, last + 1):
            links += [Link(at, reader, name) for reader in due.get(where, ())]
            if where < last:
                rows[where].append(count)
                links.append(Link(at, count, name))
                at, count = count, count + 1
    return rows, links


def _beside(links: Iterable[Link], *, above: bool) -> dict[int, list[int]]:
    """Each number's neighbours in the row above or below."""
    found: dict[int, list[int]] = {}
    for link in links:
        here, there = (link.lower, link.upper) if above else (link.upper, link.lower)
        found.setdefault(here, []).append(there)
    return found


def _ordered(rows: list[list[int]], links: Sequence[Link]) -> list[list[int]]:
    """Sweeps of barycentres, down and up; the order with the fewest crossings is kept."""
    above, below = _beside(links, above=True), _beside(links, above=False)
    best, least = rows, crossings(rows, below)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        beside = above if down else below
        place = {number: float(at) for row in rows for at, number in enumerate(row)}
        swept = []
        for row in rows if down else reversed(rows):
            middle = {n: _mean([place[other] for other in beside.get(n, [n])]) for n in row}
            swept.append(sorted(row, key=middle.__getitem__))
            place.update((number, float(at)) for at, number in enumerate(swept[-1]))
        rows = swept if down else swept[::-1]
        found = crossings(rows, below)
        if found < least:
            best, least = rows, found
    return best


def crossings(rows: Sequence[Sequence[int]], below: Mapping[int, Sequence[int]]) -> int:
    """How many links cross between neighbouring rows."""
    total = 0
    for upper, lower in pairwise(rows):
        place = {number: at for at, number in enumerate(lower)}
        seen: list[int] = []
        for number in upper:
            ends = sorted(place[other] for other in below.get(number, ()))
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _centres(
    rows: Sequence[Sequence[int]], links: Sequence[Link], apart: Mapping[int, float]
) -> dict[int, float]:
    """Each number as near to its neighbours as the order of its row allows."""
    above, below = _beside(links, above=True), _beside(links, above=False)
    both = {n: [*above.get(n, ()), *below.get(n, ())] for n in above.keys() | below.keys()}
    offsets, x = [], dict[int, float]()
    for row in rows:
        steps = ((apart[left] + apart[right]) / 2 + GAP for left, right in pairwise(row))
        offsets.append(list(accumulate(steps, initial=0.0)))
        x.update(zip(row, (at - offsets[-1][-1] / 2 for at in offsets[-1]), strict=True))
    for sweep in range(3 * SWEEPS):
        beside = (above, below, both, both)[sweep % 4]
        for at in range(len(rows)) if sweep % 2 == 0 else reversed(range(len(rows))):
            row, offset = rows[at], offsets[at]
            near = [beside.get(number, ()) for number in row]
            wanted = [
                (_mean([x[other] for other in others]) if others else x[number]) - away
                for number, others, away in zip(row, near, offset, strict=True)
            ]
            level = isotonic(wanted, [len(others) + 0.01 for others in near])
            x.update((n, v + away) for n, v, away in zip(row, level, offset, strict=True))
    return x


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest values that never fall, by pooling adjacent violators.

    >>> isotonic([1.0, 3.0, 1.0], [1.0, 1.0, 1.0])
    [1.0, 2.0, 2.0]
    """
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        mean, total, many = value, weight, 1
        while pools and pools[-1][0] > mean:
            before, heavy, more = pools.pop()
            mean = (before * heavy + mean * total) / (heavy + total)
            total, many = heavy + total, many + more
        pools.append((mean, total, many))
    return [value for value, _, many in pools for _ in range(many)]


def _straight(
    rows: Sequence[Sequence[int]],
    links: Sequence[Link],
    apart: Mapping[int, float],
    x: Mapping[int, float],
) -> dict[int, float]:
    """Chains as single columns, next to each other as in the rows, as near as can be to their ends.

    Chains that cross would have to be left and right of each other; those are taken apart.
    """
    above, below = _beside(links, above=True), _beside(links, above=False)
    chains = _chains(rows, above, below)
    pairs = [pair for row in rows for pair in pairwise(row)]
    space = {pair: (apart[pair[0]] + apart[pair[1]]) / 2 + GAP for pair in pairs}
    while True:
        chain_of = {number: at for at, chain in enumerate(chains) for number in chain}
        before: dict[int, dict[int, float]] = {at: {} for at in range(len(chains))}
        after: dict[int, dict[int, float]] = {at: {} for at in range(len(chains))}
        for (left, right), away in space.items():
            one, other = chain_of[left], chain_of[right]
            before[other][one] = after[one][other] = max(away, before[other].get(one, 0.0))
        try:
            order = list(TopologicalSorter(before).static_order())
            break
        except CycleError as crossed:
            split = set(crossed.args[1])
            chains = [
                part
                for at, chain in enumerate(chains)
                for part in ([[number] for number in chain] if at in split else [chain])
            ]
    column = [_mean([x[number] for number in chain]) for chain in chains]
    for at in order:
        column[at] = max([column[at], *(column[a] + away for a, away in before[at].items())])
    ends = [
        [chain_of[n] for n in (*above.get(chain[0], ()), *below.get(chain[-1], ()))]
        for chain in chains
    ]
    for sweep in range(4 * SWEEPS):
        for at in order if sweep % 2 else reversed(order):
            wanted = _mean([column[end] for end in ends[at]] or [column[at]])
            low = max((column[a] + away for a, away in before[at].items()), default=-inf)
            high = min((column[b] - away for b, away in after[at].items()), default=inf)
            column[at] = min(max(wanted, low), high)
    return {number: column[at] for number, at in chain_of.items()}


def _chains(
    rows: Sequence[Sequence[int]],
    above: Mapping[int, Sequence[int]],
    below: Mapping[int, Sequence[int]],
) -> list[list[int]]:
    """Numbers that are each other's only neighbours, from above to below."""
    found: list[list[int]] = []
    chain_of: dict[int, list[int]] = {}
    for number in (number for row in rows for number in row):
        uppers = list(above.get(number, ()))
        if len(uppers) == 1 and len(below[uppers[0]]) == 1:
            chain_of[number] = chain_of[uppers[0]]
        else:
            found.append([])
            chain_of[number] = found[-1]
        chain_of[number].append(number)
    return found
