"""Empty names where a value must stand: runtimes reject them, or die of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from onnx import defs

from onnxfuse.model import walk


def hole(model: onnx.ModelProto) -> str:
    """What is left out and must not be, in words; empty where nothing is.

    onnxruntime ends the process at a Split, a Loop, a Sum or a training BatchNormalization that
    leaves out what counts.
    """
    opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0)
    for nodes in (model.graph.node, walk.inner_nodes(model)):
        for node in nodes:
            if node.domain in ("", "ai.onnx") and ("" in node.output or "" in node.input):
                for what in _holes(node, opset):
                    name = node.name or next(filter(None, node.output), "")
                    return f"{node.op_type} {name!r} leaves out {what}"
    return ""


def _holes(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    if node.op_type == "BatchNormalization" and "" in node.output:
        yield "an output"  # optional by its schema, and fatal all the same
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return
    yield from ("an input" for _ in _missing(node.input, schema.inputs))
    yield from ("an output" for _ in _missing(node.output, schema.outputs))


def _missing(names: Sequence[str], formal: Sequence[Any]) -> Iterator[int]:
    """The places that are empty though the operator's definition calls none of them optional."""
    optional = defs.OpSchema.FormalParameterOption.Optional
    for index, name in enumerate(names):
        if not name and formal and formal[min(index, len(formal) - 1)].option != optional:
            yield index
