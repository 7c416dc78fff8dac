"""The laws: what each linear operator does to a form, or why it cannot be said exactly.

Every class is one operator of the algebra; ``apply(forms, facts)`` returns the form of its
output or a `Refusal`. The preconditions are those of the table in ``docs/design.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra.borders import ended, joined_border, without_border
from onnxfuse.algebra.expression import Kernel, Vector
from onnxfuse.algebra.form import MAX_TERMS, UNIT, Facts, Form, Shift, Term, coalesce, equal_lengths
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.algebra.weights import Array
from onnxfuse.refusal import Code, Refusal


class Law(Protocol):
    """An operator of the algebra."""

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal: ...


class Loader(Protocol):
    """Reads a constant when it is needed."""

    def __call__(self) -> Array: ...


Part = Callable[[int, int], Array]
"""Reads a run of the output channels of a constant."""

PARITY = (
    "SAME padding at this stride pads by the parity of a dynamic size, so which taps meet is "
    "unknown; export with fixed sizes"
)
LAYOUT = Refusal(Code.UNSUPPORTED, "its input is transposed, so its axes are not N, C, spatial")


@dataclass(frozen=True, slots=True)
class Alias:
    """``y = x``: Identity, inference Dropout, or arithmetic with a constant that changes nothing.

    Such a constant gives the tensor axis ``axis`` its own length, so that axis must be the
    channels', whose number is certain.
    """

    axis: int | None = None

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        if self.axis is not None and forms[0].layout[self.axis] != 1:
            return Refusal(Code.BROADCAST, "its constant gives an axis a length of its own")
        return forms[0]


@dataclass(frozen=True, slots=True)
class Convolve:
    """``y = kernel ∗ x + bias``: the law of *sequence*."""

    kernel: Kernel
    bias: Vector | None = None

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        units = tuple(axis for axis, base in enumerate(form.layout) if base == UNIT)
        if units and form.layout[:2] == (0, 1):
            return self._over_units(form, units, facts)
        geometry = self.kernel.geometry
        if not form.in_base_layout:
            return LAYOUT
        if form.channels != geometry.in_channels or form.rank != len(geometry.axes):
            return Refusal(Code.MALFORMED, "its kernel does not fit the channels of its input")
        if geometry.transposed and (form.border or form.known or not facts.zero(form.constant)):
            return _phases(form, facts)
        if facts.interior_only:
            return sequence(self.kernel, self.bias, _without_edges(form, geometry, facts))
        inner = without_border(form, facts)
        if isinstance(inner, Refusal):
            return inner
        if geo.reads_outside(geometry, inner.lengths) and not facts.zero(inner.constant):
            if inner.transposed:
                return _phases(inner, facts)
            inner = replace(ended(inner), shift=_shift_of(inner, facts))
        return sequence(self.kernel, self.bias, inner)

    def _over_units(self, form: Form, units: Sequence[int], facts: Facts) -> Form | Refusal:
        """The map where tensor axes ``units`` have length 1: one of its taps there sees data."""
        axes = self.kernel.geometry.axes
        if len(form.layout) != len(axes) + 2:
            return Refusal(Code.MALFORMED, "its kernel does not fit the rank of its input")
        seen: dict[int, int] = {}
        for unit in units:
            axis = axes[unit - 2]
            tap, rest = divmod(-axis.start, axis.dilation)
            if axis.moves or axis.up > 1 or axis.length(1) != 1:
                return Refusal(Code.UNSUPPORTED, "it lengthens an axis of length 1")
            if rest or not 0 <= tap < axis.taps:
                return Refusal(Code.UNSUPPORTED, "it sees padding alone on an axis of length 1")
            seen[unit - 2] = tap
        flat = replace(form, layout=tuple(base for base in form.layout if base != UNIT))
        found = Convolve(ex.at_taps(self.kernel, seen), self.bias).apply([flat], facts)
        if isinstance(found, Refusal):
            return found
        return replace(found, layout=form.layout)


def _phases(form: Form, facts: Facts) -> Refusal:
    """The refusal of a constant that a transposed convolution would not keep uniform."""
    alone = form.constant is not None and not form.border
    size = facts.apart([form.constant], None, form.channels, " of up to {:.3g}") if alone else ""
    return Refusal(
        Code.BORDER_BIAS,
        f"a shift{size} that meets a transposed convolution becomes another one at each phase of "
        "its stride and at its border",
    )


def _shift_of(form: Form, facts: Facts) -> Shift | None:
    """How a form that rescales one source and adds a constant shifts that source, if it does.

    A shift that swallows digits of numbers of size one is none.
    """
    if len(form.terms) != 1 or form.constant is None or form.constant.heavy:
        return None
    (term,) = form.terms
    whole = term.ins == (0, term.source.channels) and term.outs == (0, form.channels)
    if not whole or not term.kernel.geometry.per_channel or term.kernel.identity:
        return None
    if term.source.known or ex.stored(term.kernel):
        return None
    found = Shift(term.source, form.constant, term.kernel)
    if facts.out_of_proportion(found.vector, None, form.channels):
        return None
    return found


def _without_edges(form: Form, geometry: Geometry, facts: Facts) -> Form:
    """``form`` with its constant going on beyond its border: true in the interior alone."""
    padded = geo.reads_outside(geometry, form.lengths) and not facts.zero(form.constant)
    if not (padded or form.border):
        return form
    return replace(form, border=(), interior_only=True)


def sequence(kernel: Kernel, bias: Vector | None, form: Form) -> Form | Refusal:
    """Compose linear parts; the caller has settled what happens to the constant at borders."""
    terms: list[Term] = []
    for term in form.terms:
        both = list(zip(kernel.geometry.axes, term.kernel.geometry.axes, strict=True))
        if not all(geo.joins(outer, inner) for outer, inner in both):
            return Refusal(
                Code.STRIDE, "a stride and a transposed convolution's are no stride together"
            )
        if not all(outer.follows(inner) for outer, inner in both):
            return Refusal(Code.PARITY, PARITY)
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
        out = sequence(scale, shift, form)
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
        return ex.factors(wide, channels, form.rank)


def _shifted(form: Form, shift: Vector | None) -> Form:
    sides = tuple(replace(side, value=ex.total(side.value, shift)) for side in form.border)
    return replace(form, constant=ex.total(form.constant, shift), border=sides)


@dataclass(frozen=True, slots=True)
class Linear:
    """``y[…, o] = Σ_k W[o, k] · x[…, k] + b[o]`` over tensor axis ``axis``: Gemm, MatMul."""

    text: str
    axis: int
    shape: tuple[int, int]
    load: Loader
    bias: Vector | None = None
    part: Part | None = None

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        if form.layout[self.axis] != 1:
            return Refusal(
                Code.UNSUPPORTED, "it sums over an axis that is not the channels' for others"
            )
        inner = without_border(form, facts)
        if isinstance(inner, Refusal):
            return inner
        if inner.channels != self.shape[1]:
            return Refusal(Code.MALFORMED, "its matrix does not fit the channels of its input")
        return sequence(self.kernel(form.rank), self.bias, inner)

    def kernel(self, rank: int) -> Kernel:
        """The matrix as a kernel of one tap on ``rank`` spatial axes."""
        out, channels = self.shape
        return ex.leaf(
            self.text, Geometry(channels, out, 1, (geo.IDENTITY,) * rank), self.load, self.part
        )


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
        terms=tuple(replace(term, kernel=ex.negative(term.kernel)) for term in form.terms),
        constant=ex.negate(form.constant),
        border=tuple(replace(side, value=ex.negate(side.value)) for side in form.border),
    )


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
    border = joined_border(left, right, facts)
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
        interior_only=left.interior_only or right.interior_only,
        shift=left.shift if left.shift == right.shift else None,
    )
