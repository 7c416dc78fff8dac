"""The wiring check: original and fused model side by side in onnxruntime, unoptimised.

The regions are proved one by one; this run finds what joins them wrongly. The difference at each
output is judged against what rounding in those regions does to the original: the original is run
again with every region's inputs and output disturbed by a few units of roundoff (or by the
region's measured error, where that is larger), and the fused model may differ by ``FACTOR``
times that response. Tensors behind discontinuous operators are not compared; what enters those
operators is. Bodies are disturbed where they were fused (see `onnxfuse.verify.nested`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxfuse.errors import InputError, ProofError
from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.splice import fresh_names
from onnxfuse.model.tensors import FLOATS
from onnxfuse.options import Options
from onnxfuse.records import OutputError, Verification
from onnxfuse.verify.given import matched
from onnxfuse.verify.judge import Bounds
from onnxfuse.verify.nested import BOTH, Body, captured, jumps, shaken, steered
from onnxfuse.verify.pairing import Tolerance
from onnxfuse.verify.session import (
    FACTOR,
    SEED,
    SWITCH,
    UNITS,
    CannotRunError,
    Disturbed,
    disturbed,
    feeds,
    line,
    rms,
    written,
)
from onnxfuse.verify.session import opened as _session

# Operators with jumps; those that give integers or booleans (ArgMax, Greater …) need no entry.
DISCONTINUOUS = {
    "TopK", "Round", "Floor", "Ceil", "Sign", "Unique", "Hardmax", "Mod", "DynamicQuantizeLinear",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """The two models, the original's index, what was fused where, and its measured error.

    ``bodies`` are the fused graphs below the main one; ``floats`` the rounded tensors of any graph.
    """

    original: onnx.ModelProto
    fused: onnx.ModelProto
    graph: Graph
    types: Mapping[str, int]
    regions: Mapping[str, tuple[tuple[str, ...], float, float]]
    base: str | None
    approximate: bool = False
    bodies: Sequence[Body] = ()
    floats: Container[str] = ()


def verify(
    subject: Subject, options: Options, progress: Callable[[str], None] = lambda _: None
) -> Verification:
    """Run both models; raises `ProofError` where they differ by more than rounding.

    Outputs for which ``options`` give a tolerance may differ by that instead. Raises `InputError`
    where the original rejects the inputs that were given.
    """
    tolerance = Tolerance(options.rtol, options.atol)
    targets, hidden = _targets(subject, tolerance)
    try:
        noisy, steering = _disturbable(subject, targets)
        original = _session(noisy.model, subject.base)
    except CannotRunError as error:
        return Verification("not-run", notes=(f"onnxruntime cannot run this model: {error}",))
    try:
        exposed = _exposed(subject.fused, targets, subject.types)
        if steering:
            exposed = _copied(exposed)
            steered(exposed, subject.bodies, steering)
        fused = _session(exposed, subject.base)
    except CannotRunError as error:
        raise ProofError(
            f"onnxruntime loads the original but not the fused model ({error}); please report this"
        ) from error
    entering = len(targets) > len(subject.graph.outputs) - len(hidden)
    what = "what enters it was compared" if entering else "it was not compared"
    notes = [f"{name!r} lies behind a discontinuous operator; {what}" for name in hidden]
    try:
        given, more = _asked(subject, options)
    except CannotRunError as error:
        return Verification("not-run", notes=(f"the models cannot be run: {error}",))
    notes += more
    runs: list[str] = []
    worst: dict[str, OutputError] = {}
    rounds = BOTH if steering else BOTH[:1]
    for plain, (how, ways) in product(given, rounds):
        text = written(plain) + how
        feed = plain | {name: np.array(on) for name, on in zip(steering, ways, strict=False)}
        progress(text)
        quiet, loud = ({**feed, noisy.switch: np.array(on)} for on in (False, True))
        try:
            expected = original.run(targets, quiet)
        except Exception as error:
            if options.input_data is not None and not how:
                raise InputError(f"the model rejects the input data: {line(error)}") from error
            notes.append(f"the original rejects {text}: {line(error)}")
            continue
        try:
            actual = fused.run(targets, feed)
        except Exception as error:
            raise ProofError(
                f"the fused model fails at {text} where the original runs: {line(error)}"
            ) from error
        response = original.run(targets, loud)
        repeated = original.run(targets, quiet)
        answers = [
            Answer(*found) for found in zip(expected, actual, response, repeated, strict=True)
        ]
        for found in _compare(subject, targets, answers, tolerance, text):
            if found.name not in worst or found.rms > worst[found.name].rms:
                worst[found.name] = found
        runs.append(text)
    if not runs:
        return Verification("not-run", notes=tuple(notes))
    if options.input_data is not None and not worst:
        notes.append("no output holds a finite number there, so nothing was compared")
        return Verification("not-run", tuple(runs), notes=tuple(notes))
    status = "approximate" if subject.approximate else "passed"
    return Verification(status, tuple(runs), tuple(worst.values()), tuple(notes))


def _asked(subject: Subject, options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    """The inputs to run, and what is to be said of them and of how outputs are judged."""
    shapes, values = dict(options.input_shapes or {}), _values(subject)
    seed = SEED if options.seed is None else options.seed
    notes: list[str] = []
    if options.input_data is not None:
        given: list[dict[str, Any]] = [dict(matched(options.input_data, values, shapes))]
        notes.append("the inputs are those that were given; no others were drawn")
    else:
        given = list(feeds(values, shapes, seed=seed))
    if options.input_data is None and options.seed is not None:
        notes.append(f"the inputs were drawn with seed {seed}")
    for name in dict.fromkeys((*options.rtol, *options.atol)):
        bounds = Tolerance(options.rtol, options.atol).of(name)
        assert bounds is not None
        what = f"output {name!r}" if name else "each output without a tolerance of its own"
        notes.append(f"{what} may differ by {_allowing(bounds)}, as was given")
    return given, notes


def _allowing(bounds: Bounds) -> str:
    return f"{bounds.atol:g} + {bounds.rtol:g}·|original| in each element"


def _values(subject: Subject) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give."""
    stored = subject.graph.initializers
    return [value for value in subject.graph.model.graph.input if value.name not in stored]


