"""Kernels against their definition, tap by tap, on integer-valued float64."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra import padded, weights
from onnxfuse.algebra.geometry import Axis, Geometry

Taps = dict[tuple[int, ...], np.ndarray]


def dense(kernel: np.ndarray, groups: int) -> np.ndarray:
    """The kernel with one group, entry by entry."""
    out, per_group = kernel.shape[:2]
    wide = np.zeros((out, per_group * groups, *kernel.shape[2:]))
    for o, c in product(range(out), range(per_group)):
        wide[o, o // (out // groups) * per_group + c] = kernel[o, c]
    return wide


def matrices(kernel: np.ndarray, geometry: Geometry) -> Taps:
    """The matrix (O, C) at each input offset that output 0 reads; zero ones left out."""
    assert kernel.shape == geometry.kernel_shape
    found: Taps = {}
    for tap in product(*map(range, geometry.taps)):
        offset = tuple(a.start + a.dilation * t for a, t in zip(geometry.axes, tap, strict=True))
        matrix = dense(kernel, geometry.groups)[(..., *tap)]
        if np.any(matrix):
            found[offset] = matrix
    return found


def assert_same(left: Taps, right: Taps) -> None:
    assert left.keys() == right.keys()
    for offset, matrix in left.items():
        np.testing.assert_array_equal(matrix, right[offset])


@st.composite
def windows(draw: st.DrawFn, rank: int, stride: int | None = None) -> tuple[Axis, ...]:
    return tuple(
        Axis.window(
            draw(st.integers(1, 3)),
            stride=stride or draw(st.integers(1, 3)),
            dilation=draw(st.integers(1, 3)),
            begin=draw(st.integers(-2, 3)),
            end=draw(st.integers(-2, 3)),
        )
        for _ in range(rank)
    )


@st.composite
def kernels(draw: st.DrawFn, geometry: Geometry) -> np.ndarray:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return generator.integers(-3, 4, geometry.kernel_shape).astype(np.float64)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Geometry, np.ndarray, Geometry, np.ndarray]:
    """An inner and an outer map that fit, with any groups; pointwise ones included."""
    rank = draw(st.integers(0, 2))
    middle = draw(st.sampled_from([4, 6]))
    divisors = [g for g in range(1, middle + 1) if middle % g == 0]
    sides = []
    for first in (True, False):
        groups = draw(st.sampled_from(divisors))
        other = groups * draw(st.integers(1, 2))
        channels = (other, middle) if first else (middle, other)
        geometry = Geometry(*channels, groups, draw(windows(rank)))
        if draw(st.integers(0, 4)) == 0:
            geometry = Geometry.pointwise(middle, rank)
        sides += [geometry, draw(kernels(geometry))]
    return tuple(sides)


@given(pairs())
def test_compose_is_the_sum_over_the_channels_between(pair):
    inner_g, inner, outer_g, outer = pair
    result = geo.compose(outer_g, inner_g)
    composed = weights.compose(outer, inner, outer_g, inner_g, result)
    expected: Taps = defaultdict(lambda: np.zeros((result.out_channels, result.in_channels)))
    for (u, second), (t, first) in product(
        matrices(outer, outer_g).items(), matrices(inner, inner_g).items()
    ):
        strides = [axis.stride for axis in inner_g.axes]
        expected[tuple(s * a + b for s, a, b in zip(strides, u, t, strict=True))] += second @ first
    nonzero = {offset: matrix for offset, matrix in expected.items() if np.any(matrix)}
    assert_same(matrices(composed, result), nonzero)


@given(pairs())
def test_the_expression_composes_like_the_arrays(pair):
    inner_g, inner, outer_g, outer = pair
    kernel = ex.compose(
        ex.leaf("L2", outer_g, lambda: outer), ex.leaf("L1", inner_g, lambda: inner)
    )
    result = geo.compose(outer_g, inner_g)
    assert kernel.geometry == result
    np.testing.assert_array_equal(
        ex.fold(kernel), weights.compose(outer, inner, outer_g, inner_g, result)
    )


@pytest.mark.parametrize(
    ("groups", "target"), [(g, t) for g in (1, 2, 3, 6) for t in (1, 2, 3, 6) if g % t == 0]
)
def test_regroup_writes_zeros_between(groups, target):
    kernel = np.random.default_rng(groups).integers(1, 9, (12, 6 // groups, 2)).astype(np.float64)
    wide = weights.regroup(kernel, groups, target)
    assert wide.shape == (12, 6 // target, 2)
    np.testing.assert_array_equal(dense(wide, target), dense(kernel, groups))


@given(st.integers(1, 2), st.integers(0, 99), st.data())
def test_rows_are_embedded_and_added_as_the_whole_is(rank, seed, data):
    part = Geometry(12, 12, data.draw(st.sampled_from([1, 2, 3, 6, 12])), data.draw(windows(rank)))
    target = data.draw(st.sampled_from([g for g in (1, 2, 3, 6, 12) if part.groups % g == 0]))
    other = Geometry(12, 12, target, tuple(replace(axis, taps=1) for axis in part.axes))
    hull = geo.hull(part, other)
    kernel = np.random.default_rng(seed).integers(1, 9, part.kernel_shape).astype(np.float64)
    whole = weights.embed(kernel, part, hull)
    start = data.draw(st.integers(0, 11))
    stop = data.draw(st.integers(start + 1, 12))
    rows = weights.embed(kernel[start:stop], part, hull, start)
    np.testing.assert_array_equal(rows, whole[start:stop])
    total = np.ones_like(rows)
    weights.add(total, kernel[start:stop], part, hull, start)
    np.testing.assert_array_equal(total, rows + 1)


@given(st.integers(1, 2), st.integers(1, 3), st.data())
def test_embed_keeps_every_tap_where_it_reads(rank, stride, data):
    first, second = (
        Geometry(4, 4, data.draw(st.sampled_from([1, 2, 4])), data.draw(windows(rank, stride)))
        for _ in range(2)
    )
    kernel = data.draw(kernels(first))
    hull = geo.hull(first, second)
    assert_same(matrices(weights.embed(kernel, first, hull), hull), matrices(kernel, first))


@given(st.integers(1, 2), st.integers(1, 3), st.data())
def test_add_is_the_sum_of_the_matrices(rank, stride, data):
    geometries = [
        Geometry(4, 4, data.draw(st.sampled_from([1, 2, 4])), data.draw(windows(rank, stride)))
        for _ in range(2)
    ]
    arrays = [data.draw(kernels(geometry)) for geometry in geometries]
    hull = geo.hull(*geometries)
    leaves = [ex.leaf("L", g, lambda a=a: a) for g, a in zip(geometries, arrays, strict=True)]
    expected: Taps = defaultdict(lambda: np.zeros((4, 4)))
    for array, geometry in zip(arrays, geometries, strict=True):
        for offset, matrix in matrices(array, geometry).items():
            expected[offset] = expected[offset] + matrix
    nonzero = {offset: matrix for offset, matrix in expected.items() if np.any(matrix)}
    assert_same(matrices(ex.fold(ex.add(hull, leaves)), hull), nonzero)


@given(st.integers(1, 2), st.one_of(st.none(), st.integers(1, 20)), st.data())
def test_materialise_keeps_every_tap_where_it_reads(rank, x, data):
    geometry = Geometry(4, 2, 2, data.draw(windows(rank)))
    kernel = data.draw(kernels(geometry))
    real = padded.materialise(geometry, (x,) * rank)
    assert all(min(axis.pads) >= 0 for axis in real.axes)
    assert_same(matrices(weights.embed(kernel, geometry, real), real), matrices(kernel, geometry))


@pytest.mark.parametrize(
    ("outs", "ins", "groups"),
    [
        (slice(0, 6), slice(0, 4), 2),
        (slice(3, 6), slice(2, 4), 1),
        (slice(6, 12), slice(4, 8), 2),
        (slice(4, 5), slice(2, 4), 1),  # one row of one group
        (slice(3, 6), slice(3, 4), 1),  # one column of one group
    ],
)
def test_restrict_takes_rows_and_columns(outs, ins, groups):
    geometry = Geometry(8, 12, 4, (Axis.window(3),))
    kernel = np.arange(72.0).reshape(geometry.kernel_shape)
    part = weights.restrict(kernel, outs, ins)
    np.testing.assert_array_equal(dense(part, groups), dense(kernel, 4)[outs, ins])


@given(pairs())
def test_response_is_the_sum_of_the_matrices(pair):
    geometry, kernel = pair[:2]
    constant = np.arange(1.0, geometry.in_channels + 1)
    shape = (geometry.out_channels, geometry.in_channels)
    total = sum(matrices(kernel, geometry).values(), np.zeros(shape))
    found = weights.response(kernel, geometry, constant)
    np.testing.assert_array_equal(found, total @ constant)


def test_a_chain_of_5000_folds_without_recursion():
    geometry = Geometry.pointwise(2, 1)
    kernel = ex.leaf("a", geometry, lambda: np.array([1.0, -1.0]))
    chain = kernel
    constant = ex.vector("b", 2, lambda: np.array([3.0, 4.0]))
    for _ in range(5000):
        chain = ex.compose(kernel, chain)
        constant = ex.negate(constant)
    assert np.array_equal(ex.fold(chain).reshape(-1), [1.0, -1.0])
    assert np.array_equal(ex.fold(constant), [3.0, 4.0])
    assert len(chain.text) < 1000


def test_shared_parts_are_computed_once_and_kernels_read_only_when_folded():
    reads = []
    geometry = Geometry.pointwise(1, 1)
    total = ex.leaf("t", geometry, lambda: reads.append(1) or np.ones(1))
    for _ in range(40):  # t + t, forty times: 2^40 paths
        total = ex.add(geometry, [total, total])
    assert not reads
    assert ex.fold(total).item() == 2.0**40
    assert len(reads) == 1


def test_constants_join_and_part():
    first = ex.vector("a", 2, lambda: np.array([1.0, 2.0]))
    joined = ex.join([(None, 1), (first, 2), (None, 2)])
    assert np.array_equal(ex.fold(joined), [0, 1, 2, 0, 0])
    assert np.array_equal(ex.fold(ex.take(joined, slice(1, 3))), [1, 2])
    assert np.array_equal(ex.fold(ex.total(None, first, first)), [2, 4])
    assert np.array_equal(ex.fold(ex.vector("s", 3, lambda: np.array(7.0))), [7, 7, 7])
    assert ex.join([(None, 2), (None, 1)]) is ex.total(None) is ex.take(None, slice(0, 1)) is None
