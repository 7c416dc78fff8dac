"""Lazy weight expressions: what a kernel or a bias is made of, before any array is read.

A `Kernel` knows its geometry and how it folds; `fold` evaluates a tree of them once each,
without recursion. A `Vector` is the same for per-channel constants. This room never knows onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra import weights
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.algebra.weights import Array

Fold = Callable[[Sequence[Array]], Array]


@dataclass(frozen=True, slots=True, eq=False)
class Lazy:
    """A value to be computed from ``parts``; compared by identity, folded once."""

    text: str
    parts: tuple[Lazy, ...]
    compute: Fold = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Kernel(Lazy):
    """A kernel of shape ``geometry.kernel_shape``; `identity` marks the bare x."""

    geometry: Geometry
    identity: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Vector(Lazy):
    """A per-channel constant of shape ``(channels,)``; `heavy` if a kernel must be read."""

    heavy: bool = False


def fold(root: Lazy, memo: dict[int, Array] | None = None) -> Array:
    """The float64 array of ``root``; shared parts are computed once, ``memo`` across calls."""
    done = {} if memo is None else memo
    stack = [root]
    while stack:
        node = stack[-1]
        if id(node) in done:
            stack.pop()
            continue
        missing = [part for part in node.parts if id(part) not in done]
        if missing:
            stack.extend(missing)
            continue
        with np.errstate(all="ignore"):  # what is not finite is refused when it is written
            done[id(node)] = node.compute([done[id(part)] for part in node.parts])
        stack.pop()
    return done[id(root)]


def leaf(text: str, geometry: Geometry, load: Callable[[], Array]) -> Kernel:
    """A kernel that ``load`` reads, reshaped to ``geometry.kernel_shape``."""
    shape = geometry.kernel_shape
    return Kernel(text, (), lambda _: np.asarray(load(), np.float64).reshape(shape), geometry)


def identity(channels: int, rank: int, text: str = "x") -> Kernel:
    """The map that changes nothing."""
    geometry = Geometry.pointwise(channels, rank)
    return Kernel(text, (), lambda _: np.ones(geometry.kernel_shape), geometry, True)


def shift(text: str, geometry: Geometry) -> Kernel:
    """A per-channel map of one unit tap on each axis: pads and crops."""
    return Kernel(text, (), lambda _: np.ones(geometry.kernel_shape), geometry)


def compose(outer: Kernel, inner: Kernel) -> Kernel:
    """``outer`` after ``inner`` (the caller has checked the borders)."""
    if inner.identity:
        return outer
    if outer.identity:
        return inner
    o, i = outer.geometry, geo.on_grid_of(inner.geometry, outer.geometry)
    result = geo.compose(o, i)
    return Kernel(
        f"{_closed(outer.text)}∘{_closed(inner.text)}",
        (outer, inner),
        lambda parts: weights.compose(parts[0], parts[1], o, i, result),
        result,
    )


def _closed(text: str) -> str:
    """The text as a factor; long texts are cut, a report is read by people."""
    text = f"({text})" if " + " in text else text
    return text if len(text) <= 200 else text[:196] + " …"


def add(hull: Geometry, parts: Sequence[Kernel]) -> Kernel:
    """The sum of kernels, each embedded in ``hull``."""
    if len(parts) == 1 and parts[0].geometry == hull:
        return parts[0]
    geometries = [part.geometry for part in parts]

    def compute(arrays: Sequence[Array]) -> Array:
        total = np.zeros(hull.kernel_shape)
        for array, geometry in zip(arrays, geometries, strict=True):
            total += weights.embed(array, geometry, hull)
        return total

    return Kernel(_cut(" + ".join(part.text for part in parts)), tuple(parts), compute, hull)


def _cut(text: str) -> str:
    return text if len(text) <= 400 else text[:396] + " …"


def at_taps(kernel: Kernel, taps: Mapping[int, int]) -> Kernel:
    """The kernel at one tap of each of some spatial axes, those axes left out."""
    g = kernel.geometry
    axes = tuple(axis for at, axis in enumerate(g.axes) if at not in taps)
    index = tuple(taps.get(at, slice(None)) for at in range(len(g.axes)))
    return Kernel(
        kernel.text,
        (kernel,),
        lambda parts: parts[0][(slice(None), slice(None), *index)],
        replace(g, axes=axes),
    )


def reranked(kernel: Kernel, rank: int) -> Kernel:
    """A kernel of one tap on ``rank`` spatial axes instead of its own."""
    g = replace(kernel.geometry, axes=(geo.IDENTITY,) * rank)
    shape = g.kernel_shape
    return Kernel(kernel.text, (kernel,), lambda parts: parts[0].reshape(shape), g, kernel.identity)


def repeated_map(kernel: Kernel, around: int, within: int) -> Kernel:
    """A per-channel map where each channel has become a run of ``within``, all ``around`` times."""
    g, times = kernel.geometry, around * within
    wide = replace(
        g,
        in_channels=g.in_channels * times,
        out_channels=g.out_channels * times,
        groups=g.groups * times,
    )
    return Kernel(
        kernel.text,
        (kernel,),
        lambda parts: _repeat(parts[0], around, within).reshape(wide.kernel_shape),
        wide,
        kernel.identity,
    )


def repeated(constant: Vector | None, around: int, within: int) -> Vector | None:
    """A constant of channels that are repeated so."""
    if constant is None or around * within == 1:
        return constant
    return Vector(
        constant.text,
        (constant,),
        lambda parts: _repeat(parts[0], around, within),
        constant.heavy,
    )


def _repeat(array: Array, around: int, within: int) -> Array:
    return np.tile(np.repeat(array.reshape(-1), within), around)


def restrict(kernel: Kernel, outs: slice, ins: slice, groups: int) -> Kernel:
    """The rows ``outs`` and the input columns ``ins`` of a kernel, left with ``groups``."""
    g = kernel.geometry
    part = Geometry(ins.stop - ins.start, outs.stop - outs.start, groups, g.axes)
    return Kernel(
        kernel.text,
        (kernel,),
        lambda parts: weights.restrict(parts[0], g, outs, ins),
        part,
    )


def column(constant: Vector, channels: int, rank: int) -> Kernel:
    """The map of one channel of ones onto a constant."""
    geometry = Geometry(1, channels, 1, (geo.IDENTITY,) * rank)
    return Kernel(
        f"{constant.text}·1",
        (constant,),
        lambda parts: parts[0].reshape(geometry.kernel_shape),
        geometry,
    )


def widen(kernel: Kernel, start: int, channels: int) -> Kernel:
    """The kernel, without groups, as the rows from ``start`` on of one with zeros elsewhere."""
    g = kernel.geometry
    result = Geometry(g.in_channels, channels, 1, g.axes)
    rows = slice(start, start + g.out_channels)

    def compute(parts: Sequence[Array]) -> Array:
        wide = np.zeros(result.kernel_shape)
        wide[rows] = weights.regroup(parts[0], g.groups, 1)
        return wide

    return Kernel(kernel.text, (kernel,), compute, result)


def append(result: Geometry, left: Kernel, right: Kernel) -> Kernel:
    """Dense kernels side by side on their inputs: one map of both sources' channels."""
    parts = [replace(k.geometry, groups=1) for k in (left, right)]
    boxes = [replace(g, axes=result.axes) for g in parts]

    def compute(arrays: Sequence[Array]) -> Array:
        embedded = [
            weights.embed(array, part, box)
            for array, part, box in zip(arrays, parts, boxes, strict=True)
        ]
        return np.concatenate(embedded, axis=1)

    return Kernel(_cut(f"{left.text} + {right.text}"), (left, right), compute, result)


