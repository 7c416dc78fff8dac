"""Nothing is lost: each field of the format, set outside a region, is there when it is fused.

The fields are not listed here; they are read from onnx itself. A message that a later onnx adds
has no place in `PLACES` and fails, as does a field that nobody manages to set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from every_field import (
    FIELDS,
    GIVEN,
    PLACES,
    SPECIAL,
    TYPES,
    UNKNOWN,
    attribute,
    based,
    fill,
    foo,
    function,
    is_set,
    put,
    short,
    stuffed,
    tensor,
    training,
    walked,
)  # fmt: skip
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_text import model, ops

import onnxfuse
from onnxfuse.version import __version__

REGION = {"a", "b", "s", "y"}
WEIGHTS = {"w", "v", "k", "n_s", "n_b", "n_m", "n_v"}


def rest(of: ModelProto) -> bytes:
    """A model without what the region owns, or what stands for it, as bytes."""
    bare = ModelProto()
    bare.CopyFrom(of)
    graph = bare.graph
    nodes = [n for n in graph.node if not REGION & set(n.output)]
    tensors = [t for t in graph.initializer if t.name not in WEIGHTS and "_fused_" not in t.name]
    infos = [v for v in graph.value_info if v.name not in REGION - {"y"} | WEIGHTS]
    notes = [
        q for q in graph.quantization_annotation if q.tensor_name not in REGION - {"y"} | WEIGHTS
    ]
    for field, kept in (("node", nodes), ("initializer", tensors), ("value_info", infos),
                        ("quantization_annotation", notes)):  # fmt: skip
        copies = [type(one).FromString(one.SerializeToString()) for one in kept]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)
    return bare.SerializeToString(deterministic=True)


def assert_lossless(original: ModelProto) -> ModelProto:
    """Fuse; all but the region must be equal. Reading the result back must change nothing."""
    before = original.SerializeToString()
    fused, report = onnxfuse.fuse(original, verify=False)
    assert [region.root for region in report.regions] == ["y"]
    assert original.SerializeToString() == before
    assert rest(fused) == rest(original)
    assert [n.op_type for n in fused.graph.node if "y" in n.output] == ["Conv"]
    again = ModelProto.FromString(fused.SerializeToString())
    assert rest(again) == rest(original)
    return fused


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=".".join)
def test_every_field_of_the_format_stays(kind: str, name: str) -> None:
    built = based()
    field = TYPES[f"onnx.{kind}"].fields_by_name[name]
    assert kind in PLACES, f"{kind} is new in onnx {onnx.__version__}: give it a place"
    if (kind, name) in GIVEN:
        GIVEN[kind, name](built)
    elif (kind, name) in SPECIAL:
        assert is_set(SPECIAL[kind, name](built), name)
    else:
        place = PLACES[kind](built)
        if not is_set(place, name):
            if field.containing_oneof is not None:
                place.ClearField(field.containing_oneof.name)
            put(place, field)
        assert is_set(place, name)
    data = built.SerializeToString()
    assert any(is_set(m, name) for m in walked(built) if short(m.DESCRIPTOR) == kind)
    assert_lossless(built)
    assert built.SerializeToString() == data


def test_all_fields_at_once_stay() -> None:
    built = stuffed()
    found = {(short(m.DESCRIPTOR), f.name) for m in walked(built) for f, _ in m.ListFields()}
    assert len(found) > 0.7 * len(FIELDS)
    assert_lossless(built)


@pytest.mark.parametrize("kind", PLACES)
def test_fields_that_this_version_does_not_know_stay(kind: str) -> None:
    built = based()
    PLACES[kind](built).MergeFromString(UNKNOWN)
    assert built.SerializeToString().count(UNKNOWN) == 1
    assert assert_lossless(built).SerializeToString().count(UNKNOWN) == 1


BITS = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64,
    "BOOL": 8, "FLOAT16": 16, "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64,
    "COMPLEX128": 128, "BFLOAT16": 16, "FLOAT8E4M3FN": 8, "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8,
    "FLOAT8E5M2FNUZ": 8, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "FLOAT8E8M0": 8, "UINT2": 2,
    "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6,
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in TensorProto.DataType.keys() if n != "UNDEFINED"])  # noqa: SIM118
def test_tensors_of_every_type_stay(name: str) -> None:
    built = based()
    kind = TensorProto.DataType.Value(name)
    if name == "STRING":
        tensor(built).CopyFrom(helper.make_tensor("kept", kind, [2], [b"\xff", b""]))
    else:
        assert name in BITS, f"{name} is new in onnx {onnx.__version__}"
        data = bytes(range(1, 1 + (5 * BITS[name] + 7) // 8))
        tensor(built).CopyFrom(TensorProto(name="kept", dims=[5], data_type=kind, raw_data=data))
    copy = TensorProto()
    copy.CopyFrom(tensor(built))
    attribute(built, copy)
    built.graph.value_info.append(helper.make_tensor_value_info("typed", kind, [5]))
    fused = assert_lossless(built)
    assert tensor(fused) == copy


def test_functions_with_overloads_stay_apart() -> None:
    built = based()
    for overload, op_type in (("", "Add"), ("two", "Mul")):
        function(built).overload = overload
        built.functions[-1].node[0].op_type = op_type
        call = built.graph.node.add()
        call.CopyFrom(helper.make_node("Twice", ["x"], [f"t_{op_type}"], domain="local"))
        call.overload = overload
    assert_lossless(built)


def test_what_another_part_of_the_file_names_stays() -> None:
    """Initializers that nodes of the region alone read, but bindings or annotations name."""
    built = based()
    info = training(built)
    for binding, name in ((info.update_binding, "n_m"), (info.initialization_binding, "n_v")):
        bound = binding.add()
        bound.key, bound.value = name, "kept_new"
    note = built.graph.quantization_annotation.add(tensor_name="r")
    param = note.quant_parameter_tensor_names.add()
    param.key, param.value = "SCALE_TENSOR", "n_s"
    fused, report = onnxfuse.fuse(built, verify=False)
    assert report.changed
    left = {tensor.name for tensor in fused.graph.initializer}
    assert {"n_m", "n_v", "n_s"} <= left
    assert "n_b" not in left


def test_what_is_said_of_weights_goes_with_them() -> None:
    built = based()
    for name in ("w", "kept"):
        built.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    fused, _ = onnxfuse.fuse(built, verify=False)
    assert [v.name for v in fused.graph.value_info] == ["r", "kept"]


TAKEN = ("y_fused", "y_fused_2", "y_fused_weight", "y_fused_bias", "y_fused_bias_2")


def in_value_info(of: ModelProto, name: str) -> None:
    of.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))


def in_annotation(of: ModelProto, name: str) -> None:
    of.graph.quantization_annotation.add(tensor_name=name)


def in_training(of: ModelProto, name: str) -> None:
    training(of).algorithm.node[0].output[0] = name


def in_subgraph(of: ModelProto, name: str) -> None:
    inner = helper.make_graph([helper.make_node("Neg", ["x"], [name])], "g", [], [])
    inner.value_info.append(helper.make_tensor_value_info(f"{name}_2", TensorProto.FLOAT, [1]))
    attribute(of, inner, name)


def in_nodes(of: ModelProto, name: str) -> None:
    of.graph.node.append(helper.make_node("Neg", ["x"], [f"of {name}"], name))


def in_outputs(of: ModelProto, name: str) -> None:
    of.graph.node.append(helper.make_node("Neg", ["x"], [name]))


def in_inputs(of: ModelProto, name: str) -> None:
    of.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))


def in_initializers(of: ModelProto, name: str) -> None:
    of.graph.initializer.append(numpy_helper.from_array(np.ones(1), name))


@pytest.mark.parametrize(
    "take",
    [in_value_info, in_annotation, in_training, in_subgraph, in_nodes, in_outputs, in_inputs,
     in_initializers],
)  # fmt: skip
def test_new_names_collide_with_nothing(take: Callable[[ModelProto, str], None]) -> None:
    built = based()
    for name in TAKEN:
        take(built, name)
    fused, report = onnxfuse.fuse(built, verify=False)
    assert report.changed
    had = {t.name for t in built.graph.initializer} | {n.name for n in built.graph.node}
    new = [t.name for t in fused.graph.initializer if t.name not in had]
    new += [n.name for n in fused.graph.node if n.name not in had]
    assert len(set(new)) == 3
    assert not set(new) & set(strings(built))
    assert data_without_region(built) == data_without_region(fused, new)


def strings(of: ModelProto) -> Iterator[str]:
    """Every text in a model."""
    for message in walked(of):
        for field, held in message.ListFields():
            if field.type == field.TYPE_STRING:
                yield from held if field.is_repeated else (held,)


def data_without_region(of: ModelProto, new: list[str] | None = None) -> list[bytes]:
    held = [*of.graph.node, *of.graph.initializer]
    return [
        one.SerializeToString()
        for one in held
        if one.name not in {*WEIGHTS, *(new or [])}
        and not (isinstance(one, NodeProto) and REGION & set(one.output))
    ]


@pytest.mark.parametrize("name", ["", "same"])
def test_names_that_tell_no_nodes_apart(name: str) -> None:
    built = based()
    for node in built.graph.node:
        node.name = name
    fused = assert_lossless(built)
    assert ops(fused) == ["Relu", "Foo", "Conv", "Neg"]


def test_shared_initializers_are_not_edited() -> None:
    built = based()
    foo(built).input.extend(["n_s", "v"])
    before = {t.name: t.SerializeToString() for t in built.graph.initializer}
    fused, report = onnxfuse.fuse(built, verify=False)
    assert report.changed
    after = {t.name: t.SerializeToString() for t in fused.graph.initializer}
    assert {name: after[name] for name in ("n_s", "v", "kept")} == {
        name: before[name] for name in ("n_s", "v", "kept")
    }
    assert not {"w", "k", "n_b", "n_m", "n_v"} & after.keys()


def test_nodes_out_of_order_keep_theirs() -> None:
    """The checker rejects it and runtimes take it; the new node stands where the root stood."""
    built = based()
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in built.graph.node]
    del built.graph.node[:]
    built.graph.node.extend(reversed(nodes))
    assert ops(assert_lossless(built)) == ["Neg", "Conv", "Foo", "Relu"]


def test_every_new_node_says_what_it_was_and_no_other_does() -> None:
    fused = assert_lossless(based())
    notes = {
        node.op_type: [(entry.key, entry.value) for entry in node.metadata_props]
        for node in fused.graph.node
    }
    assert notes.pop("Conv") == [("onnxfuse", f"{__version__}: BN∘Conv3×3 + BN∘Conv1×1")]
    assert set(map(len, notes.values())) == {0}


FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.mark.parametrize(
    "name",
    ["pytorch/dbb_k3_s1.dynamo-dyn", "pytorch/repvgg_a0.ts", "field/deconv_nested.dynamo"],
)
def test_every_node_that_an_export_did_not_have_says_so(name: str) -> None:
    original = onnx.load(FIXTURES / f"{name}.onnx")
    fused, report = onnxfuse.fuse(original, verify=False)
    assert report.changed
    had = [node.SerializeToString() for node in original.graph.node]
    for node in fused.graph.node:
        noted = [e.value for e in node.metadata_props if e.key == "onnxfuse"]
        assert len(noted) == (node.SerializeToString() not in had), node.name
        assert all(text.startswith(f"{__version__}: ") for text in noted)


def channels_last() -> ModelProto:
    """Two convolutions of NHWC exports, each wrapped in Transposes, which go."""
    return model(
        """(float[1,8,8,4] x) => (float[] y, float[] side)
        <float[1,8,8,4] m, float[1,8,8,4] q> {
            p = Transpose<perm = [0,3,1,2]>(x)
            c = Conv<pads = [1,1,1,1]>(p, w)
            t = Transpose<perm = [0,2,3,1]>(c)
            m = Relu(t)
            q = Mul(m, twice)
            u = Transpose<perm = [0,3,1,2]>(q)
            d = Conv<pads = [1,1,1,1]>(u, k)
            y = Transpose<perm = [0,2,3,1]>(d)
            side = Neg(x)
        }""",
        w=(4, 4, 3, 3), k=(4, 4, 3, 3), twice=(4,),
    )  # fmt: skip


def test_moving_a_layout_loses_nothing_of_the_nodes_that_move() -> None:
    built = channels_last()
    for index, node in enumerate(built.graph.node):
        node.doc_string = f"line {index}"
        entry = node.metadata_props.add()
        entry.key, entry.value = "scope", f"module {index}"
        node.MergeFromString(UNKNOWN)
    fused, report = onnxfuse.fuse(built)
    assert report.changed
    kept = {node.name: node for node in fused.graph.node}
    for node in built.graph.node:
        if node.op_type in ("Relu", "Neg"):
            new = kept[node.name]
            assert new.doc_string == node.doc_string
            assert list(new.metadata_props)[:1] == list(node.metadata_props)
            assert new.SerializeToString().count(UNKNOWN) == 1
    made = {out for node in fused.graph.node for out in node.output}
    inferred = onnx.shape_inference.infer_shapes(bare_of_infos(fused), strict_mode=True)
    shapes = {v.name: v.type for v in inferred.graph.value_info}
    for info in fused.graph.value_info:
        assert info.name in made
        assert shapes[info.name] == info.type


def bare_of_infos(of: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(of)
    del copy.graph.value_info[:]
    return copy


def inner_graph(of: ModelProto, read: str) -> GraphProto:
    """A graph in an attribute, with everything that a graph can hold."""
    inner = helper.make_graph(
        [helper.make_node("Neg", [read], ["n"], doc_string="a capture")], "inner", [],
        [helper.make_tensor_value_info("n", TensorProto.FLOAT, None)], doc_string="inside",
    )  # fmt: skip
    inner.initializer.append(numpy_helper.from_array(np.ones(2), "inside"))
    fill(inner.metadata_props.add())
    return inner


def test_graphs_within_attributes_and_functions_stay() -> None:
    built = based()
    inner = inner_graph(built, "r")
    attribute(built, inner)
    body = function(built)
    body.node.append(helper.make_node("Own", ["q"], ["p"], domain="custom"))
    body.opset_import.append(helper.make_opsetid("custom", 1))
    body.node[-1].attribute.append(helper.make_attribute("body", inner_graph(built, "q")))
    fused = assert_lossless(built)
    assert foo(fused).attribute[0].g == inner
