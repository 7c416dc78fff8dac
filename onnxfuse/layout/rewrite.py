"""A choice of layouts as edits: operators renamed and adjusted, Transposes dropped and inserted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from onnxfuse.emit import NewNode
from onnxfuse.layout import rules
from onnxfuse.layout.choose import Choice, Family
from onnxfuse.layout.rules import Moved, Perm
from onnxfuse.model.graph import Node


@dataclass(slots=True)
class Edits:
    """What changes in a graph.

    ``inputs`` and ``outputs`` rename by node index and old name; ``moved`` are the operators that
    work in another layout; ``inserted`` stand behind the node of that index (-1: at the start),
    and so do the nodes ``raised`` to there, because a new reader comes before them.
    ``origin`` gives the tensor that a new name holds, in another layout.
    """

    inputs: dict[int, dict[str, str]] = field(default_factory=dict)
    outputs: dict[int, dict[str, str]] = field(default_factory=dict)
    moved: dict[int, tuple[Perm, Moved]] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    inserted: dict[int, list[NewNode]] = field(default_factory=dict)
    raised: dict[int, list[int]] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def transposes(self) -> int:
        """How many Transposes there are more than before."""
        return sum(len(nodes) for nodes in self.inserted.values()) - len(self.dropped)


def edits(choice: Choice, fresh: Callable[[str], str]) -> Edits:
    """The edits that make a choice true; none where it leaves everything as it is."""
    found = Edits()
    graph = choice.view.graph
    for node in graph.nodes:
        perm = choice.of_node(node)
        if perm is not None:
            moved = rules.moved(node, perm, choice.view)
            assert moved is not None
            found.moved[node.index] = perm, moved
    for family in choice.families.values():
        if _touched(choice, family):
            _Family(choice, family, found, fresh).write()
    return found


def _touched(choice: Choice, family: Family) -> bool:
    nodes = [choice.view.graph.producer.get(family.name), *(use.node for use in family.uses)]
    if any(choice.of_node(node) is not None for node in nodes):
        return True
    spare = len(family.transposes) > len(choice.layouts(family))
    return spare and choice.near_channels(family)


class _Family:
    """The edits of one family."""

    def __init__(
        self, choice: Choice, family: Family, found: Edits, fresh: Callable[[str], str]
    ) -> None:
        self.choice = choice
        self.family = family
        self.found = found
        self.fresh = fresh
        self.producer: Node | None = choice.view.graph.producer.get(family.name)
        self.own = choice.provided(family)
        self.moved = self.own != tuple(range(family.rank))

    def write(self) -> None:
        family, choice = self.family, self.choice
        stored = self._stored()
        if stored != family.name and self.producer is not None:
            self.found.outputs.setdefault(self.producer.index, {})[family.name] = stored
            self.found.origin[stored] = family.name
        names = {self.own: stored}
        kept: set[int] = set()
        for layout in sorted(choice.layouts(family)):
            names[layout] = self._copy(stored, layout, kept)
        for use in family.uses:
            if use.node is None:
                self._outside(use.name, names[choice.needed(family, use)])
            else:
                renamed = self.found.inputs.setdefault(use.node.index, {})
                renamed[use.name] = names[choice.needed(family, use)]
        self.found.dropped |= {node.index for node in family.transposes} - kept

    def _outside_names(self, layout: Perm) -> list[str]:
        return [use.name for use in self.family.uses if use.node is None and use.perm == layout]

    def _stored(self) -> str:
        """The name under which the producer writes."""
        if not self.moved:
            return self.family.name
        return next(iter(self._outside_names(self.own)), "") or self.fresh(
            f"{self.family.name}_transposed"
        )

    def _copy(self, stored: str, layout: Perm, kept: set[int]) -> str:
        """The name of the copy in ``layout``, by a Transpose that stands there or a new one."""
        perm = tuple(self.own.index(axis) for axis in layout)
        wanted = self._outside_names(layout)
        for node in self.family.transposes if not self.moved else ():
            fits = node.inputs[0] == self.family.name and self._perm(node) == layout
            if fits and (not wanted or node.outputs[0] in wanted):
                kept.add(node.index)
                others = any(name != node.outputs[0] for name in wanted)
                if others or min(self._readers(layout), default=node.index) < node.index:
                    self.found.raised.setdefault(self._place(), []).append(node.index)
                return node.outputs[0]
        identity = tuple(range(self.family.rank))
        name = next(iter(wanted), "") or (
            self.family.name if layout == identity else self.fresh(f"{self.family.name}_transposed")
        )
        self.found.origin[name] = self.family.name
        self._insert(NewNode("Transpose", self.fresh(name), (stored,), name, {"perm": list(perm)}))
        return name

    def _perm(self, node: Node) -> Perm:
        return tuple(node.attributes.get("perm") or range(self.family.rank)[::-1])

    def _outside(self, name: str, provided: str) -> None:
        """A graph output keeps its name."""
        if name != provided:
            self._insert(NewNode("Identity", self.fresh(name), (provided,), name, {}))

    def _readers(self, layout: Perm) -> list[int]:
        uses = [use for use in self.family.uses if use.node is not None]
        return [
            u.node.index for u in uses if u.node and self.choice.needed(self.family, u) == layout
        ]

    def _place(self) -> int:
        return -1 if self.producer is None else self.producer.index

    def _insert(self, node: NewNode) -> None:
        self.found.inserted.setdefault(self._place(), []).append(node)
