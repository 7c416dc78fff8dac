"""Ways to damage a model: through its protobuf objects, its bytes, or the files beside it.

Each takes a generator of random numbers and a model, which it may change in place, and gives
a model or bytes. Those of objects are the ones that matter: a flipped bit seldom gets past the
parser, while a negative group or a tensor that reads itself is seen by every part of the program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, TensorProto, helper, numpy_helper

Rng = np.random.Generator
INTEGERS = [0, -1, 1, 2, 3, 5, 7, 16, 97, 255, 1000, 65537, 2**20, 2**31 - 1, 2**31, 2**40, 2**62,
            -2, -(2**31), -(2**63), 2**63 - 1]  # fmt: skip
FLOATS = [0.0, -1.0, 1e-45, 1e38, float("nan"), float("inf"), -float("inf"), 1e-5]
TEXTS = ["", "x", "y", "ai.onnx", "a\nb", "\x1b[31mred", "\0", "../../etc/passwd", "[bold]",
         "é" * 9, "n" * 100_000, "Conv", "NOTSET", "SAME_UPPER", "constant"]  # fmt: skip
OPERATORS = [
    "Conv", "ConvTranspose", "BatchNormalization", "AveragePool", "Add", "Sub", "Mul", "Div", "Sum",
    "Concat", "Split", "Slice", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
    "Gemm", "MatMul", "Identity", "Neg", "Constant", "ConstantOfShape", "Expand", "Tile", "Shape",
    "Gather", "GlobalAveragePool", "ScatterND", "ScatterElements", "Cast", "Dropout", "Relu",
    "HardSigmoid", "Clip", "ReduceMean", "If", "Loop", "Scan", "Size", "Range", "Where", "NoSuchOp",
]  # fmt: skip
UNSIGNED = 2**64


def pick(rng: Rng, values: Sequence[Any]) -> Any:
    """One of a few."""
    return values[int(rng.integers(len(values)))]


def messages(root: Message, depth: int = 0) -> Iterator[Message]:
    """All messages of a model, the outer ones first."""
    yield root
    for field, value in root.ListFields() if depth < 60 else ():
        if field.message_type is not None:
            for inner in value if _many(field) else (value,):
                yield from messages(inner, depth + 1)


def _many(field: Any) -> bool:
    return bool(field.is_repeated)


def _scalar(rng: Rng, field: Any, model: onnx.ModelProto) -> Any:
    """A value that a field could hold and that nobody expects there."""
    kind = field.type
    if kind == field.TYPE_STRING:
        names = [name for node in model.graph.node for name in (*node.input, *node.output)]
        return pick(rng, TEXTS if not names or rng.random() < 0.4 else names)
    if kind == field.TYPE_BYTES:
        return rng.bytes(int(pick(rng, [0, 1, 3, 4, 64, 1000])))
    if kind in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return pick(rng, FLOATS)
    if kind == field.TYPE_ENUM:
        return pick(rng, field.enum_type.values).number
    value = pick(rng, INTEGERS)
    if kind == field.TYPE_INT32:
        return max(-(2**31), min(2**31 - 1, value))
    return value % UNSIGNED if kind == field.TYPE_UINT64 else value


def any_field(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:
    """One field of one message: set, cleared, doubled, shuffled, or taken from elsewhere."""
    found = list(messages(model))
    target = pick(rng, found)
    fields = [f for f, _ in target.ListFields()]
    if not fields or rng.random() < 0.15:
        fields = [f for f in target.DESCRIPTOR.fields if f.message_type is None]
    if not fields:
        return model
    field = pick(rng, fields)
    if rng.random() < 0.2:
        target.ClearField(field.name)
    elif _many(field):
        _entries(rng, getattr(target, field.name), field, model, found)
    elif field.message_type is None:
        setattr(target, field.name, _scalar(rng, field, model))
    else:
        same = [m for m in found if m.DESCRIPTOR is field.message_type]
        _copy(getattr(target, field.name), pick(rng, same or [getattr(target, field.name)]))
    return model


def _copy(target: Message, source: Message) -> None:
    data = source.SerializeToString()
    target.Clear()
    target.MergeFromString(data)


def _entries(rng: Rng, entries: Any, field: Any, model: Any, found: list[Message]) -> None:
    how = int(rng.integers(5))
    place = int(rng.integers(len(entries))) if len(entries) else 0
    if how == 0 and len(entries):
        del entries[place]
    elif field.message_type is None:
        value = _scalar(rng, field, model)
        if how <= 2 and len(entries):
            entries[place] = value
        elif how == 3 and len(entries):
            entries.append(entries[place])
        else:
            entries.append(value)
    elif how in (1, 2) and len(entries):
        entries.add().CopyFrom(entries[place])
    elif how == 3:
        kept = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
        del entries[:]
        entries.extend(kept[int(i)] for i in rng.permutation(len(kept)))
    else:
        same = [m for m in found if m.DESCRIPTOR is field.message_type]
        if same:
            _copy(entries.add(), pick(rng, same))


def tensors_of(model: onnx.ModelProto) -> list[TensorProto]:
    """The stored tensors, in initializers and attributes."""
    return [m for m in messages(model) if isinstance(m, TensorProto)]


def a_tensor(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:
    """A tensor's dimensions, type, contents or name."""
    found = tensors_of(model)
    if not found:
        return model
    tensor, how = pick(rng, found), int(rng.integers(10))
    if how == 0 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = pick(rng, INTEGERS)
    elif how == 1:
        tensor.dims[:] = [int(pick(rng, INTEGERS)) for _ in range(int(rng.integers(0, 6)))]
    elif how == 2:
        tensor.data_type = int(rng.integers(-1, 32))
    elif how == 3:
        tensor.raw_data = rng.bytes(int(rng.integers(0, 40)))
    elif how == 4:
        tensor.dims[:] = [int(tensor.dims[i]) for i in rng.permutation(len(tensor.dims))]
    elif how == 5:
        tensor.dims.append(1)
    elif how == 6:
        tensor.ClearField("raw_data")
    elif how == 7:
        tensor.raw_data = rng.bytes(len(tensor.raw_data))
    elif how == 8:
        tensor.segment.begin, tensor.segment.end = 0, pick(rng, INTEGERS)
    else:
        _poison(rng, tensor)
    return model


