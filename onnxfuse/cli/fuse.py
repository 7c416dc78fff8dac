"""``onnxfuse IN OUT``: fuse, prove, write."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from onnxfuse import files
from onnxfuse.background import Background
from onnxfuse.cli import writing
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
from onnxfuse.watch import Watch


def run(chosen: argparse.Namespace) -> Outcome:
    """Fuse one model; everything that can fail comes before the first file is written."""
    watch = Watch()
    reading = Background(partial(files.read, Path(chosen.input)))
    from onnxfuse.model import io, saving

    wanted = options(chosen)
    place = io.check_output(chosen.output)
    page = page_place(chosen, chosen.input, chosen.output)
    outputs = filter(None, (chosen.output, chosen.report))
    carried = io.check_kept(chosen.input, place.parent, outputs)
    if chosen.external_data is not None:
        saving.check_file(chosen.external_data, place, chosen.input, chosen.report)
    orphans = left(place, page, *carried)
    with progress(enabled=not chosen.quiet) as watch.show:
        found = examined(chosen.input, partial(_fuse, chosen, reading, wanted, place, page), watch)
    notes = () if found.failure is not None else (*said((found,)), *unmatched(wanted.met, chosen))
    outcome = Outcome("fuse", (found,), None, __version__, (*orphans, *notes))
    if found.output is None:  # else the page is written, or known not to be
        write_page(page, page_data(page, outcome))
    return outcome


def _fuse(
    chosen: argparse.Namespace,
    reading: Background[bytes],
    wanted: Watched,
    place: Path,
    page: Path | None,
    watch: Watch,
) -> Examined:
    from onnxfuse.fusing import fuse_model
    from onnxfuse.model import io
    from onnxfuse.model.saving import Output

    threshold = writing.threshold(chosen)
    watch.enter("read")
    given = io.load(chosen.input, reading)
    with Output(place, given, chosen.external_data, threshold) as output:
        result = fuse_model(given, wanted, watch, output)
        found = Examined(chosen.input, result.report, output=chosen.output)
        notes = (*said((found,)), *unmatched(wanted.met, chosen))
        drawn = page_data(page, Outcome("fuse", (found,), None, __version__, notes))
        watch.enter("write")
        output.commit(result.model, result.data)
    try:
        write_page(page, drawn)
    except InputError as error:
        message = f"{chosen.output} is written, but the report is not: {error}"
        return Examined(
            chosen.input, result.report, (), Failure(Exit.USAGE, message), chosen.output
        )
    return found
