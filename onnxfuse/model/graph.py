"""A read-only index over a ModelProto's main graph, in neutral terms.

Nodes are seen in a topological order whatever order the file has; the proto is never changed
here. Tensors that another scope reads (subgraph captures) count as read from outside. A body may
stand as a main graph: then `Outside` says what is around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from onnxfuse.errors import InputError
from onnxfuse.model import walk

PROVENANCE = "onnxfuse"
"""The metadata key that says what a fused node was."""
OPAQUE = "onnxfuse.opaque"
"""How the domains begin that stand in for nodes of which a function's caller decides."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node; ``index`` is its position in the file, ``fused`` says that fusing made it."""

    index: int
    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    fused: bool = False

    @property
    def label(self) -> str:
        """The name people can find: the node's own, else its first output's."""
        return self.name or next((out for out in self.outputs if out), f"#{self.index}")

    @property
    def standard(self) -> bool:
        return self.domain in ("", "ai.onnx")

    @property
    def opaque(self) -> bool:
        """Whether the caller of a function decides what the node does."""
        return self.domain.startswith(OPAQUE)

    def input(self, position: int) -> str:
        """The name of an input, empty where it is left out."""
        return self.inputs[position] if position < len(self.inputs) else ""


@dataclass(frozen=True, slots=True)
class Outside:
    """What is around a graph that is part of a larger one: tensors read there, names in use."""

    read: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


class Graph:
    """Producers, consumers, outer readers and a topological order of one model."""

    def __init__(self, model: onnx.ModelProto, outside: Outside | None = None) -> None:
        self.model = model
        self.outside = outside
        self.skeleton: Any = None  # made once, by `onnxfuse.model.shapes`
        proto = model.graph
        self._used = frozenset(all_names(proto))
        _check_names(proto, self._used)
        self.nodes = [_node(index, node) for index, node in enumerate(proto.node)]
        self.inputs = [value.name for value in proto.input]
        self.outputs = [value.name for value in proto.output]
        self.initializers = {tensor.name: tensor for tensor in proto.initializer}
        self.sparse = {tensor.values.name for tensor in proto.sparse_initializer}
        self.producer: dict[str, Node] = {}
        self.consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.outputs:
                if name and (name in self.producer or name in self.inputs_set):
                    raise InputError(f"the model writes tensor {name!r} twice (at {node.label!r})")
                if name:
                    self.producer[name] = node
            for name in dict.fromkeys(node.inputs):
                if name:
                    self.consumers.setdefault(name, []).append(node)
        self._beyond = set(outside.read) if outside is not None else set()
        for info in model.training_info:
            for inner in (info.initialization, info.algorithm):
                self._beyond.update(all_names(inner))
            for binding in (*info.initialization_binding, *info.update_binding):
                self._beyond.update((binding.key, binding.value))
        for note in proto.quantization_annotation:
            self._beyond.update(entry.value for entry in note.quant_parameter_tensor_names)
        self.captured = self._beyond.union(_captured(proto))
        self.order = self._sorted()

    @cached_property
    def inputs_set(self) -> frozenset[str]:
        return frozenset(self.inputs)

    @cached_property
    def outputs_set(self) -> frozenset[str]:
        return frozenset(self.outputs)

    @cached_property
    def opset(self) -> int:
        """The version of the default operator set."""
        imports = self.model.opset_import
        found = {int(entry.version) for entry in imports if entry.domain in ("", "ai.onnx")}
        if len(found) > 1:
            one, other, *_ = sorted(found)
            raise InputError(f"the model imports both version {one} and {other} of its operators")
        return found.pop() if found else 0

    def _sorted(self) -> list[Node]:
        known = self.inputs_set | self.initializers.keys() | self.sparse
        waiting: dict[int, int] = {}
        for node in self.nodes:
            count = 0
            for name in dict.fromkeys(node.inputs):
                if not name or name in known:
                    continue
                if name not in self.producer:
                    raise InputError(
                        f"node {node.label!r} reads tensor {name!r}, which nothing provides"
                    )
                count += 1
            waiting[node.index] = count
        return self._kahn(waiting)

    def _kahn(self, waiting: dict[int, int]) -> list[Node]:
        """The file's own order where that is topological, else the nearest one by readiness."""
        seen: set[str] = set()
        provided = self.inputs_set | self.initializers.keys() | self.sparse
        for node in self.nodes:
            if any(n and n not in seen and n not in provided for n in node.inputs):
                break
            seen.update(node.outputs)
        else:
            return list(self.nodes)
        ready = [node for node in self.nodes if waiting[node.index] == 0]
        order: list[Node] = []
        for node in ready:
            order.append(node)
            for name in node.outputs:
                for reader in self.consumers.get(name, []):
                    if name in provided:
                        continue
                    waiting[reader.index] -= 1
                    if waiting[reader.index] == 0:
                        ready.append(reader)
        if len(order) != len(self.nodes):
            stuck = next(node for node in self.nodes if waiting[node.index] > 0)
            raise InputError(f"the graph has a cycle through node {stuck.label!r}")
        return order

    def read_outside(self, name: str) -> bool:
        """Whether a tensor is a graph output or read from another scope."""
        return name in self.outputs_set or name in self.captured

    def read_beyond(self, name: str) -> bool:
        """Whether a tensor is read from outside this graph and all that is nested in it."""
        return name in self._beyond

    def names(self) -> set[str]:
        """Every tensor and node name in use in any scope."""
        used = set(self._used)
        used.update(self.outside.names if self.outside is not None else ())
        used.update(value.name for value in self.model.graph.value_info)
        return used


