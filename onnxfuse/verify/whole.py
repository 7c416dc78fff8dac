"""The wiring check: original and fused model side by side in onnxruntime, unoptimised.

The regions are proved one by one; this run finds what joins them wrongly. Each output is compared
(see `onnxfuse.verify.comparison`), and so are the regions' own results, for an output that
saturates hides what is wrong before it. Tensors behind discontinuous operators are not compared;
what enters those operators is. Bodies are disturbed where they were fused (see
`onnxfuse.verify.nested`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx

from onnxfuse.errors import InputError
from onnxfuse.options import Options
from onnxfuse.records import OutputError, Verification
from onnxfuse.verify.comparison import Comparison, allowing
from onnxfuse.verify.given import matched
from onnxfuse.verify.nested import BOTH
from onnxfuse.verify.pairing import Tolerance
from onnxfuse.verify.session import SEED, CannotRunError, feeds, written
from onnxfuse.verify.sides import RejectedError, sides
from onnxfuse.verify.subject import Subject, targets


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
        both = sides(subject, names)
        given, notes = _asked(subject, options)
    except CannotRunError as error:
        return Verification("not-run", notes=(str(error),))
    runs: list[str] = []
    worst: dict[str, OutputError] = {}
    for plain, (how, ways) in product(given, BOTH if both.steering else BOTH[:1]):
        text = written(plain) + how
        progress(text)
        ruled = {n: np.array(on) for n, on in zip(both.steering, ways, strict=False)}
        comparison = Comparison(subject, both, tolerance, plain | ruled, text)
        try:
            errors = comparison.found(names)
        except RejectedError as error:
            if options.input_data is not None and not how:
                raise InputError(f"the model rejects the input data: {error}") from error
            notes.append(f"{both.oracle}: the original rejects {text}: {error}")
            continue
        for found in errors:
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
        return Verification("not-run", tuple(runs), (), tuple(notes), both.oracle)
    status = "approximate" if subject.approximate else "passed"
    return Verification(status, tuple(runs), tuple(worst.values()), tuple(notes), both.oracle)


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
        notes.append(f"{what} may differ by {allowing(bounds)}, as was given")
    return given, notes


def _values(subject: Subject) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give."""
    stored = subject.graph.initializers
    return [value for value in subject.graph.model.graph.input if value.name not in stored]
