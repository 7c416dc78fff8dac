"""What may be asked of the run of the whole model: its inputs, and tolerances."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxfuse
from onnxfuse import realise
from onnxfuse.cli import main
from onnxfuse.model import tensors
from onnxfuse.verify import session

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
REPVGG = str(FIXTURES / "repvgg_s1_g1.ts.onnx")  # input: 3×8×12×12
OPEN = str(FIXTURES / "repvgg_s1_g1.dynamo-dyn.onnx")
SHAPE = (2, 8, 12, 12)
RANDOM = np.random.default_rng(5)


def of(graph: onnx.GraphProto) -> onnx.ModelProto:
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made


def picking() -> onnx.ModelProto:
    """Two convolutions that are summed, and of the result what the input ``at`` says."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Gather", ["c", "at"], ["y"], axis=3),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6]),
        helper.make_tensor_value_info("at", TensorProto.INT64, [1]),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 1])
    weights = [
        numpy_helper.from_array(RANDOM.standard_normal((4, 4, 1, 1)).astype(np.float32), name)
        for name in ("w", "v")
    ]
    return of(helper.make_graph(nodes, "g", inputs, [out], weights))


def shape_of(path: str) -> tuple[int, ...]:
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    return tuple(dim.dim_value or 2 for dim in dims)


def data(path: str = REPVGG) -> np.ndarray:
    return RANDOM.standard_normal(shape_of(path)).astype(np.float32)


def npz(place: Path, **arrays: Any) -> str:
    np.savez(place / "x.npz", **arrays)
    return str(place / "x.npz")


def npy(place: Path, array: np.ndarray) -> str:
    np.save(place / "x.npy", array)
    return str(place / "x.npy")


