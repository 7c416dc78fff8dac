"""Constants that vary in space, padding in other nodes, pools that leave padding out, interiors."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    EXACT,
    FEW,
    Conv,
    SizeError,
    convs,
    holds,
    integers,
    lengths,
    run,
    sizes,
    source,
    unpadded,
    value,
)

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import weights
from onnxfuse.algebra.commuting import Pool, applied
from onnxfuse.algebra.form import Facts, Form, Outer, interior
from onnxfuse.algebra.geometry import Axis, Geometry, hull_axis
from onnxfuse.algebra.laws import Scale, Sum
from onnxfuse.algebra.layouts import Permute, Squeeze, Unsqueeze
from onnxfuse.algebra.maps import AddMap
from onnxfuse.algebra.padding import Frame, Pad, Strip
from onnxfuse.refusal import Code, Refusal

POINT = Conv(Geometry(4, 4, 1, (Axis(),) * 2), integers(1, 4, 4, 1, 1), integers(2, 4))
WIDE = Conv(Geometry(4, 4, 1, (Axis.window(3),) * 2), integers(3, 4, 4, 3, 3), integers(4, 4))
LARGER = Conv(Geometry(4, 6, 2, (Axis.window(3, begin=1, end=1),) * 2), integers(5, 6, 2, 3, 3))


def zero_padded(x: np.ndarray) -> np.ndarray:
    return np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])


def framed(inside: np.ndarray, around: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (1, C, *size) with one value per channel inside a border of one, another on it."""
    full = np.zeros((1, len(inside), *size)) + around.reshape(-1, 1, 1)
    full[..., 1:-1, 1:-1] = inside.reshape(-1, 1, 1)
    return full


def test_pad_and_map_is_the_border_of_bnandpad():
    """``Pad(1×1 + b) + map``, the map holding b around zeros: the pad of the response to zero."""
    known = (5, 6)
    added = framed(np.zeros(4), POINT.bias, (7, 8))
    form = POINT.law.apply([source(4, 2, known)], EXACT)
    form = Pad((0, 0, 1, 1), (0, 0, 1, 1)).apply([form], EXACT)
    form = AddMap("m", added.shape, lambda: added).apply([form], EXACT)
    assert not form.border
    assert form.matched
    assert not form.known
    form = WIDE.law.apply([form], EXACT)
    assert holds(form, lambda x: run([WIDE], zero_padded(run([POINT], x)) + added), 2, known, x=4)
    assert form.terms[0].kernel.geometry.axes == (Axis.window(3, begin=1, end=1),) * 2


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "shape", [(1, 4, 7, 8), (1, 1, 7, 8), (1, 4, 1, 8), (1, 4, 7, 1), (1, 1, 1, 8)]
)
def test_any_map_is_carried_through_what_follows(shape, sign):
    known = (7, 8)
    added = integers(9, *shape)
    form = POINT.law.apply([source(4, 2, known)], EXACT)
    form = AddMap("m", shape, lambda: added, sign).apply([form], EXACT)

    def expected(x: np.ndarray) -> np.ndarray:
        return run([POINT], x) + sign * added

    assert holds(form, expected, 2, known, x=4)
    for reader in (WIDE, LARGER):
        read = reader.law.apply([form], EXACT)
        assert holds(read, lambda x, r=reader: run([r], expected(x)), 2, known, x=4)
    scaled = Scale("s", 1, 4, lambda: integers(3, 4), lambda: integers(4, 4)).apply([form], EXACT)
    twice = Sum((1, -1)).apply([scaled, form], EXACT)
    factor, shift = (integers(n, 4).reshape(-1, 1, 1) for n in (3, 4))
    assert holds(
        twice, lambda x: expected(x) * factor + shift - expected(x), 2, known, x=4
    )  # fmt: skip


def test_a_map_that_nothing_computed_yet_is_not_looked_into():
    def never() -> np.ndarray:
        raise AssertionError

    form = AddMap("m", (1, 4, 7, 8), never, readable=False).apply([source(4, 2, (7, 8))], EXACT)
    assert isinstance(form, Form)
    assert [term.source.name for term in form.known] == ["m"]


def test_a_map_needs_certain_sizes_and_widens_nothing():
    unknown = AddMap("m", (1, 4, 7, 8), lambda: integers(1, 1, 4, 7, 8))
    refused = unknown.apply([source(4, 2, None)], EXACT)
    assert isinstance(refused, Refusal)
    assert refused.code == Code.UNKNOWN_SHAPE
    for known, channels in (((7, 1), 4), ((7, 8), 1)):
        refused = unknown.apply([source(channels, 2, known)], EXACT)
        assert isinstance(refused, Refusal)
        assert refused.code == Code.BROADCAST


