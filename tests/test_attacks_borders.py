"""Models that once broke the fusing of borders and layouts, or ended in an error."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_text import feeds, integers, model, ops, session

import onnxfuse

FIXED = "(float[1,4,8,8] x) => (float[] y)"
OPEN = "(float[N,4,9,9] x) => (float[] y)"
LAST = "Transpose<perm = [0,2,3,1]>"
FIRST = "Transpose<perm = [0,3,1,2]>"
W = {"w": (4, 4, 1, 1)}


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def same(original: onnx.ModelProto, *sizes: int) -> onnx.ModelProto:
    """Fuse, and compare to the last bit at every size; a second run changes nothing."""
    fused, _ = onnxfuse.fuse(original)
    for size in sizes or (8,):
        given = feeds(original, size)
        results = [session(each).run(None, given) for each in (original, fused)]
        for expected, actual in zip(*results, strict=True):
            np.testing.assert_array_equal(actual, expected)
    again, second = onnxfuse.fuse(fused)
    assert not second.changed
    assert again.SerializeToString() == fused.SerializeToString()
    return fused


LAYOUTS = {
    "a slice by int32": ("r = Slice(t, s, e)", {"s": np.int32([0, 1]), "e": np.int32([1, 7])}, 13),
    "a slice without axes": ("r = Slice<starts = [0,1,0,1], ends = [1,8,8,4]>(t)", {}, 9),
    "a root of what may be negative": ("r = Sqrt(t)", {}, 17),
    "sizes that inference does not see": ("r, q = Split<axis = 3>(t, z)",
                                          {"z": i64(2, 2)}, 13),
    "no axes to reduce": ("r = ReduceSum<axes: ints = []>(t)", {}, 11),
    "parts joined": ("a = Relu(t) r = Concat<axis = -1>(a, t)", {}, 17),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_operator_between_transposes(name):
    middle, tensors, opset = LAYOUTS[name]
    end = FIRST if "keepdims" not in middle and "axes: ints" not in middle else "Identity"
    built = model(
        f"{FIXED} {{ c = Conv(x, w) t = {LAST}(c) {middle} y = {end}(r) }}",
        opset=opset, **W, **tensors,
    )  # fmt: skip
    same(built)


def test_sizes_of_a_split_that_are_computed():
    built = model(
        f"(float[1,4,8,8] x) => (float[] y, float[] u) {{ c = Conv(x, w) t = {LAST}(c) "
        f"z = Tile(two, two) a, b = Split<axis = 3>(t, z) y = Relu(a) u = Relu(b) }}",
        opset=13, two=i64(2), **W,
    )  # fmt: skip
    same(built)


def test_an_operand_that_is_stored_sparsely_keeps_the_layout():
    built = model(f"{FIXED} {{ c = Conv(x, w) t = {LAST}(c) r = Add(t, k) y = {FIRST}(r) }}", **W)
    values = numpy_helper.from_array(np.float32([5, 7]), "k")
    places = numpy_helper.from_array(i64(3, 40), "")
    sparse = helper.make_sparse_tensor(values, places, [1, 8, 8, 4])
    built.graph.sparse_initializer.append(sparse)
    same(built)


def test_two_outputs_of_one_transposed_tensor_are_in_order():
    built = model(
        f"(float[1,4,8,8] x) => (float[] y, float[] z) {{ c = Conv(x, w) y = {LAST}(c) "
        f"z = {LAST}(c) }}",
        **W,
    )
    fused = same(built)
    seen = {"x", *(t.name for t in fused.graph.initializer)}
    for node in fused.graph.node:
        assert seen.issuperset(node.input)
        seen.update(node.output)


def test_ir_3_keeps_new_constants_out_of_the_initializers():
    """There an initializer must be a graph input, which a caller may set."""
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))
        for name, array in (("w", integers("w", 4, 4, 1, 1)), ("k", integers("k", 4)))
    ]
    built = model(
        f"{FIXED} {{ c = Conv(x, w) t = {LAST}(c) r = Mul(t, k) s = Relu(r) y = {FIRST}(s) }}",
        opset=8, ir=3, w=(4, 4, 1, 1), k=(4,),
    )  # fmt: skip
    del built.graph.initializer[:]
    nodes = [*constants, *built.graph.node]
    del built.graph.node[:]
    built.graph.node.extend(nodes)
    fused = same(built)
    assert not fused.graph.initializer
    assert [op for op in ops(fused) if op != "Constant"] == ["Conv", "Relu"]


@pytest.mark.parametrize("text", ["b = Add(x, m)", "b = Sub(x, k)"])
def test_a_view_of_a_map_read_by_maps_that_do_not_nest(text):
    built = model(
        f"(float[1,4,5,5] x) => (float[] y) {{ {text} p = Conv<pads = [1,0,1,0]>(b, v) "
        "q = Conv<pads = [0,1,0,1]>(b, h) y = Add(p, q) }",
        m=(4, 5, 1), k=(4, 5, 5), v=(4, 4, 3, 1), h=(4, 4, 1, 3),
    )  # fmt: skip
    same(built)


def test_one_constant_broadcast_at_two_sizes():
    built = model(
        "(float[1,4,5,5] x) => (float[] y) { a = Add(x, m) p = Pad(a, by) b = Add(p, m) "
        "y = Conv(b, w) }",
        m=(4, 5, 1), by=i64(0, 0, 0, 1, 0, 0, 0, 1), **W,
    )  # fmt: skip
    same(built)


STRIP = "s = Shape(a) n = Gather(s, zero) l = Gather(s, last) "


@pytest.mark.parametrize("graph", [OPEN, "(float[N,4,H,9] x) => (float[] y)",
                                   "(float[N,4,H,V] x) => (float[] y)"])  # fmt: skip
def test_strips_whose_sizes_are_folded_in_part(graph):
    built = model(
        f"{graph} {{ a = Conv(x, w, b) {STRIP} q = Concat<axis = 0>(n, four, one, l) "
        "e = Expand(k, q) f = Concat<axis = 2>(e, a, e) y = Conv(f, v) }",
        k=integers("k", 4, 1, 1), zero=i64(0), last=i64(-1), four=i64(4), one=i64(1),
        b=(4,), v=(4, 4, 3, 3), **W,
    )  # fmt: skip
    same(built, 9)


def test_a_strip_that_decides_an_open_batch():
    built = model(
        "(float[N,4,9,9] x) => (float[] y) { a = Conv(x, w, b) f = Concat<axis = 2>(k, a) "
        "y = Conv(f, v) }",
        k=np.broadcast_to(integers("k", 1, 4, 1, 1), (2, 4, 1, 9)).copy(), b=(4,),
        v=(4, 4, 3, 3), **W,
    )  # fmt: skip
    same(built, 2)


@pytest.mark.parametrize("text", ["m = Mul(c, k)", "m = Div(c, k)", "m = Add(c, z)"])
def test_a_neutral_constant_over_the_width_holds_at_that_width(text):
    built = model(
        f"(float[N,4,40,40] x) => (float[] y) {{ c = Conv(x, w) {text} y = Conv(m, v) }}",
        k=np.ones(40, np.float32), z=np.zeros(40, np.float32), v=(4, 4, 1, 1), **W,
    )  # fmt: skip
    same(built, 1)


def test_empty_strips_are_left_alone():
    built = model(
        f"{FIXED} {{ c = Conv(x, w) f = Concat<axis = 2>(k, c) y = Conv(f, v) }}",
        k=np.zeros((1, 4, 0, 8), np.float32), v=(4, 4, 3, 3), **W,
    )  # fmt: skip
    assert "Concat" in ops(same(built))
    built = model(
        f"{FIXED} {{ c = Conv(x, w) f = ScatterElements<axis = 2>(c, i, u) y = Conv(f, v) }}",
        i=np.zeros((1, 4, 0, 8), np.int64), u=np.zeros((1, 4, 0, 8), np.float32),
        v=(4, 4, 3, 3), **W,
    )  # fmt: skip
    assert "ScatterElements" in ops(same(built))


def test_bnandpad_with_some_sizes_open():
    """As dynamo writes it; what is certain of the shape is folded, the rest is not."""
    edges, name = [], "p"
    turns = [("[2,1,0,3]", 2), ("[3,1,2,0]", 3)]
    for number, ((perm, axis), end) in enumerate((t, e) for t in turns for e in (False, True)):
        i = str(number)
        low, high = ("minus", "far") if end else ("zero", "one")
        edges.append(
            f"t{i} = Transpose<perm = {perm}>({name}) s{i} = Shape<start = {axis}, "
            f"end = {axis + 1}>({name}) z{i} = Squeeze(s{i}) r{i} = Range(first, z{i}, step) "
            f"c{i} = Slice(r{i}, {low}, {high}) i{i} = Unsqueeze(c{i}, minus) g{i} = Shape(t{i}) "
            f"h{i} = Slice(g{i}, one, far) q{i} = Concat<axis = 0>(one, h{i}) "
            f"v{i} = Transpose<perm = {perm}>(k) e{i} = Expand(v{i}, q{i}) "
            f"d{i} = ScatterND(t{i}, i{i}, e{i}) u{i} = Transpose<perm = {perm}>(d{i})"
        )
        name = f"u{i}"
    bias = integers("b", 4)
    for graph in ("float[N,4,9,9] x", "float[1,4,H,9] x", "float[N,4,H,V] x", "float[1,4,9,9] x"):
        built = model(
            f"({graph}) => (float[] y) {{ a = Conv(x, w, b) p = Pad(a, by) {' '.join(edges)} "
            f"y = Conv({name}, v) }}",
            opset=15, b=bias, k=bias.reshape(1, 4, 1, 1), v=(4, 4, 3, 3),
            by=i64(0, 0, 1, 1, 0, 0, 1, 1), zero=i64(0), one=i64(1), minus=i64(-1),
            far=i64(2**31 - 1), first=np.int64(0), step=np.int64(1), **W,
        )  # fmt: skip
        fused = same(built, 9)
        assert [op for op in ops(fused) if op != "Constant"] == ["Conv"], graph


def test_strips_a_few_roundings_apart_are_one_value():
    bias = integers("b", 4) / np.float32(3)
    nudged = np.nextafter(bias, np.float32(9))
    strips = {
        f"{kind}{side}": array
        for side in range(2)
        for kind, array in (
            ("i", np.full((1, 4, 1, 10), -side, np.int64)),
            ("u", np.broadcast_to((bias, nudged)[side].reshape(1, 4, 1, 1), (1, 4, 1, 10)).copy()),
        )
    }
    built = model(
        f"{FIXED} {{ a = Conv(x, w) p = Pad(a, by) f = ScatterElements<axis = 2>(p, i0, u0) "
        "g = ScatterElements<axis = 2>(f, i1, u1) y = Conv(g, v) }",
        by=i64(0, 0, 1, 1, 0, 0, 1, 1), v=(4, 4, 3, 3), **strips, **W,
    )  # fmt: skip
    onnxfuse.fuse(built)


def test_a_map_whose_channels_are_split():
    built = model(
        "(float[2,3,4,10] x) => (float[] y) { a = Add(k, x) b, c = Split<axis = 1>(a, z) "
        "y = Concat<axis = 1>(c, b) }",
        k=(3, 4, 10), z=i64(1, 2),
    )  # fmt: skip
    same(built)


def test_an_approximation_keeps_maps_that_lie_over_data():
    frame = np.zeros((1, 1, 9, 11), np.float32)
    frame[..., 1:-1, 1:-1] = 3
    built = model(
        "(float[1,4,9,11] x) => (float[] y) { a = Sub(x, m) b = Conv(a, w) y = Relu(b) }",
        m=frame, **W,
    )  # fmt: skip
    fused, _ = onnxfuse.fuse(built, approximate_borders=True)
    given = feeds(built, 9)
    expected, actual = (session(each).run(None, given)[0] for each in (built, fused))
    np.testing.assert_array_equal(actual, expected)


def test_a_batch_that_comes_with_another_source_is_priced():
    built = model(
        "(float[N,4,7,6] x, float[2,8,7,6] z) => (float[] y) { a = Conv(x, w) b = Conv(x, v) "
        "c = Concat<axis = 1>(a, b) d = Div(c, k) y = Add(d, z) }",
        v=(4, 4, 1, 1), k=np.float32(2), **W,
    )  # fmt: skip
    same(built, 2)


def test_a_fused_model_that_does_not_load_is_not_written(monkeypatch, tmp_path):
    """Nothing is written either where the original loads and the fused model does not."""
    from onnxfuse.cli import main
    from onnxfuse.verify import sides

    real, count = sides._session, []

    def second_fails(*arguments: object) -> object:
        count.append(1)
        if len(count) == 2:
            raise sides.CannotRunError("no such kernel")
        return real(*arguments)

    monkeypatch.setattr(sides, "_session", second_fails)
    built = model(f"{FIXED} {{ a = Conv(x, w) y = Conv(a, v) }}", v=(4, 4, 1, 1), **W)
    onnx.save(built, tmp_path / "in.onnx")
    assert main([str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "-q"]) == 3
    assert not (tmp_path / "out.onnx").exists()


def test_an_old_opset_is_run_whole_too():
    built = model(f"{FIXED} {{ a = Conv(x, w) y = Conv(a, v) }}", opset=8, v=(4, 4, 1, 1), **W)
    _, report = onnxfuse.fuse(built)
    assert report.changed
    assert report.verification is not None
    assert report.verification.status == "passed"


def test_annotations_of_tensors_that_are_gone_go_too():
    built = model(f"{FIXED} {{ c = Conv(x, w) t = {LAST}(c) r = Relu(t) y = {FIRST}(r) }}", **W)
    for name in ("t", "r", "x"):
        built.graph.quantization_annotation.add().tensor_name = name
    fused = same(built)
    assert [a.tensor_name for a in fused.graph.quantization_annotation] == ["x"]


def test_a_sum_in_another_order_may_tip_what_follows():
    """onnxruntime's Sigmoid of -11 is a whole number of 2⁻²⁴: rounding before it shows."""
    built = model(
        f"(float[1,10,7,4] x) => (float[] y) {{ t = {FIRST}(x) u = {LAST}(t) "
        f"r = ReduceSum<axes = [-3,-2], keepdims = 1>(u) s = Sigmoid(r) m = Mul(u, s) "
        f"v = {FIRST}(m) y = AveragePool<kernel_shape = [2,2], strides = [2,2]>(v) }}",
        opset=11,
    )
    _, report = onnxfuse.fuse(built)
    assert report.changed
    assert report.verification is not None
    assert report.verification.status == "passed"


