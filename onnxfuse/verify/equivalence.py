"""Whether two models compute the same: both run in onnxruntime, unoptimised, on the same inputs.

How much two outputs may differ is measured on A unless a tolerance is given. A is run again with
noise of ``UNITS`` roundoffs on its inputs and on every tensor that depends on them and was
rounded; B may differ by ``FACTOR`` times that response, plus what A changes from run to run. Only
A's own types count: a float16 model B rounds coarser than a float32 model A explains, so such a
pair needs a tolerance. What is constant in A is not disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import onnx

from onnxfuse.errors import InputError
from onnxfuse.model import io
from onnxfuse.model.graph import Graph
from onnxfuse.model.shapes import Shape, infer
from onnxfuse.records import Difference, Equivalence
from onnxfuse.verify.judge import Answers, Bounds, Finding, judge
from onnxfuse.verify.rounding import levels
from onnxfuse.verify.session import (
    UNITS,
    CannotRunError,
    disturbed,
    feeds,
    kinds,
    line,
    opened,
    written,
)

DRAWS = 3
"""Noise is drawn again, so many times in all, before outputs are called different."""
MEND = "pass a tolerance (--rtol) instead"
KINDS = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
INLINE = 2**31 - 1
"""Bytes from which on a model is loaded from its path; protobuf holds no more."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What is allowed by output name, "" being all outputs; empty where it is to be derived."""

    rtol: Mapping[str, float]
    atol: Mapping[str, float]

    def of(self, name: str) -> Bounds | None:
        """The bounds of an output, the one of the two that was not given being 0."""
        given = [table.get(name, table.get("")) for table in (self.rtol, self.atol)]
        if given == [None, None]:
            return None
        return Bounds(*(bound or 0.0 for bound in given))


@dataclass(frozen=True, slots=True)
class _Pair:
    """An output by the name A gives it, and its position in each model, -1 if missing."""

    name: str
    a: int
    b: int

    @property
    def common(self) -> bool:
        return self.a >= 0 and self.b >= 0


Answer = list[Any] | str
"""The outputs of a run, or why there are none."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """What both models gave at one input; ``noisy`` grows by one run of A after the other."""

    feed: dict[str, Any]
    a: Answer
    again: Answer
    b: Answer
    noisy: list[list[Any]]

    @property
    def complete(self) -> bool:
        return not any(isinstance(found, str) for found in (self.a, self.again, self.b))

    @property
    def text(self) -> str:
        return written(self.feed) or "no inputs"


def compare(
    a: io.Loaded,
    b: io.Loaded,
    shapes: Mapping[str, Shape] | None = None,
    tolerance: Tolerance | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Equivalence:
    """Run both models and judge every output; ``shapes`` gives sizes of open inputs.

    Where an output holds integers, booleans or text, ``rms`` and ``allowed`` of its `Difference`
    are the fractions of elements that differ and may differ; where a tolerance is given,
    ``allowed`` is 0 and the text says how many elements are beyond it. Raises `InputError` where
    the models do not take the same inputs, or what is asked for is not theirs.
    """
    tolerance = tolerance or Tolerance({}, {})
    for loaded in (a, b):
        if loaded.base is not None:
            io.data_files(loaded.model, loaded.base)
    inputs = _inputs(a.model, b.model)
    _check_shapes(inputs, shapes or {})
    pairs, notes = _paired(a.model, b.model)
    _check_tolerance(tolerance, pairs)
    odd = [v.name for v in inputs if v.type.tensor_type.elem_type not in KINDS]
    if odd:
        text = f"input {odd[0]!r} is not a tensor of a known type, so nothing was run"
        return Equivalence("not-run", notes=(*notes, text))
    try:
        trials = _trials(a, b, list(feeds(inputs, shapes or {})), progress)
        found = _judged(a, [t for t in trials if t.complete], pairs, tolerance, progress)
    except CannotRunError as error:
        return Equivalence("not-run", notes=(*notes, str(error)))
    return _concluded(trials, pairs, found, notes)


def _inputs(a: onnx.ModelProto, b: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs of both models, a size being fixed where one of them fixes it."""
    ours, theirs = _given(a), _given(b)
    for here, there, names in (("A", "B", ours.keys() - theirs), ("B", "A", theirs.keys() - ours)):
        if names:
            known = ", ".join(map(repr, theirs if there == "B" else ours)) or "none"
            raise InputError(
                f"input {min(names)!r} of {here} is missing in {there}, whose inputs are {known}; "
                "give both models the same inputs"
            )
    return [_joined(value, theirs[name]) for name, value in ours.items()]


