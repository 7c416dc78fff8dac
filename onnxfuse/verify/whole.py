"""The wiring check: original and fused model side by side in onnxruntime, unoptimised.

Models of types that onnxruntime lacks kernels for run in onnx's reference evaluator instead.

The regions are proved one by one; this run finds what joins them wrongly. The difference at each
output is judged against what rounding in those regions does to the original: the original is run
again with every region's inputs and output disturbed by a few units of roundoff (or by the
region's measured error, where that is larger), and the fused model may differ by ``FACTOR``
times that response, or ``NARROW`` times in half precision. The regions' own results are compared
as outputs are, for an output that saturates hides what is wrong before it. Tensors behind
discontinuous operators are not compared; what enters those operators is. Bodies are disturbed where
they were fused (see `onnxfuse.verify.nested`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from onnxfuse.errors import InputError, ProofError
from onnxfuse.model.tensors import FLOATS
from onnxfuse.options import Options
from onnxfuse.records import OutputError, Verification
from onnxfuse.verify import reference
from onnxfuse.verify.given import matched
from onnxfuse.verify.judge import Bounds
from onnxfuse.verify.nested import BOTH, captured
from onnxfuse.verify.pairing import Tolerance
from onnxfuse.verify.session import (
    FACTOR,
    NAME,
    NARROW,
    SEED,
    UNITS,
    CannotRunError,
    NoKernelError,
    check_exchangeable,
    feeds,
    line,
    rms,
    written,
)
from onnxfuse.verify.session import opened as _session
from onnxfuse.verify.subject import Subject, models, targets


@dataclass(frozen=True, slots=True)
class _Sides:
    """Both models in one runtime, and its name; the fused may be the reason why it is none."""

    oracle: str
    original: Any
    fused: Any
    switch: str
    steering: tuple[str, ...]


class _RejectedError(Exception):
    """The original does not run at some inputs."""


def verify(
    subject: Subject, options: Options, progress: Callable[[str], None] = lambda _: None
) -> Verification:
    """Run both models; raises `ProofError` where they differ by more than rounding.

    Outputs for which ``options`` give a tolerance may differ by that instead. Raises `InputError`
    where the original rejects the inputs that were given.
    """
    tolerance = Tolerance(options.rtol, options.atol)
    outputs, hidden, inner = targets(subject, tolerance)
    names = [*outputs, *inner]
    try:
        sides = _sides(subject, names)
        given, notes = _asked(subject, options)
    except CannotRunError as error:
        return Verification("not-run", notes=(str(error),))
    runs: list[str] = []
    worst: dict[str, OutputError] = {}
    for plain, (how, ways) in product(given, BOTH if sides.steering else BOTH[:1]):
        text = written(plain) + how
        progress(text)
        ruled = {n: np.array(on) for n, on in zip(sides.steering, ways, strict=False)}
        try:
            answers = _answers(sides, names, plain | ruled, text)
        except _RejectedError as error:
            if options.input_data is not None and not how:
                raise InputError(f"the model rejects the input data: {error}") from error
            notes.append(f"{sides.oracle}: the original rejects {text}: {error}")
            continue
        for found in _compare(subject, names, answers, tolerance, text):
            if found.name in inner:
                continue
            if found.name not in worst or found.rms > worst[found.name].rms:
                worst[found.name] = found
        runs.append(text)
    if not runs:
        return Verification("not-run", notes=tuple(notes))
    notes = [*_unseen(subject, outputs, hidden), *notes]
    if options.input_data is not None and not worst:
        notes.append("no output holds a finite number there, so nothing was compared")
        return Verification("not-run", tuple(runs), (), tuple(notes), sides.oracle)
    status = "approximate" if subject.approximate else "passed"
    return Verification(status, tuple(runs), tuple(worst.values()), tuple(notes), sides.oracle)


def _sides(subject: Subject, names: Sequence[str]) -> _Sides:
    """Both models loaded. Raises `CannotRunError` where the original is not."""
    noisy, exposed, steering = models(subject, names)
    opened: Callable[[onnx.ModelProto, str | None], Any] = _session
    oracle = NAME
    try:
        original = _session(noisy.model, subject.base)
        check_exchangeable(original)
    except NoKernelError as error:
        try:
            original = _referred(subject, noisy.model)
        except CannotRunError as why:
            raise CannotRunError(f"onnxruntime cannot run this model: {error}; {why}") from why
        oracle, opened = reference.NAME, reference.opened
    except CannotRunError as error:
        raise CannotRunError(f"onnxruntime cannot run this model: {error}") from error
    try:
        fused = opened(exposed, subject.base)
    except CannotRunError as error:
        fused = error  # our fault if the original does more than load
    return _Sides(oracle, original, fused, noisy.switch, steering)


def _referred(subject: Subject, noisy: onnx.ModelProto) -> reference.Reference:
    """The original in onnx's own evaluator."""
    reference.check_fit(subject.graph, subject.macs)
    return reference.opened(noisy, subject.base)


def _answers(
    sides: _Sides, names: Sequence[str], feed: Mapping[str, Any], text: str
) -> list[Answer]:
    """What both models give for each of ``names``, and the original under noise and once more.

    Raises `_RejectedError` where the original does not run, and `ProofError` where only it does.
    """
    quiet, loud = ({**feed, sides.switch: np.array(on)} for on in (False, True))
    try:
        expected = sides.original.run(names, quiet)
    except Exception as error:
        raise _RejectedError(line(error)) from error
    if isinstance(sides.fused, CannotRunError):
        raise ProofError(
            f"{sides.oracle} runs the original but not the fused model ({sides.fused}); "
            "please report this"
        ) from sides.fused
    try:
        actual = sides.fused.run(names, feed)
    except Exception as error:
        raise ProofError(
            f"the fused model fails at {text} where the original runs: {line(error)}"
        ) from error
    response, repeated = (sides.original.run(names, given) for given in (loud, quiet))
    return [Answer(*found) for found in zip(expected, actual, response, repeated, strict=True)]


def _unseen(subject: Subject, names: Sequence[str], hidden: Sequence[str]) -> Iterator[str]:
    """What is said of the outputs that were not compared."""
    entering = len(names) > len(subject.graph.outputs) - len(hidden)
    what = "what enters it was compared" if entering else "it was not compared"
    for name in hidden:
        yield f"{name!r} lies behind a discontinuous operator; {what}"


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


@dataclass(frozen=True, slots=True)
class Answer:
    """A tensor as the original gives it, as the fused model does, under noise, and once more."""

    original: Any
    fused: Any
    noisy: Any
    again: Any


def _compare(
    subject: Subject,
    names: Sequence[str],
    answers: Sequence[Answer],
    tolerance: Tolerance,
    text: str,
) -> Iterator[OutputError]:
    for name, answer in zip(names, answers, strict=True):
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
        unit = FLOATS[subject.types.get(name, TensorProto.FLOAT)]
        floor = UNITS * unit
        allowed = (NARROW if unit > 2**-20 else FACTOR) * max(rms(heard - reference) / scale, floor)
        allowed += 4 * rms(chance - reference) / scale
        error = rms(fused - reference) / scale
        if not error <= allowed and not subject.approximate:
            what = "output" if name in subject.graph.outputs_set else "tensor"
            raise _failed(
                subject,
                name,
                f"{what} {name!r} differs by {error:.3g} (relative RMS) at {text}, where rounding "
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
