"""How fast the output runs: beside the hand-merged deploy form, and beside other tools' outputs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from bench_measure import Clock, Ratio, Samples, Section, Target, least_in_turn, mean, of, session
from bench_models import PEERS, WRONG, apart, difference, feeds, operators, ran, rewritten, wanted

import onnxfuse

THREADS = (1, 2)
DEPLOY_AIM, PEERS_AIM = 1.02, 0.60
SESSIONS = 3
"""Of each file: each lays out its weights in memory anew."""
FEWEST = 5
"""Rounds at least: the range of five samples holds the median in 15 of 16 cases."""
ALIKE = ", runs the same"
LIMIT = 120.0
"""Seconds that a tool may take for a file."""


@dataclass
class System:
    """One system: its files by who wrote them, and ratios by runtime and threads.

    ``runs`` says by threads which operators onnxruntime runs of our output more (+) or less (−)
    than of the best of the others.
    """

    name: str
    files: dict[str, Path]
    inputs: str = ""
    differs: str = ""
    macs: tuple[int, int, int] = (0, 0, 0)
    nodes: tuple[int, int, int] = (0, 0, 0)
    failed: dict[str, str] = field(default_factory=dict)
    deploy: dict[str, Ratio] = field(default_factory=dict)
    peers: dict[int, Ratio] = field(default_factory=dict)
    runs: dict[int, str] = field(default_factory=dict)


def systems(folder: Path, work: Path, only: list[str]) -> list[System]:
    """Each system of the exports that has a deploy form, as every tool writes it.

    What other tools wrote is kept beside the exports: it is the same each time.
    """
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    found = []
    for name, entry in sorted(manifest.items()):
        system, kind = name.split(".")[:2]
        if kind != "ts" or entry["deploy"] not in manifest or not wanted(system, only):
            continue
        files = {"original": folder / name, "deploy": folder / entry["deploy"]}
        one = System(system, files, "×".join(map(str, entry["input_shapes"]["input"])))
        for tool in PEERS:
            target = folder / f"{system}.{tool}-{version(tool)}.onnx"
            said = (
                "" if target.exists() else rewritten(tool, files["original"], target, LIMIT).failed
            )
            if said:
                one.failed[tool] = said
            else:
                files[tool] = target
        found.append(one)
        print(f"{system}: {', '.join(files)}", file=sys.stderr, flush=True)
    pairs = [(one.files["original"], work / f"{one.name}.onnx") for one in found]
    for one, (_, target), result in zip(found, pairs, onnxfuse.fuse_files(pairs), strict=True):
        if isinstance(result, Exception):
            raise result
        one.files["onnxfuse"] = target
        _describe(one)
    return found


def _describe(one: System) -> None:
    """What the output has more or less than the deploy form, and which outputs are not the same."""
    loaded = {key: onnx.load(one.files[key]) for key in ("original", "onnxfuse", "deploy")}
    one.differs = difference(operators(loaded["onnxfuse"]), operators(loaded["deploy"]))
    counts = [onnxfuse.plan(model).before for model in loaded.values()]
    one.macs = tuple(count.macs for count in counts)  # type: ignore[assignment]
    one.nodes = tuple(count.nodes for count in counts)  # type: ignore[assignment]
    given = feeds(loaded["original"])
    truth = session(one.files["original"], 1).run(None, given)
    for tool in list(one.files):
        outputs = session(one.files[tool], 1).run(None, given)
        off = max(apart(a, b) for a, b in zip(outputs, truth, strict=True))
        if off > WRONG:
            one.failed[tool] = f"its output is off by {off:.1e}"
            del one.files[tool]


def measure(one: System, rounds: int) -> None:
    """All files of a system in turn, in both runtimes, at each number of threads."""
    given = feeds(onnx.load(one.files["original"]))
    tools = [tool for tool in one.files if tool != "original"]
    for threads in THREADS:
        # One thread is timed by its processor time, which other work on the machine disturbs less.
        clock = time.thread_time if threads == 1 else time.perf_counter
        samples = _sampled(
            tools, lambda tool, n=threads: _call(session(one.files[tool], n), given), rounds, clock
        )
        text = f"{_ms(samples['onnxfuse'])} / {_ms(samples['deploy'])} ms"
        one.deploy[f"onnxruntime, {threads}"] = of(
            one.name, samples["onnxfuse"], samples["deploy"], text
        )
        others = {tool: samples[tool] for tool in PEERS if tool in samples}
        if others:
            best = min(others, key=lambda tool: sorted(others[tool])[len(others[tool]) // 2])
            one.peers[threads] = of(one.name, samples["onnxfuse"], samples[best], best)
            one.runs[threads] = difference(
                *(ran(one.files[tool], threads) for tool in ("onnxfuse", best))
            )
        _measure_openvino(one, given, threads, rounds)


def _measure_openvino(one: System, given: dict[str, Any], threads: int, rounds: int) -> None:
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}

    def made(tool: str) -> Callable[[], Any]:
        compiled = core.compile_model(str(one.files[tool]), "CPU", settings)
        return _inferring(compiled.create_infer_request(), given)

    # Its threads are not the caller's: the process's time at one thread, the clock at more.
    clock = time.process_time if threads == 1 else time.perf_counter
    samples = _sampled(["onnxfuse", "deploy"], made, rounds, clock)
    text = f"{_ms(samples['onnxfuse'])} / {_ms(samples['deploy'])} ms"
    one.deploy[f"OpenVINO, {threads}"] = of(one.name, samples["onnxfuse"], samples["deploy"], text)


def _sampled(
    tools: list[str], made: Callable[[str], Callable[[], Any]], rounds: int, clock: Clock
) -> Samples:
    """Seconds of each tool's file, from sessions made in turn; the rounds fit into about 8 s."""
    copies: dict[str, list[Callable[[], Any]]] = {tool: [] for tool in tools}
    for _ in range(SESSIONS):
        for tool in tools:
            copies[tool].append(made(tool))
    begin = clock()
    for held in copies.values():
        for call in held:
            call()
    fit = int(8.0 / max(clock() - begin, 1e-6))
    return least_in_turn(copies, max(min(rounds, fit), FEWEST), clock)


