"""One case for each operator and each way it reads: ONNX text in, operators and refusals out.

Where something fuses, the result is run beside the original and must be equal to the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx_text import bn, constant, fuse, integers, model, node, norm, ops

import onnxfuse

FIXED = "(float[1,4,8,8] x) => (float[] y)"
DYNAMIC = "(float[N,4,H,W] x) => (float[] y)"
OPEN = "(float[1,4,8,8] x, float[4,4,3,3] w) => (float[] y)"
TWO = "(float[1,4,8,8] x, float[1,4,8,8] z) => (float[] y, float[] u)"
PADDED = "c = Conv<pads = [1,1,1,1]>(x, w, b)"
K3 = {"w": (4, 4, 3, 3), "b": (4,)}
K1 = {"w1": (4, 4, 1, 1)}
N4 = norm("n", 4)
CHANNEL = {"k": (4, 1, 1)}


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


class Case(NamedTuple):
    """Nodes over ``x``, the operators they become, and the codes of what is refused."""

    nodes: str
    tensors: dict[str, object]
    ops: str
    codes: tuple[str, ...] = ()
    graph: str = FIXED
    opset: int = 17
    sizes: tuple[int, ...] = (7,)

    def build(self) -> onnx.ModelProto:
        return model(f"{self.graph} {{ {self.nodes} }}", self.opset, **self.tensors)


ONES_DIVISOR = np.array([2, -4, 0.5, 1], np.float32).reshape(4, 1, 1)
CASES = {
    # Conv and BatchNormalization
    "bn after": Case(f"{PADDED} {bn('y', 'c', 'n')}", {**K3, **N4}, "Conv"),
    "bn before": Case(f"{bn('c', 'x', 'n')} y = Conv(c, w)", {**K3, **N4}, "Conv"),
    "bn, bn": Case(f"{bn('c', 'x', 'n')} {bn('y', 'c', 'm')}", {**N4, **norm("m", 4)},
                   "BatchNormalization"),
    "bn of a linear layer": Case(f"{bn('c', 'x', 'n')} y = Mul(c, k)", {**N4, "k": ()},
                                 "BatchNormalization", graph="(float[N,4] x) => (float[] y)"),
    "1-D": Case(f"c = Conv<pads = [1,1]>(x, w) d = Add(c, x) {bn('y', 'd', 'n')}",
                {"w": (4, 4, 3), **N4}, "Conv", graph="(float[1,4,9] x) => (float[] y)"),
    "3-D": Case(f"c = Conv<pads = [1,0,1,1,0,1]>(x, w) {bn('y', 'c', 'n')}",
                {"w": (4, 4, 3, 1, 3), **N4}, "Conv",
                graph="(float[1,4,3,4,5] x) => (float[] y)"),
    "1x1 to 3x3": Case("c = Conv(x, w1) y = Conv<pads = [1,1,1,1]>(c, w)", {**K1, **K3}, "Conv"),
    "a bias of zeros": Case("c = Conv(x, w1, z) y = Conv<pads = [1,1,1,1]>(c, w)",
                            {**K1, **K3, "z": np.zeros(4, np.float32)}, "Conv"),
    "acnet": Case("""a = Conv<pads = [1,1,1,1]>(x, w) b1 = Conv<pads = [1,0,1,0]>(x, tall)
                     c = Conv<pads = [0,1,0,1]>(x, flat) d = Add(a, b1) y = Add(c, d)""",
                  {**K3, "tall": (4, 4, 3, 1), "flat": (4, 4, 1, 3)}, "Conv", graph=DYNAMIC),
    "acnet cropped": Case("a = Conv(x, w) s = Slice(x, lo, hi, at) c = Conv(s, w1) y = Add(a, c)",
                          {**K3, **K1, "lo": i64(1, 1), "hi": i64(-1, -1), "at": i64(2, 3)},
                          "Conv", graph=DYNAMIC, sizes=(3, 4, 5, 8)),
    # arithmetic: the constant on either side
    "x * c": Case(f"{PADDED} y = Mul(c, k)", {**K3, **CHANNEL}, "Conv"),
    "c * x": Case(f"{PADDED} y = Mul(k, c)", {**K3, **CHANNEL}, "Conv"),
    "x / c": Case(f"{PADDED} y = Div(c, k)", {**K3, "k": ONES_DIVISOR}, "Conv"),
    "c / x": Case(f"{PADDED} y = Div(k, c)", {**K3, **CHANNEL}, "Conv Div"),
    "x + scalar": Case(f"{PADDED} y = Add(c, k)", {**K3, "k": ()}, "Conv"),
    "c + x": Case(f"{PADDED} y = Add(k, c)", {**K3, **CHANNEL}, "Conv"),
    "x - c": Case(f"{PADDED} y = Sub(c, k)", {**K3, **CHANNEL}, "Conv"),
    "c - x": Case(f"{PADDED} y = Sub(k, c)", {**K3, **CHANNEL}, "Conv"),
    "-x": Case(f"{PADDED} y = Neg(c)", K3, "Conv"),
    "branches": Case("a = Conv(x, w1) c = Conv(x, w2) d = Sub(a, c) e = Sub(x, d) y = Add(e, x)",
                     {**K1, "w2": (4, 4, 1, 1)}, "Conv"),
    "sum of three": Case("a = Conv(x, w1) c = Conv(x, w2) y = Sum(a, c, x)",
                         {**K1, "w2": (4, 4, 1, 1)}, "Conv"),
    "mul, mul": Case("c = Mul(x, k) d = Mul(c, j) y = Relu(d)", {**CHANNEL, "j": ()}, "Mul Relu"),
    # windows
    "pool in a sum": Case("""c = Conv(x, w1) p = AveragePool<kernel_shape = [2,2]>(c)
                             a = Conv(x, w) y = Add(p, a)""",
                          {**K1, "w": (4, 4, 2, 2)}, "Conv", graph=DYNAMIC, sizes=(2, 3, 8)),
    "padded pool": Case("""p = AveragePool<kernel_shape = [2,2], pads = [1,1,0,0],
                           count_include_pad = 1>(x) a = Conv<pads = [1,1,0,0]>(x, w)
                           y = Add(p, a)""", {"w": (4, 4, 2, 2)}, "Conv"),
    "ceil_mode that fits": Case("""p = AveragePool<kernel_shape = [2,2], strides = [2,2],
                                   ceil_mode = 1>(x) a = Conv<strides = [2,2]>(x, w)
                                   y = Add(p, a)""", {"w": (4, 4, 2, 2)}, "Conv"),
    "same at stride 1": Case('a = Conv<auto_pad = "SAME_UPPER">(x, w) c = Conv(x, w1) '
                             "y = Add(a, c)", {**K3, **K1}, "Conv", graph=DYNAMIC, sizes=(1, 2, 7)),
    # shapes
    "identity": Case(f"c = Conv(x, w1) d = Identity(c) {bn('y', 'd', 'n')}", {**K1, **N4}, "Conv"),
    "dropout": Case(f"c = Conv(x, w1) d = Dropout(c) {bn('y', 'd', 'n')}", {**K1, **N4}, "Conv"),
    "pad with axes": Case("p = Pad(x, by, , at) y = Conv(p, w)",
                          {**K3, "by": i64(1, 2, 1, 0), "at": i64(-1, 2)}, "Conv", opset=18),
    "pad by attribute": Case("p = Pad<pads = [0,0,1,2,0,0,1,0]>(x) y = Conv(p, w)", K3, "Conv",
                             opset=10),
    "pad with zero": Case("p = Pad(x, by, v) y = Conv(p, w)",
                          {**K3, "by": i64(0, 0, 1, 2, 0, 0, 1, 0), "v": np.float32(0)}, "Conv"),
    "slice with steps": Case("s = Slice(x, lo, hi, at, by) y = Conv(s, w1)",
                             {**K1, "lo": i64(0, 0), "hi": i64(2**62, 2**62), "at": i64(2, 3),
                              "by": i64(2, 3)}, "Conv", graph=DYNAMIC, sizes=(3, 4, 5, 6, 7, 8)),
    "split, concat": Case("a, c = Split<axis = 1>(x) d = Conv(a, w1) e = Conv(c, w2) "
                          "y = Concat<axis = 1>(d, e)",
                          {**K1, "w2": (4, 4, 1, 1)}, "Conv", opset=13,
                          graph="(float[1,8,6,6] x) => (float[] y)"),
    "concat": Case("a = Conv(x, w1) c = Conv(x, w2) y = Concat<axis = -3>(a, c)",
                   {**K1, "w2": (2, 4, 1, 1)}, "Conv"),
    "affine in another layout": Case(
        """c = Conv(x, w1) t = Transpose<perm = [0,2,3,1]>(c) m = Mul(t, k) a = Add(m, k)
           y = Transpose<perm = [0,3,1,2]>(a)""", {**K1, "k": (4,)}, "Conv"),
    "a layout that stays": Case("c = Conv(x, w1) t = Transpose<perm = [0,2,3,1]>(c) y = Mul(t, k)",
                                {**K1, "k": (4,)}, "Conv Transpose"),
    # refused, by code
    "broadcast over W": Case(f"{PADDED} y = Mul(c, k)", {**K3, "k": (8,)}, "Conv Mul",
                             ("broadcast",)),
    "broadcast over W == C": Case(f"{PADDED} y = Mul(c, k)", {**K3, "k": (4,)}, "Conv Mul",
                                  ("broadcast",), graph="(float[1,4,4,4] x) => (float[] y)"),
    "broadcast over N == C": Case(f"{PADDED} y = Add(c, k)", {**K3, "k": (4, 1, 1, 1)}, "Conv Add",
                                  ("broadcast",), graph="(float[4,4,4,4] x) => (float[] y)"),
    "a constant that raises the rank": Case(f"{PADDED} y = Mul(c, k)", {**K3, "k": (1, 1, 4, 1, 1)},
                                            "Conv Mul", ("broadcast",)),
    "a constant that adds channels": Case("c = Conv(x, w) y = Mul(c, k)",
                                          {"w": (1, 4, 3, 3), **CHANNEL}, "Conv Mul",
                                          ("broadcast",)),
    "a branch of one channel": Case("a = Conv(x, w1) c = Conv(x, w2) y = Add(a, c)",
                                    {**K1, "w2": (1, 4, 1, 1)}, "Conv Conv Add", ("broadcast",)),
    "zeros behind a bias": Case("c = Conv(x, w1, b) y = Conv<pads = [1,1,1,1]>(c, w)", {**K1, **K3},
                                "Conv Add"),
    "zeros behind a bias at unknown sizes": Case(
        "c = Conv(x, w1, b) y = Conv<pads = [1,1,1,1]>(c, w)", {**K1, **K3}, "Conv Conv",
        ("cost",), graph=DYNAMIC),
    "padding with a number": Case("p = Pad(x, by, v) y = Conv(p, w)",
                                  {**K3, "by": i64(0, 0, 1, 2, 0, 0, 1, 0), "v": np.float32(2)},
                                  "Pad Conv", ("cost",)),
    "padding with two numbers": Case("p = Pad(x, up, v) q = Pad(p, left, u) y = Conv(q, w)",
                                     {**K3, "up": i64(0, 0, 1, 0, 0, 0, 0, 0), "v": np.float32(2),
                                      "left": i64(0, 0, 0, 1, 0, 0, 0, 0), "u": np.float32(3)},
                                     "Conv Add", ("border-bias",)),
    "padding twice": Case("c = Conv<pads = [1,1,1,1]>(x, w) y = Conv<pads = [1,1,1,1]>(c, v)",
                          {**K3, "v": (4, 4, 3, 3)}, "Conv Conv", ("border-window",)),
    "a pool that leaves padding out": Case(
        "p = AveragePool<kernel_shape = [2,2], pads = [1,1,1,1]>(x) y = Conv(p, w1)", K1,
        "AveragePool Conv", ("exclude-pad",)),
    "ceil_mode that overhangs": Case(
        "p = AveragePool<kernel_shape = [3,3], strides = [2,2], ceil_mode = 1>(x) y = Mul(p, k)",
        {"k": ()}, "AveragePool Mul", ("ceil-mode",)),
    "ceil_mode at unknown sizes": Case(
        "p = AveragePool<kernel_shape = [2,2], strides = [2,2], ceil_mode = 1>(x) y = Mul(p, k)",
        {"k": ()}, "AveragePool Mul", ("ceil-mode",), graph=DYNAMIC),
    "groups across blocks": Case("c = Concat<axis = 1>(x, z) y = Conv<group = 2>(c, w)",
                                 {"w": (4, 3, 1, 1)}, "Concat Conv", ("channel-blocks",),
                                 graph="(float[1,4,8,8] x, float[1,2,8,8] z) => (float[] y)"),
    "1x1 to depthwise": Case("c = Conv(x, w) y = Conv<group = 16, pads = [1,1,1,1]>(c, v)",
                             {"w": (16, 4, 1, 1), "v": (16, 1, 3, 3)}, "Conv Conv", ("cost",)),
    "weights that are data": Case(f"c = Conv(x, w) {bn('y', 'c', 'n')}", N4,
                                  "Conv BatchNormalization", ("dynamic-weights",),
                                  graph=OPEN),
    "weights that a caller may set": Case(f"c = Conv(x, w) {bn('y', 'c', 'n')}", {**K3, **N4},
                                          "Conv BatchNormalization", ("overridable-initializer",),
                                          graph=OPEN),
    "batch statistics": Case("c = Conv(x, w1) y, m, v = BatchNormalization<training_mode = 1>"
                             "(c, n_s, n_b, n_m, n_v)", {**K1, **N4},
                             "Conv BatchNormalization", ("training-mode",)),
    "a dropout that drops": Case(f"c = Conv(x, w1) d = Dropout(c, r, t) {bn('y', 'd', 'n')}",
                                 {**K1, **N4, "r": np.float32(0.5), "t": np.array(True)},
                                 "Conv Dropout BatchNormalization", ("training-mode",)),
    "lengths that may differ": Case("a = Conv(x, w) c = Conv(z, w2) y = Add(a, c)",
                                    {**K3, "w2": (4, 4, 3, 3)}, "Conv Conv Add",
                                    ("length-mismatch",),
                                    graph="(float[N,4,H,W] x, float[N,4,H,W] z) => (float[] y)"),
    "a pooled branch that is broadcast": Case(
        "a = Conv(x, w1) p = AveragePool<kernel_shape = [8,8]>(x) y = Add(a, p)", K1,
        "Conv AveragePool Add", ("length-mismatch",)),
    "strides that differ": Case(
        "a = Conv<strides = [2,2], pads = [1,1,1,1]>(x, w) c = Conv(x, w2) y = Add(a, c)",
        {**K3, "w2": (4, 4, 5, 5)}, "Conv Conv Add", ("stride-mismatch",)),
    "a price that is not hidden behind unknown lengths": Case(
        "a = Conv<dilations = [2,2], pads = [1,1,1,1]>(x, w) c = Conv(x, w1) y = Add(a, c)",
        {**K1, "w": (4, 4, 2, 2)}, "Conv Conv Add", ("cost",), graph=DYNAMIC),
    "same at stride 2 and unknown sizes": Case(
        "c = Conv<auto_pad = \"SAME_UPPER\", strides = [2,2]>(x, w) y = Mul(c, k)",
        {**K3, "k": ()}, "Conv", graph=DYNAMIC),
    "same at stride 2, unknown sizes and a 1×1": Case(
        "c = Conv<auto_pad = \"SAME_UPPER\", strides = [2,2]>(x, w) "
        "d = Conv<strides = [2,2]>(x, w1) y = Add(c, d)",
        {**K3, **K1}, "Conv Conv Add", ("same-padding-parity",), graph=DYNAMIC),
    "lower same at stride 2, unknown sizes and a 1×1": Case(
        "c = Conv<auto_pad = \"SAME_LOWER\", strides = [2,2]>(x, w) "
        "d = Conv<strides = [2,2]>(x, w1) y = Add(c, d)",
        {**K3, **K1}, "Conv", graph=DYNAMIC),
    "same 3×3 and 5×5 at stride 2 and unknown sizes": Case(
        "c = Conv<auto_pad = \"SAME_UPPER\", strides = [2,2]>(x, w) "
        "d = Conv<auto_pad = \"SAME_UPPER\", strides = [2,2]>(x, w5) y = Add(c, d)",
        {**K3, "w5": (4, 4, 5, 5)}, "Conv", graph=DYNAMIC),
    "same twice at stride 2 and unknown sizes": Case(
        "c = Conv<auto_pad = \"SAME_UPPER\", strides = [2,2], group = 4>(x, g) "
        "y = Conv<auto_pad = \"SAME_UPPER\", strides = [2,2], group = 4>(c, h)",
        {"g": (4, 1, 3, 3), "h": (4, 1, 3, 3)}, "Conv Conv",
        ("same-padding-parity",), graph=DYNAMIC),
    "a pool that leaves padding out, and an affine": Case(
        f"c = Conv(x, w1) p = AveragePool<kernel_shape = [2,2], pads = [1,1,1,1]>(c) "
        f"{bn('y', 'p', 'n')}", {**K1, **N4}, "Conv AveragePool"),
    "a pool with windows of padding alone": Case(
        f"c = Conv(x, w1) p = AveragePool<kernel_shape = [2,2], dilations = [4,4], "
        f"pads = [4,4,4,4]>(c) {bn('y', 'p', 'n')}", {**K1, **N4},
        "Conv AveragePool BatchNormalization", ("exclude-pad",), opset=19),
    "one kernel, two folds": Case(f"c = Conv(x, w) {bn('y', 'c', 'n')} d = Conv(z, w) "
                                  f"{bn('u', 'd', 'm')}",
                                  {**K3, **N4, **norm("m", 4)},
                                  "Conv BatchNormalization Conv BatchNormalization",
                                  ("shared-kernel",), graph=TWO),
    "an output in the middle": Case(f"{PADDED} {bn('y', 'c', 'n')}", {**K3, **N4},
                                    "Conv BatchNormalization", ("graph-output",),
                                    graph="(float[1,4,8,8] x) => (float[] c, float[] y)"),
    "a reader outside": Case(f"{PADDED} {bn('d', 'c', 'n')} r = Relu(c) y = Mul(d, r)",
                             {**K3, **N4}, "Conv BatchNormalization Relu Mul", ("reader-outside",)),
    "a shape that a custom operator hides": Case("h = custom.Foo(x) c = Conv(h, w1) y = Add(c, k)",
                                                 {**K1, **CHANNEL}, "Foo Conv Add",
                                                 ("unknown-shape",)),
    "groups that do not fit": Case(f"c = Conv<group = 3>(x, w) {bn('y', 'c', 'n')}", {**K3, **N4},
                                   "Conv BatchNormalization", ("malformed",)),
    "reflection": Case("p = Pad<mode = \"reflect\">(x, by) y = Conv(p, w)",
                       {**K3, "by": i64(0, 0, 1, 1, 0, 0, 1, 1)}, "Pad Conv", ("unsupported",)),
    "a mirror": Case("c = Conv(x, w1) y = Slice(c, lo, hi, at, by)",
                     {**K1, "lo": i64(-1), "hi": i64(-9), "at": i64(2), "by": i64(-1)},
                     "Conv Slice", ("unsupported",)),
    "a transposed image": Case("c = Conv(x, w1) t = Transpose<perm = [0,1,3,2]>(c) y = Conv(t, w2)",
                               {**K1, "w2": (4, 4, 1, 1)}, "Conv Transpose Conv", ("unsupported",)),
    "an old opset": Case(f"c = Conv(x, w) {bn('y', 'c', 'n')}", {**K3, **N4},
                         "Conv BatchNormalization", ("unsupported",), opset=6),
    "integers": Case("a = Add(x, k) y = Add(a, k)", {"k": np.int32(1)}, "Add Add",
                     graph="(int32[1,4,8,8] x) => (int32[] y)"),
    "nothing linear": Case("c = Conv(x, w1) y = Relu(c)", K1, "Conv Relu"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    case = CASES[name]
    fused, codes = fuse(case.build(), *case.sizes)
    assert ops(fused) == case.ops.split()
    assert codes == set(case.codes)


def test_weights_that_overflow_are_left_alone():
    """The plan cannot know: it reads no kernel."""
    large = np.full((4, 4, 1, 1), 1e30, np.float32)
    built = model(f"{FIXED} {{ c = Conv(x, w) y = Mul(c, k) }}", w=large, k=np.float32(1e30))
    fused, codes = fuse(built)
    assert codes == {"overflow"}
    assert ops(fused) == ["Conv", "Mul"]


@pytest.mark.parametrize(("size", "tap"), [(8, 0), (9, 1)])
def test_a_stride_2_1x1_lands_where_the_parity_says(size, tap):
    built = model(
        f"(float[1,4,{size},{size}] x) => (float[] y) {{"
        'a = Conv<auto_pad = "SAME_UPPER", strides = [2,2]>(x, w)'
        "c = Conv<strides = [2,2]>(x, w1) y = Add(a, c) }",
        **K3, **K1,
    )  # fmt: skip
    fused, codes = fuse(built)
    assert codes == set()
    kernel = integers("w", 4, 4, 3, 3)
    kernel[:, :, tap, tap] += integers("w1", 4, 4, 1, 1)[:, :, 0, 0]
    np.testing.assert_array_equal(constant(fused, "y_fused_weight"), kernel)
    assert onnx.printer.to_text(node(fused, "Conv")).strip() == (
        "[y_fused] y = Conv <dilations: ints = [1, 1], group: int = 1, "
        f"kernel_shape: ints = [3, 3], pads: ints = [{tap}, {tap}, 1, 1], "
        "strides: ints = [2, 2]> (x, y_fused_weight)"
    )


def test_bsconv_stays_two_convs_with_the_bn_folded():
    built = model(
        f"(float[1,16,8,8] x) => (float[] y) {{ c = Conv(x, w) {bn('d', 'c', 'n')}"
        "y = Conv<group = 16, pads = [1,1,1,1]>(d, v) }",
        w=(16, 16, 1, 1), v=(16, 1, 3, 3), **norm("n", 16),
    )  # fmt: skip
    fused, codes = fuse(built)
    assert ops(fused) == ["Conv", "Conv"]
    assert codes & {"cost", "border-bias"}


GLOBS = f"""{FIXED} {{ c = Conv(x, w) {bn("d", "c", "n")} r = Relu(d)
                       e = Conv(r, v) {bn("y", "e", "m")} }}"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "Conv Relu Conv"),
        ({"only": ["e", "y"]}, "Conv BatchNormalization Relu Conv"),
        ({"only": ["[cd]"]}, "Conv Relu Conv BatchNormalization"),
        ({"without": ["c"]}, "Conv BatchNormalization Relu Conv"),
        ({"only": ["c", "d", "e"], "without": ["d"]},
         "Conv BatchNormalization Relu Conv BatchNormalization"),
    ],
)  # fmt: skip
def test_only_and_without(options, expected):
    tensors = {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1), **norm("n", 4), **norm("m", 4)}
    fused, codes = fuse(model(GLOBS, **tensors), **options)
    assert ops(fused) == expected.split()
    assert codes == ({"excluded"} if options else set())


