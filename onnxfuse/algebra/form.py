"""A tensor written as a sum of maps of source tensors, plus a constant.

    v[o] = Σ_terms (kernel ∗ source)[o] + constant[o]

A term reads a run of its source's channels and writes a run of the form's. The constant is the
same everywhere, except where ``border`` says what stands on the outer strips instead: this is
how a bias that meets zero padding stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra.expression import Kernel, Vector
from onnxfuse.algebra.geometry import Lengths
from onnxfuse.algebra.weights import Array

MAX_TERMS = 64


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor ``(N, channels, *lengths)`` that stands as it is in the graph."""

    name: str
    channels: int
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class Term:
    """``kernel`` over channels ``source_start …`` of a source, onto channels ``out_start …``."""

    source: Source
    kernel: Kernel
    source_start: int = 0
    out_start: int = 0

    @property
    def lengths(self) -> Lengths:
        return self.kernel.geometry.lengths(self.source.lengths)

    @property
    def outs(self) -> tuple[int, int]:
        return self.out_start, self.out_start + self.kernel.geometry.out_channels

    @property
    def ins(self) -> tuple[int, int]:
        return self.source_start, self.source_start + self.kernel.geometry.in_channels

    @property
    def bare(self) -> bool:
        """Whether the term is its whole source, unchanged."""
        return self.kernel.identity and self.ins == (0, self.source.channels)


@dataclass(frozen=True, slots=True)
class Side:
    """The ``width`` outermost positions at one end of a spatial axis hold ``value``."""

    axis: int
    end: bool
    width: int
    value: Vector | None


@dataclass(frozen=True, slots=True)
class Form:
    """One tensor as an affine expression; ``layout[i]`` is the base axis at tensor axis ``i``."""

    channels: int
    terms: tuple[Term, ...]
    constant: Vector | None = None
    border: tuple[Side, ...] = ()
    layout: tuple[int, ...] = ()
    matched: bool = False

    @classmethod
    def of(cls, source: Source) -> Form:
        """The form of a tensor that stands as it is."""
        rank = len(source.lengths)
        return cls(
            source.channels,
            (Term(source, ex.identity(source.channels, rank)),),
            layout=tuple(range(rank + 2)),
        )

    @property
    def rank(self) -> int:
        return len(self.layout) - 2

    @property
    def in_base_layout(self) -> bool:
        return self.layout == tuple(range(len(self.layout)))

    @property
    def lengths(self) -> Lengths:
        """Per axis the length, where some term knows it."""
        known: list[int | None] = [None] * self.rank
        for term in self.terms:
            known = [
                have if have is not None else new
                for have, new in zip(known, term.lengths, strict=True)
            ]
        return tuple(known)

    @property
    def sources(self) -> dict[str, Source]:
        return {term.source.name: term.source for term in self.terms}

    @property
    def text(self) -> str:
        """The expression as people write it, ∘ for composition."""
        parts = [term.kernel.text if not term.bare else "x" for term in self.terms]
        return " + ".join(parts) or "0"


def equal_lengths(left: Form, right: Form) -> bool:
    """Whether two forms have equal spatial lengths for certain, at every legal input."""
    if left.rank != right.rank:
        return False
    pairs = [(a, b) for a in left.terms for b in right.terms if a.source.name == b.source.name]
    for axis, (x, y) in enumerate(zip(left.lengths, right.lengths, strict=True)):
        if x is not None and x == y:
            continue
        if not any(
            geo.same_length(
                a.kernel.geometry.axes[axis],
                b.kernel.geometry.axes[axis],
                a.source.lengths[axis],
            )
            for a, b in pairs
        ):
            return False
    return True


def coalesce(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Terms of equal geometry over equal channels become one; order of first appearance."""
    groups: dict[object, list[Term]] = {}
    for term in terms:
        key = (term.source.name, term.source_start, term.out_start, term.kernel.geometry)
        groups.setdefault(key, []).append(term)
    return tuple(
        same[0]
        if len(same) == 1
        else replace(same[0], kernel=ex.add(same[0].kernel.geometry, [t.kernel for t in same]))
        for same in groups.values()
    )


def usual_size(magnitudes: Array) -> float:
    """The size that small entries of a constant were probably summed from: at most 4.

    The lower median, so that a few large channels do not widen what is accepted elsewhere.
    """
    flat = np.sort(magnitudes, axis=None)
    return min(float(flat[(flat.size - 1) // 2]), 4.0) if flat.size else 0.0


class Facts:
    """Small questions about values (is this zero, are these equal), each answered once.

    ``roundoff`` is the unit roundoff of the model's type. Constants that an exporter computed
    twice differ by a few roundings of what they were summed from (measured: 2.4e-7 in float32),
    so each entry is judged within ``64 * roundoff`` of itself, or of `usual_size`.
    """

    def __init__(self, roundoff: float) -> None:
        self.roundoff = roundoff
        self._memo: dict[int, Array] = {}
        self._alive: list[Vector] = []

    def value(self, vector: Vector | None, channels: int) -> Array:
        if vector is None:
            return np.zeros(channels)
        self._alive.append(vector)
        return ex.fold(vector, self._memo)

    def zero(self, vector: Vector | None) -> bool:
        """Whether a constant is exactly zero; one that only a kernel could tell is not."""
        if vector is None:
            return True
        return not vector.heavy and not np.any(self.value(vector, 0))

    def equal(self, left: Vector | None, right: Vector | None, channels: int) -> bool:
        a, b = self.value(left, channels), self.value(right, channels)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return False
        larger = np.maximum(np.abs(a), np.abs(b))
        scale = np.maximum(larger, max(usual_size(larger), self.roundoff))
        return bool(np.all(np.abs(a - b) <= 64 * self.roundoff * scale))
