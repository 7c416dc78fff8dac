"""The laws: what each linear operator does to a form, or why it cannot be said exactly.

Every class is one operator of the algebra; ``apply(forms, facts)`` returns the form of its
output or a `Refusal`. The preconditions are those of the table in ``docs/design.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra.expression import Kernel, Vector
from onnxfuse.algebra.form import MAX_TERMS, Facts, Form, Side, Term, coalesce, equal_lengths
from onnxfuse.algebra.geometry import Axis, Geometry
from onnxfuse.algebra.weights import Array
from onnxfuse.refusal import Code, Refusal


class Law(Protocol):
    """An operator of the algebra."""

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal: ...


class Loader(Protocol):
    """Reads a constant when it is needed."""

    def __call__(self) -> Array: ...


_LAYOUT = Refusal(Code.UNSUPPORTED, "its input is transposed, so its axes are not N, C, spatial")


@dataclass(frozen=True, slots=True)
class Alias:
    """``y = x``: Identity, inference Dropout."""

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        return forms[0]


@dataclass(frozen=True, slots=True)
class Convolve:
    """``y = kernel ∗ x + bias``: the law of *sequence*."""

    kernel: Kernel
    bias: Vector | None = None

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        geometry = self.kernel.geometry
        if not form.in_base_layout:
            return _LAYOUT
        if form.channels != geometry.in_channels or form.rank != len(geometry.axes):
            return Refusal(Code.MALFORMED, "its kernel does not fit the channels of its input")
        if form.border:
            return Refusal(
                Code.BORDER_BIAS,
                "the padding before it is not the response of what precedes it to zero, so the "
                "border differs from the interior",
            )
        if geo.reads_outside(geometry, form.lengths) and not facts.zero(form.constant):
            return Refusal(
                Code.BORDER_BIAS,
                "zero padding stands behind a bias, so the border differs from the interior",
            )
        return _sequence(self.kernel, self.bias, form)


def _sequence(kernel: Kernel, bias: Vector | None, form: Form) -> Form | Refusal:
    """Compose linear parts; the caller has settled what happens to the constant at borders."""
    terms: list[Term] = []
    for term in form.terms:
        if not geo.silent_outside(kernel.geometry, term.kernel.geometry, term.source.lengths):
            return Refusal(
                Code.BORDER_WINDOW,
                "it pads a map whose own window still sees data beyond the border",
            )
        composed = _compose_term(kernel, term)
        if isinstance(composed, Refusal):
            return composed
        terms.append(composed)
    return replace(
        form,
        channels=kernel.geometry.out_channels,
        terms=coalesce(terms),
        constant=ex.total(bias, ex.response(kernel, form.constant)),
    )


def _compose_term(kernel: Kernel, term: Term) -> Term | Refusal:
    """``kernel`` after a term that may write only some of the channels it reads."""
    g, inner = kernel.geometry, term.kernel
    first, last = term.outs
    if (first, last) == (0, g.in_channels):
        return replace(term, kernel=ex.compose(kernel, inner))
    fan_in, fan_out = g.in_channels // g.groups, g.out_channels // g.groups
    if first % fan_in == 0 and last % fan_in == 0:
        rows = slice(first // fan_in * fan_out, last // fan_in * fan_out)
        groups = (last - first) // fan_in
    elif first // fan_in == (last - 1) // fan_in:
        group = first // fan_in
        rows, groups = slice(group * fan_out, (group + 1) * fan_out), 1
    else:
        return Refusal(Code.CHANNELS, "its groups cut across the channels of what it reads")
    part = ex.restrict(kernel, rows, slice(first, last), groups)
    return replace(term, kernel=ex.compose(part, inner), out_start=rows.start)


@dataclass(frozen=True, slots=True)
class Scale:
    """``y = scale · x + shift`` per position of one tensor axis (None: scalars).

    ``size`` is the length of the constants along ``axis``. ``None`` for scale is one, for shift
    zero.
    """

    text: str
    axis: int | None
    size: int
    scale: Loader | None
    shift: Loader | None

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        if self.axis is not None and (form.layout[self.axis] != 1 or self.size != form.channels):
            return Refusal(
                Code.BROADCAST, "its constant varies over an axis that is not the channels"
            )
        scale = None if self.scale is None else self._kernel(form, self.scale)
        shift = None if self.shift is None else ex.vector("b", form.channels, self.shift)
        if scale is None:
            return _shifted(form, shift)
        out = _sequence(scale, shift, form)
        if isinstance(out, Refusal):
            return out
        sides = [
            replace(side, value=ex.total(shift, ex.response(scale, side.value)))
            for side in form.border
        ]
        return replace(out, border=tuple(sides))

    def _kernel(self, form: Form, load: Loader) -> Kernel:
        channels, text = form.channels, self.text
        wide = ex.vector(text, channels, load)
        return Kernel(
            text,
            (wide,),
            lambda parts: parts[0].reshape(-1, 1, *[1] * form.rank),
            Geometry.pointwise(channels, form.rank),
        )


def _shifted(form: Form, shift: Vector | None) -> Form:
    sides = tuple(replace(side, value=ex.total(side.value, shift)) for side in form.border)
    return replace(form, constant=ex.total(form.constant, shift), border=sides)


@dataclass(frozen=True, slots=True)
class Sum:
    """``y = ± x₁ ± x₂ …``: the law of *sum*."""

    signs: tuple[int, ...]

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        total = _signed(forms[0], self.signs[0])
        for form, sign in zip(forms[1:], self.signs[1:], strict=True):
            added = _add(total, _signed(form, sign), facts)
            if isinstance(added, Refusal):
                return added
            total = added
        return total


def _signed(form: Form, sign: int) -> Form:
    if sign > 0:
        return form
    return replace(
        form,
        terms=tuple(replace(term, kernel=_negated(term.kernel)) for term in form.terms),
        constant=ex.negate(form.constant),
        border=tuple(replace(side, value=ex.negate(side.value)) for side in form.border),
    )


def _negated(kernel: Kernel) -> Kernel:
    return Kernel(f"−{kernel.text}", (kernel,), lambda parts: -parts[0], kernel.geometry)


def _add(left: Form, right: Form, facts: Facts) -> Form | Refusal:
    if left.layout != right.layout:
        return Refusal(Code.UNSUPPORTED, "its inputs are transposed differently")
    if left.channels != right.channels:
        return Refusal(Code.BROADCAST, "its inputs differ in channels, so one is broadcast")
    if not equal_lengths(left, right):
        return Refusal(
            Code.LENGTH,
            "its inputs are not of equal height and width for certain; "
            "export with fixed sizes if they are",
        )
    border = _joined_border(left, right, facts)
    if isinstance(border, Refusal):
        return border
    terms = coalesce(left.terms + right.terms)
    if len(terms) > MAX_TERMS:
        return Refusal(Code.SIZE, f"it sums more than {MAX_TERMS} different maps")
    return replace(
        left,
        terms=terms,
        constant=ex.total(left.constant, right.constant),
        border=border,
        matched=left.matched or right.matched,
    )


def _joined_border(left: Form, right: Form, facts: Facts) -> tuple[Side, ...] | Refusal:
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


@dataclass(frozen=True, slots=True)
class Concat:
    """The law of *concatenation* on tensor axis ``axis``."""

    axis: int

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        first = forms[0]
        terms: list[Term] = []
        offset = 0
        for form in forms:
            if form.layout != first.layout or form.layout[self.axis] != 1:
                return Refusal(Code.UNSUPPORTED, "it concatenates along another axis than channels")
            if form.border:
                return Refusal(Code.BORDER_BIAS, "an input differs at the border")
            if form is not first and not equal_lengths(first, form):
                return Refusal(
                    Code.LENGTH, "its inputs are not of equal height and width for certain"
                )
            terms += [replace(t, out_start=t.out_start + offset) for t in form.terms]
            offset += form.channels
        if len(terms) > MAX_TERMS:
            return Refusal(Code.SIZE, f"it joins more than {MAX_TERMS} different maps")
        return replace(
            first,
            channels=offset,
            terms=coalesce(terms),
            constant=ex.join([(form.constant, form.channels) for form in forms]),
            matched=any(form.matched for form in forms),
        )


@dataclass(frozen=True, slots=True)
class Select:
    """Channels ``start … stop - 1`` of tensor axis ``axis``: Split, Slice."""

    axis: int
    start: int
    stop: int

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        if form.layout[self.axis] != 1:
            return Refusal(Code.UNSUPPORTED, "it splits along another axis than channels")
        if not 0 <= self.start < self.stop <= form.channels:
            return Refusal(Code.MALFORMED, "it selects channels that do not exist")
        terms: list[Term] = []
        for term in form.terms:
            part = _rows(term, self.start, self.stop)
            if isinstance(part, Refusal):
                return part
            if part is not None:
                terms.append(part)
        if not terms:
            return Refusal(Code.CHANNELS, "it selects channels that hold only a constant")
        kept = slice(self.start, self.stop)
        return replace(
            form,
            channels=self.stop - self.start,
            terms=coalesce(terms),
            constant=ex.take(form.constant, kept),
            border=tuple(replace(s, value=ex.take(s.value, kept)) for s in form.border),
        )


def _rows(term: Term, start: int, stop: int) -> Term | Refusal | None:
    """What a term writes into channels ``start … stop - 1``, counted from ``start``."""
    first, last = max(term.outs[0], start), min(term.outs[1], stop)
    if first >= last:
        return None
    g = term.kernel.geometry
    rows = slice(first - term.out_start, last - term.out_start)
    if rows == slice(0, g.out_channels):
        return replace(term, out_start=first - start)
    fan_in, fan_out = g.in_channels // g.groups, g.out_channels // g.groups
    if rows.start % fan_out == 0 and rows.stop % fan_out == 0:
        groups = (rows.stop - rows.start) // fan_out
    elif rows.start // fan_out == (rows.stop - 1) // fan_out:
        groups = 1
    else:
        return Refusal(Code.CHANNELS, "it cuts across the groups of what it selects from")
    ins = slice(rows.start // fan_out * fan_in, (rows.start // fan_out + groups) * fan_in)
    kernel = ex.restrict(term.kernel, rows, ins, groups)
    if term.kernel.identity:
        kernel = ex.identity(rows.stop - rows.start, len(g.axes))
    return Term(term.source, kernel, term.source_start + ins.start, first - start)


@dataclass(frozen=True, slots=True)
class Pad:
    """Constant padding by ``begins``/``ends`` per tensor axis (negative: cropping)."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    value: Loader | None = None

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        amounts: list[tuple[int, int]] = [(0, 0)] * (form.rank + 2)
        for axis, pair in enumerate(zip(self.begins, self.ends, strict=True)):
            amounts[form.layout[axis]] = pair
        if any(pair != (0, 0) for pair in amounts[:2]):
            return Refusal(Code.BROADCAST, "it pads the batch or the channels")
        axes = tuple(Axis.window(1, begin=begin, end=end) for begin, end in amounts[2:])
        if any(
            size is not None and axis.length(size) < 1
            for axis, size in zip(axes, form.lengths, strict=True)
        ):
            return Refusal(Code.MALFORMED, "it leaves nothing of its input")
        crops = any(amount < 0 for pair in amounts[2:] for amount in pair)
        if crops and form.border:
            return Refusal(Code.BORDER_BIAS, "it crops an input that differs at the border")
        kernel = ex.shift("Pad", Geometry(form.channels, form.channels, form.channels, axes))
        padded = _sequence(kernel, None, replace(form, border=()))
        if isinstance(padded, Refusal):
            return padded
        value = None if self.value is None else ex.vector("pad", form.channels, self.value)
        sides = [
            Side(axis, end, amount, value)
            for axis, pair in enumerate(amounts[2:])
            for end, amount in ((False, pair[0]), (True, pair[1]))
            if amount > 0
        ]
        padded = replace(padded, constant=form.constant)
        return _bordered(padded, form.border, sides, facts)


