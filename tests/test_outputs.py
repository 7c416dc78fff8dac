"""What a command writes over, and what it must leave: weights, devices, files of somebody else."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from functools import partial
from pathlib import Path

import onnx
import pytest

from onnxfuse import files
from onnxfuse.background import Background
from onnxfuse.cli import main
from onnxfuse.errors import InputError
from onnxfuse.model import io

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
FUSIBLE = FIXTURES / "repvgg_s1_g1.ts.onnx"
FUSED = FIXTURES / "repvgg_s1_g1.deploy.onnx"
PAGE = b"<!doctype html>"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def external(source: Path, name: str = "e", data: str = "e.data") -> dict[str, bytes]:
    """A model with a data file; gives both as they are on disk."""
    where = {"save_as_external_data": True, "location": data, "size_threshold": 16}
    onnx.save(onnx.load(source), f"{name}.onnx", **where)
    return {place: Path(place).read_bytes() for place in (f"{name}.onnx", data)}


def refused(*arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command fails with 2, in one line, and no file of the directory changes."""
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    assert main([*arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


class TestWeights:
    """The data files of a model are never written over."""

    @pytest.mark.parametrize("out", ["e.data", "./e.data", "link.data"])
    @pytest.mark.parametrize("source", [FUSIBLE, FIXTURES / "repvgg_a0.ts.onnx"])
    def test_an_output(self, out: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
        external(source)
        Path("link.data").symlink_to("e.data")
        refused("e.onnx", out, says=f"{out} is a data file of e.onnx", capsys=capsys)

    def test_an_output_where_one_would_be_carried_to(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        external(FIXTURES / "repvgg_a0.ts.onnx")  # its Linear layer stays as it is
        Path("od").mkdir()
        arguments = ("e.onnx", "od/e.data", "--no-verify")
        refused(*arguments, says="od/e.data is where the data file", capsys=capsys)
        arguments = ("e.onnx", "od/o.onnx", "--report", "od/e.data", "--no-verify")
        refused(*arguments, says="od/e.data is where the data file", capsys=capsys)
        assert list(Path("od").iterdir()) == []
        assert main(["e.onnx", "od/o.onnx", "--no-verify", "-q"]) == 0

    @pytest.mark.parametrize("command", [["check"], ["explain"], ["fuse"]])
    def test_a_page(self, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        external(FUSED)
        rest = ["e.onnx", "o.onnx"] if command == ["fuse"] else [*command, "e.onnx"]
        refused(*rest, "--report", "e.data", says="--report e.data would", capsys=capsys)

    def test_writing_again_is_fine(self) -> None:
        external(FIXTURES / "repvgg_a0.ts.onnx")
        for _ in range(2):
            assert main(["e.onnx", "o.onnx", "--no-verify", "-q"]) == 0
        assert main(["e.onnx", "e.onnx", "--no-verify", "-q"]) == 0


class TestPage:
    """A page replaces a page, or an empty file, and nothing else."""

    @pytest.mark.parametrize("first", [PAGE, b"<!DOCTYPE HTML>\n<p>", b""])
    def test_a_page_is_replaced(self, first: bytes) -> None:
        Path("r.html").write_bytes(first)
        assert main(["explain", str(FUSED), "--report", "r.html", "-q"]) == 0
        assert Path("r.html").read_bytes().startswith(PAGE)
        assert main(["check", str(FUSED), "--report", "r.html", "-q"]) == 0

    @pytest.mark.parametrize("name", ["pyproject.toml", "own.toml", "sizes.json", "notes.html"])
    def test_nothing_else_is(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.copy(FUSED, "m.onnx")
        Path("pyproject.toml").write_text("[tool.onnxfuse]\nmax-nodes = 9\n")
        Path("own.toml").write_text("max-nodes = 9\n")
        Path("notes.html").write_text("my notes")
        assert main(["check", "m.onnx", "--baseline", "sizes.json", "--update-baseline", "-q"]) == 0
        own = ("--config", "own.toml") * (name == "own.toml")
        says = f"--report {name} would replace a file that is no HTML page"
        refused("check", "m.onnx", *own, "--report", name, says=says, capsys=capsys)

    def test_nor_the_baseline_of_the_same_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.copy(FUSED, "m.onnx")
        options = ["--baseline", "sizes.json", "--update-baseline", "--report", "./sizes.json"]
        refused("check", "m.onnx", *options, says="the baseline", capsys=capsys)

    @pytest.mark.parametrize("command", ["check", "explain", "fuse"])
    def test_it_says_what_stopped_a_command(self, command: str) -> None:
        start = ["gone.onnx", "o.onnx"] if command == "fuse" else [command, "gone.onnx"]
        assert main([*start, "--report", "r.html", "-q"]) == 2
        assert "gone.onnx does not exist" in Path("r.html").read_text(encoding="utf-8")

    def test_a_model_that_is_written_without_its_page_is_said_to_be(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from onnxfuse.errors import InputError
        from onnxfuse.model import io

        real = io.write

        def full(path: Path, data: bytes, *more: object) -> None:
            if path.suffix == ".html":
                raise InputError(f"{path} cannot be written: No space left on device")
            real(path, data, *more)

        monkeypatch.setattr(io, "write", full)
        arguments = [str(FUSIBLE), "o.onnx", "--report", "r.html", "--format", "json"]
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert "o.onnx is written, but the report is not" in printed.err
        assert json.loads(printed.out)["output"] == "o.onnx"
        assert Path("o.onnx").is_file()


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link", "d/1"])
def test_what_stdout_goes_to_is_not_replaced(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("link").symlink_to("/dev/stdout")
    Path("d").symlink_to("/dev/fd")
    refused(str(FUSIBLE), place, says="is not a regular file", capsys=capsys)
    refused("explain", str(FUSED), "--report", place, says="is not a regular", capsys=capsys)
    assert Path("link").is_symlink()


class TestInputs:
    """What is no regular file is never waited for."""

    @pytest.mark.parametrize("name", ["pipe", "/dev/null"])
    @pytest.mark.parametrize(
        "words", ["check IN", "explain IN", "IN o.onnx", "verify IN IN", "check M --config IN",
                  "check M --baseline IN"],
    )  # fmt: skip
    def test_a_device(self, name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
        os.mkfifo("pipe")
        held = {"IN": name, "M": str(FUSED)}
        assert main([held.get(word, word) for word in words.split()]) == 2
        assert f"{name} is not a regular file" in capsys.readouterr().err


def test_a_file_is_looked_through_without_being_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"what it holds")
    with files.mapped(tmp_path / "f") as data:
        assert data[5:7] == b"it"
    (tmp_path / "empty").write_bytes(b"")
    for name in (".", "nowhere", "empty"):
        with pytest.raises(InputError), files.mapped(tmp_path / name):
            pass


def test_what_replaces_a_file_is_on_the_disk_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one may be: nothing is lost with it."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    io.write(tmp_path / "o", b"first")
    assert not synced
    io.write(tmp_path / "o", b"second")
    assert len(synced) == 1
    assert (tmp_path / "o").read_bytes() == b"second"


class TestBackground:
    """Work of a thread, such as reading a file while other things are loaded."""

    def test_it_gives_what_was_found_as_often_as_asked(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"what it holds")
        reading = Background(partial(files.read, tmp_path / "f"))
        assert reading.result() == reading.result() == b"what it holds"

    def test_it_says_what_is_wrong_when_it_is_asked(self, tmp_path: Path) -> None:
        reading = Background(partial(files.read, tmp_path / "nowhere"))
        reading.wait()
        with pytest.raises(InputError, match="nowhere does not exist"):
            reading.result()

    def test_what_ends_a_program_is_raised_where_it_is_asked_for(self) -> None:
        ended = Background(partial(sys.exit, 3))
        with pytest.raises(SystemExit):
            ended.result()

    def test_without_room_for_a_thread_it_is_done_here(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", full)
        assert Background(threading.get_ident).result() == threading.get_ident()
        failed = Background(partial(sys.exit, 3))
        with pytest.raises(SystemExit):
            failed.result()
