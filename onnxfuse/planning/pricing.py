"""What terms and covers cost in one problem."""

from __future__ import annotations

from math import prod

from onnxfuse.algebra import padded
from onnxfuse.algebra.form import Form, Outer, Term
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.algebra.source import Source
from onnxfuse.planning import cost
from onnxfuse.planning.cost import Cost
from onnxfuse.planning.problem import Problem
from onnxfuse.planning.written import (
    Affine,
    Cover,
    carries_constant,
    is_convolution,
    layout_operators,
    needs_constant,
    operator,
)


class Pricing:
    """Costs of terms and covers in one problem."""

    def __init__(self, problem: Problem, affine: Affine, form: Form) -> None:
        self.problem = problem
        self.affine = affine
        self._bytes = problem.itemsize(form.data[0].source.root.name)

    def term(self, term: Term) -> Cost:
        """One term as an operator (a bare source costs nothing by itself)."""
        if term.bare:
            return Cost()
        source = term.source
        lengths, batch, itemsize = self.stands(source)
        if not is_convolution(term, self.affine):
            count = batch * source.channels * prod(lengths)
            return cost.passes(count, count, itemsize=itemsize)
        geometry = padded.materialise(term.kernel.geometry, source.lengths)
        price = cost.convolution(geometry, lengths, batch, itemsize)
        if term.ins != (0, source.channels):
            count = batch * (term.ins[1] - term.ins[0]) * prod(lengths)
            price += cost.passes(count, count, itemsize=itemsize)
        return price

    def addition(self, form: Form, channels: int | None = None) -> Cost:
        """One Add of two tensors of the form's shape."""
        count = self._elements(form, channels or form.channels)
        return cost.passes(count, count, count, itemsize=self.itemsize(form))

    def stands(self, source: Source) -> tuple[tuple[int, ...], int, int]:
        """The lengths, batch and item size that a source is counted at."""
        if source.load is not None:
            return tuple(size or 1 for size in source.lengths), 1, self._bytes
        if source.plane is None:
            lengths = self.problem.lengths(source)
            batch, itemsize = (
                self.problem.batch(source.like),
                self.problem.itemsize(source.root.name),
            )
            return lengths, batch, itemsize
        lengths, _, itemsize = self.stands(source.plane.of)
        return tuple(max(n or 0, 1) for n in source.plane.lengths(lengths)), 1, itemsize

    def itemsize(self, form: Form) -> int:
        """Bytes of one element."""
        return self.stands((form.data or form.terms)[0].source)[2]

    def _elements(self, form: Form, channels: int) -> int:
        terms = form.data or form.terms
        term, batch = terms[0], max(self.stands(t.source)[1] for t in terms)
        lengths, _, _ = self.stands(term.source)
        out = term.kernel.geometry.lengths(lengths)
        return batch * channels * prod(max(n or 0, 1) for n in out)

    def one_pass(self, form: Form) -> Cost:
        """Reading a tensor of the form's shape and writing one."""
        count = self._elements(form, form.channels)
        return cost.passes(count, count, itemsize=self.itemsize(form))

    def cover(self, found: Cover) -> Cost:
        form = found.form
        total = sum((self.term(t) for t in found.terms), Cost())
        summands = len(found.whole) + bool(found.tiles)
        for _ in range(summands - 1):
            total += self.addition(form)
        one_pass = self.one_pass(form)
        if len(found.tiles) > 1:
            total += one_pass
            by_run: dict[tuple[int, int], int] = {}
            for tile in found.tiles:
                by_run[tile.outs] = by_run.get(tile.outs, -1) + 1
            for run, extra in by_run.items():
                for _ in range(extra):
                    total += self.addition(form, run[1] - run[0])
        facts = self.problem.facts
        if needs_constant(form, facts) and not carries_constant(found, facts):
            biased = [operator(t, self.affine) for t in found.terms] == ["MatMul"]
            total += cost.bias(one_pass) if biased else one_pass
        if found.known is not None:
            total += found.known.cost
        if form.outer is not None:
            total += self.outer(form, form.outer)
        turned = "Transpose" in layout_operators(form.layout, form.data[0].source.order)
        return total + one_pass if turned else total

    def outer(self, form: Form, outer: Outer) -> Cost:
        """The operator around a form."""
        term = form.data[0]
        lengths, batch, itemsize = self.stands(term.source)
        inner = [max(n or 0, 1) for n in term.kernel.geometry.lengths(lengths)]
        window = Geometry(form.channels, form.channels, form.channels, outer.axes)
        return cost.convolution(window, inner, batch, itemsize, pool=True)
