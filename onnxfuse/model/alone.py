"""A body as a model of its own, and back into its place.

Its nodes, with what it captures added: a captured constant is an initializer there, any other
captured tensor an input, with what is certain of its shape outside. Everything that analyses and
edits a main graph then works on it. What comes back are nodes, initializers and what is said of
tensors; every other field of the body keeps its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import onnx
from onnx import TensorProto, numpy_helper

from onnxfuse.model import tensors, walk
from onnxfuse.model.constants import Constants
from onnxfuse.model.graph import OPAQUE, Graph, Outside
from onnxfuse.model.scopes import Scope, called, captures, reads
from onnxfuse.model.shapes import SMALL, Shape, Shapes

Index = tuple[Graph, Shapes, Constants]

ROUNDS = 32


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is certain of a tensor, and the sizes that it is counted at; ``kind`` 0 is unknown."""

    kind: int = 0
    certain: Shape | None = None
    nominal: Shape | None = None

    @classmethod
    def of(cls, name: str, shapes: Shapes) -> Tensor:
        return cls(shapes.type_of(name), shapes.certain.get(name), shapes.nominal.get(name))

    def joined(self, other: Tensor) -> Tensor:
        """What holds of both."""
        same = self.kind == other.kind
        return Tensor(self.kind if same else 0, _common(self.certain, other.certain), self.nominal)

    def without(self, axis: int) -> Tensor:
        """One slice of it."""
        if self.certain is None or not -len(self.certain) <= axis < len(self.certain):
            return Tensor(self.kind)
        at = axis % len(self.certain)
        found = self.nominal if self.nominal and len(self.nominal) == len(self.certain) else None
        return Tensor(
            self.kind,
            self.certain[:at] + self.certain[at + 1 :],
            found and found[:at] + found[at + 1 :],
        )


def _common(left: Shape | None, right: Shape | None) -> Shape | None:
    if left is None or right is None or len(left) != len(right):
        return None
    return tuple(a if a == b else None for a, b in zip(left, right, strict=True))


@dataclass(slots=True)
class Alone:
    """A body as a model of its own, and what was changed to make it one.

    ``lent`` are the captured names; ``hidden`` the nodes behind opaque ones, by their domain.
    """

    scope: Scope
    model: onnx.ModelProto
    outside: Outside
    sizes: dict[str, Shape]
    lent: set[str] = field(default_factory=set)
    hidden: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def index(
        self,
        model: onnx.ModelProto,
        analyse: Callable[[Graph, Mapping[str, Shape]], tuple[Shapes, Constants]],
    ) -> Index:
        graph = Graph(model, self.outside)
        return graph, *analyse(graph, self.sizes)


def alone(
    scope: Scope,
    whole: onnx.ModelProto,
    around: Index | None,
    inputs: Sequence[Tensor],
    held: set[str],
    names: set[str],
) -> Alone:
    """A body as a model. ``around`` is the index of the scope around it.

    ``inputs`` says what is certain of its own inputs; ``held`` are names that others read;
    ``names`` are those in use anywhere.
    """
    proto = scope.proto
    made = onnx.ModelProto(ir_version=whole.ir_version)
    if any(True for _ in called(proto)):
        made.functions.extend(whole.functions)
    hidden: dict[str, onnx.NodeProto] = {}
    inside: set[str] = set()
    if isinstance(proto, onnx.FunctionProto):
        made.ir_version = tensors.FREE_INITIALIZERS - 1  # a function stores nothing: Constants
        made.opset_import.extend(proto.opset_import)
        made.graph.node.extend(proto.node)
        made.graph.value_info.extend(proto.value_info)
        made.graph.name = proto.name or "function"
        for name in proto.output:
            made.graph.output.add().name = name
        own = list(proto.input)
    else:
        imports = scope.above[0].proto.opset_import if scope.in_function else whole.opset_import
        made.opset_import.extend(imports)
        made.graph.CopyFrom(proto)
        made.graph.name = proto.name or "body"
        del made.graph.input[:]
        own = [value.name for value in proto.input]
        if scope.in_function:
            made.ir_version = max(made.ir_version, tensors.FREE_INITIALIZERS)
    if scope.in_function:
        hidden, inside = _hide(made)
    sizes: dict[str, Shape] = {}
    for position, name in enumerate(own):
        known = inputs[position] if position < len(inputs) else Tensor()
        _declare(made.graph, name, known, sizes)
    lent = captures(proto) if around is not None else []
    lent = [name for name in lent if around is not None and _visible(name, around)]
    for name in lent:
        assert around is not None
        _lend(made.graph, name, around, held, sizes)
    outside = Outside(frozenset(held | inside), frozenset(names))
    return Alone(scope, made, outside, sizes, set(lent), hidden)


def _visible(name: str, around: Index) -> bool:
    graph = around[0]
    return (
        name in graph.producer
        or name in graph.inputs_set
        or name in graph.initializers
        or name in graph.sparse
    )


def _declare(graph: onnx.GraphProto, name: str, known: Tensor, sizes: dict[str, Shape]) -> None:
    """An input of which that much is certain."""
    value = graph.input.add()
    value.name = name
    if not known.kind:
        value.type.opaque_type.name = "unknown"
        return
    value.type.tensor_type.elem_type = known.kind
    if known.certain is None:
        return
    value.type.tensor_type.shape.SetInParent()
    for size in known.certain:
        dim = value.type.tensor_type.shape.dim.add()
        if size is not None:
            dim.dim_value = size
    if known.nominal is not None and len(known.nominal) == len(known.certain):
        sizes[name] = known.nominal


