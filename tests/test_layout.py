"""Layout: what takes the layout of the convolutions around it, what must not, and what is kept.

Each case says what must be left of the graph; `fuse` runs both models and compares to the bit.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_text import constant, fuse, model, node, ops, session

import onnxfuse
from onnxfuse.model.graph import Graph
from onnxfuse.model.relayout import rearrange

LAST = "Transpose <perm = [0, 2, 3, 1]>"
FIRST = "Transpose <perm = [0, 3, 1, 2]>"
F, INT = np.float32, np.int64


def island(body: str, *, x: str = "float[1, 4, 5, 6]", outputs: str = "float y") -> str:
    """A convolution, ``body`` on its transposed result ``t`` giving ``r``, and back again."""
    return f"""({x} x) => ({outputs}) {{
        c = Conv (x, w)
        t = {LAST} (c)
        {body}
        y = {FIRST} (r)
    }}"""


def moved(text: str, *sizes: int, opset: int = 17, exact: bool = True, **tensors: object):
    """The fused model, which must be stable, ordered and give the same outputs."""
    tensors = {"w": (4, 4, 1, 1), **tensors}
    fused, _ = fuse(model(text, opset, **tensors), *sizes, exact=exact)
    onnx.checker.check_model(fused)
    again, report = onnxfuse.fuse(fused)
    assert not report.changed
    assert again == fused
    return fused


def stays(text: str, opset: int = 17, **tensors: object) -> None:
    """The model comes back as it was, and so do its bytes."""
    tensors = {"w": (4, 4, 1, 1), **tensors}
    given = model(text, opset, **tensors)
    fused, report = onnxfuse.fuse(given)
    assert not report.changed
    assert fused.SerializeToString() == given.SerializeToString()


def axes_of(of: onnx.ModelProto, op_type: str) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node(of, op_type).attribute}


# What moves


@pytest.mark.parametrize(
    "line",
    [
        "r = Relu (t)",
        "r = Clip (t, zero, six)",
        "r = LeakyRelu <alpha = 2.0> (t)",
        "r = Identity (t)",
        "half = Cast <to = 10> (t)\n r = Cast <to = 1> (half)",
        "s = Abs (t)\n n = Neg (s)\n r = Floor (n)",
        "g = Greater (t, zero)\n r = Where (g, t, zero)",
        "m = Max (t, t)\n s = Min (m, t)\n r = Mean (s)",
    ],
)
def test_elementwise_operators_move(line: str) -> None:
    fused = moved(island(line), zero=F(0), six=F(6))
    assert "Transpose" not in ops(fused)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4,), (1, 4, 1, 1)),
        ((6, 4), (1, 4, 1, 6)),
        ((5, 1, 4), (1, 4, 5, 1)),
        ((1, 5, 6, 4), (1, 4, 5, 6)),
        ((5, 6, 1), (1, 1, 5, 6)),
    ],
)
def test_constants_of_any_rank_are_transposed_with_their_operator(shape, expected) -> None:
    fused = moved(island("r = Max (t, k)"), k=shape)
    assert ops(fused) == ["Conv", "Max"]
    assert constant(fused, node(fused, "Max").input[1]).shape == expected


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_constants_of_one_value_stay_as_they_are(shape) -> None:
    fused = moved(island("r = Max (k, t)"), k=shape)
    assert list(node(fused, "Max").input) == ["k", "c"]


def test_slopes_and_conditions_are_transposed_too() -> None:
    fused = moved(
        island("p = PRelu (t, k)\n r = Where (b, p, k)"),
        k=(5, 1, 4),
        b=np.array([True, False, True, True]),
    )
    assert ops(fused) == ["Conv", "PRelu", "Where"]


def test_a_constant_that_others_read_keeps_its_layout_for_them() -> None:
    """One reader moves, the other does not: each has its own constant."""
    text = f"""(float[1, 4, 4, 4] x) => (float y, float z) {{
        c = Conv (x, w)
        t = {LAST} (c)
        a = Max (t, k)
        y = {FIRST} (a)
        z = Max (c, k)
    }}"""
    fused = moved(text, k=(4,))
    assert ops(fused) == ["Conv", "Max", "Max"]
    assert constant(fused, "k").shape == (4,)


def test_a_constant_that_nobody_reads_any_more_is_dropped() -> None:
    fused = moved(island("r = Max (t, k)"), k=(4,))
    assert sorted(t.name for t in fused.graph.initializer) == ["k_transposed", "w"]


def test_operands_that_broadcast_over_the_same_axes_move() -> None:
    fused = moved(island("m = ReduceMax <axes = [-1]> (t)\n r = Sub (t, m)"))
    assert ops(fused) == ["Conv", "ReduceMax", "Sub"]
    assert axes_of(fused, "ReduceMax")["axes"] == [1]


@pytest.mark.parametrize("axis", [1, -3])
def test_split_follows_its_axis(axis: int) -> None:
    body = f"a, b = Split <axis = {axis}> (t, sizes)\n r = Relu (b)"
    fused = moved(island(body, outputs="float y, float a"), sizes=np.array([2, 3], INT))
    assert axes_of(fused, "Split")["axis"] == 2
    assert [value.name for value in fused.graph.output] == ["y", "a"]


def test_softmax_follows_its_axis() -> None:
    fused = moved(island("r = Softmax (t)"), exact=False)
    assert ops(fused) == ["Conv", "Softmax"]
    assert axes_of(fused, "Softmax")["axis"] == 1


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("opset", [9, 13, 18])
def test_pad_follows_its_axes(mode: str, opset: int) -> None:
    pads = [0, 1, 2, 1, 0, 0, 1, 0]
    line = f'r = Pad <mode = "{mode}", pads = {pads}> (t)'
    if opset > 9:
        line = f'r = Pad <mode = "{mode}"> (t, pads)'
    fused = moved(island(line), opset=opset, pads=np.array(pads, INT))
    assert "Transpose" not in ops(fused)


def test_pad_follows_the_axes_it_names() -> None:
    line = 'r = Pad <mode = "edge"> (t, pads, , axes)'
    fused = moved(
        island(line), opset=18, pads=np.array([1, 0, 2, 1], INT), axes=np.array([-2, 3], INT)
    )
    assert constant(fused, node(fused, "Pad").input[3]).tolist() == [3, 1]


@pytest.mark.parametrize("dynamic", [False, True])
def test_slice_follows_its_axes_backwards_too(dynamic: bool) -> None:
    text = island(
        "q = Relu (t)\n r = Slice (q, starts, ends, axes, steps)",
        x="float[N, 4, H, W]" if dynamic else "float[1, 4, 5, 6]",
    )
    fused = moved(
        text,
        1,
        2,
        7,
        starts=np.array([-1, 0], INT),
        ends=np.array([-100, 3], INT),
        axes=np.array([-2, 3], INT),
        steps=np.array([-2, 1], INT),
    )
    assert "Transpose" not in ops(fused)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("given", ["attribute", "input"])
def test_reductions_follow_their_axes(keep: int, given: str) -> None:
    reduced = f"ReduceMax <keepdims = {keep}, axes = [1, -2]> (q)"
    if given == "input":
        reduced = f"ReduceSum <keepdims = {keep}> (q, axes)"
    text = f"""(float[1, 4, 5, 6] x) => (float y) {{
        c = Conv (x, w)
        t = {LAST} (c)
        q = Relu (t)
        y = {reduced}
    }}"""
    fused = moved(text, axes=np.array([1, -2], INT))
    assert ops(fused).count("Transpose") == keep  # (N, C) needs none, (N, 1, 1, C) is an output
    if not keep:
        assert ops(fused)[:2] == ["Conv", "Relu"]


@pytest.mark.parametrize(
    ("x", "kernel", "there", "back"),
    [
        ("float[2, 4, 7]", (4, 4, 1), [0, 2, 1], [0, 2, 1]),
        ("float[2, 4, 5, 6, 3]", (4, 4, 1, 1, 1), [0, 2, 3, 4, 1], [0, 4, 1, 2, 3]),
        ("float[2, 4, 5, 6]", (4, 4, 1, 1), [3, 1, 0, 2], [2, 1, 3, 0]),
    ],
)
def test_any_permutation_moves(x: str, kernel, there: list[int], back: list[int]) -> None:
    text = f"""({x} x) => (float y) {{
        c = Conv (x, w)
        t = Transpose <perm = {there}> (c)
        q = Relu (t)
        y = Transpose <perm = {back}> (q)
    }}"""
    assert ops(moved(text, w=kernel)) == ["Conv", "Relu"]


def test_a_transpose_without_perm_reverses_the_axes() -> None:
    text = """(float[4, 4, 6] x) => (float y) {
        c = Conv (x, w)
        t = Transpose (c)
        q = Relu (t)
        y = Transpose (q)
    }"""
    assert ops(moved(text, w=(4, 4, 1))) == ["Conv", "Relu"]


def test_what_cannot_cancel_is_left_as_one_transpose() -> None:
    text = """(float[2, 4, 5, 6] x) => (float y) {
        c = Conv (x, w)
        t = Transpose <perm = [3, 1, 0, 2]> (c)
        q = Max (t, k)
        y = Transpose <perm = [2, 3, 0, 1]> (q)
    }"""
    fused = moved(text, k=(6, 1, 1, 5))
    assert ops(fused) == ["Conv", "Max", "Transpose"]


def test_channels_last_between_convolutions() -> None:
    """A model with the channels last keeps one Transpose at each end."""
    text = f"""(float[N, H, W, 4] x) => (float y) {{
        a = {FIRST} (x)
        c = Conv (a, w)
        t = {LAST} (c)
        r = Relu (t)
        b = {FIRST} (r)
        d = Conv (b, w)
        y = {LAST} (d)
    }}"""
    fused = moved(text, 1, 2, 5)
    assert ops(fused) == ["Transpose", "Conv", "Relu", "Conv", "Transpose"]


def test_equal_transposes_become_one() -> None:
    text = f"""(float[1, 4, 5, 6] x) => (float y, float z) {{
        c = Conv (x, w)
        s = {LAST} (c)
        t = {LAST} (c)
        y = MatMul (s, k)
        z = MatMul (t, l)
    }}"""
    assert ops(moved(text, k=(4, 200), l=(4, 300))).count("Transpose") == 1


def test_a_branch_that_was_behind_a_transpose_fuses() -> None:
    """What stands between Transposes goes into the convolution next to them."""
    fused = moved(island("r = Add (t, k)"), k=(4,))
    assert ops(fused) == ["Conv"]


# What must not


def test_without_a_channel_operator_nothing_is_looked_at() -> None:
    """Transformers move heads and tokens by Transposes; those are theirs."""
    stays(
        f"""(float[1, 4, 5, 6] x) => (float y) {{
            t = {LAST} (x)
            r = Relu (t)
            y = {FIRST} (r)
        }}"""
    )


def test_attention_is_left_alone() -> None:
    stays(
        """(float[2, 6, 8] x) => (float y) {
            q0 = MatMul (x, a)
            k0 = MatMul (x, b)
            v0 = MatMul (x, c)
            q1 = Reshape (q0, heads)
            k1 = Reshape (k0, heads)
            v1 = Reshape (v0, heads)
            q = Transpose <perm = [0, 2, 1, 3]> (q1)
            k = Transpose <perm = [0, 2, 3, 1]> (k1)
            v = Transpose <perm = [0, 2, 1, 3]> (v1)
            s0 = MatMul (q, k)
            s1 = Div (s0, two)
            s = Softmax (s1)
            o0 = MatMul (s, v)
            o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
            y = Reshape (o1, flat)
        }""",
        a=(8, 8),
        b=(8, 8),
        c=(8, 8),
        heads=np.array([0, 0, 2, 4], INT),
        flat=np.array([0, 0, 8], INT),
        two=F(2),
    )


@pytest.mark.parametrize(
    "body",
    [
        "r = Clip (t, low)",  # a bound that is computed
        "r = Relu (t)\n z = MatMul (r, k)\n u = Shape (t)",  # readers that need this layout
        "r = CumSum (t, axis)",  # no rule
    ],
)
def test_what_would_save_nothing_stays(body: str) -> None:
    outputs = "float y, float z, int64[4] u" if "z" in body else "float y"
    text = island(body, outputs=outputs).replace(" x) =>", " x, float low) =>")
    stays(text, k=(4, 3), axis=np.array(1, INT))


def test_softmax_of_old_opsets_flattens_and_stays() -> None:
    stays(island("r = Softmax <axis = 3> (t)"), opset=11)


def test_a_reduction_over_computed_axes_stays() -> None:
    text = island("r = ReduceSum <keepdims = 1> (t, axes)")
    stays(text.replace(" x) =>", " x, int64[1] axes) =>"))


def test_a_reduction_that_would_reorder_what_is_left_stays() -> None:
    """(N, W, C) stands in another order than (N, C, W) and there is no Transpose to save."""
    stays(
        f"""(float[1, 4, 5, 6] x) => (float y) {{
            c = Conv (x, w)
            t = {LAST} (c)
            r = Relu (t)
            y = ReduceMax <keepdims = 0, axes = [1]> (r)
        }}"""
    )


def test_an_operand_of_lower_rank_that_is_data_stays() -> None:
    """It broadcasts by its last axes, which would be others."""
    stays(island("r = Max (t, v)").replace(" x) =>", " x, float[4] v) =>"))


def test_a_constant_that_widens_the_rank_stays() -> None:
    text = """(float[1, 4, 6] x) => (float y) {
        c = Conv (x, w)
        t = Transpose <perm = [0, 2, 1]> (c)
        y = Max (t, k)
    }"""
    stays(text, w=(4, 4, 1), k=(2, 1, 6, 4))


def test_quantisation_stays() -> None:
    stays(
        island("q = QuantizeLinear (t, scale, zero)\n r = DequantizeLinear (q, scale, zero)"),
        scale=F(1),
        zero=np.int8(0),
    )


def test_an_operator_of_another_domain_stays() -> None:
    text = island("r = custom.Relu (t)")
    given = model(text, w=(4, 4, 1, 1))
    fused, report = onnxfuse.fuse(given, verify=False)
    assert not report.changed
    assert fused == given


@pytest.mark.parametrize("name", ["t", "a", "y"])
def test_nodes_that_are_left_out_stay(name: str) -> None:
    given = model(island("q = Relu (t)\n a = Abs (q)\n r = Neg (a)"), w=(4, 4, 1, 1))
    fused, _ = onnxfuse.fuse(given, without=[name])
    kept = [n for n in fused.graph.node if n.name == name]
    assert kept == [n for n in given.graph.node if n.name == name]
    feed = {"x": np.arange(120, dtype=F).reshape(1, 4, 5, 6) - 60}
    for a, b in zip(session(given).run(None, feed), session(fused).run(None, feed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_nodes_that_are_named_move() -> None:
    given = model(island("r = Relu (t)"), w=(4, 4, 1, 1))
    fused, report = onnxfuse.fuse(given, only=["c"])
    assert not report.changed
    assert fused == given
    fused, _ = onnxfuse.fuse(given, only=["t", "r", "y"])
    assert ops(fused) == ["Conv", "Relu"]


# What is kept


def test_outputs_inside_a_group_keep_their_name_and_layout() -> None:
    text = island("q = Relu (t)\n r = Abs (q)", outputs="float y, float q, float[1, 5, 6, 4] t")
    given = model(text, w=(4, 4, 1, 1))
    fused, _ = onnxfuse.fuse(given)
    assert fused.graph.output == given.graph.output
    fuse(given)


def test_an_output_that_is_a_transpose_keeps_its_name() -> None:
    text = f"""(float[1, 4, 5, 6] x) => (float y, float z) {{
        c = Conv (x, w)
        t = {LAST} (c)
        r = Relu (t)
        y = {FIRST} (r)
        z = MaxPool <kernel_shape = [2, 2]> (y)
    }}"""
    fused = moved(text)
    assert ops(fused) == ["Conv", "Relu", "MaxPool"]
    assert node(fused, "Relu").output[0] == "y"


def test_a_graph_input_that_is_also_an_output() -> None:
    text = f"""(float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] x, float y) {{
        t = {LAST} (x)
        r = Relu (t)
        u = {FIRST} (r)
        y = Conv (u, w)
    }}"""
    assert ops(moved(text)) == ["Relu", "Conv"]


def test_what_a_subgraph_reads_keeps_its_name_and_layout() -> None:
    text = f"""(float[1, 4, 4, 4] x, bool p) => (float y, float z) {{
        c = Conv (x, w)
        t = {LAST} (c)
        a = Abs (t)
        r = Relu (a)
        z = If (p) <
            then_branch = yes () => (float o) {{ o = Neg (a) }},
            else_branch = no () => (float o2) {{ o2 = Identity (t) }}
        >
        y = {FIRST} (r)
    }}"""
    given = model(text, w=(4, 4, 1, 1))
    fused, _ = onnxfuse.fuse(given)
    x = np.arange(64, dtype=F).reshape(1, 4, 4, 4) - 32
    for choice in (True, False):
        feed = {"x": x, "p": np.array(choice)}
        pairs = zip(session(given).run(None, feed), session(fused).run(None, feed), strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(a, b)


def test_new_names_collide_with_nothing() -> None:
    text = f"""(float[1, 4, 4, 4] x) => (float y, float r_transposed) {{
        c = Conv (x, w)
        t = {LAST} (c)
        r = Max (t, k)
        r_transposed = Abs (r)
        k_transposed = Neg (r)
        y0 = Max (r, k_transposed)
        y = {FIRST} (y0)
    }}"""
    moved(text, k=(4,))


def test_documentation_and_metadata_of_moved_nodes_are_kept() -> None:
    given = model(island("r = Max (t, k)"), w=(4, 4, 1, 1), k=(4,))
    given.graph.node[2].doc_string = "kept"
    entry = given.graph.node[2].metadata_props.add()
    entry.key, entry.value = "key", "value"
    fused, _ = fuse(given)
    assert node(fused, "Max").doc_string == "kept"
    assert node(fused, "Max").metadata_props[0].value == "value"
    assert node(fused, "Max").name == "r"


def test_value_info_of_dropped_tensors_goes_and_the_rest_stays() -> None:
    given = model(island("r = Relu (t)"), w=(4, 4, 1, 1))
    for name in ("c", "t", "r"):
        given.graph.value_info.append(onnx.helper.make_tensor_value_info(name, 1, None))
    fused, _ = fuse(given)
    assert [value.name for value in fused.graph.value_info] == ["c"]


def test_nodes_in_any_order_of_the_file() -> None:
    """A reader that stands before its Transpose in the file still gets it."""
    given = model(
        island("r = Relu (t)\n z = MatMul (t, k)", outputs="float y, float z"),
        w=(4, 4, 1, 1),
        k=(4, 2),
    )
    nodes = list(given.graph.node)[::-1]
    del given.graph.node[:]
    given.graph.node.extend(nodes)
    fuse(given)


def test_the_constants_type_is_kept() -> None:
    body = "h = Cast <to = 10> (t)\n m = Max (h, k)\n r = Cast <to = 1> (m)"
    fused = moved(island(body), k=np.arange(4).astype(np.float16))
    assert constant(fused, node(fused, "Max").input[1]).dtype == np.float16


def test_the_report_says_how_many_transposes_went() -> None:
    _, report = onnxfuse.fuse(model(island("r = Relu (t)"), w=(4, 4, 1, 1)))
    (record,) = report.regions
    assert (record.was, record.became) == ("2 Transpose", "nothing")
    assert set(record.nodes) == {"t", "r", "y"}
    assert record.error is not None
    assert record.error.exact == 0


def test_a_constant_that_is_an_output_outlives_its_readers() -> None:
    built = model(
        "(float[2,3] x) => (float[] y){ a = Unsqueeze(x, axes) b = Neg(a) y = Relu(x) }",
        axes=np.array([0]),
    )
    built.graph.output.append(helper.make_tensor_value_info("axes", TensorProto.INT64, [1]))
    rearrange(built, Graph(built), {1}, {}, {}, lambda nodes: [])
    assert [node.op_type for node in built.graph.node] == ["Relu"]
    assert [tensor.name for tensor in built.graph.initializer] == ["axes"]
