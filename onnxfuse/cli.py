"""The command: arguments, exit codes, and what is printed. Heavy packages are imported late."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from onnxfuse.errors import InputError, ProofError
from onnxfuse.version import __version__

OK, USAGE, UNPROVED, INTERRUPTED = 0, 2, 3, 130

DESCRIPTION = """\
Merge the linear branches of an exported ONNX model into single convolutions.

Blocks such as RepVGG, ACNet, Diverse Branch Block or MobileOne are trained with
branches (convolutions, batch normalisations, poolings, sums) that equal one
convolution at inference. onnxfuse finds them in the file, whatever framework
exported it, replaces them, and proves the result equal before it writes.
"""

EPILOG = """\
examples:
  onnxfuse model.onnx fused.onnx
  onnxfuse model.onnx fused.onnx --input-shape input:1,3,224,224
  onnxfuse model.onnx fused.onnx --except '/head/*' -v

exit codes:
  0  done (also when there was nothing to fuse: the output is then a copy)
  2  wrong usage, or an input that is missing or is not a usable model
  3  a fusion could not be proved equal; nothing was written
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        "onnxfuse",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("input", metavar="IN", help="the model to read (.onnx)")
    found.add_argument("output", metavar="OUT", help="where to write the fused model; may be IN")
    found.add_argument(
        "--input-shape",
        metavar="NAME:1,3,224,224",
        action="append",
        default=[],
        help="size of a dynamic input, for counting MACs and for the whole-model run "
        "(once for each input)",
    )
    found.add_argument(
        "--only", metavar="GLOB", action="append", default=[], help="fuse only nodes of these names"
    )
    found.add_argument(
        "--except",
        metavar="GLOB",
        action="append",
        default=[],
        dest="without",
        help="leave nodes of these names alone",
    )
    found.add_argument(
        "--approximate-borders",
        action="store_true",
        help="also take merges that are exact in the interior alone, as published for DBB with "
        "zero padding; the error at the border is measured and the output is marked",
    )
    found.add_argument(
        "--no-verify",
        action="store_true",
        help="skip the run of the whole model in onnxruntime (regions are always proved)",
    )
    volume = found.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    volume.add_argument(
        "-v", "--verbose", action="store_true", help="print expressions, all refusals and times"
    )
    found.add_argument("--version", action="version", version=f"onnxfuse {__version__}")
    return found


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``name:1,3,224,224`` with commas or x, brackets allowed.

    >>> parse_shape("x:[1,3,224,224]")
    ('x', (1, 3, 224, 224))
    """
    name, colon, sizes = text.rpartition(":")
    digits = sizes.strip().strip("[]()").replace("x", ",").replace("X", ",")
    try:
        shape = tuple(int(size) for size in digits.split(",") if size.strip())
    except ValueError:
        shape = ()
    if not colon or not name or not shape or min(shape) < 1:
        raise InputError(f"--input-shape {text!r} is not of the form NAME:1,3,224,224")
    return name, shape


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    chosen = parser().parse_args(arguments)
    try:
        return _fuse(chosen)
    except InputError as error:
        return _fail(error, USAGE)
    except ProofError as error:
        return _fail(error, UNPROVED)
    except MemoryError:
        return _fail("not enough memory for this model", USAGE)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if os.environ.get("ONNXFUSE_TRACEBACK"):
            raise
        return _fail(
            f"internal error, nothing was written: {type(error).__name__}: {error}; please report "
            "this (ONNXFUSE_TRACEBACK=1 shows where it happened)",
            UNPROVED,
        )


def _fail(error: object, code: int) -> int:
    text = " ".join(str(error).split())
    safe = "".join(c if c.isprintable() else "?" for c in text)
    print(f"onnxfuse: error: {safe}", file=sys.stderr)
    return code


def _fuse(chosen: argparse.Namespace) -> int:
    shapes = dict(parse_shape(text) for text in chosen.input_shape)
    from onnxfuse.model import io

    place = io.check_output(chosen.output)
    from onnxfuse.fusing import fuse_model
    from onnxfuse.options import Options

    options = Options(
        tuple(chosen.only),
        tuple(chosen.without),
        shapes,
        verify=not chosen.no_verify,
        approximate_borders=chosen.approximate_borders,
    )
    started = time.perf_counter()
    with _progress(enabled=not chosen.quiet) as progress:
        result = fuse_model(chosen.input, options, progress)
    printed = ""
    if not chosen.quiet:  # rendered before anything is written, so that it cannot fail after
        printed = _rendered(result.report, chosen.verbose, time.perf_counter() - started)
    io.carry_external_data(result.model, io.base_of(chosen.input), place.parent)
    io.write(place, result.data)
    sys.stdout.write(printed)
    sys.stdout.flush()
    return OK


def _rendered(report: Any, verbose: bool, seconds: float) -> str:
    from rich.console import Console

    from onnxfuse.report.text import show

    console = Console(highlight=False)
    with console.capture() as captured:
        show(report, console, verbose=verbose)
        if verbose:
            console.print(f"Took {seconds:.2f} s.")
    return captured.get()


@contextmanager
def _progress(*, enabled: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal's stderr, once the work has taken a second."""
    if not enabled or not sys.stderr.isatty():
        yield lambda _stage, _done, _total: None
        return
    started = time.monotonic()
    bar: Any = None
    task: Any = None

    def report(stage: str, done: int, total: int) -> None:
        nonlocal bar, task
        if bar is None and time.monotonic() - started > 1:
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(console=Console(stderr=True), transient=True)
            bar.start()
            task = bar.add_task(stage)
        if bar is not None:
            bar.update(task, description=stage, completed=done, total=total or None)

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()
