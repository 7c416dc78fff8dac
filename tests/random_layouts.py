"""Random borders and layouts: paddings written in other nodes, maps, and channels that stand last.

`Borders` writes a padding in one of the ways of exporters, and constants that vary in space.
`Islands` writes runs of operators with the channels last, between Transposes that others share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from random_operators import FAR, Impossible, Ints, Value, Writer


class Borders(Writer):
    """Paddings and constants that vary in space."""

    def near(self, value: Any) -> Any:
        """Mostly ``value`` itself, else a few roundings or more beside it."""
        kind = self.rng.random()
        if kind < 0.7:
            return value
        if kind < 0.85:
            unit = np.finfo(self.dtype).eps * self.pick([1, 2, 4])
            return value * (1 + unit * self.rng.integers(-1, 2, np.shape(value)))
        return value + self.pick([1e-3, 1.0])

    def filled(self, x: Value, pads: Ints, value: Any) -> Value:
        """Padding by ``value`` per channel, strip by strip or at once."""
        ways = [self.assigned] * 3 + [self.framed] * 2 + [self.elements, self.mapped]
        if self.opset < 11:
            ways = [self.framed, self.mapped]
        return self.pick(ways)(x, pads, np.asarray(value, self.dtype))

    def fixed(self, *axes: int) -> None:
        """Give up where the size of one of these axes may be open (mostly)."""
        if any(map(self.open, axes)) and self.chance(0.95):
            raise Impossible

    def column(self, value: Any) -> Any:
        """Values per channel against ``(N, C, *lengths)``."""
        return np.asarray(value, self.dtype).reshape(1, -1, *self.ones())

    def assigned(self, x: Value, pads: Ints, value: Any) -> Value:
        """Zero padding overwritten axis by axis (the BNAndPad of Diverse Branch Block)."""
        padded, rest = self.pad(x, pads), [(i, p) for i, p in enumerate(pads) if p]
        by_range = self.chance(0.5)
        for i, width in rest if self.chance(0.95) else rest[1:]:
            end, axis = divmod(i, self.rank)
            write = self.by_range if by_range else self.by_index
            padded = write(padded, axis + 2, bool(end), width, self.column(value))
        return padded

    def by_index(self, x: Value, axis: int, end: bool, width: int, column: Any) -> Value:
        """One strip set by ScatterND with constant indices."""
        shape = [self.batch, x.channels, *x.lengths]
        strip = [np.arange(n) for n in shape]
        strip[axis] = strip[axis][-width:] if end else strip[axis][:width]
        indices = np.stack(np.meshgrid(*strip, indexing="ij"), axis=-1)
        updates = np.broadcast_to(column, indices.shape[:-1])
        return self.same(x, "ScatterND", self.initializer(indices), self.initializer(updates))

    def by_range(self, x: Value, axis: int, end: bool, width: int, column: Any) -> Value:
        """One strip set by ScatterND with a slice of a Range, at any size."""
        order = list(range(self.rank + 2))
        order[0], order[axis] = axis, 0
        (turned,) = self.node("Transpose", [x.name], perm=order)
        (sizes,) = self.node("Shape", [turned])
        zero, one = (self.initializer(np.array(n, np.int64)) for n in (0, 1))
        (size,) = self.node("Gather", [sizes, zero])
        (steps,) = self.node("Range", [zero, size, one])
        bounds = [
            self.initializer(np.array([n], np.int64))
            for n in ((-width, FAR) if end else (0, width))
        ]
        (rows,) = self.node("Slice", [steps, *bounds])
        (part,) = self.node("Slice", [turned, *bounds, self.initializer(np.array([0], np.int64))])
        (wanted,) = self.node("Shape", [part])
        (spread,) = self.node("Expand", [self.constant(column.transpose(order)), wanted])
        rows = self.shaped("Unsqueeze", rows, [1])
        (done,) = self.node("ScatterND", [turned, rows, spread])
        return self.value(self.node("Transpose", [done], perm=order)[0], x.channels, x.lengths)

    def elements(self, x: Value, pads: Ints, value: Any) -> Value:
        """Zero padding overwritten by ScatterElements."""
        self.fixed(*range(self.rank + 2))
        x = self.pad(x, pads)
        for i, width in enumerate(pads):
            axis, shape = i % self.rank + 2, [self.batch, x.channels, *x.lengths]
            if not width:
                continue
            start = shape[axis] - width if i >= self.rank else 0
            start -= shape[axis] * (i >= self.rank and self.chance(0.5))
            shape[axis] = width
            places = np.arange(start, start + width).reshape(-1, *[1] * (self.rank + 1 - axis))
            indices = self.initializer(np.broadcast_to(places, shape).astype(np.int64))
            updates = self.initializer(np.broadcast_to(self.column(self.near(value)), shape))
            at = axis - self.rank - 2 if self.chance(0.3) else axis
            x = self.same(x, "ScatterElements", indices, updates, axis=at)
        return x

    def mapped(self, x: Value, pads: Ints, value: Any) -> Value:
        """Zero padding, and a map added that is zero inside (or all over, now and then)."""
        self.fixed(*range(2, self.rank + 2))
        x = self.pad(x, pads)
        full = np.broadcast_to(self.column(value), (1, x.channels, *x.lengths)).copy()
        within = [slice(pads[i], n - pads[i + self.rank]) for i, n in enumerate(x.lengths)]
        full[(slice(None), slice(None), *within)] = 0
        if self.chance(0.1):
            full[tuple(self.integer(0, n - 1) for n in full.shape)] += 1
        return self.same(x, "Add", self.constant(full))

    def framed(self, x: Value, pads: Ints, value: Any) -> Value:
        """Constant strips joined at both ends of every axis."""
        for axis in range(self.rank):
            begin, end = pads[axis], pads[axis + self.rank]
            if begin or end:
                first = [self.strip(x, axis + 2, begin, self.near(value))] if begin else []
                last = [self.strip(x, axis + 2, end, self.near(value))] if end else []
                names = [*first, x.name, *last]
                if begin == end and self.chance(0.3):
                    names = [first[0], x.name, first[0]]
                (name,) = self.node("Concat", names, axis=axis + 2)
                lengths = [n + (i == axis) * (begin + end) for i, n in enumerate(x.lengths)]
                x = self.value(name, x.channels, lengths)
        return x

    def strip(self, x: Value, axis: int, width: int, value: Any) -> str:
        """A constant as wide as ``width`` along an axis: stored, or stretched by Expand."""
        shape = [self.batch, x.channels, *x.lengths]
        shape[axis] = width
        open_ = any(self.open(other) for other in range(self.rank + 2) if other not in (1, axis))
        if self.chance(0.05 if open_ else 0.6):
            return self.constant(np.broadcast_to(self.column(value), shape))
        alike = [v for v in self.values if v.lengths == x.lengths and v.channels == x.channels]
        like = self.pick(alike) if alike and self.chance(0.15) else x
        (sizes,) = self.node("Shape", [like.name])
        before, after = self.part(sizes, 0, axis), self.part(sizes, axis + 1, self.rank + 2)
        (wanted,) = self.node("Concat", [*before, self.ints(width), *after], axis=0)
        array = self.column(value)
        if self.chance(0.5):
            array = array[0]
        return self.node("Expand", [self.constant(array), wanted])[0]

    def part(self, sizes: str, start: int, stop: int) -> list[str]:
        """Entries ``start … stop - 1`` of a shape, as one tensor or one each."""
        if start == stop:
            return []
        if self.opset >= 10 and self.chance(0.5):
            last = stop if stop < self.rank + 2 else FAR
            return self.node("Slice", [sizes, self.ints(start), self.ints(last)])
        if self.chance(0.5):
            return self.node("Gather", [sizes, self.ints(*range(start, stop))])
        return [
            self.shaped(
                "Unsqueeze",
                self.node("Gather", [sizes, self.initializer(np.array(i, np.int64))])[0],
                [0],
            )
            for i in range(start, stop)
        ]

    def padded(self, x: Value, pads: Ints, number: float) -> Value:
        """A Pad, now and then with an axis of one more, as PaddlePaddle writes it."""
        if self.rank == 3 or min(pads) < 0 or self.chance(0.7):
            return self.pad(x, pads, number=number)

        def inner(y: Value, axis: int) -> Value:
            return self.pad(y, self.with_axis(pads, axis, 0), number=number)

        return self.widened(x, inner)

    def with_axis(self, both: Ints, axis: int, more: int) -> Ints:
        """Begins and ends with one more spatial axis (``rank`` counts it)."""
        found = list(both)
        for place in (axis, axis + self.rank):
            found.insert(place, more)
        return tuple(found)

    def widened(self, x: Value, inner: Callable[[Value, int], Value]) -> Value:
        """Unsqueeze, an operator of one axis more, Squeeze."""
        axis = self.integer(0, self.rank)
        wide = (*x.lengths[:axis], 1, *x.lengths[axis:])
        name = self.shaped("Unsqueeze", x.name, [axis + 2])
        self.rank += 1
        try:
            y = inner(self.value(name, x.channels, wide), axis)
        finally:
            self.rank -= 1
        if y.lengths[axis] != 1:
            raise Impossible
        where = axis - self.rank - 1 if self.opset >= 11 and self.chance(0.3) else axis + 2
        lengths = (*y.lengths[:axis], *y.lengths[axis + 1 :])
        return self.value(self.shaped("Squeeze", y.name, [where]), y.channels, lengths)

    def with_map(self, x: Value) -> Value:
        """A constant added that varies in space, or might: even, framed or random."""
        self.fixed(*range(2, self.rank + 2))
        c, spatial = x.channels, x.lengths
        some = tuple(n if self.chance(0.5) else 1 for n in spatial)
        shapes = [(1, c, *spatial)] * 4 + [(c, *spatial), (1, 1, *spatial), spatial, (c, *some)]
        shape = self.pick([*shapes, (1, c, *some), (self.batch, c, *spatial)])
        kind = self.rng.random()
        if kind < 0.4:
            array = self.rng.standard_normal(shape)
        else:
            value = self.rng.standard_normal(shape[: len(shape) - self.rank] + self.ones())
            array = np.broadcast_to(value, shape).copy()
            if kind < 0.8:
                width = self.integer(1, 2)
                frame = [slice(width, n - width) if n > 2 * width else slice(None) for n in spatial]
                array[(..., *frame)] = self.pick([0.0, 0.5, array[(..., *frame)] * 2])
        name = self.constant(array)
        op = self.pick(["Add", "Add", "Add", "Sub", "Mul"])
        if op == "Mul" or self.chance(0.7):
            return self.same(x, op, name)
        return self.value(self.node(op, [name, x.name])[0], c, spatial)


@dataclass(frozen=True)
class Last:
    """A tensor ``(N, *lengths, channels)``."""

    name: str
    channels: int
    lengths: Ints


class Islands(Borders):
    """Runs of operators whose channels stand last."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.lasts: list[Last] = []

    def forth(self, x: Value) -> Last:
        """The channels to the end; sometimes by a Transpose that stands there already."""
        return self.last(self.turn(x.name, [0, *range(2, self.rank + 2), 1]), x.channels, x.lengths)

    def back(self, x: Last) -> Value:
        perm = [0, self.rank + 1, *range(1, self.rank + 1)]
        return self.value(self.turn(x.name, perm), x.channels, x.lengths)

    def turn(self, name: str, perm: Sequence[int]) -> str:
        alike = [node for node in self.nodes if node.op_type == "Transpose"]
        for node in alike if self.chance(0.5) else ():
            if node.input[0] == name and list(node.attribute[0].ints) == list(perm):
                return str(node.output[0])
        return self.node("Transpose", [name], perm=perm)[0]

    def last(self, name: str, channels: int, lengths: Sequence[int]) -> Last:
        self.lasts.append(Last(name, channels, tuple(lengths)))
        return self.lasts[-1]

    def island(self, x: Value, convolve: Callable[[Value], Value]) -> Value:
        """Operators with the channels last; ``convolve`` is what stands between Transposes."""
        now = self.forth(x)
        steps: list[Callable[[Last], Last]] = [self.l_unary, self.l_constant] * 4
        steps += [self.l_residual, self.l_pad, self.l_slice, self.l_concat] * 2
        steps += [self.l_split, self.l_gate, self.l_softmax, self.l_reduced, self.l_several]
        steps += [lambda last: self.forth(convolve(self.back(last)))] * 8
        steps += self.l_steps()
        for _ in range(self.integer(1, 6)):
            try:
                now = self.pick(steps)(now)
            except Impossible:
                continue
        return self.back(now)

    def l_steps(self) -> list[Callable[[Last], Last]]:
        """More operators that a run may hold."""
        return []

    def l_same(self, x: Last, op: str, *others: str, **attributes: Any) -> Last:
        return self.last(self.node(op, [x.name, *others], **attributes)[0], x.channels, x.lengths)

    def l_unary(self, x: Last) -> Last:
        op = self.pick(["Relu", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Identity", "Neg", "Cast"])
        if op == "Cast":
            return self.l_same(x, op, to=self.kind)
        return self.l_same(x, op)

    def l_constant(self, x: Last) -> Last:
        """Arithmetic with a constant per channel, mostly."""
        c, one = x.channels, self.ones()
        shape = self.pick([(c,)] * 4 + [(1, *one, c), (*one, c), (), (1, *x.lengths, c)])
        if self.chance(0.1):
            shape = self.pick([(*x.lengths[-1:], 1), (1, *x.lengths, 1), (*x.lengths, c)])
        if len(shape) > 1 and max(shape[:-1]) > 1:
            self.fixed(*range(2, self.rank + 2))
        array = self.rng.uniform(0.5, 2, shape) * self.rng.choice([-1.0, 1.0], shape)
        op = self.pick(["Add", "Add", "Mul", "Mul", "Sub", "Div", "PRelu", "Max", "Sum"])
        name = self.constant(array)
        if op in ("Add", "Mul", "Sub", "Max") and self.chance(0.3):
            return self.last(self.node(op, [name, x.name])[0], c, x.lengths)
        return self.l_same(x, op, name)

    def l_residual(self, x: Last) -> Last:
        fits = [o for o in self.lasts if (o.channels, o.lengths) == (x.channels, x.lengths)]
        other = self.pick(fits)
        return self.l_same(x, self.pick(["Add", "Add", "Add", "Sub", "Mul", "Max"]), other.name)

    def l_pad(self, x: Last) -> Last:
        if self.opset < 11:
            raise Impossible
        pads = [self.integer(0, 2) for _ in range(2 * self.rank)]
        full = [0, *pads[: self.rank], 0, 0, *pads[self.rank :], 0]
        number = [self.constant(np.array(self.pick([0.0, 0.5])))] if self.chance(0.4) else []
        mode = self.pick(["constant", "constant", "edge"])
        inputs = [x.name, self.ints(*full), *number]
        lengths = [n + pads[i] + pads[i + self.rank] for i, n in enumerate(x.lengths)]
        return self.last(self.node("Pad", inputs, mode=mode)[0], x.channels, lengths)

    def l_slice(self, x: Last) -> Last:
        if self.opset < 10:
            raise Impossible
        axis, sizes = self.integer(1, self.rank + 1), [*x.lengths, x.channels]
        start = self.integer(0, 1)
        step = self.pick([1, 1, 2]) if axis <= self.rank else 1
        kept = len(range(start, sizes[axis - 1], step))
        if not kept:
            raise Impossible
        where = axis if self.chance(0.6) else axis - self.rank - 2
        bounds = [self.ints(start), self.ints(FAR), self.ints(where), self.ints(step)]
        sizes[axis - 1] = kept
        return self.last(self.node("Slice", [x.name, *bounds])[0], sizes[-1], sizes[:-1])

    def l_concat(self, x: Last) -> Last:
        fits = [o for o in self.lasts if o.lengths == x.lengths and o.channels + x.channels <= 16]
        if not fits:
            raise Impossible
        other = self.pick(fits)
        axis = self.pick([-1, self.rank + 1])
        (name,) = self.node("Concat", [x.name, other.name], axis=axis)
        return self.last(name, x.channels + other.channels, x.lengths)

    def l_split(self, x: Last) -> Last:
        if x.channels < 2:
            raise Impossible
        first = self.integer(1, x.channels - 1)
        sizes = [first, x.channels - first]
        late = self.opset >= 13
        inputs = [x.name, self.ints(*sizes)] if late else [x.name]
        given = {} if late else {"split": sizes}
        names = self.node("Split", inputs, 2, axis=self.pick([-1, self.rank + 1]), **given)
        a, b = (self.last(n, c, x.lengths) for n, c in zip(names, sizes, strict=True))
        a = self.l_unary(a) if self.chance(0.5) else a
        if self.chance(0.3):
            return b
        (name,) = self.node("Concat", [b.name, a.name], axis=-1)
        return self.last(name, x.channels, x.lengths)

    def reduce(self, x: Last, op: str, keepdims: int) -> str:
        axes = list(range(1, self.rank + 1))
        if self.chance(0.3):
            axes = [axis - self.rank - 2 for axis in axes]
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.node(op, [x.name, self.ints(*axes)], keepdims=keepdims)[0]
        return self.node(op, [x.name], axes=axes, keepdims=keepdims)[0]

    def l_gate(self, x: Last) -> Last:
        """Squeeze-and-excitation."""
        name = self.reduce(x, self.pick(["ReduceMean", "ReduceMax", "ReduceSum"]), 1)
        (gate,) = self.node("Sigmoid", [name])
        return self.l_same(x, "Mul", gate)

    def l_reduced(self, x: Last) -> Last:
        """A mean over the positions that is an output of its own."""
        self.last(self.reduce(x, "ReduceMean", 0), 0, ())
        return x

    def l_softmax(self, x: Last) -> Last:
        if self.opset < 13:
            raise Impossible
        return self.l_same(x, "Softmax", axis=self.pick([-1, self.rank + 1, 1]))

    def l_several(self, x: Last) -> Last:
        """Another reader of the tensor, in either layout."""
        if self.chance(0.5):
            self.same(self.back(x), "Relu")
        else:
            self.l_same(x, "Tanh")
        return x
