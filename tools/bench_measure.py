"""How the benchmark measures: sessions, runs taken in turn, ratios, and how sure they are.

It knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Samples = dict[str, list[float]]
Clock = Callable[[], float]
BATCH = 0.008
"""Seconds that a sample lasts at least; shorter calls are repeated, and the least is taken."""
DRAWS = 2000
"""Of the bootstrap."""


def session(model: Any, threads: int, saved: Path | None = None) -> Any:
    """An onnxruntime session as a user would make it, with a fixed number of threads.

    The threads rest between runs, as they would otherwise spin while others are measured.
    ``model`` is a path or a ModelProto; the graph that is run is written to ``saved``.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if saved:
        options.optimized_model_filepath = str(saved)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    given = str(model) if isinstance(model, str | Path) else model.SerializeToString()
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def latencies(sessions: list[Any], feeds: dict[str, Any], rounds: int) -> list[list[float]]:
    """Seconds per run of each session, taken in turn."""
    calls = {str(n): _bound(one, feeds) for n, one in enumerate(sessions)}
    return list(in_turn(calls, rounds).values())


def _bound(one: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
    return lambda: one.run(None, feeds)


def in_turn(
    calls: Mapping[str, Callable[[], Any]], rounds: int, clock: Clock = time.perf_counter
) -> Samples:
    """Seconds per call of each, one sample of each a round, in an order that turns round.

    A sample is the least of some calls: what other programs add is never negative.
    """
    order = list(calls)
    repeats = dict.fromkeys(order, 1)
    for name, call in calls.items():
        call()
        begin = clock()
        call()
        repeats[name] = max(int(BATCH / max(clock() - begin, 1e-7)), 1)
    samples: Samples = {name: [] for name in order}
    for turn in range(rounds):
        for index in range(len(order)):
            name = order[(index + turn) % len(order)]
            call = calls[name]
            samples[name].append(min(_timed(call, clock) for _ in range(repeats[name])))
    return samples


def least_in_turn(
    copies: Mapping[str, Sequence[Callable[[], Any]]], rounds: int, clock: Clock = time.perf_counter
) -> Samples:
    """Seconds per call of each, where a sample is the least of those of its copies in a round.

    Where weights lie in memory moves a latency by a percent or two, and what a bad place adds is
    never negative either. There are as many copies of each, two at least.
    """
    count = len(next(iter(copies.values())))
    calls = {f"{name} {n}": held[n] for n in range(count) for name, held in copies.items()}
    samples = in_turn(calls, rounds, clock)
    return {
        name: list(map(min, *(samples[f"{name} {n}"] for n in range(count)))) for name in copies
    }


def _timed(call: Callable[[], Any], clock: Clock) -> float:
    begin = clock()
    call()
    return clock() - begin


def ratio(top: Sequence[float], bottom: Sequence[float]) -> float:
    """The median of the ratios of neighbouring samples."""
    return statistics.median(a / b for a, b in zip(top, bottom, strict=True))


@dataclass(frozen=True)
class Ratio:
    """A ratio as measured: one value for each round; ``text`` says more of it."""

    name: str
    values: tuple[float, ...]
    text: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def interval(self) -> tuple[float, float]:
        """Where the median lies with 95 %, from rounds drawn again with replacement."""
        drawn = np.median(_drawn(self.values, np.random.default_rng(0)), axis=1)
        return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def of(name: str, top: Sequence[float], bottom: Sequence[float], text: str = "") -> Ratio:
    """The ratio of two series that were taken in turn."""
    return Ratio(name, tuple(a / b for a, b in zip(top, bottom, strict=True)), text)


def _drawn(values: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    held = np.asarray(values)
    return held[generator.integers(0, len(held), (DRAWS, len(held)))]


def mean(what: str, aim: float, ratios: Sequence[Ratio]) -> Target:
    """The target that a geometric mean is at most ``aim``."""
    middle, low, high = geometric(ratios)
    text = f"{middle:.3f} [{low:.3f}, {high:.3f}]"
    return Target(what, f"≤ {aim:g}", text, middle <= aim, sure=not low <= aim < high)


def geometric(ratios: Sequence[Ratio]) -> tuple[float, float, float]:
    """The geometric mean of medians, and where it lies with 95 %.

    Both the things measured and the rounds of each are drawn again with replacement: the interval
    says how much another choice of things, and another run, would move the mean.
    """
    generator = np.random.default_rng(0)
    logs = np.log([np.median(_drawn(one.values, generator), axis=1) for one in ratios])
    chosen = generator.integers(0, len(ratios), (DRAWS, len(ratios)))
    means = np.exp(np.take_along_axis(logs.T, chosen, axis=1).mean(axis=1))
    middle = statistics.geometric_mean(one.median for one in ratios)
    return middle, float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


SAMPLED = 20
"""Milliseconds between two looks at the memory of a process."""


@dataclass
class Ran:
    """A program that was run: seconds by the clock and of the processor; why it failed, if so.

    ``memory`` is the peak of its memory in bytes, or of what of that is anonymous.
    """

    wall: float
    processor: float
    failed: str = ""
    memory: int = 0


def run(command: Sequence[str], limit: float, cwd: Path | None = None) -> Ran:
    """Run a program to its end or for ``limit`` seconds."""
    with tempfile.TemporaryFile() as heard:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=heard, stderr=subprocess.STDOUT, cwd=cwd, env=_environment()
        )
        peak = _watched(process, limit)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = code = os.waitstatus_to_exitcode(status)
        heard.seek(0)
        said = heard.read().decode(errors="replace").strip().splitlines()
    failed = f"exit {code}: {said[-1][:120] if said else ''}" if code else ""
    if code == -signal.SIGKILL and seconds >= limit:
        failed = f"not done in {limit:g} s"
    return Ran(seconds, used.ru_utime + used.ru_stime, failed, peak)


def _watched(process: subprocess.Popen[bytes], limit: float) -> int:
    """Wait for the end of a process, which comes after ``limit`` seconds; its peak of memory."""
    ending = select.poll()
    handle = os.pidfd_open(process.pid)
    ending.register(handle, select.POLLIN)
    begin, peak = time.monotonic(), 0
    while not ending.poll(SAMPLED):
        peak = max(peak, _peak(process.pid))
        if time.monotonic() - begin > limit:
            process.kill()
    os.close(handle)
    return peak


def _peak(pid: int) -> int:
    """The peak so far of what a process had in memory, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _environment() -> dict[str, str]:
    """As users have it: byte code is kept, whatever this process was told."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


@dataclass
class Section:
    """A part of the page: what was measured, in words and tables, and the targets it speaks of."""

    title: str
    words: str
    tables: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """A row of the table of targets: ``met`` is None where it was not measured.

    ``sure`` says that the whole interval is on the same side of the aim.
    """

    what: str
    aim: str
    measured: str
    met: bool | None
    sure: bool = True

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "not measured"
        return ("met" if self.met else "**missed**") + ("" if self.sure else ", not surely")
