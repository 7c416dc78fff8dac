"""Time merges that pay and merges that do not, beside what the plan estimates of them.

    python tools/bench_cost.py [--rounds N]

Each case is one map written in two ways: apart, as it is trained, and merged. Both run in turn in
onnxruntime at one thread with its optimisations on, and the ratio of their times stands beside the
ratio that the estimate gives. Then the constants of the estimate are tried over a grid: those in
use should decide as many cases rightly as the best, and be about as near.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import log
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from bench_measure import Ratio, Section, Target, in_turn, of, session
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))

from onnxfuse.lift import View
from onnxfuse.model.constants import analyse
from onnxfuse.model.graph import Graph
from onnxfuse.planning import cost
from onnxfuse.planning.problem import Problem

CLEAR = 0.05
"""Ratios nearer to one than this are a tie: either way is right."""
GRID = {"BYTE_COST": (1, 2, 3, 5, 8), "DEPTHWISE": (1, 2, 3, 4, 5, 6), "SIMD": (1, 4, 8, 16, 32)}


class Net:
    """A model that grows node by node; weights are drawn from one seed."""

    def __init__(self, channels: int, size: int) -> None:
        self.rng = np.random.default_rng(0)
        self.shape = [1, channels, size, size]
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def put(self, op: str, *inputs: str, **attributes: object) -> str:
        """A node; its output."""
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def array(self, values: object) -> str:
        """A stored constant."""
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def conv(
        self, x: str, fan: int, out: int, *taps: int, groups: int = 1, dilation: int = 1
    ) -> str:
        """A Conv that keeps the size, with a bias."""
        shape = (out, fan // groups, *taps)
        weight = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        pads = [dilation * (k // 2) for k in taps]
        return self.put(
            "Conv", x, self.array(weight.astype(np.float32)),
            self.array(self.rng.standard_normal(out).astype(np.float32)),
            group=groups, pads=pads + pads, dilations=[dilation] * 2,
        )  # fmt: skip

    def model(self, y: str) -> onnx.ModelProto:
        """The model, with a Relu before and behind, as a block stands in a network."""
        nodes = [helper.make_node("Relu", ["input"], ["x"]), *self.nodes]
        nodes.append(helper.make_node("Relu", [y], ["output"]))
        given = helper.make_tensor_value_info("input", TensorProto.FLOAT, self.shape)
        gives = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "case", [given], [gives], self.stored)
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)


Way = Callable[[Net, int], str]


@dataclass(frozen=True)
class Case:
    """One map in two ways, at ``channels`` in and ``size`` high and wide."""

    name: str
    channels: int
    size: int
    apart: Way
    merged: Way


def strips(k: int) -> Way:
    """Depthwise 1×k and k×1, summed."""
    return lambda n, c: n.put(
        "Add", n.conv("x", c, c, 1, k, groups=c), n.conv("x", c, c, k, 1, groups=c)
    )


def depthwise(k: int) -> Way:
    """A depthwise k×k."""
    return lambda n, c: n.conv("x", c, c, k, k, groups=c)


def dense(k: int, out: int = 0, fan: int = 0) -> Way:
    """A dense k×k."""
    return lambda n, c: n.conv("x", fan or c, out or c, k, k)


def both(*ways: Way) -> Way:
    """Ways of one input, summed."""

    def joined(n: Net, c: int) -> str:
        total = ways[0](n, c)
        for way in ways[1:]:
            total = n.put("Add", total, way(n, c))
        return total

    return joined


def bare(n: Net, c: int) -> str:
    """The input itself."""
    return "x"


def pooled(n: Net, c: int) -> str:
    """A 1×1 and an average of 3×3 behind it."""
    inner = n.conv("x", c, c, 1, 1)
    return n.put("AveragePool", inner, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)


def separable(out: int = 0) -> Way:
    """A depthwise 3×3 and a 1×1 behind it."""
    return lambda n, c: n.conv(n.conv("x", c, c, 3, 3, groups=c), c, out or c, 1, 1)


def blueprint(n: Net, c: int) -> str:
    """A 1×1 and a depthwise 3×3 behind it."""
    return n.conv(n.conv("x", c, c, 1, 1), c, c, 3, 3, groups=c)


def through(width: float) -> Way:
    """A 1×1 to ``width`` times the channels, and one back."""

    def chain(n: Net, c: int) -> str:
        inner = int(width * c)
        return n.conv(n.conv("x", c, inner, 1, 1), inner, c, 1, 1)

    return chain


def dilated(n: Net, c: int) -> str:
    """A dense 3×3 of dilation 2."""
    return n.conv("x", c, c, 3, 3, dilation=2)


def dilated_depthwise(n: Net, c: int) -> str:
    """A depthwise 3×3 of dilation 2."""
    return n.conv("x", c, c, 3, 3, groups=c, dilation=2)


def rescaled(n: Net, c: int) -> str:
    """A 3×3, times a scalar, plus a scalar."""
    made = n.put("Mul", n.conv("x", c, c, 3, 3), n.array(np.array([1.5], np.float32)))
    return n.put("Add", made, n.array(np.array([0.5], np.float32)))


def split(groups: int) -> Way:
    """Convolutions of the parts of a Split, concatenated."""

    def taken(n: Net, c: int) -> str:
        parts = [f"part{i}" for i in range(groups)]
        n.nodes.append(helper.make_node("Split", ["x"], parts, axis=1))
        made = [n.conv(part, c // groups, c // groups, 3, 3) for part in parts]
        return n.put("Concat", *made, axis=1)

    return taken


def grouped(groups: int) -> Way:
    """The same as one grouped convolution."""
    return lambda n, c: n.conv("x", c, c, 3, 3, groups=groups)


def branch(n: Net, c: int) -> str:
    """A 3×3, and one behind a biased 1×1 that is padded by zeros."""
    made = n.conv(n.conv("x", c, c, 1, 1), c, c, 3, 3)
    return n.put("Add", n.conv("x", c, c, 3, 3), made)


def with_map(n: Net, c: int) -> str:
    """The same merged, with a constant map."""
    border = n.rng.standard_normal((1, *n.shape[1:])).astype(np.float32)
    return n.put("Add", n.conv("x", c, c, 3, 3), n.array(border))


def with_plane(n: Net, c: int) -> str:
    """The same merged, with a convolution over ones."""
    ones = n.array(np.ones((1, 1, *n.shape[2:]), np.float32))
    return n.put("Add", n.conv("x", c, c, 3, 3), n.conv(ones, 1, c, 3, 3))


CASES = (
    Case("RepVGG: 3×3 + 1×1", 64, 28, both(dense(3), dense(1)), dense(3)),
    Case("RepVGG, wide", 256, 14, both(dense(3), dense(1)), dense(3)),
    Case("RepVGG, large maps", 32, 112, both(dense(3), dense(1)), dense(3)),
    Case("ACNet: 3×3 + 1×3 + 3×1", 64, 28,
         both(dense(3), lambda n, c: n.conv("x", c, c, 1, 3), lambda n, c: n.conv("x", c, c, 3, 1)),
         dense(3)),
    Case("dense 1×3 + 3×1 as 3×3", 64, 28,
         both(lambda n, c: n.conv("x", c, c, 1, 3), lambda n, c: n.conv("x", c, c, 3, 1)),
         dense(3)),
    Case("depthwise 1×3 + 3×1 + x as 3×3", 64, 56, both(strips(3), bare), depthwise(3)),
    Case("the same, large maps", 64, 112, both(strips(3), bare), depthwise(3)),
    Case("depthwise 7×7 + 3×3", 64, 28, both(depthwise(7), depthwise(3)), depthwise(7)),
    Case("depthwise 31×5 + 5×31 as 31×31", 32, 32,
         both(lambda n, c: n.conv("x", c, c, 5, 31, groups=c),
              lambda n, c: n.conv("x", c, c, 31, 5, groups=c)), depthwise(31)),
    Case("1×1 → pool as 3×3", 64, 28, pooled, dense(3)),
    Case("3×3 + (1×1 → pool) as 3×3", 64, 28, both(dense(3), pooled), dense(3)),
    Case("dense 3×3 + dilated 3×3 as 5×5", 64, 28, both(dense(3), dilated), dense(5)),
    Case("depthwise 3×3 + dilated 3×3 as 5×5", 64, 56,
         both(depthwise(3), dilated_depthwise), depthwise(5)),
    Case("depthwise 3×3 → 1×1 to one channel", 64, 28, separable(1), dense(3, 1)),
    Case("depthwise 3×3 → 1×1", 64, 28, separable(), dense(3)),
    Case("BSConv: 1×1 → depthwise 3×3", 64, 28, blueprint, dense(3)),
    Case("1×1 over 4 C as 1×1", 64, 28, through(4), dense(1)),
    Case("1×1 over C/4 as 1×1", 64, 28, through(0.25), dense(1)),
    Case("1×1 over C/4 as 1×1, wide", 256, 14, through(0.25), dense(1)),
    Case("3×3 · s + b", 64, 28, rescaled, dense(3)),
    Case("3×3 · s + b, large maps", 16, 112, rescaled, dense(3)),
    Case("2 of Split as groups", 64, 28, split(2), grouped(2)),
    Case("4 of Split as groups", 64, 28, split(4), grouped(4)),
    Case("16 of Split as groups", 64, 28, split(16), grouped(16)),
    Case("padded bias, as a map", 64, 28, branch, with_map),
    Case("padded bias, as a plane", 64, 28, branch, with_plane),
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A case with its problems in both ways and the ratio merged ÷ apart of their times."""

    case: Case
    apart: Problem
    merged: Problem
    ratio: Ratio

    def estimate(self) -> float:
        """The ratio that the plan would go by."""
        return _time(self.merged) / _time(self.apart)

    def wrong(self) -> bool:
        """Whether the estimate would decide clearly against the measurement."""
        return abs(self.ratio.median - 1) > CLEAR and (self.estimate() < 1) != (
            self.ratio.median < 1
        )


