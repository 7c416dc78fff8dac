"""How a constant that varies in space is written: the response of maps to planes of ones.

    map      y = … + M[1, O, *P]                        where the sizes are certain
    plane    y = … + Conv(ones[1, 1, *Q]; K[O, 1, *k])  at any size
    channel  y = Conv([x, ones]; [K, k])                where the plane covers the source
    shift    y = Conv(x + c; K)                         where all maps are of x shifted alike

A map is read once a run and stored once in the file; one that would make the file grow by more
than `SPARE` elements is left to a plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra import padded
from onnxfuse.algebra.form import Form, Term
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.planning import cost
from onnxfuse.planning.cost import Cost
from onnxfuse.planning.pricing import Pricing
from onnxfuse.planning.written import Cover, Known, is_convolution

SPARE = 1 << 18
"""Elements by which a map may make the file grow: 1 MiB of float32."""
FEW = 4
"""A channel of ones is appended to fewer channels than this: more run slower than with a map."""

Merge = Callable[[Sequence[Term]], list[Term]]


def with_known(found: Cover, pricing: Pricing, budget: Cost, merge: Merge) -> Cover | None:
    """``found`` with its known terms written in the cheapest way; ``None`` where none is."""
    form = found.form
    terms = merge([_widened(term, form.channels) for term in form.known])
    freed = budget.parameters - found.cost.parameters
    ways = (
        _map(form, terms, pricing, freed),
        _plane(form, terms, pricing),
        _channel(found, terms, pricing),
        _shift(found, pricing),
    )
    covers = [replace(found, known=way) for way in ways if way is not None]
    priced = [replace(cover, cost=pricing.cover(cover)) for cover in covers]
    return min(priced, key=lambda cover: cover.cost.time, default=None)


def _widened(term: Term, channels: int) -> Term:
    """A term that writes all channels, zero those that it did not."""
    if term.outs == (0, channels):
        return term
    return replace(term, kernel=ex.widen(term.kernel, term.out_start, channels), out_start=0)


def _map(form: Form, terms: list[Term], pricing: Pricing, freed: int) -> Known | None:
    if any(None in term.lengths for term in terms):
        return None
    stored = len(terms) == 1 and terms[0].bare and terms[0].source.stands
    elements = form.channels * prod(size or 0 for size in terms[0].lengths)
    only = any(term.source.load for term in terms)
    if not stored and not only and elements > max(freed, 0) + SPARE:
        return None
    read = cost.passes(elements, itemsize=pricing.itemsize(form))
    return Known("map", tuple(terms), ("Add",), pricing.one_pass(form) + read, elements)


def _plane(form: Form, terms: list[Term], pricing: Pricing) -> Known | None:
    opset = pricing.problem.view.graph.opset
    if opset < 8 or any(term.source.load for term in terms):
        return None
    total, operators, constants, sizing = Cost(), [], 0, 0
    for term in terms:
        plane = term.source.plane
        assert plane is not None
        geometry = padded.materialise(term.kernel.geometry, term.source.lengths)
        if not padded.writable(geometry, term.source.lengths):
            return None
        total += pricing.term(term) + pricing.addition(form)
        ones = plane_operators(plane.axes, opset)
        operators += [*ones, "Conv", "Add"]
        sizing += len(ones)
        constants += geometry.parameters
    return Known("plane", tuple(terms), tuple(operators), total, constants, sizing)


def plane_operators(axes: tuple[tuple[int, int], ...], opset: int) -> list[str]:
    """The operators that make a plane of ones of the size that a tensor gives it."""
    arithmetic = ["Add"] if any(slack + stride for stride, slack in axes) else []
    arithmetic += ["Div"] if any(stride > 1 for stride, _ in axes) else []
    return ["Shape", *["Slice"] * (opset < 15), *arithmetic, "Concat", "Expand"]


def _channel(found: Cover, terms: list[Term], pricing: Pricing) -> Known | None:
    """One dense convolution over the whole source, and one plane that covers that source."""
    if len(terms) != 1 or len(found.whole) != 1 or found.tiles:
        return None
    (term,), (data,) = terms, found.whole
    plane, source = term.source.plane, data.source
    if source.channels >= FEW:
        return None
    if plane is None or plane.of != source or any(axis != (1, -1) for axis in plane.axes):
        return None
    if data.ins != (0, source.channels) or not is_convolution(data, found.affine):
        return None
    box = channel_box(data, term)
    if data.kernel.geometry.groups != 1 or box is None:
        return None
    lengths, batch, itemsize = pricing.stands(source)
    wide = cost.convolution(box, lengths, batch, itemsize)
    narrow = pricing.term(data)
    count = batch * prod(lengths)
    grown = cost.passes(count * source.channels, count * box.in_channels, itemsize=itemsize)
    return Known("channel", (term,), ("Pad",), grown + (wide - narrow), 0)


def _shift(found: Cover, pricing: Pricing) -> Known | None:
    """The source shifted before it is padded, where everything reads it so."""
    shift = found.form.shift
    if shift is None or any(term.source != shift.source for term in found.terms):
        return None
    lengths, batch, itemsize = pricing.stands(shift.source)
    count = batch * shift.source.channels * prod(lengths)
    return Known(
        "shift", (), ("Add",), cost.passes(count, count, itemsize=itemsize), shift.source.channels
    )


def channel_box(data: Term, term: Term) -> Geometry | None:
    """The convolution of a source with a channel of ones behind its own."""
    d, k = data.kernel.geometry, term.kernel.geometry
    if d.family != k.family:
        return None
    axes = tuple(geo.hull_axis(a, b) for a, b in zip(d.axes, k.axes, strict=True))
    box = Geometry(d.in_channels + 1, d.out_channels, 1, axes)
    box = padded.materialise(box, data.source.lengths)
    return box if padded.writable(box, data.source.lengths) else None
