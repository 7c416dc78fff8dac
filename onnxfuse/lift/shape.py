"""Identity, Pad, Slice, Split, Concat and what only moves axes: taps of weight one.

Pad    a = −begin, zeros outside          Slice  a = +start, a step is a stride
Split  a selection of channels            Concat channels one behind the other
"""

from __future__ import annotations

import numpy as np

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra.geometry import Axis, Geometry
from onnxfuse.algebra.joining import Concat, Select
from onnxfuse.algebra.laws import Alias, Convolve, Law
from onnxfuse.algebra.layouts import Permute, Squeeze, Unsqueeze
from onnxfuse.algebra.padding import Pad
from onnxfuse.evaluate.tensor import slice_of, split_sizes
from onnxfuse.lift.common import Lifted, View, unknown_shape
from onnxfuse.lift.strips import lift_frame
from onnxfuse.model.graph import Node
from onnxfuse.model.shapes import Shape
from onnxfuse.refusal import Code, Refusal

_FAR = 2**31 - 1
"""Slice ends from here on mean "to the end"."""


def lift_identity(node: Node, view: View) -> Lifted | Refusal | None:
    return Lifted.one(node, Alias(), node.inputs[0])


def lift_leaky_relu(node: Node, view: View) -> Lifted | Refusal | None:
    """``y = x`` where the slope below zero is 1; as any other value it is no linear map."""
    slope = node.attributes.get("alpha", 0.01)
    return Lifted.one(node, Alias(), node.inputs[0]) if slope == 1 else None


def lift_prelu(node: Node, view: View) -> Lifted | Refusal | None:
    """The same, the slopes being constant."""
    slope = node.input(1)
    if not view.known(slope) or not np.all(np.asarray(view.constants.value(slope)) == 1):
        return None
    shape, data = view.constants.shape(slope), view.shape(node.inputs[0])
    if shape is None or data is None or len(shape) > len(data):
        return None
    wide = [n for n in shape if n != 1]
    if any(have == 1 for have, n in zip(data[::-1], shape[::-1], strict=False) if n != 1):
        return Refusal(Code.BROADCAST, "its slopes broadcast its input to a larger shape")
    return Lifted.one(node, Alias(), node.inputs[0], fixed=bool(wide))


def lift_dropout(node: Node, view: View) -> Lifted | Refusal | None:
    mode = node.input(2)
    if mode and not view.known(mode):
        return view.dynamic(mode, "its training_mode")
    if mode and np.any(view.constants.value(mode)):
        return Refusal(
            Code.TRAINING, "it is in training mode and random; export the model after .eval()"
        )
    if any(
        view.graph.consumers.get(out) or view.graph.read_outside(out)
        for out in node.outputs[1:]
        if out
    ):
        return Refusal(Code.UNSUPPORTED, "its mask is used")
    return Lifted.one(node, Alias(), node.inputs[0])


def lift_pad(node: Node, view: View) -> Lifted | Refusal | None:
    if node.attributes.get("mode", "constant") != "constant":
        return Refusal(
            Code.UNSUPPORTED, f"{node.attributes['mode']} padding repeats data; only zeros fuse"
        )
    shape = view.shape(node.inputs[0])
    if shape is None:
        return unknown_shape(node.inputs[0])
    rank = len(shape)
    amounts = view.given(node, "pads", 1)
    if amounts is None:
        return view.dynamic(node.input(1), "its padding")
    axes = list(range(rank))
    if node.input(3):
        given = view.ints(node, 3)
        if given is None:
            return view.dynamic(node.input(3), "its axes")
        axes = [axis % rank for axis in given]
    if len(amounts) != 2 * len(axes) or len(set(axes)) != len(axes):
        return Refusal(Code.MALFORMED, "its pads do not fit its axes")
    begins, ends = [0] * rank, [0] * rank
    for axis, begin, end in zip(axes, amounts[: len(axes)], amounts[len(axes) :], strict=True):
        begins[axis], ends[axis] = begin, end
    if not any((*begins, *ends)):
        return Lifted.one(node, Alias(), node.inputs[0])
    value = node.input(2)
    if value and not view.known(value):
        return view.dynamic(value, "its value")
    literal = float(node.attributes.get("value", 0.0))
    load = (lambda: view.float64(value)) if value else (lambda: np.array(literal))
    law = Pad(tuple(begins), tuple(ends), load if value or literal else None)
    return Lifted.one(node, law, node.inputs[0])


