"""Every reason code is said of a model, where it stands; no linear place is passed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import model
from refused import CASES, IN, K1, QUANTA

import onnxfuse
from onnxfuse.fusing import explain_model
from onnxfuse.options import Options
from onnxfuse.refusal import Code


@pytest.mark.parametrize(
    ("code", "number"),
    [(code, number) for code in Code for number in range(len(CASES.get(code, [])) or 1)],
)
def test_every_code_is_said_of_a_model(code: Code, number: int) -> None:
    found = CASES[code][number]
    report, others = explain_model(found.build(), Options(**found.options))
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
    _, others = explain_model(built, Options())
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
    report, others = explain_model(path, Options())
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
    report, others = explain_model(built, Options())
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
