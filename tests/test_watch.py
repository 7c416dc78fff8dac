"""Where the time of a run goes: stages that add up, printed with -v and only there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

import onnxfuse
from onnxfuse.cli import main
from onnxfuse.watch import STAGES, Watch

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
FUSIBLE = str(FIXTURES / "repvgg_s1_g1.ts.onnx")
SCHEMA = json.loads((Path(onnxfuse.__file__).parent / "report" / "schema.json").read_text())

COMMANDS = {
    "fuse": ([FUSIBLE, "OUT"], set(STAGES)),
    "check": (["check", FUSIBLE], set(STAGES) - {"run", "write"}),
    "explain": (["explain", FUSIBLE], set(STAGES) - {"run", "write"}),
}


def test_time_belongs_to_the_stage_that_was_entered_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 11.0, 13.0, 16.0, 20.0])
    monkeypatch.setattr("onnxfuse.watch.perf_counter", lambda: next(now))
    watch = Watch()
    watch.enter("read")
    watch.enter("plan")
    watch.enter("read")
    assert watch.stages() == {"imports": 1.0, "read": 2.0 + 4.0, "plan": 3.0}


def test_a_stage_that_no_list_names_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        Watch().enter("nap")


@pytest.mark.parametrize("command", COMMANDS)
def test_verbose_text_has_every_stage(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, stages = COMMANDS[command]
    given = [str(tmp_path / "o.onnx") if a == "OUT" else a for a in arguments]
    main([*given, "-v"])
    text = " ".join(capsys.readouterr().out.split())
    found = re.search(r"[Tt]ook ([0-9.]+) s: ((?:[a-z]+ [0-9]+[.][0-9]+(?:, )?)+)", text)
    assert found is not None, text
    parts = dict(part.split() for part in found[2].split(", "))
    assert set(parts) == stages
    # each figure is rounded to a millisecond
    assert abs(sum(map(float, parts.values())) - float(found[1])) <= 0.0005 * (len(parts) + 1)
    main(given)
    assert "ook " not in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_verbose_json_has_every_stage_and_plain_json_is_the_same_each_time(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, stages = COMMANDS[command]
    given = [str(tmp_path / "o.onnx") if a == "OUT" else a for a in arguments]
    main([*given, "--format", "json", "-v"])
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    (model,) = document.get("files", [document])
    assert set(model["stages"]) == stages
    assert all(seconds >= 0 for seconds in model["stages"].values())
    texts = set()
    for _ in range(2):
        main([*given, "--format", "json"])
        texts.add(capsys.readouterr().out)
    (text,) = texts
    assert "stages" not in text


def test_what_was_spent_on_a_file_that_cannot_be_used_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nothing")
    assert main(["check", str(bad), "--format", "json", "-v"]) == 2
    (model,) = json.loads(capsys.readouterr().out)["files"]
    assert set(model["stages"]) == {"imports", "read"}
