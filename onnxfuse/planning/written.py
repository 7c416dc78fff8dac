"""A cover: the operators that compute a form, and what each of them is written as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxfuse.algebra.form import UNIT, Facts, Form, Term
from onnxfuse.planning.cost import Cost

KERNELED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is a kernel."""
Affine = Literal["Conv", "BatchNormalization", "Mul"]
Style = Literal["map", "plane", "channel", "shift"]


@dataclass(frozen=True, slots=True)
class Known:
    """How a constant that varies in space is written.

    A ``map`` is one stored constant that is added; ``plane`` runs a small convolution over a
    plane of ones and adds the result; ``channel`` appends a channel of ones to the source;
    ``shift`` adds to the source what its padding then leaves out.
    ``sizing`` counts the operators that compute sizes only, a few numbers whatever the image.
    """

    style: Style
    terms: tuple[Term, ...]
    operators: tuple[str, ...]
    cost: Cost
    constants: int
    sizing: int = 0


@dataclass(frozen=True, slots=True)
class Cover:
    """The operators that compute a form: ``whole`` terms are summed, ``tiles`` concatenated.

    ``affine`` says which operator a per-channel map becomes.
    """

    form: Form
    whole: tuple[Term, ...]
    tiles: tuple[Term, ...]
    affine: Affine
    cost: Cost
    known: Known | None = None

    @property
    def terms(self) -> tuple[Term, ...]:
        return self.whole + self.tiles


def operator(term: Term, affine: Affine) -> str:
    """What a term is written as, empty where it is bare.

    Where no window can be (rank 0, or channels that stand last) a dense map is a Gemm or MatMul.
    """
    if term.bare:
        return ""
    source, geometry = term.source, term.kernel.geometry
    per_channel = geometry.per_channel and term.ins == (0, source.channels)
    if source.layout:
        return "Mul" if per_channel else "MatMul"
    if not geometry.axes:
        return ("Mul" if affine == "Conv" else affine) if per_channel else "Gemm"
    if geometry.transposed:
        return "ConvTranspose"
    return affine if per_channel else "Conv"


def is_convolution(term: Term, affine: Affine) -> bool:
    """Whether a term becomes an operator with a kernel."""
    return operator(term, affine) in KERNELED


def is_carrier(term: Term, affine: Affine) -> bool:
    """Whether the operator of a term has a bias that can take a constant."""
    return operator(term, affine) in ("Conv", "ConvTranspose", "Gemm", "BatchNormalization")


def needs_constant(form: Form, facts: Facts, run: tuple[int, int] | None = None) -> bool:
    """Whether a run of the constant (all of it by default) must be written.

    A constant that only a kernel could tell to be zero is written without asking.
    """
    if form.constant is None:
        return False
    start, stop = run or (0, form.channels)
    values = None if form.constant.heavy else facts.value(form.constant, form.channels)
    return values is None or bool(values[start:stop].any())


def terms_carry(found: Cover, facts: Facts) -> bool:
    """Whether the operators of a cover's terms can take the form's constant between them."""
    if any(is_carrier(term, found.affine) for term in found.whole):
        return True
    carriers = {t.outs for t in found.tiles if is_carrier(t, found.affine)}
    runs = {term.outs for term in found.tiles}
    return bool(runs) and all(
        run in carriers or not needs_constant(found.form, facts, run) for run in runs
    )


def carries_constant(found: Cover, facts: Facts) -> bool:
    """Whether the form's constant needs no Add of its own: a map or plane takes it along."""
    beside = found.known is not None and found.known.style in ("map", "plane")
    return beside or terms_carry(found, facts)


def operators(cover: Cover, facts: Facts) -> list[str]:
    """The operators that a cover is written with."""
    found: list[str] = []
    for term in cover.terms:
        if is_convolution(term, cover.affine):
            found += ["Slice"] * (term.ins != (0, term.source.channels))
        if not term.bare:
            found.append(operator(term, cover.affine))
    made = {t.source.name: t.source.reshaped for t in cover.terms}
    found += ["Flatten" if shape.flat else "Reshape" for shape in made.values() if shape]
    runs = len({term.outs for term in cover.tiles})
    found += ["Add"] * (len(cover.tiles) - runs) + ["Concat"] * (runs > 1)
    found += ["Add"] * (len(cover.whole) + bool(cover.tiles) - 1)
    if needs_constant(cover.form, facts) and not carries_constant(cover, facts):
        found.append("Add")
    if cover.known is not None:
        found += cover.known.operators
    found += layout_operators(cover.form.layout, cover.terms[0].source.order)
    if cover.form.outer is not None:
        found.append(cover.form.outer.op_type)
    return found or ["Identity"]


def layout_operators(layout: tuple[int, ...], order: tuple[int, ...]) -> list[str]:
    """The operators that take the layout ``order`` of the sources to ``layout``."""
    kept = [base for base in layout if base != UNIT]
    found = ["Squeeze"] if len(kept) < len(order) else []
    found += ["Transpose"] if kept != [base for base in order if base in kept] else []
    return found + (["Unsqueeze"] if UNIT in layout else [])
