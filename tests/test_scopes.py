"""Bodies of If, Loop and Scan, and functions: they fuse as the main graph does, in their places."""

from __future__ import annotations

import numpy as np
import pytest
from bodies import K3, LOOP, WEIGHTS, called, fuse, inner, places
from onnx import TensorProto, helper, numpy_helper, parser
from onnx_text import bn, integers, model, norm

import onnxfuse
from onnxfuse import fusing
from onnxfuse.model.walk import nested
from onnxfuse.options import Options
from onnxfuse.watch import Watch


def test_conv_and_bn_in_both_branches():
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{ c = Conv{K3}(x, w) {bn("s", "c", "n")} }},
                else_branch = g2 () => (float[] t) {{
                    d = Conv{K3}(x, v) e = Add(d, x) {bn("f", "e", "m")} t = Relu(f) }}> }}""",
        **WEIGHTS,
    )  # fmt: skip
    fused, report = fuse(built)
    assert inner(fused) == ["Conv", "Relu", "Conv"] or inner(fused) == ["Conv", "Conv", "Relu"]
    assert places(report) == [("s", "then_branch of If 'u'"), ("f", "else_branch of If 'u'")]
    assert report.verification.status == "passed"
    assert [run.rpartition(", ")[2] for run in report.verification.runs[1:]] == [
        "then branches", "else branches",
    ]  # fmt: skip
    assert not fused.graph.initializer  # the captured weights went into the bodies
    held = [{tensor.name for tensor in graph.initializer} for graph in nested(fused)]
    assert {"s_fused_weight", "s_fused_bias"} in held
    assert "s (then_branch of If 'u')" in str(report)
    assert report.to_dict()["regions"][0]["scope"] == "then_branch of If 'u'"


def test_weights_of_the_body_itself():
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{ c = Conv{K3}(x, w) {bn("s", "c", "n")} }},
                else_branch = g2 () => (float[] s) {{ c = Conv{K3}(x, w) {bn("s", "c", "n")} }}>
        }}""",
    )  # fmt: skip
    graphs = [a.g for a in built.graph.node[0].attribute]
    for graph, suffix in zip(graphs, "ab", strict=True):
        for name, array in {"w": integers(f"w{suffix}", 4, 4, 3, 3), **norm("n", 4)}.items():
            graph.initializer.append(numpy_helper.from_array(array, name))
    fused, report = fuse(built)
    assert len(report.regions) == 2
    assert inner(fused) == ["Conv", "Conv"]
    names = [t.name for graph in nested(fused) for t in graph.initializer]
    assert len(set(names)) == len(names) == 4  # new names collide in no scope


@pytest.mark.parametrize("where", ["main", "sibling"])
def test_a_captured_kernel_that_others_read_stays(where):
    other = "t = Abs(w)" if where == "sibling" else "t = Abs(x)"
    main = "z = Relu(x)" if where == "sibling" else "z = Conv(x, w)"
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u, float[] z) {{
            {main}
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{ c = Conv{K3}(x, w) {bn("s", "c", "n")} }},
                else_branch = g2 () => (float[] t) {{ {other} }}> }}""",
        **WEIGHTS,
    )  # fmt: skip
    _, report = fuse(built)
    assert not report.changed
    assert [(r.code, r.scope) for r in report.refusals] == [
        ("shared-kernel", "then_branch of If 'u'")
    ]


def test_captured_interior_tensors_stay():
    built = model(
        f"""(float[1,4,8,8] x, bool choose, bool deep) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{
                    c = Conv{K3}(x, w) {bn("b", "c", "n")}
                    s = If (deep) <
                        then_branch = g3 () => (float[] p) {{ p = Relu(c) }},
                        else_branch = g4 () => (float[] q) {{ q = Relu(b) }}> }},
                else_branch = g2 () => (float[] t) {{ t = Relu(x) }}> }}""",
        **WEIGHTS,
    )  # fmt: skip
    _, report = fuse(built)
    assert not report.changed
    assert [(r.code, r.scope) for r in report.refusals] == [
        ("reader-outside", "then_branch of If 'u'")
    ]


def test_if_in_if():
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            y = Relu(x)
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{
                    i = Abs(y)
                    s = If (choose) <
                        then_branch = g3 () => (float[] p) {{
                            c = Conv{K3}(i, w) {bn("p", "c", "n")} }},
                        else_branch = g4 () => (float[] q) {{ q = Conv{K3}(i, v) }}> }},
                else_branch = g2 () => (float[] t) {{ t = Identity(y) }}> }}""",
        **WEIGHTS,
    )  # fmt: skip
    _, report = fuse(built)
    assert places(report) == [("p", "then_branch of If 's', then_branch of If 'u'")]
    assert report.verification.status == "passed"


