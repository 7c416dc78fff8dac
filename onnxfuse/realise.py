"""Realising a plan: covers become operators with float64 weights.

This is where kernels are read and folded, once, for the winner. Nothing here knows onnx: the
result is a list of plain nodes and arrays that the model room writes into the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import geometry as geo
from onnxfuse.algebra import weights
from onnxfuse.algebra.form import Facts, Term
from onnxfuse.algebra.weights import Array
from onnxfuse.planning.cover import (
    Cover,
    carries_constant,
    is_carrier,
    is_convolution,
    needs_constant,
)
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


def realise(region: Region, fresh: Callable[[str], str], opset: int, facts: Facts) -> Replacement:
    """The operators of a region's cover; ``fresh`` makes names that are not in use."""
    assert region.cover is not None
    return _Writer(region, region.cover, fresh, opset, facts).write()


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
        self.arrays: dict[str, Array] = {}
        self.integers: dict[str, Any] = {}
        self.memo: dict[int, Array] = {}
        self.prefix = region.root.node.label

    def write(self) -> Replacement:
        form = self.cover.form
        constant = None
        if form.constant is not None and needs_constant(form, self.facts):
            constant = ex.fold(form.constant, self.memo)
        whole = sorted(self.cover.whole, key=lambda term: not self._carries(term))
        summands: list[str] = []
        for term in whole:
            summands.append(self._term(term, constant))
            constant = None if self._carries(term) else constant
        if self.cover.tiles:
            carried = carries_constant(self.cover)
            summands.append(self._tiles(constant if carried else None))
            constant = None if carried else constant
        total = summands[0]
        for summand in summands[1:]:
            total = self._emit("Add", (total, summand))
        if constant is not None:
            total = self._emit("Add", (total, self._array("bias", self._spread(constant))))
        if not form.in_base_layout:
            total = self._emit("Transpose", (total,), perm=list(form.layout))
        if not self.nodes:
            total = self._emit("Identity", (total,))
        root = self.region.root.tensor
        self.nodes[-1] = replace(self.nodes[-1], output=root)
        return Replacement(self.region, tuple(self.nodes), self.arrays, self.integers)

    def _carries(self, term: Term) -> bool:
        return is_carrier(term, self.cover.affine)

    def _term(self, term: Term, constant: Array | None) -> str:
        """The tensor of one term; an operator with a bias takes the constant."""
        if term.bare:
            return term.source.name
        if is_convolution(term, self.cover.affine):
            return self._conv(term, constant)
        return self._affine(term, constant)

    def _affine(self, term: Term, constant: Array | None) -> str:
        """A per-channel map as the operator that the region had it as."""
        scale = ex.fold(term.kernel, self.memo).reshape(-1)
        if self.cover.affine == "BatchNormalization":
            zeros = np.zeros_like(scale)
            parameters = {
                "scale": scale,
                "bias": zeros if constant is None else constant,
                "mean": zeros,
                "var": np.ones_like(scale),
            }
            names = [self._array(kind, array) for kind, array in parameters.items()]
            return self._emit("BatchNormalization", (term.source.name, *names), epsilon=0.0)
        factor = self._array("scale", self._spread(scale))
        return self._emit("Mul", (term.source.name, factor))

    def _spread(self, vector: Array) -> Array:
        """A per-channel vector shaped to broadcast against (N, C, *spatial)."""
        return vector.reshape(1, -1, *[1] * self.cover.form.rank)

    def _tiles(self, constant: Array | None) -> str:
        """The tiles joined on the channels; one carrier of each run takes its share."""
        runs: dict[tuple[int, int], list[Term]] = {}
        for term in self.cover.tiles:
            runs.setdefault(term.outs, []).append(term)
        names = []
        for (start, stop), terms in sorted(runs.items()):
            needed = needs_constant(self.cover.form, self.facts, (start, stop))
            share = constant[start:stop] if constant is not None and needed else None
            total = ""
            for term in sorted(terms, key=lambda t: not self._carries(t)):
                name = self._term(term, share)
                share = None
                total = self._emit("Add", (total, name)) if total else name
            names.append(total)
        return names[0] if len(names) == 1 else self._emit("Concat", tuple(names), axis=1)

    def _conv(self, term: Term, bias: Array | None) -> str:
        geometry = geo.materialise(term.kernel.geometry, term.source.lengths)
        kernel = weights.embed(ex.fold(term.kernel, self.memo), term.kernel.geometry, geometry)
        inputs = [self._selected(term), self._array("weight", kernel)]
        if bias is not None:
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
