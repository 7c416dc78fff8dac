"""Drawings of regions: nothing overlaps, wires go down, and large ones stay readable."""

from __future__ import annotations

import random
import time
from itertools import combinations

import pytest
from pages import block, op

from onnxfuse.report.drawing import CROWDED, Drawing, draw, group, runs


def check(drawing: Drawing) -> None:
    """No boxes overlap, wires go down, and none runs through a box."""
    for one, other in combinations(drawing.boxes, 2):
        apart = one.x + one.width < other.x or other.x + other.width < one.x
        assert apart or one.y + one.height < other.y or other.y + other.height < one.y
    for box in drawing.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= drawing.width
        assert box.y + box.height <= drawing.height
    for wire in drawing.wires:
        assert wire.tips
        for x0, y0, x1, y1 in wire.strokes:
            assert y0 < y1
            low, high = min(x0, x1), max(x0, x1)
            for box in drawing.boxes:
                beside = high < box.x or low > box.x + box.width
                assert beside or y1 <= box.y or y0 >= box.y + box.height
    height = {box.y + box.height for box in drawing.boxes}
    for wire in drawing.wires:
        starts = {(x0, y0) for x0, y0, _, _ in wire.strokes}
        ends = {(x1, y1) for _, _, x1, y1 in wire.strokes}
        assert len(starts - ends) == 1
        assert {y for _, y in starts - ends} <= height
        assert ends - starts == set(wire.tips)
        tops = {(box.y, box.x, box.x + box.width) for box in drawing.boxes}
        for x, y in wire.tips:
            assert any(y == top and left <= x <= right for top, left, right in tops)


def scattered(count, seed=0, reach=6):
    """A random graph: each operator reads one to three tensors that stand before it."""
    rng = random.Random(seed)
    made, names = [], ["x", "y"]
    for n in range(count):
        inputs = dict.fromkeys(rng.choice(names[-reach:]) for _ in range(rng.randint(1, 3)))
        outputs = tuple(f"t{n}.{k}" for k in range(rng.choice([1, 1, 1, 2])))
        kind = rng.choice(["Conv", "Add", "Pad", "Mul", "Custom" * 5])
        made.append(
            op(f"n{n}", kind, tuple(inputs), rng.choice(["", "3×3 64→128 depthwise"]), outputs)
        )
        names += outputs
    return made


@pytest.mark.parametrize("seed", range(25))
def test_drawings_of_random_graphs_are_sound(seed):
    operators = scattered(5 + 2 * seed, seed, reach=3 + seed)
    drawing = draw(operators)
    check(drawing)
    assert draw(operators) == drawing
    assert drawing.operators == len(operators)
    named = [name for box in drawing.boxes if box.first is not None for name in box.names]
    assert sorted(named) == sorted(operator.name for operator in operators)


def test_a_block_is_drawn_with_its_ends():
    drawing = draw(block())
    check(drawing)
    assert [box.lines for box in drawing.boxes] == [
        ("Conv", "3×3 8→8"), ("Conv", "1×1 8→8"), ("BN", "8 channels"), ("Add",), ("Add",),
        ("x",), ("sum_out",),
    ]  # fmt: skip
    assert {wire.tensor for wire in drawing.wires} >= {"x", "conv3_out", "sum_out"}
    assert drawing.boxes[5].y < drawing.boxes[0].y < drawing.boxes[3].y < drawing.boxes[4].y


def test_nothing_and_operators_that_read_nothing_can_be_drawn():
    assert draw([]).boxes == ()
    check(draw([op("ones", "ConstantOfShape", ()), op("conv", inputs=("ones_out", "x"))]))
    check(draw([op("twice", "Mul", ("x", "x")), op("deaf", "Custom", ("x",), outputs=("",))]))


def test_alike_operators_in_a_row_share_a_box():
    chain = [op("pad", "Pad")]
    chain += [op(f"s{n}", "ScatterND", (chain[-1].outputs[0],)) for n in range(1)]
    for n in range(1, 4):
        chain.append(op(f"s{n}", "ScatterND", chain[-1].outputs))
    drawing = draw(chain)
    assert drawing.boxes[1].lines == ("4 ScatterND",)
    assert drawing.boxes[1].names == ("s0", "s1", "s2", "s3")
    assert drawing.boxes[1].first == 1
    read = [*chain, op("side", "Mul", chain[2].outputs)]
    assert len(runs(read)) == 6  # a tensor that is read elsewhere ends a run


def test_a_crowd_is_drawn_by_runs():
    chain = [op("n0")]
    for n in range(1, 400):
        chain.append(op(f"n{n}", ("Cast", "Mul", "Sub")[n % 3], chain[-1].outputs))
    assert len(runs(chain[:CROWDED])) == CROWDED
    drawing = draw(chain)
    check(drawing)
    assert drawing.boxes[0].lines == ("Conv, Mul, Sub, Cast", "400 operators")


def test_four_hundred_operators_are_drawn_soon():
    start = time.perf_counter()
    drawing = draw(scattered(400, 1))
    wide = draw([op(f"n{n}") for n in range(400)])
    ladder = draw([op("n0"), *(op(f"n{n}", "Add", (f"n{n - 1}_out", "x")) for n in range(1, 400))])
    assert time.perf_counter() - start < 20
    for one in (drawing, wide, ladder):
        check(one)


def test_chains_are_straight():
    drawing = draw([*block(), op("pad", "Pad", ("sum_out",)), op("conv", inputs=("pad_out",))])
    check(drawing)
    chain = [box for box in drawing.boxes if {"pad", "conv", "conv_out"} & set(box.names)]
    assert len({box.x + box.width // 2 for box in chain}) == 1


@pytest.mark.parametrize(
    ("kind", "inputs", "told"),
    [("Conv", "x", "conv"), ("Add", "x", "affine"), ("Add", "xy", "sum"), ("Mul", "xy", "other"),
     ("AveragePool", "x", "pool"), ("ScatterND", "x", "border"), ("Relu", "x", "other")],
)  # fmt: skip
def test_groups(kind, inputs, told):
    assert group(op("n", kind, tuple(inputs))) == told


def test_long_and_wide_names_are_shortened_in_boxes():
    drawing = draw([op("n" * 500, "K" * 500, ("名" * 500,), "d" * 500)])
    check(drawing)
    assert all(box.width < 360 for box in drawing.boxes)
