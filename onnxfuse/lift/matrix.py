"""Gemm and MatMul by a constant matrix: maps of one tap over the last axis.

MatMul  y[…, o] = Σ_k x[…, k] · W[k, o]
Gemm    y[n, o] = α · Σ_k x[n, k] · B[k, o] + β · C[o]
"""

from __future__ import annotations

import numpy as np

from onnxfuse.algebra import expression as ex
from onnxfuse.algebra.expression import Vector
from onnxfuse.algebra.laws import Linear
from onnxfuse.algebra.weights import Array
from onnxfuse.lift.common import Lifted, View, unknown_shape
from onnxfuse.model.graph import Node
from onnxfuse.refusal import Code, Refusal


def lift_matmul(node: Node, view: View) -> Lifted | Refusal | None:
    data, matrix = node.inputs[:2]
    if view.constants.known(data):
        return Refusal(Code.UNSUPPORTED, "its constant stands on the left")
    if not view.constants.known(matrix):
        return view.dynamic(matrix, "its matrix") if view.constants.overridable(matrix) else None
    shape, read = view.constants.shape(matrix), view.shape(data)
    if read is None:
        return unknown_shape(data)
    if shape is None or None in shape or not view.known(matrix):
        return view.dynamic(matrix, "its matrix")
    sizes = [int(size or 0) for size in shape]
    if len(read) < 2 or len(sizes) < 2 or len(sizes) > len(read) or any(n != 1 for n in sizes[:-2]):
        return Refusal(Code.UNSUPPORTED, "its matrix or its input is no plain matrix")
    fan_in, fan_out = sizes[-2:]
    if min(fan_in, fan_out) < 1 or read[-1] != fan_in:
        return Refusal(Code.UNKNOWN_SHAPE, "the last axis of its input is not known for certain")

    def load() -> Array:
        stored: Array = view.float64(matrix).reshape(fan_in, fan_out)
        return stored.T

    def part(start: int, stop: int) -> Array:
        found: Array = view.part(matrix, start, stop, len(sizes) - 1).reshape(fan_in, -1)
        return found.T

    law = Linear("MatMul", len(read) - 1, (fan_out, fan_in), load, part=part)
    return Lifted.one(node, law, data)


def is_bias(node: Node, view: View) -> bool:
    """Whether a node adds a constant to a MatMul that nothing else reads: it is its bias."""
    known = [name for name in node.inputs if view.constants.known(name)]
    if node.op_type != "Add" or len(known) != 1:
        return False
    (operand,) = (name for name in node.inputs if name not in known)
    graph, product = view.graph, view.graph.producer.get(operand)
    alone = len(graph.consumers.get(operand, [])) == 1 and not graph.read_outside(operand)
    return alone and product is not None and product.standard and product.op_type == "MatMul"


def lift_gemm(node: Node, view: View) -> Lifted | Refusal | None:
    data, matrix, addend = node.inputs[0], node.inputs[1], node.input(2)
    if view.constants.known(data):
        return Refusal(Code.UNSUPPORTED, "its constant stands on the left")
    for name in filter(None, (matrix, addend)):
        if not view.known(name):
            return view.dynamic(name, "its matrix" if name == matrix else "its bias")
    if node.attributes.get("transA", 0):
        return Refusal(Code.UNSUPPORTED, "it transposes its input")
    shape, read = view.constants.shape(matrix), view.shape(data)
    if read is None:
        return unknown_shape(data)
    if shape is None or len(shape) != 2 or len(read) != 2:
        return Refusal(Code.MALFORMED, "its matrix or its input is no matrix")
    rows, columns = (int(size or 0) for size in shape)
    turned = bool(node.attributes.get("transB", 0))
    fan_out, fan_in = (rows, columns) if turned else (columns, rows)
    if min(fan_in, fan_out) < 1 or read[1] != fan_in:
        return Refusal(Code.UNKNOWN_SHAPE, "the last axis of its input is not known for certain")
    alpha = float(node.attributes.get("alpha", 1.0))

    def load() -> Array:
        stored = view.float64(matrix)
        return np.asarray(alpha * (stored if turned else stored.T))

    def part(start: int, stop: int) -> Array:
        held = view.part(matrix, start, stop, 0 if turned else 1)
        held = held if turned else held.T
        return np.asarray(held if alpha == 1 else alpha * held)

    bias = _bias(node, view, addend, fan_out) if addend else None
    if isinstance(bias, Refusal):
        return bias
    return Lifted.one(node, Linear("Gemm", 1, (fan_out, fan_in), load, bias, part), data)


def _bias(node: Node, view: View, name: str, channels: int) -> Vector | Refusal:
    """β·C, if it is the same for every row of the batch."""
    shape = view.constants.shape(name)
    wide = () if shape is None else shape
    if shape is None or len(wide) > 2 or any(n != 1 for n in wide[:-1]):
        return Refusal(Code.BROADCAST, "its addend varies over the batch")
    if wide and wide[-1] not in (1, channels):
        return Refusal(Code.BROADCAST, "its addend does not fit its matrix")
    beta = float(node.attributes.get("beta", 1.0))
    return ex.vector("b", channels, lambda: beta * view.float64(name))