def fails(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command; it must fail with ``code`` and one clear line on stderr."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("onnxfuse: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """Every feed that onnxruntime is given."""
    feeds: list[dict[str, np.ndarray]] = []
    honest = session.ort.InferenceSession

    class Listening(honest):
        def run(self, names: Any, feed: Any, *more: Any) -> Any:
            feeds.append(feed)
            return super().run(names, feed, *more)

    monkeypatch.setattr(session.ort, "InferenceSession", Listening)
    return feeds


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused weights are written one per cent too large, behind the back of the regions' proof."""
    honest = tensors.make
    monkeypatch.setattr(tensors, "make", lambda n, a, t: honest(n, np.asarray(a) * 1.01, t))


class TestInputData:
    @pytest.mark.parametrize("path", [REPVGG, OPEN])
    def test_they_are_the_only_inputs(
        self,
        path: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        heard: list[dict[str, np.ndarray]],
    ) -> None:
        array, out = data(path), str(tmp_path / "o.onnx")
        name = onnx.load(path).graph.input[0].name
        for file in (npz(tmp_path, **{name: array}), npy(tmp_path, array)):
            heard.clear()
            assert main([path, out, "--input-data", file, "--format", "json"]) == 0
            held = json.loads(capsys.readouterr().out)["verification"]
            assert held["status"] == "passed"
            assert len(held["runs"]) == 1
            assert any("no others were drawn" in note for note in held["notes"])
            assert heard
            assert all(np.array_equal(feed[name], array) for feed in heard)

    def test_verify_takes_them_too(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        heard: list[dict[str, np.ndarray]],
    ) -> None:
        array = data()
        command = ["verify", REPVGG, REPVGG, "--input-data", npy(tmp_path, array)]
        assert main([*command, "--format", "json"]) == 0
        held = json.loads(capsys.readouterr().out)
        assert len(held["runs"]) == 1
        assert any("no others were drawn" in note for note in held["notes"])
        assert all(np.array_equal(feed["input"], array) for feed in heard)

    def test_an_output_that_is_constant_there_proves_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
        path = tmp_path / "r.onnx"
        onnx.save(of(graph), path)
        file = npy(tmp_path, -np.ones(4, np.float32))
        assert main(["verify", str(path), str(path), "--input-data", file]) == 3
        printed = " ".join(capsys.readouterr().out.split())
        assert "at the given input" in printed
        assert main(["verify", str(path), str(path)]) == 0

    @pytest.mark.parametrize(
        ("arrays", "text"),
        [
            ({"other": np.zeros(2, np.float32)}, "no input 'other'"),
            ({}, "lacks input 'input'"),
            ({"input": np.zeros(SHAPE, np.float64)}, ".astype('float32')"),
            ({"input": np.zeros((2, 9), np.float32)}, "reshape it"),
            ({"input": np.zeros((1, 1, 1, 1), np.float32)}, "reshape it"),
            ({"input": np.full(shape_of(REPVGG), np.nan, np.float32)}, "holds NaN"),
        ],
    )
    @pytest.mark.parametrize("command", [[REPVGG], ["verify", REPVGG]])
    def test_what_does_not_fit_is_refused(
        self,
        command: list[str],
        arrays: dict[str, np.ndarray],
        text: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        other = REPVGG if command[0] == "verify" else str(tmp_path / "o.onnx")
        file = npz(tmp_path, **arrays)
        assert text in fails([*command, other, "--input-data", file], 2, capsys)
        assert not (tmp_path / "o.onnx").exists()

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (None, "does not exist"),
            (b"", "numpy.savez"),
            (b"PK\x03\x04 broken", "numpy.savez"),
            (b"\x93NUMPY broken", "numpy.savez"),
            (b"hello", "numpy.savez"),
        ],
    )
    def test_what_is_no_data_is_refused(
        self, content: bytes | None, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file, out = tmp_path / "x.npz", str(tmp_path / "o.onnx")
        if content is not None:
            file.write_bytes(content)
        assert text in fails([REPVGG, out, "--input-data", str(file)], 2, capsys)

    def test_objects_are_never_unpickled(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
        command = [REPVGG, str(tmp_path / "o.onnx"), "--input-data", str(tmp_path / "x.npy")]
        assert "plain arrays" in fails(command, 2, capsys)

    def test_one_array_is_not_enough_for_two_inputs(self) -> None:
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y"))
        out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])
        graph = helper.make_graph([helper.make_node("Add", ["x", "y"], ["z"])], "g", [x, y], [out])
        made, array = of(graph), np.ones(2, np.float32)
        with pytest.raises(onnxfuse.InputError, match=r"single array.*'x', 'y'"):
            onnxfuse.compare(made, made, input_data={"": array})
        found = onnxfuse.compare(made, made, input_data={"x": array, "y": RANDOM.random(2, "f4")})
        assert found.status == "equal"

    def test_what_the_model_rejects_is_an_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
        path.write_bytes(picking().SerializeToString())
        array = np.ones((1, 4, 6, 6), np.float32)
        file = npz(tmp_path, x=array, at=np.array([9]))
        assert "rejects the input data" in fails(
            [str(path), str(out), "--input-data", file], 2, capsys
        )
        assert not out.exists()
        file = npz(tmp_path, x=array, at=np.array([2]))
        assert main([str(path), str(out), "--input-data", file]) == 0

    @pytest.mark.parametrize("number", [np.inf, None])
    def test_what_leaves_nothing_to_compare_proves_nothing(self, number: float | None) -> None:
        size = (0, 8, 12, 12) if number is None else shape_of(OPEN)
        name = onnx.load(OPEN).graph.input[0].name
        array = np.full(size, number or 0, np.float32)
        for asked in ({}, {"rtol": 1e-3}):
            verification = onnxfuse.fuse(OPEN, input_data={name: array}, **asked)[1].verification
            assert verification is not None
            assert verification.status == "not-run"
            assert "nothing was compared" in verification.notes[-1]

    def test_a_size_that_contradicts_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        array = np.zeros((2, 8, 12, 12), np.float32)
        command = [OPEN, str(tmp_path / "o.onnx"), "--input-data", npy(tmp_path, array)]
        error = fails([*command, "--input-shape", "input:3,8,12,12"], 2, capsys)
        assert "--input-shape says 3×8×12×12" in error


