"""How a map is written as a Conv or ConvTranspose: pads and padding modes that runtimes take.

This room knows integers only, as the geometry does.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from onnxfuse.algebra.geometry import Axis, Geometry, Lengths, same_length


def materialise_axis(axis: Axis, x: int | None) -> Axis:
    """The least axis of equal meaning that a runtime's Conv accepts: no negative pads.

    A start right of zero, or an end cropped, is bridged by taps of zero weight; at a known
    length ``x`` the slack is first moved among those of equal output length. An axis whose
    start moves stays as it is (see `auto_pad`).
    """
    if axis.moves or axis.up > 1:
        return axis
    if x is not None and min(axis.pads) < 0:
        least = axis.stride * (axis.length(x) - 1) - x
        wanted = -(axis.extent + axis.start)  # the slack at which the end pad is zero
        axis = replace(axis, slack=min(max(least, wanted), least + axis.stride - 1))
    if axis.pads[0] >= 0 and axis.pads[1] >= 0:
        return axis
    start = min(axis.start, 0)
    stop = max(axis.start + axis.extent, -axis.slack)
    steps = [axis.dilation] if axis.taps > 1 else []
    steps.append(axis.start - start)
    dilation = gcd(*steps) or stop - 1 - start  # one tap, cropped at the end: two taps reach it
    taps = -(-(stop - 1 - start) // dilation) + 1
    return Axis(axis.stride, dilation, taps, start, axis.slack)


def materialise(geometry: Geometry, x: Lengths) -> Geometry:
    """``geometry`` with pads a runtime accepts, over a source of lengths ``x``."""
    axes = zip(geometry.axes, x, strict=True)
    return replace(geometry, axes=tuple(materialise_axis(axis, size) for axis, size in axes))


def transposed_pads(axis: Axis) -> tuple[int, int, int] | None:
    """Begin and end pads and output padding of a ConvTranspose; ``None`` where it has none such.

    >>> transposed_pads(Axis.transposed(3, stride=2, begin=1, end=1, more=1))
    (1, 1, 1)
    """
    reach = axis.dilation * (axis.taps - 1)
    begin = axis.start + reach
    more = axis.slack + 1 - reach + begin  # output padding less the end pad
    if axis.stride > 1 or axis.moves or begin < 0 or more >= axis.up:
        return None
    if more <= 0:
        return begin, -more, 0
    return begin, 0, more


def auto_pad(geometry: Geometry, x: Lengths) -> str | None:
    """How a materialised geometry is padded: NOTSET, or SAME where a start moves.

    ``None`` where it cannot be written: under SAME every axis must have the pads SAME gives it.
    """
    if geometry.transposed:
        return "NOTSET" if all(map(transposed_pads, geometry.axes)) else None
    if not any(axis.moves for axis in geometry.axes):
        return "NOTSET"
    for upper in (True, False):
        wanted = [
            Axis.same_window(axis.taps, axis.stride, axis.dilation, size, upper=upper)
            for axis, size in zip(geometry.axes, x, strict=True)
        ]
        if all(
            replace(want, slack=axis.slack) == axis and same_length(want, axis, size)
            for want, axis, size in zip(wanted, geometry.axes, x, strict=True)
        ):
            return "SAME_UPPER" if upper else "SAME_LOWER"
    return None


def writable(geometry: Geometry, x: Lengths) -> bool:
    """Whether a materialised geometry can be written."""
    return auto_pad(geometry, x) is not None
