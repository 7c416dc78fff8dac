"""The law of reshaping: maps of one tap pass a Reshape that keeps the axis of their channels.

    R(W·x + b) = W·R(x) + b              where the channels' axis stays as it is
    R(s·x + b) = rep(s)·R(x) + rep(b)    where it becomes part of a longer one

In the second case every channel of ``x`` becomes a run of channels, ``rep`` repeating what belongs
to it. So what follows meets what precedes over a source in another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra.form import Facts, Form, Term, coalesce
from onnxfuse.algebra.geometry import IDENTITY
from onnxfuse.algebra.source import Reshaped, Source
from onnxfuse.refusal import Code, Refusal

Place = tuple[int, int, int]
"""The axis an axis becomes part of, and how many times it is repeated around and within itself."""


@dataclass(frozen=True, slots=True)
class Reshape:
    """``tensor`` of shape ``before`` becomes ``like`` of shape ``after``.

    ``places[a]`` says what becomes of tensor axis ``a``, ``None`` where that is not known.
    ``restores`` are tensors whose sizes, the channels' apart, it takes; ``flat``, that it is a
    Flatten behind the first axis; ``literal``, that its sizes are numbers, or counted from its
    input alone.
    """

    tensor: str
    like: str
    before: tuple[int | None, ...]
    after: tuple[int | None, ...]
    places: tuple[Place | None, ...]
    restores: frozenset[str] = frozenset()
    flat: bool = False
    literal: bool = True

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        if form.border or form.known or not all(_one_tap(term) for term in form.terms):
            return Refusal(Code.UNSUPPORTED, "it reshapes what a window or a padding made")
        if any(form.layout != term.source.order for term in form.terms):
            return Refusal(Code.UNSUPPORTED, "it reshapes what was transposed")
        place = self.places[form.layout.index(1)]
        if place is None:
            return Refusal(Code.UNSUPPORTED, "it takes the channels' axis apart")
        axis, around, within = place
        times = around * within
        if times > 1 and not all(_rescales(term, form.channels) for term in form.terms):
            return Refusal(Code.CHANNELS, "it joins channels with positions behind a dense map")
        terms: list[Term] = []
        for term in form.terms:
            source = self._source(term.source, axis, times)
            if isinstance(source, Refusal):
                return source
            kernel = ex.reranked(term.kernel, len(source.lengths))
            if times > 1:
                kernel = ex.repeated_map(kernel, around, within)
            terms.append(replace(term, source=source, kernel=kernel))
        return replace(
            form,
            channels=form.channels * times,
            terms=coalesce(terms),
            constant=ex.repeated(form.constant, around, within),
            layout=terms[0].source.order,
        )

    def _source(self, source: Source, axis: int, times: int) -> Source | Refusal:
        """A source in the new shape; one that gets its first shape back is itself again."""
        channels = source.channels * times
        old = source.reshaped
        if old is not None and self._undoes(old, axis):
            return old.of
        if not self.literal:
            return Refusal(Code.UNKNOWN_SHAPE, "it takes its sizes from somewhere else")
        shape = tuple(channels if at == axis else size for at, size in enumerate(self.after))
        if shape.count(None) > 1:
            return Refusal(Code.UNKNOWN_SHAPE, "it reshapes to sizes that are not known")
        of, tensor, before = source, self.tensor, self.before
        if old is not None:  # one Reshape instead of two: what undoes it has the first one's shape
            of, tensor, before = old.of, old.tensor, old.before
        target = tuple(-1 if n is None else n for n in shape)
        flat = self.flat and old is None
        made = Reshaped(of, target, tensor, before, self.like, flat)
        found = Source.shaped(f"{of.name} as {self.like}", shape, axis)
        assert found is not None
        return replace(found, reshaped=made)

    def _undoes(self, old: Reshaped, axis: int) -> bool:
        """Whether this gives back the shape that a source had at first, its channels apart."""
        if self.restores & {old.tensor, old.of.name}:
            return True
        if not self.literal:
            return False
        if len(self.after) != len(old.before) or old.of.channel_axis != axis:
            return False
        sizes = enumerate(zip(self.after, old.before, strict=True))
        return all(a is not None and a == b for at, (a, b) in sizes if at != axis)


def _one_tap(term: Term) -> bool:
    return all(axis == IDENTITY for axis in term.kernel.geometry.axes)


def _rescales(term: Term, channels: int) -> bool:
    whole = term.outs == (0, channels) and term.ins == (0, term.source.channels)
    return whole and term.kernel.geometry.per_channel