def _time(problem: Problem) -> int:
    """The estimated time of all linear operators, counted anew."""
    return sum(problem.counted(step).time for step in problem.steps.values())


def measure(case: Case, rounds: int) -> Measured:
    """Both ways in turn, by the time of the processor."""
    models = []
    for way in (case.apart, case.merged):
        net = Net(case.channels, case.size)
        models.append(net.model(way(net, case.channels)))
    feeds = {"input": np.random.default_rng(1).standard_normal(net.shape).astype(np.float32)}
    sessions = [session(model, 1) for model in models]
    calls = {
        name: (lambda one=one: one.run(None, feeds))
        for name, one in zip(("apart", "merged"), sessions, strict=True)
    }
    samples = in_turn(calls, rounds, time.thread_time)
    problems = []
    for model in models:
        graph = Graph(model)
        problems.append(Problem(View(graph, *analyse(graph, None, {})), lambda label: True))
    return Measured(case, *problems, of(case.name, samples["merged"], samples["apart"]))


def settings() -> Iterator[dict[str, int]]:
    """Every choice of the constants."""
    for values in product(*GRID.values()):
        yield dict(zip(GRID, values, strict=True))


def judged(found: list[Measured], chosen: dict[str, int]) -> tuple[int, float]:
    """Cases decided wrongly, and the RMS of log(estimated ÷ measured ratio)."""
    with mock.patch.multiple(cost, **chosen):
        wrong = sum(one.wrong() for one in found)
        errors = [log(one.estimate() / one.ratio.median) ** 2 for one in found]
    return wrong, (sum(errors) / len(errors)) ** 0.5


