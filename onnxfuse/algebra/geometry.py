"""Integer convolution arithmetic: how maps compose, align, contain and materialise.

This room knows integers only. It never knows arrays, graphs or onnx; importing it imports
nothing but the standard library.

One spatial axis of a map reads, for output position ``p`` and tap ``t``,

    x[stride * p + start + dilation * t],     x = 0 outside [0, X)

and turns a length ``X`` into ``(X + slack) // stride + 1``. For a convolution with pads
``(begin, end)`` that is ``start = -begin`` and ``slack = begin + end - dilation * (taps - 1) - 1``.

Under SAME padding at an unknown length the begin pad may depend on ``X mod stride``. Such an axis
says how its start ``moves`` with that; axes of equal moves can be compared and summed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod

Lengths = tuple[int | None, ...]
"""The spatial lengths of a tensor; ``None`` where a length is not known for certain."""


def same_total(extent: int, stride: int, x: int) -> int:
    """The padding of SAME, begin and end together: extent less ``X mod stride``, at least 0."""
    return max(extent - (x % stride or stride), 0)


def same_begin(extent: int, stride: int, x: int, *, upper: bool) -> int:
    """The begin pad of SAME; the odd one stands at the end (upper) or at the begin (lower)."""
    total = same_total(extent, stride, x)
    return total // 2 if upper else total - total // 2


Moves = tuple[int, ...]
"""How far a start moves to the left at lengths ``X`` of residue 0, 1, … modulo the stride."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis of a map; the default reads every position once."""

    stride: int = 1
    dilation: int = 1
    taps: int = 1
    start: int = 0
    slack: int = -1
    moves: Moves = ()

    @classmethod
    def window(
        cls, taps: int, *, stride: int = 1, dilation: int = 1, begin: int = 0, end: int = 0
    ) -> Axis:
        """The axis of a Conv or pool from its attributes; negative pads crop.

        >>> Axis.window(3, begin=1, end=1).length(10)
        10
        """
        if taps == 1:
            dilation = 1
        return cls(stride, dilation, taps, -begin, begin + end - dilation * (taps - 1) - 1)

    @classmethod
    def same_window(
        cls, taps: int, stride: int, dilation: int, x: int | None, *, upper: bool
    ) -> Axis:
        """The axis of a window under SAME padding: ``⌈X / stride⌉`` outputs.

        >>> Axis.same_window(3, 2, 1, None, upper=False).pads
        (1, 1)
        >>> Axis.same_window(3, 2, 1, None, upper=True).moves
        (0, 1)
        """
        if taps == 1:
            dilation = 1
        extent = dilation * (taps - 1) + 1
        if x is not None:
            begin = same_begin(extent, stride, x, upper=upper)
            end = same_total(extent, stride, x) - begin
            return cls.window(taps, stride=stride, dilation=dilation, begin=begin, end=end)
        begins = [same_begin(extent, stride, size, upper=upper) for size in range(stride)]
        moves = tuple(begin - min(begins) for begin in begins)
        return cls(stride, dilation, taps, -min(begins), moves=moves if any(moves) else ())

    @property
    def extent(self) -> int:
        """Input positions between the first and the last tap, both included."""
        return self.dilation * (self.taps - 1) + 1

    @property
    def pads(self) -> tuple[int, int]:
        """The begin and end padding (negative: cropping)."""
        return -self.start, self.slack + self.extent + self.start

    def length(self, x: int) -> int:
        """The output length at input length ``x``."""
        return (x + self.slack) // self.stride + 1

    def reads_before(self) -> bool:
        """Whether some tap may read left of position 0."""
        return self.start < 0 or bool(self.moves)

    def reads_after(self, x: int | None) -> bool:
        """Whether some tap may read at or right of the length ``x``."""
        if self.moves:
            return True
        if x is None:
            return self.pads[1] > 0
        last = self.stride * (self.length(x) - 1) + self.start + self.extent - 1
        return last >= x

    def silent_before(self, width: int | None = None) -> bool:
        """Whether the map sees only zeros at the virtual outputs left of 0.

        With ``width``, whether it does so at the real outputs ``0 .. width - 1``.
        """
        last = -1 if width is None else width - 1
        return self.stride * last + self.start + self.extent - 1 < 0

    def silent_after(self, x: int | None, width: int = 0) -> bool:
        """Whether the map sees only zeros at the ``width`` last outputs and all beyond them."""
        if x is not None:
            return self.stride * (self.length(x) - width) + self.start >= x
        # stride * P >= X + slack + 1, whatever X is
        return self.slack + 1 + self.start - max(self.moves, default=0) >= self.stride * width

    def follows(self, inner: Axis) -> bool:
        """Whether where this axis stands after ``inner`` can be said at every length.

        A start moves with one length: that of the source, or one that differs from it by whole
        strides.
        """
        if not self.moves:
            return True
        return not inner.moves and inner.stride == 1 and (inner.slack + 1) % self.stride == 0


IDENTITY = Axis()


def compose_axis(outer: Axis, inner: Axis) -> Axis:
    """``outer`` after ``inner`` on one axis, where no border stands in the way.

    >>> compose_axis(Axis.window(3), Axis.window(3, begin=2, end=2)).pads
    (2, 2)
    """
    steps = [inner.stride * outer.dilation] if outer.taps > 1 else []
    if inner.taps > 1:
        steps.append(inner.dilation)
    dilation = gcd(*steps) or 1
    reach = inner.stride * outer.dilation * (outer.taps - 1) + inner.dilation * (inner.taps - 1)
    return Axis(
        stride=inner.stride * outer.stride,
        dilation=dilation,
        taps=reach // dilation + 1,
        start=inner.start + inner.stride * outer.start,
        slack=inner.slack + inner.stride * (1 + outer.slack),
        moves=outer.moves or inner.moves,
    )


