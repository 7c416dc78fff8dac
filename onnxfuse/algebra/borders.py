"""Border strips of forms: what stands on them in a sum, and when they vanish.

Every position of a strip holds the value of one of the strips it lies in. Padding and border
assignments keep that true, so when all values equal the constant, the border is gone.
"""

from __future__ import annotations

from dataclasses import replace

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra.form import Facts, Form, Side
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
                return Refusal(Code.BORDER_BIAS, "its inputs hold different values at the border")
    lefts = {(side.axis, side.end): side for side in left.border}
    rights = {(side.axis, side.end): side for side in right.border}
    joined = []
    if (
        left.border
        and right.border
        and {k: s.width for k, s in lefts.items()} != {k: s.width for k, s in rights.items()}
    ):
        return Refusal(Code.BORDER_BIAS, "its inputs have borders of different widths")
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
        return Refusal(Code.BORDER_BIAS, "it pads an input that already differs at the border")
    sides = (*kept, *new)
    if all(facts.zero(s.value) for s in sides) and facts.zero(form.constant):
        return replace(form, border=())
    if all(facts.equal(s.value, form.constant, form.channels) for s in sides):
        return replace(form, border=(), matched=form.matched or bool(sides))
    return replace(form, border=sides)
