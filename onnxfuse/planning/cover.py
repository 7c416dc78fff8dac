"""Covering a form: the fewest, cheapest operators that compute a sum of maps.

Boxes contained in another merge free; then pairs merge while the estimate falls and neither
MACs nor parameters grow beyond what the region had; then runs of output channels that are
computed alike are stacked into one convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from typing import Literal

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra.form import Facts, Form, Term
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.planning import cost
from onnxfuse.planning.cost import Cost
from onnxfuse.planning.problem import Problem

Affine = Literal["Conv", "BatchNormalization", "Mul"]


@dataclass(frozen=True, slots=True)
class Cover:
    """The operators that compute a form: ``whole`` terms are summed, ``tiles`` concatenated.

    ``affine`` says which operator a per-channel map becomes.
    """

    form: Form
    whole: tuple[Term, ...]
    tiles: tuple[Term, ...]
    affine: Affine
    cost: Cost

    @property
    def terms(self) -> tuple[Term, ...]:
        return self.whole + self.tiles


def is_convolution(term: Term, affine: Affine) -> bool:
    """Whether a term becomes a Conv: it is neither bare nor a per-channel affine."""
    if term.bare:
        return False
    whole = term.ins == (0, term.source.channels)
    return affine == "Conv" or not (term.kernel.geometry.per_channel and whole)


def is_carrier(term: Term, affine: Affine) -> bool:
    """Whether the operator of a term has a bias that can take a constant."""
    return is_convolution(term, affine) or (affine == "BatchNormalization" and not term.bare)


def needs_constant(form: Form, facts: Facts, run: tuple[int, int] | None = None) -> bool:
    """Whether a run of the constant (all of it by default) must be written.

    A constant that only a kernel could tell to be zero is written without asking.
    """
    if form.constant is None:
        return False
    start, stop = run or (0, form.channels)
    values = None if form.constant.heavy else facts.value(form.constant, form.channels)
    return values is None or bool(values[start:stop].any())


def carries_constant(found: Cover, facts: Facts) -> bool:
    """Whether the operators of a cover can take the form's constant between them."""
    if any(is_carrier(term, found.affine) for term in found.whole):
        return True
    carriers = {t.outs for t in found.tiles if is_carrier(t, found.affine)}
    runs = {term.outs for term in found.tiles}
    return bool(runs) and all(
        run in carriers or not needs_constant(found.form, facts, run) for run in runs
    )


def operators(cover: Cover, facts: Facts) -> list[str]:
    """The operators that a cover is written with."""
    found: list[str] = []
    for term in cover.terms:
        if is_convolution(term, cover.affine):
            found += ["Slice"] * (term.ins != (0, term.source.channels)) + ["Conv"]
        elif not term.bare:
            found.append(cover.affine)
    runs = len({term.outs for term in cover.tiles})
    found += ["Add"] * (len(cover.tiles) - runs) + ["Concat"] * (runs > 1)
    found += ["Add"] * (len(cover.whole) + bool(cover.tiles) - 1)
    if needs_constant(cover.form, facts) and not carries_constant(cover, facts):
        found.append("Add")
    if not cover.form.in_base_layout:
        found.append("Transpose")
    return found or ["Identity"]


def cover(form: Form, problem: Problem, affine: Affine, budget: Cost) -> Cover | None:
    """The cheapest cover found, or ``None`` where none can be written in the graph."""
    if form.border or not form.terms:
        return None
    pricing = _Pricing(problem, affine)
    whole = [t for t in form.terms if t.outs == (0, form.channels)]
    parts = [t for t in form.terms if t.outs != (0, form.channels)]
    tiles = _tiles(parts, form, pricing, budget)
    if tiles is None:
        return None
    whole += [t for t in tiles if t.outs == (0, form.channels)]
    tiles = [t for t in tiles if t.outs != (0, form.channels)]
    whole = _merged(whole, pricing, budget)
    if any(
        term.kernel.geometry.axes == () for term in (*whole, *tiles) if is_convolution(term, affine)
    ):
        return None
    found = Cover(form, tuple(whole), tuple(tiles), affine, Cost())
    return replace(found, cost=pricing.cover(found))


