"""The command as a user meets it: output, exit codes, and files that survive failures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfuse import realise
from onnxfuse.cli import main

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
REPVGG = FIXTURES / "repvgg_s1_g1.ts.onnx"
NOTHING = FIXTURES / "basic_block.ts.onnx"


def fails(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command; it must fail with ``code`` and one clear line on stderr."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("onnxfuse: error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = subprocess.run(
        [sys.executable, "-m", "onnxfuse", str(REPVGG), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Conv 3×3" in done.stdout
    assert "\x1b" not in done.stdout
    onnx.checker.check_model(onnx.load(out))


@pytest.mark.parametrize(
    "name", ["repvgg_a0.ts", "dbb_k3_s1.ts", "bsconv_s.ts", "dbb_k3_s1.dynamo-dyn"]
)
@pytest.mark.parametrize("verbose", [[], ["-v"]])
def test_the_report_fits_eighty_columns(
    name: str,
    verbose: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([str(FIXTURES / f"{name}.onnx"), str(tmp_path / "o.onnx"), *verbose]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert max(map(len, lines)) <= 80


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "exit codes" in capsys.readouterr().out
    assert main(["--version"]) == 0
    alone = capsys.readouterr().out
    assert alone.startswith("onnxfuse 0.")
    with pytest.raises(SystemExit) as stop:
        main(["--version", "-q"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == alone


@pytest.mark.parametrize("command", ["check", "explain", "verify"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "exit codes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([command, "--nonsense"])
    assert stop.value.code == 2
    assert "usage: onnxfuse" in capsys.readouterr().err


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(REPVGG), str(tmp_path / "o.onnx"), "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_where_nothing_fuses_the_output_is_a_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.onnx"
    assert main([str(NOTHING), str(out)]) == 0
    assert out.read_bytes() == NOTHING.read_bytes()
    assert "byte for byte" in capsys.readouterr().out


def test_input_and_output_may_be_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(REPVGG.read_bytes())
    assert main([str(path), str(path), "-q"]) == 0
    assert len(onnx.load(path).graph.node) == 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "does not exist"),
        (b"", "empty"),
        (b"this is not a protobuf at all", "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_unusable_inputs(
    content: bytes | None, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    out.write_bytes(b"precious")
    if content is not None:
        source.write_bytes(content)
    assert text in fails([str(source), str(out)], 2, capsys)
    assert out.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) in (["in.onnx", "out.onnx"], ["out.onnx"])


def test_truncated_files_never_crash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = REPVGG.read_bytes()
    source = tmp_path / "in.onnx"
    for length in range(1, len(data), 97):
        source.write_bytes(data[:length])
        code = main([str(source), str(tmp_path / "out.onnx"), "-q"])
        assert code in (0, 2)
        assert "internal error" not in capsys.readouterr().err


def broken(kind: str) -> onnx.ModelProto:
    """A model that parses but is not valid."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])
    w = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")
    nodes = {
        "dangling": [helper.make_node("Conv", ["nowhere", "w"], ["y"])],
        "cycle": [
            helper.make_node("Add", ["x", "b"], ["a"]),
            helper.make_node("Add", ["x", "a"], ["b"]),
            helper.make_node("Conv", ["b", "w"], ["y"]),
        ],
        "twice": [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["y"])],
        "operator": [helper.make_node("NoSuchOperator", ["x"], ["y"])],
        "attribute": [helper.make_node("Conv", ["x", "w"], ["y"], strides="wrong")],
    }[kind]
    graph = helper.make_graph(nodes, "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("kind", ["dangling", "cycle", "twice", "operator", "attribute"])
def test_invalid_models(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(broken(kind).SerializeToString())
    fails([str(source), str(tmp_path / "out.onnx")], 2, capsys)
    assert not (tmp_path / "out.onnx").exists()


def test_damaged_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(REPVGG)
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    source = tmp_path / "in.onnx"
    source.write_bytes(model.SerializeToString())
    assert "damaged" in fails([str(source), str(tmp_path / "out.onnx")], 2, capsys)


def test_unusable_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "create it" in fails([str(REPVGG), str(tmp_path / "no" / "o.onnx")], 2, capsys)
    assert "directory" in fails([str(REPVGG), str(tmp_path)], 2, capsys)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ("input", "NAME:1,3,224,224"),
        ("nothing:1,2", "has no input"),
        ("input:1,8", "dimensions"),
        ("input:1,8,12,99", "in the model"),
        ("input:1,8,-1,12", "NAME:1,3,224,224"),
    ],
)
def test_bad_shapes(
    shape: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "o.onnx")
    assert text in fails([str(REPVGG), out, "--input-shape", shape], 2, capsys)


