"""Activations and norms written out in nodes: their constants are theirs, never absorbed.

Runtimes build one kernel from these forms; taking ``·0.5`` out of a Gelu cost a detector 10 %.

    Gelu         x · (1 + erf(x/√2)) · 0.5, and its tanh approximation
    SiLU         x · sigmoid(α·x)
    Sigmoid      1 / (1 + exp(−x))
    HardSigmoid  clip(x + 3, 0, 6) / 6,  clip(x/6 + 0.5, 0, 1);  HardSwish: times x
    LeakyRelu    max(x, α·x)
    LayerNorm    (x − mean x) / √(var x + ε) · γ + β, and RMSNorm without the mean and β
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxfuse.lift.common import View
from onnxfuse.model.graph import Node

_ARITHMETIC = ("Add", "Sub", "Mul", "Div")


def activation_nodes(view: View) -> dict[int, str]:
    """The linear nodes that belong to a written-out activation: index to the form's name."""
    found: dict[int, str] = {}
    for node in view.graph.nodes:
        for name, member in _members(node, view):
            found.setdefault(member.index, name)
    return found


def _members(node: Node, view: View) -> Iterator[tuple[str, Node]]:
    if node.op_type in ("Erf", "Tanh"):
        yield from _gelu(node, view)
    elif node.op_type == "Sigmoid":
        yield from _silu(node, view)
    elif node.op_type == "Exp":
        yield from _sigmoid(node, view)
    elif node.op_type == "ReduceMean":
        yield from _layer_norm(node, view)
    elif node.op_type in ("Clip", "Min", "Max"):
        yield from _hard_sigmoid(node, view)
        yield from _leaky(node, view)


def _gelu(core: Node, view: View) -> Iterator[tuple[str, Node]]:
    """``core(scaled x) + 1``, times x, times a half standing anywhere in the product."""
    members: list[Node] = []
    for plus in _readers(core, view):
        if plus.op_type != "Add" or not _near(_scalar(plus, view), 1.0):
            continue
        members.append(plus)
        for product in _readers(plus, view):
            if product.op_type != "Mul":
                continue
            if _scalar(product, view) is not None:  # 0.5 · (1 + erf), then times x
                members.append(product)
                continue
            members += [n for n in _readers(product, view) if _near_factor(n, view, 0.5)]
            for name in product.inputs:
                other = _producer(name, view)
                if other is not None and _near_factor(other, view, 0.5):
                    members.append(other)
    if not members:
        return
    inner = 0.5**0.5 if core.op_type == "Erf" else (2 / np.pi) ** 0.5
    members += [n for n in _scalars_before(core, view)[:1] if _near_factor(n, view, inner)]
    if core.op_type == "Tanh":
        members += _cubic(core, view)
    yield from (("Gelu", member) for member in members)


def _cubic(core: Node, view: View) -> list[Node]:
    """The inside of the tanh approximation: √(2/π) · (x + 0.044715 · x³)."""
    inner = _producer(core.inputs[0], view)
    while inner is not None and _scalar(inner, view) is not None:
        inner = _producer(_operand(inner, view), view)
    if inner is None or inner.op_type not in ("Add", "Mul"):
        return []
    members = [inner]
    for name in inner.inputs:
        scaled = _producer(name, view)
        if scaled is None or scaled.op_type not in _ARITHMETIC:
            continue
        if _scalar(scaled, view) is not None:
            members.append(scaled)
    return members


def _silu(core: Node, view: View) -> Iterator[tuple[str, Node]]:
    before = [n for n in _scalars_before(core, view)[:1] if n.op_type in ("Mul", "Div")]
    if not before:
        return
    start = _operand(before[0], view)
    if any(start in _origins(n, view) for n in _readers(core, view) if n.op_type == "Mul"):
        yield from (("SiLU", member) for member in before)


def _sigmoid(core: Node, view: View) -> Iterator[tuple[str, Node]]:
    before = _producer(core.inputs[0], view)
    for plus in _readers(core, view):
        if plus.op_type == "Add" and _near(_scalar(plus, view), 1.0):
            inverse = any(n.op_type in ("Reciprocal", "Div", "Pow") for n in _readers(plus, view))
            if inverse and before is not None and _negates(before, view):
                yield "Sigmoid", plus
                yield "Sigmoid", before


def _negates(node: Node, view: View) -> bool:
    return node.op_type == "Neg" or _near_factor(node, view, -1.0)


def _hard_sigmoid(core: Node, view: View) -> Iterator[tuple[str, Node]]:
    top, first = _clipped(core, view)
    if top is None or not (_near(top, 6.0) or _near(top, 1.0)):
        return
    before = _scalars_before(first, view)
    offset = 3.0 if _near(top, 6.0) else 0.5
    if not before or before[0].op_type != "Add" or not _near(_scalar(before[0], view), offset):
        return
    yield "HardSigmoid", before[0]
    if not _near(top, 6.0):
        for node in before[1:2]:
            if any(_near_factor(node, view, slope) for slope in (1 / 6, 0.2)):
                yield "HardSigmoid", node
        return
    for reader in _readers(core, view):
        if _near_factor(reader, view, 1 / 6):
            yield "HardSigmoid", reader
        elif reader.op_type == "Mul":
            for last in _readers(reader, view):
                if _near_factor(last, view, 1 / 6):
                    yield "HardSwish", last


