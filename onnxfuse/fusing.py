"""The pipeline: read → lift → plan → realise → splice → prove → report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import onnx

from onnxfuse import describe
from onnxfuse.errors import InputError, ProofError
from onnxfuse.lift import View
from onnxfuse.model import io, shapes, splice, tensors
from onnxfuse.model.constants import Constants, analyse
from onnxfuse.model.graph import Graph
from onnxfuse.model.shapes import Shape, Shapes
from onnxfuse.model.totals import count, macs
from onnxfuse.planning.problem import Problem
from onnxfuse.planning.region import Region
from onnxfuse.planning.search import refusals, solve
from onnxfuse.realise import NewNode, Replacement, realise
from onnxfuse.records import Counts, RegionError, RegionReport, Report, Verification
from onnxfuse.refusal import Code, Refusal
from onnxfuse.version import __version__

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose. ``only`` and ``without`` are globs over node names."""

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    input_shapes: Mapping[str, Shape] | None = None
    verify: bool = True

    def admits(self, label: str) -> bool:
        if any(fnmatchcase(label, pattern) for pattern in self.without):
            return False
        return not self.only or any(fnmatchcase(label, pattern) for pattern in self.only)


@dataclass(frozen=True, slots=True)
class Result:
    """A fused model and its report; ``data`` is what a file of it holds."""

    model: onnx.ModelProto
    report: Report
    data: bytes


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


def _size(loaded: io.Loaded, model: onnx.ModelProto | None = None, data: bytes = b"") -> int:
    """Bytes of a model with the external data it refers to."""
    files = io.data_files(model or loaded.model, loaded.base) if loaded.base else {}
    return len(data or loaded.data) + sum(place.stat().st_size for place in files.values())


def _quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def read(model: Any) -> io.Loaded:
    """A model from a path or a ModelProto, with the bytes it came from."""
    if isinstance(model, str | os.PathLike):
        return io.load(model)
    if isinstance(model, onnx.ModelProto):
        data = model.SerializeToString()
        return io.Loaded(io.parse(data, "the given model"), data, None)
    raise InputError(
        f"a {type(model).__name__} is not a model; pass a path, an onnx.ModelProto or a gs.Graph"
    )


def prepare(loaded: io.Loaded, options: Options) -> tuple[Graph, Shapes, Constants]:
    """Check a model and index it."""
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
        problem = Problem(view, options.admits, pinned)
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


def _draft(region: Region) -> Replacement:
    """A replacement that only says which tensors it reads."""
    assert region.cover is not None
    names = tuple(region.cover.form.sources)
    return Replacement(region, (NewNode("", "", names, region.root.tensor),), {}, {})


def plan_model(model: Any, options: Options) -> Report:
    """What would be done to a model and why not, reading no kernel."""
    loaded = read(model)
    graph, found, constants = prepare(loaded, options)
    plan = make_plan(graph, found, constants, options)
    before = count(graph, found, constants, _size(loaded))
    records = tuple(describe.region(region, plan.problem, None) for region in plan.replaced)
    after = _planned_counts(before, plan, records)
    return Report(
        __version__, True, records, tuple(refusals(plan.regions, plan.problem)),
        before, after, None, found.assumed,
    )  # fmt: skip


def _planned_counts(before: Counts, plan: Plan, records: Sequence[RegionReport]) -> Counts:
    """The totals a plan leads to; the file's size is not known before weights are."""
    dead = splice.dead_nodes(plan.graph, [_draft(region) for region in plan.replaced])
    gone = {
        name
        for index in dead
        for name in plan.graph.nodes[index].outputs
        if plan.graph.nodes[index].op_type == "Constant"
    } | splice.unused_initializers(plan.graph, dead)
    freed = sum(describe.parameters(name, plan.problem) for name in gone)
    new = sum(record.after.nodes for record in records)
    kinds = [plan.graph.nodes[index].op_type for index in dead]
    return Counts(
        nodes=before.nodes - len(dead) + new,
        conv=before.conv - kinds.count("Conv") + sum(r.after.conv for r in records),
        batch_normalization=before.batch_normalization
        - kinds.count("BatchNormalization")
        + sum(r.after.batch_normalization for r in records),
        parameters=before.parameters - freed + sum(r.after.parameters for r in records),
        macs=before.macs
        - sum(macs(plan.graph.nodes[i], plan.shapes, plan.constants) for i in dead)
        + sum(r.after.macs for r in records),
        bytes=0,
    )


