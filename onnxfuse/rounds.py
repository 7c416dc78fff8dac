"""Rounds of planning and replacing, until nothing is left to gain.

Each round takes the layout of operators first, so that Transposes stand in nobody's way, then
plans, realises and splices. A round without result is the last. What a model holds below its main
graph is for `onnxfuse.scopes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxfuse import forked, threaded
from onnxfuse.emit import NewNode, Weight
from onnxfuse.errors import InputError, OnnxfuseError, ProofError
from onnxfuse.lift import View
from onnxfuse.model import io, shapes, splice, tensors
from onnxfuse.model.constants import Constants, analyse
from onnxfuse.model.graph import Graph
from onnxfuse.model.shapes import Shape, Shapes
from onnxfuse.model.store import Memory, Store
from onnxfuse.options import Options
from onnxfuse.planning.cost import POLICIES
from onnxfuse.planning.problem import Problem
from onnxfuse.planning.reasons import refusals
from onnxfuse.planning.region import Region
from onnxfuse.planning.search import solve
from onnxfuse.realise import Replacement, realise
from onnxfuse.refusal import Code, Refusal
from onnxfuse.version import __version__
from onnxfuse.watch import Watch

if TYPE_CHECKING:  # few models have layouts to choose, and it takes a while to load
    from onnxfuse.layout import Relaid

KEPT = 1 << 20
"""Elements of fused weights that are kept in float64 from round to proof. More are folded again,
which takes no longer than the system takes to clear memory for them."""
MAX_PASSES = 8
"""Rounds of planning; each lowers the estimate, so a few reach the end."""

Index = tuple[Graph, Shapes, Constants]


@dataclass(frozen=True, slots=True)
class Plan:
    """A model's index with the regions chosen for it."""

    graph: Graph
    shapes: Shapes
    constants: Constants
    view: View
    problem: Problem
    regions: dict[str, Region]

    @property
    def replaced(self) -> list[Region]:
        return [region for region in self.regions.values() if region.replaced]


def size_of(loaded: io.Loaded) -> int:
    """Bytes of a model with the external data it refers to."""
    return len(loaded.data) + data_size(loaded.model, loaded.base)


def data_size(model: onnx.ModelProto, base: Path | None, own: str = "") -> int:
    """Bytes of the external data that a model refers to, but for that in the file ``own``."""
    files = io.data_files(model, base, own) if base else {}
    return sum(place.stat().st_size for place in files.values())


def prepare(loaded: io.Loaded, options: Options) -> tuple[Graph, Shapes, Constants]:
    """Check a model and index it; whatever is wrong with it is an `InputError`."""
    try:
        return _prepared(loaded, options)
    except OnnxfuseError:
        raise
    except Exception as error:
        raise InputError(f"the model cannot be analysed: {detail(error)}") from error


