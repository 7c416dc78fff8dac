"""The laws of padding: Pad, and the assignment of border strips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra.borders import bordered, differs
from onnxfuse.algebra.form import Facts, Form, Side
from onnxfuse.algebra.geometry import Axis, Geometry
from onnxfuse.algebra.laws import Loader, sequence
from onnxfuse.refusal import Code, Refusal


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
            base = form.layout[axis]
            if pair != (0, 0) and base < 2:
                return Refusal(Code.BROADCAST, "it pads the batch, the channels or an axis of one")
            if base >= 2:
                amounts[base] = pair
        value = None if self.value is None else ex.vector("pad", form.channels, self.value)
        sides = [
            Side(axis, end, amount, value)
            for axis, pair in enumerate(amounts[2:])
            for end, amount in ((False, pair[0]), (True, pair[1]))
            if amount > 0
        ]
        return _grown(form, amounts[2:], sides, facts)


def _grown(
    form: Form, amounts: Sequence[tuple[int, int]], sides: list[Side], facts: Facts
) -> Form | Refusal:
    """``form`` padded by ``amounts`` per spatial axis, ``sides`` standing on the new strips."""
    axes = tuple(Axis.window(1, begin=begin, end=end) for begin, end in amounts)
    if any(
        size is not None and axis.length(size) < 1
        for axis, size in zip(axes, form.lengths, strict=True)
    ):
        return Refusal(Code.MALFORMED, "it leaves nothing of its input")
    crops = any(amount < 0 for pair in amounts for amount in pair)
    if crops and form.border:
        return Refusal(Code.BORDER_BIAS, f"it crops an input that {differs(form, facts)}")
    kernel = ex.shift("Pad", Geometry(form.channels, form.channels, form.channels, axes))
    padded = sequence(kernel, None, replace(form, border=()))
    if isinstance(padded, Refusal):
        return padded
    result = bordered(replace(padded, constant=form.constant), form.border, sides, facts)
    if crops and isinstance(result, Form) and result.border:
        text = f"it crops on one side, and on another what it pads {differs(result, facts)}"
        return Refusal(Code.BORDER_BIAS, text)
    return result


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
                text = f"it overwrites only {self.width} of {side.width} padded positions"
                return Refusal(Code.BORDER_BIAS, text)
        value = ex.vector("fill", form.channels, self.value)
        return bordered(form, tuple(kept), [Side(axis, self.end, self.width, value)], facts)


@dataclass(frozen=True, slots=True)
class Strip:
    """``width`` positions of a constant that varies over tensor axis ``over`` alone, if at all."""

    width: int
    over: int | None
    value: Loader


@dataclass(frozen=True, slots=True)
class Frame:
    """Constant strips joined to both ends of tensor axis ``axis``: padding by concatenation.

    On the ``pinned`` axes the strips' size is certain, so that of the form must be.
    """

    axis: int
    begin: Strip | None
    end: Strip | None
    pinned: tuple[int, ...] = ()

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        strips = [(end, s) for end, s in ((False, self.begin), (True, self.end)) if s is not None]
        axis = form.layout[self.axis] - 2
        if axis < 0:
            return Refusal(Code.UNSUPPORTED, "it joins a constant to the channels")
        for base in (form.layout[at] for at in self.pinned):
            if base < 2 or form.lengths[base - 2] is None:
                text = "it joins a constant of certain size to a tensor of open size"
                return Refusal(Code.UNKNOWN_SHAPE, text)
        if any(s.over is not None and form.layout[s.over] != 1 for _, s in strips):
            return Refusal(Code.BROADCAST, "the constant it joins varies over positions")
        amounts = [(0, 0)] * form.rank
        widths = {end: strip.width for end, strip in strips}
        amounts[axis] = widths.get(False, 0), widths.get(True, 0)
        sides = [
            Side(axis, end, s.width, ex.vector("strip", form.channels, s.value))
            for end, s in strips
        ]
        return _grown(form, amounts, sides, facts)
