"""The proof of a region: its nodes against their replacement, in float64.

Both are run by the same NumPy evaluator, which shares nothing with the algebra. With unrounded
weights they may differ by summation order alone:

    |f − o| ≤ 2·γₙ·A,   γₙ = n·u / (1 − n·u),   u = 2⁻⁵³

where ``n`` counts the summed terms on the way and ``A`` is the region evaluated on absolute
values (Higham, Accuracy and Stability, §3.1). Weights are rounded once to the model's type,
which is checked entry by entry. Border behaviour depends on the size modulo the stride, above
the extents; so small sizes prove it for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from onnxfuse.algebra.form import interior
from onnxfuse.algebra.laws import Linear
from onnxfuse.errors import ProofError
from onnxfuse.lift import View
from onnxfuse.realise import Replacement
from onnxfuse.records import RegionError
from onnxfuse.verify.rms import rms
from onnxfuse.verify.run import (
    DOUBLE,
    SINGLE,
    Arithmetic,
    places,
    rounded,
    run_original,
    run_replacement,
)
from onnxfuse.verify.sizes import Sizes, proof_sizes

U, U_SINGLE = 2.0**-53, 2.0**-24
SEED = 20_240_601
SMALL = 1 << 19
"""Products of a kernel up to which nothing is gained by less than float64."""
LARGEST = 1 << 28
"""Elements of the largest input that a proof draws."""


def prove(replacement: Replacement, view: View, kind: Any, roundoff: float) -> RegionError:
    """Prove a replacement of type ``kind``; raises `ProofError` naming the region."""
    try:
        return _proved(replacement, view, kind, roundoff)
    except ProofError as error:
        error.root = replacement.root
        raise


def _proved(replacement: Replacement, view: View, kind: Any, roundoff: float) -> RegionError:
    label = replacement.region.root.node.label
    rounding = _Rounding(replacement, kind, roundoff)
    terms = _summed_terms(replacement)
    assert replacement.region.cover is not None
    factor = 2 * terms * U / (1 - terms * U)
    if replacement.region.cover.form.matched:
        factor += 64 * roundoff
    worst, limit, border = 0.0, 0.0, 0.0
    tried: list[tuple[int, ...]] = []
    errors: list[tuple[float, float, float]] = []
    for sizes in proof_sizes(replacement, view):
        generator = np.random.default_rng(SEED)
        if any(prod(shape) > LARGEST for shape in sizes.values()):
            raise ProofError(
                f"region {label!r} is too large to prove at its fixed size; export a smaller one, "
                f"or leave the region out with --except {label!r}"
            )
        inputs = {n: _drawn(generator, shape, kind) for n, shape in sizes.items()}
        try:
            inputs = _with_derived(replacement, view, inputs)
            expected = run_original(replacement, view, inputs, DOUBLE)
            size = _magnitude(replacement, view, inputs, terms, expected.size)
        except ValueError:
            continue  # the original itself rejects this size
        if not expected.size:
            continue  # nothing to compare, and Conv gives no empty tensors
        try:
            actual = run_replacement(replacement, inputs, DOUBLE, rounding.watch)
        except ValueError as error:
            raise ProofError(
                f"region {label!r}: the fused form fails at input shapes {sizes} ({error}); "
                f"please report this and leave the region out with --except {label!r}",
                sizes=sizes,
            ) from error
        if actual.shape != expected.shape:
            raise ProofError(
                f"region {label!r}: the fused form gives shape {list(actual.shape)} where the "
                f"original gives {list(expected.shape)}; please report this",
                sizes=sizes,
            )
        inside = _judged(replacement, sizes, expected.shape)
        if not inside.any():
            continue
        whole = np.abs(actual - expected)
        difference = whole[inside]
        allowed = factor * np.broadcast_to(size, whole.shape)[inside]
        if not np.all(difference <= allowed):  # float32 may have lost what is very small
            size = run_original(replacement, view, inputs, DOUBLE, magnitude=True)
            allowed = factor * np.broadcast_to(size, whole.shape)[inside]
        if not np.all(difference <= allowed):
            raise ProofError(
                f"region {label!r}: the fused form differs by {difference.max():.3g} at input "
                f"shapes {sizes}, where rounding allows {allowed.max():.3g}; please report this "
                f"and leave the region out with --except {label!r}",
                sizes=sizes,
            )
        worst = max(worst, float(difference.max(initial=0)))
        limit = max(limit, float(np.max(allowed, initial=0)))
        tried += sizes.values()
        _check_maps(replacement, {name: shape[2:] for name, shape in sizes.items()}, label)
        border = max(border, _relative(whole[~inside], expected))
        errors.append(_measured(replacement, view, inputs, expected, inside, kind))
    rounding.finish()
    if not tried:
        raise ProofError(f"region {label!r}: no input size could be evaluated to prove it")
    original, fused, scale = (rms(np.array(column)) for column in zip(*errors, strict=True))
    return RegionError(worst, limit, original, fused, tuple(tried), border, scale)


def _magnitude(
    replacement: Replacement, view: View, inputs: Mapping[str, Any], terms: int, results: int
) -> Any:
    """The region on absolute values, or what is less where its ``results`` take a while.

    float32 takes half the time. It sums ``terms`` numbers of one sign with a relative error of γ,
    and loses what it cannot hold.
    """
    assert replacement.region.cover is not None
    positions = results // max(replacement.region.cover.form.channels, 1)
    large = any(weight.size * positions > SMALL for weight in replacement.weights.values())
    if large and terms * U_SINGLE < 1 / 8:
        given = {name: rounded(array, SINGLE) for name, array in inputs.items()}
        found = run_original(replacement, view, given, SINGLE, magnitude=True)
        if np.isfinite(found).all():
            gamma = terms * U_SINGLE / (1 - terms * U_SINGLE)
            return found.astype(np.float64) * (1 - 2 * gamma)
    return run_original(replacement, view, inputs, DOUBLE, magnitude=True)


def _drawn(generator: np.random.Generator, shape: tuple[int, ...], kind: Any) -> Any:
    """Numbers that the model's type holds, in float64."""
    return generator.standard_normal(shape).astype(kind).astype(np.float64)


