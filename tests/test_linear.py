"""Linear layers: Gemm and MatMul as maps of one tap over the channels, wherever those stand.

ONNX text in, operators and refusals out; what fuses is run and must be equal to the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import assert_equal_results, bn, fuse, integers, model, norm, ops

import onnxfuse

ROWS = "(float[N,4] x) => (float[] y)"
TOKENS = "(float[N,T,4] x) => (float[] y)"
PIXELS = "(float[N,H,W,4] x) => (float[] y)"
W45, W56, N4, N5 = {"w": (4, 5)}, {"v": (5, 6)}, norm("n", 4), norm("m", 5)
TURN = "Transpose<perm = [0,2,1]>"


class Case(NamedTuple):
    """Nodes over ``x``, the operators they become, and the codes of what is refused."""

    nodes: str
    tensors: dict[str, object]
    ops: str
    codes: tuple[str, ...] = ()
    graph: str = ROWS
    opset: int = 17

    def build(self) -> onnx.ModelProto:
        return model(f"{self.graph} {{ {self.nodes} }}", self.opset, **self.tensors)


CASES = {
    # rank 0
    "bn, gemm": Case(f"{bn('a', 'x', 'n')} y = Gemm(a, w, c)", {**W45, "c": (5,), **N4}, "Gemm"),
    "gemm, bn": Case(f"a = Gemm(x, w) {bn('y', 'a', 'm')}", {**W45, **N5}, "Gemm"),
    "transposed, scaled": Case(
        f"a = Gemm<transB = 1, alpha = 2.0, beta = -3.0>(x, w, c) {bn('y', 'a', 'm')}",
        {"w": (5, 4), "c": (5,), **N5}, "Gemm"),
    "matmul, add, bn": Case(f"a = MatMul(x, w) b = Add(a, c) {bn('y', 'b', 'm')}",
                            {**W45, "c": (5,), **N5}, "Gemm"),
    "gemm, gemm": Case("a = Gemm(x, w, c) y = Gemm(a, v)", {"w": (4, 9), "v": (9, 3), "c": (9,)},
                       "Gemm"),
    "scalar addend": Case("a = Gemm(x, w, c) y = Mul(a, k)", {**W45, "c": (), "k": (5,)}, "Gemm"),
    "row addend": Case("a = Gemm(x, w, c) y = Mul(a, k)", {**W45, "c": (1, 5), "k": (1, 5)},
                       "Gemm"),
    "two heads": Case("a = Gemm(x, w, c) b = Gemm(x, v, c) s = Add(a, b) y = Div(s, two)",
                      {**W45, "v": (4, 5), "c": (5,), "two": np.float32(2)}, "Gemm"),
    "joined heads": Case("a = Gemm(x, w, c) b = Gemm(x, v, c) y = Concat<axis = 1>(a, b)",
                         {**W45, "v": (4, 5), "c": (5,)}, "Gemm"),
    "identity beside": Case("a = Gemm(x, w, c) y = Add(a, x)", {"w": (4, 4), "c": (4,)}, "Gemm"),
    "opset 9": Case("a = MatMul(x, w) y = Mul(a, k)", {**W45, "k": (5,)}, "Gemm", opset=9),
    # channels last
    "tokens": Case("a = MatMul(x, w) b = Add(a, c) y = Mul(b, k)",
                   {**W45, "c": (5,), "k": (5,)}, "MatMul Add", graph=TOKENS),
    "affine before": Case("a = Mul(x, k) b = Add(a, c) y = MatMul(b, w)",
                          {**W45, "c": (4,), "k": (4,)}, "MatMul Add", graph=TOKENS),
    "scalar": Case("a = MatMul(x, w) y = Mul(a, k)", {**W45, "k": ()}, "MatMul", graph=TOKENS),
    "adapter": Case(
        """a = MatMul(x, w) p = MatMul(x, d) q = MatMul(p, u) r = Mul(q, k) s = Add(a, r)
           y = Add(s, c)""",
        {**W45, "d": (4, 2), "u": (2, 5), "k": (1,), "c": (5,)}, "MatMul Add", graph=TOKENS),
    "adapter of rows": Case(
        "a = Gemm(x, w, c) p = MatMul(x, d) q = MatMul(p, u) r = Mul(q, k) y = Add(a, r)",
        {**W45, "d": (4, 2), "u": (2, 5), "k": (), "c": (5,)}, "Gemm"),
    "pixels": Case("a = MatMul(x, w) y = MatMul(a, v)", {"w": (4, 9), "v": (9, 3)}, "MatMul",
                   graph=PIXELS),
    "matrix of rank 3": Case("a = MatMul(x, w) y = Mul(a, k)", {"w": (1, 4, 5), "k": (5,)},
                             "MatMul", graph=TOKENS),
    "RepBN": Case(
        f"t = {TURN}(x) {bn('b', 't', 'n')} u = {TURN}(b) a = Mul(k, x) s = Add(a, u) "
        "y = MatMul(s, w)",
        {**W45, **N4, "k": (1,)}, "MatMul Add", graph=TOKENS),
    "bn of transposed tokens": Case(
        f"a = MatMul(x, w) t = {TURN}(a) {bn('b', 't', 'm')} y = {TURN}(b)",
        {**W45, **N5}, "MatMul Add", graph=TOKENS),
    "joined": Case("a = MatMul(x, w) b = MatMul(x, v) y = Concat<axis = 2>(a, b)",
                   {**W45, "v": (4, 3)}, "MatMul", graph=TOKENS),
    "split": Case("a, b = Split<axis = 2>(x) c = MatMul(a, w) d = MatMul(b, v) y = Add(c, d)",
                  {"w": (2, 5), "v": (2, 5)}, "MatMul", graph=TOKENS),
    "behind a convolution": Case(
        """c = Conv(x, k) t = Transpose<perm = [0,2,3,1]>(c) m = MatMul(t, w) y = Add(m, b)""",
        {"k": (4, 4, 1, 1), "w": (4, 3), "b": (3,)}, "Conv Transpose",
        graph="(float[N,4,H,W] x) => (float[] y)"),
    # refused
    "in front of a convolution": Case(
        "m = MatMul(x, w) t = Transpose<perm = [0,3,1,2]>(m) y = Conv(t, k)",
        {**W45, "k": (3, 5, 1, 1)}, "MatMul Transpose Conv", ("unsupported",), graph=PIXELS),
    "another axis": Case(f"t = {TURN}(x) a = Mul(t, k) y = MatMul(a, w)",
                         {"w": (3, 5), "k": (4, 1)}, "Transpose Mul MatMul", ("broadcast",),
                         graph="(float[N,3,4] x) => (float[] y)"),
    "constant on the left": Case("a = MatMul(w, x) y = Mul(a, k)", {"w": (5, 3), "k": ()},
                                 "MatMul Mul", ("unsupported",),
                                 graph="(float[N,3,4] x) => (float[] y)"),
    "a matrix for each of the batch": Case("a = MatMul(x, w) y = Mul(a, k)",
                                           {"w": (2, 4, 5), "k": (5,)}, "MatMul Mul",
                                           ("unsupported",),
                                           graph="(float[2,3,4] x) => (float[] y)"),
    "an addend for each row": Case("a = Gemm(x, w, c) y = Mul(a, k)",
                                   {**W45, "c": (2, 5), "k": (5,)}, "Gemm Mul", ("broadcast",),
                                   graph="(float[2,4] x) => (float[] y)"),
    "a transposed input": Case("a = Gemm<transA = 1>(x, w) y = Mul(a, k)", {**W45, "k": (5,)},
                               "Gemm Mul", ("unsupported",),
                               graph="(float[4,N] x) => (float[] y)"),
    "a bottleneck": Case("a = MatMul(x, w) y = MatMul(a, v)", {"w": (4, 1), "v": (1, 5)},
                         "MatMul MatMul", ("cost",), graph=TOKENS),
    "a matrix that is data": Case("a = MatMul(x, z) y = Mul(a, k)", {"k": ()}, "MatMul Mul",
                                  graph="(float[N,T,4] x, float[4,5] z) => (float[] y)"),
    "an overridable matrix": Case("a = MatMul(x, w) y = Mul(a, k)", {**W45, "k": ()}, "MatMul Mul",
                                  ("overridable-initializer",),
                                  graph="(float[N,T,4] x, float[4,5] w) => (float[] y)"),
    "an embedding": Case(
        "e = Gather(w, i) t = Transpose<perm = [1,0]>(w) a = Mul(x, k) z = MatMul(a, t) "
        "y = Relu(z)",
        {"w": (9, 4), "k": (4,)}, "Gather Transpose Mul MatMul Relu", ("shared-kernel",),
        graph="(float[N,T,4] x, int64[N,T] i) => (float[] y, float[] e)"),
    "a layer norm": Case(
        """m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Mul(d, d)
           v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) r = Sqrt(e) n = Div(d, r)
           g = Mul(n, k) b = Add(g, c) y = MatMul(b, w)""",
        {**W45, "k": (4,), "c": (4,), "eps": np.float32(1e-5)},
        "ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul Add MatMul", ("activation-constant",),
        graph=TOKENS),
    "an RMS norm": Case(
        """q = Pow(x, two) v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) r = Sqrt(e)
           i = Reciprocal(r) n = Mul(x, i) g = Mul(k, n) y = MatMul(g, w)""",
        {**W45, "k": (4,), "two": np.float32(2), "eps": np.float32(1e-5)},
        "Pow ReduceMean Add Sqrt Reciprocal Mul Mul MatMul", ("activation-constant",),
        graph=TOKENS),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_linear_layers(name: str) -> None:
    case = CASES[name]
    original = case.build()
    fused, codes = fuse(original, 7, 2)
    assert " ".join(ops(fused)) == case.ops
    assert codes == set(case.codes)


def test_a_shared_matrix_is_freed_only_by_all_its_readers() -> None:
    two = "(float[N,T,4] x) => (float[] y, float[] z)"
    built = model(f"{two} {{ a = Mul(x, k) y = MatMul(a, w) z = MatMul(x, w) }}", w=(4, 5), k=(4,))
    fused, codes = fuse(built)
    assert ops(fused) == ops(built)
    assert codes == {"shared-kernel"}


def test_a_matmul_keeps_its_place_among_names() -> None:
    fused, _ = fuse(CASES["tokens"].build())
    assert [list(n.output) for n in fused.graph.node][-1] == ["y"]
    stored = {t.name: numpy_helper.to_array(t) for t in fused.graph.initializer}
    assert {a.shape for a in stored.values()} == {(4, 5), (5,)}
    expected = integers("w", 4, 5) * integers("k", 5)
    assert any(np.array_equal(a, expected) for a in stored.values())


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_a_leaky_relu_of_slope_one_is_no_activation(slope: float) -> None:
    nodes = f"a = Conv(x, w) b = LeakyRelu<alpha = {slope}>(a) y = Conv(b, v)"
    text = f"(float[1,4,6,6] x) => (float[] y) {{ {nodes} }}"
    fused, _ = fuse(model(text, w=(8, 4, 1, 1), v=(4, 8, 1, 1)))
    assert ops(fused) == (["Conv"] if slope == 1 else ["Conv", "LeakyRelu", "Conv"])


@pytest.mark.parametrize("slopes", [np.ones((4, 1, 1)), np.ones(()), np.array([1, 1, 2, 1])])
def test_nor_is_a_prelu_of_slopes_one(slopes: np.ndarray) -> None:
    built = model(
        "(float[1,4,6,6] x) => (float[] y) { a = Conv(x, w) b = PRelu(a, s) y = Conv(b, v) }",
        w=(4, 4, 1, 1), v=(4, 4, 1, 1), s=np.float32(slopes.reshape(-1, 1, 1)),
    )  # fmt: skip
    fused, _ = fuse(built)
    assert ops(fused) == (["Conv"] if np.all(slopes == 1) else ["Conv", "PRelu", "Conv"])


def test_zeros_along_an_axis_that_is_no_channel_are_left() -> None:
    """An Add of zeros pins the length of the axis it varies over; found by a random graph."""
    turn, back = "Transpose<perm = [0,3,1,2]>", "Transpose<perm = [0,2,3,1]>"
    nodes = f"t = {turn}(x) a = Add(t, z) u = {back}(a) y = Tanh(u)"
    built = model(
        f"(float[N,4,4,6] x) => (float[] y) {{ {nodes} }}",
        z=np.zeros((1, 6, 1, 1), np.float32),
    )
    fused, report = onnxfuse.fuse(built)
    assert report.verification is not None
    assert_equal_results(built, fused, 2)


def test_an_unsqueezed_axis_of_length_one_is_none() -> None:
    """Of a window over it one tap sees data; a Conv 1×3 there is a Conv 3."""
    nodes = """u = Unsqueeze(x, two) a = Conv<pads = [0,1,0,1]>(u, w)
        b = Conv<pads = [1,0,1,0]>(u, v) s = Add(a, b) q = Squeeze(s, two) y = Add(q, x)"""
    built = model(
        f"(float[N,4,L] x) => (float[] y) {{ {nodes} }}",
        w=(4, 4, 1, 3), v=(4, 4, 3, 1), two=np.array([2], np.int64),
    )  # fmt: skip
    fused, codes = fuse(built, 7, 1)
    assert ops(fused) == ["Conv"]
    assert codes == set()


@pytest.mark.parametrize(
    ("pads", "taps", "passed"),
    [([1, 0, 1, 0], 1, False), ([2, 0, 0, 0], 3, True), ([0, 0, 2, 0], 3, True)],
)
def test_of_a_padded_window_over_it_one_tap_counts(
    pads: list[int], taps: int, passed: bool
) -> None:
    nodes = f"r = Mul(x, k) u = Unsqueeze(r, two) y = Conv<pads = {pads}>(u, w)"
    built = model(
        f"(float[N,4,L] x) => (float[] y) {{ {nodes} }}",
        w=(4, 4, taps, 1), k=(4, 1), two=np.array([2], np.int64),
    )  # fmt: skip
    fused, _ = fuse(built, 7)
    assert ops(fused) == (["Conv", "Unsqueeze"] if passed else ["Mul", "Unsqueeze", "Conv"])


I64 = {name: np.array(values, np.int64) for name, values in {
    "rows": [-1, 5], "rows4": [-1, 4], "split": [0, -1, 2, 2], "keep": [0, 4, -1], "flat": [0, -1],
    "three": [-1, 3, 5], "square": [0, 4, 2, 3],
}.items()}  # fmt: skip
RESHAPED = {
    "a BN of rows, and the shape that was": Case(
        f"m = MatMul(x, w) f = Reshape(m, rows) {bn('b', 'f', 'm')} s = Shape(m) r = Reshape(b, s) "
        "y = Relu(r)",
        {**W45, **N5, "rows": I64["rows"]}, "MatMul Add Relu", graph=TOKENS),
    "the same, its sizes one by one": Case(
        f"""m = MatMul(x, w) f = Flatten<axis = 2>(m) {bn('b', 'f', 'm')}
            i = Shape<start = 0, end = 1>(x) j = Shape<start = 1, end = 2>(x)
            s = Concat<axis = 0>(i, j, five) r = Reshape(b, s) y = Relu(r)""",
        {**W45, **N5, "five": np.array([5], np.int64)}, "Reshape Gemm Reshape Relu", graph=TOKENS),
    "a layer of rows": Case(
        "f = Reshape(x, rows4) a = Mul(f, k) g = Gemm(a, w) y = Relu(g)",
        {**W45, "k": (4,), "rows4": I64["rows4"]}, "Reshape Gemm Relu", graph=TOKENS),
    "positions joined": Case(
        f"{bn('b', 'x', 'n')} r = Reshape(b, keep) t = {TURN}(r) m = MatMul(t, w) y = Relu(m)",
        {**W45, **N4, "keep": I64["keep"]}, "Reshape Conv Transpose Relu",
        graph="(float[N,4,2,3] x) => (float[] y)"),
    "channels and positions joined": Case(
        f"{bn('b', 'x', 'n')} f = Flatten(b) y = Gemm(f, w, c)",
        {"w": (24, 5), "c": (5,), **N4}, "Flatten Gemm", graph="(float[N,4,2,3] x) => (float[] y)"),
    "joined by Reshape": Case(
        f"{bn('b', 'x', 'n')} f = Reshape(b, flat) y = Gemm(f, w, c)",
        {"w": (24, 5), "c": (5,), "flat": I64["flat"], **N4}, "Reshape Gemm",
        graph="(float[N,4,2,3] x) => (float[] y)"),
    "channels last and positions joined": Case(
        "b = Mul(x, k) f = Flatten(b) g = Gemm(f, w) y = Relu(g)",
        {"w": (24, 5), "k": (4,)}, "Mul Flatten Gemm Relu", ("broadcast",),
        graph="(float[N,2,3,4] x) => (float[] y)"),
    "joined behind a dense map": Case(
        "c = Conv(x, k) f = Flatten(c) g = Gemm(f, w) y = Relu(g)",
        {"w": (24, 5), "k": (4, 4, 1, 1)}, "Conv Flatten Gemm Relu", ("channel-blocks",),
        graph="(float[N,4,2,3] x) => (float[] y)"),
    "heads taken apart": Case(
        "m = MatMul(x, w) r = Reshape(m, split) y = Mul(r, k)",
        {"w": (4, 4), "k": (1, 1, 2, 1), "split": I64["split"]}, "MatMul Reshape Mul",
        ("channel-blocks",), graph=TOKENS),
    "behind a window": Case(
        "c = Conv<pads = [1,1,1,1]>(x, k) r = Reshape(c, keep) a = Mul(r, h) y = Relu(a)",
        {"k": (4, 4, 3, 3), "h": (4, 1), "keep": I64["keep"]}, "Conv Reshape Mul Relu",
        ("unsupported",), graph="(float[N,4,2,3] x) => (float[] y)"),
    "another shape than before": Case(
        f"m = MatMul(x, w) f = Reshape(m, rows) {bn('b', 'f', 'm')} r = Reshape(b, three) "
        "y = Relu(r)",
        {**W45, **N5, "rows": I64["rows"], "three": I64["three"]}, "Reshape Gemm Reshape Relu",
        graph="(float[N,6,4] x) => (float[] y)"),
    "rows that only some batches fill": Case(
        "f = Reshape(x, pairs) a = Mul(f, k) r = Reshape(a, maps) b = Mul(r, h) y = Relu(b)",
        {"k": (2,), "h": (2,), "pairs": np.array([-1, 2], np.int64),
         "maps": np.array([-1, 8, 8, 2], np.int64)}, "Reshape Reshape Mul Relu",
        graph="(float[N,4,8,8] x) => (float[] y)"),
    "back to the map": Case(
        f"r = Reshape(x, keep) a = Mul(r, k) q = Reshape(a, square) {bn('b', 'q', 'n')} "
        "y = Relu(b)",
        {"k": (4, 1), "keep": I64["keep"], "square": I64["square"], **N4},
        "BatchNormalization Relu", graph="(float[2,4,2,3] x) => (float[] y)"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESHAPED)
def test_maps_of_one_tap_pass_a_reshape(name: str) -> None:
    case = RESHAPED[name]
    fused, codes = fuse(case.build(), 6, 2)
    assert " ".join(n for n in ops(fused) if n not in ("Shape", "Concat")) == case.ops
    assert codes == set(case.codes)


def test_a_reshape_that_stays_keeps_what_it_takes_sizes_from() -> None:
    """The sizes come from the product, so a plan that drops the product must drop the Reshape."""
    case = RESHAPED["a BN of rows, and the shape that was"]
    built = case.build()
    built.graph.output.append(onnx.helper.make_tensor_value_info("b", 1, None))
    fused, _ = fuse(built, 6)
    assert "b" in {name for node in fused.graph.node for name in node.output}


def test_nor_is_a_prelu_that_broadcasts_its_input() -> None:
    """Slopes may not, by the standard; onnxruntime lets them."""
    built = model(
        "(float[1,1,6,6] x) => (float[] y) { a = Conv(x, w) b = PRelu(a, s) y = Conv(b, v) }",
        w=(1, 1, 1, 1), v=(4, 4, 1, 1), s=np.ones((4, 1, 1), np.float32),
    )  # fmt: skip
    fused, codes = fuse(built)
    assert ops(fused) == ["Conv", "PRelu", "Conv"]
    assert codes == {"broadcast"}
