"""Float64 kernels: compose, embed, restrict and stack.

A kernel of groups ``g`` has shape ``(O, C/g, *taps)`` and is never made denser than its
geometry says. This room knows arrays and geometry; it never knows cost or graphs.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfuse.algebra.geometry import Geometry, tap_positions

Array = NDArray[np.float64]


def regroup(kernel: Array, groups: int, target: int, start: int = 0, out: int = 0) -> Array:
    """The kernel of ``groups`` groups written with fewer ``target`` groups, zeros between.

    Shapes: ``(O, C/groups, *taps)`` to ``(O, C/target, *taps)``; or the rows from ``start`` on of
    one with ``out`` output channels.
    """
    if groups == target:
        return kernel
    count, per_group, *taps = kernel.shape
    wide = np.zeros((count, groups // target * per_group, *taps))
    wide[_columns(count, per_group, groups // target, (out or count) // groups, start)] = kernel
    return wide


def _columns(
    count: int, per_group: int, merge: int, rows: int, start: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where ``count`` rows from ``start`` on stand once so many groups have been ``merge``-d."""
    row = np.arange(count)
    first = (start + row) // rows % merge * per_group
    return row[:, None], first[:, None] + np.arange(per_group)


def embed(kernel: Array, part: Geometry, hull: Geometry, start: int = 0) -> Array:
    """The kernel of ``part``, or its rows from ``start`` on, on the grid and groups of ``hull``."""
    if part.axes == hull.axes:
        return regroup(kernel, part.groups, hull.groups, start, part.out_channels)
    wide = np.zeros((len(kernel), *hull.kernel_shape[1:]))
    add(wide, kernel, part, hull, start)
    return wide


def add(total: Array, kernel: Array, part: Geometry, hull: Geometry, start: int = 0) -> None:
    """Add what `embed` gives to a kernel of ``hull``, or its rows from ``start`` on, in place."""
    places: list[slice] = []
    if part.axes != hull.axes:
        places = [tap_positions(h, p) for h, p in zip(hull.axes, part.axes, strict=True)]
    if part.groups == hull.groups:
        total[(slice(None), slice(None), *places)] += kernel
        return
    merge, rows = part.groups // hull.groups, part.out_channels // part.groups
    row, column = _columns(len(kernel), kernel.shape[1], merge, rows, start)
    index: tuple[Any, ...] = (row, column, *places)
    total[index] += kernel


