"""BatchNormalization and arithmetic: affines per channel, and sums of tensors.

    BatchNormalization  y = γ/√(σ² + ε) · x + (β − μ·γ/√(σ² + ε))     (inference)
    Mul, Div            y = c · x, y = x / c
    Add, Sub            y = x + c, y = ± x ± c, or sums of tensors

A constant counts per channel, or as a scalar, by how it is broadcast: by axis, never by size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxfuse.algebra.laws import Alias, Law, Scale, Sum
from onnxfuse.algebra.maps import AddMap
from onnxfuse.algebra.weights import Array
from onnxfuse.evaluate.linear import EPSILON
from onnxfuse.lift.common import Lifted, View, unknown_shape
from onnxfuse.model.graph import Node
from onnxfuse.refusal import Code, Refusal


def lift_batch_normalization(node: Node, view: View) -> Lifted | Refusal | None:
    if node.attributes.get("training_mode", 0) or any(node.outputs[1:]):
        return Refusal(
            Code.TRAINING,
            "it is in training mode and depends on the batch; export the model after .eval()",
        )
    if node.attributes.get("spatial", 1) != 1:
        return Refusal(Code.UNSUPPORTED, "spatial=0 normalises every position by itself")
    parameters = node.inputs[1:5]
    for name in parameters:
        if not view.known(name):
            return view.dynamic(name, "its parameter")
    shape = view.shape(node.inputs[0])
    if shape is None or len(shape) < 2:
        return unknown_shape(node.inputs[0])
    sizes = {view.constants.shape(name) for name in parameters}
    size = next(iter(sizes))
    if len(sizes) != 1 or size is None or len(size) != 1 or size[0] is None:
        return Refusal(Code.MALFORMED, "its four parameters differ in shape")
    epsilon = node.attributes.get("epsilon", EPSILON)
    gamma, beta, mean, variance = parameters

    def scale() -> Array:
        factor: Array = view.float64(gamma) / np.sqrt(view.float64(variance) + epsilon)
        return factor

    def shift() -> Array:
        offset: Array = view.float64(beta) - view.float64(mean) * scale()
        return offset

    return Lifted.one(node, Scale("BN", 1, size[0], scale, shift), node.inputs[0])


def lift_add(node: Node, view: View) -> Lifted | Refusal | None:
    return _sum_or_shift(node, view, (1, 1))


def lift_sub(node: Node, view: View) -> Lifted | Refusal | None:
    return _sum_or_shift(node, view, (1, -1))


def _sum_or_shift(node: Node, view: View, signs: tuple[int, int]) -> Lifted | Refusal | None:
    added = _map(node, view, signs)
    if added is not None:
        return added
    found = _constant_side(node, view)
    if found is None:
        return _sum(node, view, signs)
    if isinstance(found, Refusal):
        return found
    x_sign, c_sign = (signs[1], signs[0]) if found.first else signs
    law = _shift(node.op_type, found, x_sign, c_sign)
    fixed = isinstance(law, Alias) and found.sized
    return Lifted.one(node, law, found.operand, fixed=fixed)


def _map(node: Node, view: View, signs: tuple[int, int]) -> Lifted | None:
    """A stored constant that varies in space, added to or subtracted from data."""
    known = [view.constants.known(name) for name in node.inputs[:2]]
    if known[0] == known[1] or (known[0] and signs[1] < 0):
        return None
    constant, operand = node.inputs[known[1]], node.inputs[known[0]]
    shape, data = view.constants.shape(constant), view.shape(operand)
    if shape is None or data is None or len(shape) > len(data) or not view.known(constant):
        return None
    full = tuple(int(size or 0) for size in (*[1] * (len(data) - len(shape)), *shape))
    if sum(size != 1 for size in full) < 2 or full[0] != 1:
        return None
    readable = not node.fused
    law = AddMap(constant, full, lambda: view.float64(constant), signs[known[1]], readable)
    return Lifted.one(node, law, operand, fixed=True)


def _shift(text: str, found: Constant, x_sign: int, c_sign: int) -> Law:
    if x_sign > 0 and not np.any(found.read()):
        return Alias(found.channels)
    scale = None if x_sign > 0 else _number(-1.0)
    return Scale(text, found.axis, found.size, scale, lambda: c_sign * found.read())


def _sum(node: Node, view: View, signs: tuple[int, ...]) -> Lifted | Refusal | None:
    shapes = [view.shape(name) for name in node.inputs]
    for name, shape in zip(node.inputs, shapes, strict=True):
        if shape is None:
            return unknown_shape(name)
    if len({len(shape or ()) for shape in shapes}) != 1:
        return Refusal(Code.BROADCAST, "its inputs differ in rank, so one is broadcast")
    return Lifted.one(node, Sum(signs), *node.inputs)


def lift_sum(node: Node, view: View) -> Lifted | Refusal | None:
    if any(view.known(name) for name in node.inputs):
        return Refusal(Code.UNSUPPORTED, "a Sum with a constant among its inputs; use Add")
    return _sum(node, view, (1,) * len(node.inputs))


def lift_mul(node: Node, view: View) -> Lifted | Refusal | None:
    found = _constant_side(node, view)
    if found is None or isinstance(found, Refusal):
        return found
    if np.all(found.read() == 1):
        return Lifted.one(node, Alias(found.channels), found.operand, fixed=found.sized)
    return Lifted.one(node, Scale("Mul", found.axis, found.size, found.read, None), found.operand)


def lift_div(node: Node, view: View) -> Lifted | Refusal | None:
    found = _constant_side(node, view)
    if found is None or isinstance(found, Refusal):
        return found
    if found.first:
        return None  # c / x is not linear
    if np.all(found.read() == 1):
        return Lifted.one(node, Alias(found.channels), found.operand, fixed=found.sized)

    def inverse() -> Array:
        with np.errstate(divide="ignore"):
            result: Array = 1.0 / found.read()
        return result

    return Lifted.one(node, Scale("Div", found.axis, found.size, inverse, None), found.operand)


def lift_neg(node: Node, view: View) -> Lifted | Refusal | None:
    return Lifted.one(node, Scale("Neg", None, 1, _number(-1.0), None), node.inputs[0])


def _number(value: float) -> Callable[[], Array]:
    return lambda: np.array(value)


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant operand: the other one, whether it comes first, and its axis (None: scalar)."""

    operand: str
    first: bool
    axis: int | None
    size: int
    read: Callable[[], Array]

    @property
    def channels(self) -> int | None:
        """The axis it varies over, where that may be the channels'."""
        return None if self.sized else self.axis

    @property
    def sized(self) -> bool:
        """Whether it holds at one size of the operand only: it varies over another axis than 1."""
        return self.axis is not None and self.axis != 1


