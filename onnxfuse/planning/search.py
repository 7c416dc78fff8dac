"""The search for the cheapest plan.

A plan is a set of *cuts*: tensors that stay in the graph although only the algebra reads them.
Given the cuts, every tensor that must exist has one expression over the nearest cuts, and that
expression has a price. The search starts from few cuts (where a sum joins maps of unrelated
tensors, merging across it seldom pays) and then toggles cuts, each for all its readers at once,
while the total falls. Totals are recounted as a set: a tensor that nobody needs any more costs
nothing, and one that is needed anyway is free to read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from onnxfuse.algebra.joining import Concat
from onnxfuse.algebra.laws import Sum
from onnxfuse.algebra.layouts import Permute
from onnxfuse.planning.cost import Cost
from onnxfuse.planning.problem import Problem
from onnxfuse.planning.region import (
    Region,
    blocked,
    conv_geometry,
    expand,
    freed_counts,
    keep,
)

SWEEPS = 3
"""How often every region's cuts are tried again."""
MAX_MOVES = 64
"""Regions with more tensors than this keep the cuts they start with."""
MAX_ORIGINS = 8
"""Sums over more sources than this start cut."""
REMEMBERED = 256
"""Regions with at most so many tensors in front of them are remembered by their cuts."""
MAX_AFFECTED = 256
"""A cut that more regions than this read is not toggled."""

Key = tuple[int, ...]
NOTHING: Key = (0, 0, 0, 0, 0)
"""The key of no regions (see `Region.key`)."""


@dataclass(frozen=True, slots=True)
class Move:
    """Cuts to add and to remove, and a node to keep or to release."""

    add: frozenset[str] = frozenset()
    drop: frozenset[str] = frozenset()
    keep: str = ""
    release: str = ""

    @property
    def tensors(self) -> set[str]:
        return {*self.add, *self.drop, *filter(None, (self.keep, self.release))}


@dataclass(frozen=True, slots=True)
class Undo:
    """What stood before a move."""

    before: dict[str, Region | None]
    tensors: set[str]
    cuts: frozenset[str]
    kept: frozenset[str]


@dataclass
class State:
    """Cuts, kept nodes, and the regions they imply; ``needs`` counts readers of each tensor.

    ``stuck`` are the cuts that no reader passed through when everything before them was open.
    """

    problem: Problem
    cuts: set[str]
    kept: set[str] = field(default_factory=set)
    forbidden: frozenset[str] = frozenset()
    stuck: frozenset[str] = frozenset()
    regions: dict[str, Region] = field(default_factory=dict)
    needs: dict[str, int] = field(default_factory=dict)
    touching: dict[str, set[str]] = field(default_factory=dict)
    expanded: dict[tuple[str, frozenset[str]], Region] = field(default_factory=dict)
    upstream: dict[str, frozenset[str] | None] = field(default_factory=dict)

    def region(self, tensor: str) -> Region:
        """The region of a tensor under the cuts; only those in front of it matter."""
        step = self.problem.steps[tensor]
        if tensor in self.kept:
            return keep(step, self.problem)
        before = self._before(tensor)
        if before is None:
            return expand(step, self.cuts.__contains__, self.problem)
        key = tensor, before & self.cuts
        if key not in self.expanded:
            self.expanded[key] = expand(step, self.cuts.__contains__, self.problem)
        return self.expanded[key]

    def _before(self, tensor: str) -> frozenset[str] | None:
        """The tensors that an expression may reach back to; ``None`` where they are many."""
        if tensor not in self.upstream:
            steps = self.problem.steps
            found: set[str] = set()
            stack = [tensor]
            while stack and len(found) <= REMEMBERED:
                for name in steps[stack.pop()].lifted.operands:
                    if name in steps and name not in found:
                        found.add(name)
                        stack += [] if name in self.problem.required else [name]
            self.upstream[tensor] = frozenset(found) if len(found) <= REMEMBERED else None
        return self.upstream[tensor]

    def settle(self, roots: Iterable[str]) -> dict[str, Region | None]:
        """Recompute ``roots`` and whatever becomes needed or unneeded; what stood before."""
        before: dict[str, Region | None] = {}
        queue = list(roots)
        unneeded: list[str] = []  # last, since what they read may be needed again by then
        while queue or unneeded:
            tensor = queue.pop() if queue else unneeded.pop()
            old = self.regions.get(tensor)
            wanted = tensor in self.problem.required or self.needs.get(tensor, 0) > 0
            new = self.region(tensor) if wanted else None
            before.setdefault(tensor, old)
            self._replace(tensor, old, new)
            for name in {*(old.sources if old else ()), *(new.sources if new else ())}:
                if name not in self.problem.steps:
                    continue
                needed = name in self.problem.required or self.needs.get(name, 0) > 0
                if needed != (name in self.regions):
                    (queue if needed else unneeded).append(name)
        return before

    def adopt(self, tensor: str, region: Region) -> None:
        """Take ``region`` for a tensor, and drop what is no longer needed."""
        before = self.regions[tensor]
        self._replace(tensor, before, region)
        self.settle(n for n in before.sources + region.sources if n in self.problem.steps)

    def make(self, move: Move) -> Undo | None:
        """Make a move; ``None`` where it touches no region or too many."""
        affected = set().union(*(self.touching.get(name, set()) for name in move.tensors))
        affected &= self.regions.keys()
        if not affected or len(affected) > MAX_AFFECTED:
            return None
        tensors = move.tensors
        cuts, kept = frozenset(self.cuts & tensors), frozenset(self.kept & tensors)
        self.cuts |= move.add
        self.cuts -= move.drop
        self.kept |= {move.keep} - {""}
        self.kept.discard(move.release)
        return Undo(self.settle(sorted(affected)), tensors, cuts, kept)

    def restore(self, undo: Undo) -> None:
        for tensor, region in undo.before.items():
            self._replace(tensor, self.regions.get(tensor), region)
        self.cuts -= undo.tensors
        self.cuts |= undo.cuts
        self.kept -= undo.tensors
        self.kept |= undo.kept

    def _replace(self, tensor: str, old: Region | None, new: Region | None) -> None:
        for name in old.sources if old else ():
            self.needs[name] -= 1
        for name in new.sources if new else ():
            self.needs[name] = self.needs.get(name, 0) + 1
        for name in set(_touched(old)):
            self.touching[name].discard(tensor)
        for name in _touched(new):
            self.touching.setdefault(name, set()).add(tensor)
        if new is None:
            self.regions.pop(tensor, None)
        else:
            self.regions[tensor] = new


