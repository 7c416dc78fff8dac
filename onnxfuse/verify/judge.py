"""Whether one result of model B is that of model A, as far as A's own rounding allows.

It knows arrays alone: what A gave, gave again, and gave under noise, and what B gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxfuse.model.tensors import FLOATS, dtype_of
from onnxfuse.records import Difference
from onnxfuse.verify.session import FACTOR, UNITS, rms

ROUNDOFF = {dtype_of(kind): roundoff for kind, roundoff in FLOATS.items()}
CLASSES = np.array(["finite", "NaN", "+inf", "-inf"])


@dataclass(frozen=True, slots=True)
class Bounds:
    """A tolerance that was given: ``|A - B| <= atol + rtol·|A|`` for every element."""

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"{self.atol:g} + {self.rtol:g}·|A|"


@dataclass(frozen=True, slots=True)
class Answers:
    """An output of both models at one input; ``again`` and ``noisy`` are A's, run once more."""

    a: Any
    b: Any
    again: Any
    noisy: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference; ``vain`` says why it proves nothing, where it does not."""

    difference: Difference
    vain: str = ""

    @property
    def rank(self) -> tuple[bool, bool, float, bool]:
        """Greater is worse, and what proves nothing is least."""
        found = self.difference
        ratio = found.rms / found.allowed if found.allowed > 0 else found.rms
        return not found.equal, not self.vain, ratio, not found.text


def judge(name: str, answers: Answers, bounds: Bounds | None) -> Finding | None:
    """What is to be said of an output, which is a tensor, a sequence of tensors or nothing.

    ``None`` where it is something else. Without ``bounds`` the response to noise decides.
    """
    parts = [_parts(value) for value in (answers.a, answers.b, answers.again, *answers.noisy)]
    if any(part is None for part in parts):
        return None
    a, b, again, *noisy = (part or [] for part in parts)
    if any(len(other) != len(a) for other in (again, *noisy)):
        return _vain(name, "rounding alone changes how many tensors it holds")
    if len(a) != len(b):
        text = f"holds {len(b)} tensors in B, {len(a)} in A"
        return Finding(Difference(name, equal=False, text=text))
    if not a:
        return Finding(Difference(name, equal=True, text="holds nothing in both models"))
    heard = list(zip(*noisy, strict=True)) or [()] * len(a)
    with np.errstate(all="ignore"):
        found = [
            _tensor(name, Answers(*values), bounds)
            for values in zip(a, b, again, heard, strict=True)
        ]
    return max(found, key=lambda one: one.rank)


def _parts(value: Any) -> list[Any] | None:
    """The arrays that an output consists of, if that is all."""
    if value is None:
        return []
    if isinstance(value, np.ndarray | np.generic):
        return [np.asarray(value)]
    if isinstance(value, list) and all(isinstance(part, np.ndarray) for part in value):
        return value
    return None


def _vain(name: str, reason: str) -> Finding:
    return Finding(Difference(name, equal=True, text=reason), reason)


def _tensor(name: str, answers: Answers, bounds: Bounds | None) -> Finding:
    a, b = answers.a, answers.b
    if any(other.shape != a.shape for other in (answers.again, *answers.noisy)):
        return _vain(name, "rounding alone changes its shape")
    if a.dtype != b.dtype or a.shape != b.shape:
        text = f"is {_kind(b)} in B, {_kind(a)} in A"
        return Finding(Difference(name, equal=False, text=text))
    if not a.size:
        return Finding(Difference(name, equal=True, text="has no elements"))
    if a.dtype not in ROUNDOFF:
        return _discrete(name, answers, bounds)
    return _continuous(name, answers, bounds)


def _kind(array: Any) -> str:
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"


def _discrete(name: str, answers: Answers, bounds: Bounds | None) -> Finding:
    """Integers, booleans and text: how many elements differ, and how many rounding changes.

    A response of one element in a thousand to noise allows B ``FACTOR`` in a thousand.
    """
    a, b = answers.a, answers.b
    differs = a != b
    largest, beyond = 0.0, differs
    if a.dtype.kind in "iu":
        gap = np.where(differs, np.maximum(np.abs(a.astype(np.float64) - b), 1), 0)
        largest = float(gap.max())
        if bounds is not None:
            beyond = gap > bounds.atol + bounds.rtol * np.abs(a.astype(np.float64))
    share = float(np.mean(differs))
    text = f"{np.sum(differs)} of {a.size} elements differ"
    if bounds is not None:
        equal = not beyond.any()
        if a.dtype.kind in "iu":
            text = f"{np.sum(beyond)} of {a.size} elements beyond {bounds}"
        return Finding(Difference(name, equal, share, largest, text=text))
    moved = max((float(np.mean(a != other)) for other in answers.noisy), default=0.0)
    allowed = FACTOR * moved + 4 * float(np.mean(a != answers.again))
    if share:
        text += f"; rounding changes {round(moved * a.size)} in A"
    found = Difference(name, share <= allowed, share, largest, allowed, text if share else "")
    return Finding(found, _unsteady(found))


def _unsteady(found: Difference) -> str:
    """Why a difference within its bound says nothing where that bound admits anything."""
    if found.rms and found.allowed >= 1 and found.equal:
        return "it changes by as much as that in A, by rounding or from run to run"
    return ""


def _continuous(name: str, answers: Answers, bounds: Bounds | None) -> Finding:
    a, b, again, *noisy = (
        array.astype(np.float64) for array in (answers.a, answers.b, answers.again, *answers.noisy)
    )
    kinds = _classes(a)
    steady = np.ones(a.shape, bool)
    if bounds is None:
        for other in (again, *noisy):
            steady &= _classes(other) == kinds
    wrong = steady & (_classes(b) != kinds)
    calm = steady & np.isfinite(a) & np.isfinite(b)
    difference = np.abs(b[calm] - a[calm])
    peak = float(np.abs(a[calm]).max()) if calm.any() else 0.0
    scale = (peak or 1.0) * (rms(a[calm] / peak) if peak else 1.0)
    error = rms(difference / scale)
    largest = float(difference.max()) if difference.size else 0.0
    if wrong.any():
        where = np.flatnonzero(wrong)[0]
        text = (
            f"is {CLASSES[_classes(b).flat[where]]} where A is {CLASSES[kinds.flat[where]]} "
            f"({np.sum(wrong)} of {a.size} elements)"
        )
        return Finding(Difference(name, equal=False, rms=error, largest=largest, text=text))
    if not calm.any():
        return _not_finite(name, kinds, _classes(b))
    if bounds is not None:
        beyond = int(np.sum(difference > bounds.atol + bounds.rtol * np.abs(a[calm])))
        text = f"{beyond} of {a.size} elements beyond {bounds}"
        return Finding(Difference(name, not beyond, error, largest, text=text))
    allowed = _allowed(answers.a.dtype, scale, [rms((n[calm] - a[calm]) / scale) for n in noisy])
    allowed += 4 * rms((again[calm] - a[calm]) / scale)
    found = Difference(name, error <= allowed, error, largest, allowed)
    return Finding(found, _unsteady(found))


def _allowed(dtype: Any, scale: float, responses: Sequence[float]) -> float:
    """``FACTOR`` times the response to noise, or times ``UNITS`` roundoffs where that is more.

    Below the least normal number roundoff no longer shrinks with the value.
    """
    limits = np.finfo(dtype) if dtype.kind == "f" else None
    least = float(limits.tiny) * float(limits.eps) / 2 if limits is not None else 0.0
    floor = UNITS * max(ROUNDOFF[dtype], least / scale)
    return FACTOR * max(floor, *responses, 0.0)


def _classes(array: Any) -> Any:
    """0 where an element is finite, 1 where NaN, 2 where +inf, 3 where -inf."""
    return np.where(np.isfinite(array), 0, np.where(np.isnan(array), 1, np.where(array > 0, 2, 3)))


def _not_finite(name: str, kinds: Any, other: Any) -> Finding:
    """An output without a finite element to compare."""
    if (kinds != other).any():
        return _vain(name, "rounding alone decides which elements are finite")
    if (kinds == 1).all():
        return _vain(name, "it is NaN everywhere")
    text = "has no finite element; infinities and NaN are at the same places"
    return Finding(Difference(name, equal=True, text=text))
