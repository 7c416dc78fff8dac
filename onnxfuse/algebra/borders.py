"""Border strips of forms: what stands on them in a sum, when they vanish, and as planes of ones.

Every position of a strip holds the value of one of the strips it lies in. Padding and border
assignments keep that true, so when all values equal the constant, the border is gone.

A constant that ends somewhere is a map of a plane of ones that ends there, which any map can
follow: zero padding behind a bias stays exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra.form import Facts, Form, Side, Term, plane_over
from onnxfuse.algebra.geometry import Axis, Geometry
from onnxfuse.refusal import Code, Refusal


def joined_border(left: Form, right: Form, facts: Facts) -> tuple[Side, ...] | Refusal:
    """The strips of a sum; a form without a strip holds its constant there.

    Where strips of several axes meet, a corner of either form may hold another of its values,
    so both forms must hold one value all around.
    """
    if left.border and right.border and len({side.axis for side in left.border}) > 1:
        for form in (left, right):
            first = form.border[0].value
            if not all(facts.equal(s.value, first, form.channels) for s in form.border):
                values = [side.value for side in form.border]
                gap = facts.apart(values, first, form.channels, ", up to {:.3g} apart")
                text = f"its inputs hold different values at the border{gap}"
                return Refusal(Code.BORDER_BIAS, text)
    lefts = {(side.axis, side.end): side for side in left.border}
    rights = {(side.axis, side.end): side for side in right.border}
    joined = []
    if (
        left.border
        and right.border
        and {k: s.width for k, s in lefts.items()} != {k: s.width for k, s in rights.items()}
    ):
        left_most, right_most = (max(s.width for s in form.border) for form in (left, right))
        text = f"its inputs have borders of different widths (up to {left_most} and {right_most})"
        return Refusal(Code.BORDER_BIAS, text)
    for key in dict.fromkeys([*lefts, *rights]):
        a, b = lefts.get(key), rights.get(key)
        value = ex.total(
            a.value if a else left.constant,
            b.value if b else right.constant,
        )
        side = a or b
        assert side is not None
        joined.append(replace(side, value=value))
    return tuple(joined)


def bordered(form: Form, kept: tuple[Side, ...], new: list[Side], facts: Facts) -> Form | Refusal:
    """``form`` with strips ``kept`` and ``new``; none where all equal the constant.

    Every position of a strip holds the value of one of the strips it lies in, so when all values
    equal the constant the border is gone.
    """
    if any((a.axis, a.end) == (b.axis, b.end) for a in kept for b in new):
        text = f"it pads an input that already {differs(replace(form, border=kept), facts)}"
        return Refusal(Code.BORDER_BIAS, text)
    sides = (*kept, *new)
    if all(facts.zero(s.value) for s in sides) and facts.zero(form.constant):
        return replace(form, border=())
    if all(facts.equal(s.value, form.constant, form.channels) for s in sides):
        return replace(form, border=(), matched=form.matched or bool(sides))
    return replace(form, border=sides)


def ended(form: Form, widths: Sequence[tuple[int, int]] | None = None) -> Form:
    """``form`` with its constant as a map of a plane of ones, zero outside its own positions.

    The plane is ``widths`` (begin and end per axis) smaller than the form.
    """
    if form.constant is None:
        return form
    around = widths or [(0, 0)] * form.rank
    reference = (form.data or form.terms)[0]
    plane = plane_over(reference, [begin + end for begin, end in around])
    kernel = ex.column(form.constant, form.channels, form.rank)
    if widths is not None:
        axes = tuple(Axis.window(1, begin=begin, end=end) for begin, end in widths)
        padded = ex.shift("Pad", Geometry(form.channels, form.channels, form.channels, axes))
        kernel = ex.compose(padded, kernel)
    return replace(form, terms=(*form.terms, Term(plane, kernel)), constant=None, shift=None)


def without_border(form: Form, facts: Facts) -> Form | Refusal:
    """``form`` with its strips as a plane: the constant of the strips, and inside them the rest."""
    if not form.border:
        return form
    value = form.border[0].value
    if not all(facts.equal(side.value, value, form.channels) for side in form.border):
        values = [side.value for side in form.border]
        gap = facts.apart(values, value, form.channels, ", up to {:.3g} apart")
        return Refusal(
            Code.BORDER_BIAS,
            f"the border before it holds different values on different sides{gap}, none of them "
            "the response of what precedes it to zero",
        )
    matched = form.matched or any(side.value is not value for side in form.border)
    if value is not None and facts.equal(value, None, form.channels):
        value, matched = None, True  # a pad value within rounding of zero
    if facts.out_of_proportion(value, form.constant, form.channels):
        size = facts.apart([value], None, form.channels, " of {:.3g}")
        return Refusal(
            Code.BORDER_BIAS,
            f"its padding value{size} is so large that a sum with what it pads would lose digits",
        )
    widths = [[0, 0] for _ in range(form.rank)]
    for side in form.border:
        widths[side.axis][side.end] = side.width
    rest = ex.total(form.constant, ex.negate(value))
    inside = ended(replace(form, border=(), constant=rest), [(a, b) for a, b in widths])
    return replace(inside, constant=value, matched=matched)


def differs(form: Form, facts: Facts) -> str:
    """That a form differs at the border, and by how much its strips lie from its constant."""
    gap = facts.apart([side.value for side in form.border], form.constant, form.channels)
    return f"differs at the border{gap}"
