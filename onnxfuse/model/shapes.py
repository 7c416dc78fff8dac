"""Shapes and types of every tensor, inferred on a skeleton without weights.

Only graph inputs are believed. What the file says of inner tensors and outputs (value_info,
dim_params) is not: exporters write wrong ones. Where inputs are dynamic, a second inference at
assumed sizes gives the nominal shapes that costs are counted at; they prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from onnxfuse.errors import InputError
from onnxfuse.model import tensors, walk
from onnxfuse.model.graph import Graph, Node

Shape = tuple[int | None, ...]
SMALL = 1024
"""Initializers up to this many elements stay in the skeleton: shapes may depend on them."""

_NUMBERS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
LONGEST = 1 << 22
"""A vector longer than this is of unknown length: onnx's inference keeps room for its numbers."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """Element types, certain shapes, and nominal shapes by tensor name."""

    types: Mapping[str, int]
    certain: Mapping[str, Shape]
    nominal: Mapping[str, Shape]
    assumed: Mapping[str, Shape]

    def type_of(self, name: str) -> int:
        return self.types.get(name, TensorProto.UNDEFINED)


def infer(
    graph: Graph, sizes: Mapping[str, Shape], known: Mapping[str, Any] | None = None
) -> Shapes:
    """The shapes of all tensors; ``sizes`` assumes shapes of graph inputs for counting.

    ``known`` are computed constants that onnx's inference does not see through.
    """
    skeleton = _skeleton(graph, known or {})
    types, certain = _inferred(skeleton)
    assumed = {}
    for value in graph.model.graph.input:
        shape = certain.get(value.name)
        if shape is not None and None in shape and value.name not in graph.initializers:
            assumed[value.name] = _assume(shape, sizes.get(value.name))
    nominal = _at(skeleton, assumed) if assumed else certain
    return Shapes(types, certain, nominal, assumed)


def nominal_shapes(
    graph: Graph, assumed: Mapping[str, Shape], known: Mapping[str, Any]
) -> dict[str, Shape]:
    """The shapes of all tensors where inputs have the ``assumed`` ones."""
    return _at(_skeleton(graph, known), assumed)


def _at(skeleton: onnx.ModelProto, assumed: Mapping[str, Shape]) -> dict[str, Shape]:
    for value in skeleton.graph.input:
        if value.name in assumed:
            _set_shape(value, assumed[value.name])
    return _inferred(skeleton)[1]


def _assume(shape: Shape, wanted: Shape | None) -> Shape:
    if wanted is not None and len(wanted) == len(shape):
        return wanted
    default = 224 if len(shape) == 4 else 64
    return tuple(
        size if size is not None else (1 if axis == 0 else default)
        for axis, size in enumerate(shape)
    )


def _set_shape(value: onnx.ValueInfoProto, shape: Shape) -> None:
    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        dim.Clear()
        if size is not None:
            dim.dim_value = size


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """A model's structure without large data, and the nodes that stand in it, in their order."""

    model: onnx.ModelProto
    nodes: tuple[Node, ...]


def _skeleton(graph: Graph, known: Mapping[str, Any]) -> onnx.ModelProto:
    """The model's structure in topological order; large tensors become plain inputs.

    A node whose result is ``known`` is left out.
    """
    if graph.skeleton is None:
        graph.skeleton = _bare(graph)
    bare: _Skeleton = graph.skeleton
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(bare.model)
    if not known:
        return skeleton
    inner = skeleton.graph
    for name, value in known.items():
        inner.initializer.append(numpy_helper.from_array(value, name))
    kept = []
    for node, proto in zip(bare.nodes, bare.model.graph.node, strict=True):
        if node.outputs and node.outputs[0] in known:
            continue
        if node.standard and (spread := _spread(node, graph, known)) is not None:
            inner.input.append(helper.make_tensor_value_info(node.outputs[0], *spread))
        else:
            kept.append(proto)
    del inner.node[:]
    inner.node.extend(kept)
    _shorten(inner)
    return skeleton


