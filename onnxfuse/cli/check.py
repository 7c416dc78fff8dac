"""``onnxfuse check IN...``: a gate for what is left to fuse, and for sizes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from onnxfuse.budget import LIMITS, Baseline, Limit, amount, growth, judge, read_baseline
from onnxfuse.cli import paths
from onnxfuse.cli.examine import (
    Watched,
    examined,
    failure,
    left,
    options,
    page_data,
    page_place,
    said,
    unmatched,
    whole,
    write_page,
)
from onnxfuse.cli.progress import progress
from onnxfuse.config import Config, Rule
from onnxfuse.errors import InputError, OnnxfuseError, WorkerError
from onnxfuse.options import Options
from onnxfuse.outcome import Examined, Failure, Outcome
from onnxfuse.version import __version__
from onnxfuse.watch import Progress, Watch

Measured = tuple[Examined, frozenset[str]]
"""A file, and the patterns of --only and --except that were about its nodes."""
MANY = 8
MUCH = 8_000_000
"""Fewer models than these, and fewer bytes, are done before other processes have started."""


def run(chosen: argparse.Namespace, config: Config) -> Outcome:
    """Check every file named; one that cannot be used never stops the others."""
    gate = Gate(chosen, config)
    meant = paths.models(chosen.inputs, config.rules)
    place = page_place(chosen, *meant.files, baseline=gate.baseline)
    baseline = gate.baseline.path if gate.updates and gate.baseline is not None else None
    orphans = left(place, baseline)
    jobs = _jobs(chosen, meant.files)
    asked = {path: gate.asked(path, meant.rules(path)) for path in meant.files}
    names = [path for path, limits in asked.items() if not isinstance(limits, Failure)]
    with progress(enabled=not chosen.quiet) as show:
        try:
            held = list(_measure(gate, names, jobs, show))
        except WorkerError:
            if chosen.jobs:
                raise
            held = list(_measure(gate, names, 1, show))
    results = dict(zip(names, held, strict=True))
    found = [*meant.unusable, *(_judged(path, asked[path], results) for path in asked)]
    notes = [*orphans, *gate.notes, *said(found)]
    if gate.fusible and all(file.failure is None for file in found):
        met = frozenset[str]().union(*(patterns for _, patterns in results.values()))
        notes += unmatched(met, chosen)
    if gate.updates:
        found = [gate.recorded(file) for file in found]
        notes.append(gate.update(found))
    outcome = Outcome("check", tuple(found), None, __version__, tuple(notes))
    write_page(place, page_data(place, outcome))
    return outcome


def _jobs(chosen: argparse.Namespace, files: Sequence[str]) -> int:
    """How many processes work on these files."""
    asked = whole(chosen.jobs, "--jobs")
    if asked:
        return min(asked, max(len(files), 1))
    if len(files) < MANY and sum(map(_size, files)) < MUCH:
        return 1
    from onnxfuse import pool

    return min(pool.cores(), len(files))


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)  # noqa: PTH202 - of thousands
    except OSError:
        return 0


def _measure(gate: Gate, names: Sequence[str], jobs: int, show: Progress) -> Iterator[Measured]:
    """The reports of models in their order, made in this process or in others."""
    work = partial(measured, gate.options, fusible=gate.fusible)
    if jobs == 1:
        for index, path in enumerate(names):
            show(path, index, len(names))
            yield work(path)
        return
    from onnxfuse import pool

    for path, result in zip(names, pool.in_processes(work, names, jobs, show), strict=True):
        if not isinstance(result, Exception):
            yield result
        elif os.environ.get("ONNXFUSE_TRACEBACK") and not isinstance(result, OnnxfuseError):
            raise result
        else:
            yield Examined(path, failure=failure(result)), frozenset()


def measured(options: Options, path: str, *, fusible: bool) -> Measured:
    """What one model holds, in any process: its report or what stopped that."""
    wanted = Watched(**{field.name: getattr(options, field.name) for field in fields(Options)})

    def work(watch: Watch) -> Examined:
        from onnxfuse.fusing import count_model, explain_model

        report = (
            explain_model(path, wanted, watch)[0] if fusible else count_model(path, wanted, watch)
        )
        return Examined(path, report, gate=fusible)

    return examined(path, work, Watch()), wanted.met


def _judged(
    path: str, limits: Sequence[Limit] | Failure, results: Mapping[str, Measured]
) -> Examined:
    """One model held against its limits."""
    if isinstance(limits, Failure):
        return Examined(path, failure=limits)
    file, _ = results[path]
    if file.report is None:
        return file
    try:
        return replace(file, budgets=judge(file.report.before, limits))
    except InputError as error:
        return Examined(path, failure=failure(error), stages=file.stages)


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

    def asked(self, path: str, rules: Sequence[Rule]) -> list[Limit] | Failure:
        """The limits of one model, or why they are not known."""
        try:
            return list(self._limits(path, rules)) if self.budgets else []
        except InputError as error:
            return failure(error)

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
