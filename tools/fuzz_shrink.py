"""Making a failing model smaller, and writing it down for a reader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

SHRINKING_S = 10
"""Seconds spent on making one failing model smaller."""


def shrink(
    model: ModelProto, nominal: Mapping[str, int], fails: Callable[[ModelProto], bool]
) -> ModelProto:
    """A smaller model that still fails: outputs dropped, nodes bypassed or cut off."""
    shrunk, stop = True, time.monotonic() + SHRINKING_S
    while shrunk:
        shrunk = False
        for smaller in _smaller(model, nominal):
            if time.monotonic() > stop:
                return model
            pruned = _pruned(smaller)
            if pruned is not None and fails(pruned):
                model, shrunk = pruned, True
                break
    return model


def _copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _smaller(model: ModelProto, nominal: Mapping[str, int]) -> Iterator[ModelProto]:
    for index in range(len(model.graph.output)):
        if len(model.graph.output) > 1:
            copy = _copied(model)
            del copy.graph.output[index]
            yield copy
    copy = _copied(model)
    dims = [d for v in copy.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param]
    for dim in dims:
        dim.dim_value = nominal[dim.dim_param]
    if dims:
        yield copy
    shapes = {
        v.name: v for v in shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    }
    for index in reversed(range(len(model.graph.node))):
        node = model.graph.node[index]
        if node.output[0] in shapes and node.input:
            yield from _cut(model, index, shapes[node.output[0]])
        for source in dict.fromkeys(node.input):
            yield from _bypassed(model, index, source)
        if node.op_type == "Conv" and len(node.input) > 2:
            copy = _copied(model)
            del copy.graph.node[index].input[2]
            yield copy


def _cut(model: ModelProto, index: int, value: onnx.ValueInfoProto) -> Iterator[ModelProto]:
    """The model with what a node computes as an input."""
    if all(dim.dim_value for dim in value.type.tensor_type.shape.dim):
        copy = _copied(model)
        del copy.graph.node[index]
        copy.graph.input.append(value)
        yield copy


def _bypassed(model: ModelProto, index: int, source: str) -> Iterator[ModelProto]:
    """The model with one of a node's inputs in place of its output."""
    copy = _copied(model)
    gone = copy.graph.node[index].output[0]
    del copy.graph.node[index]
    for reader in copy.graph.node:
        reader.input[:] = [source if name == gone else name for name in reader.input]
    computed = any(source in node.output for node in copy.graph.node)
    for value in copy.graph.output:
        if value.name == gone and not computed:
            return
        value.name = source if value.name == gone else value.name
    yield copy


def _pruned(model: ModelProto) -> ModelProto | None:
    """The model without what no output needs."""
    if len({v.name for v in model.graph.output}) < len(model.graph.output):
        return None
    needed = {v.name for v in model.graph.output}
    nodes: list[NodeProto] = []
    for node in reversed(model.graph.node):
        inner = {n for a in node.attribute for m in a.g.node for n in m.input}
        if needed & set(node.output):
            needed |= {*node.input, *inner}
            nodes.append(node)
    kept = [t for t in model.graph.initializer if t.name in needed]
    inputs = [v for v in model.graph.input if v.name in needed]
    graph = model.graph
    for entries, wanted in (
        (graph.node, nodes[::-1]),
        (graph.initializer, kept),
        (graph.input, inputs),
    ):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in wanted]
        del entries[:]
        entries.extend(copies)
    return model


def listing(model: ModelProto) -> str:
    """A model as a list of operators."""
    stored = {t.name: t for t in model.graph.initializer}
    lines = [f"opset {model.opset_import[0].version}"]
    for value in model.graph.input:
        dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        lines.append(f"input {value.name} {value.type.tensor_type.elem_type} {dims}")

    def operand(name: str) -> str:
        if name not in stored:
            return name
        array = numpy_helper.to_array(stored[name])
        small = f"={array.tolist()}" if array.size <= 4 else ""
        return f"{name}{list(array.shape)}{small}"

    for node in model.graph.node:
        attributes = " ".join(
            f"{a.name}={helper.get_attribute_value(a)}"
            for a in node.attribute
            if a.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.TENSOR)
        )
        inputs = ", ".join(map(operand, node.input))
        lines.append(f"{', '.join(node.output)} = {node.op_type}({inputs}) {attributes}")
    return "\n    ".join([*lines, "outputs " + ", ".join(v.name for v in model.graph.output)])
