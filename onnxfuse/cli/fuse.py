"""``onnxfuse IN OUT``: fuse, prove, write."""

from __future__ import annotations

import argparse
from pathlib import Path

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
from onnxfuse.outcome import Examined, Exit, Failure, Outcome
from onnxfuse.version import __version__


def run(chosen: argparse.Namespace) -> Outcome:
    """Fuse one model; everything that can fail comes before the first file is written."""
    from onnxfuse.model import io

    wanted = options(chosen)
    place = io.check_output(chosen.output)
    page = page_place(chosen, chosen.input, chosen.output)
    outputs = filter(None, (chosen.output, chosen.report))
    carried = io.check_kept(chosen.input, place.parent, outputs)
    orphans = left(place, page, *carried)
    found = examined(chosen.input, lambda: _fuse(chosen, wanted, place, page))
    notes = () if found.failure is not None else (*said((found,)), *unmatched(wanted, chosen))
    outcome = Outcome("fuse", (found,), None, __version__, (*orphans, *notes))
    if found.output is None:  # else the page is written, or known not to be
        write_page(page, page_data(page, outcome))
    return outcome


def _fuse(chosen: argparse.Namespace, wanted: Watched, place: Path, page: Path | None) -> Examined:
    from onnxfuse.fusing import fuse_model
    from onnxfuse.model import io

    with progress(enabled=not chosen.quiet) as report:
        result = fuse_model(chosen.input, wanted, report)
    found = Examined(chosen.input, result.report, output=chosen.output)
    notes = (*said((found,)), *unmatched(wanted, chosen))
    drawn = page_data(page, Outcome("fuse", (found,), None, __version__, notes))
    io.carry_external_data(result.model, io.base_of(chosen.input), place.parent)
    io.write(place, result.data)
    try:
        write_page(page, drawn)
    except InputError as error:
        message = f"{chosen.output} is written, but the report is not: {error}"
        return Examined(
            chosen.input, result.report, (), Failure(Exit.USAGE, message), chosen.output
        )
    return found
