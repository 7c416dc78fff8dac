"""The pipeline: read → lift → plan → realise → splice → prove → report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnxfuse import describe
from onnxfuse.errors import InputError
from onnxfuse.layout import Relaid
from onnxfuse.model import io, tensors
from onnxfuse.model.totals import count
from onnxfuse.options import Options, Progress
from onnxfuse.records import RegionError, RegionReport, Report, Verification
from onnxfuse.rounds import Pass, Work, size_of, work
from onnxfuse.version import __version__


@dataclass(frozen=True, slots=True)
class Result:
    """A fused model and its report; ``data`` is what a file of it holds."""

    model: onnx.ModelProto
    report: Report
    data: bytes


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


def plan_model(model: Any, options: Options) -> Report:
    """What would be done to a model and why not, reading no kernel."""
    loaded = read(model)
    done = work(loaded, options, _quiet, dry=True)
    records = tuple(describe.layout(laid, None) for laid in done.laid) + tuple(
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
    records = [describe.layout(laid, _prove_layout(laid)) for laid in done.laid]
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
        size = size_of(loaded, done.model, data)
        after = count(*done.index, size)
    assumed = done.passes[0].plan.shapes.assumed
    report = Report(
        __version__, False, tuple(records), done.refusals, done.before, after, verification, assumed
    )
    return Result(done.model, report, data)


def _prove_layout(laid: Relaid) -> RegionError:
    from onnxfuse.verify.layout import prove_layout

    return prove_layout(laid)


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


def _verify_whole(
    loaded: io.Loaded,
    done: Work,
    records: Sequence[RegionReport],
    options: Options,
    progress: Progress,
) -> Verification:
    from onnxfuse.verify.whole import Subject, verify

    graph, found, _ = done.original
    present = graph.producer.keys() | graph.inputs_set
    origin = done.origin
    measured = {
        r.root: max(r.error.rms_original, r.error.rms_fused) for r in records if r.error is not None
    }
    regions = {
        origin.get(r.root, r.root): (
            tuple(present & {origin.get(name, name) for name in r.region.sources}),
            measured[r.root],
        )
        for one in done.passes
        for r in one.replacements
        if origin.get(r.root, r.root) in present
    }
    for name in done.reordered:
        if origin.get(name, name) in present:
            regions.setdefault(origin.get(name, name), ((), 0.0))
    base = None if loaded.base is None else str(loaded.base.resolve())
    approximate = any(record.approximate for record in records)
    subject = Subject(loaded.model, done.model, graph, found.types, regions, base, approximate)
    return verify(
        subject, dict(options.input_shapes or {}), lambda text: progress(f"running {text}", 0, 0)
    )
