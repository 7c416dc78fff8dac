"""Realising a plan: covers become operators with float64 weights.

This is where kernels are read and folded, once, for the winner. Nothing here knows onnx: the
result is a list of plain nodes and arrays that the model room writes into the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import padded, weights
from onnxfuse.algebra.expression import Kernel, Run
from onnxfuse.algebra.form import UNIT, Facts, Term
from onnxfuse.algebra.geometry import Geometry
from onnxfuse.algebra.source import Source
from onnxfuse.algebra.weights import Array
from onnxfuse.emit import Emitter, Load, MapAt, NewNode, Weight, plain
from onnxfuse.planning.known import channel_box
from onnxfuse.planning.region import Region
from onnxfuse.planning.written import (
    Cover,
    Known,
    is_carrier,
    needs_constant,
    operator,
    terms_carry,
)


@dataclass(frozen=True, slots=True)
class Replacement:
    """The operators that compute a region's root, in order, and their constants.

    ``weights`` are float64 (rounded when written); ``integers`` are int64 operands. ``maps`` are
    those weights that belong to a size, as functions of it.
    """

    region: Region
    nodes: tuple[NewNode, ...]
    weights: dict[str, Weight]
    integers: dict[str, Any]
    maps: dict[str, MapAt] = field(default_factory=dict)
    memo: dict[int, Array] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, Array]:
        """The folded weights by name."""
        return {name: weight.value for name, weight in self.weights.items()}

    @property
    def size(self) -> int:
        """The elements of its weights."""
        return sum(weight.size for weight in self.weights.values())

    def forget(self) -> None:
        """Keep no float64 array; what is needed again is folded again."""
        self.memo.clear()
        for weight in self.weights.values():
            weight.forget()

    @property
    def root(self) -> str:
        return self.region.root.tensor


def realise(region: Region, fresh: Callable[[str], str], opset: int, facts: Facts) -> Replacement:
    """The operators of a region's cover; ``fresh`` makes names that are not in use."""
    assert region.cover is not None
    return _Writer(region, region.cover, fresh, opset, facts).write()


def _embedded(kernel: Kernel, geometry: Geometry, memo: dict[int, Array]) -> Load:
    return Load.of(kernel, memo).then(
        lambda rows, start: weights.embed(rows, kernel.geometry, geometry, start)
    )


def _values(source: Source, sizes: Mapping[str, Sequence[int]]) -> Array:
    """The array of a known source, where the tensors have these spatial sizes."""
    if source.load is not None:
        return source.load().reshape(1, source.channels, *[size or 0 for size in source.lengths])
    assert source.plane is not None
    lengths = source.plane.lengths(tuple(sizes[source.plane.of.name]))
    return np.ones((1, 1, *[size or 0 for size in lengths]))


def _share(constant: Load, start: int, stop: int) -> Load:
    def compute(run: Run) -> Array:
        first, last = (0, stop - start) if run is None else run
        return constant((start + first, start + last))

    return Load(compute, constant.size)


