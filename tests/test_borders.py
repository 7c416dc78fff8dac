"""Borders: what a map may read beyond the one before it, and what padding makes of a bias."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    EXACT,
    Conv,
    SizeError,
    convs,
    holds,
    integers,
    lengths,
    linear,
    run,
    sizes,
    source,
    unpadded,
)

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra.form import Form
from onnxfuse.algebra.geometry import Axis, Geometry
from onnxfuse.algebra.laws import Scale, Sum
from onnxfuse.algebra.padding import Fill, Pad
from onnxfuse.refusal import Code, Refusal


def test_borders_are_judged_soundly_and_seldom_too_strictly():
    """Integers alone: what the outer map reads beyond the middle must be zero by itself."""
    generator = random.Random(1)

    def axis() -> Axis:
        integer = generator.randint
        return Axis.window(
            integer(1, 3), stride=integer(1, 3), dilation=integer(1, 2),
            begin=integer(-1, 2), end=integer(-1, 2),
        )  # fmt: skip

    true = accepted = 0
    while true < 5000:
        inner, outer, x = axis(), axis(), generator.randint(1, 16)
        middle = inner.length(x)
        if middle < 1 or outer.length(middle) < 1:
            continue
        read = {
            outer.stride * p + outer.start + outer.dilation * u
            for p, u in product(range(outer.length(middle)), range(outer.taps))
        }
        seen = {
            inner.stride * m + inner.start + inner.dilation * t
            for m, t in product(read - set(range(middle)), range(inner.taps))
        }
        exact = not seen & set(range(x))
        one = [Geometry(1, 1, 1, (a,)) for a in (outer, inner)]
        law = geo.silent_outside(*one, (x,))
        assert exact or not law, (outer, inner, x)
        true, accepted = true + exact, accepted + law
    assert accepted > 0.93 * true


def padded(x: np.ndarray, amounts: tuple[tuple[int, int], ...], fill: np.ndarray) -> np.ndarray:
    """``x`` with each spatial axis grown or cropped; ``fill`` (C,) outside."""
    grown = [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in amounts)]
    y = np.pad(x, grown, constant_values=np.nan)
    y = np.where(np.isnan(y), fill.reshape(-1, *[1] * len(amounts)), y)
    crops = [
        slice(max(-a, 0), size - max(-b, 0))
        for (a, b), size in zip(amounts, y.shape[2:], strict=True)
    ]
    y = y[(..., *crops)]
    if not y.size:
        raise SizeError
    return y


@given(st.integers(1, 2), st.sampled_from(["zero", "response", "other"]), st.data())
@settings(max_examples=150)
def test_pad(rank, kind, data):
    """Zero padding, padding with the response to zero, and with something else."""
    known = data.draw(lengths(rank))
    layer = data.draw(convs(rank, 4, 4))
    amounts = tuple(
        data.draw(st.tuples(st.integers(-1, 2), st.integers(-1, 2))) for _ in range(rank)
    )
    bias = np.zeros(4) if layer.bias is None else layer.bias
    fill = {"zero": np.zeros(4), "response": bias, "other": bias + np.eye(4)[3]}[kind]
    law = Pad(
        (0, 0, *(a for a, _ in amounts)), (0, 0, *(b for _, b in amounts)),
        None if kind == "zero" else lambda: fill,
    )  # fmt: skip
    form = law.apply([layer.law.apply([source(4, rank, known)], EXACT)], EXACT)

    def expected(x: np.ndarray) -> np.ndarray:
        return padded(run([layer], x), amounts, fill)

    grows = any(amount > 0 for pair in amounts for amount in pair)
    if isinstance(form, Form) and grows and not np.array_equal(fill, bias):
        assert form.border
        check_border(form, expected, rank, known)
        reader = data.draw(convs(rank, 4, 4))
        read = reader.law.apply([form], EXACT)
        holds(read, lambda x: run([reader], expected(x)), rank, known, x=4)
        return
    holds(form, expected, rank, known, x=4)


def check_border(
    form: Form, expected: Callable[..., np.ndarray], rank: int, known, channels: int = 4
) -> None:
    """Inside, the constant; on a strip, the value of one of the strips a position lies in."""
    for size in sizes(rank, known):
        x = integers(6, 2, channels, *size)
        try:
            constant = expected(x) - linear(form, x=x)
        except SizeError:
            continue
        own = np.zeros(form.channels) if form.constant is None else ex.fold(form.constant)
        for place in np.ndindex(constant.shape[2:]):
            values = [
                ex.fold(s.value) if s.value else np.zeros(form.channels)
                for s in form.border
                if (place[s.axis] >= constant.shape[2 + s.axis] - s.width if s.end
                    else place[s.axis] < s.width)
            ]  # fmt: skip
            assert any(np.all(constant[(..., *place)] == v) for v in values or [own])


def test_bn_and_pad_is_a_larger_padding_of_the_1x1():
    """Diverse Branch Block: 1×1, BN, a border of the BN's response to zero, then k×k."""
    point = Conv(Geometry(4, 4, 1, (Axis(),) * 2), integers(1, 4, 4, 1, 1), integers(2, 4))
    wide = Conv(Geometry(4, 6, 2, (Axis.window(3),) * 2), integers(3, 6, 2, 3, 3), integers(4, 6))
    scale, shift = np.array([2.0, -1, 3, 1]), np.array([1.0, 0, -2, 5])
    response = scale * point.bias + shift
    form = point.law.apply([source(4, 2, None)], EXACT)
    form = Scale("BN", 1, 4, lambda: scale, lambda: shift).apply([form], EXACT)
    form = Pad((0, 0, 1, 1), (0, 0, 1, 1)).apply([form], EXACT)
    assert form.border
    for axis, end in product((2, 3), (False, True)):
        form = Fill(axis, end, 1, 1, lambda: response).apply([form], EXACT)
    assert not form.border
    assert form.matched
    form = wide.law.apply([form], EXACT)

    def expected(x: np.ndarray) -> np.ndarray:
        y = run([point], x) * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)
        return run([wide], padded(y, ((1, 1), (1, 1)), response))

    assert holds(form, expected, 2, None, x=4)
    assert form.terms[0].kernel.geometry.axes == (Axis.window(3, begin=1, end=1),) * 2