def _judged(replacement: Replacement, sizes: Sizes, shape: tuple[int, ...]) -> Any:
    """Where a replacement must equal the original: everywhere, unless it was asked for less."""
    assert replacement.region.cover is not None
    form = replacement.region.cover.form
    mask = np.ones(shape, bool)
    if form.interior_only:
        inside = interior(form, {name: size[2:] for name, size in sizes.items()})
        for axis, base in enumerate(form.layout):
            if base >= 2:
                kept = np.isin(np.arange(shape[axis]), inside[base - 2])
                mask &= kept.reshape(-1, *[1] * (len(shape) - axis - 1))
    return mask


def _relative(difference: Any, reference: Any) -> float:
    """The RMS of a difference over that of the whole reference."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is huge is judged entry by entry
        return rms(difference) / (rms(reference) or 1.0)


def _with_derived(
    replacement: Replacement, view: View, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs with those sources that are themselves computed inside the region."""
    known = dict(inputs)
    interior = replacement.region.interior
    order = {name: step.position for step in interior for name in step.node.outputs}
    derived = [
        name
        for name in replacement.region.sources
        if name not in inputs and not view.constants.known(name)
    ]
    for name in sorted(derived, key=lambda n: order.get(n, 0)):
        known[name] = run_original(replacement, view, known, DOUBLE, target=name)
    return known


