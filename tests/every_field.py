"""Every message and field of the format, read from onnx itself, with a place outside a region."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_text import bn, model, norm

UNKNOWN = b"\xba\x3e\x06future"  # field 999, a string: nothing that onnx knows


def based() -> ModelProto:
    """A region of four nodes (y) between a Relu and a node of a domain that nobody knows."""
    built = model(
        f"""(float[N,4,8,8] x) => (float[] y, float[] z, float[] u)
        <float[N,4,8,8] a, float[N,4,8,8] r, float[N,4,8,8] s> {{
            r = Relu(x)
            a = Conv<pads = [1,1,1,1]>(r, w, v)
            z = custom.Foo(x, kept)
            b = Conv(r, k)
            s = Add(a, b)
            {bn("y", "s", "n")}
            u = Neg(r)
        }}""",
        ir=13, opset=21, w=(4, 4, 3, 3), v=(4,), k=(4, 4, 1, 1), kept=(4,), **norm("n", 4),
    )  # fmt: skip
    built.opset_import.append(helper.make_opsetid("local", 1))
    return built


def types() -> dict[str, Any]:
    """Every message that a model can hold, by name."""
    found: dict[str, Any] = {}
    queue = [ModelProto.DESCRIPTOR]
    for kind in queue:
        if kind.full_name not in found:
            found[kind.full_name] = kind
            queue += [f.message_type for f in kind.fields if f.message_type is not None]
    return found


TYPES = types()


def foo(of: ModelProto) -> NodeProto:
    """The node of an unknown domain."""
    return next(node for node in of.graph.node if node.op_type == "Foo")


def attribute(of: ModelProto, value: Any = 1, name: str = "extra") -> AttributeProto:
    made = foo(of).attribute.add()
    made.CopyFrom(helper.make_attribute(name, value))
    return made


def tensor(of: ModelProto) -> TensorProto:
    """A stored tensor that a node reads."""
    return next(tensor for tensor in of.graph.initializer if tensor.name == "kept")


def function(of: ModelProto) -> onnx.FunctionProto:
    made = helper.make_function(
        "local", "Twice", ["q"], ["t"], [helper.make_node("Add", ["q", "q"], ["t"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    of.functions.append(made)
    return of.functions[-1]


def training(of: ModelProto) -> onnx.TrainingInfoProto:
    info = of.training_info.add()
    info.algorithm.name = "step"
    info.algorithm.node.append(helper.make_node("Neg", ["kept"], ["kept_new"]))
    return info


def value(of: ModelProto, name: str = "r") -> onnx.ValueInfoProto:
    return next(value for value in of.graph.value_info if value.name == name)


def extra(of: ModelProto) -> onnx.TypeProto:
    """The type of a tensor that no node has: any type may stand there."""
    return of.graph.value_info.add(name="extra_value").type


def sparse(of: ModelProto) -> onnx.SparseTensorProto:
    values = helper.make_tensor("scattered", TensorProto.FLOAT, [1], [2.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [3])
    of.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [5]))
    return of.graph.sparse_initializer[-1]


def entry(of: ModelProto) -> onnx.StringStringEntryProto:
    made = tensor(of).metadata_props.add()
    made.key, made.value = "origin", "script"
    return made


def sharding(of: ModelProto) -> Any:
    device = of.configuration.add(name="two", num_devices=2)
    device.device.extend(["cpu:0", "cpu:1"])
    made = foo(of).device_configurations.add(configuration_id="two").sharding_spec.add()
    made.tensor_name = "kept"
    made.device.append(0)
    return made


def sharded(of: ModelProto) -> Any:
    made = sharding(of).sharded_dim.add(axis=0)
    made.simple_sharding.add(num_shards=2, dim_value=2)
    return made


PLACES: dict[str, Callable[[ModelProto], Message]] = {
    "ModelProto": lambda m: m,
    "OperatorSetIdProto": lambda m: m.opset_import.add(domain="com.other", version=3),
    "GraphProto": lambda m: m.graph,
    "NodeProto": foo,
    "AttributeProto": attribute,
    "TensorProto": tensor,
    "TensorProto.Segment": lambda m: tensor(m).segment,
    "StringStringEntryProto": entry,
    "SparseTensorProto": sparse,
    "TypeProto": lambda m: value(m).type,
    "TypeProto.Tensor": lambda m: value(m).type.tensor_type,
    "TensorShapeProto": lambda m: value(m).type.tensor_type.shape,
    "TensorShapeProto.Dimension": lambda m: value(m).type.tensor_type.shape.dim[0],
    "TypeProto.Sequence": lambda m: extra(m).sequence_type,
    "TypeProto.Map": lambda m: extra(m).map_type,
    "TypeProto.Optional": lambda m: extra(m).optional_type,
    "TypeProto.SparseTensor": lambda m: extra(m).sparse_tensor_type,
    "TypeProto.Opaque": lambda m: extra(m).opaque_type,
    "NodeDeviceConfigurationProto": lambda m: foo(m).device_configurations.add(),
    "ShardingSpecProto": sharding,
    "IntIntListEntryProto": lambda m: sharding(m).index_to_device_group_map.add(),
    "ShardedDimProto": sharded,
    "SimpleShardedDimProto": lambda m: sharded(m).simple_sharding[0],
    "ValueInfoProto": value,
    "TensorAnnotation": lambda m: m.graph.quantization_annotation.add(tensor_name="kept"),
    "TrainingInfoProto": training,
    "FunctionProto": function,
    "DeviceConfigurationProto": lambda m: m.configuration.add(name="one", num_devices=1),
}
"""Where each message stands outside the region; it is made there if need be."""

TENSORS = {
    "float_data": (TensorProto.FLOAT, [1.0, 2.0]), "double_data": (TensorProto.DOUBLE, [1.0, 2.0]),
    "int32_data": (TensorProto.INT32, [1, 2]), "int64_data": (TensorProto.INT64, [1, 2]),
    "uint64_data": (TensorProto.UINT64, [1, 2]), "string_data": (TensorProto.STRING, [b"p", b"q"]),
}  # fmt: skip
"""Types that are stored in each field of data."""
ATTRIBUTES: dict[str, Any] = {
    "f": 1.5, "i": 3, "s": "text", "t": numpy_helper.from_array(np.arange(3.0), "t"),
    "g": helper.make_graph([], "inner", [], []), "floats": [1.0, 2.0], "ints": [1, 2],
    "strings": ["p", "q"], "tensors": [numpy_helper.from_array(np.arange(3.0), "t")] * 2,
    "graphs": [helper.make_graph([], "inner", [], [])] * 2,
    "tp": helper.make_tensor_type_proto(TensorProto.FLOAT, [1]),
    "type_protos": [helper.make_tensor_type_proto(TensorProto.FLOAT, [1])] * 2,
    "sparse_tensor": helper.make_sparse_tensor(
        helper.make_tensor("p", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("q", TensorProto.INT64, [1], [3]), [5],
    ),
}  # fmt: skip
ATTRIBUTES["sparse_tensors"] = [ATTRIBUTES["sparse_tensor"]] * 2


def in_tensor(field: str) -> Callable[[ModelProto], Message]:
    """A stored tensor whose values are kept in ``field``."""

    def build(of: ModelProto) -> Message:
        kind, values = TENSORS[field]
        tensor(of).CopyFrom(helper.make_tensor("kept", kind, [2], values))
        return tensor(of)

    return build


def external(of: ModelProto) -> Message:
    """A tensor in a file; in a function's body, for the file need not be there."""
    held = numpy_helper.from_array(np.float32([1, 2]), "out")
    onnx.external_data_helper.set_external_data(held, "data.bin", 0, 8)
    held.ClearField("raw_data")
    training(of).algorithm.initializer.append(held)
    return of.training_info[0].algorithm.initializer[0]


