"""Everything that must hold of one model and its fused form.

Fusing never fails, changes nothing it was given, keeps the outputs and the interface, costs no
more than before, agrees with the plan, and has nothing left to do the second time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from comparing import (
    ROUNDOFF,
    Feeds,
    Rejected,
    differing,
    feeds_kind,
    feeds_of,
    inferred,
    rms,
    runner,
)
from onnx import ModelProto

import onnxfuse
from onnxfuse.lift import View
from onnxfuse.model.constants import analyse
from onnxfuse.model.graph import Graph
from onnxfuse.model.walk import inner_nodes
from onnxfuse.planning.known import SPARE
from onnxfuse.planning.problem import Problem
from onnxfuse.records import RegionReport, Report
from onnxfuse.refusal import Code

SIMPLE = {"Conv", "Add", "BatchNormalization", "Mul", "Identity", "Constant", "AveragePool"}
"""What a model that is one region in its interior consists of once it is fused."""
SIZING = 6
"""Nodes that compute the size of a plane of ones and expand it: they do not work on images."""


@dataclass(frozen=True)
class Finding:
    """Something that does not hold: ``kind`` is the same for failures of one class."""

    kind: str
    text: str

    @property
    def severity(self) -> int:
        """Smaller is worse: wrong or broken models, then growth, then reports."""
        ranks = ["differ", "rejects", "Error", "checker", "changed", "grow", "idempotent", "plan"]
        return next((i for i, word in enumerate(ranks) if word in self.kind), len(ranks))


@dataclass
class Outcome:
    """What came of one seed; ``valid`` is false where the original model cannot be run."""

    seed: int
    valid: bool = True
    findings: list[Finding] = field(default_factory=list)
    report: Report | None = None
    runs: int = 0
    empty: int = 0


def weight_elements(model: ModelProto) -> int:
    """The elements of all kernels, one that several operators share counted once."""
    producers = {out: node for node in model.graph.node for out in node.output}
    sizes = {t.name: prod(t.dims) for t in model.graph.initializer}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        name = node.input[1]
        while name in producers and producers[name].op_type in ("Identity", "Transpose"):
            name = producers[name].input[0]
        source = name
        while source in producers and producers[source].op_type != "Constant":
            source = producers[source].input[0]
        if source in producers:
            found[name] = prod(producers[source].attribute[0].t.dims)
        else:
            found[name] = sizes.get(source, 0)
    return sum(found.values())


def estimate(model: ModelProto, given: Mapping[str, Any]) -> int | None:
    """The estimated time of all linear operators, ``None`` where a size is not even guessed."""
    graph = Graph(model)
    view = View(graph, *analyse(graph, None, given.get("input_shapes") or {}))
    problem = Problem(view, lambda label: True)
    if any(None in view.shapes.nominal.get(tensor, (None,)) for tensor in problem.steps):
        return None
    return sum(problem.original_cost(step).time for step in problem.steps.values())


def region_key(region: RegionReport) -> tuple[Any, ...]:
    """What a plan and a fusion must say alike of a region."""
    after = region.after
    return region.root, region.before, (after.nodes, after.conv, after.parameters, after.macs)


def examine_approximate(model: ModelProto, nominal: Mapping[str, int], seed: int) -> Outcome:
    """What must hold where merges that are wrong at the border are taken.

    Fusing never fails and marks the model if, and only if, something is approximate. What is not
    is equal; and where one region makes all of the model, its interior is.
    """
    outcome = Outcome(seed)
    found = outcome.findings
    try:
        original = runner(model)
        feeds = list(feeds_of(model, nominal, seed))
        expected = [original(feeds[0])]
    except Rejected:
        outcome.valid = False
        return outcome
    try:
        fused, report = onnxfuse.fuse(model, verify=bool(seed % 2), approximate_borders=True)
        planned = onnxfuse.plan(model, approximate_borders=True)
    except Exception as error:
        text = f"approximate fuse raised {type(error).__name__}: {error}"
        found.append(Finding(f"approximate {_class_of(error)}", text))
        return outcome
    outcome.report = report
    approximate = any(region.approximate for region in report.regions)
    marked = any("approximate" in entry.value for entry in fused.metadata_props)
    if marked != approximate:
        found.append(Finding("approximate mark", f"marked {marked}, approximate {approximate}"))
    overflows = any(refusal.code == Code.OVERFLOW for refusal in report.refusals)
    if not overflows and [r.approximate for r in planned.regions] != [
        r.approximate for r in report.regions
    ]:
        found.append(Finding("approximate plan", "plan and fuse differ"))
    found += _counts(model, fused, report)
    found += _valid(model, fused)
    for feed in feeds:
        try:
            known = expected.pop() if expected else original(feed)
        except Rejected:
            continue
        if approximate:
            wrong = list(_equal_inside(model, fused, feed, known, report))
        else:
            wrong = list(_equal(model, fused, feed, known))
        if wrong and _meets_nothing(model, feed):
            outcome.empty += 1
            continue
        found += wrong
        outcome.runs += 1
    return outcome


def _equal_inside(
    model: ModelProto, fused: ModelProto, feeds: Feeds, expected: Sequence[Any], report: Report
) -> Iterator[Finding]:
    """Shapes; and values in the interior, where one region stands between input and output.

    The interior is where the original answers inputs of zeros and of ones as it does in most
    places: a window that meets a border sees less there, unless it weighs nothing.
    """
    try:
        actual = runner(fused)(feeds)
    except Rejected as error:
        yield Finding("fused rejects", str(error).strip().splitlines()[0])
        return
    for index, (o, f) in enumerate(zip(expected, actual, strict=True)):
        if o.shape != f.shape or o.dtype != f.dtype:
            yield Finding("shape differs", f"output {index}: {f.shape} instead of {o.shape}")
            return
    produced = {out for node in fused.graph.node for out in node.output}
    sizes = [node.op_type for node in fused.graph.node if node.op_type not in SIMPLE]
    alone = len(report.regions) == 1 and not sizes and len(feeds) == 1 and len(expected) == 1
    if any(node.op_type == "AveragePool" for node in model.graph.node):
        return  # one that leaves padding out answers even inputs evenly
    if not alone or report.regions[0].root not in produced or expected[0].ndim < 3:
        return
    (feed,), run, kinds = feeds.items(), runner(model), []
    for value in (0.0, 1.0):
        flat = run({feed[0]: np.full_like(feed[1], value)})[0].astype(np.float64)
        kinds.append(np.round(flat / (rms(flat) + 1e-9), 3))
    flat = np.concatenate(kinds, 1).reshape(len(kinds[0]), -1, prod(kinds[0].shape[2:]))
    _, group, count = np.unique(flat, axis=2, return_inverse=True, return_counts=True)
    inside, other = expected[0].astype(np.float64), actual[0].astype(np.float64)
    difference = (other - inside).reshape(*inside.shape[:2], -1)
    errors = [rms(difference[:, :, group == most]) for most in np.flatnonzero(count == count.max())]
    if min(errors) > 2**12 * ROUNDOFF[expected[0].dtype.name] * (rms(inside) + 1e-3):
        yield Finding("interior differs", f"by rms {min(errors):.3g} at rms {rms(inside):.3g}")


def examine(model: ModelProto, nominal: Mapping[str, int], seed: int, *, full: bool) -> Outcome:
    """Everything that must hold of one model.

    Without ``full``, the checks that fuse or plan once more are made for a quarter of the seeds
    each, odd ones and even ones: the odd ones give the sizes of the inputs.
    """
    outcome = Outcome(seed)
    found = outcome.findings
    try:
        original = runner(model)
        feeds = list(feeds_of(model, nominal, seed))
        expected = [original(feeds[0])]
    except Rejected:
        outcome.valid = False
        return outcome
    data = model.SerializeToString()
    given = {"input_shapes": shapes_of(model, nominal) if seed % 2 else {}}
    try:
        fused, report = onnxfuse.fuse(model, verify=full, **given)
    except Exception as error:
        found.append(Finding(_class_of(error), f"fuse raised {type(error).__name__}: {error}"))
        return outcome
    outcome.report = report
    if model.SerializeToString() != data:
        found.append(Finding("input changed", "the given model was changed in place"))
    if full or seed // 2 % 4 == 0:
        found += _planned(model, report, given, bool(seed % 2) or not nominal)
    if not report.changed:
        if fused.SerializeToString() != data:
            found.append(Finding("copy differs", "nothing was fused, yet the bytes differ"))
        return outcome
    found += _counts(model, fused, report)
    if not any(_moves_only(region) for region in report.regions):
        before, after = estimate(model, given), estimate(fused, given)
        if before is not None and after is not None and after > before:
            found.append(Finding("estimates grow", f"from {before} to {after}"))
    found += _valid(model, fused)
    for feed in feeds:
        try:
            known = expected.pop() if expected else original(feed)
        except Rejected:
            continue
        wrong = list(_equal(model, fused, feed, known))
        if wrong and _meets_nothing(model, feed):
            outcome.empty += 1
            continue
        found += wrong
        outcome.runs += 1
    if full or seed // 2 % 4 == 2:
        found += _again(fused, given)
    if full and onnxfuse.fuse(model, **given)[0].SerializeToString() != fused.SerializeToString():
        found.append(Finding("not deterministic", "fusing twice gives different bytes"))
    return outcome


def _class_of(error: Exception) -> str:
    """An error's text without what differs from model to model."""
    text = re.sub(r"'[^']*'|\[[^]]*\]|\([\d, ]*\)|[-+\d.e]*\d", "…", str(error))
    return f"{type(error).__name__}: {text[:48]}{' nan' * ('nan' in text)}"


