"""Stdout, stderr and the job summary where they cannot be written; commands that are stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest

import onnxfuse
from onnxfuse.cli import main

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures" / "pytorch"
FUSIBLE = str(FIXTURES / "repvgg_s1_g1.ts.onnx")
FUSED = str(FIXTURES / "repvgg_s1_g1.deploy.onnx")
SCHEMA = json.loads((Path(onnxfuse.__file__).parent / "report" / "schema.json").read_text())
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def shell(line: str, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A line of sh, where $0 is the command."""
    program = place / "onnxfuse"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxfuse "$@"\n')
    program.chmod(0o755)
    return subprocess.run(
        ["/bin/sh", "-c", line, str(program), *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
    )


@full
class TestFull:
    """A stdout that takes nothing."""

    @pytest.mark.parametrize("form", ["text", "json"])
    def test_it_is_said_once(self, form: str, tmp_path: Path) -> None:
        line = f'"$0" check "$1" --format {form} > /dev/full'
        done = shell(line, tmp_path, FUSIBLE)
        assert done.returncode == 2
        assert done.stderr.startswith("onnxfuse: error: stdout cannot be written: No space left")
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("option", ["--help", "--version", "check --help"])
    def test_neither_can_help_be(self, option: str, tmp_path: Path) -> None:
        done = shell(f'"$0" {option} > /dev/full', tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)

    def test_what_is_written_is_not_denied(self, tmp_path: Path) -> None:
        done = shell('"$0" "$1" o.onnx > /dev/full', tmp_path, FUSIBLE)
        assert done.returncode == 2
        assert "o.onnx is written" in done.stderr
        assert "nothing was written" not in done.stderr
        assert (tmp_path / "o.onnx").is_file()

    @pytest.mark.parametrize("name", ["gone.onnx", FUSED])
    def test_stderr_changes_no_code(self, name: str, tmp_path: Path) -> None:
        done = shell('"$0" check "$1" 2> /dev/full', tmp_path, name)
        assert done.returncode == (2 if name == "gone.onnx" else 0)

    def test_a_summary_that_cannot_be_written_changes_no_code(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for place in ("/dev/full", "/nowhere/summary"):
            monkeypatch.setenv("GITHUB_STEP_SUMMARY", place)
            assert main(["check", FUSIBLE, "--format", "github"]) == 1
            printed = capsys.readouterr()
            assert printed.out.startswith("::error ")
            assert printed.err.startswith(f"onnxfuse: note: the job summary {place} cannot be")
            assert printed.err.count("\n") == 1


def test_closed_streams(tmp_path: Path) -> None:
    for line, code in (
        ('"$0" check "$1" >&-', 1),
        ('"$0" check "$1" >&- 2>&-', 1),
        ('"$0" check gone >&- 2>&-', 2),
        ('"$0" check gone 2>&-', 2),
    ):
        done = shell(line, tmp_path, FUSIBLE)
        assert (done.returncode, done.stderr) == (code, "")
        assert "error" not in done.stdout


def test_a_reader_that_leaves_changes_no_code(tmp_path: Path) -> None:
    line = '("$0" explain "$1" -v; echo $? >&2) | true'
    assert shell(line, tmp_path, FUSIBLE).stderr == "0\n"


@pytest.mark.parametrize("form", ["github", "junit", "markdown", "json", "text"])
def test_a_name_that_is_no_utf_8(form: str, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"m\xff.onnx")).symlink_to(FUSIBLE)
    line = f'"$0" check *.onnx --report r.html --format {form}'
    done = shell(f"GITHUB_STEP_SUMMARY=summary {line}", tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "/0/Add_1" in done.stdout
    if form == "github":
        assert "file=m\\udcff.onnx," in done.stdout
        assert "m\\udcff.onnx" in (tmp_path / "summary").read_text(encoding="utf-8")


def test_annotations_hold_no_control_characters() -> None:
    from onnxfuse.outcome import Examined, Exit, Failure, Outcome
    from onnxfuse.report import github

    evil = "\x1b[31m\u202e\udcff"
    text = github.rendered(Outcome("check", (Examined(evil, failure=Failure(Exit.USAGE, evil)),)))
    assert text.rstrip("\n").isprintable()
    text.encode()


def test_an_interrupt_while_the_command_is_loaded() -> None:
    code = """
import sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("onnxfuse.cli."):
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
from onnxfuse.cli import main
sys.exit(main(["check", "gone.onnx"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 130
    assert done.stderr.startswith("onnxfuse: error: interrupted")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("form", ["json", "junit", "github", "markdown", "text"])
@pytest.mark.parametrize(
    "words", ["check --nonsense", "explain", "verify only-one", "m.onnx", "check a --max-nodes"]
)
def test_wrong_usage_is_reported_in_every_format(
    form: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), f"--format={form}"] if form != "text" else words.split())
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("usage: onnxfuse")
    assert "error:" in printed.err
    if form == "json":
        found = json.loads(printed.out)
        jsonschema.validate(found, SCHEMA)
        assert found["exit_code"] == 2
    elif form == "junit":
        assert ET.fromstring(printed.out).attrib["errors"] == "1"
    elif form == "github":
        assert printed.out.startswith("::error title=")
    else:
        assert bool(printed.out) == (form == "markdown")


@pytest.mark.parametrize("command", [[], ["check"], ["explain"], ["verify"]])
def test_help_fits_eighty_columns(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