def _measured(
    replacement: Replacement,
    view: View,
    inputs: Mapping[str, Any],
    expected: Any,
    inside: Any,
    kind: Any,
) -> tuple[float, float, float]:
    """Relative RMS errors of original and fused in the model's own arithmetic, and their scale.

    ``expected`` is what the original makes of ``inputs``.
    """
    compute = np.float32 if np.dtype(kind).itemsize < 4 else kind
    arithmetic = Arithmetic(compute, kind)
    narrow = {name: rounded(array, arithmetic) for name, array in inputs.items()}
    exact = {name: array.astype(np.float64) for name, array in narrow.items()}
    reference = expected
    if any(not np.array_equal(exact[name], array) for name, array in inputs.items()):
        reference = run_original(replacement, view, exact, DOUBLE)
    results = (
        run_original(replacement, view, narrow, arithmetic),
        run_replacement(replacement, narrow, arithmetic),
    )
    first, second = (
        _relative((r.astype(np.float64) - reference)[inside], reference) for r in results
    )
    return first, second, rms(reference)


class _Rounding:
    """Whether what is written of each weight is that weight, rounded once, entry by entry.

    Large weights are looked at in the runs that the proof folds anyway.
    """

    def __init__(self, replacement: Replacement, kind: Any, roundoff: float) -> None:
        self._replacement = replacement
        self._kind = kind
        self._roundoff = roundoff
        self._half = float(_tiny(kind)) / 2
        self._seen: dict[str, set[tuple[int, int]]] = {n: set() for n in replacement.weights}

    def watch(self, name: str, start: int, stop: int, part: Any) -> None:
        """Judge a run of a weight. Raises `ProofError`."""
        if (start, stop) in self._seen[name]:
            return
        self._seen[name].add((start, stop))
        weight = self._replacement.weights[name]
        rounded_once = part.astype(self._kind)
        if weight.stored is not None and weight.stored.array is not None:
            run = () if weight.axis is None else places(weight.axis, start, stop)
            good = np.array_equal(weight.stored.array[run], rounded_once)
        else:
            gap = np.abs(rounded_once.astype(np.float64) - part)
            good = bool(np.all(gap <= self._roundoff * np.abs(part) + self._half))
        if not good:
            label = self._replacement.region.root.node.label
            raise ProofError(f"region {label!r}: a fused weight does not round to its own type")

    def finish(self) -> None:
        """Judge what no proof has looked at."""
        for name, weight in self._replacement.weights.items():
            if sum(stop - start for start, stop in self._seen[name]) != weight.channels:
                self._seen[name].clear()
                for start, stop in weight.runs():
                    self.watch(name, start, stop, weight.part(start, stop))


def _check_maps(replacement: Replacement, sizes: Mapping[str, Any], label: str) -> None:
    """The maps that are written against those at the proved sizes.

    Between the borders a map repeats itself, so that rows taken out of its middle leave the map of
    the smaller size.
    """
    for name, at in replacement.maps.items():
        real, small = replacement.weights[name].value, at(sizes)
        scale = float(np.abs(real).max(initial=0))
        for axis, (size, least) in enumerate(zip(real.shape, small.shape, strict=True)):
            middle, rest = least // 2, size - least
            ordered = np.moveaxis(real, axis, 0)
            run = ordered[middle : middle + rest + 1]
            if not np.allclose(run, run[:1], rtol=0, atol=64 * U * scale):
                raise ProofError(f"region {label!r}: a constant map differs between its borders")
            kept = np.concatenate([ordered[:middle], ordered[middle + rest :]])
            real = np.moveaxis(kept, 0, axis)
        if not np.allclose(real, small, rtol=0, atol=64 * U * scale):
            raise ProofError(f"region {label!r}: a constant map differs from the proved one")


def _tiny(kind: Any) -> float:
    """The smallest subnormal of a type."""
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[np.dtype(kind).itemsize]
    return float(np.array([1], bits).view(kind)[0])


def _summed_terms(replacement: Replacement) -> int:
    """Terms summed on the way to one output, of the original and of the replacement."""
    count = 64
    for step in replacement.region.interior:
        if isinstance(step.law, Linear):
            count += step.law.shape[1]
            continue
        kernel = getattr(step.law, "kernel", None)
        count += prod(kernel.geometry.kernel_shape[1:]) if kernel is not None else 4
    for weight in replacement.weights.values():
        count += max([prod(weight.shape[1:]), *weight.shape[:1]])
    return count
