"""What stdout holds in each format, for every command, and that nothing in a model breaks it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import onnx
import pytest

import onnxfuse
from onnxfuse.cli import main
from onnxfuse.outcome import Compared, Examined, Exit, Failure, Outcome, worst
from onnxfuse.records import Difference, Equivalence, Verification
from onnxfuse.report import formats
from onnxfuse.version import FORMATS

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
FUSIBLE = str(FIXTURES / "repvgg_s1_g1.ts.onnx")
FUSED = str(FIXTURES / "repvgg_s1_g1.deploy.onnx")
SPLIT = str(FIXTURES / "bsconv_s.ts.onnx")
SCHEMA = json.loads((Path(onnxfuse.__file__).parent / "report" / "schema.json").read_text())
HOSTILE = '<script>"|`*_[x](y)\n::error::%0A,:@all \u202e]]>&'

COMMANDS = {
    "fuse": ([FUSIBLE, "OUT"], 0),
    "fuse nothing": ([SPLIT, "OUT"], 0),
    "fuse missing": (["gone.onnx", "OUT"], 2),
    "fuse open sizes": ([str(FIXTURES / "dbb_k3_s1.dynamo-dyn.onnx"), "OUT"], 0),
    "check": (["check", FUSIBLE, SPLIT, "--max-nodes", "3"], 1),
    "check missing": (["check", "gone.onnx", FUSED], 2),
    "check budget only": (["check", FUSED, "--budget-only"], 0),
    "explain": (["explain", FUSIBLE], 0),
    "explain kept": (["explain", SPLIT], 0),
    "explain missing": (["explain", "gone.onnx"], 2),
    "verify": (["verify", FUSIBLE, FUSED], 0),
    "verify differing": (["verify", FUSIBLE, "OTHER"], 1),
    "verify missing": (["verify", FUSIBLE, "gone.onnx"], 2),
}


def run(case: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in a format; its exit code must be the case's. Gives stdout and stderr."""
    arguments, code = COMMANDS[case]
    other = onnx.load(FUSED)
    weight = other.graph.initializer[0]
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name)
    )
    onnx.save(other, tmp_path / "other.onnx")
    names = {"OUT": str(tmp_path / "out.onnx"), "OTHER": str(tmp_path / "other.onnx")}
    assert main([*(names.get(a, a) for a in arguments), "--format", form]) == code
    return capsys.readouterr()


