"""Two models compared: what is equal, what differs, and what nobody can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import model

from onnxfuse.errors import InputError
from onnxfuse.model import io
from onnxfuse.model.graph import Graph
from onnxfuse.model.shapes import infer
from onnxfuse.records import Difference, Equivalence
from onnxfuse.verify import equivalence
from onnxfuse.verify.equivalence import Tolerance, compare
from onnxfuse.verify.judge import Answers, Bounds, Finding, judge
from onnxfuse.verify.rounding import levels

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
X = "(float[2,8] x) => (float[] y)"
W = {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}


def loaded(of: onnx.ModelProto) -> io.Loaded:
    data = of.SerializeToString()
    return io.Loaded(io.parse(data, "a test"), data, None)


def verdict(a: onnx.ModelProto, b: onnx.ModelProto, *args: object, **more: object) -> Equivalence:
    return compare(loaded(a), loaded(b), *args, **more)


def one(found: Equivalence) -> Difference:
    (output,) = found.outputs
    return output


def differs(a: onnx.ModelProto, b: onnx.ModelProto, text: str, *args: object) -> Difference:
    """B differs from A, in one output and with this text; A does not differ from itself."""
    assert verdict(a, a, *args).status == "equal"
    found = verdict(a, b, *args)
    assert found.status == "different"
    output = one(found)
    assert not output.equal
    assert text in output.text
    return output


def refused(a: onnx.ModelProto, b: onnx.ModelProto, text: str, *args: object) -> None:
    with pytest.raises(InputError, match=text) as caught:
        verdict(a, b, *args)
    assert "\n" not in str(caught.value)


def file(name: str) -> io.Loaded:
    return io.load(FIXTURES / f"{name}.onnx")


def changed(of: io.Loaded, rank: int, factor: float) -> io.Loaded:
    """The model with the first entry of an initializer of a certain rank times ``factor``."""
    copy = onnx.ModelProto()
    copy.CopyFrom(of.model)
    tensor = next(t for t in copy.graph.initializer if len(t.dims) == rank)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] *= factor
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return loaded(copy)


# Exports


@pytest.mark.parametrize("name", ["repvgg_s1_g1", "dbb_k3_s1", "acnet_k3", "bsconv_s"])
@pytest.mark.parametrize("kind", ["deploy", "dynamo", "dynamo-dyn"])
def test_exports_of_the_same_weights_are_equal(name: str, kind: str) -> None:
    found = compare(file(f"{name}.ts"), file(f"{name}.{kind}"))
    assert found.status == "equal"
    assert len(found.runs) == 1
    assert one(found).rms < one(found).allowed / 10  # 16 is not what makes them equal


def test_open_sizes_are_run_at_two() -> None:
    found = compare(file("acnet_k3.ts-dyn"), file("acnet_k3.dynamo-dyn"))
    assert found.status == "equal"
    assert found.runs == ("input:1x8x32x32", "input:2x8x45x45")


def test_a_network_of_thousands_of_nodes_is_disturbed_where_its_input_is() -> None:
    of = file("dbb_stack7.ts").model
    graph = Graph(of)
    noise, _ = levels(graph, infer(graph, {}).types, lambda _: {}, 4.0)
    assert len(graph.nodes) > 3_000
    assert 10 < len(noise) < 200


def test_a_weight_that_is_one_percent_off_is_found() -> None:
    a = file("repvgg_a0.ts")
    found = compare(a, changed(a, 4, 1.01))
    assert found.status == "different"
    assert one(found).rms > one(found).allowed


@pytest.mark.parametrize(("factor", "status"), [(1e-6, "equal"), (1e-3, "different")])
def test_a_bias_may_be_a_few_roundoffs_off(factor: float, status: str) -> None:
    """One bias of twelve is 8e-7 of the output off, below the floor of 64 roundoffs (3.8e-6)."""
    a = file("acnet_k3.deploy")
    found = compare(a, changed(a, 1, 1 + factor))
    assert found.status == status
    assert one(found).rms > 0
    assert one(found).allowed >= 64 * 2.0**-24


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
    a = model(f"{X} {big}", k=np.float32(1e4))
    b = model(f"{X} {{ y = Identity(x) }}")
    found = verdict(a, b)
    assert found.status == "equal"
    assert one(found).rms > 1e-4
    assert one(found).allowed < 0.5
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
    a = model(f"{X} {{ a = Add(x, k) y = Sub(a, k) }}", opset=opset, k=np.float32(1e4))
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
        of = model(text, k=np.float32(1e4))
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
            f"{X} {{ n = RandomNormal<shape = [2,8], scale = 0.01, seed = {scale}>() "
            f"y = Add(x, n) }}"
        )

    found = verdict(build(1.0), build(2.0))
    assert found.status == "equal"
    assert one(found).rms > 1e-3
    differs(build(1.0), model(f"{X} {{ y = Add(x, k) }}", k=np.float32(0.5)), "")


def test_nothing_but_noise_proves_nothing() -> None:
    text = "{ n = RandomNormalLike<seed = 1.0>(x) y = Mul(x, n) }"
    found = verdict(model(f"{X} {text}"), model(f"{X} {text.replace('1.0', '2.0')}"))
    assert found.status == "not-run"
    assert any("proves nothing" in note for note in found.notes)


# Integers, booleans, text


def test_integers_are_compared_exactly() -> None:
    a = model("(float[2,8] x) => (int64[] y) { m = MatMul(x, w) y = ArgMax(m) }", **W)
    b = model("(float[2,8] x) => (int64[] y) { m = MatMul(x, w) y = ArgMin(m) }", **W)
    found = differs(a, b, "elements differ; rounding changes 0 in A")
    assert found.allowed == 0
    assert 0 < found.rms <= 1
    assert found.largest >= 1


def test_integers_that_rounding_changes_may_differ_as_often() -> None:
    """A number of 10⁵ has seven bits behind the point: rounding decides a few Floors in 4,096."""
    graph = "(float[4096] x) => (int32[] y)"
    a = model(
        f"{graph} {{ s = Mul(x, k) a = Add(s, z) f = Floor(a) y = Cast<to = 6>(f) }}",
        k=np.float32(1e5), z=np.float32(0),
    )  # fmt: skip
    b = model(f"{graph} {{ s = Div(x, k) f = Floor(s) y = Cast<to = 6>(f) }}", k=np.float32(1e-5))
    found = one(verdict(a, b))
    assert found.equal
    assert 0 < found.rms <= found.allowed < 1
    assert "rounding changes" in found.text


def test_booleans_and_text() -> None:
    less = model("(float[2,8] x) => (bool[] y) { y = Less(x, k) }", k=np.float32(0))
    more = model("(float[2,8] x) => (bool[] y) { y = Greater(x, k) }", k=np.float32(0))
    differs(less, more, "16 of 16 elements differ")
    same = model("(string[3] x) => (string[] y) { y = Identity(x) }")
    fixed = model("(string[3] x) => (string[] y) { y = Where(c, x, x) }", c=np.array(True))
    assert verdict(same, fixed).status == "equal"
    other = model("(string[3] x) => (string[] y) { y = Where(c, x, k) }", c=np.array(False),
                  k=np.array(["a", "b", "c"], object))  # fmt: skip
    differs(same, other, "3 of 3 elements differ")


# Tolerances that are given


def test_a_tolerance_is_for_every_element() -> None:
    a = model(f"{X} {{ y = Mul(x, k) }}", k=np.float32(1))
    b = model(f"{X} {{ y = Mul(x, k) }}", k=np.float32(1.001))
    tight, loose = Tolerance({"": 0.9e-3}, {}), Tolerance({"": 1.1e-3}, {})
    found = differs(a, b, "16 of 16 elements beyond 0 + 0.0009·|A|", None, tight)
    assert found.allowed == 0
    assert found.rms == pytest.approx(1e-3, rel=1e-3)
    assert verdict(a, b, None, loose).status == "equal"
    assert verdict(a, b, None, Tolerance({"": 0.9e-3}, {"": 1e-3})).status == "equal"


def test_a_tolerance_may_be_of_one_output() -> None:
    text = "(float[2,8] x) => (float[] y, float[] z) {{ y = Mul(x, {}) z = Mul(x, {}) }}"
    data = {"k": np.float32(1), "v": np.float32(1.01)}
    a, b = model(text.format("k", "k"), **data), model(text.format("v", "v"), **data)
    found = verdict(a, b, None, Tolerance({"y": 0.1}, {}))
    assert {output.name: output.equal for output in found.outputs} == {"y": True, "z": False}
    refused(a, b, "no output 'q'; their outputs are 'y', 'z'", None, Tolerance({}, {"q": 1.0}))


def test_a_tolerance_holds_for_integers_and_not_for_booleans() -> None:
    text = "(int32[2,8] x) => (int32[] y) { y = Add(x, k) }"
    a, b = (model(text, k=np.int32(k)) for k in (0, 2))
    differs(a, b, "16 of 16 elements beyond", None, Tolerance({}, {"": 1.0}))
    assert verdict(a, b, None, Tolerance({}, {"": 2.0})).status == "equal"
    text = "(int32[2,8] x) => (bool[] y) {{ y = {}(x, k) }}"
    less, more = (model(text.format(op), k=np.int32(2)) for op in ("Less", "Greater"))
    differs(less, more, "elements differ", None, Tolerance({}, {"": 2.0}))


def test_a_missing_number_is_never_within_a_tolerance() -> None:
    a = model(f"{X} {{ a = Abs(x) y = Sqrt(a) }}")
    differs(a, model(f"{X} {{ y = Sqrt(x) }}"), "is NaN where A is finite", None,
            Tolerance({}, {"": 1e9}))  # fmt: skip


# Values that are not finite


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        (1.0, np.nan, "is NaN where A is finite (16 of 16 elements)"),
        (np.nan, 1.0, "is finite where A is NaN"),
        (np.nan, np.inf, "is +inf where A is NaN"),
        (np.inf, -np.inf, "is -inf where A is +inf"),
    ],
)
def test_what_is_not_finite_differs(left: float, right: float, text: str) -> None:
    def build(value: float, rest: str) -> onnx.ModelProto:
        of = f"(float[2,8] x) => (float[] y) {{ o = Div(x, x) z = Mul(o, k) {rest} }}"
        return model(of, k=np.float32(value))

    alone, joined = "y = Identity(z)", "y = Concat<axis = 0>(z, x)"
    found = verdict(build(left, alone), build(right, alone))
    assert found.status == "different"
    assert text in one(found).text
    differs(build(left, joined), build(right, joined), text.partition(" (")[0])


def test_nothing_but_infinities_is_equal_and_says_so() -> None:
    of = model(f"{X} {{ z = Sub(x, x) o = Exp(z) y = Div(o, z) }}")
    found = verdict(of, of)
    assert found.status == "equal"
    assert "no finite element" in one(found).text


def test_nothing_but_nan_proves_nothing() -> None:
    nan = model(f"{X} {{ z = Sub(x, x) y = Div(z, z) }}")
    found = verdict(nan, nan)
    assert found.status == "not-run"
    assert any("'y' proves nothing: it is NaN everywhere" in note for note in found.notes)
    text = "(float[2,8] x) => (float[] y, float[] v) { z = Sub(x, x) y = Div(z, z) v = Exp(x) }"
    found = verdict(model(text), model(text))
    assert found.status == "equal"
    assert any("proves nothing" in note for note in found.notes)


def test_what_overflows_by_rounding_alone_is_not_compared() -> None:
    """65,504 is float16's largest number: half the noise makes it infinite, in A as in B."""
    graph = "(float16[64] x) => (float16[] y)"
    a = model(f"{graph} {{ z = Sub(x, x) y = Add(z, k) }}", k=np.float16(65504))
    b = model(f"{graph} {{ z = Sub(x, x) y = Add(z, k) }}", k=np.float16(np.inf))
    found = verdict(a, b)
    assert not one(found).equal  # those that noise leaves finite
    assert one(found).text.startswith("is +inf where A is finite")
    assert "(64 of" not in one(found).text


