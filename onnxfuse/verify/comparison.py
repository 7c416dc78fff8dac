"""One input, both models: how far each tensor is off, and how far it may be.

A difference below the least noise there is needs no explanation. Any other is judged against what
rounding in the regions does to the original: that is run again with every region's inputs and
output disturbed by a few units of roundoff (or by the region's measured error, where that is
larger), and the fused model may differ by ``FACTOR`` times that response, or ``NARROW`` times in
half precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxfuse.errors import ProofError
from onnxfuse.model.tensors import FLOATS
from onnxfuse.records import OutputError
from onnxfuse.verify.judge import Bounds
from onnxfuse.verify.nested import captured
from onnxfuse.verify.pairing import Tolerance
from onnxfuse.verify.rms import rms
from onnxfuse.verify.session import FACTOR, NARROW, UNITS, CannotRunError
from onnxfuse.verify.sides import Sides
from onnxfuse.verify.subject import Subject

DRAWS = 4
"""How often noise is drawn before a difference is called unexplained."""
PIECE = 1 << 16
"""Elements that are compared at once, in float64: as many as a processor's caches hold."""


def allowing(bounds: Bounds) -> str:
    """A tolerance as it is said of an output."""
    return f"{bounds.atol:g} + {bounds.rtol:g}·|original| in each element"