def fuse_model(model: Any, options: Options, progress: Progress = _quiet) -> Result:
    """Fuse a model and prove the result; raises `ProofError` where that fails."""
    loaded = read(model)
    graph, found, constants = prepare(loaded, options)
    before = count(graph, found, constants, _size(loaded))
    plan, replacements, overflows = _realised(graph, found, constants, options, progress)
    left = tuple(overflows + refusals(plan.regions, plan.problem))
    if not replacements:
        report = Report(
            __version__, False, (), left, before, before,
            Verification("skipped", notes=("nothing was fused",)), found.assumed,
        )  # fmt: skip
        return Result(loaded.model, report, loaded.data)
    errors = _prove(replacements, plan, progress)
    records = tuple(
        describe.region(r.region, plan.problem, e)
        for r, e in zip(replacements, errors, strict=True)
    )
    fused = _spliced(loaded.model, plan, replacements)
    data = io.serialise(fused)
    verification = Verification("skipped", notes=("--no-verify was given",))
    if options.verify:
        verification = _verify_whole(loaded, fused, plan, replacements, errors, options, progress)
    after_graph, after_shapes, after_constants = _indexed(fused, loaded, options)
    after = count(after_graph, after_shapes, after_constants, _size(loaded, fused, data))
    report = Report(__version__, False, records, left, before, after, verification, found.assumed)
    return Result(fused, report, data)


def _indexed(
    fused: onnx.ModelProto, loaded: io.Loaded, options: Options
) -> tuple[Graph, Shapes, Constants]:
    graph = Graph(fused)
    return graph, *analyse(graph, loaded.base, dict(options.input_shapes or {}))


def _realised(
    graph: Graph, found: Shapes, constants: Constants, options: Options, progress: Progress
) -> tuple[Plan, list[Replacement], list[Refusal]]:
    """The plan with its weights; a region whose weights overflow is forbidden and replanned."""
    forbidden: frozenset[str] = frozenset()
    overflows: list[Refusal] = []
    while True:
        plan = make_plan(graph, found, constants, options, forbidden)
        fresh = splice.fresh_names(graph)
        made: list[Replacement] = []
        bad: set[str] = set()
        for index, region in enumerate(plan.replaced):
            progress("fusing", index, len(plan.replaced))
            replacement = realise(region, fresh, graph.opset, plan.problem.facts)
            kind = found.type_of(replacement.root)
            if splice.overflowing(replacement, kind) is None:
                made.append(replacement)
                continue
            bad.add(replacement.root)
            overflows.append(
                Refusal(
                    Code.OVERFLOW,
                    "the fused weights are not finite in the model's type",
                    region.root.node.label,
                )
            )
        if not bad:
            return plan, made, overflows
        forbidden |= bad


def _prove(
    replacements: Sequence[Replacement], plan: Plan, progress: Progress
) -> list[RegionError]:
    from onnxfuse.verify.region import prove

    errors = []
    for index, replacement in enumerate(replacements):
        progress("proving", index, len(replacements))
        kind = plan.shapes.type_of(replacement.root)
        errors.append(prove(replacement, plan.view, tensors.dtype_of(kind), tensors.FLOATS[kind]))
    return errors


def _spliced(
    model: onnx.ModelProto, plan: Plan, replacements: Sequence[Replacement]
) -> onnx.ModelProto:
    from onnxfuse.model.build import node_protos

    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    splice.splice(fused, plan.graph, plan.shapes, replacements, node_protos, __version__)
    try:
        shapes.check(Graph(fused))
    except InputError as error:
        raise ProofError(f"the fused model is not valid: {error}; please report this") from error
    return fused


def _verify_whole(
    loaded: io.Loaded,
    fused: onnx.ModelProto,
    plan: Plan,
    replacements: Sequence[Replacement],
    errors: Sequence[RegionError],
    options: Options,
    progress: Progress,
) -> Verification:
    from onnxfuse.verify.whole import Subject, verify

    regions = {
        r.root: (tuple(r.region.cover.form.sources) if r.region.cover else (), e.rms_fused)
        for r, e in zip(replacements, errors, strict=True)
    }
    base = None if loaded.base is None else str(loaded.base.resolve())
    subject = Subject(loaded.model, fused, plan.graph, plan.shapes.types, regions, base)
    return verify(
        subject, dict(options.input_shapes or {}), lambda text: progress(f"running {text}", 0, 0)
    )
