"""Cases that once went wrong, each with the smallest model that showed it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import bn, fuse, model, norm, ops

import onnxfuse
from onnxfuse.algebra.expression import vector
from onnxfuse.algebra.form import Facts
from onnxfuse.cli import main

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
STATIC = "(float[1,4,8,8] x) => (float[1,4,8,8] y)"
UNIT = {"s": np.ones(4, np.float32), "z": np.zeros(4, np.float32)}


@pytest.mark.parametrize("variance", [1.0, 0.01, 0.0])
def test_a_batch_normalization_without_epsilon_has_the_default_in_float32(variance: float) -> None:
    built = model(
        STATIC + "{ a = Conv(x, w) y = BatchNormalization(a, s, z, z, v) }",
        w=(4, 4, 1, 1),
        v=np.full(4, variance, np.float32),
        **UNIT,
    )
    fused, _ = onnxfuse.fuse(built)
    assert ops(fused) == ["Conv"]


def test_one_large_channel_does_not_widen_what_is_accepted_in_others() -> None:
    facts = Facts(2.0**-24)

    def constant(*values: float):
        return vector("c", len(values), lambda: np.array(values))

    assert facts.equal(constant(1e6, 1.0, 2.0, 0.5), constant(1e6, 1.0 + 2e-7, 2.0, 0.5), 4)
    assert not facts.equal(constant(1e6, 1.0, 2.0, 0.5), constant(1e6, 1.001, 2.0, 0.5), 4)
    assert not facts.equal(constant(np.inf, 1.0), constant(np.inf, 1.0), 2)


@pytest.mark.parametrize(
    ("readers", "expected"),
    [
        ("y = Mul(t, k) z = Conv(t, w2)", ["Conv", "Mul", "Conv"]),
        ("y = Conv(t, w2) z = Conv(t, w4)", ["Conv", "Conv", "Conv"]),
    ],
)
def test_a_merged_tensor_with_two_linear_readers_is_merged(
    readers: str, expected: list[str]
) -> None:
    text = (
        "(float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] z)"
        "{ a = Conv<pads = [1,1,1,1]>(x, w3) c = Conv(x, w1) t = Add(a, c) " + readers + "}"
    )
    names = {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1), "w4": (4, 4, 1, 1)}
    used = {name: shape for name, shape in names.items() if name in text}
    if "k" in readers.replace("kernel", "").split("(")[1]:
        used["k"] = (4, 1, 1)
    fused, report = onnxfuse.fuse(model(text, **used))
    assert sorted(ops(fused)) == sorted(expected)
    assert report.after.macs <= report.before.macs


@pytest.mark.parametrize("negative", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
def test_negative_indices_of_a_border_assignment(negative: tuple[int, ...]) -> None:
    """BNAndPad with any axis counted from the end, which onnxruntime accepts."""
    shape = (1, 4, 10, 10)
    bias = np.array([1, 2, 3, 4], np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["t0"], name="pointwise"),
        helper.make_node("Pad", ["t0", "pads"], ["t1"], name="pad"),
    ]
    tensors = {
        "w": np.arange(16, dtype=np.float32).reshape(4, 4, 1, 1) / 8,
        "b": bias,
        "k": np.ones((4, 4, 3, 3), np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    for number, (axis, at) in enumerate([(2, 0), (2, 9), (3, 0), (3, 9)]):
        grid = [range(size) for size in shape]
        grid[axis] = range(at, at + 1)
        indices = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1)
        updates = np.broadcast_to(bias.reshape(1, 4, 1, 1), indices.shape[:-1]).copy()
        for counted in negative:
            indices[..., counted] -= shape[counted]
        tensors |= {f"i{number}": indices, f"u{number}": updates}
        nodes.append(
            helper.make_node(
                "ScatterND", [f"t{number + 1}", f"i{number}", f"u{number}"], [f"t{number + 2}"]
            )
        )
    nodes.append(helper.make_node("Conv", ["t5", "k"], ["y"], name="square"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    fused, _ = onnxfuse.fuse(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert ops(fused) == ["Conv"]


def test_an_output_that_is_no_regular_file_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main([str(FIXTURES / "repvgg_s1_g1.ts.onnx"), str(pipe)]) == 2
    assert "regular file" in capsys.readouterr().err
    assert pipe.is_fifo()


def test_an_original_that_cancels_is_told_from_a_wrong_fusion() -> None:
    built = model(
        STATIC + "{ a = Conv(x, w, b) y = BatchNormalization(a, s, z, m, s) }",
        w=np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32),
        b=np.full(4, 5000, np.float32),
        m=np.full(4, 5000, np.float32),
        **UNIT,
    )
    fused, report = onnxfuse.fuse(built)
    assert ops(fused) == ["Conv"]
    assert report.verification.status == "passed"


def test_padding_with_infinity_is_left_alone() -> None:
    built = model(
        "(float[1,4,8,8] x) => (float[1,4,8,8] y)"
        "{ a = Conv(x, w1) p = Pad(a, by, v) y = Conv(p, w3) }",
        w1=(4, 4, 1, 1),
        w3=(4, 4, 3, 3),
        by=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        v=np.array(np.inf, np.float32),
    )
    fused, report = onnxfuse.fuse(built)
    assert fused == built
    assert "border-bias" in {str(r.code) for r in report.refusals}


def test_an_empty_dimension_is_left_alone() -> None:
    built = model(
        "(float[1,4,0,8] x) => (float[1,4,0,8] y) { a = Mul(x, k) y = Add(a, k) }", k=(4, 1, 1)
    )
    fused, report = onnxfuse.fuse(built)
    assert fused == built
    assert not report.changed


def test_a_tensor_that_is_input_and_output_keeps_its_shape() -> None:
    built = model(
        "(float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] x)"
        "{ a = Conv<pads = [1,1,1,1]>(x, w3) c = Conv(x, w1) y = Add(a, c) }",
        w3=(4, 4, 3, 3),
        w1=(4, 4, 1, 1),
    )
    fused, report = onnxfuse.fuse(built)
    assert ops(fused) == ["Conv"]
    assert report.before.macs == 64 * 16 * 10


def test_a_padding_of_nothing_may_have_any_value() -> None:
    built = model(
        "(float[1,4,8,8] x, float v) => (float[1,4,8,8] y)"
        "{ a = Conv(x, w1) p = Pad(a, by, v) y = Mul(p, k) }",
        w1=(4, 4, 1, 1),
        by=np.zeros(8, np.int64),
        k=(4, 1, 1),
    )
    fused, _ = onnxfuse.fuse(built)
    assert ops(fused) == ["Conv"]
    onnx.checker.check_model(fused)


def test_a_fixed_size_too_large_to_prove_is_refused() -> None:
    built = model(
        "(float[8,64,512,512] x) => (float[8,64,500,512] y)"
        "{ a = Conv(x, w) y = Slice(a, lo, hi, at) }",
        w=(64, 1, 1, 1),
        lo=np.array([0]),
        hi=np.array([500]),
        at=np.array([2]),
    )
    built.graph.node[0].attribute.append(helper.make_attribute("group", 64))
    fused, report = onnxfuse.fuse(built, verify=False)
    assert fused == built
    assert "size-limit" in {str(r.code) for r in report.refusals}


def test_a_sum_of_two_outputs_frees_neither_of_them() -> None:
    """Three regions that share nodes are one account, whichever of them was met first."""
    built = model(
        "(float[3,1,6,6] x) => (float[] y, float[] b, float[] a)"
        f"{{ p = Conv<pads = [0,2,0,2]>(x, w) {bn('a', 'p', 'n')} m = Mul(a, k)"
        " u = Unsqueeze(x, four) q = Conv<pads = [0,2,0,1,3,0]>(u, v) b = Squeeze(q, four)"
        " y = Add(m, b) }",
        w=(1, 1, 1, 3), v=(1, 1, 2, 4, 1), k=(1, 1, 1), four=np.array([4]), **norm("n", 1),
    )  # fmt: skip
    fused, _ = fuse(built, exact=False)
    assert ops(fused).count("Conv") == 2
    assert ops(fused)[-1] == "Add"


def test_what_a_node_of_a_region_also_computes_is_not_drawn_apart() -> None:
    """The region reads the second half of its own Split as a tensor that stands."""
    built = model(
        "(float[3,4,11,3] x) => (float[] y, float[] c)"
        "{ a, b = Split<axis = 1>(x, halves) c = Conv<pads = [1,0,1,0]>(b, w) d = Conv(c, v)"
        " e = Concat<axis = 1>(d, a) f = Add(e, k) y = Conv<group = 6>(f, g) }",
        w=(2, 1, 3, 1), v=(3, 2, 1, 1), g=(6, 1, 1, 1), k=(1, 1, 1, 1), halves=np.array([3, 1]),
    )  # fmt: skip
    fused, _ = fuse(built, exact=False)
    assert ops(fused) != ops(built)


def test_a_weight_that_is_a_graph_output_has_a_shape() -> None:
    built = model(
        "(float[1,4,8,8] x) => (float[] y, float[4,4,1,1] w1)"
        "{ a = Conv<pads = [1,1,1,1]>(x, w3) c = Conv(x, w1) y = Add(a, c) }",
        w3=(4, 4, 3, 3),
        w1=(4, 4, 1, 1),
    )
    fused, _ = fuse(built)
    assert ops(fused) == ["Conv"]


def test_a_tensor_that_is_doubled_many_times_is_one_factor() -> None:
    """Paths double with each sum; walking them all never ended."""
    sums = " ".join(f"a{i + 1} = Add(a{i}, a{i})" for i in range(40))
    built = model(f"(float[1,4,8,8] a0) => (float[] y) {{ {sums} y = Relu(a40) }}")
    fused, _ = fuse(built)
    assert ops(fused) == ["Mul", "Relu"]


def test_a_shape_taken_from_between_two_reshapes_is_not_that_of_the_first() -> None:
    """x as rows, as maps, as rows, and back to the maps, whose rank x has by coincidence."""
    rows, maps = np.array([-1, 6]), np.array([-1, 4, 3, 6])
    built = model(
        "(float[N,6,4,3] x) => (float[] y)"
        "{ f = Reshape(x, rows) m = Reshape(f, maps) q = Reshape(m, rows) s = Shape(m)"
        " r = Reshape(q, s) p = MatMul(r, w) a = Add(p, c) k = Mul(a, c) y = Relu(k) }",
        rows=rows, maps=maps, w=(6, 6), c=(6,),
    )  # fmt: skip
    fuse(built, 2, 4, exact=False)


def test_a_source_twice_as_long_as_another_is_not_shortened_by_as_much() -> None:
    built = model(
        f"(float[N,1,11,8] x) => (float[] y, float[] z)"
        f"{{ a = ConvTranspose<strides = [2,1], pads = [1,2,0,1]>(x, w)"
        f" b = ConvTranspose<strides = [2,1], pads = [2,2,0,1]>(x, v) {bn('c', 'b', 'n')}"
        f" d = Add(a, c) e = Conv<group = 4>(d, k) y = Add(e, o) z = Relu(b) }}",
        w=(1, 4, 3, 4), v=(1, 4, 4, 4), k=(4, 1, 1, 1), o=(1,), **norm("n", 4),
    )  # fmt: skip
    _, report = onnxfuse.fuse(built)
    assert report.changed
