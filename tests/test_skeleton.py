"""What shape inference and the checker are given: the structure of a model, without its weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_text
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxfuse.errors import InputError
from onnxfuse.model import shapes, walk
from onnxfuse.model.graph import Graph

LARGE = (64, 64)


def tensor(name: str) -> TensorProto:
    return numpy_helper.from_array(np.ones(LARGE, np.float32), name)


def external(name: str, *dims: int) -> TensorProto:
    found = TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT)
    found.data_location = TensorProto.EXTERNAL
    found.external_data.add(key="location", value="w.data")
    return found


def model(weight: TensorProto, *, literal: bool) -> ModelProto:
    """A MatMul by ``weight`` in both branches of an If, and one in a function."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", weight.name], ["z"])]
    if literal:
        nodes.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))
    body = helper.make_graph(nodes, "body", [], [value("z", 1, None)], [] if literal else [weight])
    function = helper.make_function(
        "own", "f", ["x"], ["z"],
        [helper.make_node("Constant", [], ["w"], value=weight),
         helper.make_node("MatMul", ["x", "w"], ["z"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("If", ["on"], ["a"], then_branch=body, else_branch=body),
            helper.make_node("f", ["a"], ["y"], domain="own"),
        ],
        "g",
        [value("x", 1, [3, 64]), value("on", TensorProto.BOOL, [])],
        [value("y", 1, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)


@pytest.mark.parametrize("literal", [False, True])
def test_large_tensors_below_the_main_graph_are_left_out(literal, monkeypatch):
    seen: list[ModelProto] = []
    infer = onnx.shape_inference.infer_shapes

    def watched(given: ModelProto, **more: bool) -> ModelProto:
        seen.append(given)
        return infer(given, **more)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", watched)
    found = shapes.infer(Graph(model(tensor("w"), literal=literal)), {})
    assert found.certain["a"] == (3, 64)
    assert found.certain["y"] == (3, 64)
    held = [t for given in seen for t in walk.stored(given)]
    assert len(held) >= 3
    assert not any(t.raw_data for t in held)


def test_the_given_model_keeps_them():
    given = model(tensor("w"), literal=False)
    before = given.SerializeToString(deterministic=True)
    shapes.infer(Graph(given), {})
    shapes.check(Graph(given))
    assert given.SerializeToString(deterministic=True) == before


def test_the_checker_sees_no_data_of_any_size():
    """Zeros of a size that a file says would fill the memory."""
    given = model(external("w", 1 << 20, 1 << 20), literal=False)
    shapes.check(Graph(given))


def test_the_checker_still_finds_what_is_wrong():
    given = model(tensor("w"), literal=False)
    given.graph.node[0].attribute[0].g.node[0].op_type = "Nonesuch"
    with pytest.raises(InputError, match="Nonesuch"):
        shapes.check(Graph(given))


def test_a_length_that_counts_as_a_rank_is_not_said():
    """Inference wrote down two thousand million sizes of what was expanded to a tiled shape."""
    built = onnx_text.model(
        "(float[2,3] x) => (float[] y) { s = Tile(one, many) e = Expand(x, s) y = Relu(e) }",
        one=np.array([1]), many=np.array([2**31]),
    )  # fmt: skip
    index = Graph(built)
    (tiled,) = (v for v in shapes._skeleton(index, {}).graph.input if v.name == "s")
    assert not tiled.type.tensor_type.shape.dim[0].HasField("dim_value")
    assert "Tile" not in {node.op_type for node in shapes._skeleton(index, {}).graph.node}