def shapes_of(model: ModelProto, nominal: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The inputs' shapes at the nominal sizes."""
    stored = {t.name for t in model.graph.initializer}
    return {
        v.name: tuple(
            nominal[d.dim_param] if d.dim_param else d.dim_value
            for d in v.type.tensor_type.shape.dim
        )
        for v in model.graph.input
        if v.name not in stored
    }


def _planned(
    model: ModelProto, report: Report, given: dict[str, Any], sized: bool
) -> Iterator[Finding]:
    """``sized`` says that the counts are at sizes for which the model is valid."""
    try:
        planned = onnxfuse.plan(model, **given)
    except Exception as error:
        yield Finding(f"plan {_class_of(error)}", f"plan raised {type(error).__name__}: {error}")
        return
    if any(refusal.code == Code.OVERFLOW for refusal in report.refusals):
        return  # documented: a plan cannot know
    if list(map(region_key, planned.regions)) != list(map(region_key, report.regions)):
        yield Finding("plan regions", "plan and fuse report different regions")
    if planned.refusals != report.refusals:
        yield Finding("plan refusals", "plan and fuse report different refusals")
    for name in ("nodes", "conv", "batch_normalization", "parameters", "macs") if sized else ():
        a, b = getattr(planned.after, name), getattr(report.after, name)
        if a != b or getattr(planned.before, name) != getattr(report.before, name):
            yield Finding(f"plan counts {name}", f"plan says {name} {a}, fuse {b}")


def _moves_only(region: RegionReport) -> bool:
    """Whether operators took another layout: the estimate knows linear operators alone."""
    return region.expression.startswith("the same operators")


def _counts(model: ModelProto, fused: ModelProto, report: Report) -> Iterator[Finding]:
    counted = report.after.uncounted >= report.before.uncounted  # else a shape became known
    if report.after.macs > report.before.macs and counted:
        yield Finding("macs grow", f"from {report.before.macs} to {report.after.macs}")
    planes = sum(
        operator.kind == "Expand"
        for region in report.regions
        if region.constant == "plane"
        for operator in region.drawn_after
    )
    if report.after.nodes > report.before.nodes + SIZING * planes:
        yield Finding("nodes grow", f"from {report.before.nodes} to {report.after.nodes}")
    counted = [len(m.graph.node) + sum(1 for _ in inner_nodes(m)) for m in (model, fused)]
    if counted != [report.before.nodes, report.after.nodes]:
        yield Finding("nodes miscounted", f"the report says {report.after.nodes} nodes")
    before, after = weight_elements(model), weight_elements(fused)
    if after > before:
        yield Finding("kernel parameters grow", f"from {before} to {after}")
    for region in report.regions:
        error = region.error
        if error is None or not error.exact <= error.bound:
            yield Finding("region error", f"{region.node}: {error}")
        elif not (region.before.parameters or region.after.parameters or error.sizes) and (
            not _moves_only(region) or (error.exact, error.bound, error.border) != (0, 0, 0)
        ):
            yield Finding("region error", f"{region.node}: proved at no size")
        if not region.approximate and error is not None and error.border:
            yield Finding("region error", f"{region.node}: exact, yet off at its border")
    grown = report.after.parameters - report.before.parameters
    maps = sum(region.constant == "map" for region in report.regions)
    if grown > maps * SPARE + 256 * len(report.regions):  # biases are not counted
        yield Finding("parameters grow", f"by {grown} with {maps} constant maps")


def _valid(model: ModelProto, fused: ModelProto) -> Iterator[Finding]:
    try:
        onnx.checker.check_model(fused, full_check=True)
    except Exception as error:
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception:
            return
        yield Finding(f"checker {_class_of(error)}", str(error))
    for name in ("input", "output"):
        before, after = getattr(model.graph, name), getattr(fused.graph, name)
        if [v.SerializeToString() for v in before] != [v.SerializeToString() for v in after]:
            yield Finding(f"graph {name}s", f"the graph's {name}s changed")


def _equal(
    model: ModelProto, fused: ModelProto, feeds: Feeds, expected: Sequence[Any]
) -> Iterator[Finding]:
    sizes = {name: array.shape for name, array in feeds.items()}
    try:
        actual = runner(fused)(feeds)
    except Rejected as error:
        line = str(error).strip().splitlines()[0]
        yield Finding("fused rejects", f"{sizes} runs in the original only: {line}")
        return
    text = differing(model, feeds, expected, actual)
    if text is not None:
        kind = "shape differs" if "instead of" in text else "values differ"
        yield Finding(kind, f"{text}, inputs {sizes}")


def _meets_nothing(model: ModelProto, feeds: Feeds) -> bool:
    """Whether some tensor of the model is empty at these sizes.

    A Slice or pool may leave nothing of a small input and a Pad put zeros in its place; a Conv
    rejects what is empty. Nothing is claimed of such sizes.
    """
    exposed = ModelProto()
    exposed.CopyFrom(model)
    stored = {v.name for v in model.graph.output}
    types = {v.name: v for v in inferred(model).value_info}
    exposed.graph.output.extend(
        v
        for name, v in types.items()
        if name not in stored and v.type.tensor_type.elem_type == feeds_kind(model)
    )
    for value in exposed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return any(array.size == 0 for array in runner(exposed)(feeds))
    except Rejected:
        return False


def _again(fused: ModelProto, given: dict[str, Any]) -> Iterator[Finding]:
    try:
        twice, report = onnxfuse.fuse(fused, verify=False, **given)
    except Exception as error:
        yield Finding(f"again {_class_of(error)}", f"fusing again raised {error!r}")
        return
    if report.changed:
        text = "; ".join(f"{r.was} -> {r.became}" for r in report.regions)
        yield Finding("not idempotent", f"fusing again changes {text}")
    elif twice.SerializeToString() != fused.SerializeToString():
        yield Finding("not idempotent in bytes", "fusing again changes bytes but reports nothing")
