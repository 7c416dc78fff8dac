"""Measure onnxfuse against its targets, and write docs/performance.md.

    pip install . -r tools/requirements-bench.txt
    python tools/bench.py [--write docs/performance.md] [--part NAME]... [--quick]

What is compared runs in turn, in one process or one after the other, in an order that turns round,
so that whatever else the machine does meets all alike; figures are medians of ratios of
neighbouring runs. A mean over systems is geometric; its interval comes from a bootstrap over the
systems and their rounds. Exports are made once, in --cache, and kept there, as is what was measured
last: with --part the rest of the page is what it was.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import pickle
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import bench_big
import bench_cost
import bench_latency
import bench_planning
import bench_process
import bench_startup
from bench_measure import Section, Target
from bench_models import exported

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
PARTS = {
    "latency": "latency beside the deploy form and beside other optimizers",
    "process": "whole processes beside other optimizers",
    "startup": "start-up",
    "planning": "how planning grows",
    "large": "a large graph",
    "big": "a model of 3 GiB with external data",
    "cost": "the plan's estimate",
}
PACKAGES = ("onnxfuse", "numpy", "onnx", "onnxruntime", "openvino", "onnxsim", "onnxslim", "torch")


@dataclass(frozen=True)
class Part:
    """One part as it was measured last: when, beside how much other work, and what was found."""

    when: str
    sections: list[Section]


def measured(part: str, chosen: argparse.Namespace, work: Path) -> list[Section]:
    """Measure one part."""
    if part == "startup":
        return [bench_startup.measured(15 if chosen.quick else 40)]
    if part == "planning":
        return [bench_planning.measured(1 if chosen.quick else 3)]
    if part == "big":
        return [bench_big.section(work, chosen.quick)]
    if part == "cost":
        return [bench_cost.section(9 if chosen.quick else 25)]
    wide = exported(chosen.cache)
    if part == "large":
        path = wide / "dbb_resnet18.ts.onnx"
        return [bench_process.large(path, work, 1 if chosen.quick else 3)]
    if part == "process":
        files = bench_process.ordinary([FIXTURES / "pytorch", wide], chosen.only)
        for file in files:
            bench_process.measure(file, work, 3 if chosen.quick else 5, bench_process.LIMIT)
        return [bench_process.section(files)]
    systems = bench_latency.systems(wide, work, chosen.only)
    for one in systems:
        bench_latency.measure(one, 5 if chosen.quick else 7)
        print(f"{one.name}: measured", file=sys.stderr, flush=True)
    return [bench_latency.deploy_section(systems), bench_latency.peers_section(systems)]


def timed(part: str, chosen: argparse.Namespace, work: Path) -> Part:
    """Measure one part, and note the circumstances."""
    begin = time.monotonic()
    sections = measured(part, chosen, work)
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    load = f", load {os.getloadavg()[1]:.1f}" if hasattr(os, "getloadavg") else ""
    how = ", with --quick" if chosen.quick else ""
    how += f", only {', '.join(chosen.only)}" if chosen.only else ""
    return Part(f"{now}, in {(time.monotonic() - begin) / 60:.0f} min{load}{how}", sections)


def page(parts: dict[str, Part]) -> str:
    """The page: targets first, then what they rest on."""
    found = [section for part in parts.values() for section in part.sections]
    targets = [target for section in found for target in section.targets]
    missing = (Target(PARTS[part], "", "", None) for part in PARTS if part not in parts)
    rows = [
        (target.what, target.aim, target.measured, target.verdict)
        for target in (*targets, *missing)
    ]
    words = (
        "Written by `python tools/bench.py --write docs/performance.md`, not by hand; below each "
        f"title stands when that was measured.\n\n{machine()}\n\n"
        "What is compared ran in turn, so that other work on the machine met all alike; figures "
        "are medians of ratios of neighbouring samples, with 95 % intervals from a bootstrap. A "
        f"sample of a latency is the least of the runs of {bench_latency.SESSIONS} sessions in "
        "some milliseconds, at one thread in time of the processor, else by the clock, which other "
        "work disturbs."
    )
    texts = ["# Performance", words, "## Targets", _table(("what", "aim", "measured", ""), rows)]
    for part in parts.values():
        for section in part.sections:
            texts += [f"## {section.title}", f"Measured {part.when}.", section.words]
            texts += [_table(titles, held) for titles, held in section.tables]
            if section.notes:
                texts.append("\n".join(f"- {note}" for note in section.notes))
    return "\n\n".join(texts) + "\n"


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"
                     for line in lines)  # fmt: skip


def machine() -> str:
    """The processor, its cores, and the versions of everything."""
    model = platform.processor() or platform.machine()
    place = Path("/proc/cpuinfo")
    for line in place.read_text().splitlines() if place.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    held = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"Machine: {model}, {cores} cores; {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}. {held}."
    )


def main() -> int:
    """Measure, print the page, and write it where that was asked for."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there as well")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all of them")
    parser.add_argument(
        "--only", action="append", default=[], metavar="GLOB", help="systems (may be repeated)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, wider intervals")
    parser.add_argument("--cache", type=Path, default=home / "onnxfuse-bench")
    chosen = parser.parse_args()
    chosen.part = chosen.part or list(PARTS)
    parts = {}
    for part in PARTS:
        kept = chosen.cache / f"{part}.result"  # our own, as is the cache
        if part in chosen.part:
            with tempfile.TemporaryDirectory() as folder:
                parts[part] = timed(part, chosen, Path(folder))
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(pickle.dumps(parts[part]))
        elif kept.exists():
            parts[part] = pickle.loads(kept.read_bytes())
    text = page(parts)
    print(text)
    if chosen.write:
        chosen.write.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
