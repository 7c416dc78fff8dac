"""The pipeline: read → lift → plan → realise → splice → prove → report."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxfuse import describe, forked
from onnxfuse.errors import InputError, within
from onnxfuse.evaluate.parts import recycle
from onnxfuse.model import freeze, io, tensors
from onnxfuse.model.freeze import Changes
from onnxfuse.model.held import Serialised
from onnxfuse.model.saving import Output, located
from onnxfuse.model.store import Held, Memory, Nowhere, Store
from onnxfuse.options import Options
from onnxfuse.realise import Replacement
from onnxfuse.records import Kept, RegionError, RegionReport, Report, Verification
from onnxfuse.refusal import Code
from onnxfuse.rounds import Pass, Plan, Rounds, data_size, dropped
from onnxfuse.running import verify_whole
from onnxfuse.scopes import Work, counted, work
from onnxfuse.version import __version__
from onnxfuse.watch import Watch

if TYPE_CHECKING:
    from onnxfuse.layout import Relaid


@contextmanager
def _quietly() -> Iterator[None]:
    """What damaged weights make of arithmetic is judged where it counts; NumPy need not say it too.

    It is made anew for each call: in NumPy 1 an ``errstate`` that is entered twice, or in two
    threads, leaves the caller's settings changed.
    """
    with np.errstate(all="ignore"):
        yield


@dataclass(frozen=True, slots=True)
class Result:
    """A fused model and its report; ``data`` is what a file of it holds.

    Large weights of the model are held beside it (see `onnxfuse.model.held`), by what ``holds``.
    """

    model: onnx.ModelProto
    report: Report
    data: Serialised
    holds: Any


def read(model: Any) -> io.Loaded:
    """A model from a path or a ModelProto, with the bytes it came from."""
    if isinstance(model, io.Loaded):
        return model
    if isinstance(model, str | os.PathLike):
        return io.load(model)
    if isinstance(model, onnx.ModelProto):
        data = model.SerializeToString()
        return io.parse(data, "the given model")
    raise InputError(
        f"a {type(model).__name__} is not a model; pass a path, an onnx.ModelProto or a gs.Graph"
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's search for cycles, which walks all that a plan is made of, again and again.

    What planning makes lives to its end and holds no cycles; at 50,000 nodes that search took
    two fifths of the time.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()


@_quietly()
@_uncollected()
def plan_model(model: Any, options: Options) -> Report:
    """What would be done to a model and why not, reading no kernel."""
    _, done, changes = _worked(model, options, Watch(), dry=True)
    records: list[RegionReport] = []
    for rounds in done.all:
        found = [describe.layout(laid, None) for laid in rounds.laid]
        found += (
            describe.region(replacement, one.plan.problem, None, read=False)
            for one in rounds.passes
            for replacement in one.replacements
        )
        records += (replace(record, scope=rounds.where) for record in found)
    after = done.count(0)
    assumed = done.main.problem.view.shapes.assumed
    kept = _kept(done)
    report = Report(__version__, True, tuple(records), kept, done.before, after, None, assumed)
    return _stated(report, done, changes)


def count_model(model: Any, options: Options, watch: Watch) -> Report:
    """The totals of a model, looking for nothing to fuse."""
    watch.enter("read")
    loaded = read(model)
    watch.enter("shapes")
    found, shapes = counted(loaded, options)
    return Report(__version__, True, (), (), found, found, None, shapes.assumed)


@_quietly()
def explain_model(
    model: Any, options: Options, watch: Watch
) -> tuple[Report, Callable[[], list[Kept]]]:
    """What `fuse_model` would do, each region folded and proved; and what to say of other nodes.

    The whole model is not run, so an `InputError` or `ProofError` of `fuse_model` that comes
    before that run comes here too.
    """
    watch.enter("read")
    given = read(model)
    held: Store = Nowhere() if any(located(given.model)) else Held()
    loaded, done, changes = _worked(given, options, watch, dry=False, store=held)
    records = [record for found in _records(done, options, watch) for record in found]
    report = replace(_reported(loaded, done, records, None, changes, held), planned=True)

    @_quietly()
    def others() -> list[Kept]:
        return [
            replace(kept, scope=rounds.where)
            for rounds in done.all
            for kept in describe.others(rounds.problem, report.of(rounds.where))
        ]

    return report, others


@_quietly()
def fuse_model(model: Any, options: Options, watch: Watch, output: Output | None = None) -> Result:
    """Fuse a model and prove the result; raises `ProofError` where that fails.

    ``output`` decides where the weights of a model lie that is to be written.
    """
    if options.save_repro is not None:
        from onnxfuse.verify.repro import check_place

        check_place(options.save_repro)
    store: Store = Held() if output is None else output.store
    planned = None
    if output is not None and output.carries:
        planned = partial(_begin, output)
    loaded, done, changes = _worked(model, options, watch, dry=False, store=store, planned=planned)
    data = Serialised((loaded.data,))
    if done.changed or changes.any or (output is not None and output.asked):
        watch.enter("write")
        if output is not None:
            model, data = output.settled(done.model)
            done = replace(done, model=model)
        else:
            data = io.serialised(done.model) or Serialised(())
    with _saving(done, options):
        proved = _records(done, options, watch)
    records = [record for found in proved for record in found]
    verification = Verification("skipped", notes=("nothing was fused",))
    if records:
        verification = Verification("skipped", notes=("--no-verify was given",))
    if records and options.verify:
        watch.enter("run")
        with _saving(done, options):
            verification = verify_whole(loaded, done, proved, options, watch, output)
        if verification.runs:
            notes = (*changes.judged, *verification.notes)
            verification = replace(verification, notes=notes)
    watch.enter("report")
    held = Memory() if output is None else output.data
    report = _reported(loaded, done, records, verification, changes, held, data.size)
    if output is not None:
        report = replace(report, notes=(*report.notes, *output.notes))
    return Result(done.model, report, data, done.holds)


def _begin(output: Output, plan: Plan) -> None:
    """Let data files be copied that the first plan of a model leaves in use."""
    output.begin(dropped(plan))


def _worked(
    model: Any,
    options: Options,
    watch: Watch,
    *,
    dry: bool,
    store: Store | None = None,
    planned: Callable[[Plan], None] | None = None,
) -> tuple[io.Loaded, Work, Changes]:
    """A model as the switches take it, the work on that, and what they changed.

    Data files are looked at where not ``dry``.
    """
    watch.enter("read")
    given = read(model)
    recycle()
    if options.judged:
        from onnxfuse.verify.given import check

        check(given.model, options)
    switches = {"freeze": options.freeze_initializers, "inference": options.assume_inference}
    if given.base is not None and not dry:
        io.check_data(given.model, given.base)
    loaded, changes = freeze.changed(given, **switches)
    with _uncollected():
        done = work(loaded, options, watch, dry=dry, store=store, planned=planned)
    if changes.any:
        marked = freeze.noted(done.model, changes, __version__)
        done = replace(done, model=marked, before=counted(given, options)[0])
    return loaded, done, changes


def _saving(done: Work, options: Options) -> AbstractContextManager[None]:
    """What writes the guilty region where a proof fails and that was asked for."""
    if options.save_repro is None:
        return nullcontext()
    regions = [
        (replacement, one.plan.view, rounds.where)
        for rounds in done.all
        for one in rounds.passes
        for replacement in one.replacements
    ]
    from onnxfuse.verify.repro import saving

    origin = {new: old for rounds in done.all for new, old in rounds.origin.items()}
    return saving(options.save_repro, regions, origin)


def _stated(report: Report, done: Work, changes: Changes) -> Report:
    """A report that says what the switches changed, and which of them would help."""
    hints = []
    model = done.main.original[0].model
    if any(kept.code is Code.OVERRIDABLE for kept in report.refusals):
        hints.append(freeze.hint(model))
    return replace(
        report,
        frozen=changes.frozen,
        inference=changes.inference,
        overridable=len(freeze.overridable(model)),
        notes=(*changes.notes, *hints),
    )


def _records(done: Work, options: Options, watch: Watch) -> list[list[RegionReport]]:
    """The regions of each graph, proved and described."""
    records = []
    for rounds in done.all:
        with within(rounds.where):
            found = _proved(rounds, options, watch)
        records.append([replace(record, scope=rounds.where) for record in found])
    return records


def _proved(rounds: Rounds, options: Options, watch: Watch) -> list[RegionReport]:
    """The regions of one graph, proved and described."""
    watch.enter("prove")
    found = [describe.layout(laid, _prove_layout(laid)) for laid in rounds.laid]
    for one in rounds.passes:
        watch.enter("prove")
        errors = _prove(one, options, watch)
        watch.enter("report")
        found += (
            describe.region(replacement, one.plan.problem, error, read=options.ranges)
            for replacement, error in zip(one.replacements, errors, strict=True)
        )
    return found


def _reported(
    loaded: io.Loaded,
    done: Work,
    records: Sequence[RegionReport],
    verification: Verification | None,
    changes: Changes,
    held: Store,
    size: int = 0,
) -> Report:
    """The report of a model of ``size`` bytes, and those of ``held`` beside it."""
    after = done.before
    if records or changes.any or held.size:
        size = (size or io.size_of(done.model)) + held.size
        after = done.count(size + data_size(done.model, loaded.base, held.location))
    assumed = done.main.problem.view.shapes.assumed
    kept = _kept(done)
    report = Report(
        __version__, False, tuple(records), kept, done.before, after, verification, assumed
    )
    return _stated(report, done, changes)


def _kept(done: Work) -> tuple[Kept, ...]:
    """The places of the given model that were left alone."""
    found = [
        replace(describe.kept(refusal, rounds.problem), scope=rounds.where)
        for rounds in done.all
        for refusal in rounds.refusals
    ]
    return (*found, *done.closed)


def _prove_layout(laid: Relaid) -> RegionError:
    from onnxfuse.verify.layout import prove_layout

    return prove_layout(laid)


def _prove(found: Pass, options: Options, watch: Watch) -> list[RegionError]:
    if not found.replacements:
        return []
    from onnxfuse.verify.region import prove

    def proved(replacement: Replacement) -> RegionError:
        kind = found.plan.shapes.type_of(replacement.root)
        dtype, roundoff = tensors.dtype_of(kind), tensors.FLOATS[kind]
        with _quietly():  # in whatever thread this is
            error = prove(replacement, found.plan.view, dtype, roundoff)
        replacement.forget()
        return error

    show = partial(watch.show, "proving")
    sizes = [replacement.size for replacement in found.replacements]
    errors = forked.each(proved, found.replacements, sizes, options.workers, show)
    for replacement in found.replacements:
        replacement.forget()
    return errors
