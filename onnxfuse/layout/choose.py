"""Which operators change their layout: a choice per group of neighbours, by what it saves.

Operators that do not mind their layout and read each other directly form a *group*; a group has
one permutation. A *family* is a tensor with all its transposed copies; it costs one Transpose for
each layout that a reader needs and nobody provides. Groups change their permutation while the sum
over all families falls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod

from onnxfuse.layout import rules
from onnxfuse.layout.rules import Perm
from onnxfuse.lift import View
from onnxfuse.lift.matrix import is_bias
from onnxfuse.model.graph import Node

SWEEPS = 8


@dataclass(frozen=True, slots=True)
class Use:
    """A reader of a family: by which permutation of the family's tensor, under which name.

    ``node`` is ``None`` for a graph output or another scope, which needs the name itself.
    """

    node: Node | None
    perm: Perm
    name: str


@dataclass(slots=True)
class Family:
    """A tensor that no Transpose makes, and everything that reads it or a transposed copy."""

    name: str
    rank: int
    size: int
    uses: list[Use] = field(default_factory=list)
    transposes: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Choice:
    """The permutation of each group, by group number, and which group a node belongs to."""

    families: dict[str, Family]
    group: dict[int, int]
    perms: dict[int, Perm]
    members: dict[int, list[Node]]
    view: View
    admitted: Callable[[str], bool]
    homes: frozenset[str] = frozenset()

    def needed(self, family: Family, use: Use) -> Perm:
        """The layout in which a reader takes the family's tensor."""
        perm = self.of_node(use.node)
        return use.perm if perm is None else rules.compose(use.perm, perm)

    def provided(self, family: Family) -> Perm:
        """The layout in which the family's tensor is made."""
        producer = self.view.graph.producer.get(family.name)
        perm = self.of_node(producer)
        if perm is None or (producer is not None and rules.absorbs(producer)):
            return tuple(range(family.rank))
        return perm

    def of_node(self, node: Node | None) -> Perm | None:
        """The permutation a node works in, if it is in a group that has moved."""
        return None if node is None else self.perms.get(self.group.get(node.index, -1))

    def layouts(self, family: Family) -> set[Perm]:
        """The layouts that need a Transpose."""
        return {self.needed(family, use) for use in family.uses} - {self.provided(family)}

    def near_channels(self, family: Family) -> bool:
        """Whether an operator that fixes the channels' axis makes or reads the family."""
        nodes = [self.view.graph.producer.get(family.name), *(use.node for use in family.uses)]
        return any(map(_fixes, nodes))

    def cost(self, family: Family) -> tuple[int, int]:
        """Elements that Transposes move, and how many stand next to a channel operator."""
        layouts = self.layouts(family)
        producer = self.view.graph.producer.get(family.name)
        near = len(layouts) if _fixes(producer) else 0
        near += len({use.perm for use in family.uses if _fixes(use.node)} & layouts)
        return family.size * len(layouts), near

    def total(self, families: list[Family]) -> tuple[int, int]:
        """The cost of several families."""
        costs = [self.cost(family) for family in families]
        return sum(elements for elements, _ in costs), sum(near for _, near in costs)


def choose(view: View, admitted: Callable[[str], bool]) -> Choice:
    """The choice for a model; no group moves where nothing is saved."""
    choice = Choice(_families(view, admitted), {}, {}, {}, view, admitted)
    found = choice.families.values()
    if not any(family.transposes for family in found):
        return choice
    copies = (out for family in found for node in family.transposes for out in node.outputs)
    choice.homes = frozenset([*choice.families, *copies])
    _group(choice)
    touching: dict[int, list[Family]] = {}
    for family in choice.families.values():
        nodes = [view.graph.producer.get(family.name), *(use.node for use in family.uses)]
        for number in {choice.group.get(n.index, -1) for n in nodes if n is not None} - {-1}:
            touching.setdefault(number, []).append(family)
    touching = {
        number: found
        for number, found in touching.items()
        if any(choice.near_channels(family) for family in found)
    }
    for _ in range(SWEEPS):
        changed = [_improve(choice, number, found) for number, found in touching.items()]
        if not any(changed):
            break
    return choice


def _families(view: View, admitted: Callable[[str], bool]) -> dict[str, Family]:
    graph = view.graph
    home: dict[str, tuple[str, Perm]] = {}
    families: dict[str, Family] = {}
    for name in [*graph.inputs, *(out for node in graph.order for out in node.outputs if out)]:
        shape, node = view.shape(name), graph.producer.get(name)
        if shape is None or len(shape) < 3 or view.constants.known(name):
            continue
        copies = node is not None and _permutes(node, view) and admitted(node.label)
        if node is not None and copies and node.inputs[0] in home:
            first, perm = home[node.inputs[0]]
            own = node.attributes.get("perm") or range(len(shape))[::-1]
            home[name] = first, rules.compose(perm, tuple(own))
            families[first].transposes.append(node)
        else:
            home[name] = name, tuple(range(len(shape)))
            nominal = view.shapes.nominal.get(name, shape)
            families[name] = Family(name, len(shape), prod(size or 1 for size in nominal))
        first, perm = home[name]
        if graph.read_outside(name):
            families[first].uses.append(Use(None, perm, name))
        families[first].uses += (
            Use(reader, perm, name)
            for reader in graph.consumers.get(name, [])
            if not (_permutes(reader, view) and admitted(reader.label))
        )
    return families