BIAS = integers("b", 4)


def strips(number: int, axis: int, at: int, value: np.ndarray) -> dict[str, np.ndarray]:
    """Indices and updates of a ScatterND that sets row ``at`` of ``axis`` of a (1, 4, 10, 10)."""
    cells = [(c, j) for c in range(4) for j in range(10)]
    rows = [(0, c, at, j) if axis == 2 else (0, c, j, at) for c, j in cells]
    return {f"i{number}": i64(*np.ravel(rows)).reshape(-1, 4), f"u{number}": np.repeat(value, 10)}


BN_AND_PAD = f"""{FIXED} {{
    c = Conv(x, w1, b) p = Pad(c, by)
    s0 = ScatterND(p, i0, u0) s1 = ScatterND(s0, i1, u1)
    s2 = ScatterND(s1, i2, u2) s3 = ScatterND(s2, i3, u3) y = Conv(s3, w) }}"""


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (strips(3, 3, 9, BIAS), set()),
        (strips(3, 3, 9, BIAS + np.float32(1)), {"border-bias"}),
        ({**strips(3, 3, 9, BIAS), "u3": np.arange(40, dtype=np.float32)}, {"broadcast"}),
        (strips(3, 3, 8, BIAS), {"unsupported"}),
    ],
    ids=["the response to zero", "another value", "a value that varies", "not at the border"],
)
def test_bn_and_pad_as_exported_at_fixed_sizes(last, expected):
    tensors = {"w1": (4, 4, 1, 1), "b": BIAS, "w": (4, 4, 3, 3), "by": i64(0, 0, 1, 1, 0, 0, 1, 1)}
    for number, (axis, at) in enumerate([(2, 0), (2, 9), (3, 0)]):
        tensors |= strips(number, axis, at, BIAS)
    fused, codes = fuse(model(BN_AND_PAD, **tensors, **last))
    assert codes >= expected
    assert (ops(fused) == ["Conv"]) == (not expected)


