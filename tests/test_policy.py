"""What may grow for the sake of time, and what never does."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from onnx_text import fuse, model, ops

import onnxfuse
from onnxfuse import version
from onnxfuse.planning.cost import POLICIES, Cost

DEPTHWISE = """(float[1,8,32,32] x) => (float[] y) {
    a = Conv<group = 8, pads = [0,1,0,1]>(x, h)
    b = Conv<group = 8, pads = [1,0,1,0]>(x, v)
    c = Add(a, b) d = Add(c, x) y = Relu(d) }"""
STRIP = {"h": (8, 1, 1, 3), "v": (8, 1, 3, 1)}


def dense() -> onnx.ModelProto:
    text = DEPTHWISE.replace("group = 8, ", "")
    return model(text, h=(8, 8, 1, 3), v=(8, 8, 3, 1))


def test_depthwise_strips_become_a_square_for_the_sake_of_time() -> None:
    built = model(DEPTHWISE, **STRIP)
    kept, _ = fuse(built)
    assert ops(kept) == ["Conv", "Conv", "Add", "Relu"]
    fused, _ = fuse(built, policy="latency")
    assert ops(fused) == ["Conv", "Relu"]
    _, report = onnxfuse.fuse(built, policy="latency")
    assert report.after.macs == 1.5 * report.before.macs


def test_dense_strips_stay_whatever_the_policy() -> None:
    results = [ops(fuse(dense(), policy=policy)[0]) for policy in POLICIES]
    assert results == [["Conv", "Conv", "Add", "Relu"]] * 2


def test_a_wider_square_would_grow_too_much() -> None:
    text = DEPTHWISE.replace("[0,1,0,1]", "[0,2,0,2]").replace("[1,0,1,0]", "[2,0,2,0]")
    built = model(text, h=(8, 1, 1, 5), v=(8, 1, 5, 1))
    fused, _ = fuse(built, policy="latency")
    assert ops(fused) == ["Conv", "Conv", "Add", "Relu"]


@pytest.mark.parametrize("part", ["macs", "parameters"])
def test_only_depthwise_counts_have_room(part: str) -> None:
    old = Cost(100, 100, 0, 40, 40)
    strict, latency = POLICIES["default"], POLICIES["latency"]
    light = {part: 20, f"depthwise_{part}": 20}
    grown = old + Cost(**light)
    assert strict.excess(old, old) == latency.excess(old, old) == 0
    assert strict.excess(grown, old) == 20
    assert latency.excess(grown, old) == 0
    assert latency.excess(grown + Cost(**dict.fromkeys(light, 1)), old) == 1
    dense = replace(grown, **{f"depthwise_{part}": 0})
    assert latency.excess(dense, old) == 20


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(onnxfuse.InputError, match="policy is one of default, latency"):
        onnxfuse.plan(dense(), policy="fast")


def test_names_of_policies_are_said_once() -> None:
    assert tuple(POLICIES) == version.POLICIES
