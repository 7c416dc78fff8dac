"""The graphs below the main one: bodies of If, Loop and Scan, and of functions of the model.

Where they are, what they read, and what nobody reads any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto

from onnxfuse.model import walk
from onnxfuse.model.graph import all_names
from onnxfuse.model.splice import drop_entries

Step = tuple[str, str]
"""A tensor that the holding node writes, and the attribute with the body."""
Callee = tuple[str, str, str]
"""Domain, name and overload of a function."""


@dataclass(eq=False, slots=True)
class Scope:
    """A body in its place: a graph, or a function of the model.

    ``holder`` is the node whose body it is. ``above`` are the scopes around it, the nearest last;
    that of the main graph has no path.
    """

    proto: Any
    where: str
    function: int | None = None
    path: tuple[Step, ...] = ()
    above: tuple[Scope, ...] = ()
    holder: onnx.NodeProto | None = None
    attribute: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        return self.function, self.path

    @property
    def in_function(self) -> bool:
        return self.function is not None

    def inner(self) -> list[Scope]:
        """The bodies of If, Loop and Scan that its nodes hold."""
        found = []
        for node in self.proto.node:
            if node.domain not in ("", "ai.onnx") or node.op_type not in ("If", "Loop", "Scan"):
                continue
            out = next((name for name in node.output if name), "")
            for attribute in node.attribute if out else ():
                if attribute.type != AttributeProto.GRAPH:
                    continue
                text = f"{attribute.name} of {node.op_type} {(node.name or out)!r}"
                where = f"{text}, {self.where}" if self.where else text
                step = (out, attribute.name)
                found.append(
                    Scope(
                        attribute.g,
                        where,
                        self.function,
                        (*self.path, step),
                        (*self.above, self),
                        node,
                        attribute.name,
                    )
                )
        return found


def shadowed(scope: Scope) -> str:
    """A name that a body stores a constant under and that something around it bears, or "".

    Runtimes read one or the other.
    """
    own = {tensor.name for tensor in getattr(scope.proto, "initializer", ())}
    for outer in scope.above if own else ():
        proto = outer.proto
        named = (getattr(value, "name", value) for value in (*proto.input, *proto.output))
        stored = (tensor.name for tensor in getattr(proto, "initializer", ()))
        made = (name for node in proto.node for name in node.output)
        for name in (*named, *stored, *made):
            if name in own:
                return str(name)
    return ""


def at(scope: Scope, path: Sequence[Step]) -> Any:
    """The body at the end of a path below ``scope``; ``None`` where there is none."""
    proto = scope.proto
    for out, name in path:
        node = next((n for n in proto.node if out in n.output), None)
        if node is None:
            return None
        proto = next((a.g for a in node.attribute if a.name == name), None)
        if proto is None:
            return None
    return proto


def functions(model: onnx.ModelProto) -> list[Scope]:
    """The model's functions but those that replace an operator of the standard."""
    return [
        Scope(function, f"function {function.name!r}", index)
        for index, function in enumerate(model.functions)
        if function.domain not in ("", "ai.onnx")
    ]


def callee(proto: onnx.NodeProto | onnx.FunctionProto) -> Callee:
    """What a call names, or a function is named by."""
    kind = proto.op_type if isinstance(proto, onnx.NodeProto) else proto.name
    return proto.domain, kind, proto.overload


def reads(proto: Any) -> Counter[str]:
    """How often each tensor is read by nodes or given out, in a graph and all within it.

    What a function gives out is its own matter.
    """
    found: Counter[str] = Counter()
    stack = [proto]
    while stack:
        graph = stack.pop()
        if isinstance(graph, onnx.FunctionProto):
            found.update(graph.output)
        else:
            found.update(value.name for value in graph.output)
        for node in graph.node:
            found.update(dict.fromkeys((n for n in node.input if n), 1))
            stack.extend(walk.subgraphs(node))
    return found


