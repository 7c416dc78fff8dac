"""The linear operators: Conv, BatchNormalization, AveragePool, arithmetic, Pad, ScatterND."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from onnxfuse.evaluate.parts import PIECE, Parts, pieces
from onnxfuse.evaluate.tensor import bounded, elementwise

Arrays = Sequence[Any]
EPSILON = float(np.float32(1e-5))
"""BatchNormalization's default; attributes are float32."""
MAX_WINDOWS = 1 << 22
"""Elements that a convolution gathers at once: windows are multiplied in runs of taps."""


def conv(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    """``x (N, C, *X)``, ``w (O, C/g, *k)``, ``b (O,)`` by gathered windows."""
    x, w = inputs[0], inputs[1]
    rank = w.ndim - 2
    groups = attributes.get("group", 1)
    strides = attributes.get("strides") or [1] * rank
    dilations = attributes.get("dilations") or [1] * rank
    extents = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
    pads = window_pads(attributes, x.shape[2:], extents, strides)
    bounded(
        [
            *x.shape[:2],
            *(n + p + q for n, p, q in zip(x.shape[2:], pads[:rank], pads[rank:], strict=True)),
        ]
    )
    x = _zeros_around(x, pads)
    lengths = [(n - e) // s + 1 for n, e, s in zip(x.shape[2:], extents, strides, strict=True)]
    if min(lengths, default=1) < 1:
        raise ValueError("the window is larger than its input")
    batch, per_group, out = x.shape[0], w.shape[1], w.shape[0]
    taps = list(product(*map(range, w.shape[2:])))
    positions = prod(lengths)
    at_once = max(MAX_WINDOWS // max(x.shape[0] * x.shape[1] * positions, 1), 1)
    total = np.zeros((batch, out, positions), x.dtype)
    for first in range(0, len(taps), at_once):
        some = taps[first : first + at_once]
        seen = np.empty((batch, x.shape[1], len(some), *lengths), x.dtype)
        for at, tap in enumerate(some):
            seen[:, :, at] = _tap(x, tap, strides, dilations, lengths)
        seen = seen.reshape(batch, groups, per_group * len(some), positions)
        for start, stop, rows in _rows(w, groups):
            among = slice(start * groups // out, -(-stop * groups // out))
            some_taps = slice(first, first + len(some))
            factor = rows.reshape(stop - start, per_group, len(taps))[:, :, some_taps]
            count = among.stop - among.start
            factor = factor.reshape(count, (stop - start) // count, per_group * len(some))
            part = np.matmul(factor[None], seen[:, among])
            total[:, start:stop] += part.reshape(batch, stop - start, positions)
    return _biased(total.reshape(batch, out, *lengths), inputs)


def _rows(w: Any, groups: int) -> Iterator[tuple[int, int, Any]]:
    """The rows of a kernel, in runs that lie in one group or take groups whole."""
    if not isinstance(w, Parts):
        yield 0, w.shape[0], w
        return
    fan_out = w.shape[0] // groups
    step = max(w.shape[0] * PIECE // prod(w.shape), 1)
    step = step // fan_out * fan_out or step
    start = 0
    while start < w.shape[0]:
        edge = w.shape[0] if step >= fan_out else (start // fan_out + 1) * fan_out
        stop = min(start + step, edge)
        yield start, stop, w.take(0, start, stop)
        start = stop


def _zeros_around(x: Any, pads: Sequence[int]) -> Any:
    """``x (N, C, *X)`` with zeros before and after each spatial axis."""
    if not any(pads):
        return x
    if min(pads) < 0:
        raise ValueError("a window has negative pads")
    rank = x.ndim - 2
    sides = list(zip(x.shape[2:], pads[:rank], pads[rank:], strict=True))
    padded = np.zeros((*x.shape[:2], *(n + p + q for n, p, q in sides)), x.dtype)
    padded[(slice(None), slice(None), *(slice(p, p + n) for n, p, _ in sides))] = x
    return padded


def _tap(x: Any, tap: Sequence[int], strides: Any, dilations: Any, lengths: Any) -> Any:
    """What one tap reads at every output position: ``(N, C, *lengths)``."""
    views = tuple(
        slice(d * t, d * t + s * (n - 1) + 1, s)
        for d, t, s, n in zip(dilations, tap, strides, lengths, strict=True)
    )
    return x[(slice(None), slice(None), *views)]


def window_pads(
    attributes: Mapping[str, Any], x: Sequence[int], extents: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Begins then ends, with ``auto_pad`` made explicit (ONNX, Conv)."""
    mode = attributes.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * (2 * len(x))
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + e - n, 0)
            for n, e, s in zip(x, extents, strides, strict=True)
        ]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
    return list(attributes.get("pads") or [0] * (2 * len(x)))


def batch_normalization(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    """Inference: ``(x - mean) · scale / √(var + epsilon) + bias``, per channel."""
    if attributes.get("training_mode", 0):
        raise ValueError("training-mode BatchNormalization depends on the batch")
    x, scale, bias, mean, var = (np.asarray(array) for array in inputs[:5])
    shape = (1, -1, *[1] * (x.ndim - 2))
    epsilon = attributes.get("epsilon", EPSILON)
    factor = scale / np.sqrt(var + np.asarray(epsilon, var.dtype))
    return [(x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)]


def average_pool(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    """ONNX AveragePool with pads and dilations; windows that overhang are not supported."""
    x = inputs[0]
    kernel = attributes["kernel_shape"]
    rank, channels = len(kernel), x.shape[1]
    if attributes.get("ceil_mode", 0):
        strides = attributes.get("strides") or [1] * rank
        dilations = attributes.get("dilations") or [1] * rank
        extents = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        pads = window_pads(attributes, x.shape[2:], extents, strides)
        room = [
            n + a + b - e
            for n, a, b, e in zip(x.shape[2:], pads[:rank], pads[rank:], extents, strict=True)
        ]
        if any(r % s for r, s in zip(room, strides, strict=True)):
            raise ValueError("ceil_mode lets a window overhang")
    ones = np.ones((channels, 1, *kernel), x.dtype)
    settings = {**attributes, "group": channels}
    total = conv(settings, [x, ones])[0]
    if attributes.get("count_include_pad", 0):
        return [total / np.asarray(np.prod(kernel), x.dtype)]
    count = conv({**attributes, "group": 1}, [np.ones((1, 1, *x.shape[2:]), x.dtype), ones[:1]])[0]
    return [total / count]


def pad(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    """Constant Pad in every opset's way of writing it; negative amounts crop."""
    x = np.asarray(inputs[0])
    amounts = inputs[1] if len(inputs) > 1 else attributes.get("pads", attributes.get("paddings"))
    amounts = [int(amount) for amount in np.asarray(amounts).reshape(-1)]
    given = inputs[2] if len(inputs) > 2 else None
    value = attributes.get("value", 0.0) if given is None else np.asarray(given).reshape(-1)[0]
    if attributes.get("mode", "constant") != "constant":
        raise ValueError("only constant padding is linear")
    axes = list(range(x.ndim))
    if len(inputs) > 3 and inputs[3] is not None:
        axes = [int(axis) % x.ndim for axis in np.asarray(inputs[3]).reshape(-1)]
    half = len(amounts) // 2
    pairs = [(0, 0)] * x.ndim
    for axis, begin, end in zip(axes, amounts[:half], amounts[half:], strict=True):
        pairs[axis] = (begin, end)
    bounded([n + a + b for n, (a, b) in zip(x.shape, pairs, strict=True)])
    bounded([n + max(a, 0) + max(b, 0) for n, (a, b) in zip(x.shape, pairs, strict=True)])
    grown = np.pad(x, [(max(a, 0), max(b, 0)) for a, b in pairs], constant_values=value)
    crop = tuple(
        slice(max(-a, 0), size - max(-b, 0))
        for (a, b), size in zip(pairs, grown.shape, strict=True)
    )
    return [grown[crop]]


def scatter_nd(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    """``data`` with ``updates`` written at ``indices``."""
    if attributes.get("reduction", "none") != "none":
        raise ValueError("a reduction is not an assignment")
    data, indices, updates = inputs
    out = np.array(data)
    out[tuple(np.moveaxis(np.asarray(indices), -1, 0))] = updates
    return [out]


def scatter_elements(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    """``data`` with ``updates`` written where ``indices`` say along one axis."""
    if attributes.get("reduction", "none") != "none":
        raise ValueError("a reduction is not an assignment")
    data, indices, updates = inputs
    out = np.array(data)
    np.put_along_axis(out, indices, updates, axis=attributes.get("axis", 0))
    return [out]


def divide(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    """Division; of integers towards zero, as ONNX has it."""
    a, b = np.asarray(inputs[0]), np.asarray(inputs[1])
    bounded(np.broadcast_shapes(a.shape, b.shape))
    if a.dtype.kind not in "iu":
        return [a / b]
    if np.any(b == 0):
        raise ValueError("integer division by zero")
    quotient = np.abs(a) // np.abs(b)
    return [np.where((a < 0) == (b < 0), quotient, -quotient).astype(a.dtype)]


def conv_transpose(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    """``x (N, C, *X)``, ``w (C, O/g, *k)``: each position of x spreads the kernel over y."""
    x, w = inputs[0], inputs[1]
    rank, groups = w.ndim - 2, attributes.get("group", 1)
    if isinstance(w, Parts):
        if groups == 1:
            found = [conv_transpose(attributes, [x, part])[0] for *_, part in pieces(w, 1)]
            return _biased(np.concatenate(found, axis=1), inputs)
        w = w.whole()
    strides = attributes.get("strides") or [1] * rank
    dilations = attributes.get("dilations") or [1] * rank
    pads = list(attributes.get("pads") or [0] * (2 * rank))
    more = attributes.get("output_padding") or [0] * rank
    if attributes.get("auto_pad", "NOTSET") == "VALID":
        pads = [0] * (2 * rank)
    elif attributes.get("auto_pad", "NOTSET") != "NOTSET" or attributes.get("output_shape"):
        raise ValueError("runtimes disagree on auto_pad and output_shape of ConvTranspose")
    extents = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
    full = [
        s * (n - 1) + e + max(m, 0)
        for s, n, e, m in zip(strides, x.shape[2:], extents, more, strict=True)
    ]
    batch, out = x.shape[0], w.shape[1] * groups
    bounded([batch, out, *full])
    y = np.zeros((batch, groups, w.shape[1], *full), np.result_type(x, w))
    grouped = x.reshape(batch, groups, -1, prod(x.shape[2:]))
    kernel = w.reshape(groups, -1, *w.shape[1:])
    for tap in product(*map(range, w.shape[2:])):
        at_tap = kernel[(slice(None), slice(None), slice(None), *tap)].swapaxes(1, 2)
        places = tuple(
            slice(d * t, d * t + s * (n - 1) + 1, s)
            for d, t, s, n in zip(dilations, tap, strides, x.shape[2:], strict=True)
        )
        part = np.matmul(at_tap[None], grouped).reshape(batch, groups, -1, *x.shape[2:])
        y[(slice(None), slice(None), slice(None), *places)] += part
    y = y.reshape(batch, out, *full)
    crop = [slice(p, n - q) for p, q, n in zip(pads[:rank], pads[rank:], full, strict=True)]
    return _biased(y[(slice(None), slice(None), *crop)], inputs)


def _biased(y: Any, inputs: Arrays) -> list[Any]:
    """A result (N, C, *Y) plus the bias (C,) that may be the third input."""
    if len(inputs) > 2 and inputs[2] is not None:
        y = y + inputs[2].reshape(1, -1, *[1] * (y.ndim - 2))
    return [y]


def gemm(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    """``alpha · A · B + beta · C``, A and B transposed where that is asked for."""
    a, b = inputs[0], inputs[1]
    a = a.T if attributes.get("transA", 0) else a
    turned = bool(attributes.get("transB", 0))
    axis = 0 if turned else 1
    bounded([a.shape[0], b.shape[axis]])
    product = [np.matmul(a, part.T if turned else part) for *_, part in pieces(b, axis)]
    y = np.asarray(attributes.get("alpha", 1.0), a.dtype) * np.concatenate(product, axis=1)
    if len(inputs) > 2 and inputs[2] is not None:
        y = y + np.asarray(attributes.get("beta", 1.0), y.dtype) * inputs[2]
    return [y]


def _sum(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    bounded(np.broadcast_shapes(*(np.shape(array) for array in inputs)))
    total = inputs[0]
    for array in inputs[1:]:
        total = total + array
    return [total]


def _dropout(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    if len(inputs) > 2 and inputs[2] is not None and np.any(inputs[2]):
        raise ValueError("training-mode Dropout is random")
    return [inputs[0]]


def _leaky(attributes: Mapping[str, Any], inputs: Arrays) -> list[Any]:
    """LeakyRelu, and PRelu whose slope is its second input."""
    x = inputs[0]
    slope = inputs[1] if len(inputs) > 1 else np.asarray(attributes.get("alpha", 0.01), x.dtype)
    return [np.where(x < 0, slope * x, x)]


LINEAR: dict[str, Callable[[Mapping[str, Any], Arrays], list[Any]]] = {
    "Conv": conv,
    "BatchNormalization": batch_normalization,
    "ConvTranspose": conv_transpose,
    "AveragePool": average_pool,
    "Gemm": gemm,
    "Pad": pad,
    "ScatterND": scatter_nd,
    "ScatterElements": scatter_elements,
    "Add": elementwise(lambda x, y: x + y),
    "Sub": elementwise(lambda x, y: x - y),
    "Mul": elementwise(lambda x, y: x * y),
    "Div": divide,
    "Neg": lambda a, x: [-x[0]],
    "Sum": _sum,
    "Identity": lambda a, x: [x[0]],
    "Dropout": _dropout,
    "LeakyRelu": _leaky,
    "PRelu": _leaky,
}
