"""Conv, ConvTranspose and AveragePool: maps with a window.

Conv         y[o, p] = b[o] + Σ_{c,t} K[o, c, t] · x[c, s·p − begin + d·t]
ConvTranspose  the same over x with s − 1 zeros between its positions, K flipped, start p − d(k−1)
AveragePool  the same with K = 1/Πk on each channel, where pads count as zeros
"""

from __future__ import annotations

from math import prod

import numpy as np

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra import weights
from onnxfuse.algebra.commuting import Pool
from onnxfuse.algebra.form import Outer
from onnxfuse.algebra.geometry import Axis, Geometry, Lengths
from onnxfuse.algebra.laws import Convolve
from onnxfuse.algebra.weights import Array
from onnxfuse.lift.common import Lifted, View, unknown_shape
from onnxfuse.model.graph import Node
from onnxfuse.refusal import Code, Refusal

FARTHEST = 1 << 12
"""No stride, dilation, pad or kernel beyond this many positions is taken: a proof at such a size
would hardly end."""


def _kernel_shape(node: Node, view: View) -> tuple[int, ...] | Refusal:
    """The shape of a kernel that is constant, as is its bias, and that its groups divide."""
    weight, bias = node.input(1), node.input(2)
    if not view.known(weight):
        return view.dynamic(weight, "its kernel")
    if bias and not view.known(bias):
        return view.dynamic(bias, "its bias")
    shape = view.constants.shape(weight)
    if shape is None or len(shape) not in (3, 4, 5) or None in shape:
        return Refusal(Code.MALFORMED, "its kernel has no usable shape")
    sizes = tuple(int(size or 0) for size in shape)
    groups = node.attributes.get("group", 1)
    if groups < 1 or sizes[0] % groups or min(sizes) < 1:
        return Refusal(Code.MALFORMED, f"group={groups} does not fit a kernel of shape {shape}")
    if node.attributes.get("kernel_shape", list(sizes[2:])) != list(sizes[2:]):
        return Refusal(Code.MALFORMED, "kernel_shape differs from the shape of its kernel")
    return sizes


def _bias_misfit(bias: str | None, channels: int, view: View) -> Refusal | None:
    if not bias or view.constants.shape(bias) in (None, (channels,)):
        return None
    return Refusal(Code.MALFORMED, f"its bias does not fit {channels} channels")


def lift_conv(node: Node, view: View) -> Lifted | Refusal | None:
    shape = _kernel_shape(node, view)
    if isinstance(shape, Refusal):
        return shape
    out, per_group, *kernel = shape
    weight, bias, groups = node.input(1), node.input(2), node.attributes.get("group", 1)
    axes = _bias_misfit(bias, out, view) or _axes(node, view, kernel)
    if isinstance(axes, Refusal):
        return axes
    geometry = Geometry(per_group * groups, out, groups, axes)
    name = "×".join(str(k) for k in kernel)
    k = ex.leaf(
        f"Conv{name}",
        geometry,
        lambda: view.float64(weight),
        lambda start, stop: view.part(weight, start, stop),
    )
    b = ex.vector("b", out, lambda: view.float64(bias)) if bias else None
    return Lifted.one(node, Convolve(k, b), node.inputs[0])


def lift_conv_transpose(node: Node, view: View) -> Lifted | Refusal | None:
    shape = _kernel_shape(node, view)
    if isinstance(shape, Refusal):
        return shape
    channels, per_group, *kernel = shape
    weight, bias, groups = node.input(1), node.input(2), node.attributes.get("group", 1)
    read, rank = view.shape(node.inputs[0]), len(kernel)
    if read is not None and len(read) != rank + 2:
        return Refusal(Code.MALFORMED, "its kernel does not fit the rank of its input")
    if misfit := _bias_misfit(bias, per_group * groups, view):
        return misfit
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode not in ("NOTSET", "", "VALID") or node.attributes.get("output_shape"):
        return Refusal(
            Code.UNSUPPORTED, "runtimes disagree on its auto_pad and output_shape; export with pads"
        )
    strides = node.attributes.get("strides") or [1] * rank
    dilations = node.attributes.get("dilations") or [1] * rank
    pads = node.attributes.get("pads") if mode != "VALID" else None
    pads = pads or [0] * (2 * rank)
    more = node.attributes.get("output_padding") or [0] * rank
    lists = (strides, dilations, more, pads[:rank], pads[rank:])
    if any(len(given) != rank for given in lists) or min(*strides, *dilations) < 1:
        return Refusal(Code.MALFORMED, "strides, dilations or pads do not fit its kernel")
    if max(*strides, *dilations, *map(abs, pads), *map(abs, more), *kernel) > FARTHEST:
        return Refusal(Code.SIZE, f"its window reaches over {FARTHEST} positions")
    axes = tuple(
        Axis.transposed(k, stride=s, dilation=d, begin=p, end=q, more=m)
        for k, s, d, m, p, q in zip(kernel, *lists, strict=True)
    )
    geometry = Geometry(channels, per_group * groups, groups, axes)
    name = "×".join(str(k) for k in kernel)

    def part(start: int, stop: int) -> Array:
        return weights.transposed(view.part(weight, start, stop, 1), 1)

    k = ex.leaf(
        f"ConvT{name}",
        geometry,
        lambda: weights.transposed(view.float64(weight), groups),
        part if groups == 1 else None,
    )
    b = ex.vector("b", geometry.out_channels, lambda: view.float64(bias)) if bias else None
    return Lifted.one(node, Convolve(k, b), node.inputs[0])