def test_strips_on_two_axes_with_an_open_batch():
    """Inference loses the width behind the first Concat; the form knows it."""
    bias = integers("b", 4)
    built = model(
        "(float[N,4,9,9] x) => (float[] y) { a = Conv(x, w, b) s = Shape(a) n = Gather(s, zero) "
        "q = Concat<axis = 0>(n, side) e = Expand(k, q) f = Concat<axis = 3>(e, a, e) "
        "r = Concat<axis = 0>(n, top) g = Expand(k, r) h = Concat<axis = 2>(g, f, g) "
        "y = Conv(h, v) }",
        b=bias, k=bias.reshape(4, 1, 1), zero=i64(0), side=i64(4, 9, 1), top=i64(4, 1, 11),
        v=(4, 4, 3, 3), **W,
    )  # fmt: skip
    assert ops(same(built, 1, 2)) == ["Conv"]


def test_a_strip_of_certain_width_for_a_tensor_of_open_width():
    """It holds at one width only, and none is certain."""
    built = model(
        "(float[1,4,H,V] x) => (float[] y) { a = Conv(x, w, b) f = Concat<axis = 2>(k, a, k) "
        "y = Conv(f, v) }",
        b=(4,), k=np.broadcast_to(integers("b", 1, 4, 1, 1), (1, 4, 1, 9)).copy(),
        v=(4, 4, 3, 3), **W,
    )  # fmt: skip
    same(built, 9)


@pytest.mark.parametrize("value", [1e30, -3e9, 1e5])
def test_padding_that_swallows_digits_is_left_alone(value):
    """The 5-D Pad of PaddlePaddle pads by what happens to stand in memory."""
    built = model(
        f"{FIXED} {{ a = Conv(x, w, b) u = Unsqueeze(a, two) p = Pad(u, by, v) "
        "q = Squeeze(p, two) r = Add(q, m) c = Conv(q, k) d = Conv(r, k) y = Add(c, d) }",
        b=(4,), two=i64(2), by=i64(0, 0, 0, 1, 1, 0, 0, 0, 1, 1), v=np.float32(value),
        m=(1, 4, 10, 10), k=(4, 4, 3, 3), **W,
    )  # fmt: skip
    fused, _ = onnxfuse.fuse(built)
    assert "Pad" in ops(fused)


def test_a_region_whose_terms_cancel_is_not_called_wrong() -> None:
    """Where a bias cancels, the output is smaller than what rounding leaves of its terms.

    Found by a random graph: two BNs behind a convolution of zeros.
    """
    from random_graphs import make

    _, report = onnxfuse.fuse(make(248).model)
    assert report.verification is not None
    assert report.verification.status == "passed"