@given(st.integers(1, 3), st.booleans(), st.booleans(), st.data())
@settings(max_examples=150)
def test_fill(width, end, matches, data):
    """Assigning a strip is exact only where the strip held no data."""
    known = data.draw(lengths(1))
    amounts = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    layer = data.draw(convs(1, 4, 4))
    bias = np.zeros(4) if layer.bias is None else layer.bias
    fill = bias if matches else bias + 1
    form = layer.law.apply([source(4, 1, known)], EXACT)
    form = Pad((0, 0, amounts[0]), (0, 0, amounts[1]), lambda: bias).apply([form], EXACT)
    if isinstance(form, Form):
        form = Fill(2, end, width, 1, lambda: fill).apply([form], EXACT)

    def expected(x: np.ndarray) -> np.ndarray:
        y = padded(run([layer], x), (amounts,), bias)
        if y.shape[2] < width:
            raise SizeError
        y[..., slice(-width, None) if end else slice(width)] = fill.reshape(-1, 1)
        return y

    if isinstance(form, Form) and form.border:
        check_border(form, expected, 1, known)
    elif holds(form, expected, 1, known, x=4) and sum(amounts) == 0 and known is None:
        assert layer.geometry.axes[0].pads[end] > 0, "a strip of data was overwritten"


def bordered(constant: float, first: float, second: float, order: tuple[int, int]) -> Form:
    """x padded by zeros in two axes, then the strips of one axis and the other assigned to."""
    form = Scale("add", None, 1, None, lambda: np.array(constant)).apply(
        [source(1, 2, None)], EXACT
    )
    form = Pad((0, 0, 1, 1), (0, 0, 1, 1)).apply([form], EXACT)
    strips = {2: first, 3: second}
    for axis, end in product(order, (False, True)):
        value = np.array(strips[axis])
        form = Fill(axis, end, 1, None, lambda v=value: v).apply([form], EXACT)
    return form


