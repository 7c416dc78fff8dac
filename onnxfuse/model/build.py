"""New nodes, built with onnx-graphsurgeon; the only module that imports it."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnxfuse.emit import NewNode


def node_protos(nodes: list[NewNode]) -> list[onnx.NodeProto]:
    """The nodes as protobuf, in order; their tensors are referred to by name."""
    tensors: dict[str, gs.Variable] = {}

    def tensor(name: str) -> gs.Variable:
        return tensors.setdefault(name, gs.Variable(name))

    built = [
        gs.Node(
            node.op_type,
            node.name,
            attrs=dict(node.attributes),
            inputs=[tensor(name) for name in node.inputs],
            outputs=[tensor(node.output)],
        )
        for node in nodes
    ]
    exported = gs.export_onnx(gs.Graph(nodes=built), do_type_check=False)
    return list(exported.graph.node)


def is_graph(value: Any) -> bool:
    """Whether a value is a ``gs.Graph``."""
    return isinstance(value, gs.Graph)


def to_model(graph: Any) -> onnx.ModelProto:
    """A ``gs.Graph`` as a ModelProto; the graph is not changed."""
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    return model


def to_graph(model: onnx.ModelProto) -> Any:
    """A ModelProto as a ``gs.Graph``."""
    return gs.import_onnx(model)
