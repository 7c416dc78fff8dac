"""The search for the cheapest plan.

A plan is a set of *cuts*: tensors that stay in the graph although only the algebra reads them.
Given the cuts, every tensor that must exist has one expression over the nearest cuts, and that
expression has a price. The search starts from few cuts (where a sum joins maps of unrelated
tensors, merging across it seldom pays) and then toggles cuts, each for all its readers at once,
while the total falls. Totals are recounted as a set: a tensor that nobody needs any more costs
nothing, and one that is needed anyway is free to read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from onnxfuse.algebra.joining import Concat
from onnxfuse.algebra.laws import Sum
from onnxfuse.algebra.layouts import Permute
from onnxfuse.planning.cost import Cost
from onnxfuse.planning.problem import Problem, Step
from onnxfuse.planning.region import Region, blocked, conv_geometry, expand, freed_counts
from onnxfuse.planning.state import NOTHING, Key, Move, State
from onnxfuse.refusal import Code, Refusal

SWEEPS = 3
"""How often every region's cuts are tried again."""
MAX_MOVES = 64
"""Regions with more tensors than this keep the cuts they start with."""
MAX_ORIGINS = 8
"""Sums over more sources than this start cut."""
MAX_EFFORT = 1000
"""So many tensors are looked at for each tensor of the model: thirty times what blocks need."""


def solve(problem: Problem, forbidden: frozenset[str] = frozenset()) -> dict[str, Region]:
    """The regions of the cheapest plan found, by the tensor each one computes.

    The nodes of ``forbidden`` tensors stay as they are.
    """
    cuts, origins = _first_cuts(problem)
    cuts |= forbidden
    stuck = frozenset(blocked(problem, cuts) - cuts)
    cuts |= stuck
    state = State(problem, cuts, set(forbidden), forbidden, stuck, origins)
    state.settle(problem.required)
    limit = MAX_EFFORT * len(problem.steps)
    unseen: list[str] = []
    for sweep in range(SWEEPS):
        order = _by_position(state)
        improved = [_improve(state, tensor) for tensor in order if state.effort < limit]
        unseen = order[len(improved) :] if sweep == 0 else unseen
        if not any(improved):
            break
    while _enforce_policy(state):
        pass  # every round adds cuts or keeps nodes, so this ends
    _prefer_present_tensors(state)
    return {
        tensor: _ended(state.regions[tensor]) if tensor in unseen else state.regions[tensor]
        for tensor in _by_position(state)
    }


def _ended(region: Region) -> Region:
    """A region that the search did not come to."""
    text = "the search ended before it, having tried very many ways to merge what precedes it"
    refusal = Refusal(Code.SIZE, text, region.root.node.label)
    return replace(region, obstacles=(*region.obstacles, refusal))


def _by_position(state: State) -> list[str]:
    return sorted(state.regions, key=lambda t: (state.problem.steps[t].position, t))


def _first_cuts(problem: Problem) -> tuple[set[str], dict[str, frozenset[str]]]:
    """Required tensors; sums of maps that have no source in common, and what they sum.

    So is a transposed source, which stands better by itself than in the way. With them comes for
    each tensor what it is made of, back to the nearest of these cuts.
    """
    cuts = set(problem.required)
    origins: dict[str, frozenset[str]] = {}
    for name, step in sorted(problem.steps.items(), key=lambda item: item[1].position):
        operands = [
            frozenset({operand}) if operand in cuts or operand not in origins else origins[operand]
            for operand in step.lifted.operands
        ]
        joined = frozenset().union(*operands)
        apart = len(operands) > 1 and sum(map(len, operands)) == len(joined)
        if (isinstance(step.law, Sum | Concat) and apart) or len(joined) > MAX_ORIGINS:
            cuts.update((name, *step.lifted.operands))
        if isinstance(step.law, Permute) and joined == {step.lifted.operands[0]}:
            cuts.add(name)
        origins[name] = joined
    return cuts, origins


def _improve(state: State, tensor: str) -> bool:
    """Take the best toggle around one region, while there is one; whether any was taken."""
    improved = False
    while True:
        region = state.regions.get(tensor)
        if region is None or len(region.interior) > MAX_MOVES:
            return improved
        gains = [(gain, move) for move in _moves(state, region) if (gain := _gain(state, move))]
        if not gains:
            return improved
        best = min(gain for gain, _ in gains)
        state.make(next(move for gain, move in gains if gain == best))
        state.vain.clear()
        improved = True


def _moves(state: State, region: Region) -> Iterator[Move]:
    root = region.root.tensor
    inner = [step.tensor for step in region.interior if step.tensor != root]
    release = root if root in state.kept and root not in state.forbidden else ""
    if release:
        yield Move(release=root)
    steps = state.problem.steps
    closed = _worth_opening(state, region)
    for name in closed:
        yield Move(drop=frozenset({name}), release=release)
        operands = frozenset(n for n in steps[name].lifted.operands if n in steps)
        before, behind = operands - state.cuts, operands & state.cuts
        if name in state.stuck and before:
            yield Move(add=before, drop=frozenset({name}), release=release)
        if opened := _meeting(state, sorted(behind - state.forbidden), region, steps[name]):
            yield Move(drop=frozenset({name, *opened}), release=release)
    if len(closed) > 1:  # the terms of a sum pay only when all of them are open
        yield Move(drop=frozenset(closed), release=release)
    if region.obstacles and not region.replaced:
        for name in region.visited:
            if name != root and name not in state.cuts:
                yield Move(add=frozenset({name}))
    if region.replaced and not _unbeatable(region):
        yield Move(add=frozenset(inner), keep=root)
        for name in inner:
            if name not in state.cuts:
                yield Move(add=frozenset({name}))


