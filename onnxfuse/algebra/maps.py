"""Adding a constant that varies in space: strips around one value, or a map that is carried along.

A map that holds one value per channel inside and another all around is what a border assignment
writes (the BNAndPad of Diverse Branch Block as ``Pad + map``). Any other map is a source of the
form that no data enters: every law applies to it, and at the end it is a constant again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra.borders import bordered, joined_border
from onnxfuse.algebra.form import Facts, Form, Side, Term
from onnxfuse.algebra.laws import LAYOUT, Loader
from onnxfuse.algebra.source import Source
from onnxfuse.algebra.weights import Array
from onnxfuse.refusal import Code, Refusal


@dataclass(frozen=True, slots=True)
class AddMap:
    """``y = x + sign · map``; ``shape`` is the map's, aligned to the tensor's axes.

    ``name`` is the stored constant's. A map that is not ``readable``, because fusing made it, is
    never looked into: it is what was left when nothing more could be said.
    """

    name: str
    shape: tuple[int, ...]
    load: Loader
    sign: int = 1
    readable: bool = True

    def apply(self, forms: Sequence[Form], facts: Facts) -> Form | Refusal:
        (form,) = forms
        if sorted(form.layout) != list(range(form.rank + 2)):
            return LAYOUT
        order = [form.layout.index(axis) for axis in range(form.rank + 2)]
        shape = [self.shape[axis] for axis in order]
        lengths = tuple(size for size in form.lengths if size is not None)
        if len(lengths) != form.rank:
            return Refusal(Code.UNKNOWN_SHAPE, "its constant varies in space at a dynamic size")
        wide = (1, form.channels, *lengths)
        if any(size not in (1, full) for size, full in zip(shape, wide, strict=True)):
            return Refusal(Code.BROADCAST, "its constant broadcasts its input to a larger shape")

        def base() -> Array:
            stored = np.asarray(self.load(), np.float64).reshape(self.shape).transpose(order)
            return self.sign * np.broadcast_to(stored, wide)

        if self.readable and (split := _split(base())) is not None:
            framed = _framed(form, *split, facts)
            # an approximation may drop strips that carry no data, and these may carry some
            if not facts.interior_only or (isinstance(framed, Form) and not framed.border):
                return framed
        stands = self.sign > 0 and form.in_base_layout and tuple(shape) == wide
        name = self.name if stands else f"{self.name} (as {form.layout} · {self.sign} · {wide})"
        source = Source(name, form.channels, lengths, load=base, stands=stands)
        term = Term(source, ex.identity(form.channels, form.rank, "map"))
        return replace(form, terms=(*form.terms, term), shift=None)


def _framed(
    form: Form, inside: Array, outside: Array, widths: list[tuple[int, int]], facts: Facts
) -> Form | Refusal:
    """``form`` plus a value per channel inside and another on the strips of ``widths``."""
    frame = ex.vector("map", form.channels, lambda: outside)
    sides = tuple(
        Side(axis, end, pair[end], frame)
        for axis, pair in enumerate(widths)
        for end in (False, True)
        if pair[end]
    )
    constant = ex.vector("map", form.channels, lambda: inside)
    border = joined_border(form, replace(form, constant=constant, border=sides), facts)
    if isinstance(border, Refusal):
        return border
    total = ex.total(form.constant, constant)
    return bordered(replace(form, constant=total, border=()), border, [], facts)


def _split(array: Array) -> tuple[Array, Array, list[tuple[int, int]]] | None:
    """The value inside, the value around it and the widths of the strips, if a map is only that."""
    flat = array[0]
    middle = tuple(size // 2 for size in flat.shape[1:])
    inside = flat[(slice(None), *middle)]
    same = np.all(flat == inside.reshape(-1, *[1] * len(middle)), axis=0)
    box: list[Any] = []
    for axis, centre in enumerate(middle):
        line = same[(*middle[:axis], slice(None), *middle[axis + 1 :])]
        gaps = np.flatnonzero(~line)
        first = max((int(gap) + 1 for gap in gaps if gap < centre), default=0)
        stop = min((int(gap) for gap in gaps if gap > centre), default=line.size)
        box.append(slice(first, stop))
    outer = np.ones(same.shape, bool)
    outer[tuple(box)] = False
    if not same[tuple(box)].all():
        return None
    widths = [(s.start, size - s.stop) for s, size in zip(box, same.shape, strict=True)]
    if not outer.any():
        return inside, inside, widths
    around = flat[:, outer]
    return (inside, around[:, 0], widths) if np.all(around == around[:, :1]) else None