class _Pricing:
    """Costs of terms and covers in one problem."""

    def __init__(self, problem: Problem, affine: Affine) -> None:
        self.problem = problem
        self.affine = affine

    def term(self, term: Term) -> Cost:
        """One term as an operator (a bare source costs nothing by itself)."""
        if term.bare:
            return Cost()
        source = term.source
        itemsize = self.problem.itemsize(source.name)
        lengths, batch = self.problem.lengths(source), self.problem.batch(source.name)
        if not is_convolution(term, self.affine):
            count = batch * source.channels * prod(lengths)
            return cost.passes(count, count, itemsize=itemsize)
        geometry = geo.materialise(term.kernel.geometry, source.lengths)
        price = cost.convolution(geometry, lengths, batch, itemsize)
        if term.ins != (0, source.channels):
            count = batch * (term.ins[1] - term.ins[0]) * prod(lengths)
            price += cost.passes(count, count, itemsize=itemsize)
        return price

    def addition(self, form: Form, channels: int | None = None) -> Cost:
        """One Add of two tensors of the form's shape."""
        count = self._elements(form, channels or form.channels)
        return cost.passes(count, count, count, itemsize=self._itemsize(form))

    def _itemsize(self, form: Form) -> int:
        return self.problem.itemsize(form.terms[0].source.name)

    def _elements(self, form: Form, channels: int) -> int:
        term = form.terms[0]
        lengths = term.kernel.geometry.lengths(self.problem.lengths(term.source))
        return (
            self.problem.batch(term.source.name) * channels * prod(max(n or 0, 1) for n in lengths)
        )

    def cover(self, found: Cover) -> Cost:
        form = found.form
        total = sum((self.term(t) for t in found.terms), Cost())
        summands = len(found.whole) + bool(found.tiles)
        for _ in range(summands - 1):
            total += self.addition(form)
        count = self._elements(form, form.channels)
        one_pass = cost.passes(count, count, itemsize=self._itemsize(form))
        if len(found.tiles) > 1:
            total += one_pass
            by_run: dict[tuple[int, int], int] = {}
            for tile in found.tiles:
                by_run[tile.outs] = by_run.get(tile.outs, -1) + 1
            for run, extra in by_run.items():
                for _ in range(extra):
                    total += self.addition(form, run[1] - run[0])
        if needs_constant(form, self.problem.facts) and not carries_constant(
            found, self.problem.facts
        ):
            total += one_pass
        return total if form.in_base_layout else total + one_pass


def _merged(terms: Sequence[Term], pricing: _Pricing, budget: Cost) -> list[Term]:
    """Terms over equal channels and strides, merged while that is cheaper."""
    groups: dict[object, list[Term]] = {}
    for term in terms:
        strides = tuple(axis.stride for axis in term.kernel.geometry.axes)
        groups.setdefault((term.source.name, term.ins, term.outs, strides), []).append(term)
    merged: list[Term] = []
    for group in groups.values():
        merged += _pairwise(_absorb(group), pricing, budget)
    return merged


def _absorb(terms: list[Term]) -> list[Term]:
    """Boxes that lie in another one, on its grid and within its groups, join it."""
    kept: list[list[Term]] = []
    by_size = sorted(terms, key=lambda t: (-t.kernel.geometry.parameters, t.kernel.identity))
    for term in by_size:
        home = next((box for box in kept if _fits(box[0], term)), None)
        if home is None:
            kept.append([term])
        else:
            home.append(term)
    return [
        box[0]
        if len(box) == 1
        else replace(box[0], kernel=ex.add(box[0].kernel.geometry, [t.kernel for t in box]))
        for box in kept
    ]


