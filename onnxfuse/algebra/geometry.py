"""Integer convolution arithmetic: how maps compose, align, contain and materialise.

This room knows integers only. It never knows arrays, graphs or onnx; importing it imports
nothing but the standard library.

One spatial axis of a map reads, for output position ``p`` and tap ``t``,

    x[stride * p + start + dilation * t],     x = 0 outside [0, X)

and turns a length ``X`` into ``(X + slack) // stride + 1``. For a convolution with pads
``(begin, end)`` that is ``start = -begin`` and ``slack = begin + end - dilation * (taps - 1) - 1``.

A transposed convolution reads its input with ``up - 1`` zeros between neighbours: its axis is an
ordinary one over the length ``up * (X - 1) + 1``, and all of the above is said of that.

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
    up: int = 1

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

    @classmethod
    def transposed(
        cls,
        taps: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        begin: int = 0,
        end: int = 0,
        more: int = 0,
    ) -> Axis:
        """The axis of a ConvTranspose; ``more`` is its output_padding.

        >>> Axis.transposed(4, stride=2, begin=1, end=1).length(5)
        10
        """
        reach = dilation * (taps - 1)
        if taps == 1:
            dilation = 1
        slack = reach - begin - end + more - 1
        return cls(1, dilation, taps, begin - reach, slack, up=stride)

    def spread(self, x: int) -> int:
        """The length of the input with its zeros between."""
        return self.up * (x - 1) + 1

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
        return (self.spread(x) + self.slack) // self.stride + 1

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
        return last >= self.spread(x)

    def silent_before(self, width: int | None = None) -> bool:
        """Whether the map sees only zeros at the virtual outputs left of 0.

        With ``width``, whether it does so at the real outputs ``0 .. width - 1``.
        """
        last = -1 if width is None else width - 1
        return self.stride * last + self.start + self.extent - 1 < 0

    def silent_after(self, x: int | None, width: int = 0) -> bool:
        """Whether the map sees only zeros at the ``width`` last outputs and all beyond them."""
        if x is not None:
            return self.stride * (self.length(x) - width) + self.start >= self.spread(x)
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


def between_zeros(inner: Axis, up: int) -> Axis:
    """``inner`` (of stride 1) as it stands where ``up - 1`` zeros are put between its outputs.

    Its taps stand ``up`` times as far apart, so that between its outputs they see zeros alone.
    """
    if up == 1 or inner.up > 1:
        return inner
    return replace(
        inner,
        dilation=inner.dilation * up if inner.taps > 1 else 1,
        start=inner.start * up,
        slack=up * (inner.slack + 1) - 1,
        up=up,
    )


def compose_axis(outer: Axis, inner: Axis) -> Axis:
    """``outer`` after ``inner`` on one axis, where no border stands in the way.

    Zeros between the outputs of ``inner`` want it at stride 1 (see `joins`).

    >>> compose_axis(Axis.window(3), Axis.window(3, begin=2, end=2)).pads
    (2, 2)
    """
    inner = between_zeros(inner, outer.up)
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
        up=inner.up,
    )


def joins(outer: Axis, inner: Axis) -> bool:
    """Whether ``outer`` after ``inner`` is one axis: zeros between positions allow no stride."""
    if outer.up > 1:
        return inner.stride == inner.up == 1 and not inner.moves
    return inner.up == 1 or (outer.stride == 1 and not outer.moves)


def same_length(left: Axis, right: Axis, x: int | None) -> bool:
    """Whether two axes over one source give equal lengths, for certain."""
    if (left.stride, left.slack, left.up) == (right.stride, right.slack, right.up):
        return True
    return x is not None and left.length(x) == right.length(x)


def contains(hull: Axis, part: Axis) -> bool:
    """Whether every tap of ``part`` is a tap of ``hull`` (equal strides)."""
    offset = part.start - hull.start
    if (
        hull.stride != part.stride
        or hull.moves != part.moves
        or hull.up != part.up
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
    return Axis(left.stride, dilation, taps, start, left.slack, left.moves, left.up)


def tap_positions(hull: Axis, part: Axis) -> slice:
    """Where the taps of ``part`` stand among the taps of ``hull``."""
    first = (part.start - hull.start) // hull.dilation
    step = part.dilation // hull.dilation if part.taps > 1 else 1
    return slice(first, first + step * (part.taps - 1) + 1, step)


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
    def family(self) -> tuple[tuple[int, Moves, int], ...]:
        """What maps must have in common to lie in one box: strides, moves, zeros between."""
        return tuple((axis.stride, axis.moves, axis.up) for axis in self.axes)

    @property
    def transposed(self) -> bool:
        """Whether the map reads zeros between the positions of its input."""
        return any(axis.up > 1 for axis in self.axes)

    @property
    def per_channel(self) -> bool:
        """Whether the map only rescales each channel where it stands."""
        return self.depthwise and all(axis == IDENTITY for axis in self.axes)

    def lengths(self, x: Lengths) -> Lengths:
        return tuple(
            None if size is None else axis.length(size)
            for axis, size in zip(self.axes, x, strict=True)
        )


def on_grid_of(inner: Geometry, outer: Geometry) -> Geometry:
    """``inner`` where ``outer`` reads zeros between its outputs."""
    axes = zip(inner.axes, outer.axes, strict=True)
    return replace(inner, axes=tuple(between_zeros(i, o.up) for i, o in axes))


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
        stands = between_zeros(in_axis, out_axis.up)
        if out_axis.reads_before() and not stands.silent_before():
            return False
        if out_axis.reads_after(middle) and not stands.silent_after(size):
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
