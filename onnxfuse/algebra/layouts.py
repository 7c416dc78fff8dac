"""The laws of layout: axes change places, come or go; no number changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxfuse.algebra.form import UNIT, Facts, Form
from onnxfuse.refusal import Code, Refusal


@dataclass(frozen=True, slots=True)
class Permute:
    """Transpose: only the layout changes."""

    permutation: tuple[int, ...]

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        if sorted(self.permutation) != list(range(len(form.layout))):
            return Refusal(Code.MALFORMED, "its permutation does not fit its input")
        return replace(form, layout=tuple(form.layout[axis] for axis in self.permutation))


@dataclass(frozen=True, slots=True)
class Unsqueeze:
    """New tensor axes of length 1 at the (sorted) positions ``axes`` of the result."""

    axes: tuple[int, ...]

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        missing = [axis for axis in range(form.rank + 2) if axis not in form.layout]
        layout = list(form.layout)
        for axis in self.axes:  # an axis that was squeezed away comes back
            layout.insert(axis, missing.pop(0) if missing else UNIT)
        return replace(form, layout=tuple(layout))


@dataclass(frozen=True, slots=True)
class Squeeze:
    """The tensor axes ``axes``, of length 1, are dropped."""

    axes: tuple[int, ...]

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        for axis in self.axes:
            base = form.layout[axis]
            if base == UNIT:
                continue
            if base < 2:
                return Refusal(Code.UNSUPPORTED, "it squeezes the batch or the channels away")
            if form.lengths[base - 2] != 1:
                return Refusal(Code.UNKNOWN_SHAPE, "the axis it squeezes may be longer than 1")
        kept = (base for axis, base in enumerate(form.layout) if axis not in self.axes)
        return replace(form, layout=tuple(kept))
