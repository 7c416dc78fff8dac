"""Regions in words and counts, from the plan alone: what was there and what it becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from onnxfuse import ranges, sketch
from onnxfuse.algebra import padded
from onnxfuse.algebra.form import Term
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.lift import LIFT, Lifted, lift
from onnxfuse.lift.quantised import ON_INTEGERS, ROUNDING, is_one
from onnxfuse.model.graph import Node
from onnxfuse.model.tensors import FLOATS
from onnxfuse.model.totals import macs
from onnxfuse.planning.problem import MOVES, Problem, Step
from onnxfuse.planning.reasons import APART, REACH, RESHAPING, is_unlifted, unlifted
from onnxfuse.planning.region import Region, labels, old_counts
from onnxfuse.planning.written import (
    KERNELED,
    Affine,
    Cover,
    is_convolution,
    operator,
    operators,
)
from onnxfuse.realise import Replacement
from onnxfuse.records import Counts, Kept, RegionError, RegionReport, Report
from onnxfuse.refusal import Code, Refusal

if TYPE_CHECKING:
    from onnxfuse.layout import Relaid

QUIET = ("Identity", "Transpose", "Dropout")


def region(
    replacement: Replacement, problem: Problem, error: RegionError | None, *, read: bool
) -> RegionReport:
    """The report of one replaced region; kernels are only ``read`` for their ranges."""
    found = replacement.region
    assert found.cover is not None
    nodes = list({step.node.index: step.node for step in found.interior}.values())
    written = operators(found.cover, problem.facts)
    return RegionReport(
        root=found.root.tensor,
        node=found.root.node.label,
        nodes=labels(found.interior),
        was=sketch.kinds([n.op_type for n in nodes if n.op_type not in QUIET]) or "Identity",
        became=_became(found.cover, written),
        expression=found.cover.form.text,
        before=_old_counts(nodes, problem),
        after=Counts(
            nodes=len(written),
            conv=written.count("Conv"),
            batch_normalization=written.count("BatchNormalization"),
            parameters=new_parameters(replacement),
            macs=found.cover.cost.macs if _sized(found, problem) else 0,
        ),
        error=error,
        constant=found.cover.known.style if found.cover.known else "",
        approximate=found.cover.form.interior_only,
        estimate=_estimate(found, problem),
        drawn=sketch.standing(found.interior, problem),
        drawn_after=sketch.written(replacement),
        ranges=ranges.standing(nodes, problem.view) if read else (),
        ranges_after=ranges.written(replacement) if read else (),
    )


def kept(refusal: Refusal, problem: Problem) -> Kept:
    """A place that was left alone, with what it computes and how it is drawn."""
    node = problem.labelled.get(refusal.node)
    steps = [problem.steps[name] for name in refusal.tensors if name in problem.steps]
    root, text, drawn = "", refusal.expression, sketch.standing(steps, problem)
    if node is not None:
        root = next((out for out in node.outputs if out), "")
        step = problem.steps.get(root)
        if step is not None and not drawn:
            text, drawn = text or sketch.expression(step, problem), (sketch.alone(node, problem),)
        drawn = drawn or (sketch.alone(node, problem),)
    return Kept(refusal.code, refusal.text, refusal.node, text, refusal.tensors, root, drawn)


def others(problem: Problem, report: Report) -> list[Kept]:
    """What to say of the nodes that no region and no refusal of a report speaks of."""
    fused = {name for region in report.regions for name in region.nodes}
    refused = {kept.node: kept for kept in reversed(report.refusals)}
    return [
        kept(_other(node, problem, refused), problem)
        for node in problem.view.graph.order
        if node.label not in fused and node.label not in refused
    ]


def _other(node: Node, problem: Problem, refused: Mapping[str, Refusal]) -> Refusal:
    outputs = [out for out in node.outputs if out]
    if outputs and all(problem.view.constants.known(out) for out in outputs):
        text = "its result is constant; it is folded where a region needs it"
        return Refusal(Code.ALONE, text, node.label)
    if any(out in problem.steps for out in outputs):
        return _beside(node, problem, refused)
    if is_one(node, *ROUNDING, *ON_INTEGERS):
        text = f"{node.op_type} works on integers, so regions end here"
        return Refusal(Code.QUANTISED, text, node.label)
    if is_unlifted(node, problem):
        return Refusal(Code.UNSUPPORTED, unlifted(node), node.label)
    if not isinstance(lift(node, problem.view), Lifted):
        return _barrier(node, outputs, problem)
    if node.op_type in RESHAPING:
        return Refusal(Code.CHANNELS, APART, node.label)
    return Refusal(Code.ALONE, "its result only tells others a size or a place", node.label)


def _barrier(node: Node, outputs: Sequence[str], problem: Problem) -> Refusal:
    """What to say of a node that is no law: that it is not linear, if that is known."""
    if node.opaque:
        text = "an attribute of it is set by whoever calls the function"
        return Refusal(Code.DYNAMIC_WEIGHTS, text, node.label)
    if not node.standard:
        text = f"{node.op_type} is no operator of the standard, so regions end here"
        return Refusal(Code.NONLINEAR, text, node.label)
    if node.op_type in LIFT and outputs and not problem.view.shapes.type_of(outputs[0]):
        text = f"the type of {outputs[0]!r} cannot be inferred, or differs between calls"
        return Refusal(Code.UNKNOWN_SHAPE, text, node.label)
    inputs = " of these inputs" if node.op_type in LIFT else ""
    text = f"{node.op_type}{inputs} is not linear, so regions end here"
    return Refusal(Code.NONLINEAR, text, node.label)


def _beside(node: Node, problem: Problem, refused: Mapping[str, Refusal]) -> Refusal:
    """What to say of a linear node: what stopped its linear neighbours, if it has any."""
    own = next(problem.steps[out] for out in node.outputs if out in problem.steps)
    near = _near(own, problem)
    for step in near:
        label = step.node.label
        if label in refused:
            text = f"see {label!r} next to it: {refused[label].text}"
            return Refusal(refused[label].code, text, node.label)
    if isinstance(own.law, MOVES):
        text = "it only moves what it reads, and taking it in would gain nothing"
        return Refusal(Code.ALONE, text, node.label)
    if near:
        text = f"merging it with {near[0].node.label!r} gains nothing: as many operators remain"
        return Refusal(Code.COST, text, node.label)
    graph, steps = problem.view.graph, problem.steps
    readers = [out for reader in graph.consumers.get(own.tensor, []) for out in reader.outputs]
    if any(name in steps for name in (*own.lifted.operands, *readers)):
        text = "it meets only what moves or joins data, and taking that in would gain nothing"
        return Refusal(Code.ALONE, text, node.label)
    return Refusal(Code.ALONE, "nothing that is linear meets it", node.label)


def _near(step: Step, problem: Problem) -> list[Step]:
    """The linear steps before and behind one, through up to `REACH` that only move data."""
    graph, steps = problem.view.graph, problem.steps
    found: dict[str, Step] = {}
    seen = {step.tensor}
    behind, before = [step], [step]
    for stack, forward in ((before, False), (behind, True)):
        while stack and len(seen) < REACH:
            current = stack.pop()
            names = current.lifted.operands
            if forward:
                readers = graph.consumers.get(current.tensor, [])
                made = [steps[o] for reader in readers for o in reader.outputs if o in steps]
                names = tuple(s.tensor for s in made if current.tensor in s.lifted.operands)
            for name in names:
                if name not in steps or name in seen:
                    continue
                seen.add(name)
                if isinstance(steps[name].law, MOVES):
                    stack.append(steps[name])
                else:
                    found[name] = steps[name]
    return list(found.values())


def _estimate(found: Region, problem: Problem) -> float | None:
    """The estimated time of a region's cover over that of the nodes it frees."""
    old = old_counts(found.interior, problem).time
    return found.cost.time / old if old else None