def same_length(left: Axis, right: Axis, x: int | None) -> bool:
    """Whether two axes over one source give equal lengths, for certain."""
    if left.stride == right.stride and left.slack == right.slack:
        return True
    return x is not None and left.length(x) == right.length(x)


def contains(hull: Axis, part: Axis) -> bool:
    """Whether every tap of ``part`` is a tap of ``hull`` (equal strides)."""
    offset = part.start - hull.start
    if (
        hull.stride != part.stride
        or hull.moves != part.moves
        or offset < 0
        or part.start + part.extent > (hull.start + hull.extent)
    ):
        return False
    return offset % hull.dilation == 0 and (part.taps == 1 or part.dilation % hull.dilation == 0)


def hull_axis(left: Axis, right: Axis) -> Axis:
    """The least axis that contains both, of equal moves; the lengths are those of ``left``."""
    start = min(left.start, right.start)
    steps = [axis.dilation for axis in (left, right) if axis.taps > 1]
    steps += [axis.start - start for axis in (left, right)]
    dilation = gcd(*steps) or 1
    stop = max(left.start + left.extent, right.start + right.extent)
    taps = (stop - 1 - start) // dilation + 1
    return Axis(left.stride, dilation, taps, start, left.slack, left.moves)


def tap_positions(hull: Axis, part: Axis) -> slice:
    """Where the taps of ``part`` stand among the taps of ``hull``."""
    first = (part.start - hull.start) // hull.dilation
    step = part.dilation // hull.dilation if part.taps > 1 else 1
    return slice(first, first + step * (part.taps - 1) + 1, step)


def materialise_axis(axis: Axis, x: int | None) -> Axis:
    """The least axis of equal meaning that a runtime's Conv accepts: no negative pads.

    A start right of zero, or an end cropped, is bridged by taps of zero weight; at a known
    length ``x`` the slack is first moved among those of equal output length. An axis whose
    start moves stays as it is (see `auto_pad`).
    """
    if axis.moves:
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


@dataclass(frozen=True, slots=True)
class Geometry:
    """The integers of a map: channels, groups, and one `Axis` per spatial axis.

    The kernel of a geometry has shape ``(out_channels, in_channels / groups, *taps)``.
    """

    in_channels: int
    out_channels: int
    groups: int
    axes: tuple[Axis, ...]

    @classmethod
    def pointwise(cls, channels: int, rank: int) -> Geometry:
        """A per-channel map of one tap on ``rank`` spatial axes."""
        return cls(channels, channels, channels, (IDENTITY,) * rank)

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(axis.taps for axis in self.axes)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.taps

    @property
    def parameters(self) -> int:
        """The elements of the kernel."""
        return prod(self.kernel_shape)

    @property
    def depthwise(self) -> bool:
        return self.groups == self.in_channels and self.in_channels == self.out_channels

    @property
    def family(self) -> tuple[tuple[int, Moves], ...]:
        """What maps must have in common to lie in one box: strides, and how starts move."""
        return tuple((axis.stride, axis.moves) for axis in self.axes)

    @property
    def per_channel(self) -> bool:
        """Whether the map only rescales each channel where it stands."""
        return self.depthwise and all(axis == IDENTITY for axis in self.axes)

    def lengths(self, x: Lengths) -> Lengths:
        return tuple(
            None if size is None else axis.length(size)
            for axis, size in zip(self.axes, x, strict=True)
        )


def compose(outer: Geometry, inner: Geometry) -> Geometry:
    """``outer`` after ``inner``, borders apart (see `border_obstacles`)."""
    return Geometry(
        inner.in_channels,
        outer.out_channels,
        gcd(outer.groups, inner.groups),
        tuple(compose_axis(o, i) for o, i in zip(outer.axes, inner.axes, strict=True)),
    )


def reads_outside(outer: Geometry, lengths: Lengths) -> bool:
    """Whether ``outer`` may read beyond a tensor of these ``lengths``."""
    return any(
        axis.reads_before() or axis.reads_after(size)
        for axis, size in zip(outer.axes, lengths, strict=True)
    )


def silent_outside(outer: Geometry, inner: Geometry, x: Lengths) -> bool:
    """Whether ``inner``, continued beyond its borders, is zero wherever ``outer`` reads it.

    ``x`` are the lengths of the source of ``inner``.
    """
    for out_axis, in_axis, size in zip(outer.axes, inner.axes, x, strict=True):
        middle = None if size is None else in_axis.length(size)
        if out_axis.reads_before() and not in_axis.silent_before():
            return False
        if out_axis.reads_after(middle) and not in_axis.silent_after(size):
            return False
    return True


def hull(left: Geometry, right: Geometry) -> Geometry:
    """The least geometry that can hold the sum of two maps of equal channels and strides."""
    return Geometry(
        left.in_channels,
        left.out_channels,
        gcd(left.groups, right.groups),
        tuple(hull_axis(a, b) for a, b in zip(left.axes, right.axes, strict=True)),
    )


def materialise(geometry: Geometry, x: Lengths) -> Geometry:
    """``geometry`` with pads a runtime accepts, over a source of lengths ``x``."""
    axes = zip(geometry.axes, x, strict=True)
    return replace(geometry, axes=tuple(materialise_axis(axis, size) for axis, size in axes))


def auto_pad(geometry: Geometry, x: Lengths) -> str | None:
    """How a materialised geometry is padded: NOTSET, or SAME where a start moves.

    ``None`` where it cannot be written: under SAME every axis must have the pads SAME gives it.
    """
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