def compose(
    outer: Array, inner: Array, outer_g: Geometry, inner_g: Geometry, result: Geometry
) -> Array:
    """The kernel of ``outer`` after ``inner``.

    ``K[o, c, s1·d2·u + d1·t] = Σ_m K2[o, m, u] · K1[m, c, t]``, group by group (Ding et al.,
    Diverse Branch Block, transforms I and III, for any stride, dilation and groups).
    """
    if outer_g.per_channel:
        return inner * outer.reshape(-1, *[1] * (inner.ndim - 1))
    if inner_g.per_channel:
        return scale_inputs(outer, outer_g, inner.reshape(-1))
    outer = regroup(outer, outer_g.groups, result.groups)
    inner = regroup(inner, inner_g.groups, result.groups)
    groups, out, middle = result.groups, outer.shape[0], outer.shape[1]
    fan_in = inner.shape[1]
    grouped_outer = outer.reshape(groups, out // groups, middle, *outer_g.taps)
    grouped_inner = inner.reshape(groups, middle, fan_in, *inner_g.taps)
    kernel = np.zeros((groups, out // groups, fan_in, *result.taps))
    inner_flat = grouped_inner.reshape(groups, middle, -1)
    for tap in product(*map(range, outer_g.taps)):
        at_tap = grouped_outer.reshape(groups, out // groups, middle, -1)[
            ..., np.ravel_multi_index(tap, outer_g.taps) if tap else 0
        ]
        partial = np.matmul(at_tap, inner_flat)
        places: tuple[slice, ...] = tuple(
            _strided(o.dilation * i.stride * u, i.dilation, i.taps, r.dilation)
            for u, o, i, r in zip(tap, outer_g.axes, inner_g.axes, result.axes, strict=True)
        )
        window = (slice(None), slice(None), slice(None), *places)
        kernel[window] += partial.reshape(groups, out // groups, fan_in, *inner_g.taps)
    return kernel.reshape(out, fan_in, *result.taps)


def _strided(offset: int, dilation: int, taps: int, grid: int) -> slice:
    first, step = offset // grid, max(dilation // grid, 1)
    return slice(first, first + step * (taps - 1) + 1, step)


def scale_inputs(kernel: Array, geometry: Geometry, scale: Array, start: int = 0) -> Array:
    """A kernel, or its rows from ``start`` on, times a factor ``scale`` (C,) for each input."""
    ones = [1] * (kernel.ndim - 2)
    if geometry.groups == 1:
        return kernel * scale.reshape(1, -1, *ones)
    return kernel * _seen(scale, geometry, start, len(kernel)).reshape(*kernel.shape[:2], *ones)


def _seen(vector: Array, geometry: Geometry, start: int, count: int) -> Array:
    """What each of ``count`` rows from ``start`` on reads of a vector (C,): ``(count, C/g)``."""
    row = np.arange(start, start + count) // (geometry.out_channels // geometry.groups)
    seen: Array = vector.reshape(geometry.groups, -1)[row]
    return seen


def transposed(kernel: Array, groups: int) -> Array:
    """A kernel as ConvTranspose stores it, or back: ``(O, C/g, *k)`` and ``(C, O/g, *k)``.

    Channels change places within each group, and the taps their order.
    """
    first, second, *taps = kernel.shape
    grouped = kernel.reshape(groups, first // groups, second, *taps).swapaxes(1, 2)
    flipped = np.flip(grouped, tuple(range(3, 3 + len(taps))))
    return flipped.reshape(groups * second, first // groups, *taps)


def restrict(kernel: Array, outs: slice, ins: slice) -> Array:
    """The rows ``outs`` and the columns ``ins`` of a kernel.

    Either ``outs`` is a run of whole groups and ``ins`` what those groups read, or both lie in
    one group.
    """
    per_group = kernel.shape[1]
    if ins.stop - ins.start >= per_group:
        return kernel[outs]
    first = ins.start % per_group
    return kernel[outs, first : first + ins.stop - ins.start]


def response(kernel: Array, geometry: Geometry, vector: Array, start: int = 0) -> Array:
    """What a constant input ``vector`` (C,) becomes where no border is near: shape (O,).

    Given the rows of a kernel from ``start`` on, theirs.
    """
    sums = kernel.sum(axis=tuple(range(2, kernel.ndim)))
    if geometry.groups == 1:
        summed: Array = np.matmul(sums, vector)
        return summed
    seen: Array = np.einsum("oc,oc->o", sums, _seen(vector, geometry, start, len(sums)))
    return seen


def apply(kernel: Array, geometry: Geometry, x: Array) -> Array:
    """The map of an array ``x`` (1, C, *X), by definition: shape (1, O, *P)."""
    out_lengths = [axis.length(n) for axis, n in zip(geometry.axes, x.shape[2:], strict=True)]
    groups, fan_out = geometry.groups, geometry.out_channels // geometry.groups
    grouped = kernel.reshape(groups, fan_out, -1, *geometry.taps)
    total = np.zeros((groups, fan_out, *out_lengths))
    for tap in product(*map(range, geometry.taps)):
        reads, writes = [], []
        for axis, t, size, out in zip(geometry.axes, tap, x.shape[2:], out_lengths, strict=True):
            offset = axis.start + axis.dilation * t
            first = max(-(offset // axis.stride), 0)
            stop = min(out, (size - 1 - offset) // axis.stride + 1)
            count = max(stop - first, 0)
            begin = offset + axis.stride * first
            reads.append(slice(begin, begin + axis.stride * (count - 1) + 1, axis.stride))
            writes.append(slice(first, first + count))
            if not count:
                reads[-1] = slice(0, 0)
        places = [w.stop - w.start for w in writes]
        seen = x[0][(slice(None), *reads)].reshape(groups, kernel.shape[1], prod(places))
        at_tap = np.moveaxis(grouped, (0, 1, 2), (-3, -2, -1))[tap]
        window = (slice(None), slice(None), *writes)
        total[window] += np.matmul(at_tap, seen).reshape(groups, fan_out, *places)
    return total.reshape(1, geometry.out_channels, *out_lengths)
