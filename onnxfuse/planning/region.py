"""A region: one tensor as an expression over the tensors where it was cut.

`expand` walks back from a root to the nearest cuts, then applies the laws forward. Where a law
does not hold, the operand is cut there for that reader, and the refusal is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, lcm, prod

from onnxfuse.algebra.borders import without_border
from onnxfuse.algebra.commuting import applied
from onnxfuse.algebra.form import Facts, Form, Term, interior
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.algebra.laws import Convolve
from onnxfuse.algebra.reshaping import Reshape
from onnxfuse.algebra.source import Source
from onnxfuse.planning.cost import Cost
from onnxfuse.planning.cover import cover
from onnxfuse.planning.problem import Problem, Step
from onnxfuse.planning.written import KERNELED, Affine, Cover, operators
from onnxfuse.refusal import Code, Refusal

MAX_TENSORS = 4096
"""Regions are cut at this many tensors."""
MAX_PROVED = 1 << 25
"""Elements of the largest tensor that a region is proved with where its size is fixed."""
MAX_GROWTH = 16
"""A form that costs this many times what it was made from is cut where it stands."""
MAX_PASSED = 1 << 14
"""What so many steps came to is remembered; neighbours are planned one after the other."""


@dataclass(frozen=True, slots=True)
class Region:
    """How one materialised tensor is computed: ``cover`` is ``None`` where its node stays.

    ``operators`` counts those that work on tensors; what only computes the size of a plane is left
    out.
    """

    root: Step
    interior: tuple[Step, ...]
    sources: tuple[str, ...]
    cover: Cover | None
    cost: Cost
    excess: int
    operators: int = 1
    obstacles: tuple[Refusal, ...] = ()
    visited: tuple[str, ...] = ()

    @property
    def replaced(self) -> bool:
        return self.cover is not None

    @property
    def constants(self) -> dict[str, Source]:
        """The stored constants that vary in space and that the form reads."""
        terms = self.cover.form.known if self.cover is not None else ()
        return {t.source.name: t.source for t in terms if t.source.load is not None}

    @property
    def key(self) -> tuple[int, int, int, int, int]:
        """What the search compares.

        Broken policy, estimated time, being approximate, nodes, nodes changed.
        """
        changed = len(self.interior) if self.replaced else 0
        approximate = self.cover is not None and self.cover.form.interior_only
        return self.excess, self.cost.time, int(approximate), self.operators, changed


def keep(
    step: Step,
    problem: Problem,
    obstacles: Sequence[Refusal] = (),
    visited: Sequence[str] = (),
) -> Region:
    """The region of a node that stays as it is; ``visited`` was looked at in vain.

    A Reshape that stays also needs the tensors whose sizes it takes.
    """
    sizes = step.law.restores if isinstance(step.law, Reshape) else frozenset()
    needed = [name for name in sorted(sizes) if name in problem.steps]
    sources = tuple(dict.fromkeys([*step.lifted.operands, *needed]))
    cost = problem.original_cost(step)
    return Region(step, (step,), sources, None, cost, 0, 1, tuple(obstacles), tuple(visited))


def expand(root: Step, is_cut: Callable[[str], bool], problem: Problem) -> Region:
    """The cheapest expression of ``root`` over the nearest cuts, or its node as it stands."""
    inside = _collect(root, is_cut, problem)
    if len(inside) == 1 or problem.shared_outputs(root):
        return keep(root, problem)
    found = _expressed(root, inside, problem, problem.facts)
    exact = found.cover is not None and not found.cover.form.interior_only
    if exact or not problem.facts.interior_only:
        return found
    other = _expressed(root, inside, problem, problem.exact)
    return found if found.replaced and found.key < other.key else other


def _expressed(root: Step, inside: dict[str, Step], problem: Problem, facts: Facts) -> Region:
    """The region of a root over the steps ``inside``, by the laws under ``facts``."""
    walk = _Forward(root.tensor, inside, problem, facts)
    form = walk.run()
    if form is None:
        return keep(root, problem, walk.obstacles, tuple(inside))
    steps, sources = walk.used()
    if len({step.node.index for step in steps}) == 1:
        return keep(root, problem, walk.obstacles, tuple(inside))
    if _beyond_proof(steps, sources, problem):
        walk.obstacles.append(
            Refusal(
                Code.SIZE,
                "it holds at its fixed size only, which is too large to prove",
                root.node.label,
            )
        )
        return keep(root, problem, walk.obstacles, tuple(inside))
    if form.interior_only and not _has_interior(form):
        walk.obstacles.append(Refusal(Code.BORDER_BIAS, "it has no interior", root.node.label))
        return keep(root, problem, walk.obstacles, tuple(inside))
    budget = old_counts(steps, problem)
    settled = without_border(form, facts)
    form = settled if isinstance(settled, Form) else form
    found = cover(form, problem, _affine(steps), budget)
    if found is None or root.tensor in form.sources:
        return keep(root, problem, walk.obstacles, tuple(inside))
    excess = problem.policy.excess(found.cost, budget)
    count = len(operators(found, problem.facts)) - (found.known.sizing if found.known else 0)
    excess += max(count - len({step.node.index for step in steps}), 0)
    return Region(
        root,
        steps,
        sources,
        found,
        found.cost,
        excess,
        count,
        tuple(walk.obstacles),
        tuple(inside),
    )


def _has_interior(region_form: Form) -> bool:
    """Whether some position sees no border, as far as sizes are known."""
    known = {name: source.lengths for name, source in region_form.sources.items()}
    inside = interior(region_form, known)
    return all(
        axis or any(lengths[i] is None for lengths in known.values())
        for i, axis in enumerate(inside)
    )


def _beyond_proof(interior: Sequence[Step], sources: Sequence[str], problem: Problem) -> bool:
    """Whether a region must be proved at its real size and that is too large to evaluate."""
    inner = computed(interior)
    real = any(step.lifted.fixed or isinstance(step.law, Reshape) for step in interior)
    if not real and inner.isdisjoint(sources):
        return False
    shapes = [problem.view.shape(tensor) or () for tensor in (*sources, *inner)]
    open_size = 3 * open_unit(interior)
    largest = max(prod(open_size if n is None else n for n in shape) for shape in shapes)
    return largest > MAX_PROVED


def computed(interior: Sequence[Step]) -> set[str]:
    """What the nodes of a region compute, outputs included that its root does not depend on."""
    return {name for step in interior for name in step.node.outputs if name}


def open_unit(interior: Sequence[Step]) -> int:
    """The least size of open axes at which every Reshape of a region divides what it is given.

    Where the known sizes behind a Reshape have a product that those before it do not hold, the
    open ones before it are multiples of what is missing.
    """
    laws = [step.law for step in interior if isinstance(step.law, Reshape)]
    known = [[prod(n for n in shape if n) for shape in (law.before, law.after)] for law in laws]
    return lcm(*(after // gcd(before, after) for before, after in known))


def old_counts(interior: Sequence[Step], problem: Problem) -> Cost:
    """What a region's nodes cost now and would no longer cost, ``interior[-1]`` being its root.

    A node whose result something else needs stays, so it frees nothing.
    """
    root = interior[-1]
    return freed_counts(
        [s for s in interior if s is root or s.tensor not in problem.required], problem
    )


def freed_counts(steps: Sequence[Step], problem: Problem) -> Cost:
    """What dropping these nodes saves; a kernel that other convolutions use stays in the file."""
    total = Cost()
    kernels: dict[str, int] = {}
    for step in steps:
        price = problem.original_cost(step)
        if step.node.op_type in KERNELED:
            name = problem.kernel_name(step.node)
            kernels[name] = kernels.get(name, 0) + 1
            if kernels[name] != problem.kernel_users[name]:
                price = price.without_parameters()
        total += price
    return total


def conv_geometry(step: Step) -> Geometry | None:
    """The geometry of a step that is a Conv node."""
    if step.node.op_type in ("Conv", "ConvTranspose") and isinstance(step.law, Convolve):
        return step.law.kernel.geometry
    return None


def _affine(interior: Sequence[Step]) -> Affine:
    """A per-channel map stays what the region had it as."""
    geometries = [conv_geometry(step) for step in interior]
    if any(geometry is not None and geometry.per_channel for geometry in geometries):
        return "Conv"
    if any(step.node.op_type == "BatchNormalization" for step in interior):
        return "BatchNormalization"
    return "Mul"


def _collect(root: Step, is_cut: Callable[[str], bool], problem: Problem) -> dict[str, Step]:
    """The steps between ``root`` and the cuts, in topological order."""
    found = {root.tensor: root}
    stack = [root]
    while stack and len(found) < MAX_TENSORS:
        for name in stack.pop().lifted.operands:
            step = problem.steps.get(name)
            if step is not None and name not in found and not is_cut(name):
                found[name] = step
                stack.append(step)
    return dict(sorted(found.items(), key=lambda item: item[1].position))


def blocked(problem: Problem, cuts: set[str]) -> set[str]:
    """Tensors that no reader's law passes through, as far as one pass over all steps can tell.

    They stand whatever is chosen around them, so regions need not reach beyond them.
    """
    steps = dict(sorted(problem.steps.items(), key=lambda item: item[1].position))
    walk = _Forward("", steps, problem, problem.facts)
    readers: dict[str, list[str]] = {}
    for name, step in steps.items():
        form = walk.step(name, step)
        if form is not None and name not in cuts:
            walk.forms[name] = form
        for operand in step.lifted.operands:
            readers.setdefault(operand, []).append(name)
    return {
        name
        for name in walk.forms
        if not any(name in walk.through.get(reader, ()) for reader in readers.get(name, ()))
    }


class _Forward:
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
    if len(known) > 1:
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


def labels(interior: Sequence[Step]) -> tuple[str, ...]:
    """The names of the nodes of a region, each once."""
    return tuple(dict.fromkeys(step.node.label for step in interior))