def detail(error: Exception) -> str:
    """What an error says, in one line of some length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _prepared(loaded: io.Loaded, options: Options) -> tuple[Graph, Shapes, Constants]:
    graph = Graph(loaded.model)
    for tensor in loaded.model.graph.initializer:
        tensors.check_size(tensor)
    if loaded.base is not None:
        io.data_files(loaded.model, loaded.base)
    shapes.check(graph)
    wanted = dict(options.input_shapes or {})
    _check_input_shapes(graph, wanted)
    found, constants = analyse(graph, loaded.base, wanted)
    return graph, found, constants


def _check_input_shapes(graph: Graph, wanted: Mapping[str, Shape]) -> None:
    values = {v.name: v for v in graph.model.graph.input if v.name not in graph.initializers}
    for name, shape in wanted.items():
        if name not in values:
            raise InputError(
                f"the model has no input {name!r}; its inputs are {', '.join(map(repr, values))}"
            )
        dims = values[name].type.tensor_type.shape.dim
        if len(dims) != len(shape):
            raise InputError(f"input {name!r} has {len(dims)} dimensions, not {len(shape)}")
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            if dim.dim_value > 0 and dim.dim_value != size:
                raise InputError(
                    f"dimension {axis} of input {name!r} is {dim.dim_value} in the model, "
                    f"not {size}"
                )


def make_plan(
    graph: Graph,
    found: Shapes,
    constants: Constants,
    options: Options,
    forbidden: frozenset[str] = frozenset(),
) -> Plan:
    """Choose the regions. A producer that turns out to be needed after all is planned as such."""
    view = View(graph, found, constants)
    pinned: frozenset[str] = frozenset()
    while True:
        problem = Problem(
            view,
            options.admits,
            pinned,
            interior_only=options.approximate_borders,
            keep_post_bn=options.keep_post_bn,
            policy=POLICIES[options.policy],
        )
        plan = Plan(graph, found, constants, view, problem, solve(problem, forbidden))
        survivors = _survivors(plan)
        if survivors <= pinned:
            return plan
        pinned |= survivors


def _survivors(plan: Plan) -> frozenset[str]:
    """Tensors inside regions whose nodes would stay alive because something else reads them."""
    drafts = [_draft(region) for region in plan.replaced]
    dead = splice.dead_nodes(plan.graph, drafts)
    return frozenset(
        step.tensor
        for region in plan.replaced
        for step in region.interior
        if step.node.index not in dead and step.tensor not in plan.regions
    )


def dropped(plan: Plan) -> set[str]:
    """The initializers that nothing reads any more once a plan is carried out."""
    drafts = [_draft(region) for region in plan.replaced]
    read = {name for draft in drafts for new in draft.nodes for name in new.inputs}
    return splice.unused_initializers(plan.graph, splice.dead_nodes(plan.graph, drafts)) - read


def _draft(region: Region) -> Replacement:
    """A replacement that only says which tensors it reads."""
    assert region.cover is not None
    names = tuple(region.cover.form.sources)
    return Replacement(region, (NewNode("", "", names, region.root.tensor),), {}, {})


@dataclass(frozen=True, slots=True)
class Pass:
    """One round of planning and replacing; ``overflows`` are regions it had to leave."""

    plan: Plan
    replacements: list[Replacement]
    overflows: list[Refusal]


@dataclass(slots=True)
class Given:
    """What every round is given. ``dry`` reads no kernel: constants have shapes only.

    ``pending`` are the constants that rounds have made, which no file holds yet; what is written
    of them goes to the ``store``. ``planned`` is told of the first plan there is.
    """

    options: Options
    watch: Watch
    dry: bool
    pending: dict[str, Weight]
    store: Store = field(default_factory=Memory)
    planned: Callable[[Plan], None] | None = None


@dataclass(slots=True)
class Rounds:
    """All rounds on one graph, and the index it had. ``where`` is empty for the main graph."""

    original: Index
    where: str = ""
    passes: list[Pass] = field(default_factory=list)
    laid: list[Relaid] = field(default_factory=list)

    @property
    def problem(self) -> Problem:
        """The graph as it was given, or as it was once its layout was chosen."""
        return self.passes[0].plan.problem

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why places of the given model were left alone."""
        first = self.passes[0]
        return tuple(first.overflows + refusals(first.plan.regions, first.plan.problem))

    @property
    def reordered(self) -> set[str]:
        """Results of sums whose terms another layout takes in another order."""
        if not self.laid:
            return set()
        from onnxfuse.layout.rules import REORDERING

        return {
            laid.view.graph.nodes[index].outputs[0]
            for laid in self.laid
            for index in laid.edits.moved
            if laid.view.graph.nodes[index].op_type in REORDERING
        }

    @property
    def origin(self) -> dict[str, str]:
        """The given model's tensor that a tensor holds in another layout."""
        found: dict[str, str] = {}
        for laid in self.laid:
            found |= {new: found.get(old, old) for new, old in laid.edits.origin.items()}
        return found

    def run(
        self,
        model: onnx.ModelProto,
        index: Index,
        analysed: Callable[[onnx.ModelProto], Index],
        given: Given,
    ) -> tuple[onnx.ModelProto, Index]:
        """Plan and replace until nothing is left to gain; the given model where nothing is.

        Most models need one round.
        """
        for _ in range(MAX_PASSES):
            given.watch.enter("plan")
            for _ in range(MAX_PASSES):  # groups may meet once others have moved
                moved = _relaid(model, View(*index), given.options)
                if moved is None:
                    break
                self.laid.append(moved)
                model = valid(moved.model, index[0])
                index = analysed(model)
                given.watch.enter("plan")
            found = _one_pass(*index, given)
            self.passes.append(found)
            if not found.replacements:
                break
            given.watch.enter("splice")
            model = _spliced(model, found, given)
            for replacement in found.replacements:
                given.pending.update(replacement.weights)
            index = analysed(model)
        return model, index