class Comparison:
    """The comparison of both models at one input."""

    def __init__(
        self,
        subject: Subject,
        sides: Sides,
        tolerance: Tolerance,
        feed: Mapping[str, Any],
        text: str,
    ) -> None:
        self._subject = subject
        self._sides = sides
        self._tolerance = tolerance
        self._feed = feed
        self._text = text

    def found(self, names: Sequence[str]) -> Iterator[OutputError]:
        """How far the fused model is off at each of ``names`` that holds numbers to compare.

        Raises `RejectedError`, and `ProofError` where rounding does not explain a difference.
        """
        expected, actual = self._sides.run(names, self._feed, self._text)
        found: dict[str, OutputError | None] = {}
        unclear: dict[str, tuple[Any, Any]] = {}
        for name, o, f in zip(names, expected, actual, strict=True):
            if o.shape != f.shape or o.dtype != f.dtype:
                raise self._failed(
                    name,
                    f"output {name!r} has shape {list(f.shape)} at {self._text}, the original's "
                    f"is {list(o.shape)}",
                )
            bounds = self._tolerance.of(name) if name in self._subject.graph.outputs_set else None
            if bounds is not None and o.dtype.kind in "fViub":
                if np.isfinite(o.astype(np.float64)).any():
                    found[name] = self._held(name, o, f, bounds)
            elif o.dtype.kind in "fV" and o.size:
                found[name] = self._near(name, o, f)
                if found[name] is None:
                    unclear[name] = o, f
        found |= self._explained(unclear)
        return filter(None, found.values())

    def _explained(self, unclear: Mapping[str, tuple[Any, Any]]) -> dict[str, OutputError | None]:
        """The errors of tensors that differ by more than nothing, each as far as noise explains it.

        Where a result is coarser than rounding, as a Sigmoid near 0 is, one draw may move nothing.
        """
        if not unclear:
            return {}
        names = list(unclear)
        again = self._sides.again(names, self._feed)
        heard: dict[str, list[Any]] = {name: [] for name in names}
        for draw in range(1, DRAWS):
            self._listen(heard, draw)
            with suppress(ProofError):
                return self._judgements(unclear, again, heard)
        self._listen(heard, DRAWS)
        return self._judgements(unclear, again, heard)

    def _listen(self, heard: Mapping[str, list[Any]], draw: int) -> None:
        """Add what the original gives under one more draw of noise."""
        try:
            found = self._sides.disturbed(list(heard), self._feed, draw)
        except CannotRunError as error:
            name = next(iter(heard))
            raise self._failed(
                name,
                f"{self._what(name)} differs at {self._text} by more than a few units of roundoff, "
                f"and what rounding explains cannot be measured: {error}",
            ) from error
        for arrays, array in zip(heard.values(), found, strict=True):
            arrays.append(array)

    def _judgements(
        self,
        unclear: Mapping[str, tuple[Any, Any]],
        again: Sequence[Any],
        heard: Mapping[str, list[Any]],
    ) -> dict[str, OutputError | None]:
        return {
            name: self._judged(name, *pair, chance, heard[name])
            for (name, pair), chance in zip(unclear.items(), again, strict=True)
        }

    def _what(self, name: str) -> str:
        kind = "output" if name in self._subject.graph.outputs_set else "tensor"
        return f"{kind} {name!r}"

    def _bounds(self, name: str) -> tuple[float, float]:
        """How many times the response to noise may differ, and what may whatever noise does."""
        unit = FLOATS[self._subject.types.get(name, TensorProto.FLOAT)]
        factor = NARROW if unit > 2**-20 else FACTOR
        return factor, factor * UNITS * unit

    def _near(self, name: str, o: Any, f: Any) -> OutputError | None:
        """The error of a tensor that needs no noise to be explained."""
        difference, size = squares(o, f)
        _, least = self._bounds(name)
        error = float(np.sqrt(difference / o.size)) / (float(np.sqrt(size / o.size)) or 1.0)
        return OutputError(name, error, least) if error <= least and np.isfinite(size) else None

    def _judged(
        self, name: str, o: Any, f: Any, again: Any, heard: Sequence[Any]
    ) -> OutputError | None:
        """A tensor of the original, of the fused model, of the first once more, and under noise."""
        wide = [array.astype(np.float64) for array in (o, f, again, *heard)]
        calm = np.isfinite(wide[0])
        for array in wide[3:]:  # where the type does not overflow
            calm &= np.isfinite(array)
        if not calm.any():
            return None
        if not np.isfinite(wide[1][calm]).all():
            raise self._failed(
                name, f"output {name!r} is not finite at {self._text} where the original is"
            )
        reference, fused, chance, *loud = (array[calm] for array in wide)
        scale = rms(reference) or 1.0
        factor, least = self._bounds(name)
        response = max(rms(array - reference) for array in loud)
        allowed = max(factor * response / scale, least)
        allowed += 4 * rms(chance - reference) / scale
        error = rms(fused - reference) / scale
        if not error <= allowed and not self._subject.approximate:
            raise self._failed(
                name,
                f"{self._what(name)} differs by {error:.3g} (relative RMS) at {self._text}, where "
                f"rounding explains {allowed:.3g}",
            )
        return OutputError(name, float(error), float(allowed))

    def _held(self, name: str, o: Any, f: Any, bounds: Bounds) -> OutputError:
        """An output held against a tolerance, element by element, where the original is finite."""
        o, f = (array.astype(np.float64) for array in (o, f))
        calm = np.isfinite(o)
        reference, fused = o[calm], f[calm]
        allowed = bounds.atol + bounds.rtol * np.abs(reference)
        difference = np.abs(fused - reference)
        beyond = ~(difference <= allowed)  # also where the fused model is not finite
        if beyond.any():
            raise self._failed(
                name,
                f"output {name!r} differs by up to {difference[beyond].max():.3g} at {self._text}: "
                f"{int(beyond.sum())} of {beyond.size} elements are beyond the given tolerance of "
                f"{allowing(bounds)}",
            )
        scale = rms(reference) or 1.0
        return OutputError(
            name, rms(difference) / scale, rms(allowed) / scale, f"given: {allowing(bounds)}"
        )

    def _failed(self, name: str, text: str) -> ProofError:
        """The error of a differing tensor, with the regions that it depends on most nearly."""
        found = list(islice(_nearest(self._subject, name), 3))
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


def squares(reference: Any, other: Any) -> tuple[float, float]:
    """The sums of the squares of a difference and of the reference, in float64."""
    difference, size = 0.0, 0.0
    left, right = reference.reshape(-1), other.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number is looked at closely
        for start in range(0, left.size, PIECE):
            wide = left[start : start + PIECE].astype(np.float64)
            size += float(wide @ wide)
            wide -= right[start : start + PIECE].astype(np.float64)
            difference += float(wide @ wide)
    return difference, size
