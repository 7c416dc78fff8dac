"""Operators that are no convolution but let a per-channel affine pass: ``P(s·x + b) = s·P(x) + b``.

An average pool that leaves padding out divides by another number at the border. It still averages
each channel by itself with weights that sum to one, as long as every window holds a real pixel;
so the affine behind it is the affine before it, and folds into what stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxfuse.algebra.expression import Kernel
from onnxfuse.algebra.form import Facts, Form, Outer
from onnxfuse.algebra.laws import LAYOUT, Alias, Law, Scale, sequence
from onnxfuse.refusal import Code, Refusal


@dataclass(frozen=True, slots=True)
class Pool:
    """An average over the real pixels of each window, at least one.

    ``kernel`` is the average that counts the padding as zeros.
    """

    outer: Outer
    kernel: Kernel

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        if not form.in_base_layout:
            return LAYOUT
        if form.border:
            return Refusal(Code.BORDER_BIAS, "it pools an input that differs at the border")
        if facts.interior_only:
            return sequence(self.kernel, None, replace(form, interior_only=True))
        return replace(form, outer=self.outer)


def applied(law: Law, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
    """``law`` of ``forms``; behind a pool only affines and nothing else."""
    if any(form.outer is not None for form in forms) and not isinstance(law, Scale | Alias):
        return Refusal(
            Code.EXCLUDE_PAD,
            "a pool before it leaves padding out of its average (count_include_pad=0), which no "
            "convolution does at the border",
        )
    return law.apply(forms, facts)