def assigned(x: np.ndarray, constant: float, strips: dict[int, float]) -> np.ndarray:
    """What `bordered` describes, the last assignment winning in the corners."""
    y = padded(x + constant, ((1, 1), (1, 1)), np.zeros(1))
    for axis, value in strips.items():
        np.moveaxis(y, axis, 0)[[0, -1]] = value
    return y


def test_a_border_of_several_values_stops_what_looks_at_it():
    form = bordered(4.0, 3.0, 8.0, (3, 2))
    reader = Conv(Geometry(1, 1, 1, (Axis.window(2),) * 2), np.ones((1, 1, 2, 2)))
    refused = reader.law.apply([form], EXACT)
    assert isinstance(refused, Refusal)
    assert refused.code == Code.BORDER_BIAS


@given(st.integers(1, 2), st.data())
@settings(max_examples=150)
def test_a_bias_before_zero_padding_becomes_a_plane_of_ones(rank, data):
    """A pointwise map with a bias, zero padding, any map; then any other map behind it."""
    known = data.draw(lengths(rank))
    point = Conv(Geometry(4, 4, 1, (Axis(),) * rank), integers(1, 4, 4, *[1] * rank), np.ones(4))
    layers = [point, data.draw(convs(rank, 4, 4)), unpadded(data.draw(convs(rank, 4)))]
    form = source(4, rank, known)
    for layer in layers:
        form = layer.law.apply([form], EXACT)
        assert isinstance(form, Form)
    assert holds(form, lambda x: run(layers, x), rank, known, x=4)


def test_strips_of_a_sum_meet_in_corners_that_belong_to_either():
    """Each strip of the sum is 10, as the inside; the corners are 3 + 2 = 5."""
    left = bordered(4.0, 3.0, 8.0, (3, 2))
    right = bordered(6.0, 7.0, 2.0, (2, 3))
    added = Sum((1, 1)).apply([left, right], EXACT)
    if isinstance(added, Form):
        added = Fill(2, False, 1, None, lambda: np.array(10.0)).apply([added], EXACT)

    def expected(x: np.ndarray) -> np.ndarray:
        y = assigned(x, 4.0, {3: 8.0, 2: 3.0}) + assigned(x, 6.0, {2: 7.0, 3: 2.0})
        y[:, :, 0] = 10
        return y

    if isinstance(added, Form) and added.border:
        check_border(added, expected, 2, None, channels=1)
    else:
        holds(added, expected, 2, None, x=1)


def test_sums_of_forms_padded_alike_keep_their_strips():
    layers = [
        Conv(Geometry(4, 4, 1, (Axis(),)), integers(i, 4, 4, 1), integers(9 + i, 4)) for i in (1, 2)
    ]
    pad = Pad((0, 0, 1), (0, 0, 2))
    forms = [pad.apply([layer.law.apply([source(4, 1, None)], EXACT)], EXACT) for layer in layers]
    added = Sum((1, -1)).apply(forms, EXACT)

    def expected(x: np.ndarray) -> np.ndarray:
        first, second = (padded(run([c], x), ((1, 2),), np.zeros(4)) for c in layers)
        return first - second

    check_border(added, expected, 1, None)
    reader = Conv(Geometry(4, 4, 4, (Axis.window(2),)), integers(3, 4, 1, 2))
    read = reader.law.apply([added], EXACT)
    assert holds(read, lambda x: run([reader], expected(x)), 1, None, x=4)
    one_sided = Sum((1, 1)).apply([forms[0], source(4, 1, None)], EXACT)
    assert isinstance(one_sided, Refusal)
    assert one_sided.code == Code.LENGTH
