"""How long the whole process takes on a file, beside other tools that got the same file right."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from bench_measure import Ran, Ratio, Section, Target, geometric, of, session
from bench_models import WRONG, apart, feeds, rewritten, wanted

OURS = ("onnxfuse", "onnxfuse, verified")
PEERS = ("onnxsim", "onnxslim")
AIMS = {"onnxfuse": 0.5, "onnxfuse, verified": 1.0}
MOST_NODES = 5_000
LIMIT = 60.0
"""Seconds that a tool may take for one of the ordinary networks."""
FEWEST, LONGEST = 3, 60.0
"""Rounds at least; no other begins after so many seconds."""
LARGE_LIMIT = 45.0
LARGE_AIM = 3.0


@dataclass
class File:
    """A file, its nodes, and what each tool took for it; wrong results are failures."""

    name: str
    path: Path
    nodes: int
    ran: dict[str, list[Ran]] = field(default_factory=dict)

    def failure(self, tool: str) -> str:
        return next((one.failed for one in self.ran.get(tool, []) if one.failed), "")

    def seconds(self, tool: str) -> list[float]:
        return [one.wall for one in self.ran[tool]]

    def best(self) -> str | None:
        """The fastest of the peers that got the file right."""
        right = [tool for tool in PEERS if tool in self.ran and not self.failure(tool)]
        return min(right, key=lambda tool: _middle(self.seconds(tool)), default=None)


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def ordinary(folders: list[Path], only: list[str]) -> list[File]:
    """The exports of whole networks and stacks that are no larger than ordinary ones."""
    names = ("repvgg_a0.ts", "repvgg_a0.preserve", "mobileone.ts", "resnet18.ts", "dbb_k3_s1.ts",
             "dbb_stack5.ts", "resnet50.preserve")  # fmt: skip
    found = []
    for folder in folders:
        for name in names:
            path = folder / f"{name}.onnx"
            if path.exists() and wanted(name.split(".")[0], only):
                nodes = len(onnx.load(path).graph.node)
                if nodes <= MOST_NODES:
                    found.append(File(f"{name}, {folder.name}", path, nodes))
    return found


def measure(one: File, work: Path, rounds: int, limit: float) -> None:
    """Run every tool on a file in turn; one that fails or is wrong is not run again."""
    begin = time.monotonic()
    for turn in range(rounds):
        if turn >= FEWEST and time.monotonic() - begin > LONGEST:
            break
        tools = (*OURS, *PEERS)
        for index in range(len(tools)):
            tool = tools[(index + turn) % len(tools)]
            if one.failure(tool):
                continue
            target = work / f"process.{tool.replace(', ', '-')}.onnx"
            done = rewritten(tool, one.path, target, limit)
            if not turn and not done.failed:
                done.failed = _wrong(one.path, target)
            one.ran.setdefault(tool, []).append(done)
    said = {tool: f"{_middle(one.seconds(tool)):.2f}" for tool in one.ran}
    print(f"{one.name}: {said}", file=sys.stderr, flush=True)


def _wrong(original: Path, target: Path) -> str:
    given = feeds(onnx.load(original))
    try:
        pair = [session(path, 1).run(None, given) for path in (target, original)]
    except Exception as error:  # what another tool wrote may not load
        return str(error).splitlines()[0][:100]
    off = max(apart(a, b) for a, b in zip(*pair, strict=True))
    return f"wrong by {off:.1e}" if off > WRONG else ""


def _cell(one: File, tool: str) -> str:
    if tool not in one.ran:
        return "–"
    failed = one.failure(tool)
    if failed:
        return failed
    processor = _middle([ran.processor for ran in one.ran[tool]])
    memory = max(ran.memory for ran in one.ran[tool]) / (1 << 20)
    return f"{_middle(one.seconds(tool)):.2f} s ({processor:.2f}), {memory:.0f} MiB"


def section(found: list[File]) -> Section:
    """Whole processes on ordinary networks."""
    rows, ratios = [], {tool: list[Ratio]() for tool in OURS}
    for one in found:
        best = one.best()
        shown = []
        for tool in OURS:
            if best is None or one.failure(tool):
                shown.append("–")
                continue
            ratio = of(one.name, one.seconds(tool), one.seconds(best), best)
            ratios[tool].append(ratio)
            shown.append(f"{ratio.median:.2f}")
        cells = (_cell(one, tool) for tool in (*OURS, *PEERS))
        rows.append((one.name, f"{one.nodes:,}", *cells, *shown))
    titles = ("file", "nodes", "--no-verify", "verified", *PEERS, "ratio", "verified ratio")
    result = Section(
        "Whole processes",
        "From the start of the program to its end, tools in turn, by the clock; processor seconds "
        "in brackets, and the peak of memory, mapped files included. The ratio is to the fastest "
        f"of onnxsim and onnxslim whose output is right (relative RMS below {WRONG:g}), though "
        "neither merges a branch.",
        [(titles, rows)],
    )
    for tool, aim in AIMS.items():
        middle, low, high = geometric(ratios[tool])
        worst = max(ratios[tool], key=lambda one: one.median)
        text = f"{middle:.2f} [{low:.2f}, {high:.2f}], largest {worst.median:.2f} ({worst.name})"
        what = "`onnxfuse --no-verify IN OUT`" if tool == "onnxfuse" else "`onnxfuse IN OUT`"
        result.targets.append(
            Target(f"whole process {what} ÷ fastest peer that got the file right, up to "
                   f"{MOST_NODES:,} nodes", f"≤ {aim}", text, worst.median <= aim)
        )  # fmt: skip
    return result


def large(path: Path, work: Path, rounds: int) -> Section:
    """A ResNet-18 of Diverse Branch Blocks from TorchScript."""
    one = File("dbb_resnet18.ts", path, len(onnx.load(path).graph.node))
    for turn in range(rounds):
        for tool in OURS:
            target = work / f"large.{tool.replace(', ', '-')}.onnx"
            one.ran.setdefault(tool, []).append(rewritten(tool, path, target, 300))
            if not turn and not one.failure(tool):
                one.ran[tool][0].failed = _wrong(path, target)
    for tool in PEERS:
        target = work / f"large.{tool}.onnx"
        done = rewritten(tool, path, target, LARGE_LIMIT)
        done.failed = done.failed or _wrong(path, target)
        one.ran[tool] = [done]
    row = (one.name, f"{one.nodes:,}", *(_cell(one, tool) for tool in (*OURS, *PEERS)))
    titles = ("file", "nodes", "--no-verify", "verified", *PEERS)
    result = Section(
        "A large graph",
        "A TorchScript DBB-ResNet-18, a quarter of its width (`tools/systems_wide.py`): "
        f"whole processes, the median of {rounds}, processor seconds in brackets; the other tools "
        f"once, for {LARGE_LIMIT:g} s at most.",
        [(titles, [row])],
    )
    for tool in OURS:
        took = _middle(one.seconds(tool))
        failed = one.failure(tool)
        what = f"DBB-ResNet-18, {one.nodes:,} nodes, whole process"
        what += ", verified" if tool != "onnxfuse" else ", --no-verify"
        met = not failed and took <= LARGE_AIM
        result.targets.append(Target(what, f"≤ {LARGE_AIM:g} s", failed or f"{took:.2f} s", met))
    return result