def lift_slice(node: Node, view: View) -> Lifted | Refusal | None:
    shape = view.shape(node.inputs[0])
    if shape is None:
        return unknown_shape(node.inputs[0])
    settings = _slice_settings(node, view, len(shape))
    if isinstance(settings, Refusal):
        return settings
    windows: dict[int, Axis] = {}
    fixed = False
    for axis, (start, end, step) in settings.items():
        window = _window(start, end, step, shape[axis])
        if isinstance(window, Refusal):
            return window
        if window != Axis():
            windows[axis] = window
            fixed = fixed or start < 0 or 0 <= end < _FAR
    return _sliced(node, view, shape, windows, fixed=fixed)


def _window(start: int, end: int, step: int, size: int | None) -> Axis | Refusal:
    """One axis of a Slice as a map of one tap; a slice of everything is the identity."""
    if step < 1:
        return Refusal(Code.UNSUPPORTED, "it reverses an axis")
    if size is not None:
        run = slice_of(start, end, step, size)
        if run.stop <= run.start:
            return Refusal(Code.MALFORMED, "it selects nothing")
        return Axis(step, 1, 1, run.start, run.stop - run.start - 1 - size)
    if start < 0 or 0 <= end < _FAR:
        side = (
            "starts a fixed way before the end" if start < 0 else "ends a fixed way from the start"
        )
        return Refusal(Code.UNKNOWN_SHAPE, f"it {side} of an axis of dynamic size")
    return Axis(step, 1, 1, start, -start + min(end, 0) - 1)


def _sliced(
    node: Node, view: View, shape: Shape, windows: dict[int, Axis], *, fixed: bool
) -> Lifted | Refusal:
    """The law of a Slice with these windows by tensor axis."""
    if not windows:
        return Lifted.one(node, Alias(), node.inputs[0])
    if 0 in windows:
        return Refusal(Code.BROADCAST, "it slices the batch")
    channels = shape[1]
    if channels is None:
        return unknown_shape(node.inputs[0])
    if 1 in windows:
        window = windows.pop(1)
        if window.stride != 1:
            return Refusal(Code.UNSUPPORTED, "it leaves out channels between others")
        if windows:
            return Refusal(Code.UNSUPPORTED, "it slices channels and positions at once")
        stop = window.start + window.length(channels)
        return Lifted.one(node, Select(1, window.start, stop), node.inputs[0])
    axes = tuple(windows.get(axis, Axis()) for axis in range(2, len(shape)))
    kernel = ex.shift("Slice", Geometry(channels, channels, channels, axes))
    return Lifted.one(node, Convolve(kernel), node.inputs[0], fixed=fixed)


def _slice_settings(node: Node, view: View, rank: int) -> dict[int, tuple[int, int, int]] | Refusal:
    """Start, end and step by axis, from attributes or constant inputs."""
    if "starts" in node.attributes:
        starts, ends = node.attributes["starts"], node.attributes["ends"]
        axes, steps = node.attributes.get("axes"), None
    else:
        for name in node.inputs[1:]:
            if name and not view.known(name):
                return view.dynamic(name, "its bound")
        found = [view.ints(node, position) for position in range(1, 5)]
        if found[0] is None or found[1] is None:
            return Refusal(Code.MALFORMED, "its starts or ends are missing")
        starts, ends, axes, steps = found[0], found[1], found[2], found[3]
    axes = list(range(len(starts))) if axes is None else [axis % rank for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or len(set(axes)) != len(axes):
        return Refusal(Code.MALFORMED, "its starts, ends, axes and steps differ in length")
    return {a: (s, e, t) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)}