def _fits(hull: Term, part: Term) -> bool:
    h, p = hull.kernel.geometry, part.kernel.geometry
    return p.groups % h.groups == 0 and all(
        geo.contains(a, b) for a, b in zip(h.axes, p.axes, strict=True)
    )


def _pairwise(terms: list[Term], pricing: _Pricing, budget: Cost) -> list[Term]:
    """Merge the pair that saves most, while some pair saves and the counts allow it."""
    if len(terms) > 16:
        return terms
    while len(terms) > 1:
        spent = sum((pricing.term(t) for t in terms), Cost())
        best: tuple[int, Term, Term, Term] | None = None
        for left, right in combinations(terms, 2):
            box = _union(left, right)
            apart = (
                pricing.term(left)
                + pricing.term(right)
                + pricing.addition(Form(left.outs[1] - left.outs[0], (left,)))
            )
            joined = pricing.term(box)
            macs = spent.macs - apart.macs + joined.macs
            parameters = spent.parameters - apart.parameters + joined.parameters
            allowed = macs <= max(spent.macs, budget.macs) and parameters <= max(
                spent.parameters, budget.parameters
            )
            saved = apart.time - joined.time
            if allowed and saved > 0 and (best is None or saved > best[0]):
                best = saved, left, right, box
        if best is None:
            return terms
        _, left, right, box = best
        terms = [t for t in terms if t is not left and t is not right] + [box]
    return terms


def _union(left: Term, right: Term) -> Term:
    hull = geo.hull(left.kernel.geometry, right.kernel.geometry)
    return replace(left, kernel=ex.add(hull, [left.kernel, right.kernel]))


def _tiles(parts: Sequence[Term], form: Form, pricing: _Pricing, budget: Cost) -> list[Term] | None:
    """Terms of partial channels as runs that follow each other, stacked where computed alike.

    ``None`` where they overlap or leave a gap: such a sum is not written in the graph.
    """
    if not parts:
        return []
    runs: dict[tuple[int, int], list[Term]] = {}
    for term in parts:
        runs.setdefault(term.outs, []).append(term)
    order = sorted(runs)
    stops = [0, *[stop for _, stop in order]]
    if [start for start, _ in order] != stops[:-1] or stops[-1] != form.channels:
        return None
    sums = [_merged(runs[run], pricing, budget) for run in order]
    if any(len(terms) > 1 for terms in sums) and len({t.source.name for t in parts}) > 1:
        return None
    stacked: list[list[Term]] = []
    for terms in sums:
        joined = _stack(stacked[-1], terms) if stacked else None
        if joined is None:
            stacked.append(terms)
        else:
            stacked[-1] = [joined]
    return [term for terms in stacked for term in terms]


def _stack(above: list[Term], below: list[Term]) -> Term | None:
    """Two adjacent tiles as one convolution, dense over one input or grouped over two."""
    if len(above) != 1 or len(below) != 1:
        return None
    (a,), (b,) = above, below
    g, h = a.kernel.geometry, b.kernel.geometry
    if a.source != b.source or g.axes != h.axes:
        return None
    outs = g.out_channels + h.out_channels
    if a.ins == b.ins and g.groups == h.groups == 1:
        result = Geometry(g.in_channels, outs, 1, g.axes)
    elif (
        a.ins[1] == b.ins[0]
        and g.in_channels // g.groups == h.in_channels // h.groups
        and g.out_channels // g.groups == h.out_channels // h.groups
    ):
        result = Geometry(g.in_channels + h.in_channels, outs, g.groups + h.groups, g.axes)
    else:
        return None
    if a.kernel.identity and b.kernel.identity and a.ins != b.ins:
        kernel = ex.identity(outs, len(g.axes))
    else:
        kernel = ex.stack(result, [a.kernel, b.kernel])
    return replace(a, kernel=kernel)


__all__ = [
    "Affine",
    "Cover",
    "carries_constant",
    "cover",
    "is_carrier",
    "is_convolution",
    "needs_constant",
    "operators",
]
