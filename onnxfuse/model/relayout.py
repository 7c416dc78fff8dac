"""Edits of layouts on the ModelProto; what they do not name keeps its place and every field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from onnxfuse.model import tensors
from onnxfuse.model.graph import Graph
from onnxfuse.realise import NewNode


def rename(
    model: onnx.ModelProto, index: int, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> None:
    """Rename tensors that one node reads and writes."""
    node = model.graph.node[index]
    node.input[:] = [inputs.get(name, name) for name in node.input]
    node.output[:] = [outputs.get(name, name) for name in node.output]


def adjust(
    model: onnx.ModelProto,
    index: int,
    attributes: Mapping[str, Any],
    constants: Mapping[int, Any],
    kinds: Sequence[int],
    fresh: Callable[[str], str],
) -> None:
    """Give a node other attributes and other constant operands, of the types it had."""
    node = model.graph.node[index]
    for name, value in attributes.items():
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
    for position, array in constants.items():
        while len(node.input) <= position:
            node.input.append("")
        name = fresh(f"{node.input[position] or node.name}_transposed")
        node.input[position] = name
        kind = kinds[position] if position < len(kinds) and kinds[position] else TensorProto.INT64
        model.graph.initializer.append(tensors.make(name, array, kind))


def rearrange(
    model: onnx.ModelProto,
    graph: Graph,
    dropped: set[int],
    inserted: Mapping[int, Sequence[NewNode]],
    raised: Mapping[int, Sequence[int]],
    build: Callable[[list[NewNode]], list[onnx.NodeProto]],
) -> None:
    """Drop, insert and raise nodes; then drop what nothing reads any more but something did."""
    gone = dropped.union(*raised.values())
    nodes: list[onnx.NodeProto] = []
    for index in range(-1, len(model.graph.node)):
        if index >= 0 and index not in gone:
            nodes.append(model.graph.node[index])
        nodes += [model.graph.node[other] for other in raised.get(index, [])]
        nodes += build(list(inserted.get(index, [])))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _sweep(model, graph)


def _sweep(model: onnx.ModelProto, graph: Graph) -> None:
    """Constants that lost their last reader, and value_info of tensors that are gone."""
    readers = Counter(name for node in model.graph.node for name in set(node.input))
    lost = {
        name
        for name in graph.consumers
        if not readers[name] and not graph.read_outside(name) and name not in graph.inputs_set
    }
    made = {name for node in model.graph.node for name in node.output}
    queue = [graph.producer[name] for name in lost if name in graph.producer and name in made]
    gone: set[str] = set()
    while queue:
        node = queue.pop()
        if any(readers[out] or graph.read_outside(out) for out in node.outputs if out):
            continue
        if node.outputs[0] in gone:
            continue
        gone.update(node.outputs)
        for name in set(node.inputs):
            readers[name] -= 1
            if not readers[name] and name in graph.producer:
                queue.append(graph.producer[name])
            elif not readers[name] and name not in graph.inputs_set:
                lost.add(name)
    for index in range(len(model.graph.node) - 1, -1, -1):
        if model.graph.node[index].output and model.graph.node[index].output[0] in gone:
            del model.graph.node[index]
    for index in range(len(model.graph.initializer) - 1, -1, -1):
        if model.graph.initializer[index].name in lost:
            del model.graph.initializer[index]
    made = {name for node in model.graph.node for name in node.output}
    for index in range(len(model.graph.value_info) - 1, -1, -1):
        name = model.graph.value_info[index].name
        if name in graph.producer and name not in made:
            del model.graph.value_info[index]