def _clipped(node: Node, view: View) -> tuple[float | None, Node]:
    """The upper bound of a clip from zero that ends at ``node``, and the node it begins with."""
    if node.op_type == "Clip":
        bottom, top = node.attributes.get("min"), node.attributes.get("max")
        if bottom is None and node.input(1):
            bottom = _number(node.input(1), view)
        if top is None and node.input(2):
            top = _number(node.input(2), view)
        whole = bottom is not None and top is not None and abs(bottom) <= 1e-6
        return (float(top) if whole and top is not None else None), node
    bound, inner = _scalar(node, view), _producer(_operand(node, view), view)
    if bound is None or inner is None:
        return None, node
    if node.op_type == "Min" and inner.op_type in ("Relu", "Max"):
        zero = inner.op_type == "Relu" or _scalar(inner, view) == 0
        return (bound if zero else None), inner
    if node.op_type == "Max" and inner.op_type == "Min" and bound == 0:
        return _scalar(inner, view), inner
    return None, node


def _leaky(core: Node, view: View) -> Iterator[tuple[str, Node]]:
    names = [_skip(name, view) for name in core.inputs]
    for name in names:
        scaled = view.graph.producer.get(name)
        if scaled is None or scaled.op_type not in ("Mul", "Div"):
            continue
        if _scalar(scaled, view) is not None and _operand(scaled, view) in names:
            yield "LeakyRelu", scaled


def _layer_norm(mean: Node, view: View) -> Iterator[tuple[str, Node]]:
    """What rescales and shifts data that was divided by the root of a mean."""
    for root in _roots(mean, view):
        for product in _readers(root, view):
            if product.op_type not in ("Mul", "Div") or _has_constant(product, view):
                continue
            for scaled in _readers(product, view):
                if scaled.op_type != "Mul" or not _has_constant(scaled, view):
                    continue
                yield "LayerNorm", scaled
                for shifted in _readers(scaled, view):
                    if shifted.op_type == "Add" and _has_constant(shifted, view):
                        yield "LayerNorm", shifted


def _roots(mean: Node, view: View) -> Iterator[Node]:
    """``√(mean + ε)``, or one over it."""
    for plus in _readers(mean, view):
        shifted = plus.op_type == "Add" and _scalar(plus, view) is not None
        for root in _readers(plus, view) if shifted else [plus]:
            if root.op_type == "Pow" and abs(_scalar(root, view) or 0) == 0.5:
                yield root
            elif root.op_type == "Sqrt":
                yield root
                yield from (n for n in _readers(root, view) if n.op_type in ("Reciprocal", "Div"))


def _has_constant(node: Node, view: View) -> bool:
    return any(view.constants.known(name) for name in node.inputs)


def _scalars_before(core: Node, view: View) -> list[Node]:
    """The chain of scalar arithmetic in front of a node, nearest first."""
    chain: list[Node] = []
    name = core.inputs[0]
    if core.op_type in ("Max", "Min"):
        name = _operand(core, view)
    node = _producer(name, view)
    while node is not None and node.op_type in _ARITHMETIC and _scalar(node, view) is not None:
        chain.append(node)
        node = _producer(_operand(node, view), view)
    return chain


def _origins(node: Node, view: View) -> set[str]:
    return {_skip(name, view) for name in node.inputs}


def _skip(name: str, view: View) -> str:
    """The tensor behind Identity nodes."""
    node = view.graph.producer.get(name)
    while node is not None and node.op_type == "Identity" and node.standard:
        name = node.inputs[0]
        node = view.graph.producer.get(name)
    return name


def _producer(name: str, view: View) -> Node | None:
    return view.graph.producer.get(_skip(name, view))


def _readers(node: Node, view: View) -> Iterator[Node]:
    """The readers of a node's output, Identity nodes looked through."""
    stack = list(node.outputs[:1])
    while stack:
        for reader in view.graph.consumers.get(stack.pop(), []):
            if reader.op_type == "Identity" and reader.standard:
                stack.append(reader.outputs[0])
            else:
                yield reader


def _number(name: str, view: View) -> float | None:
    shape = view.constants.shape(name) if view.constants.known(name) else None
    if shape is None or any(size != 1 for size in shape):
        return None
    value = view.constants.value(name)
    return None if value is None else float(np.asarray(value).reshape(-1)[0])


def _scalar(node: Node, view: View) -> float | None:
    """The scalar constant of a two-operand node."""
    values = [_number(name, view) for name in node.inputs[:2]]
    given = [value for value in values if value is not None]
    return given[0] if len(given) == 1 and len(values) == 2 else None


def _operand(node: Node, view: View) -> str:
    """The operand of a scalar node that is data."""
    for name in node.inputs[:2]:
        if _number(name, view) is None:
            return _skip(name, view)
    return node.inputs[0]


def _near(value: float | None, target: float) -> bool:
    return value is not None and abs(value - target) <= 1e-3 * abs(target)


def _near_factor(node: Node, view: View, factor: float) -> bool:
    """Whether a node multiplies by ``factor`` or divides by its inverse."""
    value = _scalar(node, view)
    if node.op_type == "Mul":
        return _near(value, factor)
    return node.op_type == "Div" and _near(value, 1 / factor)
