"""Random linear branches over one tensor, and the maps and activations among them.

Branches of a block agree on a `Grid`, so that they can be added; each gets there another way.
Now and then one does not, or its border holds another value than padding gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from random_linear import Layers
from random_operators import Impossible, Ints, Value


@dataclass(frozen=True)
class Grid:
    """What parallel branches agree on: strides, ``slack`` (the length rule) and channels.

    With ``auto`` most windows leave their padding to ``auto_pad``.
    """

    strides: Ints
    slack: Ints
    channels: int
    auto: str = ""


class Brancher(Layers):
    """Builds branches over one tensor that agree on a grid, and joins them."""

    def grid(self, x: Value) -> Grid:
        strides = self.pick([self.ones()] * 6 + [self.ones(2)] * 2 + [self.ones(3)])
        if self.chance(0.05):
            strides = tuple(self.integer(1, 3) for _ in strides)
        slack = self.ones(-1) if self.chance(0.8) else tuple(self.integer(-4, 1) for _ in strides)
        channels = x.channels if self.chance(0.5) else self.pick([1, 2, 3, 4, 6, 8])
        auto = ""
        if slack == self.ones(-1) and self.chance(0.25):
            auto = self.pick(["SAME_UPPER", "SAME_UPPER", "SAME_LOWER"])
        return Grid(strides, slack, channels, auto)

    def auto(self, grid: Grid) -> str:
        """How one window of a branch pads: mostly as the others do."""
        if grid.slack != self.ones(-1):
            return ""
        return grid.auto if self.chance(0.9) else self.pick(["", "SAME_UPPER", "SAME_LOWER"])

    def taps(self) -> Ints:
        if self.chance(0.7):
            return self.ones(self.pick([1, 1, 2, 3, 3, 3, 3, 5]))
        return tuple(self.pick([1, 1, 2, 3, 3, 4, 5]) for _ in range(self.rank))

    def fit(self, grid: Grid, taps: Ints, dilations: Ints | None = None) -> Ints:
        """Pads that put a window on the grid, mostly centred."""
        begins, ends = [], []
        for slack, k, d in zip(grid.slack, taps, dilations or self.ones(), strict=True):
            total = slack + d * (k - 1) + 1
            if total < 0:
                raise Impossible
            begin = total // 2 if self.chance(0.9) else self.integer(0, total)
            begins.append(begin)
            ends.append(total - begin)
        return (*begins, *ends)

    def plain(self, x: Value, grid: Grid) -> Value:
        taps = self.taps()
        dilations = self.ones() if self.chance(0.8) else self.ones(self.integer(2, 3))
        pads = self.fit(grid, taps, dilations)
        auto = self.auto(grid) if dilations == self.ones() else ""  # onnxruntime has not both
        return self.conv(x, grid.channels, taps, dilations, grid.strides, pads, auto=auto)

    def windowed(self, x: Value, grid: Grid, pads: Ints, taps: Ints, auto: str = "") -> Value:
        """The last operator of a branch: a convolution, a depthwise one or an average pool."""
        if x.channels == grid.channels and self.chance(0.4):
            return self.pool(x, taps, grid.strides, pads, auto=auto)
        groups = x.channels if grid.channels % x.channels == 0 and self.chance(0.4) else None
        return self.conv(x, grid.channels, taps, None, grid.strides, pads, groups, auto=auto)

    def pointwise_first(self, x: Value, grid: Grid) -> Value:
        """1×1, then a window, with the border between them in one of many ways."""
        taps, channels = self.taps(), self.pick([grid.channels] * 3 + [2, 4, 8])
        pads, none = self.fit(grid, taps), (0,) * 2 * self.rank
        way = self.rng.random()
        if way < 0.4:
            middle = self.conv(x, channels)
            return self.windowed(middle, grid, pads, taps, self.auto(grid))
        if way < 0.55:
            normal, zero = self.normalised(self.conv(x, channels))
            return self.windowed(self.filled(normal, pads, self.near(zero)), grid, none, taps)
        bias = self.rng.standard_normal(channels).astype(self.dtype)
        if way < 0.75:
            middle = self.conv(x, channels, bias=bias)
            return self.windowed(self.filled(middle, pads, self.near(bias)), grid, none, taps)
        if way < 0.85:
            number = bias[0] if self.chance(0.7) else self.dtype.type(0)
            middle = self.conv(x, channels, bias=np.full(channels, number))
            padded = self.padded(middle, pads, float(self.near(number)))
            return self.windowed(padded, grid, none, taps)
        number = 0.0 if self.chance(0.8) else 0.5
        padded = self.padded(self.conv(x, channels), pads, number)
        return self.windowed(padded, grid, none, taps)

    def pointwise_last(self, x: Value, grid: Grid) -> Value:
        """A window, often depthwise, then 1×1; the stride on either."""
        taps, middle = self.taps(), x.channels * self.pick([1, 1, 2])
        groups = x.channels if self.chance(0.6) else None
        pads = self.fit(grid, taps)
        if self.chance(0.3) and grid.slack == self.ones(-1):
            unit = replace(grid, strides=self.ones(), channels=middle)
            x = self.conv(x, middle, taps, None, None, self.fit(unit, taps), groups)
            return self.conv(x, grid.channels, strides=grid.strides)
        if self.chance(0.3):
            x = self.pool(x, taps, grid.strides, pads, auto=self.auto(grid))
        else:
            auto = self.auto(grid)
            x = self.conv(x, middle, taps, None, grid.strides, pads, groups, auto=auto)
        return self.conv(self.decorated(x, 0.3), grid.channels)

    def separable(self, x: Value, grid: Grid) -> Value:
        """One window per axis, one behind the other."""
        taps = self.taps()
        pads = self.fit(grid, taps)
        groups = x.channels if self.chance(0.5) else None
        for i in range(self.rank):

            def only(full: Ints, rest: int, axis: int = i) -> Ints:
                return tuple(v if k % self.rank == axis else rest for k, v in enumerate(full))

            out = grid.channels if i == self.rank - 1 else x.channels
            x = self.conv(x, out, only(taps, 1), None, only(grid.strides, 1), only(pads, 0), groups)
        return x

    def expanded(self, x: Value, grid: Grid) -> Value:
        """C → nC → C, all linear."""
        x = self.conv(x, x.channels * self.integer(2, 4))
        return self.plain(self.decorated(x, 0.4), grid)

    def skip(self, x: Value, grid: Grid) -> Value:
        """The source itself, a per-channel map of it, or a strided selection."""
        if grid.channels != x.channels or any(s != -1 for s in grid.slack):
            raise Impossible
        for axis, stride in enumerate(grid.strides):
            if stride > 1:
                x = self.slice(x, axis + 2, 0, x.lengths[axis], stride)
        return x if self.chance(0.3) else self.decorated(x, 1.0)

    def pooled(self, x: Value, grid: Grid) -> Value:
        if grid.channels != x.channels:
            raise Impossible
        taps = self.taps()
        return self.pool(x, taps, grid.strides, self.fit(grid, taps), auto=self.auto(grid))

    def averaged(self, x: Value, grid: Grid) -> Value:
        """An average of real pixels alone, with affines or 1×1 around it."""
        taps = self.taps()
        pads, channels = self.fit(grid, taps), grid.channels
        before = self.decorated(self.conv(x, channels) if channels != x.channels else x, 0.5)
        auto = self.auto(grid)
        pooled = self.pool(before, taps, grid.strides, pads, auto=auto, counted=0)
        return self.decorated(pooled, 0.9)

    def flat(self, x: Value, grid: Grid) -> Value:
        """A window of one axis more over a tensor that was given one."""
        taps, auto = self.taps(), self.auto(grid)
        pads, strides = self.fit(grid, taps), grid.strides

        def inner(y: Value, axis: int) -> Value:
            more = self.pick([1, 1, 3])
            wide = (*taps[:axis], more, *taps[axis:])
            steps = (*strides[:axis], 1, *strides[axis:])
            around = self.with_axis(pads, axis, more // 2)
            found = self.conv(y, grid.channels, wide, None, steps, around, auto=auto)
            return self.normalised(found)[0] if self.chance(0.3) else found

        if self.rank == 3:
            raise Impossible
        return self.widened(x, inner)

    def cropped(self, x: Value, grid: Grid) -> Value:
        """Too much padding made good by a Slice or a negative Pad, before or behind."""
        axis, amount = self.integer(0, self.rank - 1), self.integer(1, 2)
        if self.chance(0.5):
            both = tuple(amount if i % self.rank == axis else 0 for i in range(2 * self.rank))
            return self.plain(self.pad(x, both), self.shifted(grid, axis, -2 * amount))
        if grid.strides[axis] > 1:
            raise Impossible
        x = self.plain(x, self.shifted(grid, axis, 2 * amount))
        if self.chance(0.4):
            return self.pad(
                x, tuple(-amount if i % self.rank == axis else 0 for i in range(2 * self.rank))
            )
        return self.slice(x, axis + 2, amount, x.lengths[axis] - amount)

    def shifted(self, grid: Grid, axis: int, by: int) -> Grid:
        slack = tuple(s + by if i == axis else s for i, s in enumerate(grid.slack))
        return replace(grid, slack=slack)

    def uneven(self, x: Value, grid: Grid) -> Value:
        """Another length rule, equal lengths at most by coincidence."""
        return self.plain(x, self.shifted(grid, self.integer(0, self.rank - 1), self.pick([-1, 1])))

    def divided(self, x: Value, grid: Grid) -> Value:
        """Split, a branch each, Concat."""
        if min(x.channels, grid.channels) < 2:
            raise Impossible
        first, out = self.integer(1, x.channels - 1), self.integer(1, grid.channels - 1)
        if self.chance(0.5):
            first, out = x.channels // 2, grid.channels // 2
        parts = self.split(x, [first, x.channels - first])
        if self.chance(0.2):
            parts.reverse()
        outs = (out, grid.channels - out)
        made = [
            self.branch(p, replace(grid, channels=o)) if self.chance(0.8) else p
            for p, o in zip(parts, outs, strict=True)
        ]
        return self.concat(made)

    def stacked(self, x: Value, grid: Grid) -> Value:
        """Branches over all of the source, concatenated on the channels."""
        if grid.channels < 2:
            raise Impossible
        out = self.integer(1, grid.channels - 1)
        return self.concat(
            [self.branch(x, replace(grid, channels=o)) for o in (out, grid.channels - out)]
        )

    def concat(self, parts: Sequence[Value]) -> Value:
        if len({p.lengths for p in parts}) > 1:
            raise Impossible
        axis = -self.rank - 1 if self.opset >= 11 and self.chance(0.3) else 1
        (name,) = self.node("Concat", [p.name for p in parts], axis=axis)
        return self.value(name, sum(p.channels for p in parts), parts[0].lengths)

    def bent(self, x: Value, grid: Grid) -> Value:
        return self.plain(self.nonlinear(x), grid)

    def nested(self, x: Value, grid: Grid) -> Value:
        if len(self.nodes) > 60:
            raise Impossible
        return self.joined([self.branch(x, grid) for _ in range(self.integer(2, 3))])

    def branch(self, x: Value, grid: Grid) -> Value:
        """A branch of any kind, with its lengths and channels on the grid."""
        kinds: list[Callable[[Value, Grid], Value]] = [self.plain] * 6
        kinds += [self.pointwise_first] * 4 + [self.pointwise_last] * 3 + [self.skip] * 4
        kinds += [self.separable, self.expanded, self.cropped, self.divided, self.stacked] * 2
        kinds += [self.pooled, self.bent, self.nested, self.uneven, self.averaged, self.flat]
        for _ in range(6):
            try:
                found = self.pick(kinds)(x, grid)
            except Impossible:
                continue
            return self.decorated(found, 0.45)
        raise Impossible

    def joined(self, parts: list[Value]) -> Value:
        """A sum of values; one of another shape is left out."""
        first = parts[0]
        rest = [p for p in parts[1:] if p.lengths == first.lengths and p.channels == first.channels]
        if len(rest) > 1 and self.chance(0.2):
            return self.same(first, "Sum", *(p.name for p in rest))
        for other in rest:
            op = self.pick(["Add"] * 12 + ["Sub"] * 2 + ["Mul"])
            left, right = (first, other) if self.chance(0.5) else (other, first)
            first = self.same(left, op, right.name)
        return first

    def decorated(self, x: Value, probability: float) -> Value:
        """Per-channel maps, and nodes that do nothing, or almost."""
        while self.chance(probability):
            x = self.decoration(x)
            probability *= 0.5
        return x

    def decoration(self, x: Value) -> Value:
        kind = self.integer(0, 23)
        if kind < 8:
            return self.normalised(x)[0]
        if kind < 15:
            return self.with_constant(x, self.pick(["Add", "Sub", "Mul", "Mul", "Div"]))
        if kind == 15:
            return self.same(x, "Neg")
        if kind == 16:
            return self.same(x, self.pick(["Identity", "Dropout"]))
        if kind == 17:
            op = self.pick(["Mul", "Add", "Div", "Sub"])
            return self.scalar(x, op, 1.0 if op in ("Mul", "Div") else 0.0)
        if kind == 18:
            return self.transposed(x)
        if kind == 19:
            return self.conv(x, x.channels, groups=self.pick([1, x.channels]))
        if kind == 20 and x.channels > 1:
            return self.concat(self.split(x, [1, x.channels - 1]))
        if kind == 21:
            return self.same(x, "Cast", to=self.kind)
        if kind >= 22:
            try:
                return self.with_map(x)
            except Impossible:
                pass
        return self.with_constant(x, "Add", stray=True)

    def with_constant(self, x: Value, op: str, stray: bool = False) -> Value:
        """Arithmetic with a constant per channel or scalar, or (``stray``) along another axis."""
        c, one = x.channels, self.ones()
        shape = self.pick([(c, *one), (1, c, *one), (), (1,), (1, 1, *one)])
        if stray and self.chance(0.5):
            strays = [x.lengths[-1:], (1, *x.lengths), (c, *x.lengths), (self.batch, c, *one)]
            shape = self.pick(strays)
        array = self.rng.uniform(0.5, 2, shape) * self.rng.choice([-1.0, 1.0], shape)
        name = self.constant(array)
        if op == "Div" or self.chance(0.7):
            return self.same(x, op, name)
        (out,) = self.node(op, [name, x.name])
        return self.value(out, c, x.lengths)

    def transposed(self, x: Value) -> Value:
        """Something per channel with the channels last, and back."""
        forth, back = [0, *range(2, self.rank + 2), 1], [0, self.rank + 1, *range(1, self.rank + 1)]
        (name,) = self.node("Transpose", [x.name], perm=forth)
        if self.chance(0.6):
            array = self.rng.standard_normal(self.pick([(x.channels,), (1,)]))
            (name,) = self.node(self.pick(["Add", "Mul"]), [name, self.constant(array)])
        if self.chance(0.1):
            back = [0, *range(self.rank + 1, 0, -1)]
            if self.rank > 1 and len(set(x.lengths)) > 1:
                raise Impossible
        return self.value(self.node("Transpose", [name], perm=back)[0], x.channels, x.lengths)

    def nonlinear(self, x: Value) -> Value:
        kind = self.integer(0, 12)
        if kind < 6:
            return self.same(x, self.pick(["Relu", "Relu", "Sigmoid", "Tanh"]))
        if kind == 6:
            return self.clip(x, 0.0, 6.0)
        if kind == 7:
            return self.pool(x, self.ones(3), self.ones(), self.ones(1) * 2, "MaxPool")
        if kind == 8:
            gate = self.clip(self.scalar(x, "Add", 3.0), 0.0, 6.0)
            return self.scalar(self.same(x, "Mul", gate.name), "Div", 6.0)
        if kind == 9:
            inner = self.same(self.scalar(x, "Div", 2**0.5), "Erf")
            return self.scalar(self.same(x, "Mul", self.scalar(inner, "Add", 1.0).name), "Mul", 0.5)
        if kind == 10:
            return self.same(x, "Mul", self.same(x, "Sigmoid").name)
        if kind == 11:
            return self.same(x, "Max", self.scalar(x, "Mul", 0.1).name)
        return self.pad(x, (*self.ones(1), *self.ones(1)), mode=self.pick(["reflect", "edge"]))