# Shapes, types, outputs


def test_types_and_shapes_must_agree() -> None:
    a = model(f"{X} {{ y = Exp(x) }}")
    differs(a, model(f"{X} {{ a = Exp(x) y = Transpose(a) }}"),
            "is float32[8,2] in B, float32[2,8] in A")  # fmt: skip
    wide = model("(float[2,8] x) => (double[] y) { a = Exp(x) y = Cast<to = 11>(a) }")
    differs(a, wide, "is float64[2,8] in B, float32[2,8] in A")


def test_empty_outputs_are_equal() -> None:
    of = model(f"{X} {{ y = Slice(x, a, a, a) }}", a=np.array([0], np.int64))
    found = verdict(of, of)
    assert found.status == "equal"
    assert one(found).text == "has no elements"


def test_zeros_are_noted() -> None:
    a = model(f"{X} {{ a = Abs(x) b = Neg(a) y = Relu(b) }}")
    b = model(f"{X} {{ a = Exp(x) b = Neg(a) y = Relu(b) }}")
    found = verdict(a, b)
    assert found.status == "equal"
    assert any("0 everywhere" in note for note in found.notes)


def test_outputs_of_other_names_are_compared_by_position() -> None:
    text = "(float[2,8] x) => (float[] {0}, float[] {1}) {{ {0} = Exp(x) {1} = Neg(x) }}"
    found = verdict(model(text.format("a", "b")), model(text.format("c", "d")))
    assert found.status == "equal"
    assert any("'a' of A is compared with 'c' of B, by position" in note for note in found.notes)
    swapped = "(float[2,8] x) => (float[] b, float[] c) { c = Exp(x) b = Neg(x) }"
    found = verdict(model(text.format("a", "b")), model(swapped))  # b is found by name
    assert found.status == "equal"


