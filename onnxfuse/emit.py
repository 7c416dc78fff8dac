"""Operators as they are written: plain nodes, and the constants they read.

An `Emitter` keeps the nodes of one region in order and knows how operator sets differ. It knows
nothing of plans, and nothing of onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from onnxfuse.algebra import padded, weights
from onnxfuse.algebra.folding import Lazy, Run, fold, largest
from onnxfuse.algebra.geometry import Geometry, Lengths
from onnxfuse.algebra.source import Plane
from onnxfuse.algebra.weights import Array

LARGE, PIECE = 1 << 20, 1 << 18
"""Constants that read more elements than the first are made in pieces of the second, which the
caches of a processor hold, and are not kept."""


@dataclass(frozen=True, slots=True)
class Load:
    """Computes a constant whole (`None`) or a run of its output channels.

    ``size`` is the largest kernel that is read for the whole.
    """

    compute: Callable[[Run], Array]
    size: int = 0

    def __call__(self, run: Run = None) -> Array:
        return self.compute(run)

    @classmethod
    def of(cls, value: Lazy, memo: dict[int, Array]) -> Load:
        """What folds an expression."""
        return cls(lambda run: fold(value, memo, run), largest(value))

    def then(self, change: Callable[[Array, int], Array]) -> Load:
        """The same, changed by a function of the rows and of where they start."""
        return Load(lambda run: change(self.compute(run), 0 if run is None else run[0]), self.size)


def plain(compute: Callable[[], Array]) -> Load:
    """A small constant, as a `Load`."""

    def cut(run: Run) -> Array:
        return compute() if run is None else compute()[slice(*run)]

    return Load(cut)


@dataclass(frozen=True, slots=True)
class NewNode:
    """An operator to be written: names of tensors in and out, plain attributes."""

    op_type: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight in the model's type; where a data file holds it, at which byte.

    The array is ``None`` where nothing is kept of what is never written.
    """

    array: Any
    offset: int | None = None


class Weight:
    """A float64 constant that is folded when it is asked for; its shape is known before.

    Its output channels lie on ``axis``; without one it is folded whole. What is not large is kept
    until it is to be forgotten. ``stored`` is what was written of it.
    """

    def __init__(self, shape: tuple[int, ...], load: Load, axis: int | None = None) -> None:
        self.shape = shape
        self.axis = axis
        self.stored: Stored | None = None
        self._load = load
        self._value: Array | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def value(self) -> Array:
        """The array, in float64."""
        if self._value is not None:
            return self._value
        if self.axis is None or self._whole:
            found = self._load().reshape(self.shape)
        else:
            found = np.empty(self.shape)
            for start, stop in self.runs():
                found[self._places(start, stop)] = self.part(start, stop)
        if self.size <= LARGE:
            self._value = found
        return found

    @property
    def _whole(self) -> bool:
        return max(self._load.size, self.size) <= LARGE

    @property
    def channels(self) -> int:
        """Its output channels; 1 where they lie on no axis."""
        return self.shape[self.axis] if self.axis is not None and self.shape else 1

    def runs(self) -> Iterator[tuple[int, int]]:
        """The runs of output channels to make it in; a single one where it is not large."""
        step = channels = self.channels
        if self.axis is not None and not self._whole:
            step = max(channels * PIECE // max(self._load.size, self.size), 1)
        for start in range(0, channels, step):
            yield start, min(start + step, channels)

    def part(self, start: int, stop: int) -> Array:
        """A run of output channels, in float64."""
        if self.axis is None or self._whole:
            return self.value if self.axis is None else self.value[self._places(start, stop)]
        shape = [*self.shape]
        shape[self.axis] = stop - start
        return self._load((start, stop)).reshape(shape)

    def _places(self, start: int, stop: int) -> tuple[slice, ...]:
        assert self.axis is not None
        return (slice(None),) * self.axis + (slice(start, stop),)

    def forget(self) -> None:
        """Keep no float64 array; it is folded again when it is asked for."""
        self._value = None


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
        inputs = [source, self._array("weight", geometry.kernel_shape, kernel, 0)]
        if bias is not None:
            inputs.append(self._array("bias", (geometry.out_channels,), bias, 0))
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
        if geometry.groups == 1:
            turned = kernel.then(lambda rows, _: weights.transposed(rows, 1))
        else:
            turned = plain(lambda: weights.transposed(kernel(), geometry.groups))
        axis = 1 if geometry.groups == 1 else None
        inputs = [source, self._array("weight", shape, turned, axis)]
        if bias is not None:
            inputs.append(self._array("bias", (geometry.out_channels,), bias, 0))
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
        return self._array("one", (), plain(lambda: np.ones(())))

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

    def _array(self, kind: str, shape: tuple[int, ...], load: Load, axis: int | None = None) -> str:
        """A new constant, whose output channels lie on ``axis``."""
        name = self.fresh(f"{self.prefix}_fused_{kind}")
        self.weights[name] = Weight(shape, load, axis)
        return name

    def _emit(self, op_type: str, inputs: tuple[str, ...], **attributes: Any) -> str:
        name = self.fresh(f"{self.prefix}_fused")
        output = self.fresh(f"{self.root}_fused")
        self.nodes.append(NewNode(op_type, name, inputs, output, attributes))
        return output