class _Writer(Emitter):
    """Writes one cover; the last node writes the root tensor."""

    def __init__(
        self,
        region: Region,
        cover: Cover,
        fresh: Callable[[str], str],
        opset: int,
        facts: Facts,
    ) -> None:
        super().__init__(region.root.tensor, region.root.node.label, fresh, opset)
        self.region = region
        self.cover = cover
        self.facts = facts
        self.memo: dict[int, Array] = {}
        self.order = cover.terms[0].source.order
        self.prepared: dict[str, str] = {}

    def write(self) -> Replacement:
        form, known = self.cover.form, self.cover.known
        if known is not None and known.style == "shift":
            self._shift_source()
        constant = self._constant() if needs_constant(form, self.facts) else None
        whole = sorted(self.cover.whole, key=lambda term: not self._carries(term))
        summands: list[str] = []
        for term in whole:
            summands.append(self._term(term, constant))
            constant = None if self._carries(term) else constant
        if self.cover.tiles:
            carried = terms_carry(self.cover, self.facts)
            summands.append(self._tiles(constant if carried else None))
            constant = None if carried else constant
        total = summands[0]
        if known is not None and known.style in ("map", "plane"):
            # first: OpenVINO adds in place to what has a full batch
            total = self._with_known(known, total, constant)
            constant = None
        for summand in summands[1:]:
            total = self._emit("Add", (total, summand))
        if constant is not None:
            heavy = form.constant is None or form.constant.heavy
            added = self._spread("bias", form.channels, constant, light=not heavy)
            total = self._emit("Add", (total, added))
        total = self._laid_out(total)
        if form.outer is not None:
            total = self._emit(form.outer.op_type, (total,), **form.outer.attributes)
        if not self.nodes:
            total = self._emit("Identity", (total,))
        root = self.region.root.tensor
        self.nodes[-1] = replace(self.nodes[-1], output=root)
        return Replacement(
            self.region, tuple(self.nodes), self.weights, self.integers, self.maps, self.memo
        )

    def _laid_out(self, total: str) -> str:
        """``total`` with its axes where the form has them."""
        layout, stands = self.cover.form.layout, self.order
        kept = [base for base in layout if base != UNIT]
        missing = [axis for axis, base in enumerate(stands) if base not in kept]
        if missing:
            total = self._reshaped("Squeeze", total, missing)
        stood = [base for base in stands if base in kept]
        order = [stood.index(base) for base in kept]
        if order != sorted(order):
            total = self._emit("Transpose", (total,), perm=order)
        units = [axis for axis, base in enumerate(layout) if base == UNIT]
        return self._reshaped("Unsqueeze", total, units) if units else total

    def _constant(self) -> Load:
        """The whole constant, to be folded later."""
        constant = self.cover.form.constant
        assert constant is not None
        return Load.of(constant, self.memo)

    def _carries(self, term: Term) -> bool:
        return is_carrier(term, self.cover.affine)

    def _term(self, term: Term, constant: Load | None) -> str:
        """The tensor of one term; an operator with a bias takes the constant."""
        if term.bare:
            return self._standing(term.source)
        kind = operator(term, self.cover.affine)
        if kind in ("Conv", "ConvTranspose"):
            return self._conv(term, constant)
        if kind in ("Gemm", "MatMul"):
            return self._linear(kind, term, constant)
        return self._affine(kind, term, constant)

    def _linear(self, kind: str, term: Term, bias: Load | None) -> str:
        """A dense map of one tap: a Gemm with its bias, or a MatMul."""
        fan_in, fan_out = term.kernel.geometry.in_channels, term.kernel.geometry.out_channels

        matrix = Load.of(term.kernel, self.memo).then(lambda rows, _: rows.reshape(-1, fan_in))
        source = self._selected(term)
        if kind == "MatMul":
            turned = matrix.then(lambda rows, _: rows.T)
            return self._emit(
                "MatMul", (source, self._array("weight", (fan_in, fan_out), turned, 1))
            )
        inputs = [source, self._array("weight", (fan_out, fan_in), matrix, 0)]
        if bias is not None or self.opset < 11:
            bias = bias or plain(lambda: np.zeros(fan_out))
            inputs.append(self._array("bias", (fan_out,), bias, 0))
        return self._emit("Gemm", tuple(inputs), transB=1)

    def _affine(self, kind: str, term: Term, constant: Load | None) -> str:
        """A per-channel map as the operator that the region had it as."""
        count = term.kernel.geometry.out_channels

        scale = Load.of(term.kernel, self.memo)
        if kind == "BatchNormalization":
            parameters: dict[str, Load] = {
                "scale": scale,
                "bias": constant or plain(lambda: np.zeros(count)),
                "mean": plain(lambda: np.zeros(count)),
                "var": plain(lambda: np.ones(count)),
            }
            names = [self._array(kind, (count,), load) for kind, load in parameters.items()]
            return self._emit(
                "BatchNormalization", (self._standing(term.source), *names), epsilon=0.0
            )
        factor = self._spread("scale", count, scale, light=not ex.stored(term.kernel))
        return self._emit("Mul", (self._standing(term.source), factor))

    def _spread(self, kind: str, channels: int, load: Load, *, light: bool) -> str:
        """A constant for each channel; one number where that is known to be enough.

        Only a ``light`` one is looked at: of others a plan knows no values.
        """
        if light:
            values = np.asarray(load()).reshape(-1)
            if np.all(values == values[0]):
                return self._array(kind, (), plain(lambda: values[0]))
        shape = self._wide(channels)
        return self._array(kind, shape, load, self.order.index(1) if len(shape) > 1 else 0)

    def _wide(self, channels: int) -> tuple[int, ...]:
        """The shape of a per-channel constant that broadcasts against the sources' layout.

        ``(1, C, 1, …)``; where the channels stand last, ``(C,)``.
        """
        if self.order[-1] == 1 and self.order != (0, 1):
            return (channels,)
        return tuple(channels if base == 1 else 1 for base in self.order)

    def _tiles(self, constant: Load | None) -> str:
        """The tiles joined on the channels; one carrier of each run takes its share."""
        runs: dict[tuple[int, int], list[Term]] = {}
        for term in self.cover.tiles:
            runs.setdefault(term.outs, []).append(term)
        names = []
        for (start, stop), terms in sorted(runs.items()):
            needed = needs_constant(self.cover.form, self.facts, (start, stop))
            share = _share(constant, start, stop) if constant is not None and needed else None
            total = ""
            for term in sorted(terms, key=lambda t: not self._carries(t)):
                name = self._term(term, share)
                share = None
                total = self._emit("Add", (total, name)) if total else name
            names.append(total)
        return (
            names[0]
            if len(names) == 1
            else self._emit("Concat", tuple(names), axis=self.order.index(1))
        )

    def _conv(self, term: Term, bias: Load | None) -> str:
        part = term.kernel.geometry
        known = self.cover.known
        if known is not None and known.style == "channel":
            return self._conv_with_ones(term, known.terms[0], bias)
        geometry = padded.materialise(part, term.source.lengths)
        kernel = _embedded(term.kernel, geometry, self.memo)
        return self._conv_node(self._selected(term), geometry, term.source.lengths, kernel, bias)

    def _conv_with_ones(self, term: Term, ones: Term, bias: Load | None) -> str:
        """A convolution whose source has a channel of ones behind its own."""
        box = channel_box(term, ones)
        assert box is not None
        joined = ex.append(box, term.kernel, ones.kernel)
        amounts = [0, 0, *[0] * len(box.axes)]
        ends = [0, 1, *[0] * len(box.axes)]
        if self.opset < 11:
            wide = self._emit(
                "Pad", (term.source.name,), mode="constant", pads=amounts + ends, value=1.0
            )
        else:
            pads = self._integers("pads", *amounts, *ends)
            # the default, written out: a converter to ncnn takes no Pad without it
            wide = self._emit("Pad", (term.source.name, pads, self._one()), mode="constant")
        kernel = Load.of(joined, self.memo)
        return self._conv_node(wide, box, term.source.lengths, kernel, bias)

    def _with_known(self, known: Known, total: str, constant: Load | None) -> str:
        """``total`` plus the constant that varies in space; it takes the uniform one along."""
        if known.style == "map":
            return self._emit("Add", (total, self._map(known.terms, constant)))
        for term in known.terms:
            assert term.source.plane is not None
            geometry = padded.materialise(term.kernel.geometry, term.source.lengths)
            load = _embedded(term.kernel, geometry, self.memo)
            plane = self._plane(term.source.plane)
            response = self._conv_node(plane, geometry, term.source.lengths, load, constant)
            constant = None
            total = self._emit("Add", (total, response))
        return total

    def _map(self, terms: tuple[Term, ...], constant: Load | None) -> str:
        """A constant of the region's whole shape, as a function of the sources' sizes."""
        if len(terms) == 1 and terms[0].bare and terms[0].source.stands and constant is None:
            return terms[0].source.name
        lengths = {
            name: [size or 0 for size in source.lengths]
            for name, source in self.cover.form.sources.items()
        }
        channels, memo = self.cover.form.channels, self.memo

        def at(sizes: Mapping[str, Sequence[int]]) -> Array:
            parts = [
                weights.apply(
                    ex.fold(term.kernel, memo),
                    term.kernel.geometry,
                    _values(term.source, sizes)[:, slice(*term.ins)],
                )
                for term in terms
            ]
            total: Array = sum(parts[1:], parts[0])
            return (
                total
                if constant is None
                else total + constant().reshape(1, -1, *[1] * self.cover.form.rank)
            )

        shape = (1, channels, *[size or 0 for size in terms[0].lengths])
        name = self._array("map", shape, plain(lambda: at(lengths)))
        self.maps[name] = at
        return name

    def _shift_source(self) -> None:
        """Every term reads its source with a constant added, which padding then leaves out."""
        shift = self.cover.form.shift
        assert shift is not None
        name, vector = self._standing(shift.source), shift.vector
        channels = shift.source.channels
        load = Load.of(vector, self.memo)
        added = self._spread("shift", channels, load, light=not vector.heavy)
        self.prepared[shift.source.name] = self._emit("Add", (name, added))

    def _standing(self, source: Source) -> str:
        """The tensor of a source; one in another shape is reshaped once."""
        shape = source.reshaped
        if source.name not in self.prepared and shape is not None:
            if shape.flat:
                made = self._emit("Flatten", (source.root.name,), axis=1)
            else:
                target = self._integers("shape", *shape.target)
                made = self._emit("Reshape", (source.root.name, target))
            self.prepared[source.name] = made
        return self.prepared.get(source.name, source.name)

    def _selected(self, term: Term) -> str:
        """The term's source, or the channels of it that the term reads."""
        start, stop = term.ins
        if (start, stop) == (0, term.source.channels):
            return self._standing(term.source)
        return self._slice(self._standing(term.source), self.order.index(1), start, stop)
