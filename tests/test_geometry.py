"""The integer laws against what they say: which positions each map reads, one by one."""

from __future__ import annotations

from math import gcd

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra import padded
from onnxfuse.algebra.geometry import Axis, Geometry

LENGTHS = range(1, 21)


@st.composite
def axes(draw: st.DrawFn, stride: int | None = None) -> Axis:
    """Windows with any stride, dilation and pads, negative and unequal ones included."""
    return Axis.window(
        draw(st.integers(1, 4)),
        stride=stride or draw(st.integers(1, 3)),
        dilation=draw(st.integers(1, 3)),
        begin=draw(st.integers(-3, 4)),
        end=draw(st.integers(-3, 4)),
    )


def taps(axis: Axis, output: int = 0) -> list[int]:
    """The positions that ``output`` reads, in the order of the taps."""
    return [axis.stride * output + axis.start + axis.dilation * t for t in range(axis.taps)]


def length(x: int, taps: int, stride: int, dilation: int, begin: int, end: int) -> int:
    """The output length by sliding the window until it leaves the padded input."""
    positions = range(0, begin + x + end - dilation * (taps - 1), stride)
    return len(positions)


@given(
    st.integers(1, 20), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3),
    st.integers(-2, 4), st.integers(-2, 4),
)  # fmt: skip
def test_window_says_what_the_attributes_of_a_conv_say(x, k, stride, dilation, begin, end):
    axis = Axis.window(k, stride=stride, dilation=dilation, begin=begin, end=end)
    expected = length(x, k, stride, dilation, begin, end)
    assert max(axis.length(x), 0) == expected
    assert axis.pads == (begin, end)
    assert taps(axis)[0] == -begin
    assert axis.extent == taps(axis)[-1] - taps(axis)[0] + 1


@given(axes(), st.integers(1, 20))
def test_reading_outside_is_reading_some_position_outside(axis, x):
    last = axis.length(x) - 1
    assume(last >= 0)
    assert axis.reads_before() == (taps(axis)[0] < 0)
    assert axis.reads_after(x) == (taps(axis, last)[-1] >= x)
    if not axis.reads_after(None):
        assert not any(
            axis.length(n) > 0 and taps(axis, axis.length(n) - 1)[-1] >= n for n in LENGTHS
        )


@given(axes(), st.integers(1, 20), st.integers(1, 4))
def test_silence_is_reading_no_position_inside(axis, x, width):
    outputs = axis.length(x)
    assume(outputs >= width)

    def silent(positions: range) -> bool:
        return not any(0 <= place < x for p in positions for place in taps(axis, p))

    before, inner = range(-30, 0), range(width)
    if axis.silent_before():
        assert silent(before)
    if axis.silent_before(width):
        assert silent(inner)
    if axis.silent_after(x):
        assert silent(range(outputs, outputs + 30))
    if axis.silent_after(x, width):
        assert silent(range(outputs - width, outputs + 30))
    for dynamic in (0, width):
        if axis.silent_after(None, dynamic):
            assert axis.silent_after(x, dynamic)


@given(axes(), axes())
def test_compose_reads_what_the_two_read_in_turn(outer, inner):
    composed = geo.compose_axis(outer, inner)
    for p in range(4):
        expected = {place for middle in taps(outer, p) for place in taps(inner, middle)}
        assert expected <= set(taps(composed, p))
        assert {min(expected), max(expected)} == {taps(composed, p)[0], taps(composed, p)[-1]}
    for x in LENGTHS:
        middle = inner.length(x)
        if middle >= 1 and outer.length(middle) >= 1:
            assert composed.length(x) == outer.length(middle)


@given(axes(), axes())
def test_compose_has_the_widest_grid_that_holds_every_tap(outer, inner):
    composed = geo.compose_axis(outer, inner)
    places = [place for middle in taps(outer) for place in taps(inner, middle)]
    steps = [place - composed.start for place in places]
    assert composed.dilation == (gcd(*steps) if any(steps) else 1)


@given(axes(), axes(), axes())
def test_compose_is_associative(a, b, c):
    left = geo.compose_axis(geo.compose_axis(a, b), c)
    right = geo.compose_axis(a, geo.compose_axis(b, c))
    assert left == right


@given(axes())
def test_identity_is_neutral(axis):
    assert geo.compose_axis(axis, geo.IDENTITY) == axis
    assert geo.compose_axis(geo.IDENTITY, axis) == axis


