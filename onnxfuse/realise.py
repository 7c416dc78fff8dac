"""Realising a plan: covers become operators with float64 weights.

This is where kernels are read and folded, once, for the winner. Nothing here knows onnx: the
result is a list of plain nodes and arrays that the model room writes into the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra import weights
from onnxfuse.algebra.expression import Kernel
from onnxfuse.algebra.form import UNIT, Facts, Plane, Source, Term
from onnxfuse.algebra.geometry import Geometry, Lengths
from onnxfuse.algebra.weights import Array
from onnxfuse.planning.known import channel_box
from onnxfuse.planning.region import Region
from onnxfuse.planning.written import (
    Cover,
    Known,
    is_carrier,
    is_convolution,
    needs_constant,
    terms_carry,
)


@dataclass(frozen=True, slots=True)
class NewNode:
    """An operator to be written: names of tensors in and out, plain attributes."""

    op_type: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)


class Weight:
    """A float64 constant that is folded when it is first asked for; its shape is known before."""

    def __init__(self, shape: tuple[int, ...], compute: Callable[[], Array]) -> None:
        self.shape = shape
        self._compute = compute

    @cached_property
    def value(self) -> Array:
        """The array, in float64."""
        return self._compute().reshape(self.shape)


MapAt = Callable[[Mapping[str, Sequence[int]]], Array]
"""A constant map at given spatial lengths of the sources."""


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

    @property
    def arrays(self) -> dict[str, Array]:
        """The folded weights by name."""
        return {name: weight.value for name, weight in self.weights.items()}

    @property
    def root(self) -> str:
        return self.region.root.tensor


def realise(region: Region, fresh: Callable[[str], str], opset: int, facts: Facts) -> Replacement:
    """The operators of a region's cover; ``fresh`` makes names that are not in use."""
    assert region.cover is not None
    return _Writer(region, region.cover, fresh, opset, facts).write()


Load = Callable[[], Array]


def _embedded(kernel: Kernel, geometry: Geometry, memo: dict[int, Array]) -> Load:
    return lambda: weights.embed(ex.fold(kernel, memo), kernel.geometry, geometry)


def _values(source: Source, sizes: Mapping[str, Sequence[int]]) -> Array:
    """The array of a known source, where the tensors have these spatial sizes."""
    if source.load is not None:
        return source.load().reshape(1, source.channels, *[size or 0 for size in source.lengths])
    assert source.plane is not None
    lengths = source.plane.lengths(tuple(sizes[source.plane.of.name]))
    return np.ones((1, 1, *[size or 0 for size in lengths]))


def _share(constant: Load, start: int, stop: int) -> Load:
    return lambda: constant()[start:stop]


