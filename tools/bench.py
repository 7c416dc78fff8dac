"""Measure fused exports against their originals and hand-merged deploy forms, side by side.

    python tools/bench.py [--only GLOB] [--rounds 60] [--threads 1]

For every committed export: Conv, nodes and MACs of original, fused and deploy; the worst RMS
error ratio of a region (fused over original, against float64); and latency in onnxruntime with
its default optimisations, as the median of ratios of runs taken in turn (original, fused,
deploy, original, …) in one process. Inputs have the sizes of the export.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

import onnxfuse

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "pytorch"


def session(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    """A session as a user would make it, with a fixed number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def latencies(
    sessions: list[ort.InferenceSession], feeds: dict[str, Any], rounds: int
) -> list[list[float]]:
    """Seconds per run of each session, taken in turn; every sample is a batch of about 2 ms."""
    repeats = []
    for one in sessions:
        one.run(None, feeds)
        begin = time.perf_counter()
        one.run(None, feeds)
        repeats.append(max(int(0.002 / max(time.perf_counter() - begin, 1e-7)), 1))
    samples: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for index, one in enumerate(sessions):
            begin = time.perf_counter()
            for _ in range(repeats[index]):
                one.run(None, feeds)
            samples[index].append((time.perf_counter() - begin) / repeats[index])
    return samples


def ratio(top: list[float], bottom: list[float]) -> float:
    """The median of the ratios of neighbouring samples."""
    return statistics.median(a / b for a, b in zip(top, bottom, strict=True))


def main() -> None:
    """Print one row per export and the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*.ts.onnx", help="glob over file names")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    manifest = json.loads((FIXTURES / "manifest.json").read_text())["files"]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("export", "Conv", "nodes", "MACs", "RMS", "time/deploy", "time/original"):
        table.add_column(title, justify="left" if title == "export" else "right")
    to_deploy, to_original, worst = [], [], []
    for name, entry in sorted(manifest.items()):
        if not (entry["committed"] and fnmatchcase(name, chosen.only)) or ".deploy." in name:
            continue
        original = onnx.load(FIXTURES / name)
        deploy = onnx.load(FIXTURES / entry["deploy"])
        fused, report = onnxfuse.fuse(original)
        target = onnxfuse.plan(deploy).before
        generator = np.random.default_rng(0)
        feeds = {
            n: generator.standard_normal(s).astype(np.float32)
            for n, s in entry["input_shapes"].items()
        }
        sessions = [session(m, chosen.threads) for m in (original, fused, deploy)]
        before, after, best = latencies(sessions, feeds, chosen.rounds)
        ratios = [r.error.ratio for r in report.regions if r.error and r.error.ratio is not None]
        worst += ratios
        to_deploy.append(ratio(after, best))
        to_original.append(ratio(after, before))
        table.add_row(
            name.removesuffix(".onnx"),
            f"{report.before.conv}→{report.after.conv} ({target.conv})",
            f"{report.before.nodes}→{report.after.nodes} ({target.nodes})",
            f"{report.before.macs:,}→{report.after.macs:,} ({target.macs:,})",
            f"{max(ratios):.2f}" if ratios else "",
            f"{to_deploy[-1]:.2f}",
            f"{to_original[-1]:.2f}",
        )
    console = Console(width=160)
    console.print("original→fused (deploy); RMS: worst region, fused/original against float64")
    console.print(table)
    console.print(
        f"{len(to_deploy)} exports, geometric mean of time: "
        f"fused/deploy {statistics.geometric_mean(to_deploy):.3f}, "
        f"fused/original {statistics.geometric_mean(to_original):.3f}; "
        f"RMS ratio of {len(worst)} regions: geometric mean "
        f"{statistics.geometric_mean(worst):.3f}, worst {max(worst):.2f}"
    )


if __name__ == "__main__":
    main()