@pytest.mark.parametrize("case", COMMANDS)
def test_json_follows_the_schema(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(case, "json", tmp_path, capsys)
    found = json.loads(printed.out)
    jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert found["exit_code"] == COMMANDS[case][1]
    assert found["command"] == case.split(maxsplit=1)[0]
    if "missing" in case:
        assert "does not exist" in printed.err


def test_the_schema_refuses_what_it_should() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for broken in (
        {},
        {"schema_version": 2, "onnxfuse": "1", "command": "fuse", "exit_code": 0},
        {"schema_version": 1, "onnxfuse": "1", "command": "check", "exit_code": 0},
        {"schema_version": 1, "onnxfuse": "1", "command": "fuse", "exit_code": 0},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_json_says_what_was_done_and_what_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(run("fuse", "json", tmp_path, capsys).out)
    assert found["before"]["conv"], found["after"]["conv"] == (2, 1)
    assert found["after"]["bytes"] == (tmp_path / "out.onnx").stat().st_size
    (region,) = found["regions"]
    assert (region["status"], region["node"]) == ("fused", "/0/Add_1")
    assert region["expression"] == "Conv3×3 + Conv1×1 + BN"
    assert region["error"]["exact"] <= region["error"]["bound"]
    assert len(region["ranges"]["before"]) == 2
    assert found["verification"]["status"] == "passed"
    kept = json.loads(run("explain kept", "json", tmp_path, capsys).out)["regions"][0]
    assert kept["status"] == "kept"
    assert kept["reason"]["code"] == "cost"
    assert kept["expression"] == "Conv1×1∘Conv1×1"
    plain = onnxfuse.plan(FUSIBLE).to_dict()["regions"][0]
    assert plain.keys() == region.keys()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", COMMANDS)
def test_every_command_has_every_format(
    case: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(case, form, tmp_path, capsys)
    assert ("onnxfuse: error:" in printed.err) == ("missing" in case)
    if form == "junit":
        root = ET.fromstring(printed.out)
        bad = int(root.attrib["failures"]), int(root.attrib["errors"])
        assert bad == (len(root.findall(".//failure")), len(root.findall(".//error")))
        assert bool(sum(bad)) == bool(COMMANDS[case][1])
    if form == "github":
        assert all(line.startswith("::") for line in printed.out.splitlines())
        assert ("::error " in printed.out) == bool(COMMANDS[case][1])
    if form == "markdown":
        assert printed.out.startswith(f"## onnxfuse {case.split(maxsplit=1)[0]}\n")


def hostile() -> Outcome:
    """An outcome whose every name wants to be markup."""
    model = onnx.load(FUSIBLE)
    for node in model.graph.node:
        node.name = f"{HOSTILE}{node.name}"
        for names in (node.input, node.output):
            names[:] = [HOSTILE + name for name in names]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = HOSTILE + value.name
    del model.graph.value_info[:]
    _, report = onnxfuse.fuse(model)
    kept = onnxfuse.plan(model, without=["*"])
    assert report.regions
    assert kept.refusals
    different = Equivalence("different", (HOSTILE,), (Difference(HOSTILE, False, text=HOSTILE),))
    return Outcome(
        "check",
        (
            Examined(HOSTILE, report, gate=True),
            Examined(f"{HOSTILE}2", kept, gate=True),
            Examined(f"{HOSTILE}3", failure=Failure(Exit.USAGE, HOSTILE)),
        ),
        Compared(HOSTILE, HOSTILE, different),
        "0",
    )


def test_hostile_names_stay_names() -> None:
    outcome = hostile()
    text = formats.render(outcome, "junit")
    names = {case.attrib["name"] for case in ET.fromstring(text).iter("testcase")}
    assert any("<script>" in name for name in names)
    lines = formats.render(outcome, "github").splitlines()
    assert len(lines) == len([v for v in outcome.verdicts() if v.status != "passed"])
    form = re.compile("::(error|notice) file=[^:,]*,title=[^:,]*::.*")
    assert all(form.fullmatch(line) for line in lines)
    assert not any("::error::" in line.split("::", 2)[1] for line in lines)
    markdown = formats.render(outcome, "markdown")
    outside = re.sub(r"(`+).*?[^`]\1(?!`)", "", markdown)
    assert "<script>" not in outside
    assert "\u202e" not in markdown
    assert not re.search(r"(?<!\\)\[x\]\(y\)", outside)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = {row.count("|") - row.count("\\|") for row in rows}
    assert cells <= {4, 5, 6}
    assert "\u202e" not in formats.render(outcome, "text")
    assert json.loads(formats.render(outcome, "json"))["exit_code"] == 2


def test_numbers_json_cannot_hold_become_null() -> None:
    nan = float("nan")
    found = Equivalence("different", ("x",), (Difference("y", False, nan, float("inf"), 0.0),))
    text = formats.render(Outcome("verify", (), Compared("a", "b", found), "0"), "json")
    assert json.loads(text)["outputs"][0]["rms"] is None


def test_the_github_summary_is_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    run("check", "github", tmp_path, capsys)
    text = summary.read_text()
    assert text.startswith("before\n## onnxfuse check\n")
    assert "| `/0/Add_1` |" in text
    run("check", "markdown", tmp_path, capsys)
    assert summary.read_text() == text


def test_many_annotations_are_cut_short() -> None:
    files = tuple(Examined(f"{n}", failure=Failure(Exit.USAGE, "no")) for n in range(80))
    lines = formats.render(Outcome("check", files), "github").splitlines()
    assert len(lines) == 51
    assert "30 more" in lines[-1]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([], 0), ([0, 1], 1), ([1, 3], 3), ([3, 2, 1, 0], 2), ([3, 0], 3)],
)
def test_two_outranks_three_outranks_one(codes: list[int], expected: int) -> None:
    assert worst(map(Exit, codes)) == expected


def test_a_run_that_only_measured_is_no_pass() -> None:
    _, report = onnxfuse.fuse(FUSIBLE, verify=False)
    outcome = Outcome("fuse", (Examined(FUSIBLE, report),))
    assert isinstance(report.verification, Verification)
    assert {v.status for v in outcome.verdicts() if "whole model" in v.name} == {"noted"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_characters_still_gets_the_report(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxfuse", "explain", FUSIBLE],
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert b"/0/Add_1" in done.stdout


@pytest.mark.parametrize("form", ["junit", "json", "markdown", "github"])
def test_what_programs_read_is_utf_8_everywhere(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxfuse", "check", FUSIBLE, "--format", form],
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 1
    text = done.stdout.decode("utf-8")
    assert "→" in text or form == "json"
    if form == "junit":
        assert "→" in next(ET.fromstring(done.stdout).iter("failure")).attrib["message"]


@pytest.mark.parametrize("form", FORMATS)
def test_what_stops_a_command_early_is_reported_too(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = (
        ["check", FUSED, "--max-nodes", "many"],
        ["verify", FUSED, FUSED, "--rtol=x"],
        ["explain", FUSED, "--config", "gone"],
        [FUSED, "o", "--config", "gone"],
    )
    for arguments in stopped:
        assert main([*arguments, "--format", form]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("onnxfuse: error: ")
        assert printed.err.count("\n") == 1
        if form == "json":
            jsonschema.validate(json.loads(printed.out), SCHEMA)
        if form == "junit":
            assert ET.fromstring(printed.out).attrib["errors"] == "1"
        if form == "github":
            assert printed.out.startswith("::error ")


def test_annotations_name_files_from_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "m.onnx").write_bytes(Path(FUSIBLE).read_bytes())
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(tmp_path / "deep")
    assert main(["check", "m.onnx", "--format", "github"]) == 1
    assert "::error file=deep/m.onnx," in capsys.readouterr().out


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_on_a_terminal_only(
    variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pseudo-terminal gets colours, unless NO_COLOR is set; a pipe never does."""
    import os
    import pty

    main_end, terminal = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "80", **variables}
    done = subprocess.run(
        [sys.executable, "-m", "onnxfuse", "explain", FUSIBLE],
        stdout=terminal,
        stdin=terminal,
        env=environment,
        check=False,
    )
    os.close(terminal)
    shown = b""
    try:
        while block := os.read(main_end, 65536):
            shown += block
    except OSError:
        pass  # the terminal is closed
    os.close(main_end)
    assert done.returncode == 0
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-7]m", shown)) == coloured
