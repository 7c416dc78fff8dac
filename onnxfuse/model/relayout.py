"""Edits of layouts on the ModelProto; what they do not name keeps its place and every field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from onnxfuse.emit import NewNode
from onnxfuse.model import tensors
from onnxfuse.model.graph import Graph
from onnxfuse.model.splice import drop_entries


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
) -> list[TensorProto]:
    """Give a node other attributes and other constant operands, of the types it had.

    The new constants are to be stored (see `store`).
    """
    made = []
    node = model.graph.node[index]
    for name, value in attributes.items():
        held = next((one for one in node.attribute if one.name == name), None)
        new = helper.make_attribute(name, value, held.doc_string if held is not None else None)
        (node.attribute.add() if held is None else held).CopyFrom(new)
    for position, array in constants.items():
        while len(node.input) <= position:
            node.input.append("")
        name = fresh(f"{node.input[position] or node.name}_transposed")
        node.input[position] = name
        kind = kinds[position] if position < len(kinds) and kinds[position] else TensorProto.INT64
        made.append(tensors.make(name, array, kind))
    return made


def store(model: onnx.ModelProto, made: Sequence[TensorProto]) -> None:
    """Keep new constants in a model whose nodes are in their places."""
    if model.ir_version >= tensors.FREE_INITIALIZERS:
        model.graph.initializer.extend(made)
        return
    nodes = [tensors.constant_node(tensor) for tensor in made] + list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


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
    """Drop what lost its last reader, and what is said of tensors that are gone."""
    readers = Counter(name for node in model.graph.node for name in set(node.input))
    lost = {
        name
        for name in graph.consumers
        if not readers[name] and not graph.read_outside(name) and name not in graph.inputs_set
    }
    gone = _dead(model, graph, readers, lost)
    drop_entries(model.graph.node, lambda node: bool(gone.intersection(node.output)))
    made = {name for node in model.graph.node for name in node.output}
    gone = lost | (graph.producer.keys() - made)
    drop_entries(model.graph.initializer, lambda tensor: tensor.name in lost)
    drop_entries(model.graph.value_info, lambda value: value.name in gone)
    drop_entries(model.graph.quantization_annotation, lambda entry: entry.tensor_name in gone)


def _dead(model: onnx.ModelProto, graph: Graph, readers: Counter[str], lost: set[str]) -> set[str]:
    """The tensors of nodes that only made what is ``lost``; ``lost`` grows by what those read."""
    made = {name for node in model.graph.node for name in node.output}
    queue = [graph.producer[name] for name in lost if name in graph.producer and name in made]
    gone: set[str] = set()
    while queue:
        node = queue.pop()
        outputs = [out for out in node.outputs if out]
        if any(readers[out] or graph.read_outside(out) for out in outputs):
            continue
        if gone.intersection(outputs):
            continue
        gone.update(outputs)
        for name in set(node.inputs) - {""}:
            readers[name] -= 1
            if readers[name] or name in graph.inputs_set or graph.read_outside(name):
                continue
            if name in graph.producer:
                queue.append(graph.producer[name])
            else:
                lost.add(name)
    return gone