def section(rounds: int) -> Section:
    """The cases, and how the constants in use compare with the best of the grid."""
    found = [measure(case, rounds) for case in CASES]
    rows = [
        (
            one.case.name,
            f"{one.case.channels}×{one.case.size}×{one.case.size}",
            f"{one.estimate():.2f}",
            f"{one.ratio.median:.2f} ({one.ratio.interval()[0]:.2f}–{one.ratio.interval()[1]:.2f})",
            "wrong" if one.wrong() else "",
        )
        for one in found
    ]
    used = {name: getattr(cost, name) for name in GRID}
    ranked = sorted((judged(found, chosen), tuple(chosen.items())) for chosen in settings())
    lines = [("in use", used, judged(found, used))]
    lines += [(f"{place}. of the grid", dict(chosen), score)
              for place, (score, chosen) in enumerate(ranked[:3], 1)]  # fmt: skip
    table = [
        (name, *(str(chosen[key]) for key in GRID), str(score[0]), f"{score[1]:.2f}")
        for name, chosen, score in lines
    ]
    words = (
        "One map written in two ways, merged ÷ apart: what the plan estimates, and what "
        f"onnxruntime takes at one thread. A ratio within {CLEAR:.0%} of one is a tie. Below, the "
        "constants of the estimate (`onnxfuse/planning/cost.py`) beside the best of a grid: how "
        "many cases they decide wrongly, and the RMS of the logarithm of estimated ÷ measured."
    )
    titles = ("case", "input", "estimated", "measured", "")
    wrong = sum(one.wrong() for one in found)
    target = Target(
        "the estimate decides as the measurement does",
        "all cases",
        f"{len(found) - wrong} of {len(found)}",
        not wrong,
    )
    return Section(
        "What the plan estimates",
        words,
        [(titles, rows), (("constants", *GRID, "wrong", "RMS"), table)],
        [target],
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=25)
    found = section(parser.parse_args().rounds)
    print(found.words)
    for titles, rows in found.tables:
        widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(len(titles))]
        for row in (titles, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
