"""Kernels in pieces: a run of output channels is that run of the whole, and reads no more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_graphs import make

from onnxfuse import emit
from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra.geometry import Axis, Geometry
from onnxfuse.evaluate import evaluate, parts
from onnxfuse.evaluate.parts import Parts
from onnxfuse.fusing import _worked
from onnxfuse.options import Options
from onnxfuse.watch import Watch

CHANNELS = 6


def kernel(geometry: Geometry, seed: int) -> ex.Kernel:
    """A kernel of small whole numbers, which is read by runs as it is whole."""
    array = np.random.default_rng(seed).integers(-4, 5, geometry.kernel_shape).astype(float)
    return ex.leaf("K", geometry, lambda: array, lambda start, stop: array[start:stop])


def constant(seed: int) -> ex.Vector:
    values = np.random.default_rng(seed).integers(-4, 5, CHANNELS).astype(float)
    return ex.vector("b", CHANNELS, lambda: values)


def window(taps: int) -> tuple[Axis, ...]:
    return (Axis.window(taps, stride=1, dilation=1, begin=taps // 2, end=taps // 2),)


@st.composite
def kernels(draw: st.DrawFn) -> ex.Kernel:
    groups = draw(st.sampled_from([1, 2, 3, 6]))
    return kernel(
        Geometry(CHANNELS, CHANNELS, groups, window(draw(st.sampled_from([1, 3])))),
        draw(st.integers(0, 99)),
    )


def summed(left: ex.Kernel, right: ex.Kernel) -> ex.Kernel:
    return ex.add(geo.hull(left.geometry, right.geometry), [left, right])


TWO: list[Callable[[ex.Kernel, ex.Kernel], ex.Kernel]] = [
    ex.compose,
    summed,
    lambda a, b: ex.stack(
        Geometry(CHANNELS, 2 * CHANNELS, 1, b.geometry.axes),
        [kernel(Geometry(CHANNELS, CHANNELS, 1, b.geometry.axes), s) for s in (1, 2)],
    ),
    lambda a, b: ex.compose(ex.factors(constant(3), CHANNELS, 1), a),
    lambda a, b: ex.compose(a, ex.factors(constant(3), CHANNELS, 1)),
    lambda a, b: ex.negative(summed(a, ex.identity(CHANNELS, 1))),
    lambda a, b: ex.widen(a, 2, CHANNELS + 3),
]
VECTORS: list[Callable[[ex.Kernel], ex.Vector | None]] = [
    lambda k: ex.response(k, constant(1)),
    lambda k: ex.total(ex.response(k, constant(1)), constant(2)),
    lambda k: ex.negate(ex.response(k, constant(1))),
    lambda k: ex.join([(constant(1), CHANNELS), (None, 2), (ex.response(k, constant(2)), 6)]),
    lambda k: ex.take(ex.response(k, constant(1)), slice(1, 5)),
]


def assert_cut(value: ex.Lazy, cut: st.DataObject) -> None:
    whole = ex.fold(value)
    start = cut.draw(st.integers(0, len(whole) - 1))
    stop = cut.draw(st.integers(start + 1, len(whole)))
    np.testing.assert_array_equal(ex.fold(value, {}, (start, stop)), whole[start:stop])


@given(st.sampled_from(TWO), kernels(), kernels(), st.data())
def test_a_run_of_a_kernel_is_that_run_of_the_whole(make, left, right, cut):
    assert_cut(make(left, right), cut)
    assert_cut(make(make(left, right), right) if make in (ex.compose, summed) else left, cut)


@given(st.sampled_from(VECTORS), kernels(), st.data())
def test_a_run_of_a_constant_is_that_run_of_the_whole(make, held, cut):
    value = make(held)
    assert value is not None
    assert_cut(value, cut)


def test_a_run_reads_no_kernel_whole():
    geometry = Geometry(CHANNELS, CHANNELS, 1, window(3))
    read: list[tuple[int, int]] = []

    def part(start: int, stop: int) -> np.ndarray:
        read.append((start, stop))
        return np.ones((stop - start, *geometry.kernel_shape[1:]))

    def whole() -> np.ndarray:
        raise AssertionError("a kernel is read whole")

    leaf = ex.leaf("K", geometry, whole, part)
    value = summed(ex.compose(ex.factors(constant(1), CHANNELS, 1), leaf), ex.identity(CHANNELS, 1))
    memo: dict[int, np.ndarray] = {}
    ex.fold(value, memo, (2, 4))
    ex.fold(ex.response(value, constant(2)), memo, (2, 4))
    assert read == [(2, 4), (2, 4)]
    assert sum(array.size for array in memo.values()) <= 2 * CHANNELS


@pytest.mark.parametrize("chunk", range(4))
def test_every_weight_of_a_fused_model_in_pieces(chunk, monkeypatch):
    compared = 0
    for seed in range(1000 * chunk, 1000 * chunk + 25):
        sample = make(seed, blocks=1)
        done = _worked(sample.model, Options(), Watch(), dry=False)[1]
        weights = [w for p in done.passes for r in p.replacements for w in r.weights.values()]
        whole = [weight.value for weight in weights]
        with monkeypatch.context() as patched:
            patched.setattr(emit, "LARGE", 8)
            patched.setattr(emit, "PIECE", 8)
            for weight, array in zip(weights, whole, strict=True):
                weight.forget()
                np.testing.assert_allclose(weight.value, array, rtol=1e-13, atol=1e-13)
                compared += sum(1 for _ in weight.runs()) > 1
    assert compared > 5


WINDOWED = {"pads": [1, 1, 1, 1], "strides": [2, 1], "dilations": [1, 2]}


@pytest.mark.parametrize(
    ("kind", "attributes", "data", "held"),
    [
        ("Conv", WINDOWED, (2, 6, 7, 8), (9, 6, 3, 3)),
        ("Conv", {**WINDOWED, "group": 3}, (2, 6, 7, 8), (9, 2, 3, 3)),
        ("Conv", {"group": 6}, (1, 6, 5), (12, 1, 3)),
        ("ConvTranspose", WINDOWED, (2, 6, 5, 6), (6, 9, 3, 3)),
        ("ConvTranspose", {"group": 3}, (2, 6, 5), (6, 4, 3)),
        ("Gemm", {"transB": 1, "alpha": 0.5}, (3, 6), (9, 6)),
        ("Gemm", {}, (3, 6), (6, 9)),
        ("MatMul", {}, (2, 3, 6), (6, 9)),
        ("MatMul", {}, (2, 3, 6), (1, 6, 9)),
    ],
)
@pytest.mark.parametrize("most", [1, 20, 60])
def test_operators_read_their_kernels_in_pieces(kind, attributes, data, held, most, monkeypatch):
    from onnxfuse.evaluate import linear

    generator = np.random.default_rng(1)
    x, w = (generator.integers(-4, 5, shape).astype(float) for shape in (data, held))
    expected = evaluate(kind, attributes, [x, w])[0]
    for room in (parts, linear):
        monkeypatch.setattr(room, "PIECE", most)
    longest = 0

    def take(axis: int, start: int, stop: int) -> np.ndarray:
        nonlocal longest
        found = w[(slice(None),) * axis + (slice(start, stop),)]
        longest = max(longest, found.size)
        return found

    actual = evaluate(kind, attributes, [x, Parts(w.shape, w.dtype, take)])[0]
    np.testing.assert_array_equal(actual, expected)
    whole = kind == "ConvTranspose" and attributes.get("group", 1) > 1
    assert whole or longest <= max(most, w.size // min(w.shape[0], w.shape[-1]))
