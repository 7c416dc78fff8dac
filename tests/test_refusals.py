"""Every reason code is said of a model, where it stands; no linear place is passed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import model
from refused import CASES, IN, K1, OPEN, QUANTA

import onnxfuse
from onnxfuse.fusing import explain_model
from onnxfuse.options import Options
from onnxfuse.refusal import Code
from onnxfuse.watch import Watch


@pytest.mark.parametrize(
    ("code", "number"),
    [(code, number) for code in Code for number in range(len(CASES.get(code, [])) or 1)],
)
def test_every_code_is_said_of_a_model(code: Code, number: int) -> None:
    found = CASES[code][number]
    report, others = explain_model(found.build(), Options(**found.options), Watch())
    places = others() if found.quiet else report.refusals
    mine = [kept for kept in places if kept.code == code and kept.node == found.node]
    assert [kept for kept in mine if found.says in kept.text], [str(kept) for kept in places]
    if found.quiet:
        assert found.node not in {kept.node for kept in report.refusals}


@pytest.mark.parametrize("number", range(len(CASES[Code.QUANTISED])))
def test_quantised_models_pass_untouched(number: int) -> None:
    built = CASES[Code.QUANTISED][number].build()
    fused, report = onnxfuse.fuse(built)
    assert not report.changed
    assert fused.SerializeToString() == built.SerializeToString()


def test_a_rounding_node_of_another_domain_may_read_nothing() -> None:
    built = model(f"{IN} {{ k = custom.DequantizeLinear() c = Conv(x, w) y = Mul(c, k) }}", w=K1)
    built.graph.node[0].domain = built.opset_import[1].domain = "com.microsoft"
    assert not onnxfuse.plan(built).changed


def test_integers_of_onnxruntime_are_known_as_such() -> None:
    built = model(
        f"""{IN} {{ c = Conv(x, w) q = QuantizeLinear(c, scale, zero)
            s = custom.QLinearAdd(q, scale, zero, q, scale, zero, scale, zero)
            y = DequantizeLinear(s, scale, zero) }}""",
        w=K1,
        **QUANTA,
    )
    built.graph.node[2].domain = built.opset_import[1].domain = "com.microsoft"
    fused, report = onnxfuse.fuse(built)
    assert fused == built
    assert [(kept.code, kept.node) for kept in report.refusals] == [(Code.QUANTISED, "s")]
    _, others = explain_model(built, Options(), Watch())
    assert {k.node: k.code for k in others()} == {
        "c": Code.ALONE, "q": Code.QUANTISED, "y": Code.QUANTISED,
    }  # fmt: skip


FIXTURES = Path(__file__).parent.parent / "fixtures"
SURELY = ("Conv", "ConvTranspose", "Gemm", "BatchNormalization", "AveragePool")
"""Operators that are linear whatever they read."""


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*/*.onnx"))[7::25], ids=lambda p: p.stem)
def test_no_linear_neighbours_stay_without_a_reason(path: Path) -> None:
    """What reads another linear operator and is not fused is not passed over, nor called alone."""
    graph = onnx.load(path, load_external_data=False).graph
    report, others = explain_model(path, Options(), Watch())
    fused = {name for found in report.regions for name in found.nodes}
    said = {kept.node: kept.code for kept in (*others(), *report.refusals)}
    made = {out: node for node in graph.node for out in node.output}
    for node in graph.node:
        behind = made.get(node.input[0]) if node.input else None
        if behind is None or {node.op_type, behind.op_type} - {*SURELY}:
            continue
        for label in {node.name, behind.name} - fused:
            assert said[label] not in (Code.ALONE, Code.NONLINEAR), label


def between(text: str, **tensors: object) -> dict[str, tuple[str, str]]:
    """What is said of each node of a model in which nothing fuses."""
    built = model(text, **tensors)
    report, others = explain_model(built, Options(), Watch())
    assert not report.regions
    return {kept.node: (kept.code.value, kept.text) for kept in (*others(), *report.refusals)}


def test_neighbours_point_at_what_stops_them() -> None:
    said = between(f"{IN} {{ c = Conv(x, w) i = Identity(c) y = Mul(i, s) }}", w=K1, s=(6,))
    assert said["y"] == ("broadcast", "its constant varies over an axis that is not the channels")
    assert said["c"] == ("broadcast", f"see 'y' next to it: {said['y'][1]}")
    assert said["i"][0] == "broadcast"


def test_what_would_gain_nothing_is_no_lack_of_neighbours() -> None:
    said = between(
        f"{IN} {{ r = Relu(x) c = Conv(x, w) d = Conv(r, v) y = Add(c, d) }}", w=K1, v=K1
    )
    assert said["y"] == ("cost", "merging it with 'c' gains nothing: as many operators remain")
    assert said["d"] == ("cost", "merging it with 'y' gains nothing: as many operators remain")


def test_a_linear_operator_without_a_law_is_not_called_nonlinear() -> None:
    said = between(
        f"{IN} {{ c = Conv(x, w) t = DepthToSpace <blocksize = 2> (c) y = Conv(t, v) }}",
        w=K1, v=(4, 1, 1, 1),
    )  # fmt: skip
    assert said["t"][0] == "unsupported"
    assert "DepthToSpace is linear, but no law takes it in" in said["t"][1]


def test_a_reshape_between_linear_operators_is_named() -> None:
    said = between(
        f"{IN} {{ c = Conv(x, w) t = Reshape(c, to) y = Conv(t, v) }}",
        w=K1, to=np.array([1, 6, 6, 4]), v=(4, 6, 1, 1),
    )  # fmt: skip
    assert said["t"] == (
        "channel-blocks", "it takes the channels' axis apart, so nothing merges across",
    )  # fmt: skip


def test_a_tensor_that_a_body_reads_is_no_graph_output() -> None:
    built = model(
        """(float[1,4,6,6] x, bool i) => (float[] y, float[] z) { c = Conv(x, w) y = Mul(c, k)
            z = If(i) <then_branch = t () => (float[1,4,6,6] r) { r = Relu(c) },
                       else_branch = e () => (float[1,4,6,6] q) { q = Exp(c) }> }""",
        w=K1,
        k=(4, 1, 1),
    )
    (kept,) = onnxfuse.plan(built).refusals
    assert (kept.code, kept.text) == (Code.READER, "'c' has another reader and stays")


EINSUM = """Einsum<equation = "nchw,oc->nohw">"""


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (f"b = {EINSUM}(a, m) y = Mul(b, k)", "Einsum is linear, but no law"),
        ("b = Expand(a, s) y = Mul(b, k)", "Expand is linear, but no law"),
        ("b = CastLike(a, x) y = Mul(b, k)", "CastLike is linear, but no law"),
        ("b = Cast<to = 11>(a) c = Neg(b) y = Cast<to = 1>(c)", "changes the type of the numbers"),
    ],
)
def test_a_linear_operator_without_a_law_between_others_is_named(nodes: str, says: str) -> None:
    held = {"m": (4, 4), "k": (4, 1, 1), "s": np.array([1, 4, 6, 6])}
    used = {name: value for name, value in held.items() if f", {name})" in nodes}
    found = onnxfuse.plan(model(f"{IN} {{ a = Conv(x, w) {nodes} }}", w=K1, **used)).refusals
    assert [(kept.code, kept.node) for kept in found] == [(Code.UNSUPPORTED, "b")]
    assert says in found[0].text


@pytest.mark.parametrize(
    ("nodes", "code", "says"),
    [
        ("u = custom.Foo(x) a = Conv(u, w) y = Relu(a)", Code.UNKNOWN_SHAPE, "type of 'a' cannot"),
        ("a = custom.Foo(x) y = Conv(a, w)", Code.NONLINEAR, "Foo is no operator of the standard"),
        ("a = Conv(x, w) b = Conv(x, v) y = Concat<axis = 1>(a, b)", Code.ALONE, "moves or joins"),
    ],
)
def test_what_is_said_of_a_node_is_true(nodes: str, code: Code, says: str) -> None:
    used = {"w": K1, "v": (4, 4, 2, 2)} if "v)" in nodes else {"w": K1}
    if "v)" in nodes:
        nodes = nodes.replace("Conv(x, v)", "Conv<pads = [0,0,1,1]>(x, v)")
    _, others = explain_model(model(f"{IN} {{ {nodes} }}", **used), Options(), Watch())
    (kept,) = (kept for kept in others() if kept.node == "a")
    assert kept.code == code
    assert says in kept.text


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ((-4, 2**62, 2, 1), "starts a fixed way before the end"),
        ((0, 5, 2, 1), "ends a fixed way from the start"),
        ((0, 4, 1, 2), "leaves out channels"),
    ],
)
def test_a_slice_says_which_bound_stops_it(bounds: tuple[int, ...], says: str) -> None:
    held = {name: np.array([value]) for name, value in zip("setp", bounds, strict=True)}
    text = f"{OPEN} {{ a = Conv(x, w) y = Slice(a, s, e, t, p) }}"
    (kept,) = onnxfuse.plan(model(text, w=K1, **held)).refusals
    assert says in kept.text