def _constant_side(node: Node, view: View) -> Constant | Refusal | None:
    """The constant operand of a binary node, ``None`` where both are tensors of data."""
    known = [view.constants.known(name) for name in node.inputs[:2]]
    if not any(known):
        return None
    first = known[0]
    constant, operand = node.inputs[0 if first else 1], node.inputs[1 if first else 0]
    shape, data = view.constants.shape(constant), view.shape(operand)
    if data is None:
        return unknown_shape(operand)
    if shape is None or not view.known(constant):
        return Refusal(Code.DYNAMIC_WEIGHTS, f"its constant {constant!r} cannot be computed")
    if len(shape) > len(data):
        return Refusal(Code.BROADCAST, "its constant has more axes than its input")
    wide = [axis for axis, size in enumerate(shape) if size != 1]
    if len(wide) > 1:
        return Refusal(
            Code.BROADCAST, f"its constant of shape {list(shape)} varies over several axes"
        )
    axis = wide[0] + len(data) - len(shape) if wide else None
    size = shape[wide[0]] if wide else 1
    if size is None or (axis is not None and data[axis] != size):
        return Refusal(Code.BROADCAST, "its constant broadcasts its input to a larger shape")
    return Constant(operand, first, axis, size, lambda: view.float64(constant).reshape(-1))
