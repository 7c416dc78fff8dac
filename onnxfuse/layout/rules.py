"""How operators are written when their tensors are stored with permuted axes.

A tensor ``t`` is stored as ``transpose(t, perm)``: stored axis ``i`` is axis ``perm[i]`` of ``t``.
Elementwise operators do not mind; others name axes, which move. An operator without a row here
needs its tensors as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxfuse.lift import View
from onnxfuse.model.graph import Node

Perm = tuple[int, ...]

_UNARY = """
Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu
HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid
Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
"""
_NARY = """
Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Or PRelu Pow Sub
Sum Where Xor
"""
_REDUCE = """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
ReduceSum ReduceSumSquare
"""
_CHANNELS = """
AveragePool BatchNormalization Conv ConvTranspose GlobalAveragePool GlobalMaxPool
InstanceNormalization LpPool MaxPool
"""
UNARY, NARY, REDUCE = (frozenset(text.split()) for text in (_UNARY, _NARY, _REDUCE))
REORDERING = REDUCE | {"Softmax", "LogSoftmax"}
"""Operators whose sums a runtime may take in another order in another layout."""
CHANNELS = frozenset(_CHANNELS.split())
"""Operators whose channels are axis 1: only Transposes next to one are looked at."""


LINEAR = frozenset(["Add", "Concat", "Div", "Mul", "Neg", "Pad", "Slice", "Sub", "Sum"])
"""Operators that a convolution next to them may take in."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What changes in a node: attributes, and constant operands by position (new arrays)."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, Any] = field(default_factory=dict)


def inverse(perm: Perm) -> Perm:
    """The permutation that undoes ``perm``."""
    return tuple(perm.index(axis) for axis in range(len(perm)))


def compose(first: Perm, second: Perm) -> Perm:
    """The permutation of ``transpose(transpose(t, first), second)``."""
    return tuple(first[axis] for axis in second)


def operands(node: Node, view: View) -> tuple[int, ...] | None:
    """The inputs that are tensors of data, all of one rank; ``None`` if the node minds axes."""
    if not node.standard:
        return None
    data = [i for i, n in enumerate(node.inputs) if n and not view.constants.known(n)]
    if node.op_type == "Concat":
        allowed = len(data) == len(node.inputs)
    elif node.op_type in UNARY | REDUCE or node.op_type in _AXES:
        allowed = data == [0]
    else:
        allowed = node.op_type in NARY and bool(data)
    shapes = [view.shape(node.inputs[i]) for i in data]
    if not allowed or any(shape is None for shape in shapes):
        return None
    ranks = {len(shape or ()) for shape in shapes}
    return tuple(data) if len(ranks) == 1 else None


def absorbs(node: Node) -> bool:
    """Whether a node's output has fewer axes, so that it has no layout to follow."""
    return node.op_type in REDUCE and not node.attributes.get("keepdims", 1)


def moved(node: Node, perm: Perm, view: View) -> Moved | None:
    """How ``node`` is written when its data is stored by ``perm``; ``None`` where it cannot be."""
    if node.op_type in UNARY:
        return Moved()
    if node.op_type in NARY:
        return _nary(node, perm, view)
    rule = _reduce if node.op_type in REDUCE else _AXES.get(node.op_type)
    return None if rule is None else rule(node, perm, view)


def _nary(node: Node, perm: Perm, view: View) -> Moved | None:
    constants = {}
    for position, name in enumerate(node.inputs):
        if not name or not view.constants.known(name):
            continue
        if not view.known(name):
            return None
        shape = view.constants.shape(name)
        if shape is None or len(shape) > len(perm):
            return None
        if all(size == 1 for size in shape):
            continue
        array = np.asarray(view.constants.value(name))
        full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
        constants[position] = full.transpose(perm)
    return Moved(constants=constants)


def _named_axis(default: int) -> Callable[[Node, Perm, View], Moved | None]:
    def rule(node: Node, perm: Perm, view: View) -> Moved | None:
        axis = node.attributes.get("axis", default) % len(perm)
        return Moved({"axis": perm.index(axis)})

    return rule


def _softmax(node: Node, perm: Perm, view: View) -> Moved | None:
    if view.graph.opset < 13:
        return None  # it flattens what stands before and behind its axis
    return _named_axis(-1)(node, perm, view)


def _pad(node: Node, perm: Perm, view: View) -> Moved | None:
    given = view.given(node, "pads", 1)
    rank = len(perm)
    if given is None or (node.input(2) and not view.known(node.input(2))):
        return None
    if node.input(3):
        axes = view.ints(node, 3)
        if axes is None:
            return None
        return Moved(constants={3: _int64([perm.index(axis % rank) for axis in axes])})
    if len(given) != 2 * rank:
        return None
    pads = [given[half * rank + axis] for half in (0, 1) for axis in perm]
    return _written(node, "pads", 1, pads)


def _slice(node: Node, perm: Perm, view: View) -> Moved | None:
    starts = view.given(node, "starts", 1)
    if starts is None:
        return None
    axes = view.given(node, "axes", 3)
    if axes is None and len(node.inputs) > 1:
        return None  # a new input would have to be of the type of the others
    axes = list(range(len(starts))) if axes is None else axes
    return _written(node, "axes", 3, [perm.index(axis % len(perm)) for axis in axes])


def _reduce(node: Node, perm: Perm, view: View) -> Moved | None:
    axes = view.given(node, "axes", 1)
    if not axes:
        return None
    gone = {axis % len(perm) for axis in axes}
    rest = [axis for axis in perm if axis not in gone]
    if absorbs(node) and rest != sorted(rest):
        return None
    return _written(node, "axes", 1, [perm.index(axis % len(perm)) for axis in axes])


def _written(node: Node, name: str, position: int, values: list[int]) -> Moved:
    if name in node.attributes or len(node.inputs) == 1:
        return Moved({name: values})
    return Moved(constants={position: _int64(values)})


def _int64(values: list[int]) -> Any:
    return np.array(values, np.int64)


_AXES: dict[str, Callable[[Node, Perm, View], Moved | None]] = {
    "Concat": _named_axis(0),
    "Split": _named_axis(0),
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Pad": _pad,
    "Slice": _slice,
}