def test_order_of_outputs_and_inputs_does_not_matter() -> None:
    a = model("(float[4] x, float[4] z) => (float[] y, float[] v) { y = Sub(x, z) v = Exp(x) }")
    b = model("(float[4] z, float[4] x) => (float[] v, float[] y) { y = Sub(x, z) v = Exp(x) }")
    found = verdict(a, b)
    assert found.status == "equal"
    assert not found.notes


def test_a_missing_output_differs() -> None:
    a = model("(float[4] x) => (float[] y, float[] v) { y = Exp(x) v = Neg(x) }")
    b = model("(float[4] x) => (float[] y) { y = Exp(x) }")
    for left, right, which in ((a, b, "B"), (b, a, "A")):
        found = verdict(left, right)
        assert found.status == "different"
        by_name = {output.name: output for output in found.outputs}
        assert by_name["y"].equal
        assert by_name["v"].text == f"is missing in {which}"
        assert not by_name["v"].equal


def test_sequences_are_compared_part_by_part() -> None:
    text = "(float[4,2] x) => (seq(float[]) y) {{ a = {} y = SplitToSequence<axis = 0>(a, n) }}"
    two, one_by_one = np.array(2, np.int64), np.array(1, np.int64)
    a = model(text.format("Exp(x)"), n=two)
    differs(a, model(text.format("Neg(x)"), n=two), "")
    differs(a, model(text.format("Exp(x)"), n=one_by_one), "holds 4 tensors in B, 2 in A")


