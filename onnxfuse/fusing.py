"""The pipeline: read → lift → plan → realise → splice → prove → report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import onnx

from onnxfuse import describe
from onnxfuse.errors import InputError, OnnxfuseError, ProofError
from onnxfuse.lift import View
from onnxfuse.model import io, shapes, splice, tensors
from onnxfuse.model.constants import Constants, analyse
from onnxfuse.model.graph import Graph
from onnxfuse.model.shapes import Shape, Shapes
from onnxfuse.model.totals import count
from onnxfuse.planning.problem import Problem
from onnxfuse.planning.reasons import refusals
from onnxfuse.planning.region import Region
from onnxfuse.planning.search import solve
from onnxfuse.realise import NewNode, Replacement, Weight, realise
from onnxfuse.records import Counts, RegionError, RegionReport, Report, Verification
from onnxfuse.refusal import Code, Refusal
from onnxfuse.version import __version__

Progress = Callable[[str, int, int], None]
MAX_PASSES = 8
"""Rounds of planning; each lowers the estimate, so a few reach the end."""


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
    """Check a model and index it; whatever is wrong with it is an `InputError`."""
    try:
        return _prepared(loaded, options)
    except OnnxfuseError:
        raise
    except Exception as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"the model cannot be analysed: {detail}") from error


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


@dataclass(frozen=True, slots=True)
class Pass:
    """One round of planning and replacing; ``overflows`` are regions it had to leave."""

    plan: Plan
    replacements: list[Replacement]
    overflows: list[Refusal]


@dataclass(frozen=True, slots=True)
class Work:
    """All rounds on a model: its totals before, and the result with its index."""

    passes: list[Pass]
    model: onnx.ModelProto
    before: Counts
    index: tuple[Graph, Shapes, Constants]

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why places of the given model were left alone."""
        first = self.passes[0]
        return tuple(first.overflows + refusals(first.plan.regions, first.plan.problem))


def work(loaded: io.Loaded, options: Options, progress: Progress, *, dry: bool) -> Work:
    """Plan and replace until nothing is left to gain, so that a second run changes nothing.

    Most models need one round. ``dry`` reads no kernel: constants have shapes only.
    """
    index = prepare(loaded, options)
    before = count(*index, _size(loaded))
    model = loaded.model
    pending: dict[str, Weight] = {}
    passes: list[Pass] = []
    for _ in range(MAX_PASSES):
        found = _one_pass(*index, options, progress, dry=dry)
        passes.append(found)
        if not found.replacements:
            break
        model = _spliced(model, found, dry=dry)
        for replacement in found.replacements:
            pending.update(replacement.weights)
        graph = Graph(model)
        sizes = dict(options.input_shapes or {})
        index = (graph, *analyse(graph, loaded.base, sizes, pending))
    return Work(passes, model, before, index)


def _one_pass(
    graph: Graph,
    found: Shapes,
    constants: Constants,
    options: Options,
    progress: Progress,
    *,
    dry: bool,
) -> Pass:
    """The plan with its operators; a region whose weights overflow is forbidden and replanned."""
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
            made.append(replacement)
            kind = found.type_of(replacement.root)
            if not dry and splice.overflowing(replacement, kind) is not None:
                bad.add(replacement.root)
                overflows.append(
                    Refusal(
                        Code.OVERFLOW,
                        "the fused weights are not finite in the model's type",
                        region.root.node.label,
                    )
                )
        if not bad:
            return Pass(plan, made, overflows)
        forbidden |= bad


def plan_model(model: Any, options: Options) -> Report:
    """What would be done to a model and why not, reading no kernel."""
    loaded = read(model)
    done = work(loaded, options, _quiet, dry=True)
    records = tuple(
        describe.region(replacement.region, one.plan.problem, None)
        for one in done.passes
        for replacement in one.replacements
    )
    after = count(*done.index, 0)
    assumed = done.passes[0].plan.shapes.assumed
    return Report(__version__, True, records, done.refusals, done.before, after, None, assumed)


def fuse_model(model: Any, options: Options, progress: Progress = _quiet) -> Result:
    """Fuse a model and prove the result; raises `ProofError` where that fails."""
    loaded = read(model)
    done = work(loaded, options, progress, dry=False)
    records: list[RegionReport] = []
    for one in done.passes:
        errors = _prove(one, progress)
        records += (
            describe.region(replacement.region, one.plan.problem, error)
            for replacement, error in zip(one.replacements, errors, strict=True)
        )
    data = io.serialise(done.model) if records else loaded.data
    verification = Verification("skipped", notes=("nothing was fused",))
    if records:
        verification = Verification("skipped", notes=("--no-verify was given",))
    if records and options.verify:
        verification = _verify_whole(loaded, done, records, options, progress)
    after = done.before
    if records:
        size = _size(loaded, done.model, data)
        after = count(*done.index, size)
    assumed = done.passes[0].plan.shapes.assumed
    report = Report(
        __version__, False, tuple(records), done.refusals, done.before, after, verification, assumed
    )
    return Result(done.model, report, data)


def _prove(found: Pass, progress: Progress) -> list[RegionError]:
    if not found.replacements:
        return []
    from onnxfuse.verify.region import prove

    errors = []
    for index, replacement in enumerate(found.replacements):
        progress("proving", index, len(found.replacements))
        kind = found.plan.shapes.type_of(replacement.root)
        dtype, roundoff = tensors.dtype_of(kind), tensors.FLOATS[kind]
        errors.append(prove(replacement, found.plan.view, dtype, roundoff))
    return errors


def _spliced(model: onnx.ModelProto, found: Pass, *, dry: bool) -> onnx.ModelProto:
    from onnxfuse.model.build import node_protos

    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    splice.splice(
        fused,
        found.plan.graph,
        found.plan.shapes,
        found.replacements,
        node_protos,
        __version__,
        dry=dry,
    )
    try:
        shapes.check(Graph(fused))
    except InputError as error:
        raise ProofError(f"the fused model is not valid: {error}; please report this") from error
    return fused


def _verify_whole(
    loaded: io.Loaded,
    done: Work,
    records: Sequence[RegionReport],
    options: Options,
    progress: Progress,
) -> Verification:
    from onnxfuse.verify.whole import Subject, verify

    plan = done.passes[0].plan
    present = plan.graph.producer.keys() | plan.graph.inputs_set
    measured = {
        r.root: max(r.error.rms_original, r.error.rms_fused) for r in records if r.error is not None
    }
    regions = {
        r.root: (tuple(present & set(r.region.sources)), measured[r.root])
        for one in done.passes
        for r in one.replacements
        if r.root in present
    }
    base = None if loaded.base is None else str(loaded.base.resolve())
    subject = Subject(loaded.model, done.model, plan.graph, plan.shapes.types, regions, base)
    return verify(
        subject, dict(options.input_shapes or {}), lambda text: progress(f"running {text}", 0, 0)
    )
