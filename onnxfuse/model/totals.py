"""Counting a model: nodes, convolutions, parameters, multiply-accumulates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod

from onnxfuse.model import walk
from onnxfuse.model.constants import Constants
from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.shapes import Shapes
from onnxfuse.model.tensors import FLOATS
from onnxfuse.records import Counts

Index = tuple[Graph, Shapes, Constants]

MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def count(index: Index, size: int, bodies: Iterable[tuple[Index, int]] = ()) -> Counts:
    """The totals of a model whose file has ``size`` bytes, subgraphs and functions included.

    ``bodies`` are the indexed ones below the main graph, each with how many calls lead to it. How
    often a body runs is not known: the multiply-accumulates of each count once, both branches of an
    If and one run of a Loop or Scan, and those of a function once for each call of it. An operator
    of unknown shape counts as uncounted.
    """
    graph, *_ = index
    inner = list(walk.inner_nodes(graph.model))
    kinds = Counter(node.op_type for node in graph.nodes if node.standard)
    kinds.update(node.op_type for node in inner if node.domain in ("", "ai.onnx"))
    work = [
        (macs(node, shapes, constants), times)
        for (held, shapes, constants), times in [(index, 1), *bodies]
        for node in held.nodes
        if node.standard and node.op_type in MULTIPLYING
    ]
    return Counts(
        nodes=len(graph.nodes) + len(inner),
        conv=kinds["Conv"],
        batch_normalization=kinds["BatchNormalization"],
        parameters=sum(prod(t.dims) for t in walk.stored(graph.model) if t.data_type in FLOATS),
        macs=sum(each * times for each, times in work),
        bytes=size,
        uncounted=sum(kinds[kind] for kind in MULTIPLYING) - sum(bool(each) for each, _ in work),
    )


def macs(node: Node, shapes: Shapes, constants: Constants) -> int:
    """Multiply-accumulates of one node at the nominal sizes; zero where they are unknown."""
    if node.op_type not in MULTIPLYING:
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
