"""What fusing bodies leaves alone, and how the whole model is run then."""

from __future__ import annotations

import numpy as np
import onnx
from bodies import K3, LOOP, WEIGHTS, fuse, places
from onnx import TensorProto, helper, numpy_helper
from onnx_text import bn, integers, model, norm

import onnxfuse
from onnxfuse.model.walk import nested


def test_what_no_region_owns_is_kept():
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            k = Neg(x)
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{
                    a = Abs(x) c = Conv{K3}(a, w) {bn("b", "c", "n")} s = Add(b, m_s) }},
                else_branch = g2 () => (float[] t) {{ t = Relu(k) }}> }}""",
        never=(2, 2), **{**WEIGHTS, "m_s": np.zeros((1, 4, 1, 1), np.float32)},
    )  # fmt: skip
    future = b"\xba\x3e\x06future"
    body = built.graph.node[1].attribute[0].g
    body.doc_string = "a body"
    body.initializer.append(numpy_helper.from_array(integers("q", 3), "unread"))
    body.value_info.append(helper.make_tensor_value_info("a", 1, None))
    body.value_info.append(helper.make_tensor_value_info("c", 1, None))
    for proto in (*body.node, *built.graph.node, body, *body.initializer, built.graph, built):
        proto.MergeFromString(future)
    fused, report = fuse(built)
    assert report.changed
    new = fused.graph.node[1].attribute[0].g
    assert [v.name for v in new.value_info] == ["a"]
    assert new.doc_string == "a body"
    assert new.node[0].SerializeToString() == body.node[0].SerializeToString()
    assert new.output == body.output
    assert new.initializer[0].SerializeToString() == body.initializer[0].SerializeToString()
    assert fused.graph.node[1].attribute[1] == built.graph.node[1].attribute[1]
    assert fused.graph.node[0].SerializeToString() == built.graph.node[0].SerializeToString()
    kept = {"v", "never", *(f"m_{p}" for p in "bmv")}
    assert {t.name for t in fused.graph.initializer} >= kept
    assert "w" not in {t.name for t in fused.graph.initializer}
    before, after = (m.SerializeToString().count(future) for m in (built, fused))
    gone = sum(node.op_type in ("Conv", "BatchNormalization", "Add") for node in body.node)
    assert after == before - gone


def test_nothing_fuses_and_the_bytes_are_the_same():
    built = model(
        """(float[1,4,8,8] x, bool choose) => (float[] u) {
            u = If (choose) <
                then_branch = g1 () => (float[] s) { c = Conv(x, w) s = Relu(c) },
                else_branch = g2 () => (float[] t) { t = Identity(x) }> }""",
        w=(4, 4, 1, 1),
    )
    fused, report = onnxfuse.fuse(built)
    assert not report.changed
    assert fused.SerializeToString() == built.SerializeToString()


def test_overridable_weights_are_respected():
    built = model(
        f"""(float[1,4,8,8] x, bool choose, float[4,4,3,3] w) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{ c = Conv{K3}(x, w) {bn("s", "c", "n")} }},
                else_branch = g2 () => (float[] t) {{ t = Relu(x) }}> }}""",
        **WEIGHTS,
    )  # fmt: skip
    _, report = fuse(built)
    assert not report.changed
    assert [(r.code, r.scope) for r in report.refusals] == [
        ("overridable-initializer", "then_branch of If 'u'")
    ]


def test_only_and_except_reach_bodies():
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{ c = Conv{K3}(x, w) {bn("s", "c", "n")} }},
                else_branch = g2 () => (float[] t) {{ d = Conv{K3}(x, v) {bn("t", "d", "m")} }}>
        }}""",
        **WEIGHTS,
    )  # fmt: skip
    for node in [n for graph in nested(built) for n in graph.node]:
        node.name = node.output[0]
    assert places(fuse(built, without=["s"])[1]) == [("t", "else_branch of If 'u'")]
    assert places(fuse(built, only=["c", "s"])[1]) == [("s", "then_branch of If 'u'")]


