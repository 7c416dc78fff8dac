"""The pipeline: read → lift → plan → realise → splice → prove → report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from onnxfuse import describe
from onnxfuse.errors import InputError
from onnxfuse.layout import Relaid
from onnxfuse.model import io, tensors
from onnxfuse.model.totals import count
from onnxfuse.options import Options, Progress
from onnxfuse.records import Kept, RegionError, RegionReport, Report, Verification
from onnxfuse.rounds import Pass, Work, prepare, size_of, work
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
        describe.region(replacement, one.plan.problem, None, dry=True)
        for one in done.passes
        for replacement in one.replacements
    )
    after = count(*done.index, 0)
    assumed = done.passes[0].plan.shapes.assumed
    return Report(__version__, True, records, _kept(done), done.before, after, None, assumed)


def count_model(model: Any, options: Options) -> Report:
    """The totals of a model, looking for nothing to fuse."""
    loaded = read(model)
    index = prepare(loaded, options)
    counts = count(*index, size_of(loaded))
    return Report(__version__, True, (), (), counts, counts, None, index[1].assumed)


def explain_model(
    model: Any, options: Options, progress: Progress = _quiet
) -> tuple[Report, Callable[[], list[Kept]]]:
    """What `fuse_model` would do, each region folded and proved; and what to say of other nodes.

    The whole model is not run, so an `InputError` or `ProofError` of `fuse_model` that comes
    before that run comes here too.
    """
    loaded = read(model)
    done = work(loaded, options, progress, dry=False)
    records = _records(done, progress)
    report = replace(_reported(loaded, done, records, None), planned=True)
    return report, lambda: describe.others(done.passes[0].plan.problem, report)


def fuse_model(model: Any, options: Options, progress: Progress = _quiet) -> Result:
    """Fuse a model and prove the result; raises `ProofError` where that fails."""
    loaded = read(model)
    done = work(loaded, options, progress, dry=False)
    records = _records(done, progress)
    data = io.serialise(done.model) if records else loaded.data
    verification = Verification("skipped", notes=("nothing was fused",))
    if records:
        verification = Verification("skipped", notes=("--no-verify was given",))
    if records and options.verify:
        verification = _verify_whole(loaded, done, records, options, progress)
    return Result(done.model, _reported(loaded, done, records, verification, data), data)


def _records(done: Work, progress: Progress) -> list[RegionReport]:
    """The regions, proved and described."""
    records = [describe.layout(laid, _prove_layout(laid)) for laid in done.laid]
    for one in done.passes:
        errors = _prove(one, progress)
        records += (
            describe.region(replacement, one.plan.problem, error, dry=False)
            for replacement, error in zip(one.replacements, errors, strict=True)
        )
    return records


def _reported(
    loaded: io.Loaded,
    done: Work,
    records: Sequence[RegionReport],
    verification: Verification | None,
    data: bytes = b"",
) -> Report:
    after = done.before
    if records:
        after = count(*done.index, size_of(loaded, done.model, data or io.serialise(done.model)))
    assumed = done.passes[0].plan.shapes.assumed
    kept = _kept(done)
    return Report(
        __version__, False, tuple(records), kept, done.before, after, verification, assumed
    )


def _kept(done: Work) -> tuple[Kept, ...]:
    """The places of the given model that were left alone."""
    problem = done.passes[0].plan.problem
    return tuple(describe.kept(refusal, problem) for refusal in done.refusals)


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
        r.root: (max(r.error.rms_original, r.error.rms_fused), r.error.scale)
        for r in records
        if r.error is not None
    }
    regions = {
        origin.get(r.root, r.root): (
            tuple(present & {origin.get(name, name) for name in r.region.sources}),
            *measured[r.root],
        )
        for one in done.passes
        for r in one.replacements
        if origin.get(r.root, r.root) in present
    }
    for name in done.reordered:
        if origin.get(name, name) in present:
            regions.setdefault(origin.get(name, name), ((), 0.0, 0.0))
    base = None if loaded.base is None else str(loaded.base.resolve())
    approximate = any(record.approximate for record in records)
    subject = Subject(loaded.model, done.model, graph, found.types, regions, base, approximate)
    return verify(
        subject, dict(options.input_shapes or {}), lambda text: progress(f"running {text}", 0, 0)
    )
