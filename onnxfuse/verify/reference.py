"""Onnx's reference evaluator, for models of types that onnxruntime has no kernels for.

It is slow, and wrong about some operators, so it is a second witness: what it cannot tell is left
to the proofs of the regions.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import external_data_helper
from onnx.reference import ReferenceEvaluator

from onnxfuse.model import held, tensors, walk
from onnxfuse.model.graph import Graph, Node
from onnxfuse.verify.session import CannotRunError, line

NAME = f"onnx {onnx.__version__}'s reference evaluator"
MOST = 2**30
"""Multiply-accumulates of the largest model that it runs; it takes some seconds for these."""


def check_fit(graph: Graph, macs: int) -> None:
    """Raises `CannotRunError` for a model that the evaluator is too slow for or known to fail."""
    if macs > MOST:
        raise CannotRunError(
            f"{NAME} would take too long for {macs:,} multiply-accumulates (it is given {MOST:,})"
        )
    for node in graph.nodes:
        if why := _flaw(node, graph.opset):
            raise CannotRunError(f"{NAME} computes {why} wrongly, as at {node.label!r}")


def _flaw(node: Node, opset: int) -> str:
    """What the evaluator is known to do wrongly about a node; measured against onnxruntime."""
    if not node.standard:
        return ""
    if node.op_type == "BatchNormalization" and opset < 14:
        return "BatchNormalization before operator set 14"
    if node.op_type == "Dropout" and opset < 12:
        return "Dropout before operator set 12"
    if node.op_type == "AveragePool" and node.attributes.get("ceil_mode", 0):
        return "AveragePool with ceil_mode"
    if node.op_type == "ConvTranspose":
        return "some ConvTranspose"
    return ""


@dataclass(frozen=True, slots=True)
class Reference:
    """A model in the evaluator, run as a session is."""

    evaluator: Any

    def run(self, names: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
        """The tensors of these names."""
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.evaluator.run(list(names), dict(feed))
        return [np.asarray(array) for array in found]


def opened(model: onnx.ModelProto, base: str | None) -> Reference:
    """A model in the evaluator; ``base`` is where its external data lies.

    Raises `CannotRunError` where it does not take the model.
    """
    try:
        model = held.inlined(model)
        if base is not None and any(map(tensors.in_file, walk.stored(model))):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            external_data_helper.load_external_data_for_model(copy, str(Path(base)))
            model = copy
        return Reference(ReferenceEvaluator(model))
    except Exception as error:
        raise CannotRunError(f"{NAME} cannot run it either: {line(error)}") from error
