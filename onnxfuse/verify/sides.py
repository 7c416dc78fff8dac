"""Both models loaded in one runtime, and the original under noise where that is asked for.

Models of types that onnxruntime lacks kernels for run in onnx's reference evaluator instead. What
differs by less than any noise explains needs none, so that most models are loaded once each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxfuse.errors import ProofError
from onnxfuse.verify import reference
from onnxfuse.verify.session import (
    NAME,
    CannotRunError,
    NoKernelError,
    check_exchangeable,
    check_survivable,
    line,
)
from onnxfuse.verify.session import opened as _session
from onnxfuse.verify.subject import Subject, models, noisy


class RejectedError(Exception):
    """The original does not run at some inputs."""


@dataclass(slots=True)
class Sides:
    """Both models in a runtime, which ``oracle`` names; the fused may be the reason why it is none.

    ``steering`` are the inputs that decide of Ifs (see `onnxfuse.verify.nested`).
    """

    oracle: str
    steering: tuple[str, ...]
    _subject: Subject
    _names: Sequence[str]
    _original: Any
    _fused: Any
    _noisy: tuple[int, Any, str] | None = None

    def run(self, names: Sequence[str], feed: Mapping[str, Any], text: str) -> list[list[Any]]:
        """What the original gives for each of ``names``, and what the fused model does.

        Raises `RejectedError` where the original does not run, and `ProofError` where only it does.
        """
        try:
            expected = self._original.run(names, feed)
        except Exception as error:
            raise RejectedError(line(error)) from error
        if isinstance(self._fused, CannotRunError):
            raise ProofError(
                f"{self.oracle} runs the original but not the fused model ({self._fused}); "
                "please report this"
            ) from self._fused
        try:
            return [expected, self._fused.run(names, feed)]
        except Exception as error:
            raise ProofError(
                f"the fused model fails at {text} where the original runs: {line(error)}"
            ) from error

    def again(self, names: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
        """What the original gives if it is run once more."""
        found: list[Any] = self._original.run(names, feed)
        return found

    def disturbed(self, names: Sequence[str], feed: Mapping[str, Any], draw: int) -> list[Any]:
        """What the original gives under noise, which is another one for each ``draw``.

        Raises `CannotRunError` where it does not run with noise in it.
        """
        if self._noisy is None or self._noisy[0] != draw:
            self._noisy = None  # two at once take the memory of two
            made = noisy(self._subject, self._names, draw)
            opened = _session if self.oracle == NAME else reference.opened
            self._noisy = draw, opened(made.model, self._subject.base), made.switch
        _, session, switch = self._noisy
        try:
            found: list[Any] = session.run(names, {**feed, switch: np.array(True)})
        except Exception as error:
            raise CannotRunError(f"the original does not run with noise: {line(error)}") from error
        return found


def sides(subject: Subject, names: Sequence[str]) -> Sides:
    """Both models, ``names`` among the outputs of each.

    Raises `CannotRunError` where the original does not load.
    """
    original, exposed, steering = models(subject, names)
    loaded: Any
    try:
        check_survivable(subject.original)
        loaded = _session(original, subject.base)
        check_exchangeable(loaded)
    except NoKernelError as error:
        try:
            loaded = _referred(subject, original)
        except CannotRunError as why:
            raise CannotRunError(f"onnxruntime cannot run this model: {error}; {why}") from why
        other = _fused(reference.opened, exposed, subject)
        return Sides(reference.NAME, steering, subject, names, loaded, other)
    except CannotRunError as error:
        raise CannotRunError(f"onnxruntime cannot run this model: {error}") from error
    other = _fused(_session, exposed, subject)
    return Sides(NAME, steering, subject, names, loaded, other)


def _fused(opened: Callable[[Any, str | None], Any], model: Any, subject: Subject) -> Any:
    """The fused model in a runtime, or why it is not: our fault if the original runs."""
    try:
        check_survivable(subject.fused)
        return opened(model, subject.base)
    except CannotRunError as error:
        return error


def _referred(subject: Subject, model: onnx.ModelProto) -> reference.Reference:
    """The original in onnx's own evaluator."""
    reference.check_fit(subject.graph, subject.macs)
    return reference.opened(model, subject.base)