def test_a_border_that_does_not_pay_is_refused_for_its_price():
    """One padded 1×1 has more MACs than a 1×1; every strip is the response to zero."""
    text = BN_AND_PAD.replace("y = Conv(s3, w)", "y = Relu(s3)")
    tensors = {"w1": (4, 4, 1, 1), "b": BIAS, "by": i64(0, 0, 1, 1, 0, 0, 1, 1)}
    for number, (axis, at) in enumerate([(2, 0), (2, 9), (3, 0), (3, 9)]):
        tensors |= strips(number, axis, at, BIAS)
    _, codes = fuse(model(text, **tensors))
    assert codes == {"cost"}


BN_AND_PAD_DYNAMIC = f"""{DYNAMIC} {{
    c = Conv(x, w1, b) p = Pad(c, by)
    t = Transpose<perm = [2,0,1,3]>(p)
    n = Shape(t) g = Gather(n, zero) r = Range(zero, g, one)
    h = Slice(r, lo, hi) i = Unsqueeze(h, last)
    shape = Shape(p) m = Gather(shape, nth) e = Concat<axis = 0>(ones, m)
    f = Expand(v, e) s = ScatterND(t, i, f)
    q = Transpose<perm = [1,2,0,3]>(s)
    y = Conv(q, w) }}"""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 2**62)])