def test_depth_is_no_matter():
    """Bodies are walked without recursion; protobuf itself stops at about 100 messages."""
    graph = parser.parse_graph(
        f"g () => (float[] o0) {{ c = Conv{K3}(x, w) {bn('o0', 'c', 'n')} }}"
    )
    for depth in range(1, 20):
        other = parser.parse_graph(f"g () => (float[] e{depth}) {{ e{depth} = Relu(x) }}")
        node = helper.make_node("If", ["choose"], [f"o{depth}"], then_branch=graph,
                                else_branch=other)  # fmt: skip
        out = helper.make_tensor_value_info(f"o{depth}", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "g", [], [out])
    built = model("(float[1,4,8,8] x, bool choose) => (float[] o19) { o19 = Relu(x) }", **WEIGHTS)
    del built.graph.node[:]
    built.graph.node.extend(graph.node)
    _, report = fuse(built)
    assert len(report.regions) == 1


def test_a_loop_whose_state_keeps_its_shape():
    built = model(LOOP.replace("PADS", K3), w=integers("w", 4, 4, 3, 3) * 0 + 1, **norm("n", 4))
    fused, report = fuse(built)
    assert places(report) == [("b", "body of Loop 'u'")]
    assert inner(fused) == ["Identity", "Conv", "Relu"]


def test_a_loop_whose_state_shrinks_keeps_what_every_run_keeps():
    """Height and width change from run to run and are not believed; channels are."""
    built = model(LOOP.replace("PADS", ""), w=integers("w", 4, 4, 3, 3) * 0 + 1, **norm("n", 4))
    _, report = fuse(built)
    assert report.changed


def test_a_loop_whose_state_changes_its_rank_is_refused():
    text = LOOP.replace("PADS", K3).replace("r = Relu(b)", "r = Unsqueeze(b, zero)")
    built = model(text, w=(4, 4, 3, 3), zero=np.array([0]), **norm("n", 4))
    report = onnxfuse.plan(built)
    assert not report.changed
    assert {r.code for r in report.refusals} == {"unknown-shape"}


def test_scan_with_several_inputs_and_outputs():
    built = model(
        f"""(float[1,4,8,8] h, float[5,1,4,8,8] xs, float[1,5,4,8,8] zs)
        => (float[] l, float[] ys, float[] ws) {{
            l, ys, ws = Scan <num_scan_inputs = 2, scan_input_axes = [0, 1],
                body = g1 (float[1,4,8,8] s, float[1,4,8,8] a, float[1,4,8,8] z)
                => (float[] t, float[] y, float[] q) {{
                    c = Conv{K3}(a, w) {bn("y", "c", "n")}
                    d = Conv{K3}(z, v) {bn("q", "d", "m")}
                    t = Relu(s) }}> (h, xs, zs) }}""",
        **WEIGHTS,
    )  # fmt: skip
    fused, report = fuse(built)
    assert places(report) == [("y", "body of Scan 'l'"), ("q", "body of Scan 'l'")]
    assert sorted(inner(fused)) == ["Conv", "Conv", "Relu"]


def test_a_function_that_is_called_twice():
    fused, report = fuse(called(f"c = Conv{K3}(h, w) {bn('b', 'c', 'n')} r = Relu(b)"))
    assert places(report) == [("b", "function 'Block'")]
    assert inner(fused) == ["Constant", "Constant", "Conv", "Relu"]
    assert report.verification.status == "passed"