def test_a_map_follows_a_transposed_tensor():
    added = integers(9, 1, 7, 8, 4)
    form = Permute((0, 2, 3, 1)).apply([source(4, 2, (7, 8))], EXACT)
    form = AddMap("m", added.shape, lambda: added).apply([form], EXACT)
    assert holds(form, lambda x: x.transpose(0, 2, 3, 1) + added, 2, (7, 8), x=4)
    assert not form.known[0].source.stands


@given(st.integers(0, 2), st.integers(0, 2), st.booleans(), st.booleans(), st.data())
@settings(max_examples=80)
def test_strips_joined_by_concat(begin, end, matches, scalar, data):
    """Strips that hold the bias pad the linear part; others are planes for what follows."""
    known = data.draw(lengths(1))
    layer = data.draw(convs(1, 4, 4))
    bias = np.zeros(4) if layer.bias is None else layer.bias
    strip = bias + (0 if matches else 2)
    if scalar:
        strip = np.full(4, strip[0])
    form = layer.law.apply([source(4, 1, known)], EXACT)
    sides = [Strip(w, None if scalar else 1, lambda: strip[:1] if scalar else strip) if w else None
             for w in (begin, end)]  # fmt: skip
    form = Frame(2, *sides).apply([form], EXACT)

    def expected(x: np.ndarray) -> np.ndarray:
        y = run([layer], x)
        parts = [np.zeros((len(x), 4, w)) + strip.reshape(-1, 1) for w in (begin, end)]
        return np.concatenate([parts[0], y, parts[1]], axis=2)

    reader = unpadded(data.draw(convs(1, 4, 4)))
    if isinstance(form, Form) and form.border:
        read = reader.law.apply([form], EXACT)
        holds(read, lambda x: run([reader], expected(x)), 1, known, x=4)
        return
    holds(form, expected, 1, known, x=4)


def test_strips_along_the_channels_or_that_vary_are_refused():
    strip = Strip(1, 2, lambda: np.ones(5))
    for axis, code in ((1, Code.UNSUPPORTED), (3, Code.BROADCAST)):
        refused = Frame(axis, strip, None).apply([source(4, 2, (5, 5))], EXACT)
        assert isinstance(refused, Refusal)
        assert refused.code == code


def test_padding_between_unsqueeze_and_squeeze():
    """Pad2D of PaddlePaddle: a 5-D Pad of a tensor with one more axis."""
    form = Unsqueeze((2,)).apply([source(4, 2, None)], EXACT)
    crossing = Pad((0, 0, 1, 0, 0), (0, 0, 0, 0, 0)).apply([form], EXACT)
    assert isinstance(crossing, Refusal)
    assert crossing.code == Code.BROADCAST
    form = Pad((0, 0, 0, 1, 1), (0, 0, 0, 1, 1)).apply([form], EXACT)
    form = Squeeze((2,)).apply([form], EXACT)
    assert holds(form, zero_padded, 2, None, x=4)


def test_an_axis_of_one_may_go_and_come_back():
    form = LARGER.law.apply([source(4, 2, (1, 6))], EXACT)
    squeezed = Squeeze((2,)).apply([form], EXACT)
    assert squeezed.layout == (0, 1, 3)
    back = Unsqueeze((2,)).apply([squeezed], EXACT)
    assert holds(back, lambda x: run([LARGER], x), 2, (1, 6), x=4)
    for known, axes, code in (
        ((2, 6), (2,), Code.UNKNOWN_SHAPE), ((1, 6), (1,), Code.UNSUPPORTED)
    ):  # fmt: skip
        refused = Squeeze(axes).apply([source(4, 2, known)], EXACT)
        assert isinstance(refused, Refusal)
        assert refused.code == code


def averaged(x: np.ndarray, axes: tuple[Axis, ...]) -> np.ndarray:
    """Each window's mean over its real pixels, by definition."""
    out = [axis.length(n) for axis, n in zip(axes, x.shape[2:], strict=True)]
    if min(out) < 1:
        raise SizeError
    y = np.zeros((*x.shape[:2], *out))
    for place in product(*map(range, out)):
        window = tuple(
            slice(max(a.stride * p + a.start, 0), max(a.stride * p + a.start + a.taps, 0))
            for a, p in zip(axes, place, strict=True)
        )
        y[(..., *place)] = x[(..., *window)].mean(axis=(2, 3))
    return y


