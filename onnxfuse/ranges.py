"""The range of kernels by output channel: what quantisation with one scale has to cover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxfuse.emit import LARGE, PIECE
from onnxfuse.lift import View
from onnxfuse.model.graph import Node
from onnxfuse.realise import Replacement
from onnxfuse.records import Spread

KERNELS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def spread(
    name: str, kernel: Any, op_type: str, attributes: Mapping[str, Any] = MappingProxyType({})
) -> Spread:
    """``max |w|`` over each output channel of a kernel.

    A Conv has them on axis 0, shape ``(out, in/group, *k)``; a ConvTranspose on axis 1, with
    all its groups together; a matrix on its last, or on its first where it is transposed.
    """
    axis = {"Conv": 0, "ConvTranspose": 1}.get(op_type, kernel.ndim - 1)
    if op_type == "Gemm" and attributes.get("transB", 0):
        axis = 0
    return _of(name, _peaks(kernel, axis))


def _of(name: str, peaks: Any) -> Spread:
    peaks.sort()  # np.median loads masked arrays, which takes as long as a small model
    middle = peaks[(len(peaks) - 1) // 2 : len(peaks) // 2 + 1].mean()
    return Spread(name, float(peaks[0]), float(middle), float(peaks[-1]))


def _peaks(kernel: Any, axis: int) -> Any:
    """The greatest magnitude at each position of an axis; a mapped file is read in pieces."""
    step = max(len(kernel) * PIECE // max(kernel.size, 1), 1)
    others = tuple(at for at in range(kernel.ndim) if at != axis)
    found = []
    for start in range(0, len(kernel), step):
        part = kernel[start : start + step]
        greatest, least = (part.max(axis=others), part.min(axis=others))
        found.append(np.maximum(greatest.astype(np.float64), -least.astype(np.float64)))
    return np.concatenate(found) if axis == 0 else np.maximum.reduce(found)


def standing(nodes: Sequence[Node], view: View) -> tuple[Spread, ...]:
    """The kernels that nodes of the file read, each once."""
    found: dict[str, Spread] = {}
    for node in nodes:
        name = node.input(1)
        if node.op_type in KERNELS and name not in found and view.constants.known(name):
            kernel = np.asarray(view.constants.value(name))
            found[name] = spread(name, kernel, node.op_type, node.attributes)
    return tuple(found.values())


def written(replacement: Replacement) -> tuple[Spread, ...]:
    """The kernels of the operators that replace a region."""
    return tuple(_written(replacement))


def _written(replacement: Replacement) -> Iterator[Spread]:
    for node in replacement.nodes:
        weight = replacement.weights.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if node.op_type in KERNELS and weight is not None:
            stored = None if weight.stored is None else weight.stored.array
            if stored is None and weight.axis is not None and weight.size > LARGE:
                runs = [_peaks(weight.part(*run), weight.axis) for run in weight.runs()]
                yield _of(node.inputs[1], np.concatenate(runs))
            else:
                kernel = weight.value if stored is None else stored
                yield spread(node.inputs[1], kernel, node.op_type, node.attributes)
