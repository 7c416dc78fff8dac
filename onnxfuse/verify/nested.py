"""The whole-model run below the main graph: noise in bodies, and both branches of an If.

Noise stands at the regions of a body as it does in the main graph. Bodies see the switch as they
see any tensor around them; a function gets it as one more input. Where a branch holds a region,
two more runs take every such If one way and then the other.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from onnxfuse.model import walk
from onnxfuse.model.graph import Node, all_names
from onnxfuse.model.scopes import Scope, Step, at, callee, captures, names
from onnxfuse.model.tensors import FLOATS
from onnxfuse.verify.noise import noise
from onnxfuse.verify.session import UNITS

BOTH = (("", (False, False)), (", then branches", (True, True)), (", else branches", (True, False)))
"""The runs where branches are steered: what is said of each, whether it is, and which way."""
STEERING = ("onnxfuse/steer", "onnxfuse/branch")

JUMPS = {
    "TopK", "Round", "Floor", "Ceil", "Sign", "Unique", "Hardmax", "Mod", "DynamicQuantizeLinear",
    "QuantizeLinear", "ArgMax", "ArgMin", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Equal", "NonZero", "NonMaxSuppression", "IsInf", "IsNaN",
}  # fmt: skip
"""Operators that may jump where what they read is rounded."""
INTEGERS = {
    TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Body:
    """A body that was fused: its place, its regions as `Subject` has them, and its types.

    ``where`` says in words which body it is.
    """

    function: int | None
    path: tuple[Step, ...]
    regions: Mapping[str, tuple[tuple[str, ...], float, float]]
    types: Mapping[str, int]
    where: str = ""

    def within(self, node: Node, model: onnx.ModelProto) -> bool:
        """Whether a node of the main graph holds the body, or calls the function it is in."""
        if self.function is None:
            return self.path[0][0] in node.outputs
        function = model.functions[self.function]
        return (node.domain, node.op_type) == (function.domain, function.name)


def captured(node: Node) -> list[str]:
    """What the bodies of a node read from around them, and perhaps names of their own."""
    graphs = [
        graph
        for value in node.attributes.values()
        if isinstance(value, onnx.AttributeProto)
        for graph in (value.g, *value.graphs)
    ]
    return [name for graph in graphs for name in captures(graph)]


def jumps(node: Node, model: onnx.ModelProto, floats: Container[str]) -> bool:
    """Whether something within a node may change by a jump where what it reads changes little.

    ``floats`` are the tensors within that are known to be rounded.
    """
    graphs = [
        graph
        for value in node.attributes.values()
        if isinstance(value, onnx.AttributeProto)
        for graph in (value.g, *value.graphs)
    ]
    stack: list[Any] = list(graphs)
    if not node.standard:
        key = (node.domain, node.op_type)
        stack += [f for f in model.functions if (f.domain, f.name) == key]
    seen: set[Any] = set()
    while stack:
        for inner in stack.pop().node:
            jump = inner.op_type in JUMPS or (inner.op_type == "Cast" and _narrows(inner))
            if jump and any(name in floats for name in inner.input):
                return True
            stack.extend(walk.subgraphs(inner))
            if inner.domain not in ("", "ai.onnx") and callee(inner) not in seen:
                seen.add(callee(inner))
                stack += [f for f in model.functions if callee(f) == callee(inner)]
    return False


def fractions(types: Iterable[Mapping[str, int]]) -> frozenset[str]:
    """The tensors that are rounded in any of several graphs."""
    return frozenset(name for kinds in types for name, kind in kinds.items() if kind in FLOATS)


def _narrows(node: onnx.NodeProto) -> bool:
    return any(a.name == "to" and a.i in INTEGERS for a in node.attribute)


def _at(model: onnx.ModelProto, body: Body) -> Any:
    """A body in a model; ``None`` where the model has none there."""
    top = model.graph if body.function is None else model.functions[body.function]
    return at(Scope(top, ""), body.path)


def _opset(model: onnx.ModelProto, body: Body) -> int:
    imports = model if body.function is None else model.functions[body.function]
    return next((e.version for e in imports.opset_import if e.domain in ("", "ai.onnx")), 0)


def shaken(model: onnx.ModelProto, bodies: Sequence[Body], switch: str) -> None:
    """Add noise to the regions of bodies, in place, where a tensor ``switch`` is true."""
    fresh = _maker(set(all_names(model.graph)).union({switch}, *map(names, model.functions)))
    for body in sorted(bodies, key=lambda body: -len(body.path)):  # what holds it is renamed later
        proto = _at(model, body)
        if proto is not None:
            _shake(proto, body, fresh, switch, _opset(model, body))
    _hand_on(model, {body.function for body in bodies if body.function is not None}, switch)


def _maker(used: set[str]) -> Callable[[str], str]:
    def fresh(wanted: str) -> str:
        name, count = f"inner/{wanted}", 1
        while name in used:
            count += 1
            name = f"inner/{wanted}_{count}"
        used.add(name)
        return name

    return fresh


def _shake(proto: Any, body: Body, fresh: Callable[[str], str], switch: str, opset: int) -> None:
    """Noise on what the regions of one body read and write."""
    levels: dict[str, float] = {}
    shifts: dict[str, float] = {}
    for root, (sources, measured, scale) in body.regions.items():
        shifts[root] = measured * scale
        level = max(measured, UNITS * FLOATS.get(body.types[root], 0.0))
        for name in (root, *sources):
            if body.types.get(name) in FLOATS:  # what moves integers moves them exactly
                levels[name] = max(level, levels.get(name, 0.0))
    made = {out for node in proto.node for out in node.output}
    before: list[onnx.NodeProto] = []
    read: dict[str, str] = {}
    for name in sorted(levels.keys() - made):
        read[name] = fresh(f"{name}/disturbed")
        before += noise(fresh, switch, name, read[name], levels[name], body.types[name], 0.0, opset)
    nodes = []
    for node in proto.node:
        node.input[:] = [read.get(name, name) for name in node.input]
        calm = {out: fresh(f"{out}/calm") for out in node.output if out in levels}
        node.output[:] = [calm.get(out, out) for out in node.output]
        nodes.append(node)
        for name, source in calm.items():
            shift = shifts.get(name, 0.0)
            nodes += noise(
                fresh, switch, source, name, levels[name], body.types[name], shift, opset
            )
    nodes = before + nodes
    del proto.node[:]
    proto.node.extend(nodes)


def _hand_on(model: onnx.ModelProto, wanted: set[int], switch: str) -> None:
    """Give functions the switch, and all that call those."""
    keys = {callee(model.functions[index]) for index in wanted}
    queue = list(keys)
    while queue:
        queue.pop()
        for function in model.functions:
            if callee(function) not in keys and any(callee(n) in keys for n in _within(function)):
                keys.add(callee(function))
                queue.append(callee(function))
    if not keys:
        return
    lengths = {callee(f): len(f.input) for f in model.functions if callee(f) in keys}
    for proto in (model.graph, *model.functions):
        for node in _within(proto):
            if callee(node) in keys:
                missing = lengths[callee(node)] - len(node.input)
                node.input.extend([""] * missing + [switch])
    for function in model.functions:
        if callee(function) in keys:
            function.input.append(switch)


def _within(proto: Any) -> Iterator[onnx.NodeProto]:
    stack = [proto]
    while stack:
        for node in stack.pop().node:
            yield node
            stack.extend(walk.subgraphs(node))


def steered(
    model: onnx.ModelProto, bodies: Sequence[Body], steering: Sequence[str] = STEERING
) -> tuple[str, ...]:
    """Let two new inputs decide of each If, in place, that leads to a region of a body.

    Their names; none where there is no such If, or the inputs' names are taken. A function's body
    is not looked into, and nothing is steered beside a Loop: it might never end.
    """
    if any(node.op_type == "Loop" for node in (*model.graph.node, *walk.inner_nodes(model))):
        return ()
    places = {
        (body.path[:depth], body.path[depth])
        for body in bodies
        if body.function is None
        for depth in range(len(body.path))
    }
    used = set(all_names(model.graph))
    if used & set(steering):
        return ()
    fresh = _maker(used | set(steering))
    done: set[tuple[Any, ...]] = set()
    for path, (out, name) in sorted(places, key=lambda place: -len(place[0])):
        proto = at(Scope(model.graph, ""), path)
        holder = None if proto is None else _holder(proto, out, name)
        if holder is None or (*path, out) in done:
            continue
        done.add((*path, out))
        _steer(proto, holder, fresh, *steering)
    for name in steering if done else ():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.BOOL, []))
    return tuple(steering) if done else ()


def _holder(proto: Any, out: str, attribute: str) -> int | None:
    for index, node in enumerate(proto.node):
        holds = any(a.name == attribute for a in node.attribute)
        if node.op_type == "If" and holds and out in node.output:
            return index
    return None


def _steer(proto: Any, index: int, fresh: Callable[[str], str], forced: str, branch: str) -> None:
    nodes = list(proto.node)
    holder = nodes[index]
    away, own, wanted, found = (fresh(f"{holder.output[0]}/{part}") for part in "abcd")
    nodes[index:index] = [
        helper.make_node("Not", [forced], [away]),
        helper.make_node("And", [away, holder.input[0]], [own]),
        helper.make_node("And", [forced, branch], [wanted]),
        helper.make_node("Or", [own, wanted], [found]),
    ]
    holder.input[0] = found
    del proto.node[:]
    proto.node.extend(nodes)
