"""What rounding does to a model: where noise goes, and what it explains."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import model
from two_models import FIXTURES, W, X, differs, one, verdict

from onnxfuse.model import io
from onnxfuse.model.graph import Graph
from onnxfuse.model.shapes import infer
from onnxfuse.verify.equivalence import Tolerance
from onnxfuse.verify.rounding import levels


def test_a_network_of_thousands_of_nodes_is_disturbed_where_its_input_is() -> None:
    of = io.load(FIXTURES / "dbb_stack7.ts.onnx").model
    graph = Graph(of)
    noise, _ = levels(graph, infer(graph, {}).types, lambda _: {}, 4.0)
    assert len(graph.nodes) > 3_000
    assert 10 < len(noise) < 200


# What is derived


def test_another_order_of_summation_is_equal() -> None:
    a = model(f"{X} {{ a = MatMul(x, w) b = Mul(a, k) y = Softmax(b) }}", k=np.float32(3), **W)
    b = model(f"{X} {{ a = MatMul(x, v) y = Softmax(a) }}", v=W["w"] * np.float32(3))
    found = verdict(a, b)
    assert found.status == "equal"
    assert 0 < one(found).rms < one(found).allowed < 1e-3
    differs(a, model(f"{X} {{ y = MatMul(x, w) }}", **W), "")


def test_the_allowance_follows_cancellation() -> None:
    """Where most digits cancel, noise before the subtraction shows how much is left to compare."""
    big = "{ a = Add(x, k) y = Sub(a, k) }"
    a = model(f"{X} {big}", k=np.float32(1e3))
    b = model(f"{X} {{ y = Identity(x) }}")
    found = verdict(a, b)
    assert found.status == "equal"
    assert one(found).rms > 1e-5
    assert 1e-4 < one(found).allowed < 0.1
    differs(b, a, "")  # and B's own rounding does not count


def test_infinities_inside_do_not_hide_what_follows() -> None:
    """A mask of -inf stays what it is under noise, and what it leads to is compared."""
    mask = np.where(np.eye(8) > 0, np.float32(0), np.float32(-np.inf))[:2]
    a = model(f"{X} {{ a = Add(x, m) b = MatMul(x, w) c = Softmax(a) y = Mul(b, c) }}", m=mask, **W)
    off = {"w": W["w"] * np.float32(1.01)}
    b = model(
        f"{X} {{ a = Add(x, m) b = MatMul(x, w) c = Softmax(a) y = Mul(b, c) }}", m=mask, **off
    )
    differs(a, b, "")


def test_doubles_are_held_to_their_own_roundoff() -> None:
    graph = "(double[2,8] x) => (double[] y)"
    wide = W["w"].astype(np.float64)
    a = model(f"{graph} {{ y = MatMul(x, w) }}", w=wide)
    differs(a, model(f"{graph} {{ y = MatMul(x, w) }}", w=wide * (1 + 1e-10)), "")


@pytest.mark.parametrize("opset", [7, 8, 13])
def test_old_operator_sets_are_disturbed_too(opset: int) -> None:
    a = model(f"{X} {{ a = Add(x, k) y = Sub(a, k) }}", opset=opset, k=np.float32(1e3))
    assert verdict(a, model(f"{X} {{ y = Identity(x) }}", opset=opset)).status == "equal"


def test_half_precision_allows_what_half_precision_rounds() -> None:
    graph = "(float16[2,8] x) => (float16[] y)"
    half = W["w"].astype(np.float16)
    a = model(f"{graph} {{ a = MatMul(x, w) y = Mul(a, k) }}", w=half, k=np.float16(3))
    b = model(f"{graph} {{ y = MatMul(x, w) }}", w=half * np.float16(3))
    found = verdict(a, b)
    assert found.status == "equal"
    assert one(found).rms > 1e-5
    differs(a, model(f"{graph} {{ y = MatMul(x, w) }}", w=half * np.float16(3.5)), "")


def test_a_model_that_rounds_coarser_than_a_needs_a_tolerance() -> None:
    a = model(f"{X} {{ y = MatMul(x, w) }}", **W)
    half = W["w"].astype(np.float16)
    b = model(f"{X} {{ v = Cast<to = 1>(h) y = MatMul(x, v) }}", h=half)
    differs(a, b, "")
    assert verdict(a, b, None, Tolerance({}, {"": 0.05})).status == "equal"


def test_names_like_those_of_the_noise_are_no_obstacle() -> None:
    text = (
        f"{X} {{ a = MatMul(x, w) t = Identity(a) u = Identity(t) y = Add(u, a) }}"  # renamed below
    )
    a = model(text, **W)
    taken = {"a": "y/calm", "t": "x/disturbed", "u": "y/calm/calm", "w": "onnxfuse/disturb"}
    for node in a.graph.node:
        node.input[:] = [taken.get(name, name) for name in node.input]
        node.output[:] = [taken.get(name, name) for name in node.output]
    a.graph.initializer[0].name = taken["w"]
    found = verdict(a, model(text, **W))
    assert found.status == "equal"
    assert one(found).allowed > 0


def test_sizes_that_follow_from_shapes_are_not_disturbed() -> None:
    """Under noise some of the sizes, computed in floats, would be 1.99, and Reshape fail."""
    graph = "(float[2,2,2,2,2,2,2,2] x) => (float[] y)"
    text = f"{graph} {{ s = Shape(x) f = Cast<to = 1>(s) p = Mul(f, k) i = Cast<to = 7>(p) "
    a = model(text + "r = Reshape(x, i) y = Exp(r) }", k=np.float32(1))
    b = model(f"{graph} {{ r = Reshape(x, i) y = Exp(r) }}", i=np.full(8, 2, np.int64))
    assert verdict(a, b).status == "equal"


def noisy_tensors(of: onnx.ModelProto) -> set[str]:
    graph = Graph(of)
    return set(levels(graph, infer(graph, {}).types, lambda _: {}, 1.0)[0])


def test_what_only_a_subgraph_reads_is_read() -> None:
    of = model(f"{X} {{ y = If(c) }}", c=np.array(True))
    for name in ("then_branch", "else_branch"):
        out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 8])
        inner = helper.make_graph(
            [helper.make_node("Exp", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["o"])],
            name, [], [out],
        )  # fmt: skip
        of.graph.node[0].attribute.append(helper.make_attribute(name, inner))
    assert noisy_tensors(of) == {"x", "y"}


def test_a_scatter_that_adds_rounds() -> None:
    text = f"{X} {{{{ y = ScatterND{{}}(x, i, x) }}}}"
    index = np.array([[0], [1]], np.int64)
    assert noisy_tensors(model(text.format(""), i=index)) == {"x"}
    assert noisy_tensors(model(text.format('<reduction = "add">'), i=index)) == {"x", "y"}


def test_weights_that_a_caller_may_set_are_weights() -> None:
    of = model(f"{X} {{ v = Exp(w) y = MatMul(x, v) }}", ir=3, **W)
    of.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 8]))
    assert noisy_tensors(of) == {"x", "y"}


def test_what_is_only_moved_is_not_disturbed() -> None:
    of = model(
        f"{X} {{ t = Transpose(x) r = Relu(t) c = Cast<to = 10>(r) d = Cast<to = 1>(c) "
        f"e = Exp(d) k = Exp(w) y = MatMul(w, e) }}",
        **W,
    )
    graph = Graph(of)
    noise, types = levels(graph, infer(graph, {}).types, lambda _: {}, 1.0)
    assert noise == {"x": 2.0**-24, "c": 2.0**-11, "e": 2.0**-24, "y": 2.0**-24}
    assert types["c"] == TensorProto.FLOAT16


def test_types_that_inference_does_not_know_are_asked_of_the_runtime() -> None:
    """onnx does not know com.microsoft's Gelu, nor what type follows it."""

    def build(text: str) -> onnx.ModelProto:
        of = model(text, k=np.float32(1e3))
        of.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        of.graph.node[0].domain = "com.microsoft"
        return of

    a = build(f"{X} {{ g = Gelu(x) a = Add(g, k) y = Sub(a, k) }}")
    b = build(f"{X} {{ y = Gelu(x) }}")
    del b.graph.initializer[:]
    assert verdict(a, b).status == "equal"


