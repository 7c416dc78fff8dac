"""Whether two models compute the same: both run in onnxruntime, unoptimised, on the same inputs.

How much two outputs may differ is measured on A unless a tolerance is given. A is run again with
noise of ``UNITS`` roundoffs on its inputs and on every tensor that depends on them and was
rounded; every slice of B may differ by ``FACTOR`` times that response, plus what A changes from
run to run. Only A's own types count: a float16 model B rounds coarser than a float32 model A
explains, so such a pair needs a tolerance. What is constant in A is not disturbed.

What would be equal whatever B computes proves nothing: an output without elements, of one value
whatever the input, or changed by noise by as much as anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxfuse.errors import InputError
from onnxfuse.model import io
from onnxfuse.model.graph import Graph
from onnxfuse.model.shapes import Shape
from onnxfuse.records import Difference, Equivalence
from onnxfuse.verify import trials as running
from onnxfuse.verify.draws import Ranges, rungs
from onnxfuse.verify.given import matched
from onnxfuse.verify.judge import ACCEPT, MEND, Bounds, Finding, constant, judge
from onnxfuse.verify.pairing import (
    KINDS,
    Pair,
    Tolerance,
    check_shapes,
    check_tolerance,
    inputs,
    paired,
)
from onnxfuse.verify.rounding import depending
from onnxfuse.verify.session import SEED, CannotRunError, feeds
from onnxfuse.verify.trials import Answer, Trial, trials

__all__ = ["Tolerance", "compare"]

DRAWS, MOST_DRAWS = 3, 24
"""Noise is drawn so often before outputs are called different; the more often if they are near."""
HELD = 2**29
"""Bytes of A's outputs under noise; where more would be held, noise is not drawn again."""
OTHERS = 3
"""Further inputs that are tried where an output of A has one value only."""

Findings = dict[str, list[Finding | None]]
"""What was found of an output at each input that both models ran."""