def lift_average_pool(node: Node, view: View) -> Lifted | Refusal | None:
    shape = view.shape(node.inputs[0])
    if shape is None or shape[1] is None:
        return unknown_shape(node.inputs[0])
    if not shape[1]:
        return Refusal(Code.MALFORMED, "its input has no channels")
    kernel = node.attributes.get("kernel_shape", [])
    if len(kernel) != len(shape) - 2 or min(kernel, default=0) < 1:
        return Refusal(Code.MALFORMED, "kernel_shape does not fit its input")
    axes = _axes(node, view, kernel)
    if isinstance(axes, Refusal):
        return axes
    same = node.attributes.get("auto_pad", "NOTSET").startswith("SAME")
    if same and any(axis.extent < axis.stride for axis in axes):
        return Refusal(
            Code.UNSUPPORTED,
            "auto_pad with a window smaller than its stride: runtimes disagree on what that means",
        )
    if node.attributes.get("ceil_mode", 0) and not _exact_fit(axes, shape[2:]):
        return Refusal(Code.CEIL_MODE, "ceil_mode may let its last window overhang the input")
    channels = shape[1]
    geometry = Geometry(channels, channels, channels, axes)
    name = "×".join(str(k) for k in kernel)
    k = ex.leaf(
        f"AvgPool{name}", geometry, lambda: np.full(geometry.kernel_shape, 1 / prod(kernel))
    )
    padded = any(axis.moves or axis.pads != (0, 0) for axis in axes)
    if padded and not node.attributes.get("count_include_pad", 0):
        if not all(_meets_pixels(axis) for axis in axes):
            return Refusal(Code.EXCLUDE_PAD, "some of its windows may hold padding alone")
        pool = Pool(Outer(node.op_type, axes, node.attributes), k)
        return Lifted.one(node, pool, node.inputs[0])
    ceil = bool(node.attributes.get("ceil_mode", 0))
    return Lifted.one(node, Convolve(k), node.inputs[0], fixed=ceil)


def _meets_pixels(axis: Axis) -> bool:
    """Whether every window holds a real pixel, at any length; SAME pads never fill a window."""
    if axis.dilation > 1 and axis.taps > 1:
        return False
    return bool(axis.moves) or max(axis.pads) < axis.taps


def _exact_fit(axes: tuple[Axis, ...], lengths: Lengths) -> bool:
    """Whether no window overhangs: (X + T) is a multiple of the stride on every axis."""
    return all(
        axis.stride == 1 or (x is not None and (x + axis.slack) % axis.stride == 0)
        for axis, x in zip(axes, lengths, strict=True)
    )


def _axes(node: Node, view: View, kernel: list[int]) -> tuple[Axis, ...] | Refusal:
    """The axes of a window, with ``auto_pad`` made explicit where the sizes decide it."""
    rank = len(kernel)
    strides = node.attributes.get("strides") or [1] * rank
    dilations = node.attributes.get("dilations") or [1] * rank
    pads = node.attributes.get("pads") or [0] * (2 * rank)
    if not len(strides) == len(dilations) == len(pads) // 2 == rank or len(pads) % 2:
        return Refusal(Code.MALFORMED, "strides, dilations or pads do not fit its kernel")
    if min(*strides, *dilations) < 1:
        return Refusal(Code.MALFORMED, "a stride or dilation is not positive")
    if max(*strides, *dilations, *map(abs, pads), *kernel) > FARTHEST:
        return Refusal(Code.SIZE, f"its window reaches over {FARTHEST} positions")
    mode = node.attributes.get("auto_pad", "NOTSET")
    shape = view.shape(node.inputs[0])
    lengths: Lengths = (None,) * rank if shape is None else shape[2:]
    if len(lengths) != rank:
        return Refusal(Code.MALFORMED, "its kernel does not fit the rank of its input")
    axes = []
    for i, (k, s, d, x) in enumerate(zip(kernel, strides, dilations, lengths, strict=True)):
        begin, end = (0, 0) if mode == "VALID" else (pads[i], pads[i + rank])
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            axes.append(Axis.same_window(k, s, d, x, upper=mode == "SAME_UPPER"))
        elif mode in ("NOTSET", "", "VALID"):
            axes.append(Axis.window(k, stride=s, dilation=d, begin=begin, end=end))
        else:
            return Refusal(Code.UNSUPPORTED, f"auto_pad={mode} is unknown")
    return tuple(axes)