# Inputs


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        ("float[4] x", "float[4] z", "input 'x' of A is missing in B, whose inputs are 'z'"),
        ("float[4] x", "float[4] x, float[4] z", "input 'z' of B is missing in A"),
        ("float[4] x", "double[4] x", "a tensor of float in A and a tensor of double in B"),
        ("float[4] x", "float[4,1] x", "has 1 dimensions in A and 2 in B"),
        ("float[4,N] x", "float[5,N] x", "dimension 0 of input 'x' is 4 in A and 5 in B"),
    ],
)
def test_models_must_take_the_same_inputs(left: str, right: str, text: str) -> None:
    a, b = (model(f"({given}) => (float[] y) {{ y = Identity(x) }}".replace(
        "(x)", "(z)" if given == "float[4] z" else "(x)")) for given in (left, right))  # fmt: skip
    refused(a, b, text)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ({"q": (1,)}, "no input 'q'; their inputs are 'x'"),
        ({"x": (1,)}, "has 2 dimensions, not 1"),
        ({"x": (3, 9)}, "dimension 1 of input 'x' is 8 in the models, not 9"),
    ],
)
def test_sizes_that_cannot_be(shape: dict[str, tuple[int, ...]], text: str) -> None:
    a = model("(float[N,8] x) => (float[] y) { y = Exp(x) }")
    b = model("(float[N,M] x) => (float[] y) { y = Exp(x) }")
    refused(a, b, text, shape)
    assert verdict(a, b, {"x": (3, 8)}).runs == ("x:3x8",)


def test_a_size_that_one_model_fixes_is_the_one_that_is_run() -> None:
    a = model("(float[N,8] x) => (float[] y) { y = Exp(x) }")
    b = model("(float[3,M] x) => (float[] y) { y = Exp(x) }")
    for left, right in ((a, b), (b, a)):
        assert verdict(left, right).runs == ("x:3x8",)


