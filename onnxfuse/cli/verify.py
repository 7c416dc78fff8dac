"""``onnxfuse verify A B`` tells whether two models are equivalent."""

from __future__ import annotations

import argparse

from onnxfuse.cli.examine import failure, shapes
from onnxfuse.cli.progress import progress
from onnxfuse.errors import InputError, OnnxfuseError
from onnxfuse.outcome import Compared, Outcome
from onnxfuse.records import Equivalence
from onnxfuse.version import __version__


def run(chosen: argparse.Namespace) -> Outcome:
    """Compare two models."""
    try:
        found = Compared(chosen.left, chosen.right, _verify(chosen))
    except (OnnxfuseError, MemoryError) as error:
        found = Compared(chosen.left, chosen.right, failure=failure(error))
    return Outcome("verify", compared=found, version=__version__)


def _verify(chosen: argparse.Namespace) -> Equivalence:
    wanted = shapes(chosen)
    rtol, atol = _tolerance(chosen.rtol, "--rtol"), _tolerance(chosen.atol, "--atol")
    from onnxfuse.model import io
    from onnxfuse.verify.equivalence import Tolerance, compare

    left, right = io.load(chosen.left), io.load(chosen.right)
    tolerance = Tolerance(rtol, atol) if rtol or atol else None
    with progress(enabled=not chosen.quiet) as report:
        return compare(left, right, wanted, tolerance, lambda text: report(f"running {text}", 0, 0))


def _tolerance(texts: list[str], option: str) -> dict[str, float]:
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
