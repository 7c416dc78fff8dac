"""The laws of joining: channels one behind the other, and runs of them taken out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra.borders import differs
from onnxfuse.algebra.form import MAX_TERMS, Facts, Form, Term, coalesce, equal_lengths
from onnxfuse.refusal import Code, Refusal


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
                return Refusal(Code.BORDER_BIAS, f"an input {differs(form, facts)}")
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
            interior_only=any(form.interior_only for form in forms),
            shift=first.shift if all(form.shift == first.shift for form in forms) else None,
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