def test_initializers_that_are_inputs_need_not_be_given() -> None:
    a = model("(float[4] x) => (float[] y) { y = Mul(x, k) }", ir=3, k=np.float32(2))
    a.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, []))
    b = model("(float[4] x) => (float[] y) { y = Add(x, x) }")
    assert verdict(a, b).status == "equal"


def test_other_inputs_than_tensors_are_not_run() -> None:
    of = model("(seq(float[2]) x) => (float[] y) { y = ConcatFromSequence<axis = 0>(x) }")
    found = verdict(of, of)
    assert found.status == "not-run"
    assert "'x' is not a tensor" in found.notes[0]


# Models and sizes that do not run


def test_a_size_that_both_reject_is_skipped() -> None:
    of = model("(float[N,8] x) => (float[] y) { y = Add(x, k) }", k=np.ones((2, 8), np.float32))
    fixed = model("(float[N,8] x) => (float[] y) { y = Reshape(x, k) }",
                  k=np.array([4, 4], np.int64))  # fmt: skip
    found = verdict(fixed, fixed)  # at a batch of 1 there are 8 elements, no 16
    assert found.runs == ("x:2x8",)
    assert found.status == "equal"
    assert [note.split(":")[0] for note in found.notes] == ["A rejects x", "B rejects x"]
    assert verdict(of, of).runs == ("x:1x8", "x:2x8")


def test_a_size_that_one_rejects_differs() -> None:
    a = model("(float[N,8] x) => (float[] y) { y = Reshape(x, k) }", k=np.array([-1], np.int64))
    b = model("(float[N,8] x) => (float[] y) { y = Reshape(x, k) }", k=np.array([16], np.int64))
    for left, right, which in ((a, b, "B"), (b, a, "A")):
        found = verdict(left, right)
        assert found.status == "different"
        assert one(found).text == f"{which} rejects x:1x8, which the other model runs"
        assert found.runs == ("x:2x8",)


def test_a_model_that_does_not_load_is_not_run() -> None:
    good = model(f"{X} {{ y = Exp(x) }}")
    bad = model(f"{X} {{ y = NoSuchOperator(x) }}")
    for left, right, which in ((good, bad, "B"), (bad, good, "A"), (bad, bad, "A")):
        found = verdict(left, right)
        assert found.status == "not-run"
        assert not found.outputs
        assert found.notes[0].startswith(f"onnxruntime cannot run {which}: ")


def test_where_rounding_cannot_be_measured_a_tolerance_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*arguments: object) -> object:
        raise InputError("no index")

    monkeypatch.setattr(equivalence, "Graph", fails)
    of = model(f"{X} {{ y = Exp(x) }}")
    found = verdict(of, of)
    assert found.status == "not-run"
    assert "--rtol" in found.notes[0]
    assert verdict(of, of, None, Tolerance({"": 1e-6}, {})).status == "equal"


def test_external_data_may_lie_in_two_directories(tmp_path: Path) -> None:
    places = []
    for name, factor in (("a", 1), ("b", 1), ("c", 2)):
        of = model(f"{X} {{ y = MatMul(x, w) }}", w=W["w"] * np.float32(factor))
        places.append(tmp_path / name / "model.onnx")
        places[-1].parent.mkdir()
        onnx.save(of, places[-1], save_as_external_data=True, location="w.bin", size_threshold=0)
    a, b, c = map(io.load, places)
    assert compare(a, b).status == "equal"
    assert compare(a, c).status == "different"
    (tmp_path / "b" / "w.bin").unlink()
    with pytest.raises(InputError, match="is missing"):
        compare(a, b)


def test_a_large_model_is_loaded_from_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equivalence, "INLINE", 0)
    onnx.save(model(f"{X} {{ y = Exp(x) }}"), tmp_path / "m.onnx")
    of = io.load(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"gone")
    assert compare(of, of).status == "not-run"
    monkeypatch.undo()
    assert compare(of, of).status == "equal"


def test_progress_names_what_is_run() -> None:
    texts: list[str] = []
    of = model(f"{X} {{ y = Exp(x) }}")
    verdict(of, of, progress=texts.append)
    assert {text.split(" at ")[0] for text in texts} == {"A", "B", "A under noise"}


def test_noise_is_drawn_again_before_outputs_are_called_different() -> None:
    texts: list[str] = []
    a = model(f"{X} {{ y = Exp(x) }}")
    verdict(a, model(f"{X} {{ y = Neg(x) }}"), progress=texts.append)
    assert texts.count("A under noise at x:2x8") == 3


