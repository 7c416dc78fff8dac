"""What counts as constant, what its value is, and what is never computed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_text import bn, fuse, integers, model, norm, ops

import onnxfuse
from onnxfuse.model.constants import Constants, analyse
from onnxfuse.model.graph import Graph

HEAD = "(float[1,4,8,8] x, float[N,3] d) => (float[] y)"


def constants_of(nodes: str, **tensors: object) -> Constants:
    built = model(f"{HEAD} {{ {nodes} y = Relu(x) }}", **tensors)
    return analyse(Graph(built), None, {})[1]


M = integers("m", 2, 3)
COMPUTED = {
    "c = Identity(m)": M,
    "c = Reshape(m, shape)": M.reshape(3, 2),
    "c = Transpose<perm = [1,0]>(m)": M.T,
    "c = Cast<to = 7>(m)": M.astype(np.int64),
    "a = Mul(m, m) b = Sub(a, m) c = Div(b, m)": M - 1,
    "a = Unsqueeze(m, zero) b = Tile(a, three) c = ReduceSum(b, zero)": 3 * M[None],
    "a = Shape(x) b = Slice(a, zero, two) c = Concat<axis = 0>(b, zero)": [1, 4, 0],
    "c = Shape<start = -2>(x)": [8, 8],
    "c = Shape<start = 1>(d)": [3],
    "c = Size(x)": 256,
    "a = Shape(x) b = Gather(a, one) e = ConstantOfShape(b) c = Add(e, m3)": [1, 2, 3, 4],
    "a = Constant<value_floats = [0.5, 2.0]>() c = Neg(a)": [-0.5, -2],
    "c = Constant<value_int = 3>()": 3,
    "c = Constant<value = float[2] {1.0, -1.0}>()": [1, -1],
    "c = Where(yes, m, zero_f)": M,
}  # fmt: skip
GIVEN = {
    "m": M, "shape": np.array([3, -1]), "zero": np.array([0]), "two": np.array([2]),
    "three": np.array([3, 1, 1]), "one": np.array([1]), "m3": np.float32([1, 2, 3, 4]),
    "yes": np.array(True), "zero_f": np.float32(0),
}  # fmt: skip


@pytest.mark.parametrize("nodes", COMPUTED)
def test_computed(nodes):
    constants = constants_of(nodes, **GIVEN)
    assert constants.known("c")
    np.testing.assert_array_equal(constants.value("c"), COMPUTED[nodes])
    assert constants.shape("c") == np.shape(COMPUTED[nodes])


@pytest.mark.parametrize(
    "nodes",
    [
        "c = RandomNormal<shape = [4]>()",
        "c = RandomUniformLike(m)",
        "a = RandomNormal<shape = [2,3]>() c = Add(a, m)",
        "c = Dropout(m)",
        "c = Dropout(m, half, yes)",
        "c = Relu(x)",
        "c = Shape(d)",
        "c = Size(d)",
        "a = Add(d, m3) c = Identity(a)",
        "c = custom.Identity(m)",
        "c = Constant<value_string = \"text\">()",
    ],
)  # fmt: skip
def test_not_constant(nodes):
    given = {**GIVEN, "half": np.float32(0.5), "m3": np.float32([1, 2, 3])}
    constants = constants_of(nodes, **given)
    assert not constants.known("c")
    assert constants.value("c") is None


LARGE = {
    "c = ConstantOfShape(huge)": {"huge": np.array([2**40])},
    "c = Expand(one, sides)": {"sides": np.array([2**20, 2**20])},
    "c = Tile(one, huge)": {"huge": np.array([2**40])},
    "a = Cast<to = 7>(one) c = Range(zero, large, step)": {
        "zero": np.int64(0), "large": np.int64(2**40), "step": np.int64(1)},
    "c = Add(tall, wide)": {"tall": np.ones((2**20, 1), np.int8),
                            "wide": np.ones((1, 2**20), np.int8)},
    "c = Gather<axis = 0>(wide, many)": {"wide": np.ones((1, 2**20), np.int8),
                                         "many": np.zeros(2**20, np.int64)},
}  # fmt: skip


@pytest.mark.parametrize("nodes", LARGE)
def test_a_terabyte_is_not_computed(nodes):
    """Known to be constant, but its value is refused before anything is allocated."""
    constants = constants_of(nodes, one=np.ones(1, np.float32), **LARGE[nodes])
    assert constants.known("c")
    tracemalloc.start()
    assert constants.value("c") is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


def test_a_kernel_too_large_to_compute_is_left_alone():
    text = """(float[1,4,8,8] x) => (float[] y) {
        k = ConstantOfShape(huge) c = Conv(x, w) d = Mul(c, k) y = Relu(d) }"""
    fused, codes = fuse(model(text, w=(4, 4, 1, 1), huge=np.array([2**40, 4, 1, 1])))
    assert ops(fused) == ["ConstantOfShape", "Conv", "Mul", "Relu"]
    assert codes <= {"dynamic-weights", "broadcast", "unknown-shape"}


WEIGHTS = {
    "an initializer": ("", {"w": (4, 4, 1, 1)}),
    "an identity": ("w = Identity(v)", {"v": (4, 4, 1, 1)}),
    "a reshape": ("w = Reshape(v, s)", {"v": (16,), "s": np.array([4, 4, 1, 1])}),
    "a transpose": ("w = Transpose<perm = [1,0,2,3]>(v)", {"v": (4, 4, 1, 1)}),
    "a cast": ("w = Cast<to = 1>(v)", {"v": integers("v", 4, 4, 1, 1).astype(np.float16)}),
    "arithmetic": ("u = Mul(v, s) w = Add(u, v)", {"v": (4, 4, 1, 1), "s": ()}),
    "a node": ("v = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() w = Reshape(v, s)",
               {"s": np.array([4, 1, 1, 1])}),
    "a chain": ("a = Identity(v) b = Unsqueeze(a, s) e = Squeeze(b, s) w = Identity(e)",
                {"v": (4, 4, 1, 1), "s": np.array([0])}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_reach_a_conv_through(kind):
    """The nodes that computed the old weights go with them."""
    nodes, tensors = WEIGHTS[kind]
    groups = 4 if kind == "a node" else 1
    text = f"(float[1,4,8,8] x) => (float[] y) {{ {nodes} c = Conv<group = {groups}>(x, w) "
    fused, codes = fuse(model(text + f"{bn('y', 'c', 'n')} }}", **tensors, **norm("n", 4)))
    assert ops(fused) == ["Conv"]
    assert codes == set()
    assert {tensor.name for tensor in fused.graph.initializer} == {
        "y_fused_weight", "y_fused_bias"
    }  # fmt: skip


def test_random_weights_are_not_frozen():
    text = f"""(float[1,4,8,8] x) => (float[] y) {{
        w = RandomNormal<shape = [4,4,1,1], seed = 1.0>() c = Conv(x, w) {bn("y", "c", "n")} }}"""
    fused, codes = fuse(model(text, **norm("n", 4)))
    assert ops(fused) == ["RandomNormal", "Conv", "BatchNormalization"]
    assert codes == {"dynamic-weights"}


@pytest.mark.parametrize("ir", [3, 8])
def test_an_initializer_that_is_an_input_is_not_constant(ir):
    """IR 3 lists every initializer among the inputs; a caller may override them all the same."""
    text = f"""(float[1,4,8,8] x, float[4,4,1,1] w) => (float[] y) {{
        c = Conv(x, w) {bn("y", "c", "n")} }}"""
    built = model(text, ir=ir, opset=8 if ir == 3 else 17, w=(4, 4, 1, 1), **norm("n", 4))
    if ir == 3:
        listed = {value.name for value in built.graph.input}
        built.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in built.graph.initializer
            if t.name not in listed
        )
    constants = analyse(Graph(built), None, {})[1]
    assert constants.overridable("w")
    assert not constants.known("w")
    fused, codes = fuse(built)
    assert ops(fused) == ["Conv", "BatchNormalization"]
    assert codes == {"overridable-initializer"}


def test_values_are_read_only_when_asked_for():
    """Planning looks at shapes; a tensor whose data is missing does not disturb it."""
    built = model(f"{HEAD} {{ c = Identity(m) y = Relu(x) }}", m=M)
    tensor = built.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "missing.bin"
    constants = analyse(Graph(built), None, {})[1]
    assert constants.known("c")
    assert constants.shape("m") == (2, 3)


def test_a_chain_of_5000_constants_is_computed_without_recursion():
    built = model(f"{HEAD} {{ y = Relu(x) }}", c0=np.float32([1]))
    nodes = [helper.make_node("Neg", [f"c{i}"], [f"c{i + 1}"]) for i in range(5001)]
    built.graph.node.extend(nodes)
    constants = analyse(Graph(built), None, {})[1]
    np.testing.assert_array_equal(constants.value("c5001"), [-1])


def test_a_shape_is_constant_only_where_it_is_certain():
    """A size that value_info claims, or a dim_param, proves nothing."""
    built = model(f"{HEAD} {{ h = custom.Foo(x) c = Shape(h) y = Relu(x) }}")
    built.graph.value_info.append(
        onnx.helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 4, 8, 8])
    )
    constants = analyse(Graph(built), None, {})[1]
    assert not constants.known("c")


@pytest.mark.parametrize(
    "nodes",
    [
        "w2 = Pad<mode = \"reflect\">(w, by) c = Conv(x, w2) y = Neg(c)",
        "c = Conv(x, w) k2 = Pad<mode = \"reflect\">(k, at) y = Mul(c, k2)",
        "k2 = Pad<mode = \"reflect\">(b, at_b) c = Conv(x, w, k2) y = Neg(c)",
        "o = Sub(one, one) q = Div(one, o) k2 = Cast<to = 1>(q) c = Conv(x, w) y = Add(c, k2)",
    ],
    ids=["kernel", "scale", "bias", "shift"],
)  # fmt: skip
def test_weights_that_the_evaluator_cannot_compute_are_left_alone(nodes):
    tensors = {
        "w": (4, 4, 3, 3), "k": (2, 1, 1), "b": (2,), "by": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "at": np.array([1, 0, 0, 1, 0, 0]), "at_b": np.array([1, 1]), "one": np.array(1),
    }  # fmt: skip
    built = model(f"(float[1,4,8,8] x) => (float[] y) {{ {nodes} }}", **tensors)
    fused, codes = fuse(built)
    assert ops(fused) == ops(built)
    assert codes == {"dynamic-weights"}


def test_sizes_are_counted_through_what_is_computed_from_them():
    """At open sizes the strips' shape is computed; MACs are counted at the assumed ones."""
    built = model(
        "(float[N,4,H,V] x) => (float[] y) { a = Conv(x, w) s = Shape(a) n = Gather(s, zero) "
        "h = Gather(s, two) q = Concat<axis = 0>(n, four, h, one) e = Expand(k, q) "
        "f = Concat<axis = 3>(e, a, e) y = Conv(f, v) }",
        opset=10, w=(4, 4, 1, 1), v=(4, 4, 1, 3), k=(4, 1, 1), zero=np.int64([0]),
        two=np.int64([2]), four=np.int64([4]), one=np.int64([1]),
    )  # fmt: skip
    report = onnxfuse.plan(built, input_shapes={"x": (1, 4, 10, 10)})
    assert report.before.macs == 16 * 100 + 48 * 100
