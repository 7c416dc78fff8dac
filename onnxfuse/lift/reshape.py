"""Reshape and Flatten: which axes they keep, and which become part of a longer one."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxfuse.algebra.reshaping import Place, Reshape
from onnxfuse.lift.common import Lifted, View
from onnxfuse.model.graph import Node
from onnxfuse.model.shapes import Shape
from onnxfuse.refusal import Refusal


def lift_reshape(node: Node, view: View) -> Lifted | Refusal | None:
    """Reshape; one whose result or input has no known rank is no operator of the algebra."""
    if len(node.inputs) < 2 or view.constants.known(node.inputs[0]):
        return None
    before, after = view.shape(node.inputs[0]), view.shape(node.outputs[0])
    target = view.constants.value(node.input(1)) if view.known(node.input(1)) else None
    copies = target is not None and not node.attributes.get("allowzero", 0)
    same = copies and np.asarray(target).size > 0 and int(np.asarray(target).reshape(-1)[0]) == 0
    return _lifted(node, view, before, after, same_batch=bool(same))


def lift_flatten(node: Node, view: View) -> Lifted | Refusal | None:
    """Flatten; behind the first axis, it keeps the batch."""
    before, after = view.shape(node.inputs[0]), view.shape(node.outputs[0])
    return _lifted(node, view, before, after, same_batch=node.attributes.get("axis", 1) == 1)


def _lifted(
    node: Node, view: View, before: Shape | None, after: Shape | None, *, same_batch: bool
) -> Lifted | None:
    if before is None or after is None or not (2 <= len(before) <= 5 and 2 <= len(after) <= 5):
        return None
    if 0 in before or 0 in after:
        return None
    places = tuple(_place(axis, before, after, same_batch) for axis in range(len(before)))
    if not any(place is not None for place in places[1:]):
        return None
    flat = node.op_type == "Flatten" and same_batch
    restored = _restored(node, view, len(after))
    literal = node.op_type == "Flatten" or view.known(node.input(1))
    law = Reshape(node.inputs[0], node.outputs[0], before, after, places, restored, flat, literal)
    known = None not in before
    return Lifted.one(node, law, node.inputs[0], fixed=known)


def _place(axis: int, before: Shape, after: Shape, same_batch: bool) -> Place | None:
    """What becomes of one axis, its elements being kept in order."""
    size = before[axis]
    if axis == 0 or size is None:
        return None
    if None not in before and None not in after:
        return _counted(axis, [n or 0 for n in before], [n or 0 for n in after])
    if axis == len(before) - 1 and after[-1] == size:
        return len(after) - 1, 1, 1
    same_batch = same_batch or (before[0] is not None and before[0] == after[0])
    if axis != 1 or not same_batch:
        return None
    if after[1] == size:
        return 1, 1, 1
    rest = before[2:]
    within = prod(n or 0 for n in rest)
    joined = len(after) == 2 and None not in rest and after[1] == size * within
    return (1, 1, within) if joined else None


def _counted(axis: int, before: list[int], after: list[int]) -> Place | None:
    """The same where all sizes are known."""
    outer, inner, size = prod(before[:axis]), prod(before[axis + 1 :]), before[axis]
    for at in range(1, len(after)):
        around, rest = divmod(outer, prod(after[:at]))
        within, left = divmod(inner, prod(after[at + 1 :]))
        if not rest and not left and around * size * within == after[at]:
            return at, around, within
    return None


def _restored(node: Node, view: View, rank: int) -> frozenset[str]:
    """Tensors whose sizes, all but the last, a Reshape takes: ``Shape(t)``, or entries of it."""
    producer = view.graph.producer.get(node.input(1)) if node.input(1) else None
    if producer is None:
        return frozenset()
    if producer.op_type == "Shape" and not producer.attributes.get("start", 0):
        return frozenset(producer.inputs) if "end" not in producer.attributes else frozenset()
    if producer.op_type != "Concat" or len(producer.inputs) != rank:
        return frozenset()
    entries = [view.graph.producer.get(name) for name in producer.inputs[:-1]]
    wanted = [
        entry.inputs[0]
        for at, entry in enumerate(entries)
        if entry is not None
        and entry.op_type == "Shape"
        and (entry.attributes.get("start", 0), entry.attributes.get("end")) == (at, at + 1)
    ]
    last = view.ints(producer, rank - 1)
    whole = len(wanted) == rank - 1 and len(set(wanted)) == 1 and last is not None
    return frozenset(wanted) if whole else frozenset()