def _bare(graph: Graph) -> _Skeleton:
    source = graph.model
    skeleton = _frame(source)
    inner = skeleton.graph
    inner.name = source.graph.name or "graph"
    for value in source.graph.input:
        inner.input.add().CopyFrom(value)
        _forget_names(inner.input[-1])
    for tensor in source.graph.initializer:
        if tensor.name in graph.inputs_set:
            continue
        _add_tensor(inner, tensor.name, tensor)
    for sparse in source.graph.sparse_initializer:
        inner.input.append(
            helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, sparse.dims)
        )
    nodes = tuple(node for node in graph.order if _add_node(inner, graph, node))
    _shorten(inner)
    for value in source.graph.output:
        if value.name in graph.inputs_set or value.name in graph.initializers:
            continue  # its shape is known; a second entry would hide that
        inner.output.add().name = value.name
        kind = value.type.tensor_type.elem_type
        if kind:
            inner.output[-1].type.tensor_type.elem_type = kind
    return _Skeleton(skeleton, nodes)


def _shorten(graph: onnx.GraphProto) -> None:
    """Say nothing of the length of long vectors."""
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 1 and dims[0].dim_value > LONGEST:
            dims[0].Clear()


def _frame(source: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the operator sets and functions of another, and no graph."""
    found = onnx.ModelProto(ir_version=max(source.ir_version, 4))
    found.opset_import.extend(source.opset_import)
    found.functions.extend(source.functions)
    for function in found.functions:
        for proto in function.node:
            _lighten(proto)
    return found


def _add_node(inner: onnx.GraphProto, graph: Graph, node: Node) -> bool:
    """Add a node as it stands; a constant that is large, or counts far, becomes an input."""
    literal = node.attributes.get("value")
    if node.op_type == "Constant" and isinstance(literal, TensorProto) and _large(literal):
        _add_tensor(inner, node.outputs[0], literal)
        return False
    if node.standard and (spread := _spread(node, graph, {})) is not None:
        inner.input.append(helper.make_tensor_value_info(node.outputs[0], *spread))
        return False
    inner.node.add().CopyFrom(graph.model.graph.node[node.index])
    if node.op_type != "Constant" and any(isinstance(v, Message) for v in node.attributes.values()):
        _lighten(inner.node[-1])
    return True


def _lighten(node: onnx.NodeProto) -> None:
    """Leave out the data of large tensors that a node holds, in its bodies too."""
    for tensor in walk.held(node):
        if _large(tensor):
            for name in ("raw_data", *_NUMBERS):
                tensor.ClearField(name)
            tensor.data_location = TensorProto.EXTERNAL


def _spread(
    node: Node, graph: Graph, known: Mapping[str, Any]
) -> tuple[int, list[int | None]] | None:
    """Type and shape of what fills a long tensor: onnx's inference would write it all down."""
    if node.op_type not in ("Range", "ConstantOfShape", "Tile", "Expand"):
        return None
    found = [_literal(name, graph, known) for name in node.inputs]
    if not found or any(value is None for value in found):
        return None
    if node.op_type in ("Tile", "Expand"):
        return _repeated(*found) if len(found) == 2 else None
    if node.op_type == "ConstantOfShape":
        sizes = [int(size) for size in found[0].reshape(-1)]
        value = node.attributes.get("value")
        kind = value.data_type if isinstance(value, TensorProto) else TensorProto.FLOAT
        return (kind, [*sizes]) if min(sizes, default=0) > 0 and prod(sizes) > SMALL else None
    if len(found) != 3 or any(value.size != 1 for value in found):
        return None
    start, stop, step = (float(value.reshape(())) for value in found)
    if step == 0 or (stop - start) / step <= SMALL:
        return None
    return helper.np_dtype_to_tensor_dtype(found[0].dtype), [None]


def _repeated(array: Any, counts: Any) -> tuple[int, list[int | None]] | None:
    """Type of a constant that is repeated to a long one, whose length is not said.

    Where such a length is read as a rank, inference writes that many sizes down.
    """
    total = array.size
    for count in counts.reshape(-1):  # an upper bound for Expand
        total *= max(int(count), 1)
    rank = max(array.ndim, counts.size)
    if total <= SMALL or rank > 1:
        return None
    return helper.np_dtype_to_tensor_dtype(array.dtype), [None]


def _literal(name: str, graph: Graph, known: Mapping[str, Any]) -> Any:
    """The array of a small tensor that the file holds or that is known; else ``None``."""
    producer = graph.producer.get(name)
    tensor = graph.initializers.get(name) or (producer and producer.attributes.get("value"))
    if name in known:
        return known[name]
    if not isinstance(tensor, TensorProto) or _large(tensor):
        return None
    try:
        return numpy_helper.to_array(tensor)
    except Exception:  # damaged; whoever needs it will say so
        return None


def _large(tensor: TensorProto) -> bool:
    count = 1
    for size in tensor.dims:
        count *= size
    return count > SMALL or tensor.data_location == TensorProto.EXTERNAL


def _add_tensor(inner: onnx.GraphProto, name: str, tensor: TensorProto) -> None:
    if _large(tensor):
        inner.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    else:
        inner.initializer.add().CopyFrom(tensor)
        inner.initializer[-1].name = name


def _forget_names(value: onnx.ValueInfoProto) -> None:
    """A dim_param proves nothing: two equal ones need not be equal sizes."""
    for dim in value.type.tensor_type.shape.dim:
        if not dim.HasField("dim_value") or dim.dim_value < 0:
            dim.Clear()


def _inferred(skeleton: onnx.ModelProto) -> tuple[dict[str, int], dict[str, Shape]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception:  # what cannot be inferred is unknown, and unknown is never fused
        try:
            inferred = onnx.shape_inference.infer_shapes(skeleton)
        except Exception:
            inferred = skeleton
    types: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for name, kind, shape in _tensors(inferred.graph):
        if kind:
            types[name] = kind
        if shape is not None and name not in shapes:
            shapes[name] = shape
    return types, shapes


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, int, Shape | None]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor.data_type, tuple(tensor.dims)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if not value.type.HasField("tensor_type"):
            continue
        kind = value.type.tensor_type
        shape = _sizes(kind.shape) if kind.HasField("shape") else None
        yield value.name, kind.elem_type, shape


def _sizes(shape: onnx.TensorShapeProto) -> Shape:
    sizes = [dim.dim_value for dim in shape.dim]
    if min(sizes, default=1) > 0:  # none is unset
        return tuple(sizes)
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
        for dim in shape.dim
    )


def _fill(tensor: TensorProto) -> None:
    """Put zeros for data that is not in the file, which onnx would look for where it runs."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    if prod(tensor.dims) > SMALL:  # whatever its data, it would be as large in memory
        tensor.dims[:] = [0]
    if tensor.data_type in tensors.FLOATS:
        tensor.raw_data = bytes(prod(tensor.dims) * tensors.dtype_of(tensor.data_type).itemsize)
    else:
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(0, np.int64), tensor.name))


def check(graph: Graph) -> None:
    """Raise `InputError` with onnx's own finding where the model breaks the specification."""
    skeleton = _skeleton(graph, {})
    for tensor in walk.stored(skeleton):
        _fill(tensor)
    for value in (*skeleton.graph.input, *skeleton.graph.output):
        if graph.outside is not None and not value.HasField("type"):  # functions declare none
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        if value.type.HasField("tensor_type"):  # runtimes accept an unknown rank, onnx does not
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(skeleton)
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        detail = " ".join(lines[:1]) or type(error).__name__
        raise InputError(f"not a valid ONNX model: {detail}") from error
