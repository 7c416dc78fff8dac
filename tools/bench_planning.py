"""How planning grows with the graph: models of 5,000 and 50,000 nodes, made here.

python tools/bench_planning.py SHAPE NODES      (plans one, prints its processor seconds)
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from bench_measure import Section, Target
from onnx import NodeProto, TensorProto, helper, numpy_helper

CHANNELS = 8
SMALL, LARGE = 5_000, 50_000
DEPTH = 1_000
LONGEST = 240
"""Seconds of the processor that a plan may take; what else the machine does is not its fault."""
LIMIT = 12.0
"""Times as long for ten times the nodes: linear, with room for caches that no longer hold it."""

Parts = tuple[list[NodeProto], list[TensorProto], str]


def weight(name: str, *shape: int, value: float | None = None) -> TensorProto:
    """A seeded kernel, or one of a single value."""
    drawn = np.random.default_rng(len(name)).standard_normal(shape) / 9
    array = drawn if value is None else np.full(shape, value)
    return numpy_helper.from_array(array.astype(np.float32), name)


def chain(nodes: int, *, reverse: bool = False) -> Parts:
    """Blocks of RepVGG's kind, one after the other: 3×3, 1×1 and BN of one tensor, summed; Relu."""
    made: list[NodeProto] = []
    stored = [weight(name, CHANNELS, value=1.0) for name in ("scale", "bias", "mean", "var")]
    x = "x"
    for n in range(nodes // 6):
        stored += [weight(f"w3_{n}", CHANNELS, CHANNELS, 3, 3)]
        stored += [weight(f"w1_{n}", CHANNELS, CHANNELS, 1, 1)]
        made += [
            helper.make_node("Conv", [x, f"w3_{n}"], [f"a{n}"], f"square{n}", pads=[1] * 4),
            helper.make_node("Conv", [x, f"w1_{n}"], [f"b{n}"], f"point{n}"),
            helper.make_node(
                "BatchNormalization", [x, "scale", "bias", "mean", "var"], [f"c{n}"], f"bn{n}"
            ),
            helper.make_node("Add", [f"a{n}", f"b{n}"], [f"d{n}"], f"add{n}"),
            helper.make_node("Add", [f"d{n}", f"c{n}"], [f"e{n}"], f"sum{n}"),
            helper.make_node("Relu", [f"e{n}"], [f"r{n}"], f"relu{n}"),
        ]
        x = f"r{n}"
    return made[:: -1 if reverse else 1], stored, x


def readers(nodes: int) -> Parts:
    """One tensor that a third of the nodes reads: 1×1, scale and Relu, joined in the end."""
    made: list[NodeProto] = []
    stored = [weight("v", 1, CHANNELS, 1, 1, value=0.5)]
    count = nodes // 3
    for n in range(count):
        stored.append(weight(f"w{n}", CHANNELS, CHANNELS, 1, 1))
        made += [
            helper.make_node("Conv", ["x", f"w{n}"], [f"a{n}"], f"point{n}"),
            helper.make_node("Mul", [f"a{n}", "v"], [f"b{n}"], f"scale{n}"),
            helper.make_node("Relu", [f"b{n}"], [f"r{n}"], f"relu{n}"),
        ]
    made.append(helper.make_node("Concat", [f"r{n}" for n in range(count)], ["y"], "all", axis=1))
    return made, stored, "y"


def deep(nodes: int) -> Parts:
    """Regions of 1,000 scales and shifts in a row, a 1×1 at the head of each; Relu between them."""
    made: list[NodeProto] = []
    stored = [weight("v", 1, CHANNELS, 1, 1, value=1.0001)]
    x = "x"
    for n in range(nodes):
        place = n % DEPTH
        if place == 0:
            stored.append(weight(f"w{n}", CHANNELS, CHANNELS, 1, 1))
            node = helper.make_node("Conv", [x, f"w{n}"], [f"t{n}"], f"point{n}")
        elif place == DEPTH - 1:
            node = helper.make_node("Relu", [x], [f"t{n}"], f"relu{n}")
        else:
            node = helper.make_node("Mul" if n % 2 else "Add", [x, "v"], [f"t{n}"], f"affine{n}")
        made.append(node)
        x = f"t{n}"
    return made, stored, x


SHAPES: dict[str, tuple[str, Callable[[int], Parts]]] = {
    "chain": ("chains with branches", chain),
    "readers": (f"one tensor with {LARGE // 3:,} readers", readers),
    "deep": (f"regions {DEPTH:,} nodes deep", deep),
    "unsorted": ("the chains, last node first", partial(chain, reverse=True)),
}


def model(shape: str, nodes: int) -> onnx.ModelProto:
    """A model of about so many nodes."""
    made, stored, out = SHAPES[shape][1](nodes)
    value = helper.make_tensor_value_info
    sizes = [1, CHANNELS, 8, 8]
    graph = helper.make_graph(
        made,
        "g",
        [value("x", TensorProto.FLOAT, sizes)],
        [value(out, TensorProto.FLOAT, [1, "C", 8, 8])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def planned(shape: str, nodes: int) -> dict[str, float] | None:
    """Seconds and regions of a plan, made in a process of its own; None where it takes too long."""
    command = [sys.executable, __file__, shape, str(nodes)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return None
    if done.returncode:
        raise RuntimeError(f"{shape} {nodes}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(rounds: int) -> Section:
    """Processor seconds of `onnxfuse.plan` at both sizes, the least of some runs in turn."""
    rows, targets = [], []
    for shape, (title, _) in SHAPES.items():
        small, large = [], []
        for _ in range(rounds):
            first, second = (planned(shape, size) for size in (SMALL, LARGE))
            small.append(first)
            large.append(second)
            if second is None:
                break
        what = f"planning, 5,000 → 50,000 nodes: {title}"
        if None in large or None in small:
            late = f"not done in {LONGEST} s"
            rows.append((title, "", late, "", ""))
            targets.append(Target(what, f"≤ {LIMIT:g}×", late, False))
            continue
        low, high = (min(one["seconds"] for one in held if one) for held in (small, large))
        regions = int(large[0]["regions"]) if large[0] else 0
        times = f"{high / low:.1f}×"
        rows.append((title, f"{low:.2f} s", f"{high:.2f} s", f"{regions:,}", times))
        targets.append(Target(what, f"≤ {LIMIT:g}×", times, high / low <= LIMIT))
    titles = ("graph", f"{SMALL:,} nodes", f"{LARGE:,} nodes", "regions", "ratio")
    words = (
        "`onnxfuse.plan` on models made for this, from a ModelProto in memory to the report, in "
        f"processor seconds: the least of {rounds} run(s) of each size, in turn."
    )
    return Section("Planning", words, [(titles, rows)], targets)


def main() -> None:
    """Plan one model; print what it took."""
    import onnxfuse

    resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST + 5))
    given = model(sys.argv[1], int(sys.argv[2]))
    begin = time.process_time()
    report = onnxfuse.plan(given)
    seconds = time.process_time() - begin
    print(json.dumps({"seconds": seconds, "regions": len(report.regions)}))


if __name__ == "__main__":
    main()
