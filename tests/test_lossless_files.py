"""A file in which nothing fuses is copied byte for byte, however it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from every_field import UNKNOWN, based, stuffed
from onnx import ModelProto
from onnx_text import bn, model, norm
from test_lossless import rest

from onnxfuse.cli import main


def uncanonical(of: ModelProto) -> bytes:
    """The same model as no library writes it: fields in another order, a number in more bytes."""
    data = of.SerializeToString()
    number = of.ir_version
    head = bytes([8, number])
    assert data.startswith(head)
    moved = data[2:] + UNKNOWN + bytes([8, number | 0x80, 0x80, 0x00])
    assert ModelProto.FromString(moved).graph == of.graph
    return moved


@pytest.mark.parametrize(
    "flags",
    [["--except", "*"], ["--only", "nothing"], ["--except", "*", "--approximate-borders"],
     ["--except", "*", "--keep-post-bn", "--no-verify"]],
)  # fmt: skip
def test_a_file_in_which_nothing_fuses_is_copied_byte_for_byte(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    given.write_bytes(uncanonical(based()))
    assert main([str(given), str(out), *flags]) == 0
    capsys.readouterr()
    assert out.read_bytes() == given.read_bytes()
    assert main([str(given), str(given), *flags]) == 0
    assert out.read_bytes() == given.read_bytes()


def test_a_batch_normalisation_that_is_kept_changes_no_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = model(
        f"(float[1,4,8,8] x) => (float[] y) {{ c = Conv(x, w) {bn('y', 'c', 'n')} }}",
        w=(4, 4, 3, 3), **norm("n", 4),
    )  # fmt: skip
    given, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    given.write_bytes(uncanonical(built))
    assert main([str(given), str(out), "--keep-post-bn"]) == 0
    capsys.readouterr()
    assert out.read_bytes() == given.read_bytes()


def test_the_command_writes_what_the_library_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = stuffed()
    given, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    given.write_bytes(uncanonical(built))
    assert main([str(given), str(out), "--no-verify"]) == 0
    capsys.readouterr()
    held = ModelProto.FromString(out.read_bytes())
    assert rest(held) == rest(ModelProto.FromString(given.read_bytes()))