def layout(laid: Relaid, error: RegionError | None) -> RegionReport:
    """The report of operators that took the layout of their neighbours."""
    graph, edits = laid.view.graph, laid.edits
    touched = [graph.nodes[index] for index in sorted(edits.moved.keys() | edits.dropped)]
    before = sum(node.op_type == "Transpose" for node in touched)
    counts = Counts(len(touched), 0, 0, 0, 0)
    after = Counts(len(touched) + edits.transposes, 0, 0, 0, 0)
    return RegionReport(
        root=touched[0].outputs[0],
        node=touched[0].label,
        nodes=tuple(node.label for node in touched),
        was=sketch.kinds(["Transpose"] * before),
        became=sketch.kinds(["Transpose"] * (before + edits.transposes)) or "nothing",
        expression="the same operators, in the layout of the convolutions next to them",
        before=counts,
        after=after,
        error=error,
    )


def _sized(found: Region, problem: Problem) -> bool:
    """Whether the sizes that MACs are counted at are known, as the totals require."""
    nominal = problem.view.shapes.nominal
    assert found.cover is not None
    shapes = [nominal.get(name) for name in (found.root.tensor, *found.cover.form.sources)]
    return all(shape is not None and None not in shape for shape in shapes)


def new_parameters(replacement: Replacement) -> int:
    """The elements of the constants that a region is written with."""
    return sum(prod(weight.shape) for weight in replacement.weights.values())