def _relaid(model: onnx.ModelProto, view: View, options: Options) -> Relaid | None:
    """A copy of a model with fewer Transposes; ``None`` where it has none to save."""
    if not any(node.op_type == "Transpose" for node in view.graph.nodes):
        return None
    from onnxfuse.layout import relaid

    return relaid(model, view, options.admits, _build)


def _build(nodes: list[NewNode]) -> list[onnx.NodeProto]:
    from onnxfuse.model.build import node_protos

    return node_protos(nodes) if nodes else []


def _one_pass(graph: Graph, found: Shapes, constants: Constants, given: Given) -> Pass:
    """The plan with its operators; a region whose weights overflow is forbidden and replanned."""
    store = given.store if _stores_apart(graph) else Memory()
    mark = store.mark()
    forbidden: frozenset[str] = frozenset()
    overflows: list[Refusal] = []
    while True:
        given.watch.enter("plan")
        plan = make_plan(graph, found, constants, given.options, forbidden)
        if given.planned is not None:
            given.planned(plan)
            given.planned = None
        given.watch.enter("fold")
        fresh = splice.fresh_names(graph)
        made = [realise(region, fresh, graph.opset, plan.problem.facts) for region in plan.replaced]
        bad = [] if given.dry else _stored(made, found, store, given)
        if not bad:
            return Pass(plan, made, overflows)
        overflows += (
            Refusal(
                Code.OVERFLOW,
                "the fused weights are not finite in the model's type",
                replacement.region.root.node.label,
            )
            for replacement in bad
        )
        forbidden |= {replacement.root for replacement in bad}
        store.back_to(mark)


def _stored(
    made: Sequence[Replacement], found: Shapes, store: Store, given: Given
) -> list[Replacement]:
    """Fold the weights, round them to the model's type and store them.

    Gives the replacements of which some are not finite. Room is made for all of them first, as the
    work is shared: that on what goes to a file among processes.
    """
    types = [tensors.dtype_of(found.type_of(replacement.root)) for replacement in made]
    near: list[list[Weight]] = []
    apart: list[list[Weight]] = []
    for replacement, kind in zip(made, types, strict=True):
        places = [(weight, store.place(weight, kind)) for weight in replacement.weights.values()]
        near.append([weight for weight, shared in places if not shared])
        apart.append([weight for weight, shared in places if shared])
    sums = list(accumulate(replacement.size for replacement in made))

    def kept(weights: Sequence[Sequence[Weight]], index: int) -> bool:
        with np.errstate(all="ignore"):  # in whatever thread this is
            good = all(store.keep(weight, types[index]) for weight in weights[index])
        made[index].memo.clear()
        if sums[index] > KEPT:
            made[index].forget()
        return good

    good = [True] * len(made)
    show = partial(given.watch.show, "fusing")
    for weights, each in ((near, threaded.each), (apart, forked.each)):
        sizes = [sum(weight.size for weight in some) for some in weights]
        stored = each(partial(kept, weights), range(len(made)), sizes, given.options.workers, show)
        good = [all(pair) for pair in zip(good, stored, strict=True)]
    return [replacement for replacement, fine in zip(made, good, strict=True) if not fine]


def _stores_apart(graph: Graph) -> bool:
    """Whether new weights may lie in a data file: initializers of the main graph may."""
    return graph.outside is None and graph.model.ir_version >= tensors.FREE_INITIALIZERS


def _spliced(model: onnx.ModelProto, found: Pass, given: Given) -> onnx.ModelProto:
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    splice.splice(
        fused,
        found.plan.graph,
        found.plan.shapes,
        found.replacements,
        _build,
        __version__,
        dry=given.dry,
        location=given.store.location,
    )
    return valid(fused, found.plan.graph)


def marked(model: onnx.ModelProto, passes: Sequence[Pass]) -> onnx.ModelProto:
    """``model`` with a note of its approximate regions in its metadata."""
    regions = [r.region for one in passes for r in one.replacements]
    count = sum(r.cover is not None and r.cover.form.interior_only for r in regions)
    if not count:
        return model
    text = f"{__version__}: approximate borders in {count} region{'s' * (count > 1)}"
    return splice.noted(model, text)


def valid(model: onnx.ModelProto, before: Graph) -> onnx.ModelProto:
    """``model``, if it is valid and its nodes are in order where they were."""
    try:
        graph = Graph(model, before.outside)
        shapes.check(graph)
        if before.order == before.nodes and graph.order != graph.nodes:
            raise InputError("its nodes are out of order")
    except InputError as error:
        raise ProofError(f"the fused model is not valid: {error}; please report this") from error
    return model
