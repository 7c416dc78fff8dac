"""Two models compared: what is equal, what differs, and what nobody can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import model
from two_models import FIXTURES, W, X, differs, loaded, one, refused, verdict

from onnxfuse.errors import InputError
from onnxfuse.model import io
from onnxfuse.verify import equivalence, trials
from onnxfuse.verify.equivalence import Tolerance, compare


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
    assert one(found).rms < one(found).allowed * 2 / 3  # 6 is not what makes them equal


def test_open_sizes_are_run_at_two() -> None:
    found = compare(file("acnet_k3.ts-dyn"), file("acnet_k3.dynamo-dyn"))
    assert found.status == "equal"
    assert found.runs == ("input:1x8x32x32", "input:2x8x45x45")


def test_a_weight_that_is_one_percent_off_is_found() -> None:
    a = file("repvgg_a0.ts")
    found = compare(a, changed(a, 4, 1.01))
    assert found.status == "different"
    assert one(found).rms > one(found).allowed


@pytest.mark.parametrize(("factor", "status"), [(1e-6, "equal"), (1e-3, "different")])
def test_a_bias_may_be_a_few_roundoffs_off(factor: float, status: str) -> None:
    """One bias of twelve is off by less than the floor of 24 roundoffs (1.4e-6)."""
    a = file("acnet_k3.deploy")
    found = compare(a, changed(a, 1, 1 + factor))
    assert found.status == status
    assert one(found).rms > 0
    assert one(found).allowed >= 24 * 2.0**-24


# Shapes, types, outputs


def test_types_and_shapes_must_agree() -> None:
    a = model(f"{X} {{ y = Exp(x) }}")
    differs(a, model(f"{X} {{ a = Exp(x) y = Transpose(a) }}"),
            "is float32[8,2] in B, float32[2,8] in A")  # fmt: skip
    wide = model("(float[2,8] x) => (double[] y) { a = Exp(x) y = Cast<to = 11>(a) }")
    differs(a, wide, "is float64[2,8] in B, float32[2,8] in A")


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
    assert found.notes == ("the outputs are in another order in B; they are compared by name",)
    assert not verdict(a, a).notes


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
        found = verdict(left, right)
        assert found.runs == ("x:3x8",)
        for note in found.notes:
            assert note.endswith("other sizes were not compared")
        assert sorted(note[:28] for note in found.notes) == [
            "dimension 0 of input 'x' is ", "dimension 1 of input 'x' is ",
        ]  # fmt: skip


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

    monkeypatch.setattr(trials, "Graph", fails)
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
    monkeypatch.setattr(trials, "INLINE", 0)
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


def test_noise_is_drawn_more_often_where_it_may_yet_explain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts: list[str] = []
    a = model(f"{X} {{ y = Exp(x) }}")
    b = model(f"{X} {{ e = Exp(x) y = Mul(e, k) }}", k=np.float32(1 + 2**-17))
    assert verdict(a, b, progress=texts.append).status == "different"
    assert texts.count("A under noise at x:2x8") == equivalence.MOST_DRAWS
    texts.clear()
    monkeypatch.setattr(equivalence, "HELD", 0)
    assert verdict(a, b, progress=texts.append).status == "different"
    assert texts.count("A under noise at x:2x8") == equivalence.DRAWS


def test_an_input_of_unknown_rank_takes_the_shape_it_has_elsewhere() -> None:
    known, unknown = (model(f"{X} {{ y = Exp(x) }}") for _ in range(2))
    unknown.graph.input[0].type.tensor_type.ClearField("shape")
    for a, b in ((known, unknown), (unknown, known)):
        assert verdict(a, b).runs == ("x:2x8",)
    assert verdict(unknown, unknown, {"x": (3, 5)}).runs == ("x:3x5",)


def test_a_model_that_fails_under_noise_needs_a_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "noise", lambda _: lambda feed: "out of range")
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