@np.errstate(all="ignore")
def compare(
    a: io.Loaded,
    b: io.Loaded,
    shapes: Mapping[str, Shape] | None = None,
    tolerance: Tolerance | None = None,
    progress: Callable[[str], None] = lambda _: None,
    data: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Equivalence:
    """Run both models and judge every output; ``shapes`` gives sizes of open inputs.

    ``data`` are the only inputs to run, by name; else inputs are drawn, with ``seed``.
    Where an output holds integers, booleans or text, ``rms`` and ``allowed`` of its `Difference`
    are the fractions of elements that differ and may differ; where a tolerance is given,
    ``allowed`` is 0 and the text says how many elements are beyond it. Raises `InputError` where
    the models do not take the same inputs, or what is asked for is not theirs.
    """
    tolerance = tolerance or Tolerance({}, {})
    for loaded in (a, b):
        if loaded.base is not None:
            io.data_files(loaded.model, loaded.base)
    given, notes = inputs(a.model, b.model)
    check_shapes(given, shapes or {})
    pairs, more = paired(a.model, b.model)
    check_tolerance(tolerance, pairs)
    notes += more
    odd = [v.name for v in given if v.type.tensor_type.elem_type not in KINDS]
    if odd:
        text = f"input {odd[0]!r} is not a tensor of a known type, so nothing was run"
        return Equivalence("not-run", notes=(*notes, text))
    bounds = {pair.name: tolerance.of(pair.name) for pair in pairs}
    feed = None
    if data is not None:
        feed = dict(matched(data, given, shapes or {}))
        notes.append("the inputs are those that were given; no others were drawn")
    elif seed is not None:
        notes.append(f"the inputs were drawn with seed {seed}")
    drawn = SEED if seed is None else seed
    run = _Comparison(a, b, given, shapes or {}, pairs, bounds, progress, notes, feed, drawn)
    try:
        return run.concluded()
    except CannotRunError as error:
        return Equivalence("not-run", notes=(*notes, str(error)))


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Two models, and what to do with them; ``notes`` grows."""

    a: io.Loaded
    b: io.Loaded
    inputs: Sequence[onnx.ValueInfoProto]
    shapes: Mapping[str, Shape]
    pairs: Sequence[Pair]
    bounds: Mapping[str, Bounds | None]
    progress: Callable[[str], None]
    notes: list[str]
    feed: dict[str, Any] | None
    seed: int

    def concluded(self) -> Equivalence:
        """The verdict: an output that differs decides; what proves nothing does not count."""
        done, ranges = self._first()
        found = self._judged([trial for trial in done if trial.complete])
        dead = self._dead(done)
        others = OTHERS if self.feed is None and any(trial.complete for trial in done) else 0
        for index in range(others):
            if not dead:
                break
            extra = [t for t in self._at(ranges, self.seed + 1 + index)[:1] if t.complete]
            for name, findings in self._judged(extra).items():
                found[name] += findings
            done += extra
            dead = self._dead(done)
        return _verdict(done, self.pairs, _without(found, dead, self), self.notes)

    def _first(self) -> tuple[list[Trial], Ranges]:
        """Runs at the widest integers that both models take, and at small ones."""
        if self.feed is not None:
            return trials(self.a, self.b, [self.feed], self.progress), {}
        wide, *others = rungs([self.a.model, self.b.model], self.inputs)
        if not others:
            self._say(wide)
            return self._at(wide), wide
        *guesses, few = others
        guessed = bool(guesses)
        done, last = self._at(wide), self._at(few)
        while guessed and not any(t.complete for t in done) and any(t.complete for t in last):
            self.notes.extend(f"with {_written(wide)} {text}" for text in _errors(done[:1]))
            if not guesses:
                self._say(few)
                return last, few
            wide = guesses.pop(0)
            done = self._at(wide)
        self._say(wide, few)
        return done + last, wide

    def _at(self, ranges: Ranges, seed: int | None = None) -> list[Trial]:
        seed = self.seed if seed is None else seed
        given = list(feeds(self.inputs, self.shapes, ranges, seed))
        return trials(self.a, self.b, given, self.progress)

    def _say(self, *tried: Ranges) -> None:
        text = ", then ".join(map(_written, filter(None, tried)))
        if text:
            self.notes.append(f"integers were drawn from {text}")

    def _judged(self, done: Sequence[Trial]) -> Findings:
        """Every output that both models have; A is run under noise where that is to decide."""
        both = [pair for pair in self.pairs if pair.common]
        derived = done and any(self.bounds[pair.name] is None for pair in both)
        noise = running.noise(self.a) if derived else None
        found: Findings = {pair.name: [] for pair in both}
        for trial in done:
            for name, finding in self._settled(trial, both, noise).items():
                found[name].append(finding)
        return found

    def _settled(
        self, trial: Trial, both: Sequence[Pair], noise: Callable[[dict[str, Any]], Answer] | None
    ) -> dict[str, Finding | None]:
        """The findings at one input, noise being drawn until it explains them or cannot."""
        while True:
            if noise is not None:
                self.progress(f"A under noise at {trial.text}")
                answer = noise(trial.feed)
                if isinstance(answer, str):
                    text = f"A fails under noise at {trial.text} ({answer}); {MEND}"
                    raise CannotRunError(text)
                trial.noisy.append(answer)
            found = {p.name: judge(p.name, trial.answers(p), self.bounds[p.name]) for p in both}
            wrong = [one for one in found.values() if one and not one.difference.equal]
            if noise is None or not wrong or not _worthwhile(trial, wrong):
                return found

    def _dead(self, done: Sequence[Trial]) -> dict[str, str]:
        """The outputs that follow from the input, and have one value all the same."""
        complete = [trial for trial in done if trial.complete]
        found = {
            pair.name: constant([trial.answers(pair) for trial in complete])
            for pair in self.pairs
            if pair.common
        }
        if not any(found.values()):
            return {}
        varying = _varying(self.a.model)
        return {
            name: value
            for name, value in found.items()
            if value and (varying is None or name in varying)
        }


def _worthwhile(trial: Trial, wrong: Sequence[Finding]) -> bool:
    """Whether noise is to be drawn once more: always some times, then where it may yet explain."""
    drawn = len(trial.noisy)
    if drawn < DRAWS:
        return True
    size = sum(getattr(array, "nbytes", 0) for array in trial.noisy[0])
    near = all(one.near for one in wrong)
    return near and drawn < MOST_DRAWS and size * (drawn + 1) < HELD


def _varying(model: onnx.ModelProto) -> set[str] | None:
    """The tensors that follow from the inputs' values; ``None`` if nobody can tell."""
    try:
        graph = Graph(model)
    except InputError:
        return None
    return {*graph.inputs, *(out for node in depending(graph) for out in node.outputs)}


def _written(ranges: Ranges) -> str:
    return " and ".join(
        f"{among.start} to {among.stop - 1} for {name!r}" for name, among in ranges.items()
    )


def _without(found: Findings, dead: Mapping[str, str], run: _Comparison) -> Findings:
    """The findings where those of dead outputs prove nothing, unless a tolerance was given."""
    where = "whatever the input" if run.feed is None else "at the given input"
    for name, value in dead.items():
        reason = f"it is {value} everywhere in A, {where}; {ACCEPT}"
        equal = all(one and one.difference.equal and not one.vain for one in found[name])
        if found[name] and run.bounds[name] is None and equal:
            found[name] = [Finding(Difference(name, equal=True, text=reason), reason)]
    return found


def _verdict(
    done: Sequence[Trial], pairs: Sequence[Pair], found: Findings, notes: list[str]
) -> Equivalence:
    runs = tuple(dict.fromkeys(trial.text for trial in done if trial.complete))
    refused = [text for trial in done for text in _refused(trial)]
    notes += dict.fromkeys(_errors(done))
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
    if not all(one.equal for one in outputs):
        return Equivalence("different", runs, tuple(outputs), tuple(notes))
    if not proved:
        return Equivalence("not-run", runs, notes=(*notes, "there is nothing to compare"))
    return Equivalence("equal", runs, tuple(outputs), tuple(notes))


def _errors(done: Sequence[Trial]) -> Iterator[str]:
    for trial in done:
        for which, error in trial.errors.items():
            yield f"{which} rejects {trial.text}: {error}"


def _refused(trial: Trial) -> Iterator[str]:
    """What to say of every output where one model alone runs."""
    if len(trial.errors) == 1:
        yield f"{next(iter(trial.errors))} rejects {trial.text}, which the other model runs"


def _worst(name: str, found: Sequence[Finding | None], notes: list[str]) -> Finding | None:
    known = [one for one in found if one is not None]
    if not known:
        notes.append(f"output {name!r} is not made of tensors and was not compared")
        return None
    worst = max(known, key=lambda one: one.rank)
    if worst.vain:
        notes.append(f"output {name!r} proves nothing: {worst.vain}")
    return worst
