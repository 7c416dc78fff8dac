"""Why linear neighbours stayed apart: a reason for every place that could have met another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from onnxfuse.algebra.laws import PARITY, Convolve, Sum
from onnxfuse.algebra.layouts import Permute
from onnxfuse.lift.quantised import ON_INTEGERS, before, is_one
from onnxfuse.model.graph import Node
from onnxfuse.model.tensors import FLOATS
from onnxfuse.planning.problem import MOVES, Problem, Step
from onnxfuse.planning.region import Region, expand, old_counts
from onnxfuse.planning.written import Cover
from onnxfuse.refusal import Code, Refusal

RESHAPING = ("Reshape", "Flatten")
UNLIFTED = (
    "Cast", "CastLike", "CumSum", "DepthToSpace", "Einsum", "Expand", "Gather",
    "GlobalAveragePool", "ReduceMean", "ReduceSum", "Resize", "SpaceToDepth", "Tile", "Upsample",
)  # fmt: skip
"""Linear operators of one tensor that are no law of the algebra."""
APART = "it takes the channels' axis apart, so nothing merges across"
FEW = 8
"""Of more tensors that a region reads, those that another such region reads are not tried again:
each of a block of densely joined layers reads all before it."""
REACH = 64
"""Tensors that are looked back over to explain a region."""


def refusals(regions: Mapping[str, Region], problem: Problem) -> list[Refusal]:
    """The refusals of a plan: what could not be lifted, and what was not merged."""
    found = list(problem.refusals)
    quantised = {refusal.node for refusal in found if refusal.code is Code.QUANTISED}
    tried: set[str] = set()
    for region in regions.values():
        priced = [
            problem.steps[name]
            for name in region.sources
            if name in problem.steps and name not in problem.required
            if not _transposed_source(problem.steps[name], problem)
        ]
        again = tried.intersection(s.tensor for s in priced) if len(priced) > FEW else ()
        merged = [
            (s, expand(region.root, _all_but(s, regions), problem))
            for s in priced
            if s.tensor not in again
        ]
        tried.update(s.tensor for s in priced if len(priced) > FEW)
        reasons = [r for s, m in merged if m.replaced and (r := _price(s.node.label, m, problem))]
        if not (reasons or again) and (any(m.obstacles for _, m in merged) or _siblings(priced)):
            reasons = _joint(region, problem)
        found += reasons or region.obstacles
        if not (reasons or again or region.obstacles):
            found += _needed(region, problem, regions)
        found += _strides(region, problem)
        if not isinstance(region.root.law, MOVES):
            found += _rounded(region.root.node, region.sources, quantised, problem)
    for node in problem.view.graph.order:
        if is_one(node, *ON_INTEGERS):
            found += _rounded(node, node.inputs, quantised, problem)
        if node.standard and node.op_type in RESHAPING and node.outputs[0] not in problem.steps:
            found += _between(node, Refusal(Code.CHANNELS, APART, node.label), problem)
        if is_unlifted(node, problem):
            text = unlifted(node)
            found += _between(node, Refusal(Code.UNSUPPORTED, text, node.label), problem)
    return list({(r.code, r.text, r.node): r for r in reversed(found)}.values())[::-1]


def _all_but(step: Step, present: Mapping[str, Region]) -> Callable[[str], bool]:
    return lambda tensor: tensor != step.tensor and tensor in present


def _transposed_source(step: Step, problem: Problem) -> bool:
    """Whether a step transposes what no law makes: it stands at the edge of a graph."""
    return isinstance(step.law, Permute) and step.lifted.operands[0] not in problem.steps


def _siblings(steps: Sequence[Step]) -> bool:
    """Whether two steps read one tensor, so that their sum might be one map of it."""
    read = [name for step in steps for name in set(step.lifted.operands)]
    return len(read) != len(set(read))


def _joint(region: Region, problem: Problem) -> list[Refusal]:
    """Why a region was not merged with all that precedes it, within `REACH` tensors."""
    opened = 0

    def is_cut(tensor: str) -> bool:
        nonlocal opened
        opened += 1
        return tensor in problem.required or opened > REACH

    merged = expand(region.root, is_cut, problem)
    if not merged.replaced:
        return list(merged.obstacles)
    reason = _price(merged.interior[0].node.label, merged, problem)
    if reason is None and merged.cover is not None:
        reason = _apart(merged, merged.cover)
    return [] if reason is None else [reason.at(region.root.node.label)]


def _apart(merged: Region, cover: Cover) -> Refusal | None:
    """Why several maps of one tensor were not written as one."""
    terms = [term for term in cover.terms if not term.bare]
    families = [(t.source.name, t.outs, t.kernel.geometry.family) for t in terms]
    if len(families) != len(set(families)):
        text = "one kernel that holds all its branches would have more MACs or parameters"
        return _of(merged, Code.COST, text)
    strides = [(name, outs, tuple(s for s, *_ in family)) for name, outs, family in families]
    return _of(merged, Code.PARITY, PARITY) if len(strides) != len(set(strides)) else None


def _of(merged: Region, code: Code, text: str) -> Refusal:
    """The refusal of a merge that was looked at."""
    expression = merged.cover.form.text if merged.cover is not None else ""
    tensors = tuple(step.tensor for step in merged.interior)
    return Refusal(code, text, merged.root.node.label, expression, tensors)


def _price(first: str, merged: Region, problem: Problem) -> Refusal | None:
    """What a merge that reaches back to the node ``first`` would cost too much."""
    old, new = old_counts(merged.interior, problem), merged.cost
    into = f"merging {first!r} into it"
    if problem.policy.macs(new, old):
        text = f"{into} would take MACs from {old.macs:,} to {new.macs:,}"
        return _of(merged, Code.COST, text)
    if problem.policy.parameters(new, old):
        code = Code.SHARED_KERNEL if old.parameters == 0 else Code.COST
        text = f"{into} would take kernel parameters from {old.parameters:,} to {new.parameters:,}"
        return _of(merged, code, text)
    nodes = len({step.node.index for step in merged.interior})
    if merged.operators > nodes:
        text = f"{into} would take {merged.operators} nodes where {nodes} stand now"
        return _of(merged, Code.COST, text)
    if new.time > old.time:
        return _of(merged, Code.COST, f"{into} is estimated to be slower")
    return None


def _needed(region: Region, problem: Problem, present: Mapping[str, Region]) -> Iterator[Refusal]:
    """Sources that something else needs, where merging would pay if nothing did."""
    inner = [problem.steps[n] for n in region.sources if n in problem.steps]
    if not any(step.tensor in problem.required for step in inner):
        return
    sources = set(region.sources)
    merged = expand(region.root, lambda t: t in present and t not in sources, problem)
    if not merged.replaced:
        return
    apart = region.cost.time + sum(problem.original_cost(step).time for step in inner)
    if merged.cost.time >= apart:
        return
    for step in inner:
        if step.tensor in problem.required:
            out = step.tensor in problem.view.graph.outputs_set
            code = Code.GRAPH_OUTPUT if out else Code.READER
            why = "is a graph output" if out else "has another reader"
            yield _of(merged, code, f"{step.tensor!r} {why} and stays")


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


def is_unlifted(node: Node, problem: Problem) -> bool:
    """Whether a node is a linear operator of data that is no law."""
    if not node.standard or node.op_type not in UNLIFTED or not node.inputs:
        return False
    view = problem.view
    known = [view.constants.known(name) for name in node.inputs if name]
    if known[0] or (node.op_type == "Einsum" and known.count(False) > 1):
        return False
    kinds = [view.shapes.type_of(name) for name in (node.inputs[0], node.outputs[0])]
    same = kinds[0] == kinds[1]
    return all(kind in FLOATS for kind in kinds) and not (node.op_type == "Cast" and same)


def unlifted(node: Node) -> str:
    """What to say of such a node."""
    if node.op_type == "Cast":
        return "it changes the type of the numbers, so regions end here; export in one type"
    return f"{node.op_type} is linear, but no law takes it in, so regions end here"


def _between(node: Node, refusal: Refusal, problem: Problem) -> Iterator[Refusal]:
    """The refusal of a node that no law passes, where it stands between linear operators."""
    steps, out = problem.steps, node.outputs[0]
    before = steps.get(node.inputs[0])
    if before is None or isinstance(before.law, MOVES):
        return
    readers = [o for r in problem.view.graph.consumers.get(out, []) for o in r.outputs]
    behind = [steps[o] for o in readers if o in steps and out in steps[o].lifted.operands]
    if any(not isinstance(step.law, MOVES) for step in behind):
        yield refusal


def _rounded(
    node: Node, read: Sequence[str], quantised: set[str], problem: Problem
) -> Iterator[Refusal]:
    """Linear results that reach a linear node as integers, or rounded to some.

    ``quantised`` are the linear nodes that are not lifted because their constants are.
    """
    graph = problem.view.graph
    for name in read:
        origin, rounding = before(name, problem.view)
        source = graph.producer.get(origin)
        whole = is_one(source, *ON_INTEGERS)
        if source is None or not (whole or is_one(node, *ON_INTEGERS) or rounding):
            continue
        step = problem.steps.get(origin)
        linear = step is not None and not isinstance(step.law, MOVES)
        if not (whole or linear or source.label in quantised):
            continue
        how = f"rounded by {rounding.label!r}" if rounding and not whole else "made of integers"
        text = f"its input {origin!r} is {how}, so nothing merges across"
        yield Refusal(Code.QUANTISED, f"{text}; fuse the model before it is quantised", node.label)
