"""What the commands share: options, one file examined with its failure as a value, the page."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from onnxfuse import threaded
from onnxfuse.budget import Baseline
from onnxfuse.errors import InputError, ProofError, WorkerError
from onnxfuse.options import Options
from onnxfuse.outcome import Examined, Exit, Failure, Outcome
from onnxfuse.watch import Watch

_WHOLE = re.compile("[0-9]{1,18}")
_SIZE = re.compile("0*[1-9][0-9]{0,17}")

LONGEST = 1000
"""A file may name a tensor in as many letters as it likes; a message has no more than these."""


@dataclass(frozen=True)
class Watched(Options):
    """Options that remember the nodes they were asked about."""

    labels: set[str] = field(default_factory=set)

    def admits(self, label: str) -> bool:
        self.labels.add(label)
        return super().admits(label)

    @property
    def met(self) -> frozenset[str]:
        """The patterns that were about some node so far."""
        return frozenset(
            pattern
            for pattern in (*self.only, *self.without)
            if any(fnmatchcase(label, pattern) for label in self.labels)
        )


def options(chosen: argparse.Namespace) -> Watched:
    """The options of fusing that a command line and its configuration ask for."""
    return Watched(
        tuple(chosen.only),
        tuple(chosen.without),
        shapes(chosen),
        verify=not chosen.no_verify,
        approximate_borders=bool(chosen.approximate_borders),
        keep_post_bn=bool(chosen.keep_post_bn),
        policy=chosen.policy or "default",
        freeze_initializers=bool(chosen.freeze_initializers),
        assume_inference=bool(chosen.assume_inference),
        ranges=bool(chosen.verbose or chosen.report or chosen.format not in (None, "text")),
        workers=threaded.workers() if chosen.command in ("fuse", "explain") else 1,
        **(_asked(chosen) if chosen.command == "fuse" else {}),
    )


def _asked(chosen: argparse.Namespace) -> dict[str, Any]:
    """What a command line asks of the run of the whole model."""
    return {
        "input_data": input_data(chosen),
        "seed": seed(chosen),
        "rtol": tolerance(chosen.rtol, "--rtol"),
        "atol": tolerance(chosen.atol, "--atol"),
        "save_repro": chosen.save_repro,
    }


def input_data(chosen: argparse.Namespace) -> dict[str, Any] | None:
    """The arrays of the file that --input-data names."""
    if chosen.input_data is None:
        return None
    from onnxfuse.verify import given

    return given.read(chosen.input_data)


def seed(chosen: argparse.Namespace) -> int | None:
    """The seed that was given."""
    return whole(chosen.seed, "--seed")


def whole(text: str | None, option: str) -> int | None:
    """A whole number that was given. Raises `InputError` for anything else."""
    if text is not None and not _WHOLE.fullmatch(text):
        raise InputError(f"{option} {text!r} is not a whole number from 0 on")
    return None if text is None else int(text)


def tolerance(texts: Sequence[str], option: str) -> dict[str, float]:
    """Tolerances by output name, empty for all outputs."""
    found = {}
    for text in texts:
        name, _, number = text.rpartition(":")
        try:
            value = float(number) if number.isascii() else -1.0
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise InputError(f"{option} {text!r} is not of the form 1e-4 or OUTPUT:1e-4")
        found[name] = value
    return found


def shapes(chosen: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """The sizes of dynamic inputs that were given."""
    return dict(parse_shape(text) for text in chosen.input_shape)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``name:1,3,224,224`` with commas or x, brackets allowed.

    >>> parse_shape("x:[1,3,224,224]")
    ('x', (1, 3, 224, 224))
    """
    name, colon, sizes = text.rpartition(":")
    digits = re.split("[,xX]", sizes.strip().strip("[]()"))
    found = [size.strip() for size in digits if size.strip()]
    if not colon or not name or not found or not all(map(_SIZE.fullmatch, found)):
        raise InputError(f"--input-shape {text!r} is not of the form NAME:1,3,224,224")
    return name, tuple(map(int, found))


def said(found: Sequence[Examined]) -> Iterator[str]:
    """What the reports of models say in words, each with its model where there are several."""
    for file in found:
        for note in file.report.notes if file.report is not None else ():
            yield note if len(found) == 1 else f"{file.path}: {note}"


def unmatched(met: Set[str], chosen: argparse.Namespace) -> Iterator[str]:
    """The patterns of --only and --except that were about no node; ``met`` are the others."""
    for key, name, patterns in (
        ("only", "only", chosen.only),
        ("except", "without", chosen.without),
    ):
        for pattern in patterns:
            if pattern not in met:
                typed = name in chosen.typed
                what = f"--{key} {pattern!r}" if typed else f"{key} {pattern!r} in {chosen.source}"
                yield f"{what} matches no node that could be fused (explain -v names them)"


def examined(path: str, work: Callable[[Watch], Examined], watch: Watch) -> Examined:
    """What ``work`` finds about a file; whatever stops it is kept as the file's failure."""
    try:
        found = work(watch)
    except Exception as error:
        if os.environ.get("ONNXFUSE_TRACEBACK") and not isinstance(error, InputError | ProofError):
            raise
        found = Examined(path, failure=failure(error))
    return replace(found, stages=watch.stages())


def failure(error: Exception) -> Failure:
    """An error in one line, with the exit code it means."""
    if isinstance(error, InputError):
        return Failure(Exit.USAGE, _line(error))
    if isinstance(error, ProofError | WorkerError):
        return Failure(Exit.UNPROVED, _line(error))
    if isinstance(error, MemoryError):
        return Failure(Exit.USAGE, "not enough memory for this model")
    if isinstance(error, OSError):
        return Failure(Exit.USAGE, f"a file cannot be used: {_line(error)}")
    return Failure(
        Exit.UNPROVED,
        f"internal error, nothing was written: {type(error).__name__}: {_line(error)}; please "
        "report this (ONNXFUSE_TRACEBACK=1 shows where it happened)",
    )


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def page_place(
    chosen: argparse.Namespace, *models: str, baseline: Baseline | None = None
) -> Path | None:
    """Where the page goes, checked before any work; it may replace nothing but a page."""
    if chosen.report is None:
        return None
    from onnxfuse.model import io

    place = io.check_output(chosen.report)
    what = ""
    if any(Path(os.path.realpath(model)) == place for model in models):
        what = "a model"
    elif baseline is not None and baseline.path.resolve() == place:
        what = "the baseline"
    elif _is_foreign(place):
        what = "a file that is no HTML page"
    if what:
        raise InputError(f"--report {chosen.report} would replace {what}; name another file")
    return place


def _is_foreign(place: Path) -> bool:
    """Whether a file holds something that does not begin as a page does."""
    start = b"<!doctype html>"
    try:
        with place.open("rb") as stream:
            held = stream.read(len(start))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return bool(held) and held.lower() != start


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


def left(*places: Path | None) -> tuple[str, ...]:
    """The files that killed runs left beside what is written now, in words."""
    from onnxfuse.model import temporary

    directories = [place.parent for place in places if place is not None]
    return tuple(
        f"{orphan} was left by an interrupted run and may be deleted"
        for orphan in temporary.left(directories)
    )