def linked(of: ModelProto) -> Message:
    """An attribute of a function's node that is the function's own."""
    body = function(of)
    body.attribute.append("slope")
    body.node.append(helper.make_node("LeakyRelu", ["q"], ["l"]))
    body.node[-1].attribute.add(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT)
    return body.node[-1].attribute[0]


SPECIAL: dict[tuple[str, str], Callable[[ModelProto], Message]] = {
    **{("TensorProto", field): in_tensor(field) for field in TENSORS},
    **{
        ("AttributeProto", field): lambda m, v=v: attribute(m, v) for field, v in ATTRIBUTES.items()
    },
    ("TensorProto", "external_data"): external,
    ("TensorProto", "data_location"): external,
    ("AttributeProto", "ref_attr_name"): linked,
}
"""Fields that only some values of other fields allow: each builder sets its own."""
GIVEN: dict[tuple[str, str], Any] = {
    ("ModelProto", "functions"): function,
    ("ModelProto", "training_info"): training,
    ("ModelProto", "configuration"): sharding,
    ("GraphProto", "node"): lambda m: m.graph.node.add().CopyFrom(
        helper.make_node("Bar", ["x"], ["bar"], domain="custom")),
    ("GraphProto", "initializer"): lambda m: m.graph.initializer.append(
        numpy_helper.from_array(np.ones(3), "never_read")),
    ("GraphProto", "sparse_initializer"): sparse,
    ("GraphProto", "input"): lambda m: m.graph.input.append(
        helper.make_tensor_value_info("unread", TensorProto.FLOAT, ["M"])),
    ("GraphProto", "output"): lambda m: m.graph.output.append(
        helper.make_tensor_value_info("r", TensorProto.FLOAT, None)),
    ("NodeProto", "output"): lambda m: foo(m).output.append("more"),
    ("NodeProto", "input"): lambda m: foo(m).input.extend(["", "x"]),
    ("NodeProto", "attribute"): attribute,
    ("NodeProto", "device_configurations"): sharding,
    ("FunctionProto", "node"): function,
    ("SparseTensorProto", "values"): sparse,
    ("SparseTensorProto", "indices"): sparse,
    ("ShardingSpecProto", "sharded_dim"): sharded,
    ("FunctionProto", "attribute"): linked,
    ("FunctionProto", "opset_import"): function,
    ("FunctionProto", "attribute_proto"): lambda m: function(m).attribute_proto.append(
        helper.make_attribute("slope", 0.5)),
}  # fmt: skip
"""Fields of messages that must mean something: set by hand, in the place of the message."""


