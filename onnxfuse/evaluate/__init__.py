"""What operators mean, in NumPy: for constant folding and as the oracle of the proofs.

Each function takes a node's attributes and its input arrays and returns its output arrays, in
the inputs' own type. This room knows arrays only; it never knows onnx or the algebra, so that a
mistake in the algebra cannot hide in its proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxfuse.evaluate.linear import LINEAR
from onnxfuse.evaluate.parts import Parts
from onnxfuse.evaluate.tensor import TENSOR

Attributes = Mapping[str, Any]
Operator = Callable[[Attributes, Sequence[Any]], list[Any]]

OPERATORS: Mapping[str, Operator] = {**TENSOR, **LINEAR}
IN_PIECES = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
"""Operators whose second input is read in pieces where it is given as `Parts`."""


def evaluate(op_type: str, attributes: Attributes, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of one node.

    Raises ``KeyError`` for an operator not in `OPERATORS`, ``ValueError`` for inputs
    that it rejects.
    """
    inputs = [
        x.whole() if isinstance(x, Parts) and not (at == 1 and op_type in IN_PIECES) else x
        for at, x in enumerate(inputs)
    ]
    operator = OPERATORS[op_type]
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(out) for out in operator(attributes, inputs)]
    except IndexError as error:  # an axis that an input does not have
        raise ValueError(f"{op_type}: {error}") from error
