"""Operators that are no convolution but let a per-channel affine pass: ``P(s·x + b) = s·P(x) + b``.

An average pool that leaves padding out divides by another number at the border. It still averages
each channel by itself with weights that sum to one, as long as every window holds a real pixel;
so the affine behind it is the affine before it, and folds into what stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxfuse.algebra.borders import differs
from onnxfuse.algebra.expression import Kernel
from onnxfuse.algebra.form import Facts, Form, Outer
from onnxfuse.algebra.joining import Concat, Select
from onnxfuse.algebra.laws import LAYOUT, Alias, Convolve, Law, Linear, Scale, Sum, sequence
from onnxfuse.algebra.layouts import Permute, Squeeze, Unsqueeze
from onnxfuse.algebra.reshaping import Reshape
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
            return Refusal(Code.BORDER_BIAS, f"it pools an input that {differs(form, facts)}")
        if facts.interior_only:
            return sequence(self.kernel, None, replace(form, interior_only=True))
        return replace(form, outer=self.outer)


_ANYWHERE = (Alias, Concat, Linear, Permute, Reshape, Scale, Select, Squeeze, Sum, Unsqueeze)
"""Laws that hold whatever the layout of the sources: they have no window."""


def applied(law: Law, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
    """``law`` of ``forms``; behind a pool only affines and nothing else."""
    layouts = {form.source_layout for form in forms}
    if len(layouts) > 1:
        return Refusal(Code.UNSUPPORTED, "its inputs start from tensors of different layouts")
    if layouts != {()} and not isinstance(law, _ANYWHERE):
        return LAYOUT  # its channels stand last in the graph, where no window works
    if any(form.transposed for form in forms) and not isinstance(law, (*_ANYWHERE, Convolve)):
        return Refusal(Code.UNSUPPORTED, "it pads or pools what a transposed convolution gives")
    if any(form.outer is not None for form in forms) and not isinstance(law, Scale | Alias):
        return Refusal(
            Code.EXCLUDE_PAD,
            "a pool before it leaves padding out of its average (count_include_pad=0), which no "
            "convolution does at the border",
        )
    return law.apply(forms, facts)