def test_noise_is_another_at_every_tensor() -> None:
    """Noise that were the same at two tensors would cancel in their difference."""
    of = model(f"{X} {{ a = Exp(x) b = Exp(x) y = Sub(a, b) }}")
    assert one(verdict(of, of)).allowed > 64 * 2.0**-24


def test_an_input_of_unknown_rank_takes_the_shape_it_has_elsewhere() -> None:
    known, unknown = (model(f"{X} {{ y = Exp(x) }}") for _ in range(2))
    unknown.graph.input[0].type.tensor_type.ClearField("shape")
    for a, b in ((known, unknown), (unknown, known)):
        assert verdict(a, b).runs == ("x:2x8",)
    assert verdict(unknown, unknown, {"x": (3, 5)}).runs == ("x:3x5",)


def test_a_model_that_fails_under_noise_needs_a_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "_noise", lambda _: lambda feed: "out of range")
    of = model(f"{X} {{ y = Exp(x) }}")
    found = verdict(of, of)
    assert found.status == "not-run"
    assert "A fails under noise at x:2x8 (out of range); pass a tolerance" in found.notes[0]


def test_maps_are_noted() -> None:
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[1, 2])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2])
    entry = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, entry))
    graph = helper.make_graph([node], "g", [x], [helper.make_value_info("y", kind)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    of = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    found = verdict(of, of, None, Tolerance({"": 0.0}, {}))
    assert found.status == "not-run"
    assert found.notes[0] == "output 'y' is not made of tensors and was not compared"


# Single results


def judged(a: object, b: object, again: object = None, *noisy: object) -> Finding:
    found = judge("y", Answers(a, b, a if again is None else again, noisy), None)
    assert found is not None
    return found


ONES = np.ones(4, np.float32)


def test_some_roundoffs_are_always_allowed() -> None:
    assert judged(ONES, ONES * np.float32(1 + 2**-19)).difference.equal
    assert not judged(ONES, ONES * np.float32(1 + 2**-17)).difference.equal


def test_below_the_normal_numbers_roundoff_does_not_shrink() -> None:
    small = np.full(4, 2**-17, np.float16)  # 128 of the least steps
    step = np.float16(2**-24)
    assert judged(small, small + 30 * step).difference.equal
    assert not judged(small, small + 40 * step).difference.equal


def test_four_times_what_changes_from_run_to_run_is_allowed() -> None:
    for b, equal in ((1.03, True), (1.05, False)):
        found = judged(ONES, ONES * np.float32(b), ONES * np.float32(1.01))
        assert found.difference.equal is equal
    a, again = np.arange(100), np.arange(100)
    again[0] = 7
    assert judged(a, np.where(a < 4, 9, a), again).difference.equal
    assert not judged(a, np.where(a < 5, 9, a), again).difference.equal


def test_sixteen_times_what_noise_changes_is_allowed() -> None:
    for b, equal in ((1.15, True), (1.17, False)):
        found = judged(ONES, ONES * np.float32(b), ONES, ONES, ONES * np.float32(1.01))
        assert found.difference.equal is equal


def test_large_integers_differ_by_one() -> None:
    a = np.array([2**60], np.int64)
    found = judge("y", Answers(a, a + 1, a), Bounds(0.0, 0.0))
    assert found is not None
    assert not found.difference.equal


def test_what_rounding_alone_decides_proves_nothing() -> None:
    nan = np.full(4, np.nan, np.float32)
    for found, text in (
        (judged(ONES, ONES[:3], ONES[:2]), "its shape"),
        (judged([ONES], [ONES] * 3, [ONES] * 2), "how many tensors"),
        (judged(ONES, nan, ONES, nan), "which elements are finite"),
        (judged(ONES, 3 * ONES, 2 * ONES), "from run to run"),
    ):
        assert found.difference.equal
        assert text in found.vain


def test_what_proves_nothing_does_not_stand_for_what_does() -> None:
    vain = judged(ONES, 3 * ONES, 2 * ONES)
    assert max(judged(ONES, ONES), vain, key=lambda one: one.rank) is not vain


def test_outputs_that_hold_nothing_are_equal() -> None:
    assert judge("y", Answers(None, None, None), None) is not None
    assert "holds 1 tensors in B, 0 in A" in judged(None, ONES).difference.text
