"""Whether one result of model B is that of model A, as far as A's own rounding allows.

It knows arrays alone: what A gave, gave again, and gave under noise, and what B gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import frexp, ldexp
from typing import Any

import numpy as np

from onnxfuse.model.tensors import FLOATS, dtype_of
from onnxfuse.records import Difference
from onnxfuse.verify.session import UNITS
from onnxfuse.verify.slices import FACTOR, FROM_RUN_TO_RUN, Index, Measured, blocks, measured

ROUNDOFF = {dtype_of(kind): roundoff for kind, roundoff in FLOATS.items()}
CLASSES = np.array(["finite", "NaN", "+inf", "-inf"])
VAGUE, VAGUE_HALF, VAGUE_SHARE = 0.02, 0.1, 0.1
"""More than that, of floats, of two-byte floats and of the elements of others, is no bound."""
SLACK = 0.25
"""Of the elements that noise changes in A, as many may differ where or as noise changes none."""
NEAR, NEAR_SHARE = 16.0, 0.05
"""How many times too large a difference, and how many elements, more noise may explain."""
SINGLE = 2.0**-24
"""Zeros in A have no size; beside them so much of the largest entry is a unit, if not less."""
ACCEPT = "pass --rtol to accept that"
MEND = "pass a tolerance (--rtol) instead"


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
    """A difference; ``vain`` says why it proves nothing, where it does not.

    ``near`` says that noise, if drawn more often, may explain the difference yet.
    """

    difference: Difference
    vain: str = ""
    near: bool = False

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


def constant(given: Sequence[Answers]) -> str:
    """The one value of A in every element and every run, as text; empty where it has more.

    Runs are those at several inputs and under noise; what B gives is not looked at. Floats are
    one value as long as they are all within what B may differ by of it.
    """
    runs = [run for answers in given for run in (answers.a, answers.again, *answers.noisy)]
    arrays = [array for run in runs for array in _parts(run) or [] if array.size]
    if not arrays:
        return "nothing"
    value = arrays[0].flat[0]
    return str(value) if all(_is_all(array, value) for array in arrays) else ""


def _is_all(array: Any, value: Any) -> bool:
    if array.dtype not in ROUNDOFF or not np.isfinite(value):
        return bool(np.all(array == value))
    if not np.all(array == value):  # the cheap question first
        far = np.abs(array.astype(np.float64) - float(value))
        return bool(np.all(far <= FACTOR * UNITS * ROUNDOFF[array.dtype] * abs(float(value))))
    return True


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


def _alike(name: str, reason: str, bounds: Bounds | None) -> Finding:
    """What shows no difference and, unless that was to be accepted, proves nothing."""
    vain = "" if bounds else f"it {reason}; {ACCEPT}"
    return Finding(Difference(name, equal=True, text=reason), vain)


def _tensor(name: str, answers: Answers, bounds: Bounds | None) -> Finding:
    a, b = answers.a, answers.b
    if any(other.shape != a.shape for other in (answers.again, *answers.noisy)):
        return _vain(name, "rounding alone changes its shape")
    if a.dtype != b.dtype or a.shape != b.shape:
        text = f"is {_kind(b)} in B, {_kind(a)} in A"
        return Finding(Difference(name, equal=False, text=text))
    if not a.size:
        return _alike(name, "has no elements", bounds)
    if a.dtype not in ROUNDOFF:
        return _discrete(name, answers, bounds)
    a, b, again = (np.atleast_1d(one) for one in (a, b, answers.again))
    noisy = [np.atleast_1d(one) for one in answers.noisy]
    return _continuous(name, Answers(a, b, again, noisy), bounds)


def _kind(array: Any) -> str:
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"


def _discrete(name: str, answers: Answers, bounds: Bounds | None) -> Finding:
    """Integers, booleans and text: how many elements differ, and how many rounding explains.

    An element that noise changes in A may differ by as much.
    """
    a, size = answers.a.ravel(), answers.a.size
    at = np.flatnonzero(a != answers.b.ravel())
    left, right = a[at], answers.b.ravel()[at]
    gap = _gap(left, right)
    largest = float(gap.max()) if at.size and a.dtype.kind in "iu" else 0.0
    share = at.size / size
    text = f"{at.size} of {size} elements differ"
    if bounds is not None:
        beyond = at.size
        if a.dtype.kind in "iu":
            limit = bounds.atol + bounds.rtol * np.abs(left.astype(np.float64))
            beyond = int(np.sum(gap > limit))
            text = f"{beyond} of {size} elements beyond {bounds}"
        return Finding(Difference(name, not beyond, share, largest, text=text))
    moved, explained = np.zeros(size, bool), np.zeros(at.size, bool)
    for other in (run.ravel() for run in answers.noisy):
        moved |= a != other
        explained |= (gap <= _gap(left, other[at])) & (left != other[at])
    again = float(np.mean(a != answers.again.ravel()))
    changed = float(np.mean(moved))
    allowed = float(np.sum(explained)) / size + SLACK * changed + FROM_RUN_TO_RUN * again
    text += f"; rounding changes {np.sum(moved)} in A"
    found = Difference(name, share <= allowed, share, largest, allowed, text if at.size else "")
    vague = found.equal and share > 0 and max(changed, again) > VAGUE_SHARE
    return Finding(found, _vagueness(max(changed, again)) if vague else "", share <= NEAR_SHARE)


def _gap(left: Any, right: Any) -> Any:
    """By how much elements differ: numbers at least by 1, others by 1 each.

    What is no number and differs is explained by any change that noise makes.
    """
    differs = left != right
    if left.dtype.kind not in "iu":
        return differs.astype(np.float64)
    far = np.abs(left.astype(np.float64) - right.astype(np.float64))
    return np.where(differs, np.maximum(far, 1), 0)


def _vagueness(allowed: float) -> str:
    return (
        f"rounding, or chance from run to run, explains differences of {allowed:.2g} in A; {MEND}"
    )


def _continuous(name: str, answers: Answers, bounds: Bounds | None) -> Finding:
    a, b = answers.a, answers.b
    kinds, others = _classes(a), _classes(b)
    steady = np.ones(a.shape, bool)
    if bounds is None:
        for run in (answers.again, *answers.noisy):
            steady &= _classes(run) == kinds
    wrong = steady & (others != kinds)
    calm = steady & (kinds == 0) & (others == 0)
    size = np.abs(a) if calm.all() else np.where(calm, np.abs(a), 0)
    peak = float(size.max()) or 1.0
    peak = ldexp(1.0, min(frexp(peak)[1], 1023))  # so that nothing is rounded by it
    found = _measured(answers, calm, peak)
    largest = found.largest * peak
    if wrong.any():
        where = np.flatnonzero(wrong)[0]
        text = (
            f"is {CLASSES[others.flat[where]]} where A is {CLASSES[kinds.flat[where]]} "
            f"({np.sum(wrong)} of {a.size} elements)"
        )
        return Finding(Difference(name, False, found.whole.error, largest, text=text))
    if not calm.any():
        return _not_finite(name, kinds, others, bounds)
    if bounds is not None:
        beyond = _beyond(a, b, calm, bounds)
        text = f"{beyond} of {a.size} elements beyond {bounds}"
        return Finding(Difference(name, not beyond, found.whole.error, largest, text=text))
    return _by_noise(name, a.dtype, found, largest)


def _by_noise(name: str, dtype: Any, found: Measured, largest: float) -> Finding:
    """The worst slice decides; where only a large response explains the whole, nothing does."""
    worst, whole = found.worst, found.whole
    equal, text = worst.ratio <= 1, str(worst.place)
    if text and equal:
        text = f"nearest to its bound {text}"
    elif text:
        text = f"differs by {worst.error:.3g} {text}, rounding explains {worst.allowed:.3g}"
    difference = Difference(name, equal, worst.error, largest, worst.allowed, text)
    limit = VAGUE_HALF if dtype.itemsize == 2 else VAGUE
    vague = whole.error > FACTOR * UNITS * ROUNDOFF[dtype] and whole.allowed > limit
    vain = _vagueness(whole.allowed) if equal and vague else ""
    return Finding(difference, vain, worst.ratio <= NEAR)


def _measured(answers: Answers, calm: Any, peak: float) -> Measured:
    """The distance of B from A where both are finite, everything being relative to ``peak``.

    Noise explains its response, and ``UNITS`` roundoffs of each element where that is more. Below
    the least normal number roundoff no longer shrinks with the value.
    """
    dtype = answers.a.dtype
    limits = np.finfo(dtype) if dtype.kind == "f" else None
    everywhere = bool(calm.all())
    least = float(limits.tiny) * float(limits.eps) / 2 / peak if limits is not None else 0.0

    def wide(run: Any, block: Index) -> Any:
        found = run[block].astype(np.float64)
        found /= peak
        return found if everywhere else np.where(calm[block], found, 0)

    def quantities(block: Index) -> list[Any]:
        a, b, again = (wide(run, block) for run in (answers.a, answers.b, answers.again))
        size = np.abs(a)
        explained = np.maximum(UNITS * ROUNDOFF[dtype] * size, UNITS * least)
        for run in answers.noisy:
            np.maximum(explained, _apart(wide(run, block), a), out=explained)
        return [_apart(b, a), explained, _apart(again, a), size]

    fine = min(ROUNDOFF[dtype], SINGLE)
    return measured(answers.a.shape, quantities, FACTOR * UNITS * fine)


def _apart(left: Any, right: Any) -> Any:
    """|left - right|, in place of ``left``."""
    left -= right
    return np.abs(left, out=left)


def _beyond(a: Any, b: Any, calm: Any, bounds: Bounds) -> int:
    count = 0
    for block in blocks(a.shape):
        left, right = (run[block].astype(np.float64) for run in (a, b))
        outside = np.abs(right - left) > bounds.atol + bounds.rtol * np.abs(left)
        count += int(np.sum(outside & calm[block]))
    return count


def _classes(array: Any) -> Any:
    """0 where an element is finite, 1 where NaN, 2 where +inf, 3 where -inf."""
    found = np.zeros(array.shape, np.int8)
    if np.isfinite(array).all():
        return found
    found[np.isnan(array)] = 1
    found[array == np.inf] = 2
    found[array == -np.inf] = 3
    return found


def _not_finite(name: str, kinds: Any, other: Any, bounds: Bounds | None) -> Finding:
    """An output without a finite element to compare."""
    if (kinds != other).any():
        return _vain(name, "rounding alone decides which elements are finite")
    if (kinds == 1).all():
        return _vain(name, "it is NaN everywhere")
    return _alike(name, "has no finite element; infinities and NaN are at the same places", bounds)