def _poison(rng: Rng, tensor: TensorProto) -> None:
    """NaN, infinities, zeros and huge numbers among the weights."""
    try:
        array = np.array(numpy_helper.to_array(tensor))
    except Exception:  # it was damaged before
        return
    if not array.size or array.dtype.kind not in "iuf":
        return
    value = pick(rng, FLOATS if array.dtype.kind == "f" else [0, 1, 2, 3, 100, 127])
    if array.dtype.kind == "i" and array.dtype.itemsize == 8:
        value = pick(rng, INTEGERS)
    if rng.random() < 0.3:
        with np.errstate(all="ignore"):
            array[...] = value
    else:
        with np.errstate(all="ignore"):
            array.reshape(-1)[int(rng.integers(array.size))] = value
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def an_attribute(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:
    """An attribute of a node: absurd numbers, another type, another length, gone or unheard of."""
    nodes = [m for m in messages(model) if isinstance(m, onnx.NodeProto)]
    node = pick(rng, [n for n in nodes if n.attribute] or nodes or [model.graph.node.add()])
    if not node.attribute or rng.random() < 0.25:
        name = pick(rng, ["group", "pads", "strides", "dilations", "kernel_shape", "auto_pad",
                          "axis",
                          "axes", "perm", "epsilon", "count_include_pad", "ceil_mode", "value",
                          "output_shape", "output_padding", "transB", "alpha", "to", "split",
                          "num_outputs", "mode", "allowzero", "training_mode", "start", "end",
                          "keepdims", "spatial", "broadcast"])  # fmt: skip
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(_attribute(rng, name))
        return model
    attribute, how = pick(rng, node.attribute), int(rng.integers(6))
    if how == 0:
        attribute.type = int(rng.integers(0, 15))
    elif how == 1:
        name = attribute.name
        attribute.CopyFrom(_attribute(rng, name))
    elif how == 2 and attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = pick(rng, INTEGERS)
    elif how == 3 and attribute.ints:
        if rng.random() < 0.5:
            attribute.ints.append(pick(rng, INTEGERS))
        else:
            del attribute.ints[-1]
    elif attribute.type == AttributeProto.INT:
        attribute.i = pick(rng, INTEGERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = pick(rng, FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = pick(rng, [*(text.encode() for text in TEXTS), b"\xff\xfe"])
    else:
        node.attribute.remove(attribute)
    return model


def _attribute(rng: Rng, name: str) -> AttributeProto:
    how = int(rng.integers(7))
    value: Any = pick(rng, INTEGERS)
    if how == 1:
        value = [int(pick(rng, INTEGERS)) for _ in range(int(rng.integers(1, 6)))]
    elif how == 2:
        value = float(pick(rng, FLOATS))
    elif how == 3:
        value = pick(rng, TEXTS)
    elif how == 4:
        value = numpy_helper.from_array(rng.integers(-9, 9, int(rng.integers(0, 4))), "t")
    elif how == 5:
        value = [1.0, float(pick(rng, FLOATS))]
    elif how == 6:
        value = helper.make_graph([], "g", [], [])
    return helper.make_attribute(name, value)


def a_node(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:  # noqa: PLR0912
    """A node: another operator, inputs and outputs missing, doubled or in a cycle."""
    nodes = model.graph.node
    if not nodes:
        return model
    node, other, how = pick(rng, nodes), pick(rng, nodes), int(rng.integers(13))
    if how == 0:
        node.op_type = pick(rng, OPERATORS)
    elif how == 1 and node.input and other.output:
        node.input[int(rng.integers(len(node.input)))] = other.output[0]  # often a cycle
    elif how == 2 and node.input:
        node.input[int(rng.integers(len(node.input)))] = pick(rng, ["", "missing"])
    elif how == 3 and node.input:
        del node.input[int(rng.integers(len(node.input)))]
    elif how == 4:
        node.input.append(pick(rng, ["", *other.output, *other.input]))
    elif how == 5 and node.output:
        node.output[int(rng.integers(len(node.output)))] = pick(rng, ["", *other.output])
    elif how == 6:
        node.output.append(pick(rng, ["", "more", *other.output]))
    elif how == 7:
        node.output[:] = []
    elif how == 8:
        node.domain = pick(rng, ["", "ai.onnx", "com.microsoft", "nobody"])
    elif how == 9:
        nodes.remove(node)
    elif how == 10:
        copy = nodes.add()
        copy.CopyFrom(other)
    elif how == 11 and len(node.input) > 1:
        node.input[:] = [node.input[int(i)] for i in rng.permutation(len(node.input))]
    else:
        node.input[:] = []
    return model


def a_shape(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:
    """The type of a graph input or output, or of an inner tensor."""
    values = [*model.graph.input, *model.graph.input, *model.graph.output, *model.graph.value_info]
    if not values:
        return model
    value, how = pick(rng, values), int(rng.integers(8))
    dims = value.type.tensor_type.shape.dim
    if how <= 2 and dims:
        dims[int(rng.integers(len(dims)))].dim_value = pick(rng, INTEGERS)
    elif how == 3 and dims:
        pick(rng, dims).dim_param = pick(rng, ["N", "N", "", "a b", "x" * 1000])
    elif how == 4:
        if dims and rng.random() < 0.5:
            del dims[-1]
        else:
            dims.add().dim_value = pick(rng, [0, 1, 2])
    elif how == 5:
        value.type.tensor_type.elem_type = int(rng.integers(0, 30))
    elif how == 6:
        value.type.ClearField("tensor_type")
    else:
        value.type.tensor_type.ClearField("shape")
    return model


def versions(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:
    """Other versions of the format and of its operators; or a domain that is named twice."""
    how = int(rng.integers(4))
    if how == 0:
        model.ir_version = pick(rng, [0, 1, 2, 3, 4, 8, 10, 13, 14, 99, 2**40])
    elif how == 1 and model.opset_import:
        model.opset_import[0].version = pick(rng, [0, -1, 1, 5, 6, 7, 9, 11, 13, 18, 21, 26, 99])
    elif how == 2:
        model.opset_import.append(helper.make_opsetid(pick(rng, ["", "ai.onnx", "a"]), 9))
    else:
        del model.opset_import[:]
    return model


def interface(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:
    """Inputs and outputs of the graph: doubled, missing, constants, the same tensor."""
    graph, how = model.graph, int(rng.integers(6))
    inner = [out for node in graph.node for out in node.output] or ["x"]
    if how == 0:
        graph.output.append(helper.make_tensor_value_info(pick(rng, inner), 1, None))
    elif how == 1 and graph.initializer:
        name = pick(rng, graph.initializer).name
        where = pick(rng, [graph.input, graph.output])
        where.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))
    elif how == 2 and graph.input:
        graph.output.append(pick(rng, graph.input))
    elif how == 3 and graph.output:
        graph.output.append(pick(rng, graph.output))
    elif how == 4:
        del graph.output[:]
    elif graph.input:
        del graph.input[0]
    return model