class _Writer:
    """Writes one cover; the last node writes the root tensor."""

    def __init__(
        self,
        region: Region,
        cover: Cover,
        fresh: Callable[[str], str],
        opset: int,
        facts: Facts,
    ) -> None:
        self.region = region
        self.cover = cover
        self.fresh = fresh
        self.opset = opset
        self.facts = facts
        self.nodes: list[NewNode] = []
        self.weights: dict[str, Weight] = {}
        self.integers: dict[str, Any] = {}
        self.maps: dict[str, MapAt] = {}
        self.memo: dict[int, Array] = {}
        self.prefix = region.root.node.label

    def write(self) -> Replacement:
        form = self.cover.form
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
        if self.cover.known is not None:  # first: OpenVINO adds in place to what has a full batch
            total = self._with_known(self.cover.known, total, constant)
            constant = None
        for summand in summands[1:]:
            total = self._emit("Add", (total, summand))
        if constant is not None:
            total = self._emit("Add", (total, self._array("bias", self._wide(), constant)))
        total = self._laid_out(total)
        if form.outer is not None:
            total = self._emit(form.outer.op_type, (total,), **form.outer.attributes)
        if not self.nodes:
            total = self._emit("Identity", (total,))
        root = self.region.root.tensor
        self.nodes[-1] = replace(self.nodes[-1], output=root)
        return Replacement(self.region, tuple(self.nodes), self.weights, self.integers, self.maps)

    def _laid_out(self, total: str) -> str:
        """``total`` with its axes where the form has them."""
        layout, rank = self.cover.form.layout, self.cover.form.rank + 2
        kept = [base for base in layout if base != UNIT]
        missing = [base for base in range(rank) if base not in kept]
        if missing:
            total = self._reshaped("Squeeze", total, missing)
        order = [sorted(kept).index(base) for base in kept]
        if order != sorted(order):
            total = self._emit("Transpose", (total,), perm=order)
        units = [axis for axis, base in enumerate(layout) if base == UNIT]
        return self._reshaped("Unsqueeze", total, units) if units else total

    def _reshaped(self, op_type: str, name: str, axes: list[int]) -> str:
        if self.opset < 13:
            return self._emit(op_type, (name,), axes=axes)
        return self._emit(op_type, (name, self._integers("axes", *axes)))

    def _constant(self) -> Load:
        """The whole constant, to be folded later."""
        constant = self.cover.form.constant
        assert constant is not None
        return lambda: ex.fold(constant, self.memo)

    def _carries(self, term: Term) -> bool:
        return is_carrier(term, self.cover.affine)

    def _term(self, term: Term, constant: Load | None) -> str:
        """The tensor of one term; an operator with a bias takes the constant."""
        if term.bare:
            return term.source.name
        if is_convolution(term, self.cover.affine):
            return self._conv(term, constant)
        return self._affine(term, constant)

    def _affine(self, term: Term, constant: Load | None) -> str:
        """A per-channel map as the operator that the region had it as."""
        count = term.kernel.geometry.out_channels

        def scale() -> Array:
            return ex.fold(term.kernel, self.memo)

        if self.cover.affine == "BatchNormalization":
            parameters: dict[str, Load] = {
                "scale": scale,
                "bias": constant or (lambda: np.zeros(count)),
                "mean": lambda: np.zeros(count),
                "var": lambda: np.ones(count),
            }
            names = [self._array(kind, (count,), load) for kind, load in parameters.items()]
            return self._emit("BatchNormalization", (term.source.name, *names), epsilon=0.0)
        factor = self._array("scale", (1, count, *[1] * self.cover.form.rank), scale)
        return self._emit("Mul", (term.source.name, factor))

    def _wide(self) -> tuple[int, ...]:
        """The shape of a per-channel constant that broadcasts against (N, C, *spatial)."""
        return (1, self.cover.form.channels, *[1] * self.cover.form.rank)

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
        return names[0] if len(names) == 1 else self._emit("Concat", tuple(names), axis=1)

    def _conv(self, term: Term, bias: Load | None) -> str:
        part = term.kernel.geometry
        known = self.cover.known
        if known is not None and known.style == "channel":
            return self._conv_with_ones(term, known.terms[0], bias)
        geometry = geo.materialise(part, term.source.lengths)
        kernel = _embedded(term.kernel, geometry, self.memo)
        return self._conv_node(self._selected(term), geometry, term.source.lengths, kernel, bias)

    def _conv_node(
        self, source: str, geometry: Geometry, lengths: Lengths, kernel: Load, bias: Load | None
    ) -> str:
        inputs = [source, self._array("weight", geometry.kernel_shape, kernel)]
        if bias is not None:
            inputs.append(self._array("bias", (geometry.out_channels,), bias))
        axes = geometry.axes
        padding: dict[str, Any] = {"pads": [axis.pads[end] for end in (0, 1) for axis in axes]}
        mode = geo.auto_pad(geometry, lengths)
        if mode != "NOTSET":
            padding = {"auto_pad": mode}
        return self._emit(
            "Conv",
            tuple(inputs),
            dilations=[axis.dilation for axis in axes],
            group=geometry.groups,
            kernel_shape=[axis.taps for axis in axes],
            **padding,
            strides=[axis.stride for axis in axes],
        )

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
        return self._conv_node(
            wide, box, term.source.lengths, lambda: ex.fold(joined, self.memo), bias
        )

    def _one(self) -> str:
        return self._array("one", (), lambda: np.ones(()))

    def _with_known(self, known: Known, total: str, constant: Load | None) -> str:
        """``total`` plus the constant that varies in space; it takes the uniform one along."""
        if known.style == "channel":
            return total
        if known.style == "map":
            return self._emit("Add", (total, self._map(known.terms, constant)))
        for term in known.terms:
            assert term.source.plane is not None
            geometry = geo.materialise(term.kernel.geometry, term.source.lengths)
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
            return total if constant is None else total + constant().reshape(self._wide())

        shape = (1, channels, *[size or 0 for size in terms[0].lengths])
        name = self._array("map", shape, lambda: at(lengths))
        self.maps[name] = at
        return name

    def _plane(self, plane: Plane) -> str:
        """Ones over the positions of a map, whatever the size of its tensor."""
        name = plane.of.name
        if self.opset >= 15:
            size = self._emit("Shape", (name,), start=2)
        else:
            size = self._emit("Shape", (name,))
            size = self._slice(size, 0, 2, 2 + len(plane.axes))
        if any(slack + stride for stride, slack in plane.axes):
            offsets = self._integers("offsets", *(slack + stride for stride, slack in plane.axes))
            size = self._emit("Add", (size, offsets))
        if any(stride > 1 for stride, _ in plane.axes):
            strides = self._integers("strides", *(stride for stride, _ in plane.axes))
            size = self._emit("Div", (size, strides))
        shape = self._emit("Concat", (self._integers("one_map", 1, 1), size), axis=0)
        return self._emit("Expand", (self._one(), shape))

    def _selected(self, term: Term) -> str:
        """The term's source, or the channels of it that the term reads."""
        start, stop = term.ins
        if (start, stop) == (0, term.source.channels):
            return term.source.name
        return self._slice(term.source.name, 1, start, stop)

    def _slice(self, name: str, axis: int, start: int, stop: int) -> str:
        if self.opset < 10:
            return self._emit("Slice", (name,), axes=[axis], starts=[start], ends=[stop])
        bounds = [
            self._integers(kind, value)
            for kind, value in (("starts", start), ("ends", stop), ("axes", axis))
        ]
        return self._emit("Slice", (name, *bounds))

    def _integers(self, kind: str, *values: int) -> str:
        name = self.fresh(f"{self.prefix}_fused_{kind}")
        self.integers[name] = np.array(values, np.int64)
        return name

    def _array(self, kind: str, shape: tuple[int, ...], compute: Load) -> str:
        name = self.fresh(f"{self.prefix}_fused_{kind}")
        self.weights[name] = Weight(shape, compute)
        return name

    def _emit(self, op_type: str, inputs: tuple[str, ...], **attributes: Any) -> str:
        name = self.fresh(f"{self.prefix}_fused")
        output = self.fresh(f"{self.region.root.tensor}_fused")
        self.nodes.append(NewNode(op_type, name, inputs, output, attributes))
        return output