def _check_names(graph: onnx.GraphProto, used: Iterable[str]) -> None:
    """Refuse names that are not text; protobuf hands those out as bytes."""
    found = [name for name in used if not isinstance(name, str)]
    found += [node.op_type for node in graph.node if not isinstance(node.op_type, str)]
    found += [node.domain for node in graph.node if not isinstance(node.domain, str)]
    if found:
        raise InputError(f"the model holds a name that is not UTF-8: {found[0]!r}")


def _node(index: int, proto: onnx.NodeProto) -> Node:
    return Node(
        index,
        proto.name,
        proto.op_type,
        proto.domain,
        tuple(proto.input),
        tuple(proto.output),
        {attribute.name: _value(attribute) for attribute in proto.attribute},
        any(entry.key == PROVENANCE for entry in proto.metadata_props),
    )


def _value(attribute: AttributeProto) -> Any:
    """An attribute as plain Python; tensors stay protos and are read when they are needed."""
    kind = attribute.type
    if kind == AttributeProto.INT:
        return int(attribute.i)
    if kind == AttributeProto.FLOAT:
        return float(np.float32(attribute.f))
    if kind == AttributeProto.STRING:
        return attribute.s.decode("utf-8", "replace")
    if kind == AttributeProto.INTS:
        return list(attribute.ints)
    if kind == AttributeProto.FLOATS:
        return list(attribute.floats)
    if kind == AttributeProto.STRINGS:
        return [text.decode("utf-8", "replace") for text in attribute.strings]
    if kind == AttributeProto.TENSOR:
        return attribute.t
    return attribute


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that nodes of nested graphs read or give out (a superset of the captures)."""
    stack = [sub for node in graph.node for sub in walk.subgraphs(node)]
    while stack:
        inner = stack.pop()
        yield from (value.name for value in inner.output)
        for node in inner.node:
            yield from node.input
            stack.extend(walk.subgraphs(node))


def all_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The names of all tensors and nodes of a graph and of those nested in it."""
    stack = [graph]
    while stack:
        inner = stack.pop()
        for value in (*inner.input, *inner.output, *inner.initializer):
            yield value.name
        yield from (sparse.values.name for sparse in inner.sparse_initializer)
        for node in inner.node:
            yield node.name
            yield from node.input
            yield from node.output
            stack.extend(walk.subgraphs(node))
