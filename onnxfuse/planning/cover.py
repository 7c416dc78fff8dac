"""Covering a form: the fewest, cheapest operators that compute a sum of maps.

Boxes contained in another merge free; then pairs merge while the estimate falls and neither
MACs nor parameters grow beyond what the region had; then runs of output channels that are
computed alike are stacked into one convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra import padded
from onnxfuse.algebra.form import Form, Term
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.planning.cost import Cost
from onnxfuse.planning.known import with_known
from onnxfuse.planning.pricing import Pricing
from onnxfuse.planning.problem import Problem
from onnxfuse.planning.written import Affine, Cover, is_convolution


def cover(form: Form, problem: Problem, affine: Affine, budget: Cost) -> Cover | None:
    """The cheapest cover found, or ``None`` where none can be written in the graph."""
    if form.border or not form.data:
        return None
    pricing = Pricing(problem, affine, form)
    whole = [t for t in form.data if t.outs == (0, form.channels)]
    parts = [t for t in form.data if t.outs != (0, form.channels)]
    tiles = _tiles(parts, form, pricing, budget)
    if tiles is None:
        return None
    whole += [t for t in tiles if t.outs == (0, form.channels)]
    tiles = [t for t in tiles if t.outs != (0, form.channels)]
    whole = _merged(whole, pricing, budget)
    if not all(_can_be_written(t) for t in (*whole, *tiles) if is_convolution(t, affine)):
        return None
    found = Cover(form, tuple(whole), tuple(tiles), affine, Cost())
    found = replace(found, cost=pricing.cover(found))
    if form.known:
        return with_known(found, pricing, budget, lambda terms: _merged(terms, pricing, budget))
    return found


def _can_be_written(term: Term) -> bool:
    """Whether a runtime has a convolution of this geometry."""
    geometry, lengths = term.kernel.geometry, term.source.lengths
    if term.source.layout or not geometry.axes:
        return geometry.groups == 1 and set(geometry.axes) <= {geo.IDENTITY}
    return padded.writable(padded.materialise(geometry, lengths), lengths)


def _merged(terms: Sequence[Term], pricing: Pricing, budget: Cost) -> list[Term]:
    """Terms of one family over equal channels, merged while that is cheaper."""
    groups: dict[object, list[Term]] = {}
    for term in terms:
        key = term.source.name, term.ins, term.outs, term.kernel.geometry.family
        groups.setdefault(key, []).append(term)
    merged: list[Term] = []
    for group in groups.values():
        merged += _pairwise(_absorb(group), pricing, budget)
    return _beside(merged)


def _beside(terms: Sequence[Term]) -> list[Term]:
    """Dense terms over channels that follow each other become one over them all.

    This is a Split whose parts are convolved and summed: the work is the same, in one operator.
    """
    found: list[Term] = []
    for term in sorted(terms, key=lambda t: (t.source.name, t.source_start)):
        g = term.kernel.geometry
        for at, other in enumerate(found):
            h = other.kernel.geometry
            alike = other.source == term.source and other.outs == term.outs and h.axes == g.axes
            if alike and h.groups == g.groups == 1 and other.ins[1] == term.ins[0]:
                wide = replace(g, in_channels=g.in_channels + h.in_channels)
                kernel = ex.beside(wide, [other.kernel, term.kernel])
                found[at] = replace(other, kernel=kernel)
                break
        else:
            found.append(term)
    return found if len(found) < len(terms) else list(terms)


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


def _pairwise(terms: list[Term], pricing: Pricing, budget: Cost) -> list[Term]:
    """Merge the pair that saves most, while some pair saves and the counts allow it.

    What stands apart may be kept, whatever it costs; so a pair need only keep to that, or to the
    budget.
    """
    if len(terms) > 16:
        return terms
    policy = pricing.problem.policy
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
            total = spent - apart + joined
            allowed = all(
                not count(total, spent) or not count(total, budget)
                for count in (policy.macs, policy.parameters)
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


def _tiles(parts: Sequence[Term], form: Form, pricing: Pricing, budget: Cost) -> list[Term] | None:
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
