"""Sketches: operators as they are drawn, with window, stride, groups and channels in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnxfuse.algebra.commuting import applied
from onnxfuse.algebra.form import Form
from onnxfuse.model.graph import Node
from onnxfuse.planning.problem import Problem, Step
from onnxfuse.realise import Replacement
from onnxfuse.records import Operator

SHORT = {"BatchNormalization": "BN", "AveragePool": "AvgPool", "ConvTranspose": "ConvT"}
MAX_DRAWN = 400
"""Operators of one region that are drawn; those next to its root come first."""


def standing(steps: Sequence[Step], problem: Problem) -> tuple[Operator, ...]:
    """The nodes that some steps stand for, as the file has them."""
    operands: dict[int, dict[str, None]] = {}
    nodes: dict[int, Node] = {}
    for step in steps[-MAX_DRAWN:]:
        nodes[step.node.index] = step.node
        operands.setdefault(step.node.index, {}).update(dict.fromkeys(step.lifted.operands))
    return tuple(
        _standing(nodes[index], tuple(names), problem) for index, names in operands.items()
    )


def alone(node: Node, problem: Problem) -> Operator:
    """A node that no law was found for."""
    constants = problem.view.constants
    data = tuple(name for name in node.inputs if name and not constants.known(name))
    return _standing(node, data, problem)


def _standing(node: Node, inputs: tuple[str, ...], problem: Problem) -> Operator:
    constants = problem.view.constants
    shape = constants.shape(node.input(1)) if constants.known(node.input(1)) else None
    kernel = None if shape is None or None in shape else [int(size or 0) for size in shape]
    words = _detail(node.op_type, node.attributes, kernel)
    return Operator(node.label, node.op_type, words, inputs, tuple(n for n in node.outputs if n))


def written(replacement: Replacement) -> tuple[Operator, ...]:
    """The operators that replace a region."""
    shapes: Mapping[str, tuple[int, ...]] = {
        name: weight.shape for name, weight in replacement.weights.items()
    }
    stored = shapes.keys() | replacement.integers.keys()
    return tuple(
        Operator(
            node.name,
            node.op_type,
            _detail(node.op_type, node.attributes, shapes.get(node.inputs[1]))
            if len(node.inputs) > 1
            else _detail(node.op_type, node.attributes, None),
            tuple(name for name in node.inputs if name not in stored),
            (node.output,),
        )
        for node in replacement.nodes
    )


def expression(step: Step, problem: Problem) -> str:
    """What one step computes, over the tensors it reads; empty where its law refuses them."""
    operands = [problem.bare(name) for name in step.lifted.operands]
    forms = [form for form in operands if form is not None]
    if len(forms) < len(operands):
        return ""
    found = applied(step.law, forms, problem.facts)
    return found.text if isinstance(found, Form) else ""


def kinds(op_types: Iterable[str]) -> str:
    """``4 Conv, 2 Pad, AvgPool`` in order of first appearance."""
    counts: dict[str, int] = {}
    for kind in op_types:
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(
        SHORT.get(kind, kind) if n == 1 else f"{n} {SHORT.get(kind, kind)}"
        for kind, n in counts.items()
    )


def _detail(op_type: str, attributes: Mapping[str, Any], second: Sequence[int] | None) -> str:
    """``3×3/2 64→128 g4``: window, stride, channels, groups; ``second`` is the second input."""
    if op_type in ("Conv", "ConvTranspose") and second is not None and len(second) > 2:
        return _convolution(op_type, attributes, second)
    if op_type == "AveragePool":
        return _window(attributes.get("kernel_shape", []), attributes)
    if op_type == "BatchNormalization" and second is not None and len(second) == 1:
        return f"{second[0]} channels"
    if op_type in ("Gemm", "MatMul") and second is not None and len(second) == 2:
        return f"{second[0]}×{second[1]}"
    return ""


def _convolution(op_type: str, attributes: Mapping[str, Any], kernel: Sequence[int]) -> str:
    groups = int(attributes.get("group", 1))
    fan_in, fan_out = kernel[1] * groups, kernel[0]
    if op_type == "ConvTranspose":
        fan_in, fan_out = kernel[0], kernel[1] * groups
    words = [_window(kernel[2:], attributes), f"{fan_in}→{fan_out}"]
    if groups > 1:
        words.append("depthwise" if groups == fan_in else f"groups {groups}")
    return " ".join(words)


def _window(taps: Sequence[int], attributes: Mapping[str, Any]) -> str:
    text = "×".join(map(str, taps))
    strides = attributes.get("strides") or []
    if any(stride > 1 for stride in strides):
        text += "/" + (str(strides[0]) if len(set(strides)) == 1 else ",".join(map(str, strides)))
    dilations = attributes.get("dilations") or []
    if any(dilation > 1 for dilation in dilations):
        text += f" dilation {'×'.join(map(str, dilations))}"
    return text
