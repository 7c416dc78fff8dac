"""The bound of the whole run: ill-conditioned models pass, and wrong ones fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnx_text import model

from onnxfuse.cli import main
from onnxfuse.model import tensors
from onnxfuse.verify import sides
from onnxfuse.verify.comparison import squares

CHANNELS = 8


def chain(
    depth: int, gain: float, tail: str = "y = Identity(LAST)", half: bool = False
) -> ModelProto:
    """RepVGG blocks one after the other, each with a normalisation of a gain, and Tanh between.

    Each block's result is the difference of large terms: what is rounded before grows by the gain.
    """
    draw = np.random.default_rng(3)
    lines, stored, last = [], {}, "x"
    kind = np.float16 if half else np.float32

    def store(name: str, array: Any) -> str:
        stored[name] = np.asarray(array).astype(kind)
        return name

    for i in range(depth):
        w = store(f"w{i}", draw.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 8)
        v = store(f"v{i}", draw.standard_normal((CHANNELS, CHANNELS, 1, 1)) / 3)
        sums = [store(f"{n}{i}", a) for n, a in (
            ("s", gain * (1 + 0.1 * draw.standard_normal(CHANNELS))),
            ("b", draw.standard_normal(CHANNELS)),
            ("m", draw.standard_normal(CHANNELS)),
            ("q", draw.random(CHANNELS) + 0.5))]  # fmt: skip
        lines.append(
            f"a{i} = Conv<pads = [1,1,1,1]>({last}, {w}) c{i} = Conv({last}, {v}) "
            f"d{i} = Add(a{i}, c{i}) e{i} = BatchNormalization(d{i}, {', '.join(sums)}) "
            f"t{i} = Tanh(e{i})"
        )
        last = f"t{i}"
    name = "float16" if half else "float"
    text = " ".join(lines) + " " + tail.replace("LAST", last)
    return model(f"({name}[1,{CHANNELS},10,10] x) => ({name}[] y) {{ {text} }}", **stored)


def run(built: ModelProto, folder: Path, *flags: str) -> int:
    onnx.save(built, folder / "in.onnx")
    return main([str(folder / "in.onnx"), str(folder / "out.onnx"), *flags])


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry of each fused kernel is off by a thousandth of the largest, behind the proofs."""
    honest = tensors.make

    def changed(name: str, array: Any, kind: int) -> Any:
        array = np.array(array)
        if array.ndim == 4:
            array.flat[array.size // 2] += 1e-3 * np.abs(array).max()
        return honest(name, array, kind)

    monkeypatch.setattr(tensors, "make", changed)


SATURATED = {
    "plain": "y = Identity(LAST)",
    "sigmoid of -16": "u = Sub(LAST, sixteen) y = Sigmoid(u)",
    "softmax": "u = Mul(LAST, sixteen) y = Softmax<axis = 1>(u)",
}


def ended(depth: int, gain: float, tail: str, half: bool = False) -> ModelProto:
    built = chain(depth, gain, SATURATED[tail], half)
    if "sixteen" in SATURATED[tail]:
        sixteen = np.array(16, np.float16 if half else np.float32)
        built.graph.initializer.append(onnx.numpy_helper.from_array(sixteen, "sixteen"))
    return built


@pytest.mark.parametrize("tail", SATURATED)
@pytest.mark.parametrize(
    ("depth", "gain"), [(1, 1), (1, 100), (1, 1e4), (3, 100), (6, 10), (2, 1e3)]
)
def test_ill_conditioned_is_not_wrong(
    depth: int, gain: float, tail: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ended(depth, gain, tail), tmp_path, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["regions"]) == depth
    assert found["verification"]["status"] == "passed"
    for output in found["verification"]["outputs"]:
        assert output["rms"] <= output["allowed"]
    for region in found["regions"]:
        assert region["error"]["exact"] <= region["error"]["bound"]


@pytest.mark.parametrize("tail", SATURATED)
@pytest.mark.parametrize(("depth", "gain"), [(1, 1), (1, 100), (1, 1e4), (3, 10), (2, 1e3)])
def test_wrong_is_not_ill_conditioned(
    depth: int, gain: float, tail: str, tmp_path: Path, off: None, capsys: Any
) -> None:
    assert run(ended(depth, gain, tail), tmp_path) == 3
    error = capsys.readouterr().err
    assert "differs by" in error
    assert "rounding explains" in error
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("gain", [1, 30])
def test_half_precision(gain: float, tmp_path: Path) -> None:
    assert run(ended(2, gain, "plain", half=True), tmp_path) == 0


def test_the_bound_is_printed_beside_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one region, and of each with -v; of the whole model; and where it is told elsewhere."""
    built = ended(2, 100, "plain")
    assert run(built, tmp_path, "--format", "json") == 0
    held = json.loads(capsys.readouterr().out)
    (output,) = held["verification"]["outputs"]
    errors = [region["error"] for region in held["regions"]]
    beside = [f"differs by {e['exact']:.1e}, rounding allows {e['bound']:.1e}" for e in errors]
    worst = max(errors, key=lambda e: e["exact"] / e["bound"])
    whole = (
        f"differs by {output['rms']:.1e} relative RMS, rounding explains {output['allowed']:.1e}"
    )
    assert run(built, tmp_path, "-v", "--report", str(tmp_path / "page.html")) == 0
    said = " ".join(capsys.readouterr().out.split())
    nearest = f"largest difference {worst['exact']:.1e}, rounding allows {worst['bound']:.1e}"
    for text in (*beside, whole, nearest):
        assert text in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert nearest in page
    assert f"{output['allowed']:.1e}" in page
    assert run(built, tmp_path, "--format", "markdown") == 0
    said = capsys.readouterr().out
    assert f"{output['rms']:.1e} | {output['allowed']:.1e}" in said


def test_a_difference_of_a_few_roundoffs_needs_no_noise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original is then loaded once, and run once."""
    monkeypatch.setattr(sides, "noisy", None)
    assert run(chain(1, 1), tmp_path, "--format", "json") == 0
    (output,) = json.loads(capsys.readouterr().out)["verification"]["outputs"]
    assert 0 < output["rms"] < output["allowed"] == 16 * 4 * 2.0**-24


def test_a_difference_that_no_noise_can_explain_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise sides.CannotRunError("no kernel for noise")

    monkeypatch.setattr(sides, "noisy", fail)
    assert run(ended(2, 1e3, "sigmoid of -16"), tmp_path) == 3
    assert "cannot be measured: no kernel for noise" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_squares_that_are_no_numbers_are_not_small(value: float) -> None:
    left = np.ones(3)
    right = np.array([1, value, 1])
    for pair in ((left, right), (right, left), (right, right)):
        assert not np.isfinite(squares(*pair)).all()
    difference, size = squares(left, left + 0.5)
    assert (difference, size) == (0.75, 3.0)