def _became(cover: Cover, written: Sequence[str]) -> str:
    """``Conv 3×3`` and the like, with what else is left."""
    convs = [_kerneled(t, cover.affine) for t in cover.terms if is_convolution(t, cover.affine)]
    others = Counter(kind for kind in written if kind not in KERNELED)
    if cover.known is not None:
        others -= Counter(cover.known.operators)
        convs.append(_KNOWN[cover.known.style])
    rest = sketch.kinds(list(others.elements()))
    return ", ".join([*convs, *([rest] if rest else [])])


_KNOWN = {
    "map": "constant map",
    "plane": "small Conv over ones",
    "channel": "channel of ones",
    "shift": "shifted source",
}


def _kerneled(term: Term, affine: Affine) -> str:
    """``Conv 3×3/2`` or ``Gemm 8×16``."""
    kind, geometry = operator(term, affine), term.kernel.geometry
    if kind == "Conv":
        return _conv(padded.materialise(geometry, term.source.lengths))
    if kind == "ConvTranspose":
        strides = {axis.up for axis in geometry.axes}
        stride = (
            str(max(strides))
            if len(strides) == 1
            else ",".join(str(axis.up) for axis in geometry.axes)
        )
        return f"ConvT {'×'.join(map(str, geometry.taps))}/{stride}"
    return f"{kind} {geometry.in_channels}×{geometry.out_channels}"


def _conv(geometry: Geometry) -> str:
    text = "Conv " + "×".join(map(str, geometry.taps))
    if any(axis.stride > 1 for axis in geometry.axes):
        strides = [str(axis.stride) for axis in geometry.axes]
        text += "/" + (strides[0] if len(set(strides)) == 1 else ",".join(strides))
    if geometry.groups > 1:
        text += " depthwise" if geometry.depthwise else f" g{geometry.groups}"
    return text


def _old_counts(nodes: Sequence[Node], problem: Problem) -> Counts:
    kinds = [node.op_type for node in nodes]
    constants = {name for node in nodes for name in node.inputs if name}
    view = problem.view
    return Counts(
        nodes=len(nodes),
        conv=kinds.count("Conv"),
        batch_normalization=kinds.count("BatchNormalization"),
        parameters=sum(parameters(name, problem) for name in constants),
        macs=sum(macs(node, view.shapes, view.constants) for node in nodes),
    )


def parameters(name: str, problem: Problem) -> int:
    """The elements of a floating-point constant; zero for anything else."""
    view = problem.view
    if not view.constants.known(name) or view.shapes.type_of(name) not in FLOATS:
        return 0
    return prod(size or 0 for size in view.constants.shape(name) or ())
