"""Why linear neighbours stayed apart: a reason for every place that could have met another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnxfuse.algebra.laws import Convolve, Sum
from onnxfuse.planning.problem import Problem, Step
from onnxfuse.planning.region import Region, expand, old_counts
from onnxfuse.refusal import Code, Refusal


def refusals(regions: Mapping[str, Region], problem: Problem) -> list[Refusal]:
    """The refusals of a plan: what could not be lifted, and what was not merged."""
    found = list(problem.refusals)
    for region in regions.values():
        priced = [
            problem.steps[name]
            for name in region.sources
            if name in problem.steps and name not in problem.required
        ]
        reasons = [
            reason
            for step in priced
            if (reason := _price(step, region, problem, regions)) is not None
        ]
        found += reasons or region.obstacles
        if not reasons and not region.obstacles:
            found += _needed(region, problem, regions)
        found += _strides(region, problem)
    return list(dict.fromkeys(found))


def _price(
    step: Step, region: Region, problem: Problem, present: Mapping[str, Region]
) -> Refusal | None:
    """Why a region reads a tensor that only linear nodes need, instead of computing through it."""
    merged = expand(region.root, lambda t: t != step.tensor and t in present, problem)
    if not merged.replaced:
        return next(iter(merged.obstacles), None)
    old, new = old_counts(merged.interior, problem), merged.cost
    into, label = f"merging {step.node.label!r} into it", region.root.node.label
    if new.macs > old.macs:
        text = f"{into} would take MACs from {old.macs:,} to {new.macs:,}"
        return Refusal(Code.COST, text, label)
    if new.parameters > old.parameters:
        code = Code.SHARED_KERNEL if old.parameters == 0 else Code.COST
        text = f"{into} would take kernel parameters from {old.parameters:,} to {new.parameters:,}"
        return Refusal(code, text, label)
    if new.time > old.time:
        return Refusal(Code.COST, f"{into} is estimated to be slower", label)
    return None


def _needed(region: Region, problem: Problem, present: Mapping[str, Region]) -> Iterator[Refusal]:
    """Sources that something else needs, where merging would pay if nothing did."""
    sources = set(region.sources)
    merged = expand(region.root, lambda t: t in present and t not in sources, problem)
    if not merged.replaced:
        return
    inner = [problem.steps[n] for n in region.sources if n in problem.steps]
    apart = region.cost.time + sum(problem.original_cost(step).time for step in inner)
    if merged.cost.time >= apart:
        return
    for step in inner:
        if step.tensor in problem.required:
            out = problem.view.graph.read_outside(step.tensor)
            code = Code.GRAPH_OUTPUT if out else Code.READER
            why = "is a graph output" if out else "has another reader"
            yield Refusal(code, f"{step.tensor!r} {why} and stays", region.root.node.label)


def _strides(region: Region, problem: Problem) -> Iterator[Refusal]:
    """Summed convolutions of one tensor at different strides: no one convolution does both."""
    if not isinstance(region.root.law, Sum):
        return
    seen: dict[str, tuple[int, ...]] = {}
    for name in region.sources:
        step = problem.steps.get(name)
        if step is None or not isinstance(step.law, Convolve):
            continue
        strides = tuple(axis.stride for axis in step.law.kernel.geometry.axes)
        if seen.setdefault(step.lifted.operands[0], strides) != strides:
            yield Refusal(
                Code.STRIDE,
                "its inputs sample the same tensor at different strides",
                region.root.node.label,
            )