def test_a_function_whose_callers_disagree_is_refused():
    built = called(f"c = Conv{K3}(h, w) {bn('b', 'c', 'n')} r = Relu(b)")
    built.graph.node[1].input[0] = "flat"
    built.graph.node.insert(1, helper.make_node("Identity", ["unknown"], ["flat"]))
    built.graph.input.append(helper.make_tensor_value_info("unknown", TensorProto.FLOAT, None))
    report = onnxfuse.plan(built)
    assert not report.changed
    assert ("unknown-shape", "function 'Block'") in {(r.code, r.scope) for r in report.refusals}


def counted(built, **options) -> tuple[int, int, int, int]:
    """MACs before and after, and the operators whose work is not in them."""
    _, report = fuse(built, **options)
    assert fusing.count_model(built, Options(), Watch()).before.macs == report.before.macs
    return (report.before.macs, report.before.uncounted, report.after.macs, report.after.uncounted)


def test_a_loop_counts_one_run():
    built = model(LOOP.replace("PADS", K3), w=integers("w", 4, 4, 3, 3) * 0 + 1, **norm("n", 4))
    assert counted(built) == (64 * 144, 0, 64 * 144, 0)


def test_work_below_counts_when_it_is_merged():
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{
                    c = Conv{K3}(x, w) d = Conv(x, p) s = Add(c, d) }},
                else_branch = g2 () => (float[] t) {{ t = Relu(x) }}> }}""",
        w=(4, 4, 3, 3), p=(4, 4, 1, 1),
    )  # fmt: skip
    assert counted(built) == (64 * (144 + 16), 0, 64 * 144, 0)


def test_a_function_counts_at_each_call():
    built = called(f"c = Conv{K3}(h, w) {bn('b', 'c', 'n')} r = Relu(b)")
    assert counted(built) == (2 * 64 * 144, 0, 2 * 64 * 144, 0)


def test_calls_of_calls_are_counted():
    built = called(f"c = Conv{K3}(h, w) {bn('b', 'c', 'n')} r = Relu(b)")
    outer = parser.parse_function("""<domain: "local", opset_import: ["" : 17, "local" : 1]>
        Twice (h) => (r) { a = local.Block(h) r = local.Block(a) }""")
    built.functions.insert(0, outer)
    built.graph.node[0].op_type = "Twice"
    assert counted(built)[0] == 3 * 64 * 144


def test_a_body_that_cannot_be_analysed_is_said_of_the_node_that_holds_it():
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{
                    s = If (choose) <
                        then_branch = g3 () => (float[] p) {{
                            c = Conv{K3}(x, k) {bn("p", "c", "n")} }},
                        else_branch = g4 () => (float[] q) {{ q = Conv{K3}(x, v) }}> }},
                else_branch = g2 () => (float[] t) {{ c = Conv{K3}(x, w) {bn("t", "c", "m")} }}>
        }}""",
        **WEIGHTS,
    )  # fmt: skip
    held = numpy_helper.from_array(integers("k", 4, 4, 3, 3), "k")
    held.raw_data += bytes(2)
    built.graph.node[0].attribute[0].g.node[0].attribute[0].g.initializer.append(held)
    report = onnxfuse.plan(built)
    assert places(report) == [("t", "else_branch of If 'u'")]
    (kept,) = report.refusals
    assert (kept.code, kept.node, kept.scope) == ("malformed", "s", "then_branch of If 'u'")
    assert kept.text.startswith("its then_branch cannot be analysed: ")
    assert "'k'" in kept.text


def test_nodes_that_refer_to_attributes_are_not_touched():
    body = f"""c = Conv{K3}(h, w) {bn("b", "c", "n")}
               l = LeakyRelu <alpha: float = @slope> (b)
               r = Add(l, h)"""
    built = called(body, "<slope = 0.5>")
    fused, report = fuse(built)
    assert places(report) == [("b", "function 'Block'")]
    assert built.functions[0].node[-2] == fused.functions[0].node[-2]
    (kept,) = [kept for kept in report.refusals if kept.root == "l"]
    assert (kept.code, kept.scope) == ("dynamic-weights", "function 'Block'")
    assert kept.text == "an attribute of it is set by whoever calls the function"
