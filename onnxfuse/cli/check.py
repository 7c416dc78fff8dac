"""``onnxfuse check IN...``: a gate for what is left to fuse, and for sizes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from onnxfuse.budget import LIMITS, Baseline, Limit, amount, growth, judge, read_baseline
from onnxfuse.cli import paths
from onnxfuse.cli.examine import (
    examined,
    left,
    options,
    page_data,
    page_place,
    said,
    unmatched,
    write_page,
)
from onnxfuse.cli.progress import progress
from onnxfuse.config import Config, Rule
from onnxfuse.errors import InputError
from onnxfuse.outcome import Examined, Outcome
from onnxfuse.version import __version__
from onnxfuse.watch import Watch


def run(chosen: argparse.Namespace, config: Config) -> Outcome:
    """Check every file named; one that cannot be used never stops the others."""
    gate = Gate(chosen, config)
    meant = paths.models(chosen.inputs, config.rules)
    place = page_place(chosen, *meant.files, baseline=gate.baseline)
    baseline = gate.baseline.path if gate.updates and gate.baseline is not None else None
    orphans = left(place, baseline)
    found = list(meant.unusable)
    with progress(enabled=not chosen.quiet) as report:
        for index, path in enumerate(meant.files):
            report(path, index, len(meant.files))
            found.append(examined(path, partial(gate.examine, path, meant.rules(path)), Watch()))
    notes = [*orphans, *gate.notes, *said(found)]
    if gate.fusible and all(file.failure is None for file in found):
        notes += unmatched(gate.options, chosen)
    if gate.updates:
        found = [gate.recorded(file) for file in found]
        notes.append(gate.update(found))
    outcome = Outcome("check", tuple(found), None, __version__, tuple(notes))
    write_page(place, page_data(place, outcome))
    return outcome


class Gate:
    """What is demanded of a model: its limits, and whether anything may be left to fuse."""

    def __init__(self, chosen: argparse.Namespace, config: Config) -> None:
        self.options = options(chosen)
        self.notes: list[str] = []
        self.fusible = not chosen.budget_only
        self.budgets = not chosen.no_fusible
        self.updates = bool(chosen.update_baseline)
        self.growth = growth(chosen.max_growth if chosen.max_growth is not None else "0")
        self.given: list[Limit] = []
        for key, metric in LIMITS.items():
            value = getattr(chosen, _name(key))
            if value is not None:
                typed = _name(key) in chosen.typed
                source = f"--{key}" if typed else f"{key} in {config.path}"
                self.given.append(Limit(metric, amount(value, key), source))
        self.typed = {metric for key, metric in LIMITS.items() if _name(key) in chosen.typed}
        wanted = {*map(_name, LIMITS), "baseline", "max_growth", "update_baseline"} & chosen.typed
        if not self.budgets and wanted:
            raise InputError(
                "--no-fusible demands that nothing is left to fuse and judges no budget; leave "
                "the budgets out, or judge them alone with --budget-only"
            )
        switches = {"freeze_initializers", "assume_inference"} & chosen.typed
        if not self.fusible and switches:
            raise InputError(
                f"--budget-only counts a model as it is given, so --{_key(min(switches))} would "
                "change nothing; leave one of them out"
            )
        if chosen.baseline is None and wanted & {"max_growth", "update_baseline"}:
            raise InputError("--max-growth and --update-baseline need --baseline FILE")
        if chosen.baseline is None and chosen.max_growth is not None and self.budgets:
            self.notes.append(
                f"max-growth in {chosen.source} has no baseline to hold against; set baseline "
                "there, or pass --baseline FILE"
            )
        self.baseline: Baseline | None = None
        if chosen.baseline is not None and self.budgets:
            self.baseline = read_baseline(Path(chosen.baseline), may_be_missing=self.updates)
            self._check_baseline()

    def _check_baseline(self) -> None:
        """Refuse, before any work, a baseline that is to be written and cannot be."""
        if self.updates and self.baseline is not None:
            from onnxfuse.model import io

            io.check_output(self.baseline.path)

    def examine(self, path: str, rules: Sequence[Rule], watch: Watch) -> Examined:
        """One model held against what is demanded; ``rules`` are those that speak of it."""
        from onnxfuse.fusing import count_model, explain_model

        limits = list(self._limits(path, rules)) if self.budgets else []
        if self.fusible:
            report, _ = explain_model(path, self.options, watch)
        else:
            report = count_model(path, self.options, watch)
        return Examined(path, report, judge(report.before, limits), gate=self.fusible)

    def _limits(self, path: str, rules: Sequence[Rule]) -> Iterator[Limit]:
        """The limits of one model; those of the command line win over configured ones."""
        yield from self.given
        for rule in rules:
            yield from (limit for limit in rule.limits if limit.metric not in self.typed)
        if self.baseline is not None and not self.updates:
            yield from self.baseline.limits(path, self.growth)

    def recorded(self, file: Examined) -> Examined:
        """A model that was counted, marked as one whose sizes the baseline takes."""
        assert self.baseline is not None
        taken = str(self.baseline.path) if file.report is not None else ""
        return replace(file, recorded=taken)

    def update(self, found: Sequence[Examined]) -> str:
        """Write the baseline anew, and say so."""
        assert self.baseline is not None
        from onnxfuse.model import io

        counted = {file.path: file.report.before for file in found if file.report is not None}
        place = io.check_output(self.baseline.path)
        io.write(place, self.baseline.updated(counted).to_json().encode())
        return f"{self.baseline.path} now holds the sizes of {len(counted)} model(s)"


def _name(key: str) -> str:
    return key.replace("-", "_")


def _key(name: str) -> str:
    return name.replace("_", "-")