def _worth_opening(state: State, region: Region) -> list[str]:
    """The cuts that a region reads and might be better read through."""
    steps = state.problem.steps
    closed = [n for n in region.sources if n in state.cuts and n in steps]
    return _meeting(state, [n for n in closed if n not in state.forbidden], region, region.root)


def _meeting(state: State, closed: list[str], region: Region, reader: Step) -> list[str]:
    """Of some cuts, those that may merge with something where a region is read through them.

    Of more than `MAX_ORIGINS`, and where their ``reader`` only joins them, those that have one
    reader, or that are made of what another of them, or of the tensors read beside them, is or is
    made of: nothing else could meet in it. But a few joins may always be joined in one.
    """
    few = len(closed) <= MAX_ORIGINS
    if few and not isinstance(reader.law, Concat):
        return closed
    made_of = {name: state.origins[name] for name in closed}
    met = Counter(origin for origins in made_of.values() for origin in origins)
    met.update({*region.sources, *reader.lifted.operands})
    steps = state.problem.steps
    return [
        name
        for name, origins in made_of.items()
        if state.needs.get(name) == 1
        or any(met[origin] > 1 for origin in origins)
        or (few and isinstance(steps[name].law, Concat))
    ]


def _unbeatable(region: Region) -> bool:
    """Whether the region is one operator no larger than the largest it replaces."""
    if region.cover is None or region.excess or len(region.cover.terms) != 1:
        return False
    (term,) = region.cover.terms
    size = term.kernel.geometry.parameters
    old = [conv_geometry(step) for step in region.interior]
    return not term.bare and any(g is not None and g.parameters >= size for g in old)


def _gain(state: State, move: Move) -> Key | None:
    """By how much a move changes the total of what it touches; ``None`` unless it falls."""
    undo = None if move in state.vain else state.make(move)
    if undo is None:
        return None
    after = _total(state.regions.get(tensor) for tensor in undo.before)
    state.restore(undo)
    before = _total(undo.before.values())
    gain = tuple(new - old for new, old in zip(after, before, strict=True))
    if gain < NOTHING:
        return gain
    state.vain.add(move)
    return None


def _total(regions: Iterable[Region | None]) -> Key:
    keys = [region.key for region in regions if region is not None]
    return tuple(map(sum, zip(*keys, strict=True))) if keys else NOTHING


def _enforce_policy(state: State) -> bool:
    """Undo what costs more than the nodes it really frees; whether anything was undone."""
    undone = False
    for cluster in _clusters(state):
        if not _pays(cluster, state):
            undone = True
            forks = _forks(cluster) - state.cuts
            if forks:
                state.cuts |= forks
                state.settle(region.root.tensor for region in cluster)
                continue
            for region in cluster:
                state.cuts |= {step.tensor for step in region.interior}
                state.kept.add(region.root.tensor)
            state.settle(region.root.tensor for region in cluster)
    return undone


def _forks(cluster: list[Region]) -> set[str]:
    """The last tensors that several regions of a cluster have in common."""
    count: dict[str, int] = {}
    for region in cluster:
        for step in region.interior:
            if step is not region.root:
                count[step.tensor] = count.get(step.tensor, 0) + 1
    shared = {tensor for tensor, regions in count.items() if regions > 1}
    return {
        name
        for region in cluster
        for step in region.interior
        if step.tensor not in shared
        for name in step.lifted.operands
        if name in shared
    }


def _clusters(state: State) -> list[list[Region]]:
    """Replaced regions, those that share a node together: a shared node is freed once."""
    owner: dict[str, list[Region]] = {}
    for tensor in _by_position(state):
        region = state.regions[tensor]
        if not region.replaced:
            continue
        met = {id(c): c for step in region.interior if (c := owner.get(step.tensor)) is not None}
        cluster = max(met.values(), key=len, default=[])
        added = [region, *(one for small in met.values() if small is not cluster for one in small)]
        cluster += added
        for one in added:
            owner.update({step.tensor: cluster for step in one.interior})
    return list({id(cluster): cluster for cluster in owner.values()}.values())


def _pays(cluster: list[Region], state: State) -> bool:
    """Whether regions cost no more than the nodes that only they make superfluous."""
    roots = {region.root.tensor for region in cluster}
    freed = {
        step.tensor: step
        for region in cluster
        for step in region.interior
        if step.tensor in roots or step.tensor not in state.regions
    }
    old = freed_counts(list(freed.values()), state.problem)
    new = sum((region.cost for region in cluster), Cost())
    nodes = len(
        {
            step.node.index
            for step in freed.values()
            if all(out in freed for out in state.problem.used_outputs(step))
        }
    )
    if sum(region.operators for region in cluster) > nodes:
        return False
    return not state.problem.policy.excess(new, old) and new.time < old.time


def _prefer_present_tensors(state: State) -> None:
    """Read tensors that exist anyway, where that changes fewer nodes for the same cost."""
    for tensor in _by_position(state):
        region = state.regions.get(tensor)
        if region is None or not region.replaced:
            continue
        present = {s.tensor for s in region.interior if s.tensor in state.regions}
        present.discard(tensor)
        if not present:
            continue
        step = state.problem.steps[tensor]
        shorter = expand(step, (state.cuts | present).__contains__, state.problem)
        if shorter.key < region.key:
            state.adopt(tensor, shorter)
            if any(not _pays(cluster, state) for cluster in _clusters(state)):
                state.adopt(tensor, region)
