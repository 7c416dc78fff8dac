"""Padding written in other nodes: constant strips joined by Concat, or set by ScatterElements.

    Concat           [strip, x, strip] along one spatial axis
    ScatterElements  indices that count along one axis and are the same everywhere else

A strip is a constant, or a constant stretched by Expand; its width is certain though the tensor's
sizes may be open.
"""

from __future__ import annotations

import numpy as np

from onnxfuse.algebra.padding import Fill, Frame, Strip
from onnxfuse.lift.border import expanded_constant, per_axis
from onnxfuse.lift.common import Lifted, View, unknown_shape
from onnxfuse.model.graph import Node
from onnxfuse.model.shapes import Shape
from onnxfuse.refusal import Code, Refusal


def lift_frame(node: Node, view: View, axis: int) -> Lifted | Refusal | None:
    """A Concat of one tensor with constants; ``None`` where it is not that."""
    strips = {name: _strip(name, view, axis) for name in dict.fromkeys(node.inputs)}
    data = [name for name in node.inputs if strips[name] is None]
    if len(data) == len(node.inputs):
        return None
    refused = next((s for s in strips.values() if isinstance(s, Refusal)), None)
    if refused is not None:
        return refused
    if len(data) != 1:
        return Refusal(Code.UNSUPPORTED, "it joins constants to several tensors")
    place = node.inputs.index(data[0])
    before, after = node.inputs[:place], node.inputs[place + 1 :]
    if len(before) > 1 or len(after) > 1:
        return Refusal(Code.UNSUPPORTED, "it joins several constants on one side")
    pinned = {at for name in (*before, *after) for at in _pinned(name, data[0], axis, view)}
    begin, end = (strips[part[0]] if part else None for part in (before, after))
    assert not isinstance(begin, Refusal)
    assert not isinstance(end, Refusal)
    fixed = any(_sized(name, view, axis) for name in (*before, *after))
    return Lifted.one(node, Frame(axis, begin, end, tuple(pinned)), data[0], fixed=fixed)


def _strip(name: str, view: View, axis: int) -> Strip | Refusal | None:
    """A constant as a strip along ``axis``; ``None`` where it is data."""
    if view.known(name):
        array = np.asarray(view.constants.value(name)).astype(np.float64)
        found = per_axis(array, axis)
        if found is None:
            return Refusal(Code.BROADCAST, "the constant it joins varies over positions")
        over, value = found
        return Strip(array.shape[axis], over, lambda: value)
    stretched = expanded_constant(name, view)
    if stretched is None:
        return None
    node, constant, order = stretched
    shape, own = view.expanded(node), view.constants.shape(constant)
    if shape is None or own is None:
        return unknown_shape(name)
    width = shape[order[axis]] if order else shape[axis]
    if width is None:
        return unknown_shape(name)
    wide = [at + len(shape) - len(own) for at, size in enumerate(own) if size != 1]
    if len(wide) > 1 or (wide and wide[0] == axis):
        return Refusal(Code.BROADCAST, "the constant it joins varies over positions")
    over = (order.index(wide[0]) if order else wide[0]) if wide else None
    return Strip(int(width), over, lambda: view.float64(constant).reshape(-1))


def _laid(name: str, view: View) -> Shape | None:
    """What is certain of the shape of a strip, in the order of its own axes."""
    stretched = None if view.known(name) else expanded_constant(name, view)
    if stretched is None:
        return view.constants.shape(name)
    node, _, order = stretched
    shape = view.expanded(node)
    return tuple(shape[place] for place in order) if shape and order else shape


def _sized(name: str, view: View, axis: int) -> bool:
    """Whether a strip fits one size only: some other than its width and the channels is certain."""
    shape = _laid(name, view)
    if view.known(name) or shape is None:
        return True
    return sum(size is not None for i, size in enumerate(shape) if i != axis) > 1


def _pinned(name: str, data: str, axis: int, view: View) -> list[int]:
    """The axes on which the size of a strip is certain and that of the data is not."""
    own, shape = _laid(name, view), view.shape(data)
    if own is None or shape is None or len(own) != len(shape):
        return list(range(len(own or ())))
    pairs = enumerate(zip(shape, own, strict=True))
    return [at for at, (have, size) in pairs if have is None and size is not None and at != axis]


def lift_scatter_elements(node: Node, view: View) -> Lifted | Refusal | None:
    """``x[:, :, lo:hi] = v`` as PaddlePaddle writes it."""
    if node.attributes.get("reduction", "none") != "none":
        return Refusal(Code.UNSUPPORTED, "its reduction is not an assignment")
    data, indices_name, updates_name = node.inputs[:3]
    shape = view.shape(data)
    if shape is None or None in shape:
        return unknown_shape(data)
    for name, what in ((indices_name, "its indices"), (updates_name, "its updates")):
        if not view.known(name):
            return view.dynamic(name, what)
    axis = node.attributes.get("axis", 0) % len(shape)
    size = int(shape[axis] or 0)
    indices = np.asarray(view.constants.value(indices_name))
    updates = np.asarray(view.constants.value(updates_name)).astype(np.float64)
    if indices.ndim != len(shape):
        return Refusal(Code.MALFORMED, "its indices do not fit its input")
    wanted = [*shape]
    wanted[axis] = indices.shape[axis]
    if not indices.size or list(indices.shape) != wanted or updates.shape != indices.shape:
        return Refusal(Code.UNSUPPORTED, "it assigns to something else than a border strip")
    along = np.moveaxis(np.where(indices < 0, indices + size, indices), axis, 0)
    along = along.reshape(along.shape[0], -1)
    places = np.sort(along[:, 0])
    run = np.array_equal(places, np.arange(places[0], places[0] + places.size))
    if not run or not np.all(along == along[:, :1]):
        return Refusal(Code.UNSUPPORTED, "it assigns to something else than a border strip")
    if places[0] != 0 and places[-1] != size - 1:
        return Refusal(Code.UNSUPPORTED, "it assigns to something else than a border strip")
    found = per_axis(updates, axis)
    if found is None:
        return Refusal(Code.BROADCAST, "the value it assigns varies over positions")
    over, value = found
    law = Fill(axis, bool(places[0]), places.size, over, lambda: value)
    return Lifted.one(node, law, data, fixed=True)
