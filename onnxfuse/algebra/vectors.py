"""Lazy constants of channels: one number for each output channel of a map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np

from onnxfuse.algebra import weights
from onnxfuse.algebra.folding import Fold, Kernel, Run, Vector, alike, shares
from onnxfuse.algebra.weights import Array


def vector(text: str, channels: int, load: Callable[[], Array]) -> Vector:
    """A constant that ``load`` reads: a scalar or ``(channels,)``."""

    def compute(_: Sequence[Array]) -> Array:
        return np.array(np.broadcast_to(np.asarray(load(), np.float64).reshape(-1), (channels,)))

    return Vector(text, (), compute)


def repeated(constant: Vector | None, around: int, within: int) -> Vector | None:
    """A constant of channels that are repeated so."""
    if constant is None or around * within == 1:
        return constant
    return Vector(
        constant.text,
        (constant,),
        lambda parts: repeat(parts[0], around, within),
        constant.heavy,
    )


def repeat(array: Array, around: int, within: int) -> Array:
    """Each channel a run of ``within`` of them, all ``around`` times."""
    return np.tile(np.repeat(array.reshape(-1), within), around)


def quotient(constant: Vector, kernel: Kernel) -> Vector:
    """A constant over the factors of a per-channel map."""
    return Vector(
        f"{constant.text}/{kernel.text}",
        (constant, kernel),
        lambda parts: parts[0] / parts[1].reshape(-1),
        constant.heavy,
        rows=alike(2, lambda parts: parts[0] / parts[1].reshape(-1)),
    )


def response(kernel: Kernel, constant: Vector | None) -> Vector | None:
    """``constant`` as it leaves ``kernel`` where no border is near."""
    if constant is None or kernel.identity:
        return constant
    g = kernel.geometry
    light = g.per_channel and not constant.heavy
    return Vector(
        f"{kernel.text}·{constant.text}" if light else "b",
        (kernel, constant),
        lambda parts: weights.response(parts[0], g, parts[1]),
        heavy=not light,
        rows=lambda start, stop: (
            [(start, stop), None],
            lambda parts: weights.response(parts[0], g, parts[1], start),
        ),
    )


def total(*constants: Vector | None) -> Vector | None:
    """The sum of constants, ``None`` being zero."""
    parts = tuple(constant for constant in constants if constant is not None)
    if len(parts) < 2:
        return parts[0] if parts else None
    heavy = any(part.heavy for part in parts)

    def compute(arrays: Sequence[Array]) -> Array:
        return reduce(np.add, arrays)

    return Vector("b", parts, compute, heavy, rows=alike(len(parts), compute))


def negate(constant: Vector | None) -> Vector | None:
    """The constant with its sign changed."""
    if constant is None:
        return None
    rows = alike(1, lambda arrays: -arrays[0])
    return Vector("b", (constant,), lambda arrays: -arrays[0], constant.heavy, rows=rows)


def join(constants: Sequence[tuple[Vector | None, int]]) -> Vector | None:
    """Constants of the given channel counts one after the other."""
    if all(constant is None for constant, _ in constants):
        return None
    held = [constant for constant, _ in constants]
    parts = tuple(constant for constant in held if constant is not None)
    sizes = [size for _, size in constants]

    def joined(arrays: Sequence[Array], runs: Sequence[Run]) -> Array:
        rest = iter(arrays)
        counts = [0 if run is None else run[1] - run[0] for run in runs]
        return np.concatenate(
            [
                next(rest) if c is not None and n else np.zeros(n)
                for c, n in zip(held, counts, strict=True)
            ]
        )

    def rows(start: int, stop: int) -> tuple[Sequence[Run], Fold]:
        runs = shares(sizes, start, stop)
        needed = [run for c, run in zip(held, runs, strict=True) if c is not None]
        return needed, lambda arrays: joined(arrays, runs)

    everything = shares(sizes, 0, sum(sizes))
    return Vector(
        "b",
        parts,
        lambda arrays: joined(arrays, everything),
        any(part.heavy for part in parts),
        rows=rows,
    )


def take(constant: Vector | None, channels: slice) -> Vector | None:
    """The constant of a run of channels."""
    if constant is None:
        return None
    first = channels.start or 0
    return Vector(
        "b",
        (constant,),
        lambda arrays: arrays[0][channels],
        constant.heavy,
        rows=lambda start, stop: ([(first + start, first + stop)], lambda arrays: arrays[0]),
    )
