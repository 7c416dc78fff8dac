"""Each floating-point type through the command: weights rounded once, the oracle named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxfuse.cli import main
from onnxfuse.model import splice
from onnxfuse.verify import reference, session

KINDS = {
    "float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16, "double": TensorProto.DOUBLE,
}  # fmt: skip
ROUNDOFF = {"float": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "double": 2.0**-53}
ORACLE = {
    "float": session.NAME, "float16": session.NAME,
    "bfloat16": reference.NAME, "double": reference.NAME,
}  # fmt: skip


def built(kind: str, nodes: str, opset: int = 17, size: str = "8", **stored: Any) -> ModelProto:
    """A model of one type on ``x``; what is stored is rounded to that type."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({kind}[1,4,{size},{size}] x) => '
    made = parser.parse_model(f"{text} ({kind}[] y) {{ {nodes} }}")
    dtype = helper.tensor_dtype_to_np_dtype(KINDS[kind])
    for name, array in stored.items():
        whole = np.asarray(array).dtype.kind == "i"
        held = np.asarray(array) if whole else np.asarray(array).astype(dtype)
        made.graph.initializer.append(numpy_helper.from_array(held, name))
    return made


def weights(seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    kernels = {"w": draw.standard_normal((4, 4, 3, 3)) / 6, "v": draw.standard_normal((4, 4, 1, 1))}
    norms = {n: draw.random(4) + 0.5 for n in ("s", "b", "m", "q", "t", "c", "n", "r")}
    return kernels | norms


REPVGG = """a = Conv<pads = [1,1,1,1]>(x, w) d = BatchNormalization(a, s, b, m, q)
    e = Conv(x, v) f = BatchNormalization(e, t, c, n, r) g = Add(d, f) h = Add(g, x) y = Relu(h)"""


def run(model: ModelProto, folder: Path, *flags: str) -> tuple[int, str]:
    """The exit code of fusing a model into ``out.onnx``, and the place of what is written."""
    onnx.save(model, folder / "in.onnx")
    return main([str(folder / "in.onnx"), str(folder / "out.onnx"), *flags]), "out.onnx"


def reported(
    model: ModelProto, folder: Path, capsys: pytest.CaptureFixture[str], code: int = 0
) -> dict[str, Any]:
    assert run(model, folder, "--format", "json")[0] == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def exact(of: ModelProto) -> tuple[Any, Any]:
    """Kernel and bias of `REPVGG` folded in float64 from what the file holds."""
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in of.graph.initializer}
    first = held["s"] / np.sqrt(held["q"] + np.float64(np.float32(1e-5)))
    second = held["t"] / np.sqrt(held["r"] + np.float64(np.float32(1e-5)))
    kernel = held["w"] * first[:, None, None, None]
    kernel[:, :, 1:2, 1:2] += held["v"] * second[:, None, None, None]
    kernel[:, :, 1, 1] += np.eye(4)
    bias = held["b"] - held["m"] * first + held["c"] - held["n"] * second
    return kernel, bias


@pytest.mark.parametrize("opset", [17, 22])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rounded_once_and_the_oracle_is_named(
    kind: str, opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounded once is within one roundoff of the exact value; float64's own fold rounds thrice."""
    model = built(kind, REPVGG, opset, **weights())
    found = reported(model, tmp_path, capsys)["verification"]
    assert (found["status"], found["oracle"]) == ("passed", ORACLE[kind])
    (output,) = found["outputs"]
    assert output["rms"] <= output["allowed"]
    fused = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in fused.graph.node] == ["Conv", "Relu"]
    unit = ROUNDOFF[kind] if kind != "double" else 8 * ROUNDOFF[kind]
    for name, wanted in zip(fused.graph.node[0].input[1:], exact(model), strict=True):
        tensor = next(t for t in fused.graph.initializer if t.name == name)
        assert tensor.data_type == KINDS[kind]
        got = numpy_helper.to_array(tensor).astype(np.float64)
        assert np.all(np.abs(got - wanted) <= unit * np.abs(wanted) * (1 + 1e-9) + 1e-15)


@pytest.mark.parametrize("form", ["text", "markdown", "junit"])
@pytest.mark.parametrize("kind", ["float", "double"])
def test_every_format_names_the_oracle(
    kind: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = str(tmp_path / "page.html")
    model = built(kind, REPVGG, **weights())
    assert run(model, tmp_path, "--format", form, "--report", page)[0] == 0
    said = " ".join(capsys.readouterr().out.replace("\\", "").split())
    assert ORACLE[kind] in said.replace("&#x27;", "'").replace("&apos;", "'")
    assert ORACLE[kind] in Path(page).read_text(encoding="utf-8").replace("&#39;", "'")


@pytest.mark.parametrize("kind", ["float", "float16", "bfloat16", "double"])
def test_a_wrong_model_is_not_written(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is joined wrongly: the fused node reads another tensor, which no region proof sees."""
    nodes = f"o = Tanh(x) {REPVGG.replace('h = Add(g, x)', 'h = Add(g, o)')}"
    honest = splice.splice

    def joined_wrongly(*arguments: Any, **more: Any) -> Any:
        done = honest(*arguments, **more)
        for node in arguments[0].graph.node:
            if node.op_type == "Conv":
                node.input[0] = "o"
        return done

    monkeypatch.setattr(splice, "splice", joined_wrongly)
    assert run(built(kind, nodes, **weights()), tmp_path)[0] == 3
    assert "differs by" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_what_would_overflow_half_precision_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two kernels of 6·10⁴ add up to more than 65,504."""
    large = {"w": np.full((4, 4, 1, 1), 6e4), "v": np.full((4, 4, 1, 1), 6e4)}
    nodes = "a = Conv(x, w) b = Conv(x, v) y = Add(a, b)"
    held = reported(built("float16", nodes, **large), tmp_path, capsys)
    assert [region["reason"]["code"] for region in held["regions"]] == ["overflow"]
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()
    held = reported(built("bfloat16", nodes, **large), tmp_path, capsys)
    assert [region["status"] for region in held["regions"]] == ["fused"]


class TestNotRun:
    """Where the second witness cannot speak, the regions' proofs stand and the reason is said."""

    def notes(self, model: ModelProto, folder: Path, capsys: Any) -> str:
        held = reported(model, folder, capsys)
        assert held["changed"]
        assert held["verification"]["status"] == "not-run"
        return " ".join(held["verification"]["notes"])

    def test_it_is_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setattr(reference, "MOST", 1000)
        said = self.notes(built("double", REPVGG, **weights()), tmp_path, capsys)
        assert "would take too long for 10,240 multiply-accumulates" in said

    def test_an_old_normalisation(self, tmp_path: Path, capsys: Any) -> None:
        """Before operator set 14 the evaluator normalises by what it is given."""
        said = self.notes(built("double", REPVGG, 13, **weights()), tmp_path, capsys)
        assert "computes BatchNormalization before operator set 14 wrongly" in said

    def test_what_it_fails_on(self, tmp_path: Path, capsys: Any) -> None:
        """NumPy's pad takes no negative amounts; ONNX's crops by them."""
        nodes = "a = Conv(x, v) d = Conv(a, v) e = Relu(d) y = Pad(e, by)"
        by = np.array([0, 0, -1, 0, 0, 0, 0, 0])
        said = self.notes(built("double", nodes, by=by, v=weights()["v"]), tmp_path, capsys)
        assert f"{reference.NAME}: the original rejects x:1x4x8x8" in said
