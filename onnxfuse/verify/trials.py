"""Two models run on the same inputs, and A again under noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from onnxfuse.errors import InputError
from onnxfuse.model import io
from onnxfuse.model.graph import Graph
from onnxfuse.model.shapes import infer
from onnxfuse.verify.judge import MEND, Answers
from onnxfuse.verify.noise import disturbed
from onnxfuse.verify.pairing import Pair
from onnxfuse.verify.rounding import levels
from onnxfuse.verify.session import (
    UNITS,
    CannotRunError,
    check_survivable,
    kinds,
    line,
    opened,
    written,
)

INLINE = 2**31 - 1
"""Bytes from which on a model is loaded from its path; protobuf holds no more."""

Answer = list[Any] | str
"""The outputs of a run, or why there are none."""


@dataclass(frozen=True, slots=True)
class Trial:
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

    @property
    def errors(self) -> dict[str, str]:
        """Why A and B do not run here."""
        failed = {"A": self.a if isinstance(self.a, str) else self.again, "B": self.b}
        return {which: error for which, error in failed.items() if isinstance(error, str)}

    def answers(self, pair: Pair) -> Answers:
        """What was found of an output, where both models run."""
        assert not isinstance(self.a, str)
        assert not isinstance(self.b, str)
        noisy = [answer[pair.a] for answer in self.noisy]
        return Answers(self.a[pair.a], self.b[pair.b], self.again[pair.a], noisy)


def trials(
    a: io.Loaded, b: io.Loaded, given: Sequence[dict[str, Any]], progress: Callable[[str], None]
) -> list[Trial]:
    """Both models at every input, one session after the other; A runs twice.

    Raises `CannotRunError` where one of them does not load.
    """
    ours = list(_answers("A", a, [*given, *given], progress))
    theirs = list(_answers("B", b, given, progress))
    firsts, seconds = ours[: len(given)], ours[len(given) :]
    found = zip(given, firsts, seconds, theirs, strict=True)
    return [Trial(feed, first, second, other, []) for feed, first, second, other in found]


def _answers(
    which: str, loaded: io.Loaded, given: Sequence[dict[str, Any]], progress: Callable[[str], None]
) -> Iterator[Answer]:
    try:
        large = len(loaded.data) > INLINE and loaded.path is not None
        check_survivable(loaded.model)
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


def noise(a: io.Loaded) -> Callable[[dict[str, Any]], Answer]:
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
