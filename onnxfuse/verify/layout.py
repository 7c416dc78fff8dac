"""The proof of a change of layouts: every operator that moved, run in both layouts.

Moving axes rounds nothing, so the results must be equal to the last bit, but for sums, which may
be taken in another order. Operators that the evaluator knows by no rule of their own act on each
element by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxfuse.errors import ProofError
from onnxfuse.evaluate import OPERATORS, evaluate
from onnxfuse.layout import Relaid
from onnxfuse.layout.rules import NARY, Moved, Perm, absorbs, operands
from onnxfuse.lift import View
from onnxfuse.model.graph import Node
from onnxfuse.records import RegionError

SIZES = (2, 5, 6, 7, 8, 3, 4, 2)
"""Unlike sizes of the axes, so that none can be taken for another."""
LARGEST = 32
"""Of an axis that is sliced or padded."""


def prove_layout(laid: Relaid) -> RegionError:
    """Prove every moved operator; raises `ProofError` naming the first that differs."""
    for index, (perm, moved) in laid.edits.moved.items():
        node = laid.view.graph.nodes[index]
        if node.op_type in OPERATORS and not _equal(node, perm, moved, laid.view):
            raise ProofError(
                f"node {node.label!r} differs in another layout; please report this and leave it "
                f"out with --except {node.label!r}"
            )
    return RegionError(0.0, 0.0, 0.0, 0.0, ())


def _equal(node: Node, perm: Perm, moved: Moved, view: View) -> bool:
    data = operands(node, view) or ()
    generator = np.random.default_rng(len(node.inputs))
    inputs: list[Any] = [
        np.asarray(view.constants.value(name)) if name and position not in data else None
        for position, name in enumerate(node.inputs)
    ]
    shape = _shape(node, view, inputs)
    for position in data:
        inputs[position] = generator.standard_normal(shape)
    stored = [array.transpose(perm) if i in data else array for i, array in enumerate(inputs)]
    stored += [None] * (max(moved.constants, default=-1) + 1 - len(stored))
    for position, array in moved.constants.items():
        stored[position] = array
    attributes = view.constants.attributes(node)
    try:
        expected = evaluate(node.op_type, attributes, inputs)
    except ValueError:
        return True  # the node rejects this size in either layout
    actual = evaluate(node.op_type, {**attributes, **moved.attributes}, stored)
    if not absorbs(node):
        expected = [array.transpose(perm) for array in expected]
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(expected, actual, strict=True))


def _shape(node: Node, view: View, constants: list[Any]) -> list[int]:
    """A small shape that a node takes: unlike sizes, but those that its constants fix."""
    first, *_ = operands(node, view) or (0,)
    certain = view.shape(node.inputs[first]) or ()
    shape = list(SIZES[: len(certain)])
    for axis, size in enumerate(certain):
        if size is not None and node.op_type in ("Slice", "Pad"):
            shape[axis] = min(size, LARGEST)
    if node.op_type == "Split":
        axis = node.attributes.get("axis", 0) % len(certain)
        shape[axis] = certain[axis] or shape[axis]
    for array in constants if node.op_type in NARY else ():
        for axis, size in enumerate(() if array is None else array.shape[::-1]):
            if size != 1:
                shape[-1 - axis] = size
    return shape
