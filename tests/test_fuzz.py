"""The fuzzer as a program: what it counts, and that a failure is one."""

from __future__ import annotations

import argparse

import fuzz
import pytest
from checking import Finding, Outcome
from fuzz_tally import LAWS, Tally

OPTIONS = argparse.Namespace(
    blocks=1, approximate=False, light=True, keep_going=True, jobs=1, nodes=0
)


def test_laws_are_counted_where_they_are_tried_and_where_they_are_proved() -> None:
    tally = fuzz.part(OPTIONS, range(12))
    assert not tally.broken, tally.texts
    assert tally.totals["made"] == 12
    assert set(tally.accepted) | set(tally.refused) | set(tally.proved) <= set(LAWS)
    assert tally.proved["Convolve"] >= tally.totals["regions"] / 2 > 0
    assert tally.accepted["Convolve"] >= tally.proved["Convolve"]
    assert tally.refused.total() > 0
    assert "Convolve" not in tally.rare(tally.accepted["Convolve"])
    assert "Convolve" in tally.rare(tally.accepted["Convolve"] + 1)


def test_parts_add_up_to_the_whole() -> None:
    whole, halves = fuzz.part(OPTIONS, range(8)), Tally()
    halves.add(fuzz.part(OPTIONS, range(4)))
    halves.add(fuzz.part(OPTIONS, range(4, 8)))
    assert whole == halves


def test_a_law_that_was_never_met_fails_a_long_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "LONG", 3)
    monkeypatch.setattr("sys.argv", ["fuzz.py", "--graphs", "3", "--blocks", "1", "--light"])
    assert fuzz.main() == 1
    assert "accepted less than" in capsys.readouterr().out


def test_a_failure_is_printed_with_its_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*given: object) -> Outcome:
        return Outcome(7, findings=[Finding("values differ", "by 1")])

    monkeypatch.setattr(fuzz, "checked", wrong)
    monkeypatch.setattr("sys.argv", ["fuzz.py", "--only-seed", "7", "--blocks", "1"])
    assert fuzz.main() == 1
    printed = capsys.readouterr().out
    assert "seed 7: by 1" in printed
    assert "failing seeds: 7" in printed
