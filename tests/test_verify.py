"""``onnxfuse verify A B``: exit codes, what is printed, tolerances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

import onnxfuse
from onnxfuse.cli import main

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
A = str(FIXTURES / "repvgg_s1_g1.ts.onnx")
B = str(FIXTURES / "repvgg_s1_g1.deploy.onnx")


@pytest.fixture
def off(tmp_path: Path) -> str:
    """The deploy form with one weight a thousandth off."""
    model = onnx.load(B)
    weight = model.graph.initializer[0]
    array = np.array(numpy_helper.to_array(weight))
    array.flat[0] += 1e-3
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "off.onnx")
    return str(tmp_path / "off.onnx")


def test_equivalent_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", A, B]) == 0
    printed = capsys.readouterr()
    assert "Equivalent at input:1x8x12x12." in printed.out
    assert printed.err == ""
    assert main(["verify", A, B, "-q"]) == 0
    assert capsys.readouterr().out == ""


def test_differing_models(off: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", A, off, "-q"]) == 1
    out = capsys.readouterr().out
    assert "output" in out
    assert "differs" in out


def test_a_given_tolerance_is_for_each_element(off: str) -> None:
    assert main(["verify", A, off, "--atol", "0.1"]) == 0
    assert main(["verify", A, off, "--atol", "output:0.1"]) == 0
    assert main(["verify", A, off, "--atol", "0.1", "--atol", "output:1e-9"]) == 1
    assert main(["verify", A, B, "--rtol", "1e-12"]) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rtol", "much"], "--rtol 'much' is not of the form"),
        (["--atol", "-1"], "--atol"),
        (["--rtol", "nan"], "--rtol"),
        (["--rtol", "nobody:1"], "nobody"),
        (["--input-shape", "input:1,2"], "input"),
        (["--input-shape", "nobody:1,2"], "nobody"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    if arguments[1] == "-1":
        arguments = ["--atol=-1"]
    assert main(["verify", A, B, *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_models_with_other_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", A, "gone.onnx"]) == 2
    assert "gone.onnx does not exist" in capsys.readouterr().err
    model = onnx.load(A)
    model.graph.input[0].name = "other"
    for node in model.graph.node:
        node.input[:] = ["other" if name == "input" else name for name in node.input]
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["verify", A, str(tmp_path / "m.onnx")]) == 2
    assert "input 'input' of A is missing in B" in capsys.readouterr().err


def test_the_library_says_the_same(off: str) -> None:
    assert onnxfuse.compare(A, B).status == "equal"
    assert onnxfuse.compare(onnx.load(A), gs.import_onnx(onnx.load(off))).status == "different"
    assert onnxfuse.compare(A, off, atol=0.1).status == "equal"
    assert onnxfuse.compare(A, off, atol={"output": 1e-9}).status == "different"


def test_what_cannot_run_is_not_called_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(A)
    model.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    model.graph.node[-1].domain = "nobody.knows"
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["verify", str(tmp_path / "m.onnx"), str(tmp_path / "m.onnx")]) == 3
    assert "Could not be compared" in capsys.readouterr().out
