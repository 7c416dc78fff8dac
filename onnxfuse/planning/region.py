"""A region: one tensor as an expression over the tensors where it was cut.

`expand` walks back from a root to the nearest cuts, then applies the laws forward. Where a law
does not hold, the operand is cut there for that reader, and the refusal is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, lcm, prod

from onnxfuse.algebra.borders import without_border
from onnxfuse.algebra.form import Facts, Form, interior
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.algebra.laws import Convolve
from onnxfuse.algebra.reshaping import Reshape
from onnxfuse.algebra.source import Source
from onnxfuse.planning.cost import Cost
from onnxfuse.planning.cover import cover
from onnxfuse.planning.forward import Forward
from onnxfuse.planning.problem import Problem, Step
from onnxfuse.planning.written import KERNELED, Affine, Cover, operators
from onnxfuse.refusal import Code, Refusal

MAX_TENSORS = 4096
"""Regions are cut at this many tensors."""
MAX_PROVED = 1 << 25
"""Elements of the largest tensor that a region is proved with where its size is fixed."""


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
    def computed(self) -> set[str]:
        """What its nodes compute, outputs included that its root does not depend on."""
        return computed(self.interior)

    @property
    def open_unit(self) -> int:
        """The least size of open axes that its Reshapes divide."""
        return open_unit(self.interior)

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
    walk = Forward(root.tensor, inside, problem, facts)
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

    They stand whatever is chosen around them, so regions need not reach beyond them. Those that no
    law gives a form are among them.
    """
    steps = dict(sorted(problem.steps.items(), key=lambda item: item[1].position))
    walk = Forward("", steps, problem, problem.facts)
    readers: dict[str, list[str]] = {}
    for name, step in steps.items():
        form = walk.step(name, step)
        if form is not None and name not in cuts:
            walk.forms[name] = form
        for operand in step.lifted.operands:
            readers.setdefault(operand, []).append(name)
    return {
        name
        for name in steps
        if name not in cuts
        and not any(name in walk.through.get(reader, ()) for reader in readers.get(name, ()))
    }


def labels(interior: Sequence[Step]) -> tuple[str, ...]:
    """The names of the nodes of a region, each once."""
    return tuple(dict.fromkeys(step.node.label for step in interior))