@dataclass(frozen=True, slots=True)
class Fill:
    """The outermost ``width`` positions of tensor axis ``axis`` are set to ``value``.

    A border assignment (ScatterND). ``value`` varies over tensor axis ``over`` alone (``None``:
    over none), which must be the channels. What is overwritten must carry no
    data, as after padding (the BNAndPad of Diverse Branch Block).
    """

    axis: int
    end: bool
    width: int
    over: int | None
    value: Loader

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        if self.over is not None and form.layout[self.over] != 1:
            return Refusal(Code.BROADCAST, "the value it assigns varies over positions")
        axis = form.layout[self.axis] - 2
        if axis < 0:
            return Refusal(Code.BROADCAST, "it assigns to the batch or the channels")
        for term in form.terms:
            window, size = term.kernel.geometry.axes[axis], term.source.lengths[axis]
            silent = (
                window.silent_after(size, self.width)
                if self.end
                else window.silent_before(self.width)
            )
            if not silent:
                return Refusal(Code.BORDER_WINDOW, "it overwrites positions that hold data")
        kept = []
        for side in form.border:
            if (side.axis, side.end) != (axis, self.end):
                kept.append(side)
            elif side.width > self.width:
                return Refusal(Code.BORDER_BIAS, "it overwrites only part of a padded strip")
        value = ex.vector("fill", form.channels, self.value)
        return _bordered(form, tuple(kept), [Side(axis, self.end, self.width, value)], facts)


def _bordered(form: Form, kept: tuple[Side, ...], new: list[Side], facts: Facts) -> Form | Refusal:
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


@dataclass(frozen=True, slots=True)
class Permute:
    """Transpose: only the layout changes."""

    permutation: tuple[int, ...]

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        if sorted(self.permutation) != list(range(len(form.layout))):
            return Refusal(Code.MALFORMED, "its permutation does not fit its input")
        return replace(form, layout=tuple(form.layout[axis] for axis in self.permutation))
