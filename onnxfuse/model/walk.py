"""Everything a file holds: graphs, nodes and tensors of every scope, nested ones included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, TensorProto


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds in its attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def nested(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graphs below the main one: bodies of If, Loop and Scan, those of functions included."""
    outer = [model.graph.node, *(function.node for function in model.functions)]
    stack = [inner for nodes in outer for node in nodes for inner in subgraphs(node)]
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(inner for node in graph.node for inner in subgraphs(node))


def inner_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes outside the main graph, each as often as it stands in the file."""
    for function in model.functions:
        yield from function.node
    for graph in nested(model):
        yield from graph.node


def stored(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor a file holds: initializers, sparse values, and attributes of nodes."""
    for graph in (model.graph, *nested(model)):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for nodes in (model.graph.node, inner_nodes(model)):
        for node in nodes:
            for attribute in node.attribute:
                yield from _held(attribute)


def held(node: onnx.NodeProto) -> Iterator[TensorProto]:
    """The dense tensors in the attributes of a node and in the graphs below it."""
    nodes = [node]
    while nodes:
        inner = nodes.pop()
        for attribute in inner.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for graph in subgraphs(inner):
            yield from graph.initializer
            nodes.extend(graph.node)


def _held(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