def test_a_constant_node_outside_goes_with_its_last_reader():
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{ c = Conv{K3}(x, k) {bn("s", "c", "n")} }},
                else_branch = g2 () => (float[] t) {{ t = Relu(x) }}> }}""",
        **norm("n", 4),
    )  # fmt: skip
    value = numpy_helper.from_array(integers("k", 4, 4, 3, 3), "k")
    built.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=value))
    fused, report = fuse(built)
    assert report.changed
    assert [node.op_type for node in fused.graph.node] == ["If"]


def test_a_body_without_nodes_and_one_that_gives_its_state_back():
    built = model(
        """(float[1,4,8,8] x, int64 n, bool more) => (float[] u) {
            u = Loop (n, more, x) <
                body = g1 (int64 i, bool on, float[1,4,8,8] h) => (bool on, float[] h) {}> }"""
    )
    fused, report = onnxfuse.fuse(built)
    assert not report.changed
    assert fused.SerializeToString() == built.SerializeToString()


def test_a_jump_in_a_body_is_not_taken_for_a_difference():
    """Rounding in a fused body may turn an ArgMax around; what lies behind it is not compared."""
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{
                    c = Conv{K3}(x, w) {bn("b", "c", "n")}
                    j = ArgMax<axis = 1>(b) s = Cast<to = 1>(j) }},
                else_branch = g2 () => (float[] t) {{ t = Relu(x) }}> }}""",
        **WEIGHTS,
    )  # fmt: skip
    _, report = fuse(built)
    assert report.changed
    assert any("discontinuous" in note for note in report.verification.notes)


def test_weights_of_a_body_may_lie_beside_the_model(tmp_path):
    built = model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{ c = Conv{K3}(x, w) {bn("s", "c", "n")} }},
                else_branch = g2 () => (float[] t) {{ t = Relu(x) }}> }}""",
        **norm("n", 4),
    )  # fmt: skip
    array = integers("w", 4, 4, 3, 3)
    (tmp_path / "w.bin").write_bytes(array.tobytes())
    body = built.graph.node[0].attribute[0].g
    tensor = body.initializer.add(name="w", dims=array.shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(built.SerializeToString())
    _, report = onnxfuse.fuse(tmp_path / "m.onnx")
    assert places(report) == places(onnxfuse.plan(tmp_path / "m.onnx"))
    assert [region.root for region in report.regions] == ["s"]
    assert report.verification.status == "passed"


def test_nothing_is_steered_beside_a_loop():
    """A branch that is forced might keep a Loop going for ever."""
    built = model(
        f"""(float[1,4,8,8] x, bool start) => (float[] u) {{
            u, w8 = Loop (, start, x, start) <
                body = g1 (int64 i, bool on, float[1,4,8,8] h, bool k)
                => (bool o, float[] r, bool o2) {{
                    o = If (on) <
                        then_branch = g2 () => (bool f) {{ f = Identity(no) }},
                        else_branch = g3 () => (bool g) {{ g = Identity(on) }}>
                    r = If (on) <
                        then_branch = g4 () => (float[] s) {{
                            c = Conv{K3}(h, w) {bn("s", "c", "n")} }},
                        else_branch = g5 () => (float[] t) {{ t = Relu(h) }}>
                    o2 = Identity(o) }}> }}""",
        no=np.array(False), **WEIGHTS,
    )  # fmt: skip
    _, report = fuse(built)
    assert places(report) == [("s", "then_branch of If 'r', body of Loop 'u'")]
    assert not any("branches" in run for run in report.verification.runs)


def test_explain_speaks_of_nodes_in_bodies(tmp_path, capfd):
    from onnxfuse.cli import main

    built = model(LOOP.replace("PADS", K3), w=(4, 4, 3, 3), **norm("n", 4))
    onnx.save(built, tmp_path / "m.onnx")
    assert main(["explain", str(tmp_path / "m.onnx"), "--node", "b"]) == 0
    assert "b (body of Loop 'u')" in capfd.readouterr().out
    assert main(["check", str(tmp_path / "m.onnx"), "--quiet"]) == 1


def test_a_constant_named_like_something_around_it_is_not_believed():
    """Runtimes disagree whose it is, so the body stays."""
    built = model(
        """(float[1,4,8,8] x, bool choose) => (float[] u) {
            u = If (choose) <
                then_branch = g1 () => (float[] s) { a = Mul(x, k) b = Mul(a, k) s = Relu(b) },
                else_branch = g2 () => (float[] t) { t = Mul(x, k) }> }""",
        k=np.float32(2),
    )
    body = built.graph.node[0].attribute[0].g
    body.initializer.append(numpy_helper.from_array(np.float32(5), "k"))
    fused, report = onnxfuse.fuse(built)
    assert fused == built
    kept = [r for r in report.refusals if r.code == "malformed"]
    assert ["'k'" in r.text for r in kept] == [True]