def lift_split(node: Node, view: View) -> Lifted | Refusal | None:
    shape = view.shape(node.inputs[0])
    if shape is None:
        return unknown_shape(node.inputs[0])
    axis = node.attributes.get("axis", 0) % len(shape)
    size = shape[axis]
    if size is None:
        return unknown_shape(node.inputs[0])
    sizes = node.attributes.get("split")
    if sizes is None and node.input(1):
        sizes = view.ints(node, 1)
        if sizes is None:
            return view.dynamic(node.input(1), "its sizes")
    if sizes is None:
        sizes = split_sizes(size, len(node.outputs))
    if sum(sizes) != size or len(sizes) != len(node.outputs):
        return Refusal(Code.MALFORMED, "its sizes do not add up")
    laws: dict[str, Law] = {}
    start = 0
    for name, part in zip(node.outputs, sizes, strict=True):
        if name and part > 0:
            laws[name] = Select(axis, start, start + part)
        start += part
    return Lifted(node, (node.inputs[0],), laws)


def lift_concat(node: Node, view: View) -> Lifted | Refusal | None:
    shapes = [view.shape(name) for name in node.inputs]
    rank = next((len(shape) for shape in shapes if shape is not None), 0)
    if not rank:
        return unknown_shape(node.inputs[0])
    axis = node.attributes.get("axis", 0) % rank
    framed = lift_frame(node, view, axis)
    if framed is not None:
        return framed
    for name, shape in zip(node.inputs, shapes, strict=True):
        if shape is None:
            return unknown_shape(name)
    if len(node.inputs) == 1:
        return Lifted.one(node, Alias(), node.inputs[0])
    return Lifted.one(node, Concat(axis), *node.inputs)


def lift_cast(node: Node, view: View) -> Lifted | Refusal | None:
    """A Cast to the type that its input has."""
    same = view.shapes.type_of(node.inputs[0]) == view.shapes.type_of(node.outputs[0])
    return Lifted.one(node, Alias(), node.inputs[0]) if same else None


def lift_unsqueeze(node: Node, view: View) -> Lifted | Refusal | None:
    shape, axes = view.shape(node.inputs[0]), view.given(node, "axes", 1)
    if shape is None:
        return unknown_shape(node.inputs[0])
    if axes is None:
        return view.dynamic(node.input(1), "its axes")
    rank = len(shape) + len(axes)
    places = tuple(sorted(axis % rank for axis in axes))
    if len(set(places)) != len(places):
        return Refusal(Code.MALFORMED, "it names an axis twice")
    return Lifted.one(node, Unsqueeze(places), node.inputs[0])


def lift_squeeze(node: Node, view: View) -> Lifted | Refusal | None:
    shape, axes = view.shape(node.inputs[0]), view.given(node, "axes", 1)
    if shape is None:
        return unknown_shape(node.inputs[0])
    if axes is None:
        if node.input(1) or None in shape:
            return Refusal(Code.UNKNOWN_SHAPE, "which axes it squeezes depends on the size")
        axes = [axis for axis, size in enumerate(shape) if size == 1]
    places = tuple(sorted({axis % len(shape) for axis in axes}))
    return Lifted.one(node, Squeeze(places), node.inputs[0])


def lift_transpose(node: Node, view: View) -> Lifted | Refusal | None:
    shape = view.shape(node.inputs[0])
    if shape is None:
        return unknown_shape(node.inputs[0])
    permutation = node.attributes.get("perm") or list(range(len(shape)))[::-1]
    if sorted(permutation) != list(range(len(shape))):
        return Refusal(Code.MALFORMED, f"perm={permutation} is no order of {len(shape)} axes")
    if permutation == list(range(len(shape))):
        return Lifted.one(node, Alias(), node.inputs[0])
    return Lifted.one(node, Permute(tuple(permutation)), node.inputs[0])
