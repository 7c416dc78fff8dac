"""Measure what INT8 costs before and after fusing, with one scale per tensor and per channel.

    python tools/bench_quantise.py [MODEL.onnx ...] [--samples 16]

Each model and its fused form are quantised by onnxruntime's static quantisation (QDQ, signed
8-bit weights and activations, ranges by minimum and maximum). Printed is the RMS of the error
against the original in float32, over the RMS of its output, on samples that calibration has not
seen. All samples are seeded and standard normal, so the figures show how the two forms differ and
not what a trained network loses. Without models, four exports in `fixtures/` are measured.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from rich.console import Console
from rich.table import Table

import onnxfuse

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
DEFAULT = (
    "pytorch/repvgg_a0.ts.onnx",
    "pytorch/dbb_stack7.ts.onnx",
    "keras/repvgg_net.export.onnx",
    "paddle/lcnetv3_s1.op16.onnx",
)
OPEN_SIZE = 64  # for sizes that the model leaves open, except for the batch
Feeds = dict[str, np.ndarray]


class Samples(CalibrationDataReader):
    """What calibration reads: the given feeds, once."""

    def __init__(self, feeds: list[Feeds]) -> None:
        self._left: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Any:
        return next(self._left, None)


def feeds_for(session: ort.InferenceSession, count: int, seed: int) -> list[Feeds]:
    """Seeded standard-normal samples; the batch is 1 where it is open."""
    generator = np.random.default_rng(seed)

    def sample(shape: list[int | str | None]) -> np.ndarray:
        open_sizes = [1] + [OPEN_SIZE] * (len(shape) - 1)
        sizes = [s if isinstance(s, int) else o for s, o in zip(shape, open_sizes, strict=True)]
        return generator.standard_normal(sizes).astype(np.float32)

    return [{i.name: sample(i.shape) for i in session.get_inputs()} for _ in range(count)]


def outputs(session: ort.InferenceSession, feeds: list[Feeds]) -> np.ndarray:
    """All outputs on all samples, as one row of numbers."""
    return np.concatenate([y.ravel() for f in feeds for y in session.run(None, f)])


def session_of(path: Path) -> ort.InferenceSession:
    """A session as a user would make it, without its warnings."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def opset_of(path: Path) -> int:
    """The version of ONNX's own operators."""
    imported = onnx.load(path, load_external_data=False).opset_import
    return max(entry.version for entry in imported if entry.domain in {"", "ai.onnx"})


def errors(path: Path, samples: int) -> list[list[float]]:
    """Relative RMS errors: rows original and fused, columns per tensor and per channel."""
    with tempfile.TemporaryDirectory() as folder:
        fused, quantised = Path(folder) / "fused.onnx", Path(folder) / "int8.onnx"
        onnx.save(onnxfuse.fuse(str(path))[0], fused)
        float32 = session_of(path)
        calibration, unseen = (feeds_for(float32, samples, seed) for seed in (0, 1))
        truth = outputs(float32, unseen).astype(np.float64)
        rows = []
        for model in (path, fused):
            row = []
            for per_channel in (False, True):
                quantize_static(model, quantised, Samples(calibration), per_channel=per_channel)
                error = outputs(session_of(quantised), unseen) - truth
                row.append(float(np.sqrt(np.mean(error**2) / np.mean(truth**2))))
            rows.append(row)
    return rows


def main() -> None:
    """Print one row per model and form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--samples", type=int, default=16)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)  # the advice to pre-process: both forms go as they are
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("model", "form", "per tensor", "per channel"):
        table.add_column(title, justify="right" if title.startswith("per") else "left")
    for path in chosen.models or [FIXTURES / name for name in DEFAULT]:
        if opset_of(path) < 13:  # DequantizeLinear has no axis before
            parser.error(f"{path} has an opset below 13: one scale per channel needs 13")
        for form, row in zip(("original", "fused"), errors(path, chosen.samples), strict=True):
            table.add_row(path.name, form, *(f"{error:.2%}" for error in row))
    Console(width=100, highlight=False).print(table)


if __name__ == "__main__":
    main()