def captures(proto: Any) -> list[str]:
    """The names that a body reads and does not provide, in the order they are met.

    Names that only a body within it provides may be among them.
    """
    own = {out for node in proto.node for out in node.output}
    if isinstance(proto, onnx.FunctionProto):
        own |= set(proto.input)
    else:
        own |= {value.name for value in (*proto.input, *proto.initializer)}
        own |= {sparse.values.name for sparse in proto.sparse_initializer}
    return [name for name in reads(proto) if name not in own]


def sweep(owners: Sequence[Any], lost: set[str], readers: Counter[str]) -> set[str]:
    """Drop what nothing reads any more of the tensors that a body no longer captures.

    ``owners`` are the bodies around it, ``readers`` counts all readers and is kept up to date.
    """
    gone: set[str] = set()
    queue = sorted(lost)
    while queue:
        name = queue.pop()
        if readers[name] or name in gone:
            continue
        for proto in owners:
            if name in _inputs(proto):
                continue
            node = next((n for n in proto.node if name in n.output), None)
            if node is not None and any(readers[out] for out in node.output if out):
                continue
            if node is not None and any(True for _ in walk.subgraphs(node)):
                continue
            if node is not None:
                gone.update(node.output)
                for read in dict.fromkeys(n for n in node.input if n):
                    readers[read] -= 1
                    queue.append(read)
                _drop_node(proto, name)
            stored = getattr(proto, "initializer", ())
            if any(tensor.name == name for tensor in stored):
                gone.add(name)
                _drop_tensor(stored, name)
    for proto in owners:
        drop_entries(proto.value_info, lambda value: value.name in gone)
        if not isinstance(proto, onnx.FunctionProto):
            drop_entries(proto.quantization_annotation, lambda e: e.tensor_name in gone)
    return gone


def _drop_node(proto: Any, output: str) -> None:
    drop_entries(proto.node, lambda node: output in node.output)


def _drop_tensor(stored: Any, name: str) -> None:
    drop_entries(stored, lambda tensor: tensor.name == name)


def _inputs(proto: Any) -> set[str]:
    if isinstance(proto, onnx.FunctionProto):
        return set(proto.input)
    return {value.name for value in proto.input}


def calls(model: onnx.ModelProto) -> Iterator[Callee]:
    """The functions that nodes of the model name, each as often as it stands there."""
    yield from called(model.graph)
    for function in model.functions:
        yield from called(function)


def callers_first(found: Sequence[Scope]) -> list[Scope]:
    """Functions in an order in which each follows those that call it; none that call themselves."""
    named = {callee(scope.proto): scope for scope in found}
    waiting: Counter[Callee] = Counter()
    callees = {key: set(called(scope.proto)) & named.keys() for key, scope in named.items()}
    for keys in callees.values():
        waiting.update(keys)
    ready = [key for key in named if not waiting[key]]
    order = []
    for key in ready:
        order.append(named[key])
        for other in sorted(callees[key]):
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    return order


def call_counts(model: onnx.ModelProto) -> Counter[Callee]:
    """How many calls lead to each function from the main graph, those of other functions counted.

    Each call counts as often as calls lead to the function it stands in.
    """
    found = Counter(called(model.graph))
    for scope in callers_first(functions(model)):
        for key, times in Counter(called(scope.proto)).items():
            found[key] += times * found[callee(scope.proto)]
    return found


def called(proto: Any) -> Iterator[Callee]:
    """The functions that the nodes of a body name, those within it included."""
    stack = [proto]
    while stack:
        for node in stack.pop().node:
            if node.domain not in ("", "ai.onnx"):
                yield callee(node)
            stack.extend(walk.subgraphs(node))


def names(function: onnx.FunctionProto) -> set[str]:
    """Every tensor and node name in use in a function."""
    found = {*function.input, *function.output, *(value.name for value in function.value_info)}
    held = onnx.GraphProto()
    held.node.extend(function.node)
    return found.union(all_names(held))
