"""Where a search stands: its cuts, the regions they imply, and moves that can be taken back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from onnxfuse.planning.problem import Problem
from onnxfuse.planning.region import Region, expand, keep

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

    ``stuck`` are the cuts that no reader passed through when everything before them was open;
    ``vain`` are moves that gain nothing as things stand, met again around each reader of a cut.
    ``effort`` counts the tensors of all regions that were looked at.
    """

    problem: Problem
    cuts: set[str]
    kept: set[str] = field(default_factory=set)
    forbidden: frozenset[str] = frozenset()
    stuck: frozenset[str] = frozenset()
    origins: dict[str, frozenset[str]] = field(default_factory=dict)
    regions: dict[str, Region] = field(default_factory=dict)
    needs: dict[str, int] = field(default_factory=dict)
    touching: dict[str, set[str]] = field(default_factory=dict)
    expanded: dict[tuple[str, frozenset[str]], Region] = field(default_factory=dict)
    upstream: dict[str, frozenset[str] | None] = field(default_factory=dict)
    vain: set[Move] = field(default_factory=set)
    effort: int = 0

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
            self.effort += len(new.sources) + len(new.visited or new.interior) if new else 0
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