@given(axes(), axes(), st.one_of(st.none(), st.integers(1, 20)))
def test_same_length_is_certain(left, right, x):
    if geo.same_length(left, right, x):
        for n in LENGTHS if x is None else [x]:
            assert left.length(n) == right.length(n)


def test_sizes_that_agree_only_at_some_inputs_are_not_the_same():
    even, odd = Axis.window(3, stride=2, begin=0, end=1), Axis.window(3, stride=2, begin=1, end=1)
    assert even.length(8) != odd.length(9)
    assert not geo.same_length(even, odd, None)
    assert [geo.same_length(even, odd, n) for n in (8, 9)] == [True, False]


@given(st.integers(1, 3), st.data())
def test_hull_contains_both_and_nothing_less_does(stride, data):
    left, right = data.draw(axes(stride)), data.draw(axes(stride))
    hull = geo.hull_axis(left, right)
    union = sorted({*taps(left), *taps(right)})
    assert geo.contains(hull, left)
    assert geo.contains(hull, right)
    assert (taps(hull)[0], taps(hull)[-1]) == (union[0], union[-1])
    steps = [place - union[0] for place in union]
    assert hull.dilation == (gcd(*steps) if any(steps) else 1)
    assert hull.slack == left.slack


@given(st.integers(1, 3), st.data())
def test_contains_and_tap_positions_name_the_taps(stride, data):
    hull, part = data.draw(axes(stride)), data.draw(axes(stride))
    if data.draw(st.booleans()):
        hull = geo.hull_axis(part, hull)
    inside = set(taps(part)) <= set(taps(hull))
    assert geo.contains(hull, part) == inside
    if inside:
        assert taps(hull)[geo.tap_positions(hull, part)] == taps(part)


def test_other_strides_are_never_contained():
    assert not geo.contains(Axis.window(3, stride=2), Axis.window(3))


@given(axes(), st.one_of(st.none(), st.integers(1, 20)))
@example(Axis.window(1, begin=-2, end=-2), None)
@example(Axis.window(1, begin=0, end=-1), None)
@example(Axis.window(2, stride=3, dilation=3, begin=-1, end=-2), 17)
def test_materialise_reads_the_same_with_no_negative_pads(axis, x):
    sizes = [n for n in (LENGTHS if x is None else [x]) if axis.length(n) >= 1]
    assume(sizes)
    real = padded.materialise_axis(axis, x)
    assert min(real.pads) >= 0
    assert real.stride == axis.stride
    assert geo.contains(real, axis)
    assert [real.length(n) for n in sizes] == [axis.length(n) for n in sizes]
    if min(axis.pads) >= 0:
        assert real == axis


@pytest.mark.parametrize(
    ("axis", "x", "taps_written"),
    [
        (Axis.window(3, begin=-1, end=1), None, 4),  # one zero tap in front
        (Axis.window(1, begin=-2, end=-2), None, 3),  # at 0, 2 and 4
        (Axis.window(3, stride=2, begin=0, end=-1), 8, 3),  # the length does not need the crop
        (Axis.window(3, stride=2, begin=0, end=-1), None, 4),
    ],
)
def test_materialise_adds_the_fewest_taps(axis, x, taps_written):
    assert padded.materialise_axis(axis, x).taps == taps_written