def _permutes(node: Node, view: View) -> bool:
    """Whether a node only makes a transposed copy of what may belong to a family."""
    if node.op_type != "Transpose" or not node.standard:
        return False
    shapes = [view.shape(name) for name in (*node.inputs, *node.outputs)]
    ranks = {-1 if shape is None else len(shape) for shape in shapes}
    perm = node.attributes.get("perm")
    whole = perm is None or ({len(perm)} == ranks and sorted(perm) == list(range(len(perm))))
    return (
        len(ranks) == 1 and max(ranks) >= 3 and whole and not view.constants.known(node.outputs[0])
    )


def _group(choice: Choice) -> None:
    """Number the groups: free operators that read each other without a Transpose between.

    The bias of a MatMul stays with it.
    """
    view = choice.view
    free = {
        node.index: node
        for node in view.graph.order
        if rules.operands(node, view) is not None
        and choice.admitted(node.label)
        and not is_bias(node, view)
    }
    parent = {index: index for index in free}

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for family in choice.families.values():
        members = {
            use.node.index
            for use in family.uses
            if use.node is not None and use.name == family.name
        }
        producer = view.graph.producer.get(family.name)
        if producer is not None and not rules.absorbs(producer):
            members.add(producer.index)
        near = sorted(members & free.keys())
        for index in near[1:]:
            parent[root(index)] = root(near[0])
    choice.group = {index: root(index) for index in free}
    for index, number in choice.group.items():
        choice.members.setdefault(number, []).append(free[index])


def _improve(choice: Choice, number: int, families: list[Family]) -> bool:
    """Give a group the permutation that saves most; whether it changed.

    Where no Transpose is saved, operators that a convolution may take in still move next to it.
    """
    before = choice.perms.get(number)
    best, kept = choice.total(families), before
    linear = any(node.op_type in rules.LINEAR for node in choice.members[number])
    for perm in _candidates(choice, number, families):
        if not _can_move(choice, number, perm):
            continue
        choice.perms[number] = perm
        price = choice.total(families)
        if price[0] < best[0] or (linear and price < best):
            best, kept = price, perm
    if kept is None or kept == tuple(range(len(kept))):
        choice.perms.pop(number, None)
        kept = None
    else:
        choice.perms[number] = kept
    return kept != before


def _candidates(choice: Choice, number: int, families: list[Family]) -> list[Perm]:
    """Permutations under which a Transpose next to the group and to a channel operator vanishes."""
    found: dict[Perm, None] = {}
    for family in families:
        found[tuple(range(family.rank))] = None
        producer = choice.view.graph.producer.get(family.name)
        inside = producer is not None and choice.group.get(producer.index) == number
        for use in family.uses:
            member = use.node is not None and choice.group.get(use.node.index) == number
            if inside and _minds(use.node, choice):
                found[choice.needed(family, use)] = None
            if member:
                for other in (choice.provided(family), *_fixed(choice, family)):
                    found[rules.compose(rules.inverse(use.perm), other)] = None
    return list(found)


def _fixed(choice: Choice, family: Family) -> Iterator[Perm]:
    """The layouts that channel operators take the family's tensor in."""
    return (use.perm for use in family.uses if _minds(use.node, choice))


def _minds(node: Node | None, choice: Choice) -> bool:
    """Whether a node fixes its layout, or works in one that was chosen."""
    return _fixes(node) or (node is not None and node.index in choice.group)


def _fixes(node: Node | None) -> bool:
    """Whether a node's channels are axis 1."""
    return node is not None and node.standard and node.op_type in rules.CHANNELS


def _can_move(choice: Choice, number: int, perm: Perm) -> bool:
    """Whether every operator of a group can be written in a layout."""
    view = choice.view
    for node in choice.members[number]:
        first, *_ = rules.operands(node, view) or (0,)
        shape = view.shape(node.inputs[first])
        if shape is None or len(shape) != len(perm) or rules.moved(node, perm, view) is None:
            return False
        made = () if rules.absorbs(node) else filter(None, node.outputs)
        read = (node.inputs[position] for position in rules.operands(node, view) or ())
        if not choice.homes.issuperset([*made, *read]):
            return False
    return True