def _given(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The inputs that a caller must give."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return {value.name: value for value in model.graph.input if value.name not in stored}


def _joined(a: onnx.ValueInfoProto, b: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    what = f"input {a.name!r}"
    kinds = [_kind(value.type) for value in (a, b)]
    if kinds[0] != kinds[1]:
        raise InputError(f"{what} is {kinds[0]} in A and {kinds[1]} in B; make them the same type")
    joined = onnx.ValueInfoProto()
    joined.CopyFrom(a)
    if not a.type.HasField("tensor_type") or not b.type.tensor_type.HasField("shape"):
        return joined
    if not a.type.tensor_type.HasField("shape"):
        joined.CopyFrom(b)
        return joined
    dims, others = joined.type.tensor_type.shape.dim, b.type.tensor_type.shape.dim
    if len(dims) != len(others):
        raise InputError(
            f"{what} has {len(dims)} dimensions in A and {len(others)} in B; "
            "export both for the same input"
        )
    for axis, (dim, other) in enumerate(zip(dims, others, strict=True)):
        if dim.dim_value > 0 and other.dim_value > 0 and dim.dim_value != other.dim_value:
            raise InputError(
                f"dimension {axis} of {what} is {dim.dim_value} in A and {other.dim_value} in B; "
                "export both at the same size, or leave it open in one"
            )
        if other.dim_value > 0:
            dim.dim_value = other.dim_value
    return joined


def _kind(value: onnx.TypeProto) -> str:
    """A type in words, without its shape."""
    if value.HasField("tensor_type"):
        kind = value.tensor_type.elem_type
        name = onnx.TensorProto.DataType.Name(kind) if kind in KINDS else f"type {kind}"
        return f"a tensor of {str(name).lower()}"
    return f"a {str(value.WhichOneof('value') or 'thing of no type').removesuffix('_type')}"


def _check_shapes(inputs: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, Shape]) -> None:
    values = {value.name: value for value in inputs}
    for name, shape in shapes.items():
        if name not in values:
            raise InputError(
                f"the models have no input {name!r}; their inputs are "
                f"{', '.join(map(repr, values))}"
            )
        kind = values[name].type.tensor_type
        dims = kind.shape.dim
        if kind.HasField("shape") and len(dims) != len(shape):
            raise InputError(f"input {name!r} has {len(dims)} dimensions, not {len(shape)}")
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=False)):
            if dim.dim_value > 0 and dim.dim_value != size:
                raise InputError(
                    f"dimension {axis} of input {name!r} is {dim.dim_value} in the models, "
                    f"not {size}"
                )


def _paired(a: onnx.ModelProto, b: onnx.ModelProto) -> tuple[list[_Pair], list[str]]:
    """Outputs of one name, and by position those that are left over, if they are as many."""
    ours, theirs = ([value.name for value in model.graph.output] for model in (a, b))
    left = [name for name in ours if name not in theirs]
    over = [name for name in theirs if name not in ours]
    position = {name: index for index, name in enumerate(theirs)}
    notes = []
    if left and len(ours) == len(theirs):
        for name, other in zip(left, over, strict=True):
            position[name] = position[other]
            notes.append(f"output {name!r} of A is compared with {other!r} of B, by position")
        over = []
    pairs = [_Pair(name, index, position.get(name, -1)) for index, name in enumerate(ours)]
    return pairs + [_Pair(name, -1, position[name]) for name in over], notes


def _check_tolerance(tolerance: Tolerance, pairs: Sequence[_Pair]) -> None:
    names = [pair.name for pair in pairs]
    for name in (*tolerance.rtol, *tolerance.atol):
        if name and name not in names:
            raise InputError(
                f"the models have no output {name!r}; their outputs are "
                f"{', '.join(map(repr, names))}"
            )


def _trials(
    a: io.Loaded, b: io.Loaded, given: list[dict[str, Any]], progress: Callable[[str], None]
) -> list[_Trial]:
    """Both models at every input, one session after the other; A runs twice."""
    ours = list(_answers("A", a, [*given, *given], progress))
    found = []
    for index, (feed, answer) in enumerate(
        zip(given, _answers("B", b, given, progress), strict=True)
    ):
        first, second = ours[index], ours[index + len(given)]
        found.append(_Trial(feed, first, second, answer, []))
    return found


def _answers(
    which: str, loaded: io.Loaded, given: list[dict[str, Any]], progress: Callable[[str], None]
) -> Iterator[Answer]:
    try:
        large = len(loaded.data) > INLINE and loaded.path is not None
        session = opened(str(loaded.path) if large else loaded.data, _base(loaded))
    except CannotRunError as error:
        raise CannotRunError(f"onnxruntime cannot run {which}: {error}") from error
    for feed in given:
        progress(f"{which} at {written(feed)}")
        yield _run(session, feed)


def _run(session: Any, feed: dict[str, Any]) -> Answer:
    try:
        return list(session.run(None, feed))
    except Exception as error:
        return line(error)


def _base(loaded: io.Loaded) -> str | None:
    return None if loaded.base is None else str(loaded.base.resolve())


Findings = dict[str, list[Finding | None]]
"""What was found of an output at each input that both models ran."""