def pool_law(axes: tuple[Axis, ...]) -> Pool:
    geometry = Geometry(4, 4, 4, axes)
    count = int(np.prod(geometry.taps))
    kernel = ex.leaf("P", geometry, lambda: np.full(geometry.kernel_shape, 1 / count))
    return Pool(Outer("AveragePool", axes, {}), kernel)


@given(st.integers(2, 3), st.integers(1, 2), st.integers(0, 1), st.integers(0, 1))
@FEW
def test_an_affine_passes_a_pool_that_leaves_padding_out(taps, stride, begin, end):
    axes = (Axis.window(taps, stride=stride, begin=begin, end=end),) * 2
    scale, shift = integers(6, 4), integers(7, 4)
    form = POINT.law.apply([source(4, 2, None)], EXACT)
    form = applied(pool_law(axes), [form], EXACT)
    form = applied(Scale("BN", 1, 4, lambda: scale, lambda: shift), [form], EXACT)
    assert form.outer is not None
    for size in sizes(2, None):
        x = integers(5, 2, 4, *size)
        try:
            pooled = averaged(run([POINT], x), axes)
        except SizeError:
            continue
        expected = pooled * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)
        np.testing.assert_allclose(averaged(value(form, x=x), axes), expected, atol=1e-12)


def test_nothing_but_an_affine_passes_such_a_pool():
    axes = (Axis.window(3, begin=1, end=1),) * 2
    form = applied(pool_law(axes), [source(4, 2, (6, 6))], EXACT)
    for law, others in ((WIDE.law, []), (Sum((1, 1)), [source(4, 2, (6, 6))])):
        refused = applied(law, [form, *others], EXACT)
        assert isinstance(refused, Refusal)
        assert refused.code == Code.EXCLUDE_PAD


@given(st.integers(1, 2), st.data())
@settings(max_examples=100)
def test_an_approximation_is_exact_in_its_interior(rank, data):
    """A bias before zero padding, merged as published: equal wherever no window leaves."""
    facts = Facts(2.0**-53, interior_only=True)
    known = data.draw(lengths(rank))
    point = Conv(Geometry(4, 4, 1, (Axis(),) * rank), integers(1, 4, 4, *[1] * rank), np.ones(4))
    layers = [point, data.draw(convs(rank, 4, 4)), unpadded(data.draw(convs(rank, 4)))]
    form = source(4, rank, known)
    for layer in layers:
        form = layer.law.apply([form], facts)
        assert isinstance(form, Form)
    assert not form.known
    for size in sizes(rank, known):
        x = integers(5, 2, 4, *size)
        try:
            expected, actual = run(layers, x), value(form, x=x)
        except SizeError:
            continue
        inside = tuple(slice(r.start, max(r.stop, r.start)) for r in interior(form, {"x": size}))
        np.testing.assert_array_equal(actual[(..., *inside)], expected[(..., *inside)])
        if not form.interior_only:
            np.testing.assert_array_equal(actual, expected)


@given(st.integers(1, 2), st.data())
@FEW
def test_a_map_of_an_array_is_what_the_definition_says(rank, data):
    layer = data.draw(convs(rank, 4, data.draw(st.sampled_from([0, 4]))))
    for size in sizes(rank, None):
        x = integers(5, 1, 4, *size)
        try:
            expected = Conv(layer.geometry, layer.kernel).of(x)
        except SizeError:
            continue
        np.testing.assert_array_equal(weights.apply(layer.kernel, layer.geometry, x), expected)


@given(st.data())
@FEW
def test_kernels_widened_and_side_by_side(data):
    layer = data.draw(convs(1, 4, 4, 1, -1))
    kernel = ex.leaf("K", layer.geometry, lambda: layer.kernel)
    x = integers(5, 2, 4, 9)
    wide = ex.widen(kernel, 2, 8)
    found = Conv(wide.geometry, ex.fold(wide)).of(x)
    np.testing.assert_array_equal(found[:, 2:6], Conv(layer.geometry, layer.kernel).of(x))
    assert not found[:, :2].any()
    assert not found[:, 6:].any()
    one = ex.column(ex.vector("b", 4, lambda: integers(6, 4)), 4, 1)
    if layer.geometry.groups == 1:
        box = Geometry(5, 4, 1, (hull_axis(layer.geometry.axes[0], Axis()),))
        joined = ex.append(box, kernel, one)
        together = np.concatenate([x, np.ones((2, 1, 9))], axis=1)
        parts = Conv(layer.geometry, layer.kernel).of(x) + integers(6, 4).reshape(-1, 1)
        np.testing.assert_array_equal(Conv(box, ex.fold(joined)).of(together), parts)
