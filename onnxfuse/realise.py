"""Realising a plan: covers become operators with float64 weights.

This is where kernels are read and folded, once, for the winner. Nothing here knows onnx: the
result is a list of plain nodes and arrays that the model room writes into the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra import weights
from onnxfuse.algebra.form import Term
from onnxfuse.algebra.weights import Array
from onnxfuse.planning.cover import Cover, is_convolution
from onnxfuse.planning.region import Region


@dataclass(frozen=True, slots=True)
class NewNode:
    """An operator to be written: names of tensors in and out, plain attributes."""

    op_type: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replacement:
    """The operators that compute a region's root, in order, and their constants.

    ``arrays`` are float64 (rounded when written); ``integers`` are int64 operands.
    """

    region: Region
    nodes: tuple[NewNode, ...]
    arrays: dict[str, Array]
    integers: dict[str, Any]

    @property
    def root(self) -> str:
        return self.region.root.tensor


def realise(region: Region, fresh: Callable[[str], str], opset: int) -> Replacement:
    """The operators of a region's cover; ``fresh`` makes names that are not in use."""
    assert region.cover is not None
    return _Writer(region, region.cover, fresh, opset).write()


class _Writer:
    """Writes one cover; the last node writes the root tensor."""

    def __init__(
        self, region: Region, cover: Cover, fresh: Callable[[str], str], opset: int
    ) -> None:
        self.region = region
        self.cover = cover
        self.fresh = fresh
        self.opset = opset
        self.nodes: list[NewNode] = []
        self.arrays: dict[str, Array] = {}
        self.integers: dict[str, Any] = {}
        self.memo: dict[int, Array] = {}
        self.prefix = region.root.node.label

    def write(self) -> Replacement:
        form = self.cover.form
        self.constant = None
        if form.constant is not None:
            constant = ex.fold(form.constant, self.memo)
            self.constant = constant if np.any(constant) else None
        summands = [self._term(term) for term in self._carrier_first()]
        if self.cover.tiles:
            summands.append(self._tiles())
        total = summands[0]
        for summand in summands[1:]:
            total = self._emit("Add", (total, summand))
        if self.constant is not None:
            total = self._add_constant(total, self.constant)
        if not form.in_base_layout:
            total = self._emit("Transpose", (total,), perm=list(form.layout))
        if not self.nodes:
            total = self._emit("Identity", (total,))
        root = self.region.root.tensor
        self.nodes[-1] = replace(self.nodes[-1], output=root)
        return Replacement(self.region, tuple(self.nodes), self.arrays, self.integers)

    def _carrier_first(self) -> Sequence[Term]:
        """Whole terms, one that can carry the bias in front."""
        order = list(self.cover.whole)
        for test in (self._is_conv, lambda term: not term.bare):
            for term in order:
                if test(term):
                    return [term, *(t for t in order if t is not term)]
        return order

    def _is_conv(self, term: Term) -> bool:
        return is_convolution(term, self.cover.affine)

    def _term(self, term: Term) -> str:
        if term.bare:
            return term.source.name
        if self._is_conv(term):
            bias, self.constant = self.constant, None
            return self._conv(term, bias)
        return self._affine(term)

    def _affine(self, term: Term) -> str:
        """A per-channel map as the operator the region had it as; it may take the constant."""
        scale = ex.fold(term.kernel, self.memo).reshape(-1)
        if self.cover.affine == "BatchNormalization":
            shift = np.zeros_like(scale) if self.constant is None else self.constant
            self.constant = None
            zeros = np.zeros_like(scale)
            parameters = {"scale": scale, "bias": shift, "mean": zeros, "var": np.ones_like(scale)}
            names = [self._array(kind, array) for kind, array in parameters.items()]
            return self._emit("BatchNormalization", (term.source.name, *names), epsilon=0.0)
        factor = self._array("scale", self._spread(scale))
        return self._emit("Mul", (term.source.name, factor))

    def _spread(self, vector: Array) -> Array:
        """A per-channel vector shaped to broadcast against (N, C, *spatial)."""
        return vector.reshape(1, -1, *[1] * self.cover.form.rank)

    def _add_constant(self, name: str, constant: Array) -> str:
        self.constant = None
        return self._emit("Add", (name, self._array("bias", self._spread(constant))))

    def _tiles(self) -> str:
        """The tiles joined on the channels; each convolution takes its share of the bias."""
        runs: dict[tuple[int, int], list[Term]] = {}
        for term in self.cover.tiles:
            runs.setdefault(term.outs, []).append(term)
        carriers = all(any(self._is_conv(t) for t in terms) for terms in runs.values())
        bias = self.constant if carriers else None
        if carriers:
            self.constant = None
        names = []
        for (start, stop), terms in sorted(runs.items()):
            share = None if bias is None else bias[start:stop]
            total = ""
            for term in sorted(terms, key=lambda t: not self._is_conv(t)):
                if self._is_conv(term):
                    name, share = self._conv(term, share), None
                else:
                    name = term.source.name if term.bare else self._affine(term)
                total = self._emit("Add", (total, name)) if total else name
            names.append(total)
        return names[0] if len(names) == 1 else self._emit("Concat", tuple(names), axis=1)

    def _conv(self, term: Term, bias: Array | None) -> str:
        geometry = geo.materialise(term.kernel.geometry, term.source.lengths)
        kernel = weights.embed(ex.fold(term.kernel, self.memo), term.kernel.geometry, geometry)
        inputs = [self._selected(term), self._array("weight", kernel)]
        if bias is not None and np.any(bias):
            inputs.append(self._array("bias", bias))
        axes = geometry.axes
        return self._emit(
            "Conv",
            tuple(inputs),
            dilations=[axis.dilation for axis in axes],
            group=geometry.groups,
            kernel_shape=[axis.taps for axis in axes],
            pads=[axis.pads[0] for axis in axes] + [axis.pads[1] for axis in axes],
            strides=[axis.stride for axis in axes],
        )

    def _selected(self, term: Term) -> str:
        """The term's source, or the channels of it that the term reads."""
        start, stop = term.ins
        if (start, stop) == (0, term.source.channels):
            return term.source.name
        if self.opset < 10:
            return self._emit("Slice", (term.source.name,), axes=[1], starts=[start], ends=[stop])
        bounds = [
            self._integers(kind, value)
            for kind, value in (("starts", start), ("ends", stop), ("axes", 1))
        ]
        return self._emit("Slice", (term.source.name, *bounds))

    def _integers(self, kind: str, value: int) -> str:
        name = self.fresh(f"{self.prefix}_fused_{kind}")
        self.integers[name] = np.array([value], np.int64)
        return name

    def _array(self, kind: str, array: Array) -> str:
        name = self.fresh(f"{self.prefix}_fused_{kind}")
        self.arrays[name] = array
        return name

    def _emit(self, op_type: str, inputs: tuple[str, ...], **attributes: Any) -> str:
        name = self.fresh(f"{self.prefix}_fused")
        output = self.fresh(f"{self.region.root.tensor}_fused")
        self.nodes.append(NewNode(op_type, name, inputs, output, attributes))
        return output
