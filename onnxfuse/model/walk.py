"""Everything a file holds: graphs, nodes and tensors of every scope, nested ones included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import AttributeProto, TensorProto

_PLAIN = {
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING,
    AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS,
}  # fmt: skip
"""Attributes that hold neither a graph nor a tensor, which most are."""


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds in its attributes."""
    for attribute in node.attribute:
        if attribute.type not in _PLAIN:
            yield from _graphs(attribute)


def _below(nodes: Iterable[onnx.NodeProto]) -> Iterator[AttributeProto]:
    """The attributes of nodes that may hold something."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type not in _PLAIN:
                yield attribute


def _graphs(attribute: AttributeProto) -> Sequence[onnx.GraphProto]:
    if attribute.type == AttributeProto.GRAPH:
        return [attribute.g]
    return attribute.graphs if attribute.type == AttributeProto.GRAPHS else ()


def nested(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graphs below the main one: bodies of If, Loop and Scan, those of functions included."""
    outer = [model.graph.node, *(function.node for function in model.functions)]
    stack = [inner for nodes in outer for a in _below(nodes) for inner in _graphs(a)]
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(inner for a in _below(graph.node) for inner in _graphs(a))


def inner_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes outside the main graph, each as often as it stands in the file."""
    for function in model.functions:
        yield from function.node
    for graph in nested(model):
        yield from graph.node


def stored(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor a file holds: initializers, sparse values, and attributes of nodes."""
    scopes: list[onnx.GraphProto | onnx.FunctionProto] = [*model.functions, model.graph]
    while scopes:
        scope = scopes.pop()
        if isinstance(scope, onnx.GraphProto):
            yield from scope.initializer
            for sparse in scope.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for attribute in _below(scope.node):
            yield from _held(attribute)
            scopes.extend(_graphs(attribute))


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
