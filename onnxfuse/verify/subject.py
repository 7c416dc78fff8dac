"""What the run of the whole model compares, and the two models it runs for that.

Tensors behind discontinuous operators are not compared; what enters those operators is. The
original gets noise at each region's inputs and output, behind a switch.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import onnx
from onnx import helper

from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.splice import fresh_names
from onnxfuse.model.tensors import FLOATS
from onnxfuse.verify.nested import Body, captured, jumps, shaken, steered
from onnxfuse.verify.noise import SWITCH, Disturbed, disturbed
from onnxfuse.verify.pairing import Tolerance
from onnxfuse.verify.session import UNITS

# Operators with jumps; those that give integers or booleans (ArgMax, Greater …) need no entry.
DISCONTINUOUS = {
    "TopK", "Round", "Floor", "Ceil", "Sign", "Unique", "Hardmax", "Mod", "DynamicQuantizeLinear",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """The two models, the original's index, what was fused where, and its measured error.

    ``bodies`` are the fused graphs below the main one; ``floats`` the rounded tensors of any graph.
    ``macs`` is the original's work. ``watched`` are the results of regions that memory allows to
    look at.
    """

    original: onnx.ModelProto
    fused: onnx.ModelProto
    graph: Graph
    types: Mapping[str, int]
    regions: Mapping[str, tuple[tuple[str, ...], float, float]]
    base: str | None
    approximate: bool = False
    bodies: Sequence[Body] = ()
    floats: Container[str] = ()
    macs: int = 0
    watched: Sequence[str] = ()


def targets(subject: Subject, tolerance: Tolerance) -> tuple[list[str], list[str], list[str]]:
    """Tensors to compare, the outputs that are not because they depend on a choice, and more.

    An output that a tolerance names is compared whatever it depends on. The third are results of
    regions: where they stand no softmax or sigmoid hides what is wrong with them. They are left
    out where a difference is expected or allowed by somebody.
    """
    graph = subject.graph
    produced = {out for node in subject.fused.graph.node for out in node.output}
    data = set(graph.inputs)  # what depends on values, not on shapes alone
    tainted: set[str] = set()
    entering: dict[str, None] = {}
    for node in graph.order:
        read = [name for name in (*node.inputs, *captured(node)) if name in data]
        if not read or node.op_type in ("Shape", "Size"):
            continue
        data.update(node.outputs)
        if any(name in tainted for name in read):
            tainted.update(node.outputs)
        elif _discontinuous(node, read, subject.types) or jumps(
            node, subject.original, subject.floats
        ):
            tainted.update(node.outputs)
            entering.update(dict.fromkeys(n for n in read if n in produced))
    named = {*tolerance.rtol, *tolerance.atol}
    floats = [n for n in graph.outputs if n not in tainted or n in named]
    hidden = [n for n in graph.outputs if n in tainted and n not in named]
    if hidden:
        floats += [
            n
            for n in entering
            if n not in floats and subject.types.get(n, 0) in FLOATS and n in produced
        ]
    inner = [
        name
        for name in subject.watched
        if name in produced and name not in tainted and name not in floats
    ]
    lenient = subject.approximate or tolerance.rtol or tolerance.atol
    return floats or list(graph.outputs), hidden, [] if lenient else inner


def _discontinuous(node: Node, read: Sequence[str], types: Mapping[str, int]) -> bool:
    """Whether a small change of what a node reads can change its result by a jump."""
    if not any(types.get(name, 0) in FLOATS for name in read):
        return False
    if any(out and types.get(out, 0) not in FLOATS for out in node.outputs[:1]):
        return True
    return node.op_type in DISCONTINUOUS


def _exposed(
    model: onnx.ModelProto, names: Sequence[str], types: Mapping[str, int]
) -> onnx.ModelProto:
    """The model with every one of some tensors among its outputs."""
    present = {value.name for value in model.graph.output}
    missing = [
        helper.make_tensor_value_info(name, types[name], None)
        for name in names
        if name not in present
    ]
    if not missing:
        return model
    copy = _copied(model)
    copy.graph.output.extend(missing)
    return copy


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def models(
    subject: Subject, names: Sequence[str]
) -> tuple[onnx.ModelProto, onnx.ModelProto, tuple[str, ...]]:
    """The original and the fused model, ``names`` among the outputs of both.

    Also the inputs that decide of each If that leads to a region in a branch.
    """
    original = _exposed(subject.original, names, subject.types)
    fused = _exposed(subject.fused, names, subject.types)
    steering: tuple[str, ...] = ()
    if subject.bodies:
        original = _copied(original)
        steering = steered(original, subject.bodies)
    if steering:
        fused = _copied(fused)
        steered(fused, subject.bodies, steering)
    return original, fused, steering


def noisy(subject: Subject, names: Sequence[str], draw: int) -> Disturbed:
    """The original of `models`, with rounding-sized noise on each region's ends.

    Those are its inputs and its output, which also varies by the region's error outright: where
    its terms cancel, it is smaller than what rounding them makes of it. The noise is another one
    for each ``draw``.
    """
    model = models(subject, names)[0]
    levels: dict[str, float] = {}
    shifts: dict[str, float] = {}
    for root, (sources, measured, scale) in subject.regions.items():
        measured = measured if np.isfinite(measured) else 0.0  # noqa: PLW2901 - of no weights
        shifts[root] = measured * scale
        level = max(measured, UNITS * FLOATS.get(subject.types[root], 0.0))
        for name in (root, *sources):
            if subject.types.get(name) in FLOATS:  # what moves integers moves them exactly
                levels[name] = max(level, levels.get(name, 0.0))
    if subject.bodies:
        model = _copied(model)
        shaken(model, subject.bodies, fresh_names(subject.graph)(SWITCH))
    seeds = repeat(float(draw))
    return disturbed(model, subject.graph, levels, subject.types, seeds, shifts)
