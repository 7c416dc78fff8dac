"""``onnxfuse explain IN``: each linear region, and why not more."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial

from onnxfuse.cli.examine import (
    Watched,
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
from onnxfuse.errors import InputError
from onnxfuse.outcome import Examined, Outcome
from onnxfuse.records import Kept, RegionReport, Report
from onnxfuse.version import __version__
from onnxfuse.watch import Watch


def run(chosen: argparse.Namespace) -> Outcome:
    """Explain one model."""
    watch = Watch()
    wanted = options(chosen)
    page = page_place(chosen, chosen.input)
    orphans = left(page)
    with progress(enabled=not chosen.quiet) as watch.show:
        found = examined(chosen.input, partial(_explain, chosen, wanted), watch)
    notes = () if found.failure is not None else (*said((found,)), *unmatched(wanted.met, chosen))
    outcome = Outcome("explain", (found,), None, __version__, (*orphans, *notes))
    write_page(page, page_data(page, outcome))
    return outcome


def _explain(chosen: argparse.Namespace, wanted: Watched, watch: Watch) -> Examined:
    from onnxfuse.fusing import explain_model

    report, about = explain_model(chosen.input, wanted, watch)
    report = _about(report, about(), chosen.node) if chosen.node else report
    return Examined(chosen.input, report)


def _about(report: Report, alone: Sequence[Kept], names: Sequence[str]) -> Report:
    """The part of a report that speaks of nodes or tensors by these names or globs."""
    regions: dict[int, RegionReport] = {}
    refusals: dict[int, Kept] = {}
    for name in names:
        mine = [r for r in report.regions if _holds(name, _region_names(r))]
        kept = [k for k in report.refusals if _holds(name, _kept_names(k))]
        if not mine and not kept:
            kept = [k for k in alone if _holds(name, _kept_names(k))]
        if not mine and not kept:
            known = [n for r in report.regions for n in _region_names(r)]
            known += [n for k in (*report.refusals, *alone) for n in _kept_names(k)]
            near = [n for n in known if name in n] or difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {min(near, key=len)!r}?" if near else ""
            raise InputError(f"the model has no node or tensor {name!r}{hint}")
        regions.update((id(r), r) for r in mine)
        refusals.update((id(k), k) for k in kept)
    return replace(report, regions=tuple(regions.values()), refusals=tuple(refusals.values()))


def _holds(name: str, names: Iterable[str]) -> bool:
    return any(name == other or fnmatchcase(other, name) for other in names)


def _region_names(region: RegionReport) -> set[str]:
    drawn = {name for operator in region.drawn for name in (operator.name, *operator.outputs)}
    return {region.root, region.node, *region.nodes, *drawn}


def _kept_names(kept: Kept) -> set[str]:
    return {kept.root, kept.node} - {""}
