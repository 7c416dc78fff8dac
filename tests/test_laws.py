"""Every law against the operators it stands for, run one after the other on integers."""

from __future__ import annotations

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
)

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra import padded, weights
from onnxfuse.algebra.form import Form
from onnxfuse.algebra.geometry import Axis, Geometry
from onnxfuse.algebra.joining import Concat, Select
from onnxfuse.algebra.laws import Scale, Sum
from onnxfuse.algebra.layouts import Permute
from onnxfuse.evaluate.linear import conv
from onnxfuse.refusal import Code, Refusal


@given(st.integers(1, 2), st.data())
@settings(max_examples=150)
def test_sequence(rank, data):
    known = data.draw(lengths(rank))
    inner = data.draw(convs(rank, 4, 4))
    outer = data.draw(convs(rank, 4))
    form = source(4, rank, known)
    for layer in (inner, outer):
        if not isinstance(form, Refusal):
            form = layer.law.apply([form], EXACT)
    holds(form, lambda x: run([inner, outer], x), rank, known, x=4)


@given(st.integers(1, 2), st.data())
@FEW
def test_sequence_of_three_pads_once_in_front(rank, data):
    """What exporters write most: one padded map, then unpadded ones, biases everywhere."""
    known = data.draw(lengths(rank))
    layers = [data.draw(convs(rank, 4, 4)) for _ in range(3)]
    layers[1:] = [unpadded(layer) for layer in layers[1:]]
    form = source(4, rank, known)
    for layer in layers:
        form = layer.law.apply([form], EXACT)
        assert isinstance(form, Form)
    assert holds(form, lambda x: run(layers, x), rank, known, x=4)


@pytest.mark.parametrize("known", [None, (8, 8), (9, 7)])
def test_a_stride_2_pair_is_one_map_at_every_size(known):
    """ResNet-D's shortcut: AveragePool 2×2 / 2, then 1×1 with a bias."""
    pool = Conv(Geometry(4, 4, 4, (Axis.window(2, stride=2),) * 2), np.ones((4, 1, 2, 2)))
    point = Conv(Geometry(4, 6, 1, (Axis(),) * 2), integers(1, 6, 4, 1, 1), integers(2, 6))
    form = pool.law.apply([source(4, 2, known)], EXACT)
    form = point.law.apply([form], EXACT)
    assert holds(form, lambda x: run([pool, point], x), 2, known, x=4)
    assert form.terms[0].kernel.geometry.axes == (Axis.window(2, stride=2),) * 2


@given(st.integers(1, 2), st.integers(1, 2), st.integers(-3, 2), st.booleans(), st.data())
@settings(max_examples=150)
def test_sum(rank, stride, slack, same, data):
    """Branches of equal stride; where ``same``, of equal length at every size."""
    known = data.draw(lengths(rank))
    form = source(4, rank, known)
    slack = slack if same else None
    branches = [data.draw(convs(rank, 4, 4, stride, slack)) for _ in range(3)]
    signs = tuple(data.draw(st.sampled_from([1, -1])) for _ in branches)
    forms = [branch.law.apply([form], EXACT) for branch in branches]
    added = Sum(signs).apply(forms, EXACT)

    def expected(x: np.ndarray) -> np.ndarray:
        parts = [sign * run([c], x) for sign, c in zip(signs, branches, strict=True)]
        assert len({part.shape for part in parts}) == 1, "a sum that broadcasts was accepted"
        return sum(parts[1:], parts[0])

    assert holds(added, expected, rank, known, x=4) or not same


def test_branches_of_equal_geometry_become_one_term():
    one = Conv(Geometry(4, 4, 1, (Axis.window(3, begin=1, end=1),)), integers(1, 4, 4, 3))
    form = source(4, 1, None)
    forms = [one.law.apply([form], EXACT), form, one.law.apply([form], EXACT), form]
    added = Sum((1,) * 4).apply(forms, EXACT)
    assert len(added.terms) == 2
    assert holds(added, lambda x: 2 * run([one], x) + 2 * x, 1, None, x=4)


def test_acnet_and_bnandpad_cover_one_box():
    """3×3 + 3×1 + 1×3 lie in the 3×3, and so does a stride-2 1×1 at tap [0, 0]."""
    square = Geometry(4, 4, 1, (Axis.window(3, begin=1, end=1),) * 2)
    tall = Geometry(4, 4, 1, (Axis.window(3, begin=1, end=1), Axis()))
    flat = Geometry(4, 4, 1, (Axis(), Axis.window(3, begin=1, end=1)))
    assert geo.hull(geo.hull(tall, flat), square).axes == square.axes
    convs = [Conv(g, integers(i, *g.kernel_shape)) for i, g in enumerate((square, tall, flat))]
    form = source(4, 2, (6, 5))
    added = Sum((1, 1, 1)).apply([c.law.apply([form], EXACT) for c in convs], EXACT)
    assert holds(added, lambda x: sum(c.of(x) for c in convs), 2, (6, 5), x=4)
    box = ex.add(square, [term.kernel for term in added.terms])
    x = integers(3, 1, 4, 6, 5)
    together = Conv(square, ex.fold(box))
    np.testing.assert_array_equal(together.of(x), sum(c.of(x) for c in convs))