def _lend(
    graph: onnx.GraphProto, name: str, around: Index, held: set[str], sizes: dict[str, Shape]
) -> None:
    """A captured tensor: a constant where it is one outside, else an input."""
    outer, shapes, constants = around
    free = constants.overridable(name)
    stored = constants.stored(name) if free or constants.known(name) else None
    if stored is None and constants.known(name):
        held.add(name)  # how it is computed, and from what, is another scope's matter
        stored = _computed(name, shapes, constants)
    if stored is None or free:
        _declare(graph, name, Tensor.of(name, shapes), sizes)
    if stored is not None:
        graph.initializer.add().CopyFrom(stored)
        graph.initializer[-1].name = name
    if outer.read_beyond(name):
        held.add(name)


def _computed(name: str, shapes: Shapes, constants: Constants) -> TensorProto | None:
    """A small constant that is computed outside."""
    shape = shapes.certain.get(name)
    if not constants.at_hand(name) and (
        shape is None or None in shape or prod(size or 0 for size in shape) > SMALL
    ):
        return None
    value = constants.value(name)
    return None if value is None else numpy_helper.from_array(value, name)


def _hide(made: onnx.ModelProto) -> tuple[dict[str, onnx.NodeProto], set[str]]:
    """Put opaque nodes for those that a caller's attributes decide of.

    Also what the bodies of hidden nodes read, which must stay as it is.
    """
    hidden: dict[str, onnx.NodeProto] = {}
    inside: set[str] = set()
    for index, node in enumerate(made.graph.node):
        if not _referring(node):
            continue
        domain = f"{OPAQUE}.{index}"
        hidden[domain] = onnx.NodeProto()
        hidden[domain].CopyFrom(node)
        for graph in walk.subgraphs(node):
            inside.update(reads(graph))
        del node.attribute[:]
        node.op_type = node.op_type if node.domain in ("", "ai.onnx") else "Opaque"
        node.domain = domain
        node.ClearField("overload")
        made.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return hidden, inside


def _referring(node: onnx.NodeProto) -> bool:
    """Whether an attribute of a node, or of one within it, is the caller's."""
    stack = [node]
    while stack:
        current = stack.pop()
        if any(attribute.ref_attr_name for attribute in current.attribute):
            return True
        stack.extend(inner for graph in walk.subgraphs(current) for inner in graph.node)
    return False


def put_back(held: Alone, fused: onnx.ModelProto) -> None:
    """Write what became of a stand-alone model into its body."""
    proto, graph = held.scope.proto, fused.graph
    entries = {
        "node": [_shown(node, held.hidden) for node in graph.node],
        "value_info": list(graph.value_info),
    }
    if not isinstance(proto, onnx.FunctionProto):
        entries["quantization_annotation"] = list(graph.quantization_annotation)
        entries["initializer"] = [t for t in graph.initializer if t.name not in held.lent]
    for name, found in entries.items():
        place = getattr(proto, name)
        del place[:]
        place.extend(found)


def _shown(node: onnx.NodeProto, hidden: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto:
    """The node behind an opaque one, reading and writing what that does."""
    if node.domain not in hidden:
        return node
    found = onnx.NodeProto()
    found.CopyFrom(hidden[node.domain])
    found.input[:], found.output[:] = list(node.input), list(node.output)
    return found


def given(scope: Scope, around: Index, infer: Callable[[Sequence[Tensor]], Index]) -> list[Tensor]:
    """What is certain of the inputs of a body in each of its runs.

    ``infer`` indexes the body with inputs of which so much is known. What a run hands to the next
    is believed only as far as every run keeps it: it is inferred until nothing is lost any more.
    """
    node, proto = scope.holder, scope.proto
    assert node is not None
    graph, shapes, _ = around
    if node.op_type == "If" or (node.op_type == "Scan" and graph.opset < 9):
        return [Tensor()] * len(proto.input)
    first = 0
    rest: list[Tensor] = []
    if node.op_type == "Loop":
        head = [Tensor(TensorProto.INT64), Tensor(TensorProto.BOOL)]  # of no axis, or of one
        initial, first = node.input[2:], 1
    else:
        attributes = {a.name: a for a in node.attribute}
        count = attributes["num_scan_inputs"].i if "num_scan_inputs" in attributes else 0
        states = len(node.input) - count
        axes = list(attributes["scan_input_axes"].ints) if "scan_input_axes" in attributes else []
        axes += [0] * (count - len(axes))
        head, initial = [], node.input[:states]
        rest = [
            Tensor.of(name, shapes).without(axis)
            for name, axis in zip(node.input[states:], axes, strict=False)
        ]
    state = [Tensor.of(name, shapes) for name in initial]
    outputs = [value.name for value in proto.output][first : first + len(state)]
    if len(outputs) != len(state):
        return [Tensor()] * len(proto.input)
    for _ in range(ROUNDS if state else 0):
        _, found, _ = infer([*head, *state, *rest])
        after = [
            held.joined(Tensor.of(name, found)) for held, name in zip(state, outputs, strict=True)
        ]
        if after == state:
            break
        state = after
    else:
        state = [Tensor(held.kind) for held in state]
    return [*head, *state, *rest]