def scalar(field: Any) -> Any:
    """A value of a field's type that is not its default."""
    if field.type == field.TYPE_STRING:
        return f"some {field.name}"
    if field.type == field.TYPE_BYTES:
        return np.arange(4, dtype=np.float32).tobytes()
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return 1.5
    if field.type == field.TYPE_ENUM:
        return field.enum_type.values[1].number
    return 4


def fill(message: Message, depth: int = 0) -> None:
    """Set every field that a message has."""
    for field in message.DESCRIPTOR.fields:
        if (
            field.containing_oneof is None
            or message.WhichOneof(field.containing_oneof.name) is None
        ):
            put(message, field, depth)


def put(message: Message, field: Any, depth: int = 0) -> None:
    """Set one field; repeated ones get two entries, messages those that they need."""
    if field.message_type is None:
        if field.is_repeated:
            getattr(message, field.name).extend([scalar(field)] * 2)
        else:
            setattr(message, field.name, scalar(field))
    elif depth < 7:
        inner = getattr(message, field.name)
        if field.is_repeated:
            inner = inner.add()
        inner.SetInParent()
        fill(inner, depth + (3 if field.message_type.full_name == "onnx.GraphProto" else 1))


def short(kind: Any) -> str:
    return kind.full_name.removeprefix("onnx.")


FIELDS = [(short(kind), field.name) for kind in TYPES.values() for field in kind.fields]


def is_set(message: Message, name: str) -> bool:
    return name in {field.name for field, _ in message.ListFields()}


def walked(message: Message) -> Iterator[Message]:
    yield message
    for field, held in message.ListFields():
        if field.message_type is not None:
            for inner in held if field.is_repeated else (held,):
                yield from walked(inner)


def stuffed() -> ModelProto:
    """A model with all fields of all messages, where nobody asks whether they make sense."""
    built = based()
    fill(built.training_info.add(), -2)
    fill(built.graph.metadata_props.add())
    fill(built.configuration.add())
    return built