@pytest.mark.parametrize(("x", "tap"), [(8, 0), (9, 1)])
def test_same_upper_at_stride_2_puts_the_1x1_on_the_tap_that_the_parity_says(x, tap):
    total = max((-(-x // 2) - 1) * 2 + 3 - x, 0)
    wide = Axis.window(3, stride=2, begin=total // 2, end=total - total // 2)
    point = Axis.window(1, stride=2)
    assert wide.length(x) == point.length(x)
    assert geo.contains(wide, point)
    assert geo.tap_positions(wide, point).start == tap


def test_groups_compose_to_their_common_divisor():
    def grouped(groups: int) -> Geometry:
        return Geometry(12, 12, groups, (Axis.window(3),))

    assert geo.compose(grouped(4), grouped(6)).groups == 2
    assert geo.hull(grouped(12), grouped(4)).groups == 4
    assert geo.compose(Geometry.pointwise(12, 1), grouped(3)).groups == 3


def test_a_geometry_counts_its_kernel():
    geometry = Geometry(8, 12, 4, (Axis.window(3), Axis.window(5)))
    assert geometry.kernel_shape == (12, 2, 3, 5)
    assert geometry.parameters == 360
    assert not geometry.depthwise
    assert Geometry.pointwise(8, 2).per_channel
    assert geometry.lengths((10, None)) == (8, None)


@st.composite
def same_axes(draw: st.DrawFn) -> tuple[int, int, int, bool]:
    """Taps, stride, dilation and whether the odd pad stands at the end."""
    return (draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 2)),
            draw(st.booleans()))  # fmt: skip


def at(axis: Axis, x: int) -> Axis:
    """The axis as it stands at length ``x``."""
    moved = axis.moves[x % axis.stride] if axis.moves else 0
    return Axis(axis.stride, axis.dilation, axis.taps, axis.start - moved, axis.slack)


@given(same_axes())
def test_same_padding_at_unknown_lengths_stands_where_it_does_at_each(window):
    """By TensorFlow's rule, written out: ⌈X/s⌉ outputs, the pads that need, the odd one apart."""
    k, stride, dilation, upper = window
    unknown = Axis.same_window(k, stride, dilation, None, upper=upper)
    extent = (dilation if k > 1 else 1) * (k - 1) + 1
    for x in LENGTHS:
        outputs = -(-x // stride)
        total = max((outputs - 1) * stride + extent - x, 0)
        begin = total // 2 if upper else (total + 1) // 2
        assert unknown.length(x) == outputs
        assert at(unknown, x).start == -begin
        known = Axis.same_window(k, stride, dilation, x, upper=upper)
        assert known.pads == (begin, total - begin)
        assert known.length(x) == outputs


@given(same_axes(), same_axes(), axes())
def test_a_start_that_moves_follows_where_it_is_said_to(window, other, plain):
    first, second = (
        Axis.same_window(k, s, d, None, upper=upper) for k, s, d, upper in (window, other)
    )
    for outer, inner in ((first, plain), (plain, first), (first, second)):
        if not outer.follows(inner):
            continue
        composed = geo.compose_axis(outer, inner)
        for x in LENGTHS:
            middle = inner.length(x)
            if middle >= 1:
                moved = inner.moves[x % inner.stride] if inner.moves else 0
                moved += outer.moves[middle % outer.stride] * inner.stride if outer.moves else 0
                expected = inner.start + inner.stride * outer.start - moved
                steps = composed.moves
                found = composed.start - (steps[x % len(steps)] if steps else 0)
                assert found == expected


@given(same_axes(), same_axes())
def test_axes_of_equal_moves_share_a_box_at_every_length(window, other):
    first, second = (
        Axis.same_window(k, window[1], d, None, upper=upper) for k, _, d, upper in (window, other)
    )
    assume(first.moves == second.moves)
    box = geo.hull_axis(first, second)
    for part in (first, second):
        assert geo.contains(box, part)
        for x in LENGTHS:
            places = geo.tap_positions(box, part)
            assert taps(at(box, x))[places] == taps(at(part, x))


@given(same_axes(), same_axes(), st.booleans())
def test_auto_pad_writes_what_it_reads(first, second, static):
    """Geometry(H, W) under one rule; where it is written as SAME, SAME gives it back."""
    x = 11 if static else None
    axes = tuple(
        Axis.same_window(k, s, d, size, upper=first[3])
        for (k, s, d, _), size in zip((first, second), (None, x), strict=True)
    )
    mode = padded.auto_pad(Geometry(1, 1, 1, axes), (None, x))
    if not any(axis.moves for axis in axes):
        assert mode == "NOTSET"
        return
    assert mode is not None
    for axis, size, (k, s, d, _) in zip(axes, (None, x), (first, second), strict=True):
        written = Axis.same_window(k, s, d, size, upper=mode == "SAME_UPPER")
        assert (written.start, written.moves) == (axis.start, axis.moves)


def test_a_box_that_no_rule_gives_is_not_written():
    upper = Axis.same_window(3, 2, 1, None, upper=True)
    shifted = Axis(2, 1, 3, upper.start - 1, -1, upper.moves)
    assert padded.auto_pad(Geometry(1, 1, 1, (upper,)), (None,)) == "SAME_UPPER"
    assert not padded.writable(Geometry(1, 1, 1, (shifted,)), (None,))
    beside = Axis.window(3, stride=2, begin=1, end=1)
    assert not padded.writable(Geometry(1, 1, 1, (upper, beside)), (None, 10))