def test_branches_of_an_if_are_run() -> None:
    def build(factor: float) -> onnx.ModelProto:
        of = model(f"{X} {{ s = ReduceSum<keepdims = 0>(x) c = Greater(s, z) y = If(c) }}",
                   z=np.float32(-1e3))  # fmt: skip
        for name, sign in (("then_branch", factor), ("else_branch", -1.0)):
            out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
            nodes = [helper.make_node("Mul", ["x", "k"], ["o"])]
            k = numpy_helper.from_array(np.float32(sign), "k")
            inner = helper.make_graph(nodes, name, [], [out], [k])
            of.graph.node[-1].attribute.append(helper.make_attribute(name, inner))
        return of

    differs(build(2), build(2.01), "")
    assert "y" in levels(Graph(build(2)), {"y": 1}, lambda _: {}, 1.0)[0]


def test_what_a_changes_from_run_to_run_is_allowed_to_b() -> None:
    def build(scale: float) -> onnx.ModelProto:
        return model(
            f"{X} {{ n = RandomNormal<shape = [2,8], scale = 0.001, seed = {scale}>() "
            f"y = Add(x, n) }}"
        )

    found = verdict(build(1.0), build(2.0))
    assert found.status == "equal"
    assert one(found).rms > 1e-4
    differs(build(1.0), model(f"{X} {{ y = Add(x, k) }}", k=np.float32(0.5)), "")


