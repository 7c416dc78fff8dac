"""The library: what `fuse` and `plan` accept, give back, and leave alone."""

from __future__ import annotations

import dataclasses
import gc
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxfuse
from onnxfuse.model.tensors import dtype_of

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
REPVGG = FIXTURES / "repvgg_s1_g1.ts.onnx"


def branches(kind: int = TensorProto.FLOAT, gain: float = 1.0) -> onnx.ModelProto:
    """Two parallel convolutions and a sum, in any floating-point type."""
    generator = np.random.default_rng(3)
    dtype = dtype_of(kind)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(
            (gain * generator.standard_normal(shape)).astype(dtype), name
        )

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w3", "b3"], ["a"], name="three", pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["x", "w1"], ["b"], name="one"),
            helper.make_node("Add", ["a", "b"], ["s"], name="sum"),
            helper.make_node("Relu", ["s"], ["y"], name="relu"),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 4, 9, 7])],
        [helper.make_tensor_value_info("y", kind, [1, 6, 9, 7])],
        [weight("w3", 6, 4, 3, 3), weight("b3", 6), weight("w1", 6, 4, 1, 1)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def test_a_path_a_proto_and_a_gs_graph_give_the_same_model() -> None:
    from_path, report = onnxfuse.fuse(REPVGG)
    from_text, _ = onnxfuse.fuse(str(REPVGG))
    from_proto, _ = onnxfuse.fuse(onnx.load(REPVGG))
    from_graph, graph_report = onnxfuse.fuse(gs.import_onnx(onnx.load(REPVGG)))
    assert from_path == from_text == from_proto
    assert isinstance(from_graph, gs.Graph)
    assert [node.op for node in from_graph.nodes] == ["Conv", "Relu"]
    assert [r.root for r in graph_report.regions] == [r.root for r in report.regions]


def test_the_input_is_never_changed() -> None:
    model = onnx.load(REPVGG)
    before = model.SerializeToString()
    onnxfuse.fuse(model)
    onnxfuse.plan(model)
    assert model.SerializeToString() == before
    graph = gs.import_onnx(model)
    nodes = len(graph.nodes)
    onnxfuse.fuse(graph)
    assert len(graph.nodes) == nodes


def test_anything_else_is_refused() -> None:
    with pytest.raises(onnxfuse.InputError, match="not a model"):
        onnxfuse.fuse(3)


def test_numpy_warns_as_before() -> None:
    """NumPy 1 and 2 keep that in different ways."""
    with np.errstate(divide="raise", over="warn", under="ignore", invalid="print"):
        before = np.geterr()
        onnxfuse.fuse(REPVGG)
        onnxfuse.plan(REPVGG)
        assert np.geterr() == before


def test_the_report_is_frozen_printable_and_plain() -> None:
    _, report = onnxfuse.fuse(REPVGG)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.planned = True
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["changed"] is True
    assert plain["after"]["conv"] == 1
    assert plain["regions"][0]["error"]["ratio"] == report.regions[0].error.ratio
    assert "/0/Add_1" in str(report)
    assert "would be fused" in str(onnxfuse.plan(REPVGG))


def test_planning_reads_no_kernel(tmp_path: Path) -> None:
    """With the kernels' data file emptied, the plan is the same; fusing is an error."""
    path = tmp_path / "m.onnx"
    onnx.save(
        onnx.load(REPVGG), path, save_as_external_data=True, location="m.data", size_threshold=128
    )
    expected = onnxfuse.plan(path)
    data = tmp_path / "m.data"
    data.write_bytes(b"")
    planned = onnxfuse.plan(path)
    assert planned.regions == expected.regions
    with pytest.raises(onnxfuse.InputError, match="too short"):
        onnxfuse.fuse(path)


@pytest.mark.parametrize(
    "kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE]
)
def test_every_floating_point_type_fuses_in_its_own_type(kind: int) -> None:
    fused, report = onnxfuse.fuse(branches(kind))
    assert [node.op_type for node in fused.graph.node] == ["Conv", "Relu"]
    assert {tensor.data_type for tensor in fused.graph.initializer} == {kind}
    assert report.verification.status in ("passed", "not-run")
    (region,) = report.regions
    assert region.error.exact <= region.error.bound


def test_weights_that_would_overflow_are_left_alone() -> None:
    model = branches(TensorProto.FLOAT16)
    for tensor in model.graph.initializer:
        if tensor.name != "b3":
            array = np.full(tuple(tensor.dims), 6e4, np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    fused, report = onnxfuse.fuse(model)
    assert fused == model
    assert [str(r.code) for r in report.refusals] == ["overflow"]


def test_output_is_deterministic() -> None:
    first, _ = onnxfuse.fuse(FIXTURES / "repvgg_a0.ts.onnx", verify=False)
    second, _ = onnxfuse.fuse(FIXTURES / "repvgg_a0.ts.onnx", verify=False)
    assert first.SerializeToString() == second.SerializeToString()


def test_sizes_given_for_dynamic_inputs_are_used_for_counting() -> None:
    path = FIXTURES / "repvgg_s1_g1.dynamo-dyn.onnx"
    small = onnxfuse.plan(path, input_shapes={"input": (1, 8, 16, 16)})
    large = onnxfuse.plan(path, input_shapes={"input": (1, 8, 32, 32)})
    assert large.before.macs == 4 * small.before.macs
    assert onnxfuse.plan(path).assumed == {"input": (1, 8, 224, 224)}


@pytest.mark.parametrize("searching", [True, False])
def test_the_search_for_cycles_is_left_as_it_was(searching: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if searching else gc.disable)()
        onnxfuse.plan(REPVGG)
        assert gc.isenabled() == searching
        with pytest.raises(onnxfuse.InputError):
            onnxfuse.fuse(FIXTURES / "none.onnx")
        assert gc.isenabled() == searching
    finally:
        (gc.enable if was else gc.disable)()