@given(st.integers(1, 2), st.data())
@FEW
def test_concat_then_a_grouped_conv_then_a_selection(rank, data):
    known = data.draw(lengths(rank))
    slack = data.draw(st.integers(-2, 1))
    branches = [
        data.draw(convs(rank, 4, data.draw(st.sampled_from([2, 4])), 1, slack)) for _ in "ab"
    ]
    form = source(4, rank, known)
    joined = Concat(1).apply([c.law.apply([form], EXACT) for c in branches], EXACT)

    def concat(x: np.ndarray) -> np.ndarray:
        return np.concatenate([run([c], x) for c in branches], axis=1)

    assert holds(joined, concat, rank, known, x=4)
    reader = data.draw(convs(rank, joined.channels, 4))
    read = reader.law.apply([joined], EXACT)
    holds(read, lambda x: run([reader], concat(x)), rank, known, x=4)
    start = data.draw(st.integers(0, joined.channels - 1))
    stop = data.draw(st.integers(start + 1, joined.channels))
    part = Select(1, start, stop).apply([joined], EXACT)
    holds(part, lambda x: concat(x)[:, start:stop], rank, known, x=4)


@given(st.data())
@FEW
def test_selecting_whole_groups_and_inside_one(data):
    layer = data.draw(convs(1, 4, 8))
    form = layer.law.apply([source(4, 1, (9,))], EXACT)
    start = data.draw(st.integers(0, 7))
    stop = data.draw(st.integers(start + 1, 8))
    accepted = holds(
        Select(1, start, stop).apply([form], EXACT),
        lambda x: run([layer], x)[:, start:stop], 1, (9,), x=4,
    )  # fmt: skip
    fan_out = 8 // layer.geometry.groups
    whole = start % fan_out == 0 and stop % fan_out == 0
    assert accepted == (whole or start // fan_out == (stop - 1) // fan_out)


@given(st.permutations(range(4)), st.integers(0, 3), st.data())
@FEW
def test_permute_and_scale(permutation, axis, data):
    """A constant counts along the axis where the channels stand, whatever the sizes."""
    layer = data.draw(convs(2, 4, 4, 1, -1))
    form = Permute(tuple(permutation)).apply(
        [layer.law.apply([source(4, 2, (4, 4))], EXACT)], EXACT
    )
    scale, shift = integers(1, 4), integers(2, 4)
    form = Scale("a", axis, 4, lambda: scale, lambda: shift).apply([form], EXACT)
    along = [4 if other == axis else 1 for other in range(4)]

    def expected(x: np.ndarray) -> np.ndarray:
        y = run([layer], x).transpose(permutation)
        return y * scale.reshape(along) + shift.reshape(along)

    assert holds(form, expected, 2, (4, 4), x=4) == (permutation[axis] == 1)
    if isinstance(form, Refusal):
        assert form.code == Code.BROADCAST
        return
    back = Permute(tuple(np.argsort(permutation))).apply([form], EXACT)
    assert back.in_base_layout
    reader = data.draw(convs(2, 4))
    reader = unpadded(reader)
    read = reader.law.apply([back], EXACT)
    assert holds(
        read, lambda x: run([reader], expected(x).transpose(np.argsort(permutation))),
        2, (4, 4), x=4,
    )  # fmt: skip


@given(st.integers(1, 2), st.data())
@FEW
def test_scale_before_and_after(rank, data):
    known = data.draw(lengths(rank))
    layer = data.draw(convs(rank, 4, 4))
    layer = unpadded(layer)
    scale, shift = integers(1, 4), np.array([2.0])
    ones = [1] * rank
    form = source(4, rank, known)
    form = Scale("mul", 1, 4, lambda: scale, None).apply([form], EXACT)
    form = Scale("add", None, 1, None, lambda: shift).apply([form], EXACT)
    form = layer.law.apply([form], EXACT)
    form = Scale("affine", 1, 4, lambda: scale, lambda: scale).apply([form], EXACT)

    def expected(x: np.ndarray) -> np.ndarray:
        y = run([layer], x * scale.reshape(-1, *ones) + shift)
        return y * scale.reshape(-1, *ones) + scale.reshape(-1, *ones)

    assert holds(form, expected, rank, known, x=4)


@given(st.integers(1, 2), st.data())
@settings(max_examples=40)
def test_a_materialised_form_is_what_a_runtime_computes(rank, data):
    """`evaluate.conv`, which takes no negative pads, agrees with the oracle."""
    layer = data.draw(convs(rank, 4))
    known = data.draw(lengths(rank))
    real = padded.materialise(layer.geometry, known or (None,) * rank)
    kernel = weights.embed(layer.kernel, layer.geometry, real)
    settings_ = {
        "group": real.groups,
        "strides": [axis.stride for axis in real.axes],
        "dilations": [axis.dilation for axis in real.axes],
        "pads": [axis.pads[end] for end in (0, 1) for axis in real.axes],
    }
    for size in sizes(rank, known):
        x = integers(5, 2, 4, *size)
        try:
            expected = run([layer], x)
        except SizeError:
            continue
        np.testing.assert_array_equal(conv(settings_, [x, kernel, layer.bias])[0], expected)


def test_more_than_64_different_maps_are_not_summed():
    def spread(dilation: int) -> Form:
        axis = Axis.window(2, dilation=dilation, end=dilation)
        layer = Conv(Geometry(1, 1, 1, (axis,)), np.ones((1, 1, 2)))
        return layer.law.apply([source(1, 1, None)], EXACT)

    forms = [spread(dilation) for dilation in range(1, 66)]
    assert isinstance(Sum((1,) * 64).apply(forms[:64], EXACT), Form)
    refused = Sum((1,) * 65).apply(forms, EXACT)
    assert isinstance(refused, Refusal)
    assert refused.code == Code.SIZE
