"""Surgery: what a region does not own stays as it was, proto by proto and in order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx_text import bn, fuse, integers, model, norm, ops

import onnxfuse

UNKNOWN = b"\xba\x3e\x06future"  # field 999, a string: nothing that onnx knows


def furnished() -> onnx.ModelProto:
    """One fusible region (c, y) in a model that uses every corner of the format."""
    built = model(
        f"""(float[N,4,8,8] x, float[1] gate) => (float[] y, float[] z, float[] branch)
        <float[N,4,8,8] c, float[N,4,8,8] r, float[N,4,8,8] elsewhere> {{
            r = Relu(x)
            c = Conv<pads = [1,1,1,1]>(r, w, b)
            z = local.Twice(r)
            {bn("y", "c", "n")}
            k = custom.Foo(x, shared, n_s)
            {bn("q", "k", "n")}
            branch = Neg(k)
        }}""",
        w=(4, 4, 3, 3), b=(4,), shared=(4,), never_read=(2, 2),
        **norm("n", 4),
    )  # fmt: skip
    built.opset_import.append(helper.make_opsetid("local", 1))
    built.opset_import.append(helper.make_opsetid("com.unused", 7))
    built.functions.append(
        helper.make_function(
            "local", "Twice", ["a"], ["t"], [helper.make_node("Add", ["a", "a"], ["t"])],
            [helper.make_opsetid("", 17)],
        )
    )  # fmt: skip
    built.producer_name, built.model_version, built.doc_string = "maker", 12, "a model"
    built.domain = "org.example"
    helper.set_model_props(built, {"author": "someone", "stride": "32"})
    graph = built.graph
    graph.doc_string = "a graph"
    entry = graph.metadata_props.add()
    entry.key, entry.value = "source", "script"
    for index, node in enumerate(graph.node):
        node.doc_string = f"line {index}"
        entry = node.metadata_props.add()
        entry.key, entry.value = "scope", f"module {index}"
    for name in ("c", "w", "r", "shared"):
        annotation = graph.quantization_annotation.add()
        annotation.tensor_name = name
        entry = annotation.quant_parameter_tensor_names.add()
        entry.key, entry.value = "SCALE_TENSOR", "shared"
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("sparse", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("places", TensorProto.INT64, [1], [3]),
        [5],
    )
    graph.sparse_initializer.append(sparse)
    graph.input[0].doc_string = "an image"
    return built


def without(protos: Iterator[Message], *names: str) -> list[Message]:
    """Protos whose name is not among ``names``."""
    return [proto for proto in protos if (proto.name or proto.output[0]) not in names]


def fused_pair() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    original = furnished()
    fused, report = onnxfuse.fuse(original, verify=False)
    assert [region.root for region in report.regions] == ["y"]
    return original, fused


def test_everything_around_a_region_stays():
    original, fused = fused_pair()
    old, new = original.graph, fused.graph
    for field in ("input", "output", "sparse_initializer", "metadata_props"):
        assert list(getattr(old, field)) == list(getattr(new, field)), field
    assert (old.name, old.doc_string) == (new.name, new.doc_string)
    bare, bare_new = onnx.ModelProto(), onnx.ModelProto()
    bare.CopyFrom(original)
    bare_new.CopyFrom(fused)
    bare.ClearField("graph")
    bare_new.ClearField("graph")
    assert bare == bare_new


def test_nodes_stay_in_order_and_the_new_one_stands_where_the_root_stood():
    original, fused = fused_pair()
    assert ops(original) == ["Relu", "Conv", "Twice", "BatchNormalization", "Foo",
                             "BatchNormalization", "Neg"]  # fmt: skip
    assert ops(fused) == ["Relu", "Twice", "Conv", "Foo", "BatchNormalization", "Neg"]
    assert without(original.graph.node, "c", "y") == without(fused.graph.node, "y_fused")
    new = fused.graph.node[2]
    assert list(new.output) == ["y"]
    assert [entry.key for entry in new.metadata_props] == ["onnxfuse"]
    assert new.metadata_props[0].value.endswith("BN∘Conv3×3")


def test_initializers_that_the_region_alone_used_go_and_others_stay():
    original, fused = fused_pair()
    new = ("y_fused_weight", "y_fused_bias")
    assert without(original.graph.initializer, "w", "b") == without(fused.graph.initializer, *new)
    assert [tensor.name for tensor in fused.graph.initializer][-2:] == list(new)
    assert "never_read" in {tensor.name for tensor in fused.graph.initializer}


def test_only_the_interior_loses_its_value_info_and_annotations():
    original, fused = fused_pair()
    assert without(original.graph.value_info, "c") == list(fused.graph.value_info)
    kept = [a for a in original.graph.quantization_annotation if a.tensor_name not in ("c", "w")]
    assert kept == list(fused.graph.quantization_annotation)


def test_the_given_model_is_not_changed():
    original = furnished()
    before = original.SerializeToString(deterministic=True)
    onnxfuse.fuse(original, verify=False)
    onnxfuse.plan(original)
    assert original.SerializeToString(deterministic=True) == before


def test_nothing_fuses_and_the_model_comes_back_equal():
    original = furnished()
    kept, report = onnxfuse.fuse(original, without=["y"])
    assert not report.changed
    assert kept is not original
    assert kept.SerializeToString(deterministic=True) == original.SerializeToString(
        deterministic=True
    )


def with_unknown_fields(original: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a field from the future in the model, the graph, nodes and tensors."""
    changed = onnx.ModelProto()
    changed.CopyFrom(original)
    for proto in (
        *changed.graph.node, *changed.graph.initializer, *changed.graph.input,
        changed.graph, changed,
    ):  # fmt: skip
        proto.MergeFromString(UNKNOWN)
    assert changed.SerializeToString().count(UNKNOWN) > 10
    return changed


