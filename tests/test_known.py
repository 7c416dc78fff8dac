"""How a bias behind zero padding is written: a constant map, a plane of ones, a channel of ones."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx_text import feeds, integers, model, ops, session

import onnxfuse
from onnxfuse.planning import known


def block(
    shape: str, channels: int = 4, out: int = 4, groups: int = 1, opset: int = 17, **conv: str
) -> onnx.ModelProto:
    """``3×3(x) + 3×3(1×1(x) + b)``, padded by zeros; ``conv`` are attributes of the 3×3s."""
    given = {"pads": "[1,1,1,1]", **conv, "group": str(groups)}
    settings = ", ".join(f"{key} = {text}" for key, text in given.items())
    return model(
        f"(float{shape} x) => (float[] y) {{ a = Conv<{settings}>(x, w) p = Conv(x, v, b) "
        f"q = Conv<{settings}>(p, u) s = Add(a, q) y = Relu(s) }}",
        opset=opset,
        w=(out, channels // groups, 3, 3),
        v=integers("v", channels, channels, 1, 1),
        b=(channels,),
        u=(out, channels // groups, 3, 3),
    )


def check(original: onnx.ModelProto, style: str, *sizes: int) -> onnx.ModelProto:
    """The fused model, written in the given style and equal to the last bit."""
    fused, report = onnxfuse.fuse(original)
    assert [region.constant for region in report.regions] == [style]
    for size in sizes or (8,):
        given = feeds(original, size)
        (expected,) = session(original).run(None, given)
        (actual,) = session(fused).run(None, given)
        np.testing.assert_array_equal(actual, expected)
    assert onnxfuse.plan(original).regions[0].became == report.regions[0].became
    assert not onnxfuse.fuse(fused)[1].changed
    return fused


def test_a_map_at_fixed_sizes():
    fused = check(block("[1,4,8,8]"), "map")
    assert ops(fused) == ["Conv", "Add", "Relu"]
    assert [list(t.dims) for t in fused.graph.initializer if "map" in t.name] == [[1, 4, 8, 8]]


def test_a_map_with_an_open_batch():
    fused = check(block("[N,4,8,9]"), "map", 1, 3)
    assert ops(fused) == ["Conv", "Add", "Relu"]


@pytest.mark.parametrize("opset", [8, 9, 11, 13, 15, 21])
def test_a_plane_at_open_sizes(opset):
    built = model(
        "(float[N,4,H,W] x) => (float[] y) { a = Conv<pads = [1,1,1,1]>(x, w) "
        "p = Conv(x, v, b) e = Conv<pads = [1,1,1,1]>(p, u) f = Conv<pads = [1,1,1,1]>(p, t) "
        "k = Mul(f, m) s = Add(a, e) r = Add(s, k) z = Add(r, c) o = Mul(z, m) y = Relu(o) }",
        opset=opset,
        w=(4, 4, 3, 3), v=(4, 4, 1, 1), b=(4,), u=(4, 4, 3, 3), t=(4, 4, 3, 3),
        m=np.float32(2), c=(4, 1, 1),
    )  # fmt: skip
    fused = check(built, "plane", 1, 2, 5)
    found = Counter(ops(fused))
    assert found["Conv"] == 2
    assert found["Expand"] == 1
    assert found["Slice"] == (opset < 15)


@pytest.mark.parametrize("conv", [{"strides": "[2,2]"}, {"strides": "[2,1]", "pads": "[1,0,1,2]"},
                                  {"dilations": "[2,2]", "pads": "[2,2,2,2]"}])  # fmt: skip
def test_a_map_for_any_window(conv):
    check(block("[1,4,8,7]", **conv), "map")


def test_a_map_for_groups_and_depthwise():
    check(block("[1,4,8,7]", groups=2), "map")
    built = model(
        "(float[1,4,8,8] x) => (float[] y) { a = Conv<pads = [1,1,1,1], group = 4>(x, w) "
        "p = Conv<group = 4>(x, v, b) q = Conv<pads = [1,1,1,1], group = 4>(p, u) "
        "s = Add(a, q) y = Relu(s) }",
        w=(4, 1, 3, 3), v=(4, 1, 1, 1), b=(4,), u=(4, 1, 3, 3),
    )  # fmt: skip
    fused = check(built, "map")
    assert {a.i for n in fused.graph.node if n.op_type == "Conv" for a in n.attribute
            if a.name == "group"} == {4}  # fmt: skip


def test_a_channel_for_few_channels():
    fused = check(block("[1,3,32,32]", channels=3, out=16), "channel")
    assert ops(fused) == ["Pad", "Conv", "Relu"]
    fused = check(block("[N,3,H,W]", channels=3, out=16), "channel", 1, 6)
    assert ops(fused) == ["Pad", "Conv", "Relu"]
    older = check(block("[1,3,32,32]", channels=3, out=16, opset=9), "channel")
    assert ops(older) == ["Pad", "Conv", "Relu"]


def test_a_map_that_would_swell_the_file_is_left_to_a_plane(monkeypatch):
    """Less is kept free here than a map needs, as at large sizes and few channels."""
    monkeypatch.setattr(known, "SPARE", 0)
    original = model(
        "(float[1,4,40,40] x) => (float[] y) { a = Conv<pads = [1,1,1,1]>(x, w) "
        "p = Conv(x, v, b) e = Conv<pads = [1,1,1,1]>(p, u) f = Conv<pads = [1,1,1,1]>(p, t) "
        "k = Mul(f, m) s = Add(a, e) r = Add(s, k) z = Add(r, c) y = Relu(z) }",
        w=(4, 4, 3, 3), v=(4, 4, 1, 1), b=(4,), u=(4, 4, 3, 3), t=(4, 4, 3, 3),
        m=np.float32(2), c=(4, 1, 1),
    )  # fmt: skip
    fused = check(original, "plane")
    assert len(fused.SerializeToString()) < len(original.SerializeToString())


def test_a_stored_map_is_kept_and_shared_ones_too():
    """The Add of a map stays itself; what stands before it fuses."""
    built = model(
        "(float[1,4,8,8] x) => (float[] y, float[] z) { a = Conv(x, w) b = Conv(x, v) "
        "s = Add(a, b) t = Add(s, m) y = Relu(t) z = Add(x, m) }",
        w=(4, 4, 1, 1), v=(4, 4, 1, 1), m=(1, 4, 8, 8),
    )  # fmt: skip
    fused, _ = onnxfuse.fuse(built)
    assert Counter(ops(fused)) == {"Conv": 1, "Add": 2, "Relu": 1}
    assert [list(t.dims) for t in fused.graph.initializer].count([1, 4, 8, 8]) == 1
    given = feeds(built, 8)
    for expected, actual in zip(*(session(m).run(None, given) for m in (built, fused)),
                                strict=True):  # fmt: skip
        np.testing.assert_array_equal(actual, expected)


def test_a_map_that_a_caller_may_override_is_none():
    built = model(
        "(float[1,4,8,8] x, float[1,4,8,8] m) => (float[] y) { a = Conv(x, w) b = Conv(x, v) "
        "s = Add(a, m) t = Add(s, b) y = Relu(t) }",
        w=(4, 4, 1, 1), v=(4, 4, 1, 1), m=(1, 4, 8, 8),
    )  # fmt: skip
    fused, _ = onnxfuse.fuse(built)
    given = {**feeds(built, 8), "m": integers("other", 1, 4, 8, 8)}
    expected, actual = (session(m).run(None, given) for m in (built, fused))
    np.testing.assert_array_equal(actual[0], expected[0])


def test_half_precision_rounds_a_map_once():
    original = block("[1,4,8,8]")
    half = onnx.ModelProto()
    half.CopyFrom(original)
    for tensor in half.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16) / 16
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    half.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    half.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    fused, report = onnxfuse.fuse(half)
    assert report.regions[0].constant == "map"
    assert {t.data_type for t in fused.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_an_approximation_is_marked_measured_and_stable():
    original = block("[1,4,8,8]")
    fused, report = onnxfuse.fuse(original, approximate_borders=True)
    assert ops(fused) == ["Conv", "Relu"]
    (region,) = report.regions
    assert region.approximate
    assert region.error is not None
    assert region.error.exact <= region.error.bound
    assert region.error.border > 1e-3
    assert report.verification is not None
    assert report.verification.status == "approximate"
    assert [e.key for e in fused.metadata_props] == ["onnxfuse"]
    assert "approximate borders in 1 region" in fused.metadata_props[0].value
    given = feeds(original, 8)
    expected, actual = (session(m).run(None, given)[0] for m in (original, fused))
    np.testing.assert_array_equal(actual[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    assert (actual != expected).any()
    assert onnxfuse.plan(original, approximate_borders=True).regions[0].approximate
    again, second = onnxfuse.fuse(fused, approximate_borders=True)
    assert not second.changed
    assert again == fused


def test_what_is_exact_anyway_is_not_marked():
    original = model(
        "(float[1,4,8,8] x) => (float[] y) { a = Conv<pads = [1,1,1,1]>(x, w) "
        "p = Conv(x, v) q = Conv<pads = [1,1,1,1]>(p, u) s = Add(a, q) y = Relu(s) }",
        w=(4, 4, 3, 3), v=(4, 4, 1, 1), u=(4, 4, 3, 3),
    )  # fmt: skip
    fused, report = onnxfuse.fuse(original, approximate_borders=True)
    assert ops(fused) == ["Conv", "Relu"]
    assert not report.regions[0].approximate
    assert not fused.metadata_props
    assert report.verification is not None
    assert report.verification.status == "passed"


def test_a_size_without_an_interior_is_not_approximated():
    """Every position of a 2×2 output sees a border."""
    original = block("[1,4,2,2]")
    fused, report = onnxfuse.fuse(original, approximate_borders=True)
    assert not any(region.approximate for region in report.regions)
    given = feeds(original, 2)
    expected, actual = (session(m).run(None, given)[0] for m in (original, fused))
    np.testing.assert_array_equal(actual, expected)


def test_an_approximation_is_taken_only_where_it_is_cheaper():
    """The affine behind the pool folds exactly; a pool that counts its padding gains nothing."""
    original = model(
        "(float[1,8,12,12] x) => (float[] y) { c = Conv(x, w, b) "
        "p = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(c) q = Mul(p, k) y = Add(q, t) }",
        w=(8, 8, 1, 1), b=(8,), k=(8, 1, 1), t=(8, 1, 1),
    )  # fmt: skip
    fused, report = onnxfuse.fuse(original, approximate_borders=True)
    assert ops(fused) == ["Conv", "AveragePool"]
    assert not any(region.approximate for region in report.regions)
    assert fused == onnxfuse.fuse(original)[0]


SCALES = np.array([2, -4, 0.5, 1], np.float32).reshape(4, 1, 1)


def shifted(nodes: str, **tensors: object) -> onnx.ModelProto:
    """``s·relu(x) + b`` as ``t``, then ``nodes``, at open sizes; quotients are exact."""
    text = (
        f"(float[N,4,H,W] x) => (float[] y) {{ r = Relu(x) m = Mul(r, s) t = Add(m, b) {nodes} }}"
    )
    given = {"s": SCALES, "b": (4, 1, 1), "w": (4, 4, 3, 3), "v": (4, 1, 5, 5), **tensors}
    used = {
        name: value for name, value in given.items() if f" {name}" in text or f"({name}" in text
    }
    return model(text, **used)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("y = Conv<pads = [1,1,1,1]>(t, w)", "Relu Add Conv"),
        ("y = Conv<pads = [2,2,2,2], group = 4>(t, v)", "Relu Add Conv"),
        ("a = Conv<pads = [1,1,1,1]>(t, w) c = Conv(t, k) y = Add(a, c)", "Relu Add Conv"),
        ("p = Pad(t, amounts) y = Conv(p, w)", "Relu Mul Add Pad Conv"),
    ],
)
def test_a_shift_before_padding_stays_and_its_factor_goes_on(nodes: str, expected: str) -> None:
    built = shifted(nodes, k=(4, 4, 1, 1), amounts=np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    fused, report = onnxfuse.fuse(built)
    found = " ".join(ops(fused))
    if "Pad" not in expected:
        assert found == expected
        assert report.regions[-1].constant == "shift"
    for size in (1, 8):
        given = feeds(built, size)
        (before,), (after,) = session(built).run(None, given), session(fused).run(None, given)
        np.testing.assert_array_equal(after, before)
    assert not onnxfuse.fuse(fused)[1].changed


def test_what_needs_the_source_as_it_is_keeps_it() -> None:
    """A sum with the unshifted source is none of the shifted one; the sum stays behind it."""
    built = shifted("a = Conv<pads = [1,1,1,1]>(t, w) y = Add(a, r)")
    fused, _ = onnxfuse.fuse(built)
    assert ops(fused) == ["Relu", "Add", "Conv", "Add"]
    given = feeds(built, 8)
    (before,), (after,) = session(built).run(None, given), session(fused).run(None, given)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("scale", [0.0, 1e-6])
def test_a_factor_that_is_too_small_is_no_shift(scale: float) -> None:
    values = SCALES.copy()
    values[2] = scale
    built = shifted("y = Conv<pads = [1,1,1,1]>(t, w)", s=values)
    fused, report = onnxfuse.fuse(built)
    assert "shift" not in {region.constant for region in report.regions}
    assert fused is not None
