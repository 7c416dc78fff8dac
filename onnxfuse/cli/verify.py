"""``onnxfuse verify A B`` tells whether two models are equivalent."""

from __future__ import annotations

import argparse

from onnxfuse.cli.examine import failure, input_data, seed, shapes, tolerance
from onnxfuse.cli.progress import progress
from onnxfuse.errors import OnnxfuseError
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
    rtol, atol = tolerance(chosen.rtol, "--rtol"), tolerance(chosen.atol, "--atol")
    data, drawn = input_data(chosen), seed(chosen)
    from onnxfuse.model import io
    from onnxfuse.verify.equivalence import Tolerance, compare

    left, right = io.load(chosen.left), io.load(chosen.right)
    bounds = Tolerance(rtol, atol) if rtol or atol else None
    with progress(enabled=not chosen.quiet) as report:
        return compare(
            left, right, wanted, bounds, lambda text: report(f"running {text}", 0, 0), data, drawn
        )
