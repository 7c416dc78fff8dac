"""``onnxfuse systems``: the table of known blocks is what the fixtures and their tests state."""

from __future__ import annotations

import json
from pathlib import Path

import list_systems
import pytest

from onnxfuse.cli import main
from onnxfuse.report.systems import matching, page, table

FIXTURES = Path(__file__).parent.parent / "fixtures"


def test_the_table_and_its_page_are_what_the_fixtures_state() -> None:
    rows = list_systems.rows()
    assert table() == rows, "run python tools/list_systems.py"
    assert list_systems.PAGE.read_text() == page(rows)


def test_every_fixture_is_in_a_row_and_every_row_has_fixtures() -> None:
    assert list_systems.unlisted() == []
    for row in table():
        assert row["systems"], row["block"]
        for key, system in row["systems"].items():
            assert system["becomes"]
            folder, name = key.split("/")
            assert list((FIXTURES / folder).glob(f"{name}.*.onnx"))


def test_it_prints_all_or_what_holds_a_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["systems"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("RepVGG ") for line in lines)
    assert main(["systems", "REPVIT"]) == 0
    out = capsys.readouterr().out
    assert "field/repvit" in out
    assert "slak" not in out


@pytest.mark.parametrize("form", ["json", "markdown"])
def test_other_formats(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "slak", "--format", form]) == 0
    out = capsys.readouterr().out
    if form == "json":
        assert json.loads(out) == matching(table(), "slak")
    assert "Conv 51x5 g4" in out


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "nonesuch"]) == 2
    assert "no block or system holds 'nonesuch'" in capsys.readouterr().err
