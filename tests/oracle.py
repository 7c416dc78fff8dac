"""What maps mean, by definition: the oracle of the laws, and strategies that draw maps.

`Conv.of` loops over output positions and taps and shares nothing with the algebra but the
integers of a window. Values are integers in float64, so equality is equality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra.form import Facts, Form
from onnxfuse.algebra.geometry import Axis, Geometry
from onnxfuse.algebra.laws import Convolve
from onnxfuse.algebra.source import Source
from onnxfuse.refusal import Refusal

EXACT = Facts(2.0**-53)
FEW = settings(max_examples=60)  # each example tries up to twenty sizes


class SizeError(Exception):
    """An operator has no output at this size."""


@dataclass(frozen=True)
class Conv:
    """A convolution with its arrays; ``of`` applies it by definition or raises `SizeError`."""

    geometry: Geometry
    kernel: np.ndarray
    bias: np.ndarray | None = None

    @property
    def law(self) -> Convolve:
        kernel = ex.leaf("K", self.geometry, lambda: self.kernel)
        bias = self.bias
        wide = None if bias is None else ex.vector("b", len(bias), lambda: bias)
        return Convolve(kernel, wide)

    def of(self, x: np.ndarray) -> np.ndarray:
        g = self.geometry
        lengths = g.lengths(x.shape[2:])
        if min(lengths, default=1) < 1:
            raise SizeError
        fan_in, fan_out = g.in_channels // g.groups, g.out_channels // g.groups
        dense = np.zeros((g.out_channels, g.in_channels, *g.taps))
        for o in range(g.out_channels):
            first = o // fan_out * fan_in
            dense[o, first : first + fan_in] = self.kernel[o]
        y = np.zeros((len(x), g.out_channels, *lengths))
        for p, t in product(product(*map(range, lengths)), product(*map(range, g.taps))):
            place = [
                a.stride * i + a.start + a.dilation * j
                for a, i, j in zip(g.axes, p, t, strict=True)
            ]
            if all(0 <= i < size for i, size in zip(place, x.shape[2:], strict=True)):
                y[(..., *p)] += x[(..., *place)] @ dense[(..., *t)].T
        return y if self.bias is None else y + self.bias.reshape(-1, *[1] * len(lengths))


def integers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float64)


@st.composite
def convs(
    draw: st.DrawFn,
    rank: int,
    channels: int,
    out: int = 0,
    stride: int = 0,
    slack: int | None = None,
) -> Conv:
    """A Conv of any stride, dilation, groups and pads; ``slack`` fixes what decides its length."""
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == 0 and out % g == 0]))
    axes = []
    for _ in range(rank):
        axis = Axis.window(
            draw(st.integers(1, 3)),
            stride=stride or draw(st.sampled_from([1, 1, 2, 3])),
            dilation=draw(st.integers(1, 2)),
            begin=draw(st.sampled_from([0, 0, 1, 2, -1])),
            end=draw(st.sampled_from([0, 0, 1, 2, -1])),
        )
        axes.append(axis if slack is None else replace(axis, slack=slack))
    geometry = Geometry(channels, out or 2 * groups, groups, tuple(axes))
    seed = draw(st.integers(0, 10**6))
    bias = integers(seed + 1, geometry.out_channels) if draw(st.booleans()) else None
    return Conv(geometry, integers(seed, *geometry.kernel_shape), bias)


def sizes(rank: int, known: tuple[int, ...] | None) -> Iterator[tuple[int, ...]]:
    """The sizes at which an accepted form must hold: the known one, or every small one."""
    if known is not None:
        yield known
    elif rank == 1:
        yield from ((n,) for n in range(1, 21))
    else:
        yield from product((1, 2, 3, 6), (1, 4, 5))


def lengths(rank: int) -> st.SearchStrategy[tuple[int, ...] | None]:
    return st.one_of(st.none(), st.tuples(*[st.integers(1, 12 if rank == 1 else 7)] * rank))


def source(channels: int, rank: int, known: tuple[int, ...] | None, name: str = "x") -> Form:
    return Form.of(Source(name, channels, known or (None,) * rank))


def stands_for(source: Source, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The array of a source; a plane of ones has the lengths its tensor gives it."""
    if source.load is not None:
        return source.load()
    if source.plane is None:
        return inputs[source.name]
    lengths = source.plane.lengths(inputs[source.plane.of.name].shape[2:])
    if min(lengths, default=1) < 1:
        raise SizeError
    return np.ones((1, 1, *lengths))


def linear(form: Form, **inputs: np.ndarray) -> np.ndarray:
    """The sum of a form's terms, its constant left out, in the base layout."""
    total = None
    for term in form.terms:
        x = stands_for(term.source, inputs)[:, slice(*term.ins)]
        part = Conv(term.kernel.geometry, ex.fold(term.kernel)).of(x)
        if total is None:
            batch = max(len(array) for array in inputs.values())
            total = np.zeros((batch, form.channels, *part.shape[2:]))
        total[:, slice(*term.outs)] += part
    return total


def value(form: Form, **inputs: np.ndarray) -> np.ndarray:
    """A form without borders as an array."""
    assert not form.border
    y = linear(form, **inputs)
    if form.constant is not None:
        y = y + ex.fold(form.constant).reshape(-1, *[1] * form.rank)
    return y.transpose(form.layout)


def holds(
    form: Form | Refusal, expected: Callable[..., np.ndarray], rank: int, known, **channels: int
) -> bool:
    """Whether the law accepted; then the form must equal ``expected`` at every legal size."""
    if isinstance(form, Refusal):
        return False
    for size in sizes(rank, known):
        inputs = {n: integers(5 + len(n), 2, c, *size) for n, c in channels.items()}
        try:
            wanted = expected(**inputs)
        except SizeError:
            continue
        np.testing.assert_array_equal(value(form, **inputs), wanted)
    return True


def run(layers: list[Conv], x: np.ndarray) -> np.ndarray:
    """The layers in turn; raises `SizeError` where one of them has nothing to give."""
    for layer in layers:
        x = layer.of(x)
    return x


def unpadded(layer: Conv) -> Conv:
    """The layer with its pads left out, and the lengths that follow."""
    axes = [Axis.window(a.taps, stride=a.stride, dilation=a.dilation) for a in layer.geometry.axes]
    return replace(layer, geometry=replace(layer.geometry, axes=tuple(axes)))
