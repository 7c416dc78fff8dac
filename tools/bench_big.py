"""A model of several GiB with external data: time against copying its files, and memory.

    python tools/bench_big.py                  3 GiB, two rounds
    python tools/bench_big.py --gib 1 --runs 1 --layers conv

Weights are drawn at random and lie in one data file; each layer is a linear map, a scale and a
shift, which fuse, and a Relu. The output goes to a directory of its own. What the kernel does for
the page cache differs from minute to minute, so `cp` of the same files runs before each command
that is timed, and the ratio is of such neighbours. Memory is the peak of what is anonymous
(RssAnon: mapped files do not count), sampled while the process runs. `tools/bench.py` measures the
same for its page.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from bench_measure import Ran, Ratio, Section, Target, of
from onnx import TensorProto, helper

CHANNELS = {"linear": 8192, "conv": 2048}
BLOCK = 1 << 24
GIB, MIB = 1 << 30, 1 << 20
SIZES = {"linear": 3 * GIB, "conv": GIB}
"""Of the weights of the models on the page."""
ONE, EVERY = "one region", "every region"
AIMS = {ONE: (1.5, 250), EVERY: (3.0, 600)}
"""What is fused: times as long as copying the files, and MiB of anonymous memory, at most."""
REST = 3.0
"""Seconds before each run. What was freed just now is often taken again in less time, as a virtual
machine gives memory back meanwhile: `cp`, which writes at once, would have it, onnxfuse not."""
VERIFIED = {"--no-verify": ("--no-verify",), "verified": ()}
TITLES = ("fused", "whole model", "`cp`", "onnxfuse", "ratio", "anonymous memory")


@dataclass
class Row:
    """One way to call onnxfuse, what each run of it took, and the seconds of the `cp` before it."""

    fused: str
    verified: str
    command: list[str] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)
    ran: list[Ran] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.fused}, {self.verified}"

    @property
    def failed(self) -> str:
        return next((one.failed for one in self.ran if one.failed), "")

    @property
    def memory(self) -> float:
        """The peak of all runs in MiB; 0 where nothing could be sampled."""
        return max(one.memory for one in self.ran) / MIB

    def ratio(self) -> Ratio:
        """Seconds of each run over those of the copy just before it."""
        return of(self.name, [one.wall for one in self.ran], self.copies)

    def cells(self) -> tuple[str, ...]:
        """The row in words."""
        if self.failed:
            return (self.fused, self.verified, "–", self.failed, "–", "–")
        wall, busy = (
            statistics.median(getattr(one, clock) for one in self.ran)
            for clock in ("wall", "processor")
        )
        copying = f"{statistics.median(self.copies):.2f} s"
        memory = f"{self.memory:.0f} MiB"
        times = f"{wall:.2f} s ({busy:.2f})"
        return (self.fused, self.verified, copying, times, _ranged(self.ratio()), memory)


def _ranged(one: Ratio) -> str:
    return f"{one.median:.2f}× [{min(one.values):.2f}, {max(one.values):.2f}]"


def layer(
    kind: str, number: int, channels: int
) -> tuple[list[onnx.NodeProto], dict[str, tuple[int, ...]]]:
    """A Gemm or a Conv, what folds into it, and a Relu; and the shapes of the weights."""
    name = f"layer{number}"
    read = f"x{number}"
    spatial = (1, 1) if kind == "conv" else ()
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}/weight": (channels, channels, *((3, 3) if kind == "conv" else ())),
        f"{name}/scale": (1, channels, *spatial),
        f"{name}/shift": (1, channels, *spatial),
    }
    attributes = {"pads": [1, 1, 1, 1]} if kind == "conv" else {"transB": 1}
    operator = "Conv" if kind == "conv" else "Gemm"
    weight, scale, shift = shapes
    nodes = [
        helper.make_node(operator, [read, weight], [f"{name}/a"], f"{name}/map", **attributes),
        helper.make_node("Mul", [f"{name}/a", scale], [f"{name}/b"], f"{name}/Mul"),
        helper.make_node("Add", [f"{name}/b", shift], [f"{name}/c"], f"{name}/Add"),
        helper.make_node("Relu", [f"{name}/c"], [f"x{number + 1}"], f"{name}/Relu"),
    ]
    return nodes, shapes


def make(place: Path, kind: str, size: int, channels: int = 0) -> int:
    """Write a model of about ``size`` bytes; gives the number of layers."""
    channels = channels or CHANNELS[kind]
    generator = np.random.default_rng(1)
    nodes: list[onnx.NodeProto] = []
    tensors: list[TensorProto] = []
    total = number = 0
    with (place.parent / "weights.data").open("wb") as stream:
        while total < size:
            more, shapes = layer(kind, number, channels)
            nodes += more
            for name, shape in shapes.items():
                offset = -(-stream.tell() // 4096) * 4096
                stream.seek(offset)
                count = int(np.prod(shape))
                for first in range(0, count, BLOCK):
                    part = generator.standard_normal(min(BLOCK, count - first), np.float32)
                    part *= 0.02
                    stream.write(part.tobytes())
                tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
                tensor.data_location = TensorProto.EXTERNAL
                where = {"location": "weights.data", "offset": offset, "length": 4 * count}
                for key, value in where.items():
                    tensor.external_data.add(key=key, value=str(value))
                tensors.append(tensor)
                total += 4 * count
            number += 1
    shape = [1, channels, *((8, 8) if kind == "conv" else ())]
    first = helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)
    last = helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "big", [first], [last], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    place.write_bytes(model.SerializeToString())
    return number


def timed(command: list[str]) -> Ran:
    """Run a program to its end, and sample its anonymous memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    failed = f"exit {process.returncode}: {lines[-1][:120] if lines else ''}"
    return Ran(seconds, busy, failed if process.returncode else "", peak)