def _targets(subject: Subject, tolerance: Tolerance) -> tuple[list[str], list[str]]:
    """Tensors to compare, and the outputs that are not because they depend on a choice.

    An output that a tolerance names is compared whatever it depends on.
    """
    graph = subject.graph
    produced = {out for node in subject.fused.graph.node for out in node.output}
    data = set(graph.inputs)  # what depends on values, not on shapes alone
    tainted: set[str] = set()
    entering: dict[str, None] = {}
    for node in graph.order:
        read = [name for name in (*node.inputs, *captured(node)) if name in data]
        if not read or node.op_type in ("Shape", "Size"):
            continue
        data.update(node.outputs)
        if any(name in tainted for name in read):
            tainted.update(node.outputs)
        elif _discontinuous(node, read, subject.types) or jumps(
            node, subject.original, subject.floats
        ):
            tainted.update(node.outputs)
            entering.update(dict.fromkeys(n for n in read if n in produced))
    named = {*tolerance.rtol, *tolerance.atol}
    floats = [n for n in graph.outputs if n not in tainted or n in named]
    hidden = [n for n in graph.outputs if n in tainted and n not in named]
    if hidden:
        floats += [
            n
            for n in entering
            if n not in floats and subject.types.get(n, 0) in FLOATS and n in produced
        ]
    return floats or list(graph.outputs), hidden


def _discontinuous(node: Node, read: Sequence[str], types: Mapping[str, int]) -> bool:
    """Whether a small change of what a node reads can change its result by a jump."""
    if not any(types.get(name, 0) in FLOATS for name in read):
        return False
    if any(out and types.get(out, 0) not in FLOATS for out in node.outputs[:1]):
        return True
    return node.op_type in DISCONTINUOUS


def _exposed(
    model: onnx.ModelProto, targets: Sequence[str], types: Mapping[str, int]
) -> onnx.ModelProto:
    """The model with every target among its outputs."""
    present = {value.name for value in model.graph.output}
    missing = [name for name in targets if name not in present]
    if not missing:
        return model
    copy = _copied(model)
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, types[name], None) for name in missing
    )
    return copy


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _disturbable(subject: Subject, targets: Sequence[str]) -> tuple[Disturbed, tuple[str, ...]]:
    """The original with rounding-sized noise on each region's inputs and output.

    Also the inputs that decide of each If that leads to a region in a branch.

    An output also varies by the region's error outright: where its terms cancel, it is smaller
    than what rounding them makes of it.
    """
    levels: dict[str, float] = {}
    shifts: dict[str, float] = {}
    for root, (sources, measured, scale) in subject.regions.items():
        measured = measured if np.isfinite(measured) else 0.0  # noqa: PLW2901 - of no weights
        shifts[root] = measured * scale
        level = max(measured, UNITS * FLOATS[subject.types[root]])
        for name in (root, *sources):
            levels[name] = max(level, levels.get(name, 0.0))
    exposed = _exposed(subject.original, targets, subject.types)
    steering: tuple[str, ...] = ()
    if subject.bodies:
        exposed = _copied(exposed)
        steering = steered(exposed, subject.bodies)
        shaken(exposed, subject.bodies, fresh_names(subject.graph)(SWITCH))
    noisy = disturbed(exposed, subject.graph, levels, subject.types, shifts=shifts)
    return noisy, steering


