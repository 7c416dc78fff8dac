"""A tensor written as a sum of maps of source tensors, plus a constant.

    v[o] = Σ_terms (kernel ∗ source)[o] + constant[o]

A term reads a run of its source's channels and writes a run of the form's. The constant is the
same everywhere, except where ``border`` says what stands on the outer strips instead: this is
how a bias that meets zero padding stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra.expression import Kernel, Vector
from onnxfuse.algebra.geometry import Axis, Lengths
from onnxfuse.algebra.source import Plane, Source
from onnxfuse.algebra.weights import Array

MAX_TERMS = 64
UNIT = -1
"""A tensor axis of length 1 that the base layout does not have."""


def plane_over(term: Term, widths: Sequence[int]) -> Source:
    """Ones over the positions of ``term``'s map, less ``widths`` of them on each axis.

    Planes of equal certain lengths are one source, whatever they were derived from.
    """
    axes = tuple(
        (axis.stride, axis.slack - axis.stride * width)
        for axis, width in zip(term.kernel.geometry.axes, widths, strict=True)
    )
    of = term.source
    if of.plane is not None:  # the plane of a plane is one of the tensor behind it
        axes = tuple(
            (s * stride, t + s * (1 + slack))
            for (stride, slack), (s, t) in zip(axes, of.plane.axes, strict=True)
        )
        of = of.plane.of
    plane = Plane(of, axes)
    lengths = plane.lengths(of.lengths)
    parts = [
        str(size) if size is not None else f"({axis}·{of.name} + {slack})/{stride}"
        for axis, (size, (stride, slack)) in enumerate(zip(lengths, axes, strict=True))
    ]
    return Source(f"1[{', '.join(parts)}]", 1, lengths, plane=plane)


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
class Outer:
    """An operator around a form that only affines pass: its window, and how it is written."""

    op_type: str
    axes: tuple[Axis, ...]
    attributes: Mapping[str, Any] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Shift:
    """A form is its data terms of ``source + constant / kernel``, per channel.

    Then its planes of ones are what the terms make of that shift, zero where the source is padded.
    Compared by identity: two forms have one shift where they come from one tensor.
    """

    source: Source
    constant: Vector
    kernel: Kernel

    @property
    def vector(self) -> Vector:
        """The shift, a number for each channel of the source."""
        return ex.quotient(self.constant, self.kernel)


@dataclass(frozen=True, slots=True)
class Form:
    """One tensor as an affine expression; ``layout[i]`` is the base axis at tensor axis ``i``.

    A tensor axis of length 1 that is no axis of the base is `UNIT`; a base axis of length 1 may
    be missing.

    With an ``outer`` operator the tensor is that operator of the expression. A form that holds
    for the ``interior_only`` is an approximation that was asked for (see `interior`).
    """

    channels: int
    terms: tuple[Term, ...]
    constant: Vector | None = None
    border: tuple[Side, ...] = ()
    layout: tuple[int, ...] = ()
    matched: bool = False
    outer: Outer | None = None
    interior_only: bool = False
    shift: Shift | None = None

    @classmethod
    def of(cls, source: Source) -> Form:
        """The form of a tensor that stands as it is."""
        rank = len(source.lengths)
        return cls(
            source.channels,
            (Term(source, ex.identity(source.channels, rank)),),
            layout=source.order,
        )

    @property
    def rank(self) -> int:
        """The spatial axes of the base layout."""
        return len(self.terms[0].kernel.geometry.axes)

    @property
    def in_base_layout(self) -> bool:
        return self.layout == tuple(range(self.rank + 2))

    @property
    def source_layout(self) -> tuple[int, ...]:
        """The layout that all sources of data have in the graph."""
        return self.terms[0].source.layout

    @property
    def transposed(self) -> bool:
        """Whether some term is a transposed convolution."""
        return any(term.kernel.geometry.transposed for term in self.terms)

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
    def data(self) -> tuple[Term, ...]:
        """The terms that read data."""
        return tuple(term for term in self.terms if not term.source.known)

    @property
    def known(self) -> tuple[Term, ...]:
        """The terms over planes of ones and stored constants: a constant that varies in space."""
        return tuple(term for term in self.terms if term.source.known)

    @property
    def sources(self) -> dict[str, Source]:
        """The tensors that are read, those whose size a plane has included."""
        read = [t.source.plane.of if t.source.plane else t.source.root for t in self.terms]
        return {source.name: source for source in read if not source.known}

    @property
    def text(self) -> str:
        """The expression as people write it, ∘ for composition."""
        parts = [term.kernel.text if not term.bare else "x" for term in self.terms]
        text = " + ".join(parts) or "0"
        return text if self.outer is None else f"{self.outer.op_type}({text})"


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


def interior(form: Form, lengths: Mapping[str, Lengths]) -> tuple[range, ...]:
    """Per spatial axis, the positions whose windows lie inside their sources for certain.

    ``lengths`` are those of the sources by name; an axis of unknown length has no such position.
    """
    found: list[range] = []
    for axis in range(form.rank):
        first, stop = 0, 2**63
        for term in form.data:
            window, size = term.kernel.geometry.axes[axis], lengths[term.source.name][axis]
            start = window.start - max(window.moves, default=0)
            first = max(first, -(start // window.stride))
            room = -1 if size is None else window.spread(size) - window.start - window.extent
            stop = min(stop, max(room // window.stride + 1, 0), window.length(size or 0))
        found.append(range(first, stop))
    return tuple(found)


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


MAX_PROPORTION = 16.0
"""How much larger than what it pads a padding value may be: uninitialised ones are 1e30."""


class Facts:
    """Small questions about values (is this zero, are these equal), each answered once.

    ``roundoff`` is the unit roundoff of the model's type. Constants that an exporter computed
    twice differ by a few roundings of what they were summed from (measured: 2.4e-7 in float32),
    so each entry is judged within ``64 * roundoff`` of itself, or of `usual_size`. With
    ``interior_only`` a user has asked for merges that are wrong at the border.
    """

    def __init__(self, roundoff: float, *, interior_only: bool = False) -> None:
        self.roundoff = roundoff
        self.interior_only = interior_only
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

    def out_of_proportion(self, value: Vector | None, beside: Vector | None, channels: int) -> bool:
        """Whether a constant swallows digits of values of size one, or of those ``beside`` it."""
        if value is None:
            return False
        usual = max(usual_size(np.abs(self.value(beside, channels))), 1.0)
        return not np.all(np.abs(self.value(value, channels)) <= MAX_PROPORTION * usual)

    def apart(
        self,
        values: Iterable[Vector | None],
        other: Vector | None,
        channels: int,
        text: str = ", by up to {:.3g}",
    ) -> str:
        """How far constants lie from ``other``, in words; none where only a kernel could tell."""
        held = list(values)
        if any(v is not None and v.heavy and id(v) not in self._memo for v in (*held, other)):
            return ""
        with np.errstate(all="ignore"):  # padding may be infinite
            reference = self.value(other, channels)
            gaps = [np.abs(self.value(v, channels) - reference) for v in held]
        return text.format(np.max(gaps, initial=0.0))

    def equal(self, left: Vector | None, right: Vector | None, channels: int) -> bool:
        a, b = self.value(left, channels), self.value(right, channels)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return False
        larger = np.maximum(np.abs(a), np.abs(b))
        scale = np.maximum(larger, max(usual_size(larger), self.roundoff))
        return bool(np.all(np.abs(a - b) <= 64 * self.roundoff * scale))
