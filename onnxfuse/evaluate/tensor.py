"""Shape, index and elementwise operators: what exporters write to compute constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from onnxfuse.evaluate.parts import pieces

Arrays = Sequence[Any]
Attributes = Mapping[str, Any]

MAX_ELEMENTS = 1 << 26
"""No constant larger than this many elements is ever computed."""


def bounded(shape: Sequence[int]) -> list[int]:
    """``shape``, or ``ValueError`` where a tensor of it would be too large."""
    sizes = [int(size) for size in shape]
    if any(size < 0 for size in sizes) or prod(sizes) > MAX_ELEMENTS:
        raise ValueError(f"a constant of shape {sizes} is too large to compute")
    return sizes


def _ints(array: Any) -> list[int]:
    return [int(value) for value in np.asarray(array).reshape(-1)]


def _given(attributes: Attributes, inputs: Arrays, name: str, position: int) -> list[int] | None:
    """A list that older opsets keep in an attribute and newer ones in an input."""
    if name in attributes:
        return list(attributes[name])
    if len(inputs) > position and inputs[position] is not None:
        return _ints(inputs[position])
    return None


def reshape(attributes: Attributes, inputs: Arrays) -> list[Any]:
    x = inputs[0]
    wanted = _given(attributes, inputs, "shape", 1)
    assert wanted is not None
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return [np.reshape(x, wanted)]


def unsqueeze(attributes: Attributes, inputs: Arrays) -> list[Any]:
    axes = _given(attributes, inputs, "axes", 1) or []
    return [np.expand_dims(inputs[0], tuple(axes))]


def squeeze(attributes: Attributes, inputs: Arrays) -> list[Any]:
    axes = _given(attributes, inputs, "axes", 1)
    return [np.squeeze(inputs[0], None if axes is None else tuple(axes))]


def flatten(attributes: Attributes, inputs: Arrays) -> list[Any]:
    x, axis = inputs[0], attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return [x.reshape(prod(x.shape[:axis]), -1)]


def slice_(attributes: Attributes, inputs: Arrays) -> list[Any]:
    x = inputs[0]
    starts = _given(attributes, inputs, "starts", 1) or []
    ends = _given(attributes, inputs, "ends", 2) or []
    axes = _given(attributes, inputs, "axes", 3) or list(range(len(starts)))
    steps = _given({}, inputs, "steps", 4) or [1] * len(starts)
    places = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places[axis] = slice_of(start, end, step, x.shape[axis])
    return [x[tuple(places)]]


def slice_of(start: int, end: int, step: int, size: int) -> slice:
    """ONNX's clamping of one axis, as a Python slice."""
    if step == 0:
        raise ValueError("a Slice has step 0")
    if step > 0:
        return slice(*slice(start, end, step).indices(size))
    first = min(max(start + size if start < 0 else start, 0), size - 1)
    stop = min(max(end + size if end < 0 else end, -1), size - 1)
    return slice(first, None if stop < 0 else stop, step)


