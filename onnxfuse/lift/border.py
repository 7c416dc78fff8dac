"""ScatterND as a border assignment: ``x[:, :, :p] = v`` and its kin, axis by axis.

At fixed sizes the indices are constants and are looked at as they are. At dynamic sizes they are
a slice of ``Range(0, size)``, ``size`` being that of the very axis that is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxfuse.algebra.laws import Loader
from onnxfuse.algebra.padding import Fill
from onnxfuse.lift.common import Lifted, View, unknown_shape
from onnxfuse.model.graph import Node
from onnxfuse.refusal import Code, Refusal


def lift_scatter_nd(node: Node, view: View) -> Lifted | Refusal | None:
    if node.attributes.get("reduction", "none") != "none":
        return Refusal(Code.UNSUPPORTED, "its reduction is not an assignment")
    data, indices_name, updates_name = node.inputs[:3]
    shape = view.shape(data)
    if shape is None:
        return unknown_shape(data)
    if not view.known(indices_name):
        return _dynamic(node, view, len(shape))
    if not view.known(updates_name):  # some sizes may be certain, others open
        open_ = _dynamic(node, view, len(shape))
        return open_ if isinstance(open_, Lifted) else view.dynamic(updates_name, "its updates")
    indices, updates = view.constants.value(indices_name), view.constants.value(updates_name)
    if indices is None or updates is None:
        return Refusal(Code.SIZE, "its indices or updates are too large to compute")
    if indices.dtype.kind != "i":
        return Refusal(Code.MALFORMED, "its indices are no integers")
    if indices.ndim == 0 or indices.shape[-1] > len(shape):
        return Refusal(Code.MALFORMED, "its indices do not fit its input")
    depth = indices.shape[-1]
    wanted = (*indices.shape[:-1], *shape[depth:])
    if len(wanted) != updates.ndim or any(
        size not in (None, given) for size, given in zip(wanted, updates.shape, strict=True)
    ):
        return Refusal(Code.MALFORMED, "its updates do not fit its indices")
    sizes = shape[:depth]
    if None in sizes or indices.size == 0:
        return unknown_shape(data)
    lengths = np.array([int(size or 0) for size in sizes])
    indices = np.where(indices < 0, indices + lengths, indices)
    strip = _strip(indices.reshape(-1, depth), lengths.tolist())
    if strip is None:
        return Refusal(Code.UNSUPPORTED, "it assigns to something else than a border strip")
    axis, end, width = strip
    found = _per_index(updates, indices, shape, axis)
    if found is None:
        return Refusal(Code.BROADCAST, "the value it assigns varies over positions")
    over, value = found
    return Lifted.one(node, Fill(axis, end, width, over, lambda: value), data, fixed=True)


def _strip(indices: Any, sizes: list[int]) -> tuple[int, bool, int] | None:
    """The axis, end and width of the strip that rows of indices cover exactly, if they do."""
    if np.any(indices < 0) or np.any(indices >= np.array(sizes)):
        return None
    low, high = indices.min(axis=0), indices.max(axis=0)
    flat = np.ravel_multi_index(tuple(indices.T), sizes)
    if len(np.unique(flat)) != np.prod(high - low + 1) or len(flat) != np.prod(high - low + 1):
        return None
    partial = [axis for axis, size in enumerate(sizes) if high[axis] - low[axis] + 1 != size]
    if len(partial) != 1:
        return None
    (axis,) = partial
    width = int(high[axis] - low[axis] + 1)
    if low[axis] == 0:
        return axis, False, width
    return (axis, True, width) if high[axis] == sizes[axis] - 1 else None


def _per_index(
    updates: Any, indices: Any, shape: tuple[int | None, ...], axis: int
) -> tuple[int | None, Any] | None:
    """The one axis that the assigned values vary over, and the values along it.

    A value that is the same everywhere varies over no axis: ``(None, value)``.
    """
    depth = indices.shape[-1]
    first = updates.reshape(-1)[0]
    if np.all(updates == first):
        return None, np.array(float(first))
    rest = updates.shape[indices.ndim - 1 :]
    flat = updates.reshape(-1, *rest).astype(np.float64)
    rows = indices.reshape(-1, depth)
    for other in range(len(shape)):
        value = None if other == axis else _along(flat, rows, other, depth)
        if value is not None:
            return other, value
    return None


def _along(flat: Any, rows: Any, axis: int, depth: int) -> Any:
    """The values by their index on ``axis``, or ``None`` where they vary within one index."""
    if axis < depth:
        values = flat.reshape(len(rows), -1)
        if np.any(values != values[:, :1]):
            return None
        found = np.full(rows[:, axis].max() + 1, np.nan)
        found[rows[:, axis]] = values[:, 0]
        same = np.array_equal(found[rows[:, axis]], values[:, 0])
        return found if same else None
    moved = np.moveaxis(flat, 1 + axis - depth, 0)
    moved = moved.reshape(moved.shape[0], -1)
    return moved[:, 0] if np.all(moved == moved[:, :1]) else None


def per_axis(array: Any, axis: int) -> tuple[int | None, Any] | None:
    """The one axis other than ``axis`` that values vary over, and the values along it."""
    if not array.size:
        return None
    first = array.reshape(-1)[0]
    if np.all(array == first):
        return None, np.array(first)
    for over in range(array.ndim):
        moved = np.moveaxis(array, over, 0).reshape(array.shape[over], -1)
        if over != axis and np.all(moved == moved[:, :1]):
            return over, moved[:, 0]
    return None


def _dynamic(node: Node, view: View, rank: int) -> Lifted | Refusal:
    """A border assignment at sizes that are known only when the model runs."""
    data, indices, updates = node.inputs[:3]
    strip = _range_slice(indices, data, view)
    if strip is None:
        return view.dynamic(indices, "its indices, or the axis they address,")
    found = _updates(updates, rank, view)
    if found is None:
        return view.dynamic(updates, "its updates")
    end, width = strip
    over, load = found
    law = Fill(0, end, width, over, load)
    certain = [size for size in view.shape(data) or () if size is not None]
    fixed = len(certain) > 1  # a size beside the channels may be folded into what is computed
    return Lifted.one(node, law, data, fixed=fixed)


def _updates(name: str, rank: int, view: View) -> tuple[int | None, Loader] | None:
    """What is assigned: the one axis it varies over, and how to read its values."""
    if view.known(name):
        found = per_axis(view.float64(name), 0)
        return None if found is None else (found[0], lambda: found[1])
    stretched = _expanded(name, rank, view)
    if stretched is None:
        return None
    over, constant = stretched
    return over, lambda: view.float64(constant).reshape(-1)


def _range_slice(name: str, data: str, view: View) -> tuple[bool, int] | None:
    """The end and width of a strip of axis 0 given as a slice of ``Range(0, its size)``."""
    node = view.graph.producer.get(name)
    while node is not None and node.op_type in ("Unsqueeze", "Identity", "Cast"):
        if node.op_type == "Unsqueeze" and view.given(node, "axes", 1) not in ([1], [-1]):
            return None  # anything else than one index to a row
        node = view.graph.producer.get(node.inputs[0])
    if node is None or node.op_type != "Slice":
        return None
    lows, highs = view.ints(node, 1), view.ints(node, 2)
    steps = view.ints(node, 4) if node.input(4) else [1]
    whole = view.graph.producer.get(node.inputs[0])
    if lows is None or highs is None or len(lows) != 1 or len(highs) != 1 or steps != [1]:
        return None
    if whole is None or whole.op_type != "Range":
        return None
    start, _, step = (view.ints(whole, position) for position in range(3))
    if start != [0] or step != [1] or _size_of(whole.inputs[1], view) != _origin(data, 0, view):
        return None
    low, high = lows[0], highs[0]
    if low == 0 and 0 < high < 2**31 - 1:
        return False, high
    return (True, -low) if low < 0 and high >= 2**31 - 1 else None


def _size_of(name: str, view: View) -> tuple[str, int] | None:
    """The tensor and axis whose size a scalar is."""
    node = view.graph.producer.get(name)
    while node is not None and node.op_type in ("Squeeze", "Identity", "Cast", "Reshape"):
        node = view.graph.producer.get(node.inputs[0])
    if node is None:
        return None
    if node.op_type == "Shape" and node.attributes.get("end") is not None:
        start, end = node.attributes.get("start", 0), node.attributes["end"]
        return _origin(node.inputs[0], start, view) if end == start + 1 and start >= 0 else None
    if node.op_type != "Gather" or node.attributes.get("axis", 0) != 0:
        return None
    shape, index = view.graph.producer.get(node.inputs[0]), view.ints(node, 1)
    if shape is None or shape.op_type != "Shape" or shape.attributes.get("start", 0):
        return None
    if index is None or len(index) != 1 or index[0] < 0:
        return None
    return _origin(shape.inputs[0], index[0], view)


def _origin(name: str, axis: int, view: View) -> tuple[str, int]:
    """The tensor and axis whose size a tensor's axis has, through what keeps sizes."""
    while True:
        node = view.graph.producer.get(name)
        if node is None or node.op_type not in ("Identity", "Transpose", "ScatterND"):
            return name, axis
        if node.op_type == "Transpose":
            permutation = _permutation(node)
            if axis >= len(permutation):
                return name, axis
            axis = permutation[axis]
        name = node.inputs[0]


