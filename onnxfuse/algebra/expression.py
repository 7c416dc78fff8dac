"""Lazy weight expressions: what a kernel or a bias is made of, before any array is read.

A `Kernel` knows its geometry and how it folds, whole or by runs of output channels; a `Vector` is
the same for per-channel constants. This room never knows onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra import weights
from onnxfuse.algebra.folding import (
    Fold,
    Kernel,
    Lazy,
    Rows,
    Run,
    Vector,
    alike,
    fold,
    largest,
    shares,
)
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.algebra.vectors import (
    join,
    negate,
    quotient,
    repeat,
    repeated,
    response,
    take,
    total,
    vector,
)
from onnxfuse.algebra.weights import Array

__all__ = [
    "Kernel", "Lazy", "Run", "Vector", "fold", "join", "largest", "negate", "quotient", "repeated",
    "response", "take", "total", "vector",
]  # fmt: skip


def _rest(geometry: Geometry) -> tuple[int, ...]:
    """The shape of one row of a kernel, behind -1 for however many there are."""
    return (-1, *geometry.kernel_shape[1:])


def leaf(
    text: str,
    geometry: Geometry,
    load: Callable[[], Array],
    part: Callable[[int, int], Array] | None = None,
) -> Kernel:
    """A kernel that ``load`` reads, and ``part`` a run of; of shape ``geometry.kernel_shape``."""
    rest = _rest(geometry)

    def rows(start: int, stop: int) -> tuple[Sequence[Run], Fold]:
        assert part is not None
        return (), lambda _: np.asarray(part(start, stop), np.float64).reshape(rest)

    return Kernel(
        text,
        (),
        lambda _: np.asarray(load(), np.float64).reshape(rest),
        geometry,
        rows=rows if part is not None else None,
    )


def identity(channels: int, rank: int, text: str = "x") -> Kernel:
    """The map that changes nothing."""
    geometry = Geometry.pointwise(channels, rank)
    return replace(shift(text, geometry), identity=True)


def shift(text: str, geometry: Geometry) -> Kernel:
    """A per-channel map of one unit tap on each axis: pads and crops."""
    shape = geometry.kernel_shape
    return Kernel(
        text,
        (),
        lambda _: np.ones(shape),
        geometry,
        rows=lambda start, stop: ((), lambda _: np.ones((stop - start, *shape[1:]))),
    )


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
        rows=_composed_rows(o, i, result),
    )


def _composed_rows(outer: Geometry, inner: Geometry, result: Geometry) -> Rows | None:
    """The rows of a composition; where groups are cut anew there is no rule."""
    if outer.per_channel:
        return alike(2, lambda parts: weights.compose(parts[0], parts[1], outer, inner, result))
    if inner.per_channel:
        return lambda start, stop: (
            [(start, stop), None],
            lambda parts: weights.scale_inputs(parts[0], outer, parts[1].reshape(-1), start),
        )
    if outer.groups > 1:
        return None
    return lambda start, stop: (
        [(start, stop), None],
        lambda parts: weights.compose(
            parts[0],
            parts[1],
            replace(outer, out_channels=stop - start),
            inner,
            replace(result, out_channels=stop - start),
        ),
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

    def summed(arrays: Sequence[Array], start: int, stop: int) -> Array:
        total = np.zeros((stop - start, *hull.kernel_shape[1:]))
        for array, geometry in zip(arrays, geometries, strict=True):
            weights.add(total, array, geometry, hull, start)
        return total

    return Kernel(
        _cut(" + ".join(part.text for part in parts)),
        tuple(parts),
        lambda arrays: summed(arrays, 0, hull.out_channels),
        hull,
        rows=lambda start, stop: (
            [(start, stop)] * len(parts),
            lambda arrays: summed(arrays, start, stop),
        ),
    )


def negative(kernel: Kernel) -> Kernel:
    """The kernel with its sign changed."""
    return Kernel(
        f"−{kernel.text}",
        (kernel,),
        lambda parts: -parts[0],
        kernel.geometry,
        rows=alike(1, lambda parts: -parts[0]),
    )


def factors(constant: Vector, channels: int, rank: int) -> Kernel:
    """The map that multiplies each channel by its own entry of a constant."""
    geometry = Geometry.pointwise(channels, rank)
    rest = _rest(geometry)
    return Kernel(
        constant.text,
        (constant,),
        lambda parts: parts[0].reshape(rest),
        geometry,
        rows=alike(1, lambda parts: parts[0].reshape(rest)),
    )


def _cut(text: str) -> str:
    return text if len(text) <= 400 else text[:396] + " …"


def at_taps(kernel: Kernel, taps: Mapping[int, int]) -> Kernel:
    """The kernel at one tap of each of some spatial axes, those axes left out."""
    g = kernel.geometry
    axes = tuple(axis for at, axis in enumerate(g.axes) if at not in taps)
    index = tuple(taps.get(at, slice(None)) for at in range(len(g.axes)))

    def compute(parts: Sequence[Array]) -> Array:
        return parts[0][(slice(None), slice(None), *index)]

    return Kernel(kernel.text, (kernel,), compute, replace(g, axes=axes), rows=alike(1, compute))


def reranked(kernel: Kernel, rank: int) -> Kernel:
    """A kernel of one tap on ``rank`` spatial axes instead of its own."""
    g = replace(kernel.geometry, axes=(geo.IDENTITY,) * rank)
    rest = _rest(g)

    def compute(parts: Sequence[Array]) -> Array:
        return parts[0].reshape(rest)

    return Kernel(kernel.text, (kernel,), compute, g, kernel.identity, rows=alike(1, compute))


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
        lambda parts: repeat(parts[0], around, within).reshape(wide.kernel_shape),
        wide,
        kernel.identity,
    )


def restrict(kernel: Kernel, outs: slice, ins: slice, groups: int) -> Kernel:
    """The rows ``outs`` and the input columns ``ins`` of a kernel, left with ``groups``."""
    g = kernel.geometry
    part = Geometry(ins.stop - ins.start, outs.stop - outs.start, groups, g.axes)
    return Kernel(
        kernel.text,
        (kernel,),
        lambda parts: weights.restrict(parts[0], outs, ins),
        part,
        rows=lambda start, stop: (
            [(outs.start + start, outs.start + stop)],
            lambda parts: weights.restrict(parts[0], slice(None), ins),
        ),
    )


def column(constant: Vector, channels: int, rank: int) -> Kernel:
    """The map of one channel of ones onto a constant."""
    geometry = Geometry(1, channels, 1, (geo.IDENTITY,) * rank)
    rest = _rest(geometry)
    return Kernel(
        f"{constant.text}·1",
        (constant,),
        lambda parts: parts[0].reshape(rest),
        geometry,
        rows=alike(1, lambda parts: parts[0].reshape(rest)),
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

    return Kernel(
        _cut(f"{left.text} + {right.text}"), (left, right), compute, result, rows=alike(2, compute)
    )


def beside(result: Geometry, parts: Sequence[Kernel]) -> Kernel:
    """Dense kernels of equal axes over channels that follow each other: one map of them all."""
    rest = _rest(result)

    def compute(arrays: Sequence[Array]) -> Array:
        return np.concatenate(list(arrays), axis=1).reshape(rest)

    return Kernel(
        _cut(" + ".join(part.text for part in parts)),
        tuple(parts),
        compute,
        result,
        rows=alike(len(parts), compute),
    )


def stack(result: Geometry, parts: Sequence[Kernel]) -> Kernel:
    """Kernels of equal axes one above the other: the concatenation of their outputs."""
    rest = _rest(result)
    sizes = [part.geometry.out_channels for part in parts]

    def compute(arrays: Sequence[Array]) -> Array:
        return np.concatenate(list(arrays)).reshape(rest)

    return Kernel(
        _cut("[" + ", ".join(part.text for part in parts) + "]"),
        tuple(parts),
        compute,
        result,
        rows=lambda start, stop: (shares(sizes, start, stop), compute),
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