def anonymous(pid: int) -> int:
    """The anonymous memory of a process and of those it forked, in bytes; 0 once it is gone.

    What these still share counts for each.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        forked = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith("RssAnon:")]
    own = int(lines[0].split()[1]) * 1024 if lines else 0
    return own + sum(anonymous(int(child)) for child in forked)


def rows(model: Path, out: Path, only: str = "") -> list[Row]:
    """The calls that are timed; those alone whose names hold ``only``."""
    fuse = [sys.executable, "-m", "onnxfuse", str(model), str(out / "out.onnx"), "-q", "--isolated"]
    chosen = {ONE: ("--only", "layer0/*"), EVERY: ()}
    found = [
        Row(fused, verified, [*fuse, *which, *how])
        for fused, which in chosen.items()
        for verified, how in VERIFIED.items()
    ]
    return [row for row in found if only in row.name]


def measure(found: list[Row], model: Path, away: Path, rounds: int) -> None:
    """Run each call in turn, a copy of the model's files to ``away`` just before it.

    What a command wrote, to ``away`` or beside the model, is gone when the next one starts.
    """
    given = sorted(model.parent.iterdir())
    copying = ["cp", *map(str, given), str(away)]

    def run(command: list[str]) -> Ran:
        away.mkdir()
        time.sleep(REST)
        done = timed(command)
        shutil.rmtree(away)
        for path in set(model.parent.iterdir()) - set(given):
            path.unlink()
        return done

    def copied() -> float:
        done = run(copying)
        if done.failed:
            raise RuntimeError(f"cp: {done.failed}")
        return done.wall

    copied()  # from now on the files are in memory, as far as they fit
    for turn in range(rounds):
        for index in range(len(found)):
            row = found[(index + turn) % len(found)]
            if not row.failed:
                row.copies.append(copied())
                row.ran.append(run(row.command))


def lacking(place: Path, size: int) -> str:
    """Why a model of ``size`` bytes finds no room there; empty where it does.

    The model, and a copy or an output, which may hold the old weights beside new ones.
    """
    need, free = 3 * size + GIB, shutil.disk_usage(place).free
    if free >= need:
        return ""
    return f"{need / GIB:.0f} GiB of free disk are needed, {place} has {free / GIB:.1f}"


def section(work: Path, quick: bool) -> Section:
    """Both models in turn, and the targets for the linear one."""
    rounds = {"linear": 2 if quick else 4, "conv": 1 if quick else 2}
    result = Section(
        "A model with external data",
        "Models made for this, their weights in one data file (`tools/bench_big.py`): "
        f"{SIZES['linear'] / GIB:g} GiB of linear layers of {CHANNELS['linear']:,} channels, "
        f"{rounds['linear']} rounds, then {SIZES['conv'] / GIB:g} GiB of 3×3 convolutions of "
        f"{CHANNELS['conv']:,} channels, {rounds['conv']} round(s), which has no target. Whole "
        "processes by the clock, processor seconds in brackets. `cp` of the model's files ran "
        "just before each of them: the ratio is the median of those of such neighbours, and beside "
        f"it stand the least and the largest. Before each run the machine rests for {REST:g} s, as "
        "memory that was freed just now is cheaper. Memory is the peak of RssAnon over the rounds, "
        "forked processes included.",
    )
    held: dict[str, list[Row]] = {}
    for kind, size in SIZES.items():
        why = lacking(work, size)
        if why:
            result.notes.append(f"{kind} layers were not measured: {why}.")
            continue
        home = work / kind
        home.mkdir()
        model, away = home / "big.onnx", work / "out"
        make(model, kind, size)
        held[kind] = rows(model, away)
        measure(held[kind], model, away, rounds[kind])
        shutil.rmtree(home)
        result.tables.append((TITLES, [row.cells() for row in held[kind]]))
        print(f"{kind} layers: measured", file=sys.stderr, flush=True)
    result.targets += targets(held.get("linear", []))
    return result


def targets(found: list[Row]) -> list[Target]:
    """Time and memory of each way to fuse; not measured where there is no row of it."""
    result = []
    for fused, (times, most) in AIMS.items():
        what = f"3 GiB model with external data, {fused} fused"
        held = [row for row in found if row.fused == fused]
        for verified in VERIFIED:
            row = next((row for row in held if row.verified == verified), None)
            result.append(_time(f"{what}, {verified}: time ÷ copying its files", times, row))
        memory = max((row.memory for row in held), default=0)
        failed = any(row.failed for row in held)
        met = memory <= most and not failed if memory else None
        text = f"{memory:.0f} MiB" if memory else ""
        result.append(Target(f"{what}: anonymous memory", f"≤ {most} MiB", text, met))
    return result


def _time(what: str, aim: float, row: Row | None) -> Target:
    if row is None:
        return Target(what, f"≤ {aim:g}×", "", None)
    if row.failed:
        return Target(what, f"≤ {aim:g}×", row.failed, False)
    ratio = row.ratio()
    sure = not min(ratio.values) <= aim < max(ratio.values)
    return Target(what, f"≤ {aim:g}×", _ranged(ratio), ratio.median <= aim, sure)


def main() -> None:
    """Make the model, run everything in turn, print medians."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--gib", type=float, default=3.0, help="size of the weights")
    arguments.add_argument("--runs", type=int, default=2, help="rounds: runs of each, in turn")
    arguments.add_argument("--layers", choices=CHANNELS, default="linear")
    arguments.add_argument("--same", action="store_true", help="write beside the model")
    arguments.add_argument("--only", default="", help="time only what holds these words")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnxfuse-bench-") as folder:
        home, away = Path(folder) / "in", Path(folder) / "out"
        size = int(chosen.gib * GIB)
        why = lacking(Path(folder), size)
        if why:
            arguments.error(why)
        home.mkdir()
        model = home / "big.onnx"
        layers = make(model, chosen.layers, size)
        print(f"{size / GIB:.2f} GiB in {layers} {chosen.layers} layers, {chosen.runs} rounds")
        found = rows(model, home if chosen.same else away, chosen.only)
        measure(found, model, away, chosen.runs)
        for row in found:
            _, _, copying, times, ratio, memory = row.cells()
            print(f"{row.name:26} {times:>18}  {ratio} × cp ({copying})  {memory:>9}")


if __name__ == "__main__":
    main()