def beside(result: Geometry, parts: Sequence[Kernel]) -> Kernel:
    """Dense kernels of equal axes over channels that follow each other: one map of them all."""
    return Kernel(
        _cut(" + ".join(part.text for part in parts)),
        tuple(parts),
        lambda arrays: np.concatenate(list(arrays), axis=1).reshape(result.kernel_shape),
        result,
    )


def stack(result: Geometry, parts: Sequence[Kernel]) -> Kernel:
    """Kernels of equal axes one above the other: the concatenation of their outputs."""
    return Kernel(
        _cut("[" + ", ".join(part.text for part in parts) + "]"),
        tuple(parts),
        lambda arrays: np.concatenate(list(arrays)).reshape(result.kernel_shape),
        result,
    )


def vector(text: str, channels: int, load: Callable[[], Array]) -> Vector:
    """A constant that ``load`` reads: a scalar or ``(channels,)``."""

    def compute(_: Sequence[Array]) -> Array:
        return np.array(np.broadcast_to(np.asarray(load(), np.float64).reshape(-1), (channels,)))

    return Vector(text, (), compute)


def quotient(constant: Vector, kernel: Kernel) -> Vector:
    """A constant over the factors of a per-channel map."""
    return Vector(
        f"{constant.text}/{kernel.text}",
        (constant, kernel),
        lambda parts: parts[0] / parts[1].reshape(-1),
        constant.heavy,
    )


def stored(kernel: Kernel) -> bool:
    """Whether a stored kernel must be read to know a map; small constants need not count."""
    stack: list[Lazy] = [kernel]
    seen: set[int] = set()  # what doubles itself n times has 2ⁿ paths, and n parts
    while stack:
        part = stack.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Kernel) and not part.parts and not part.identity:
            return True
        stack += part.parts
    return False


def response(kernel: Kernel, constant: Vector | None) -> Vector | None:
    """``constant`` as it leaves ``kernel`` where no border is near."""
    if constant is None or kernel.identity:
        return constant
    g = kernel.geometry
    light = g.per_channel and not constant.heavy
    return Vector(
        f"{kernel.text}·{constant.text}" if light else "b",
        (kernel, constant),
        lambda parts: weights.response(parts[0], g.groups, parts[1]),
        heavy=not light,
    )


def total(*constants: Vector | None) -> Vector | None:
    """The sum of constants, ``None`` being zero."""
    parts = tuple(constant for constant in constants if constant is not None)
    if len(parts) < 2:
        return parts[0] if parts else None
    heavy = any(part.heavy for part in parts)
    return Vector("b", parts, lambda arrays: reduce(np.add, arrays), heavy)


def negate(constant: Vector | None) -> Vector | None:
    """The constant with its sign changed."""
    if constant is None:
        return None
    return Vector("b", (constant,), lambda arrays: -arrays[0], constant.heavy)


def join(constants: Sequence[tuple[Vector | None, int]]) -> Vector | None:
    """Constants of the given channel counts one after the other."""
    if all(constant is None for constant, _ in constants):
        return None
    parts = tuple(constant for constant, _ in constants if constant is not None)

    def compute(arrays: Sequence[Array]) -> Array:
        rest = iter(arrays)
        return np.concatenate(
            [np.zeros(size) if c is None else next(rest) for c, size in constants]
        )

    return Vector("b", parts, compute, any(part.heavy for part in parts))


def take(constant: Vector | None, channels: slice) -> Vector | None:
    """The constant of a run of channels."""
    if constant is None:
        return None
    return Vector("b", (constant,), lambda arrays: arrays[0][channels], constant.heavy)
