"""One pass of the laws over steps: what form each tensor has, or what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass

from onnxfuse.algebra.commuting import applied
from onnxfuse.algebra.form import Facts, Form, Term
from onnxfuse.planning.problem import Problem, Step
from onnxfuse.refusal import Code, Refusal

MAX_GROWTH = 64
"""A form that costs this many times what it was made from is cut where it stands.

A 1×1 averaged over 7×7 costs 49 times as much, and nothing in a sum with a dense 7×7.
"""
MAX_CHOICES = 8
"""Of more operands than this none is left out alone where they cannot all be passed through."""
MAX_PASSED = 1 << 17
"""What so many steps came to is remembered: enough for some 50,000 nodes."""


class Forward:
    """One forward pass of the laws over a region's steps.

    What a law makes of the same forms was mostly seen before, in a pass that differs by a cut
    elsewhere; it is taken from there.
    """

    def __init__(self, root: str, inside: dict[str, Step], problem: Problem, facts: Facts) -> None:
        self.root = root
        self.inside = inside
        self.problem = problem
        self.facts = facts
        self.obstacles: list[Refusal] = []
        self.forms: dict[str, Form] = {}
        self.effort: dict[str, int] = {}
        self.through: dict[str, tuple[str, ...]] = {}

    def run(self) -> Form | None:
        """The root's form; ``None`` where no law gives it one."""
        for name, step in self.inside.items():
            form = self.step(name, step)
            if form is not None:
                self.forms[name] = form
        return self.forms.get(self.root)

    def step(self, name: str, step: Step) -> Form | None:
        """The form of one step, if a law gives it one that did not outgrow its nodes."""
        names = step.lifted.operands
        forms = tuple(self.forms.get(operand) for operand in names)
        efforts = tuple(self.effort.get(operand, 0) for operand in names)
        seen, is_root = self.problem.passed, name == self.root
        key = name, is_root, self.facts.interior_only, tuple(map(id, forms)), efforts
        if key not in seen:
            if len(seen) >= MAX_PASSED:
                seen.clear()
            seen[key] = _passed(step, forms, efforts, self.problem, self.facts, root=is_root)
        found: Passed = seen[key]
        self.obstacles += found.obstacles[: 64 - len(self.obstacles)]
        if found.through is not None:
            self.through[name] = found.through
        if found.effort is not None:
            self.effort[name] = found.effort
        return found.form

    def used(self) -> tuple[tuple[Step, ...], tuple[str, ...]]:
        """The steps the root's form passes through, in order, and the tensors it starts from."""
        seen = {self.root}
        stack = [self.root]
        sources: dict[str, None] = {}
        while stack:
            name = stack.pop()
            through = self.through[name]
            for operand in self.inside[name].lifted.operands:
                if operand not in through:
                    sources[operand] = None
                elif operand not in seen:
                    seen.add(operand)
                    stack.append(operand)
        interior = tuple(step for name, step in self.inside.items() if name in seen)
        return interior, tuple(sources)


@dataclass(frozen=True, slots=True)
class Passed:
    """What came of one step: a form, or obstacles; which operands its law passed through.

    ``effort`` is the work of all nodes that a form stands for. ``forms`` are those of the operands,
    held so that their ids stay theirs.
    """

    form: Form | None
    obstacles: tuple[Refusal, ...]
    through: tuple[str, ...] | None
    effort: int | None
    forms: tuple[Form | None, ...]


def _passed(
    step: Step,
    forms: tuple[Form | None, ...],
    efforts: tuple[int, ...],
    problem: Problem,
    facts: Facts,
    *,
    root: bool,
) -> Passed:
    """A step's form over those of its operands (``None`` where one stands as it is)."""
    form, obstacle, through = _applied(step, forms, problem, facts)
    label = step.node.label
    obstacles = () if obstacle is None else (obstacle.at(label),)
    if form is None or root:
        return Passed(form, obstacles, through, None, forms)
    own = problem.original_cost(step)
    effort = (own.macs or own.time // 10) + sum(efforts)
    positions = problem.elements(step.tensor) // max(form.channels, 1)
    if sum(_kernel_size(term) for term in form.terms) * positions > MAX_GROWTH * max(effort, 1):
        text = f"composing it costs more than {MAX_GROWTH} times as much"
        obstacles = (*obstacles, Refusal(Code.COST, text, label))
        form = None
    return Passed(form, obstacles, through, effort, forms)


def _applied(
    step: Step, forms: tuple[Form | None, ...], problem: Problem, facts: Facts
) -> tuple[Form | None, Refusal | None, tuple[str, ...] | None]:
    """The step's form: through all operands, else with one of them cut, else with all.

    With it what stands in the way of passing through them all, and those that it passed through.
    """
    names = step.lifted.operands
    known = {name: form for name, form in zip(names, forms, strict=True) if form is not None}
    choices = [frozenset(known)]
    if 1 < len(known) <= MAX_CHOICES:
        choices += [frozenset(known) - {name} for name in known]
    if known:
        choices.append(frozenset())
    obstacle = None
    for index, choice in enumerate(choices):
        operands = [known[name] if name in choice else problem.bare(name) for name in names]
        whole = [operand for operand in operands if operand is not None]
        if len(whole) < len(operands):
            continue
        result = applied(step.law, whole, facts)
        if isinstance(result, Form):
            return result, obstacle, tuple(name for name in known if name in choice)
        if index == 0:
            obstacle = result
    return None, obstacle, None


def _kernel_size(term: Term) -> int:
    """The kernel elements of a term; one that only moves or rescales channels counts nothing."""
    geometry = term.kernel.geometry
    moves = geometry.depthwise and set(geometry.taps) <= {1}
    return 0 if moves else geometry.parameters