def _touched(region: Region | None) -> Iterator[str]:
    if region is not None:
        yield from region.sources
        yield from (step.tensor for step in region.interior)
        yield from region.visited


def solve(problem: Problem, forbidden: frozenset[str] = frozenset()) -> dict[str, Region]:
    """The regions of the cheapest plan found, by the tensor each one computes.

    The nodes of ``forbidden`` tensors stay as they are.
    """
    cuts = _first_cuts(problem) | forbidden
    stuck = frozenset(blocked(problem, cuts) - cuts)
    cuts |= stuck
    state = State(problem, cuts, set(forbidden), forbidden, stuck)
    state.settle(problem.required)
    for _ in range(SWEEPS):
        improved = [_improve(state, tensor) for tensor in _by_position(state)]
        if not any(improved):
            break
    while _enforce_policy(state):
        pass  # every round adds cuts or keeps nodes, so this ends
    _prefer_present_tensors(state)
    return {tensor: state.regions[tensor] for tensor in _by_position(state)}


def _by_position(state: State) -> list[str]:
    return sorted(state.regions, key=lambda t: (state.problem.steps[t].position, t))


def _first_cuts(problem: Problem) -> set[str]:
    """Required tensors; sums of maps that have no source in common, and what they sum.

    So is a transposed source, which stands better by itself than in the way.
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
    return cuts


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
        improved = True


def _moves(state: State, region: Region) -> Iterator[Move]:
    root = region.root.tensor
    inner = [step.tensor for step in region.interior if step.tensor != root]
    release = root if root in state.kept and root not in state.forbidden else ""
    if release:
        yield Move(release=root)
    steps = state.problem.steps
    for name in region.sources:
        if name in state.cuts and name in steps and name not in state.forbidden:
            yield Move(drop=frozenset({name}), release=release)
            operands = frozenset(n for n in steps[name].lifted.operands if n in steps)
            before, behind = operands - state.cuts, operands & state.cuts
            if name in state.stuck and before:
                yield Move(add=before, drop=frozenset({name}), release=release)
            if behind - state.forbidden:
                yield Move(drop=frozenset({name, *behind}) - state.forbidden, release=release)
    together = frozenset(n for n in region.sources if n in steps and n in state.cuts)
    together -= state.forbidden
    if len(together) > 1:  # the terms of a sum pay only when all of them are open
        yield Move(drop=together, release=release)
    if region.obstacles and not region.replaced:
        for name in region.visited:
            if name != root and name not in state.cuts:
                yield Move(add=frozenset({name}))
    if region.replaced and not _unbeatable(region):
        yield Move(add=frozenset(inner), keep=root)
        for name in inner:
            if name not in state.cuts:
                yield Move(add=frozenset({name}))


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
    undo = state.make(move)
    if undo is None:
        return None
    after = _total(state.regions.get(tensor) for tensor in undo.before)
    state.restore(undo)
    before = _total(undo.before.values())
    gain = tuple(new - old for new, old in zip(after, before, strict=True))
    return gain if gain < NOTHING else None


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
