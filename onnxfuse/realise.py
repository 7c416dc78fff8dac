"""Realising a plan: covers become operators with float64 weights.

This is where kernels are read and folded, once, for the winner. Nothing here knows onnx: the
result is a list of plain nodes and arrays that the model room writes into the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
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


class Weight:
    """A float64 constant that is folded when it is first asked for; its shape is known before."""

    def __init__(self, shape: tuple[int, ...], compute: Callable[[], Array]) -> None:
        self.shape = shape
        self._compute = compute

    @cached_property
    def value(self) -> Array:
        """The array, in float64."""
        return self._compute().reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Replacement:
    """The operators that compute a region's root, in order, and their constants.

    ``weights`` are float64 (rounded when written); ``integers`` are int64 operands.
    """

    region: Region
    nodes: tuple[NewNode, ...]
    weights: dict[str, Weight]
    integers: dict[str, Any]

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
            carried = carries_constant(self.cover, self.facts)
            summands.append(self._tiles(constant if carried else None))
            constant = None if carried else constant
        total = summands[0]
        for summand in summands[1:]:
            total = self._emit("Add", (total, summand))
        if constant is not None:
            total = self._emit("Add", (total, self._array("bias", self._wide(), constant)))
        if not form.in_base_layout:
            total = self._emit("Transpose", (total,), perm=list(form.layout))
        if not self.nodes:
            total = self._emit("Identity", (total,))
        root = self.region.root.tensor
        self.nodes[-1] = replace(self.nodes[-1], output=root)
        return Replacement(self.region, tuple(self.nodes), self.weights, self.integers)

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
        geometry = geo.materialise(part, term.source.lengths)

        def kernel() -> Array:
            return weights.embed(ex.fold(term.kernel, self.memo), part, geometry)

        inputs = [self._selected(term), self._array("weight", geometry.kernel_shape, kernel)]
        if bias is not None:
            inputs.append(self._array("bias", (geometry.out_channels,), bias))
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

    def _array(self, kind: str, shape: tuple[int, ...], compute: Load) -> str:
        name = self.fresh(f"{self.prefix}_fused_{kind}")
        self.weights[name] = Weight(shape, compute)
        return name

    def _emit(self, op_type: str, inputs: tuple[str, ...], **attributes: Any) -> str:
        name = self.fresh(f"{self.prefix}_fused")
        output = self.fresh(f"{self.region.root.tensor}_fused")
        self.nodes.append(NewNode(op_type, name, inputs, output, attributes))
        return output
