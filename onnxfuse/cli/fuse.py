"""``onnxfuse IN OUT``: fuse, prove, write."""

from __future__ import annotations

import argparse

from onnxfuse.cli.examine import examined, options, page_data, page_place, write_page
from onnxfuse.cli.progress import progress
from onnxfuse.errors import InputError
from onnxfuse.outcome import Examined, Outcome
from onnxfuse.version import __version__


def run(chosen: argparse.Namespace) -> Outcome:
    """Fuse one model; everything that can fail comes before the first file is written."""
    return Outcome("fuse", (examined(chosen.input, lambda: _fuse(chosen)),), version=__version__)


def _fuse(chosen: argparse.Namespace) -> Examined:
    wanted = options(chosen)
    from onnxfuse.model import io

    place = io.check_output(chosen.output)
    page = page_place(chosen, chosen.input, chosen.output)
    from onnxfuse.fusing import fuse_model

    with progress(enabled=not chosen.quiet) as report:
        result = fuse_model(chosen.input, wanted, report)
    found = Examined(chosen.input, result.report, output=chosen.output)
    drawn = page_data(page, Outcome("fuse", (found,), version=__version__))
    io.carry_external_data(result.model, io.base_of(chosen.input), place.parent)
    io.write(place, result.data)
    try:
        write_page(page, drawn)
    except InputError as error:
        raise InputError(f"{chosen.output} is written, but the report is not: {error}") from error
    return found