def test_fields_of_the_future_stay():
    original = with_unknown_fields(furnished())
    fused, report = onnxfuse.fuse(original, verify=False)
    assert report.changed
    gone = 4  # two nodes and two initializers
    expected = original.SerializeToString().count(UNKNOWN) - gone
    assert fused.SerializeToString().count(UNKNOWN) == expected
    for old in without(original.graph.node, "c", "y"):
        assert old.SerializeToString() in [n.SerializeToString() for n in fused.graph.node]


def test_new_names_collide_with_nothing():
    text = f"""(float[1,4,8,8] x) => (float[] y, float[] y_fused, float[] y_fused_2) {{
        c = Conv(x, w) {bn("y", "c", "n")}
        y_fused = Neg(x) y_fused_2 = Abs(y_fused_weight) }}"""
    built = model(text, w=(4, 4, 3, 3), y_fused_weight=(4,), y_fused_bias=(4,), **norm("n", 4))
    fused, _ = fuse(built)
    names = [tensor.name for tensor in fused.graph.initializer]
    assert len(set(names)) == len(names)
    assert "y_fused_weight_2" in names
    nodes = [node.name for node in fused.graph.node]
    assert len(set(nodes)) == len(nodes)


def test_names_inside_subgraphs_are_taken():
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] y, float[] u) {{
            c = Conv(x, w) {bn("y", "c", "n")}
            u = If (choose) <
                then_branch = g1 () => (float[] y_fused) {{ y_fused = Abs(x) }},
                else_branch = g2 () => (float[] s) {{ y_fused_weight = Neg(x)
                                                     s = Abs(y_fused_weight) }}> }}""",
        w=(4, 4, 3, 3), **norm("n", 4),
    )  # fmt: skip
    fused, report = onnxfuse.fuse(built)
    assert report.verification.status == "passed"
    assert {tensor.name for tensor in fused.graph.initializer} == {
        "y_fused_weight_2", "y_fused_bias"
    }  # fmt: skip


@pytest.mark.parametrize("captured", ["c", "w", "y"])
def test_what_a_subgraph_reads_stays(captured):
    """A captured interior tensor keeps its producer; a captured weight is no second one's price."""
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] y, float[] u) {{
            c = Conv(x, w) {bn("y", "c", "n")}
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{ s = Abs({captured}) }},
                else_branch = g2 () => (float[] t) {{ t = Neg({captured}) }}> }}""",
        w=(4, 4, 3, 3), **norm("n", 4),
    )  # fmt: skip
    fused, report = onnxfuse.fuse(built)
    assert ops(fused) == (
        ["Conv", "If"] if captured == "y" else ["Conv", "BatchNormalization", "If"]
    )
    assert report.changed == (captured == "y")
    assert ("w" in {tensor.name for tensor in fused.graph.initializer}) == (captured != "y")
    codes = {"c": ["reader-outside"], "w": ["shared-kernel"], "y": []}
    assert [refusal.code.value for refusal in report.refusals] == codes[captured]


def test_nodes_may_stand_in_any_order_and_need_no_names():
    built = model(
        f"(float[1,4,8,8] x) => (float[] y) {{ c = Conv(x, w) r = Relu(c) {bn('y', 'r', 'n')} }}",
        w=(4, 4, 3, 3), **norm("n", 4),
    )  # fmt: skip
    extra = [
        helper.make_node("Mul", ["x", "two"], ["m"]),
        helper.make_node("Conv", ["m", "w"], ["h"]),
        helper.make_node("Abs", ["h"], ["out"]),
    ]
    built.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
    built.graph.node.extend(reversed(extra))
    built.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, None))
    fused, report = onnxfuse.fuse(built, verify=False)
    assert not report.changed  # the kernel is shared with another convolution
    built.graph.node[4].input[1] = "own"
    built.graph.initializer.append(numpy_helper.from_array(integers("own", 4, 4, 3, 3), "own"))
    fused, report = onnxfuse.fuse(built, verify=False)
    assert ops(fused) == ["Conv", "Relu", "BatchNormalization", "Abs", "Conv"]
    assert [region.node for region in report.regions] == ["h"]


def test_twins_without_names_are_told_apart():
    """Two equal nodes, one inside a region, one outside."""
    built = model(
        f"""(float[1,4,8,8] x) => (float[] y, float[] u) {{
            c = Conv(x, w) {bn("y", "c", "n")} d = Conv(x, v) u = Relu(d) }}""",
        w=(4, 4, 3, 3), v=integers("w", 4, 4, 3, 3), **norm("n", 4),
    )  # fmt: skip
    for node in built.graph.node:
        node.name = ""
    fused, _ = fuse(built)
    assert ops(fused) == ["Conv", "Conv", "Relu"]
    assert [list(node.output) for node in fused.graph.node] == [["y"], ["d"], ["u"]]


def test_a_pad_shared_with_another_reader_stays():
    built = model(
        f"""(float[1,4,8,8] x) => (float[] y, float[] u) {{
            p = Pad(x, by) c = Conv(p, w) {bn("y", "c", "n")} u = Relu(p) }}""",
        w=(4, 4, 3, 3), by=np.array([0, 0, 1, 1, 0, 0, 1, 1]), **norm("n", 4),
    )  # fmt: skip
    fused, _ = fuse(built)
    assert ops(fused).count("Pad") == 1
    assert "by" in {tensor.name for tensor in fused.graph.initializer}


def test_types_of_attributes_that_nobody_reads_are_kept():
    """Graphs, types and lists of tensors in attributes outside any region."""
    built = furnished()
    node = next(n for n in built.graph.node if n.op_type == "Foo")
    node.attribute.append(helper.make_attribute("names", ["a", "b"]))
    node.attribute.append(
        helper.make_attribute("kind", helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    )
    tensors = [numpy_helper.from_array(np.arange(3.0), "t")] * 2
    node.attribute.append(helper.make_attribute("tensors", tensors))
    empty = node.attribute.add()
    empty.name, empty.type = "empty", AttributeProto.INTS
    fused, report = onnxfuse.fuse(built, verify=False)
    assert report.changed
    assert node in list(fused.graph.node)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_new_weights_have_the_type_of_the_model(kind):
    name = {np.float16: "float16", np.float32: "float", np.float64: "double"}[kind]
    tensors = {key: value.astype(kind) for key, value in norm("n", 4).items()}
    built = model(
        f"({name}[1,4,8,8] x) => ({name}[] y) {{ c = Conv(x, w) {bn('y', 'c', 'n')} }}",
        w=integers("w", 4, 4, 3, 3).astype(kind), **tensors,
    )  # fmt: skip
    fused, report = onnxfuse.fuse(built, verify=False)
    assert report.changed
    assert {numpy_helper.to_array(t).dtype for t in fused.graph.initializer} == {np.dtype(kind)}


def test_names_of_sparse_tensors_are_taken():
    built = model(
        f"(float[1,4,8,8] x) => (float[] y) {{ c = Conv(x, w) {bn('y', 'c', 'n')} }}",
        w=(4, 4, 3, 3), **norm("n", 4),
    )  # fmt: skip
    values = helper.make_tensor("y_fused_weight", TensorProto.FLOAT, [1], [2.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [3])
    built.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [5]))
    fused, report = onnxfuse.fuse(built, verify=False)
    assert report.changed
    assert "y_fused_weight" not in {tensor.name for tensor in fused.graph.initializer}
