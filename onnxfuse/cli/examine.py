"""What the commands share: options, one file examined with its failure as a value, the page."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxfuse.cli.arguments import parse_shape
from onnxfuse.errors import InputError, ProofError
from onnxfuse.outcome import Examined, Exit, Failure, Outcome


def options(chosen: argparse.Namespace) -> Any:
    """The options of fusing that a command line and its configuration ask for."""
    from onnxfuse.options import Options

    return Options(
        tuple(chosen.only),
        tuple(chosen.without),
        shapes(chosen),
        verify=not chosen.no_verify,
        approximate_borders=bool(chosen.approximate_borders),
        keep_post_bn=bool(chosen.keep_post_bn),
    )


def shapes(chosen: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """The sizes of dynamic inputs that were given."""
    return dict(parse_shape(text) for text in chosen.input_shape)


def examined(path: str, work: Callable[[], Examined]) -> Examined:
    """What ``work`` finds about a file; whatever stops it is kept as the file's failure."""
    started = time.perf_counter()
    try:
        found = work()
    except Exception as error:
        if os.environ.get("ONNXFUSE_TRACEBACK") and not isinstance(error, InputError | ProofError):
            raise
        found = Examined(path, failure=failure(error))
    return replace(found, seconds=time.perf_counter() - started)


def failure(error: Exception) -> Failure:
    """An error in one line, with the exit code it means."""
    if isinstance(error, InputError):
        return Failure(Exit.USAGE, _line(error))
    if isinstance(error, ProofError):
        return Failure(Exit.UNPROVED, _line(error))
    if isinstance(error, MemoryError):
        return Failure(Exit.USAGE, "not enough memory for this model")
    return Failure(
        Exit.UNPROVED,
        f"internal error, nothing was written: {type(error).__name__}: {_line(error)}; please "
        "report this (ONNXFUSE_TRACEBACK=1 shows where it happened)",
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def page_place(chosen: argparse.Namespace, *models: str) -> Path | None:
    """Where the page goes, checked before any work; it may not replace a model."""
    if chosen.report is None:
        return None
    from onnxfuse.model import io

    place = io.check_output(chosen.report)
    if any(Path(os.path.realpath(model)) == place for model in models):
        raise InputError(f"--report {chosen.report} would replace a model; name another file")
    return place


def page_data(place: Path | None, outcome: Outcome) -> bytes:
    """The page of an outcome; empty where none was asked for."""
    if place is None:
        return b""
    from onnxfuse.report.page import render

    return render(outcome).encode("utf-8", "replace")


def write_page(place: Path | None, data: bytes) -> None:
    """Write the page, whole or not at all."""
    if place is not None:
        from onnxfuse.model import io

        io.write(place, data)