@dataclass(frozen=True, slots=True)
class Answer:
    """A tensor as the original gives it, as the fused model does, under noise, and once more."""

    original: Any
    fused: Any
    noisy: Any
    again: Any


def _compare(
    subject: Subject,
    targets: Sequence[str],
    answers: Sequence[Answer],
    tolerance: Tolerance,
    text: str,
) -> Iterator[OutputError]:
    for name, answer in zip(targets, answers, strict=True):
        o, f, noisy, again = answer.original, answer.fused, answer.noisy, answer.again
        if o.shape != f.shape or o.dtype != f.dtype:
            raise _failed(
                subject,
                name,
                f"output {name!r} has shape {list(f.shape)} at {text}, the original's is "
                f"{list(o.shape)}",
            )
        bounds = tolerance.of(name) if name in subject.graph.outputs_set else None
        if bounds is not None and o.dtype.kind in "fViub":
            if np.isfinite(o.astype(np.float64)).any():
                yield _held(subject, name, answer, bounds, text)
            continue
        if o.dtype.kind not in "fV" or not o.size:
            continue
        wide = [array.astype(np.float64) for array in (o, f, noisy, again)]
        calm = np.isfinite(wide[0]) & np.isfinite(wide[2])  # where the type does not overflow
        if not calm.any():
            continue
        if not np.isfinite(wide[1][calm]).all():
            text = f"output {name!r} is not finite at {text} where the original is"
            raise _failed(subject, name, text)
        reference, fused, heard, chance = (array[calm] for array in wide)
        scale = rms(reference) or 1.0
        floor = UNITS * FLOATS[subject.types.get(name, TensorProto.FLOAT)]
        allowed = FACTOR * max(rms(heard - reference) / scale, floor)
        allowed += 4 * rms(chance - reference) / scale
        error = rms(fused - reference) / scale
        if not error <= allowed and not subject.approximate:
            raise _failed(
                subject,
                name,
                f"output {name!r} differs by {error:.3g} (relative RMS) at {text}, where rounding "
                f"explains {allowed:.3g}",
            )
        yield OutputError(name, float(error), float(allowed))


def _held(subject: Subject, name: str, answer: Answer, bounds: Bounds, text: str) -> OutputError:
    """An output held against a tolerance, element by element, where the original is finite."""
    o, f = (array.astype(np.float64) for array in (answer.original, answer.fused))
    calm = np.isfinite(o)
    reference, fused = o[calm], f[calm]
    allowed = bounds.atol + bounds.rtol * np.abs(reference)
    difference = np.abs(fused - reference)
    beyond = ~(difference <= allowed)  # also where the fused model is not finite
    if beyond.any():
        raise _failed(
            subject,
            name,
            f"output {name!r} differs by up to {difference[beyond].max():.3g} at {text}: "
            f"{int(beyond.sum())} of {beyond.size} elements are beyond the given tolerance of "
            f"{_allowing(bounds)}",
        )
    scale = rms(reference) or 1.0
    return OutputError(
        name, rms(difference) / scale, rms(allowed) / scale, f"given: {_allowing(bounds)}"
    )


def _failed(subject: Subject, name: str, text: str) -> ProofError:
    """The error of a differing tensor, with the regions that it depends on most nearly."""
    found = list(islice(_nearest(subject, name), 3))
    places = [repr(label) + (f" in the {scope}" if scope else "") for _, label, scope in found]
    guess = "it depends on the regions at " + ", ".join(places)
    root, _, scope = found[0] if found else ("", "", "")
    text = f"{text}; {guess if found else 'no fused region leads to it'}"
    return ProofError(text, root, scope=scope)


def _nearest(subject: Subject, name: str) -> Iterator[tuple[str, str, str]]:
    """The regions that a tensor depends on, nearest first: root, name, and body if not the main.

    A region of a body goes by its root.
    """
    seen, stack = {name}, [name]
    while stack:
        current = stack.pop(0)
        producer = subject.graph.producer.get(current)
        if producer is None:
            continue
        if current in subject.regions:
            yield current, producer.label, ""
        for body in subject.bodies:
            if body.within(producer, subject.original):
                yield from ((root, root, body.where) for root in body.regions)
        for other in (*producer.inputs, *captured(producer)):
            if other not in seen:
                seen.add(other)
                stack.append(other)