class TestSeed:
    def test_it_draws_other_inputs(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        heard: list[dict[str, np.ndarray]],
    ) -> None:
        out = str(tmp_path / "o.onnx")
        for command in ([REPVGG, out], ["verify", REPVGG, REPVGG]):
            found = []
            for seed in ([], ["--seed", "7"], ["--seed", "8"]):
                heard.clear()
                assert main([*command, *seed]) == 0
                found.append(heard[0]["input"])
                printed = " ".join(capsys.readouterr().out.split())
                assert ("drawn with seed" in printed) == bool(seed)
            assert np.array_equal(found[0], found[1])
            assert not np.array_equal(found[0], found[2])

    @pytest.mark.parametrize("seed", ["x", "-1", "1.5", "", "9" * 30])
    def test_what_is_none_is_refused(
        self, seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = [REPVGG, str(tmp_path / "o.onnx"), f"--seed={seed}"]
        assert "whole number" in fails(command, 2, capsys)
        with pytest.raises(onnxfuse.InputError, match="whole number"):
            onnxfuse.fuse(REPVGG, seed=-1)

    def test_contradictions_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = str(tmp_path / "o.onnx")
        for asked in (["--seed", "3"], ["--rtol", "1e-3"], ["--atol", "1e-3"]):
            assert "--no-verify" in fails([REPVGG, out, "--no-verify", *asked], 2, capsys)
        array = {"input": data()}
        with pytest.raises(onnxfuse.InputError, match="leave one out"):
            onnxfuse.fuse(REPVGG, seed=3, input_data=array)
        with pytest.raises(onnxfuse.InputError, match="leave one out"):
            onnxfuse.compare(REPVGG, REPVGG, seed=3, input_data=array)


class TestTolerance:
    def test_a_wide_one_replaces_the_derived_bound(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: None
    ) -> None:
        out = tmp_path / "o.onnx"
        assert main([REPVGG, str(out)]) == 3
        capsys.readouterr()
        wide = ["--rtol", "0.02", "--atol", "0.1"]
        assert main([REPVGG, str(out), *wide, "--format", "json"]) == 0
        held = json.loads(capsys.readouterr().out)["verification"]
        (output,) = held["outputs"]
        assert 1e-3 < output["rms"] <= output["allowed"]
        assert "0.1 + 0.02·|original| in each element" in output["text"]
        assert any("0.1 + 0.02" in note for note in held["notes"])
        assert main([REPVGG, str(out), *wide]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "within the tolerance" in printed
        assert "rounding explains" not in printed

    def test_a_narrow_one_is_held(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "o.onnx"
        name = onnx.load(REPVGG).graph.output[0].name
        error = fails([REPVGG, str(out), "--rtol", f"{name}:0", "--atol", "0"], 3, capsys)
        assert "beyond the given tolerance of 0 + 0·|original|" in error
        assert "'/0/Add_1'" in error
        assert not out.exists()

    def test_every_element_counts(self, wrong: None) -> None:
        with pytest.raises(onnxfuse.ProofError, match="elements are beyond"):
            onnxfuse.fuse(REPVGG, rtol=0.005)

    def test_it_never_loosens_the_proof_of_a_region(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = realise.weights.embed
        monkeypatch.setattr(realise.weights, "embed", lambda *a: honest(*a) * (1 + 1e-9))
        command = [REPVGG, str(tmp_path / "o.onnx"), "--rtol", "1", "--atol", "1"]
        assert "'/0/Add_1'" in fails(command, 3, capsys)

    def test_an_output_that_is_none_and_a_number_that_is_none(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = [REPVGG, str(tmp_path / "o.onnx")]
        assert "no output 'nothing'" in fails([*command, "--rtol", "nothing:1"], 2, capsys)
        assert "1e-4" in fails([*command, "--atol", "wide"], 2, capsys)

    def test_other_outputs_keep_the_derived_bound(self) -> None:
        made = onnx.load(REPVGG)
        inner = made.graph.node[-1].input[0]
        made.graph.output.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, None))
        _, report = onnxfuse.fuse(made, rtol={inner: 1e-2}, atol={inner: 1e-3})
        assert report.verification is not None
        texts = {output.name: output.text for output in report.verification.outputs}
        assert texts[inner].startswith("given: 0.001 + 0.01")
        assert "" in texts.values()

    def test_one_that_is_named_is_compared_behind_a_jump(self) -> None:
        made = onnx.load(REPVGG)
        last = made.graph.output[0].name
        made.graph.node.append(helper.make_node("Round", [last], ["jump"]))
        made.graph.output[0].name = "jump"
        plain = onnxfuse.fuse(made)[1].verification
        named = onnxfuse.fuse(made, atol={"jump": 1})[1].verification
        assert plain is not None
        assert named is not None
        assert "jump" not in {output.name for output in plain.outputs}
        assert "jump" in {output.name for output in named.outputs}


def test_an_archive_may_be_compressed(tmp_path: Path) -> None:
    held = io.BytesIO()
    np.savez_compressed(held, input=data())
    (tmp_path / "x.npz").write_bytes(held.getvalue())
    _, report = onnxfuse.fuse(REPVGG, input_data=tmp_path / "x.npz")
    assert report.verification is not None
    assert len(report.verification.runs) == 1
