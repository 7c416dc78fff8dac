"""Counting a model: nodes, convolutions, parameters, multiply-accumulates."""

from __future__ import annotations

from math import prod

from onnx import TensorProto

from onnxfuse.model.constants import Constants
from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.shapes import Shapes
from onnxfuse.model.tensors import FLOATS
from onnxfuse.records import Counts


def count(graph: Graph, shapes: Shapes, constants: Constants, size: int) -> Counts:
    """The totals of a model whose file has ``size`` bytes."""
    kinds = [node.op_type for node in graph.nodes if node.standard]
    stored = [*graph.model.graph.initializer]
    stored += [
        value
        for node in graph.nodes
        if node.op_type == "Constant"
        for value in node.attributes.values()
        if isinstance(value, TensorProto)
    ]
    return Counts(
        nodes=len(graph.nodes),
        conv=kinds.count("Conv"),
        batch_normalization=kinds.count("BatchNormalization"),
        parameters=sum(prod(t.dims) for t in stored if t.data_type in FLOATS),
        macs=sum(macs(node, shapes, constants) for node in graph.nodes if node.standard),
        bytes=size,
    )


def macs(node: Node, shapes: Shapes, constants: Constants) -> int:
    """Multiply-accumulates of one node at the nominal sizes; zero where they are unknown."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    out, read = shapes.nominal.get(node.outputs[0]), shapes.nominal.get(node.inputs[0])
    weight = constants.shape(node.inputs[1]) if constants.known(node.inputs[1]) else None
    weight = weight or shapes.nominal.get(node.inputs[1])
    if out is None or read is None or weight is None or None in (*out, *read, *weight):
        return 0
    sizes = [int(size or 0) for size in weight]
    positions = prod(size or 0 for size in (read if node.op_type == "ConvTranspose" else out))
    if node.op_type in ("Conv", "ConvTranspose"):
        return positions * prod(sizes[1:])
    transposed = node.op_type == "Gemm" and node.attributes.get("transB", 0)
    depth = sizes[-1] if transposed or len(sizes) < 2 else sizes[-2]
    return positions * depth