def test_a_given_size_is_the_one_that_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = FIXTURES / "repvgg_s1_g1.dynamo-dyn.onnx", tmp_path / "o.onnx"
    assert main([str(source), str(out), "--input-shape", "input:[3x8x17x19]"]) == 0
    assert "input:3x8x17x19" in capsys.readouterr().out


def test_a_failed_proof_writes_nothing_and_names_the_region(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = realise.weights.embed
    monkeypatch.setattr(realise.weights, "embed", lambda *a: honest(*a) * (1 + 1e-9))
    out = tmp_path / "o.onnx"
    out.write_bytes(b"precious")
    assert "'/0/Add_1'" in fails([str(REPVGG), str(out)], 3, capsys)
    assert out.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["o.onnx"]


def test_wrong_wiring_is_found_by_the_whole_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxfuse.model import tensors

    honest = tensors.make
    monkeypatch.setattr(tensors, "make", lambda n, a, t: honest(n, np.asarray(a) * 1.01, t))
    out = tmp_path / "o.onnx"
    assert "differs by" in fails([str(REPVGG), str(out)], 3, capsys)
    assert not out.exists()
    assert main([str(REPVGG), str(out), "--no-verify", "-q"]) == 0


def test_only_and_except(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.onnx"
    assert main([str(REPVGG), str(out), "--except", "/0/*"]) == 0
    assert out.read_bytes() == REPVGG.read_bytes()
    assert "[excluded]" in capsys.readouterr().out
    assert main([str(REPVGG), str(out), "--only", "*"]) == 0
    assert len(onnx.load(out).graph.node) == 2


def test_hostile_names_cannot_write_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(REPVGG)
    for index, node in enumerate(model.graph.node):
        node.name = f"\x1b[31m[bold]evil{index}\r\n"
    source = tmp_path / "in.onnx"
    source.write_bytes(model.SerializeToString())
    assert main([str(source), str(tmp_path / "o.onnx"), "-v"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\r" not in printed
    assert "evil" in printed


def test_names_that_look_like_markup_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "in[b]:warning:"
    weights = [
        numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), weight) for weight in "wv"
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", [name, "w"], ["a"]), helper.make_node("Conv", ["a", "v"], ["y"])],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    source = tmp_path / "in.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), source)
    assert main([str(source), str(tmp_path / "o.onnx")]) == 0
    assert f"MACs are counted at {name}:1,4,224,224" in capsys.readouterr().out


def test_a_custom_operator_leaves_the_regions_proofs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(REPVGG)
    relu = model.graph.node[-1]
    assert relu.op_type == "Relu"
    relu.op_type, relu.domain = "Unheard", "example.custom"
    model.opset_import.append(helper.make_opsetid("example.custom", 1))
    source = tmp_path / "in.onnx"
    source.write_bytes(model.SerializeToString())
    assert main([str(source), str(tmp_path / "o.onnx")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Whole model not run" in printed
    assert "example.custom" in printed or "Unheard" in printed


def test_external_data_is_carried_to_another_directory(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    model = onnx.load(FIXTURES / "repvgg_a0.ts.onnx")  # its Linear layer stays as it is
    onnx.save(
        model, home / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=16
    )
    assert main([str(home / "m.onnx"), str(away / "o.onnx"), "-q"]) == 0
    assert (away / "m.data").read_bytes() == (home / "m.data").read_bytes()
    onnx.checker.check_model(str(away / "o.onnx"))


def test_missing_external_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(REPVGG)
    source = tmp_path / "m.onnx"
    onnx.save(model, source, save_as_external_data=True, location="m.data", size_threshold=16)
    (tmp_path / "m.data").unlink()
    assert "m.data" in fails([str(source), str(tmp_path / "o.onnx")], 2, capsys)


def test_names_that_are_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(REPVGG.read_bytes().replace(b"/0/Add_1", b"/0/\xff\xfe\xfd_1"))
    assert "UTF-8" in fails([str(source), str(tmp_path / "o.onnx")], 2, capsys)