def _permutation(node: Node) -> list[int]:
    """The order of axes that a Transpose gives; empty where it gives none, or no permutation."""
    given: list[int] = node.attributes.get("perm") or []
    return given if sorted(given) == list(range(len(given))) else []


def expanded_constant(name: str, view: View) -> tuple[Node, str, list[int]] | None:
    """A constant stretched by one Expand, perhaps transposed behind it: the Expand, its operand
    and which of its axes each axis of ``name`` is (empty: the same).
    """
    order: list[int] = []
    while True:
        node = view.graph.producer.get(name)
        if node is None or node.op_type not in ("Identity", "Transpose", "Expand"):
            return None
        if node.op_type == "Expand":
            return (node, node.inputs[0], order) if view.known(node.inputs[0]) else None
        if node.op_type == "Transpose":
            permutation = _permutation(node)
            if not permutation or len(order) not in (0, len(permutation)):
                return None
            order = [permutation[axis] for axis in order] or permutation
        name = node.inputs[0]


def _expanded(name: str, rank: int, view: View) -> tuple[int | None, str] | None:
    """A constant stretched by Expand: the one axis it varies over, and its name."""
    order = list(range(rank))
    while not view.known(name):
        node = view.graph.producer.get(name)
        if node is None or node.op_type not in ("Identity", "Transpose", "Expand"):
            return None
        if node.op_type == "Transpose":
            permutation = _permutation(node)
            if len(permutation) != rank:
                return None
            order = [permutation[axis] for axis in order]
        name = node.inputs[0]
    shape = view.constants.shape(name)
    if shape is None or len(shape) > rank:
        return None
    wide = [axis + rank - len(shape) for axis, size in enumerate(shape) if size != 1]
    if len(wide) > 1:
        return None
    return (order.index(wide[0]) if wide else None), name
