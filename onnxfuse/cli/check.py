"""``onnxfuse check IN...``: a gate for what is left to fuse, and for sizes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from onnxfuse.budget import LIMITS, Baseline, Limit, amount, growth, judge, read_baseline
from onnxfuse.cli import paths
from onnxfuse.cli.examine import examined, options, page_data, page_place, write_page
from onnxfuse.cli.progress import progress
from onnxfuse.config import Config
from onnxfuse.errors import InputError
from onnxfuse.outcome import Examined, Outcome
from onnxfuse.version import __version__


def run(chosen: argparse.Namespace, config: Config) -> Outcome:
    """Check every file named; one that cannot be used never stops the others."""
    gate = Gate(chosen, config)
    files, missing = paths.models(chosen.inputs, config.rules)
    place = page_place(chosen, *files)
    found = list(missing)
    with progress(enabled=not chosen.quiet) as report:
        for index, path in enumerate(files):
            report(path, index, len(files))
            found.append(examined(path, partial(gate.examine, path)))
    outcome = Outcome("check", tuple(found), None, __version__, gate.update(found))
    write_page(place, page_data(place, outcome))
    return outcome


class Gate:
    """What is demanded of a model: its limits, and whether anything may be left to fuse."""

    def __init__(self, chosen: argparse.Namespace, config: Config) -> None:
        self.options = options(chosen)
        self.rules = config.rules
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
        if chosen.baseline is None and wanted & {"max_growth", "update_baseline"}:
            raise InputError("--max-growth and --update-baseline need --baseline FILE")
        self.baseline: Baseline | None = None
        if chosen.baseline is not None and self.budgets:
            self.baseline = read_baseline(Path(chosen.baseline), may_be_missing=self.updates)

    def examine(self, path: str) -> Examined:
        """One model held against what is demanded."""
        from onnxfuse.fusing import count_model, explain_model

        limits = list(self._limits(path)) if self.budgets else []
        if self.fusible:
            report, _ = explain_model(path, self.options)
        else:
            report = count_model(path, self.options)
        return Examined(path, report, judge(report.before, limits), gate=self.fusible)

    def _limits(self, path: str) -> Iterator[Limit]:
        """The limits of one model; those of the command line win over configured ones."""
        yield from self.given
        for rule in self.rules:
            if paths.meant(path, rule):
                yield from (limit for limit in rule.limits if limit.metric not in self.typed)
        if self.baseline is not None and not self.updates:
            yield from self.baseline.limits(path, self.growth)

    def update(self, found: Sequence[Examined]) -> tuple[str, ...]:
        """Write the baseline anew where that was asked for, and say so."""
        if not self.updates or self.baseline is None:
            return ()
        from onnxfuse.model import io

        counted = {file.path: file.report.before for file in found if file.report is not None}
        place = io.check_output(self.baseline.path)
        io.write(place, self.baseline.updated(counted).to_json().encode())
        return (f"{self.baseline.path} now holds the sizes of {len(counted)} model(s)",)


def _name(key: str) -> str:
    return key.replace("-", "_")
