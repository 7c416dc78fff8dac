"""Operators as they are written: plain nodes, and the constants they read.

An `Emitter` keeps the nodes of one region in order and knows how operator sets differ. It knows
nothing of plans, and nothing of onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from onnxfuse.algebra import padded, weights
from onnxfuse.algebra.geometry import Geometry, Lengths
from onnxfuse.algebra.source import Plane
from onnxfuse.algebra.weights import Array

Load = Callable[[], Array]


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


class Emitter:
    """Nodes and constants that come into being one after the other; ``fresh`` makes new names."""

    def __init__(self, root: str, prefix: str, fresh: Callable[[str], str], opset: int) -> None:
        self.root = root
        self.prefix = prefix
        self.fresh = fresh
        self.opset = opset
        self.nodes: list[NewNode] = []
        self.weights: dict[str, Weight] = {}
        self.integers: dict[str, Any] = {}
        self.maps: dict[str, MapAt] = {}

    def _reshaped(self, op_type: str, name: str, axes: list[int]) -> str:
        if self.opset < 13:
            return self._emit(op_type, (name,), axes=axes)
        return self._emit(op_type, (name, self._integers("axes", *axes)))

    def _conv_node(
        self, source: str, geometry: Geometry, lengths: Lengths, kernel: Load, bias: Load | None
    ) -> str:
        if geometry.transposed:
            return self._transposed(source, geometry, kernel, bias)
        inputs = [source, self._array("weight", geometry.kernel_shape, kernel)]
        if bias is not None:
            inputs.append(self._array("bias", (geometry.out_channels,), bias))
        axes = geometry.axes
        padding: dict[str, Any] = {"pads": [axis.pads[end] for end in (0, 1) for axis in axes]}
        mode = padded.auto_pad(geometry, lengths)
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

    def _transposed(self, source: str, geometry: Geometry, kernel: Load, bias: Load | None) -> str:
        """A ConvTranspose; its kernel is stored ``(in, out/group, *k)``, the last tap first."""
        axes = geometry.axes
        pads = [padded.transposed_pads(axis) or (0, 0, 0) for axis in axes]
        shape = (
            geometry.in_channels,
            geometry.out_channels // geometry.groups,
            *geometry.taps,
        )
        load = _as_transposed(kernel, geometry)
        inputs = [source, self._array("weight", shape, load)]
        if bias is not None:
            inputs.append(self._array("bias", (geometry.out_channels,), bias))
        return self._emit(
            "ConvTranspose",
            tuple(inputs),
            dilations=[axis.dilation for axis in axes],
            group=geometry.groups,
            kernel_shape=list(geometry.taps),
            output_padding=[more for _, _, more in pads],
            pads=[begin for begin, _, _ in pads] + [end for _, end, _ in pads],
            strides=[axis.up for axis in axes],
        )

    def _one(self) -> str:
        return self._array("one", (), lambda: np.ones(()))

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
        output = self.fresh(f"{self.root}_fused")
        self.nodes.append(NewNode(op_type, name, inputs, output, attributes))
        return output


def _as_transposed(kernel: Load, geometry: Geometry) -> Load:
    return lambda: weights.transposed(kernel(), geometry.groups)