def test_a_strip_assigned_at_dynamic_sizes(low, high):
    """x[:, :, :1] = v and x[:, :, -1:] = v behind a padding of that end alone."""
    end = int(low < 0)
    pads = i64(0, 0, 1 - end, 0, 0, 0, end, 0)
    tensors = {
        "w1": (4, 4, 1, 1), "b": BIAS, "w": (4, 4, 3, 3), "by": pads, "zero": np.int64(0),
        "one": np.int64(1), "lo": i64(low), "hi": i64(high), "last": i64(-1), "ones": i64(1),
        "nth": i64(0, 1, 3), "v": BIAS.reshape(1, 1, 4, 1),
    }  # fmt: skip
    fused, codes = fuse(model(BN_AND_PAD_DYNAMIC, **tensors), 3, 7)
    assert codes == set()
    assert ops(fused) == ["Conv"]


def test_large_fixed_sizes_are_proved_at_small_ones():
    """SAME padding depends on the size modulo the stride alone; 134 million inputs do not."""
    text = f"""(float[8,64,512,512] x) => (float[] y) {{
        c = Conv<auto_pad = "SAME_UPPER", strides = [2,2], group = 64>(x, w)
        {bn("y", "c", "n")} }}"""
    built = model(text, w=(64, 1, 3, 3), **norm("n", 64))
    fused, report = onnxfuse.fuse(built, verify=False)
    assert ops(fused) == ["Conv"]
    assert max(report.regions[0].error.sizes[0]) <= 64