def split_sizes(size: int, parts: int) -> list[int]:
    """Equal parts of ``size``, the last one smaller (Split without sizes)."""
    chunk = -(-size // parts)
    return [min(chunk, size - chunk * i) for i in range(parts)]


def split(attributes: Attributes, inputs: Arrays) -> list[Any]:
    """Parts of the given sizes, or ``num_outputs`` equal ones."""
    x, axis = inputs[0], attributes.get("axis", 0)
    sizes = _given(attributes, inputs, "split", 1)
    if sizes is None:
        sizes = split_sizes(x.shape[axis], attributes["num_outputs"])
    if sum(sizes) != x.shape[axis]:
        raise ValueError("the sizes of a Split do not add up")
    return list(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def gather(attributes: Attributes, inputs: Arrays) -> list[Any]:
    axis = attributes.get("axis", 0)
    rest = [size for i, size in enumerate(inputs[0].shape) if i != axis % inputs[0].ndim]
    bounded([*rest, *np.shape(inputs[1])])
    return [np.take(inputs[0], np.asarray(inputs[1]), axis=axis)]


def constant_of_shape(attributes: Attributes, inputs: Arrays) -> list[Any]:
    value = attributes.get("value")
    value = np.zeros(1, np.float32) if value is None else np.asarray(value)
    return [np.full(bounded(inputs[0]), value.reshape(-1)[0], value.dtype)]


def range_(attributes: Attributes, inputs: Arrays) -> list[Any]:
    start, stop, step = (np.asarray(value).reshape(-1)[0] for value in inputs)
    count = max(int(np.ceil((stop - start) / step)), 0)
    (count,) = bounded([count])
    return [(start + np.arange(count) * step).astype(np.asarray(inputs[0]).dtype)]


def expand(attributes: Attributes, inputs: Arrays) -> list[Any]:
    shape = bounded(np.broadcast_shapes(inputs[0].shape, tuple(_ints(inputs[1]))))
    return [np.broadcast_to(inputs[0], shape)]


def tile(attributes: Attributes, inputs: Arrays) -> list[Any]:
    repeats = _ints(inputs[1])
    bounded([size * count for size, count in zip(inputs[0].shape, repeats, strict=True)])
    return [np.tile(inputs[0], repeats)]


def einsum(attributes: Attributes, inputs: Arrays) -> list[Any]:
    terms, _, out = attributes["equation"].replace(" ", "").partition("->")
    if "." in terms:
        raise ValueError("an Einsum with an ellipsis")
    labels = dict(
        pair
        for term, array in zip(terms.split(","), inputs, strict=True)
        for pair in zip(term, array.shape, strict=True)
    )
    bounded([labels[label] for label in out or labels])
    return [np.einsum(attributes["equation"], *inputs, optimize=True)]


def matmul(attributes: Attributes, inputs: Arrays) -> list[Any]:
    a, b = inputs
    bounded([*a.shape[:-1], *b.shape[-1:]])
    stack = a.shape[:-1] if a.ndim > 2 and b.ndim == 2 else None
    if stack is not None:  # NumPy would go through the matrix once for each matrix of the stack
        a = a.reshape(prod(stack), a.shape[-1])
    found = [np.matmul(a, part) for *_, part in pieces(b, b.ndim - 1)]
    whole = found[0] if len(found) == 1 else np.concatenate(found, axis=-1)
    return [whole if stack is None else whole.reshape(*stack, b.shape[-1])]


def cast(attributes: Attributes, inputs: Arrays) -> list[Any]:
    return [np.asarray(inputs[0]).astype(attributes["to"])]


def _reduce(reduction: Callable[..., Any]) -> Callable[[Attributes, Arrays], list[Any]]:
    def apply(attributes: Attributes, inputs: Arrays) -> list[Any]:
        axes = _given(attributes, inputs, "axes", 1)
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                return [inputs[0]]
            axes = list(range(inputs[0].ndim))
        keep = bool(attributes.get("keepdims", 1))
        return [reduction(inputs[0], axis=tuple(axes), keepdims=keep).astype(inputs[0].dtype)]

    return apply


def elementwise(function: Callable[..., Any]) -> Callable[[Attributes, Arrays], list[Any]]:
    """An operator of arrays that broadcast against each other."""

    def apply(attributes: Attributes, inputs: Arrays) -> list[Any]:
        bounded(np.broadcast_shapes(*(np.shape(array) for array in inputs)))
        return [function(*inputs)]

    return apply


TENSOR: dict[str, Callable[[Attributes, Arrays], list[Any]]] = {
    "Reshape": reshape,
    "Unsqueeze": unsqueeze,
    "Squeeze": squeeze,
    "Flatten": flatten,
    "Transpose": lambda a, x: [np.transpose(x[0], a.get("perm"))],
    "Cast": cast,
    "Concat": lambda a, x: [np.concatenate(list(x), axis=a["axis"])],
    "Slice": slice_,
    "Split": split,
    "Gather": gather,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "Expand": expand,
    "Tile": tile,
    "Where": elementwise(np.where),
    "Equal": elementwise(np.equal),
    "Less": elementwise(np.less),
    "LessOrEqual": elementwise(np.less_equal),
    "Greater": elementwise(np.greater),
    "GreaterOrEqual": elementwise(np.greater_equal),
    "Not": elementwise(np.logical_not),
    "And": elementwise(np.logical_and),
    "Or": elementwise(np.logical_or),
    "Abs": elementwise(np.abs),
    "Sqrt": elementwise(np.sqrt),
    "Reciprocal": elementwise(lambda x: (1 / x).astype(x.dtype)),
    "Pow": elementwise(lambda x, y: np.power(x, y).astype(x.dtype)),
    "Exp": elementwise(np.exp),
    "Min": elementwise(lambda *x: np.minimum.reduce(np.broadcast_arrays(*x))),
    "Max": elementwise(lambda *x: np.maximum.reduce(np.broadcast_arrays(*x))),
    "Floor": elementwise(np.floor),
    "Ceil": elementwise(np.ceil),
    "ReduceSum": _reduce(np.sum),
    "ReduceProd": _reduce(np.prod),
    "ReduceMean": _reduce(np.mean),
    "Einsum": einsum,
    "MatMul": matmul,
}