def _call(one: Any, given: dict[str, Any]) -> Callable[[], Any]:
    return lambda: one.run(None, given)


def _inferring(request: Any, given: dict[str, Any]) -> Callable[[], Any]:
    return lambda: request.infer(given)


def _ms(values: list[float]) -> str:
    return f"{1e3 * sorted(values)[len(values) // 2]:.3g}"


def _shown(one: Ratio | None) -> str:
    if one is None:
        return "–"
    low, high = one.interval()
    return f"{one.median:.3f} [{low:.2f}, {high:.2f}]"


def deploy_section(found: list[System]) -> Section:
    """Our output beside the hand-merged form of the same weights."""
    columns = [f"{runtime}, {n}" for n in THREADS for runtime in ("onnxruntime", "OpenVINO")]
    rows = [
        (one.name, one.inputs, "→".join(f"{n:,}" for n in one.nodes[:2]), f"{one.nodes[2]:,}",
         "same" if not one.differs else "differ", *(_shown(one.deploy.get(c)) for c in columns))
        for one in found
    ]  # fmt: skip
    section = Section(
        "Beside the hand-merged deploy form",
        "Each system of `fixtures/pytorch` that has a hand-merged form, exported again at the "
        "widths of real networks (`tools/systems_wide.py`), merged by onnxfuse, and run beside the "
        "hand-merged export of the same weights: time of ours ÷ time of that, with the "
        "interval of the median. The last columns name the runtime and its threads. *Operators* "
        "compares the multisets of operator, kernel shape, stride, dilation, pads and groups; "
        "where they are the same, the ratio is noise.",
        [(("system", "input", "nodes", "deploy's", "operators", *columns), rows)],
    )
    for column in columns:
        ratios = [one.deploy[column] for one in found if column in one.deploy]
        what = f"latency of our output ÷ deploy export, {column} thread{'s' * ('2' in column)}"
        section.targets.append(mean(what, DEPLOY_AIM, ratios))
    same = sum(not one.differs for one in found)
    section.targets.append(
        Target("same operators in the same shapes as the deploy export", "all, or explained below",
               f"{same} of {len(found)}", same == len(found) or all(map(_explained, found)))
    )  # fmt: skip
    for one in found:
        if one.differs:
            section.notes.append(
                f"{one.name}: ours against the deploy form: {one.differs}. MACs {one.macs[1]:,}, "
                f"deploy's {one.macs[2]:,}; {_verdict(one)}."
            )
    return section


def _explained(one: System) -> bool:
    return not one.differs or one.macs[1] <= one.macs[2]


def _verdict(one: System) -> str:
    if one.macs[1] < one.macs[2]:
        return "ours merges what the blocks' authors leave apart"
    if one.macs[1] == one.macs[2]:
        return "as many, written otherwise"
    return "ours is dearer"


def peers_section(found: list[System]) -> Section:
    """Our output beside what onnxsim, onnxslim and onnxruntime write."""
    rows = [
        (one.name, "→".join(f"{n / 1e6:.1f}M" for n in one.macs[:2]),
         *(_beside(one, n) for n in THREADS))
        for one in found
    ]  # fmt: skip
    section = Section(
        "Beside other optimizers' outputs",
        "The same exports as onnxsim, onnxslim and onnxruntime (extended optimisations, saved) "
        "write them, all run in onnxruntime with all its optimisations on: time of ours ÷ time of "
        "the fastest of the three, which is named; to take the fastest favours it. onnxruntime "
        "optimises each file as it loads it: where onnxruntime runs the same operators of both "
        "files (*runs the same*), their ratio is noise.",
        [(("system", "MACs", *(f"{n} thread{'s' * (n > 1)}" for n in THREADS)), rows)],
    )
    for threads in THREADS:
        beside = [one for one in found if threads in one.peers]
        name = f"{threads} thread{'s' * (threads > 1)}"
        what = f"latency of our output ÷ best of onnxsim, onnxslim, onnxruntime, {name}"
        section.targets.append(mean(what, PEERS_AIM, [one.peers[threads] for one in beside]))
        others = [one for one in beside if one.runs[threads]]
        slower = [one for one in others if one.peers[threads].interval()[0] > 1.0]
        text = f"{len(slower)} of {len(others)}, {len(beside) - len(others)} run the same"
        if others:
            worst = max((one.peers[threads] for one in others), key=lambda one: one.median)
            text += f"; largest {worst.median:.3f} ({worst.name})"
        section.targets.append(
            Target(f"the same, none above 1 ({name})",
                   "no interval wholly above 1, where onnxruntime runs other operators",
                   text, not slower)
        )  # fmt: skip
        section.notes += [
            f"{one.name}, {name}: what onnxruntime runs of ours against that of "
            f"{one.peers[threads].text}: {one.runs[threads]}."
            for one in slower
        ]
    for one in found:
        section.notes += [f"{one.name}: {tool}: {why}." for tool, why in one.failed.items()]
    return section


def _beside(one: System, threads: int) -> str:
    if threads not in one.peers:
        return "–"
    found = one.peers[threads]
    return f"{_shown(found)} ({found.text}{'' if one.runs[threads] else ALIKE})"