def _judged(
    a: io.Loaded,
    trials: Sequence[_Trial],
    pairs: Sequence[_Pair],
    tolerance: Tolerance,
    progress: Callable[[str], None],
) -> Findings:
    """Every output that both models have; A is run under noise where that is to decide."""
    bounds = {pair.name: tolerance.of(pair.name) for pair in pairs}
    both = [pair for pair in pairs if pair.common]
    if not trials or None not in (bounds[pair.name] for pair in both):
        return _found(trials, both, bounds)
    noise = _noise(a)
    for _ in range(DRAWS):
        for trial in trials:
            progress(f"A under noise at {trial.text}")
            answer = noise(trial.feed)
            if isinstance(answer, str):
                raise CannotRunError(f"A fails under noise at {trial.text} ({answer}); {MEND}")
            trial.noisy.append(answer)
        found = _found(trials, both, bounds)
        if all(one is None or one.difference.equal for each in found.values() for one in each):
            break
    return found


def _found(
    trials: Sequence[_Trial], pairs: Sequence[_Pair], bounds: Mapping[str, Bounds | None]
) -> Findings:
    return {
        pair.name: [judge(pair.name, _of(trial, pair), bounds[pair.name]) for trial in trials]
        for pair in pairs
    }


def _of(trial: _Trial, pair: _Pair) -> Answers:
    assert not isinstance(trial.a, str)
    assert not isinstance(trial.b, str)
    noisy = [answer[pair.a] for answer in trial.noisy]
    return Answers(trial.a[pair.a], trial.b[pair.b], trial.again[pair.a], noisy)


def _noise(a: io.Loaded) -> Callable[[dict[str, Any]], Answer]:
    """A function that runs A with noise, another one each time."""
    try:
        graph = Graph(a.model)
        known = infer(graph, {}).types

        def asked(names: list[str]) -> Mapping[str, int]:
            return kinds(a.model, names, _base(a))

        amounts, types = levels(graph, known, asked, UNITS)
        noisy = disturbed(a.model, graph, amounts, types, map(float, count(1)))
        session = opened(noisy.model, _base(a))
    except (CannotRunError, InputError) as error:
        raise CannotRunError(f"rounding in A cannot be measured ({error}); {MEND}") from error
    return lambda feed: _run(session, {**feed, noisy.switch: np.array(True)})


def _concluded(
    trials: Sequence[_Trial], pairs: Sequence[_Pair], found: Findings, notes: list[str]
) -> Equivalence:
    """The verdict: an output that differs decides; what proves nothing does not count."""
    runs = tuple(trial.text for trial in trials if trial.complete)
    refused = [text for trial in trials for text in _refused(trial, notes)]
    outputs: list[Difference] = []
    proved = False
    for pair in pairs:
        if not pair.common:
            text = f"is missing in {'A' if pair.a < 0 else 'B'}"
            outputs.append(Difference(pair.name, equal=False, text=text))
        elif refused:
            outputs.append(Difference(pair.name, equal=False, text=refused[0]))
        elif found[pair.name]:
            one = _worst(pair.name, found[pair.name], notes)
            proved |= one is not None and not one.vain
            outputs += [one.difference] if one is not None else []
            _note_zeros(pair, trials, notes)
    if not all(one.equal for one in outputs):
        return Equivalence("different", runs, tuple(outputs), tuple(notes))
    if not proved:
        return Equivalence("not-run", runs, notes=(*notes, "there is nothing to compare"))
    return Equivalence("equal", runs, tuple(outputs), tuple(notes))


def _refused(trial: _Trial, notes: list[str]) -> Iterator[str]:
    """What to say of every output where one model alone runs."""
    failed = [trial.a if isinstance(trial.a, str) else trial.again, trial.b]
    errors = {which: one for which, one in zip("AB", failed, strict=True) if isinstance(one, str)}
    both = len(errors) == 2
    for which, error in errors.items():
        notes.append(f"{which} rejects {trial.text}: {error}")
        if not both:
            yield f"{which} rejects {trial.text}, which the other model runs"


def _worst(name: str, found: Sequence[Finding | None], notes: list[str]) -> Finding | None:
    known = [one for one in found if one is not None]
    if not known:
        notes.append(f"output {name!r} is not made of tensors and was not compared")
        return None
    worst = max(known, key=lambda one: one.rank)
    if worst.vain:
        notes.append(f"output {name!r} proves nothing: {worst.vain}")
    return worst


def _note_zeros(pair: _Pair, trials: Sequence[_Trial], notes: list[str]) -> None:
    """Zeros agree with zeros, whatever two models compute before them."""
    given = [_of(trial, pair).a for trial in trials if trial.complete]
    arrays = [one for one in given if isinstance(one, np.ndarray) and one.dtype.kind == "f"]
    if len(arrays) == len(given) and any(x.size for x in arrays) and not any(map(np.any, arrays)):
        notes.append(f"output {pair.name!r} is 0 everywhere in A, which proves little")