def test_nothing_but_noise_proves_nothing() -> None:
    text = "{ n = RandomNormalLike<seed = 1.0>(x) y = Mul(x, n) }"
    found = verdict(model(f"{X} {text}"), model(f"{X} {text.replace('1.0', '2.0')}"))
    assert found.status == "not-run"
    assert any("proves nothing" in note for note in found.notes)


def test_noise_is_another_at_every_tensor() -> None:
    """Noise that were the same at two tensors would cancel in their difference."""
    of = model(f"{X} {{ a = Exp(x) b = Exp(x) y = Sub(a, b) }}")
    assert one(verdict(of, of)).allowed > 24 * 2.0**-24


def test_rows_of_a_table_and_pixels_are_disturbed() -> None:
    """The first floats there are: without, what cancels in the first sum would not show."""
    table = {"e": np.ones((9, 8), np.float32)}
    ids = model("(int64[4] x) => (float[] y) { g = Gather(e, x) y = Relu(g) }", **table)
    assert noisy_tensors(ids) == {"g"}
    moved = model("(float[4,8] x) => (float[] y) { i = ArgMax(x) y = Gather(x, i) }")
    assert noisy_tensors(moved) == {"x"}
    for kind, found in (("uint8", {"f"}), ("int8", {"f"}), ("int64", set()), ("bool", set())):
        of = model(f"({kind}[4] x) => (float[] y) {{ f = Cast<to = 1>(x) y = Relu(f) }}")
        assert noisy_tensors(of) == found


def test_a_sum_that_cancels_behind_a_table_is_equal() -> None:
    generator = np.random.default_rng(0)
    e = generator.standard_normal((9, 64)).astype(np.float32)
    w = generator.standard_normal((64, 4096)).astype(np.float32)
    graph = "(int64[1] x) => (float[] y)"
    a = model(f"{graph} {{ g = Gather(e, x) y = MatMul(g, w) }}", e=e, w=w)
    b = model(f"{graph} {{ g = Gather(e, x) s = MatMul(g, w) y = Reshape(s, k) }}",
              e=np.ascontiguousarray(e[:, ::-1]), w=np.ascontiguousarray(w[::-1]),
              k=np.array([1, 4096], np.int64))  # fmt: skip
    found = verdict(a, b)
    assert found.status == "equal"
    assert one(found).rms > 0
