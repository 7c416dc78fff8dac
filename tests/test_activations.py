"""Activations written out in nodes keep their constants; look-alikes do not.

Each form stands between two convolutions that would gladly take its scales and shifts.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_text import fuse, kinds, model, ops

NUMBERS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "zero": 0.0, "minus": -1.0,
    "sixth": 1 / 6, "fifth": 0.2, "slope": 0.1, "alpha": 1.702, "root": 2**0.5,
    "inverse_root": 0.5**0.5, "outer": (2 / np.pi) ** 0.5, "cubic": 0.044715, "four": 4.0,
    "five": 5.0,
}  # fmt: skip

KEPT = {
    "gelu, half last": "d = Div(c, root) e = Erf(d) p = Add(e, one) m = Mul(c, p) a = Mul(m, half)",
    "gelu, half first": """d = Div(c, root) e = Erf(d) p = Add(e, one)
        h = Mul(c, half) a = Mul(h, p)""",
    "gelu, half inside": """d = Div(c, root) e = Erf(d) p = Add(e, one)
        h = Mul(p, half) a = Mul(c, h)""",
    "gelu, half on the left": """d = Div(c, root) e = Erf(d) p = Add(one, e)
        m = Mul(p, c) a = Mul(half, m)""",
    "gelu, by products": """d = Mul(c, inverse_root) e = Erf(d) p = Add(e, one)
        m = Mul(c, p) a = Div(m, two)""",
    "gelu, through identities": """d = Div(c, root) i = Identity(d) e = Erf(i) p = Add(e, one)
        m = Mul(c, p) j = Identity(m) a = Mul(j, half)""",
    "gelu, tanh": """q = Pow(c, three) u = Mul(q, cubic) v = Add(c, u) w3 = Mul(v, outer)
        e = Tanh(w3) p = Add(e, one) m = Mul(c, p) a = Mul(m, half)""",
    "gelu, tanh, half first": """q = Pow(c, three) u = Mul(cubic, q) v = Add(c, u)
        w3 = Mul(outer, v) e = Tanh(w3) p = Add(one, e) h = Mul(half, c) a = Mul(h, p)""",
    "gelu, tanh, factored": """q = Mul(c, c) u = Mul(cubic, q) v = Add(u, one) r = Mul(c, v)
        w3 = Mul(outer, r) e = Tanh(w3) p = Add(one, e) h = Mul(half, c) a = Mul(h, p)""",
    "silu with alpha": "d = Mul(c, alpha) s = Sigmoid(d) a = Mul(c, s)",
    "silu by division": "d = Div(c, half) s = Sigmoid(d) a = Mul(s, c)",
    "sigmoid": "d = Neg(c) e = Exp(d) p = Add(e, one) a = Div(one, p)",
    "sigmoid by reciprocal": "d = Mul(c, minus) e = Exp(d) p = Add(one, e) a = Reciprocal(p)",
    "silu by division of x": "d = Neg(c) e = Exp(d) p = Add(e, one) a = Div(c, p)",
    "hard sigmoid": "d = Add(c, three) e = Clip(d, zero, six) a = Div(e, six)",
    "hard sigmoid by a product": "d = Add(three, c) e = Clip(d, zero, six) a = Mul(e, sixth)",
    "hard sigmoid, scaled first": "d = Mul(c, sixth) s = Add(d, half) a = Clip(s, zero, one)",
    "hard sigmoid of tensorflow": "d = Mul(c, fifth) s = Add(d, half) a = Clip(s, zero, one)",
    "hard sigmoid by relu and min": """d = Add(c, three) r = Relu(d)
        e = Min(r, six) a = Mul(e, sixth)""",
    "hard sigmoid by min and max": """d = Add(c, three) r = Max(d, zero)
        e = Min(r, six) a = Div(e, six)""",
    "hard sigmoid by max and min": """d = Add(c, three) r = Min(d, six)
        e = Max(r, zero) a = Div(e, six)""",
    "hard swish": "d = Add(c, three) e = Clip(d, zero, six) f = Div(e, six) a = Mul(c, f)",
    "hard swish, sixth last": """d = Add(c, three) e = Clip(d, zero, six)
        f = Mul(c, e) a = Div(f, six)""",
    "hard swish by a product": """d = Add(c, three) e = Clip(d, zero, six)
        f = Mul(e, c) a = Mul(f, sixth)""",
    "leaky relu": "d = Mul(c, slope) a = Max(c, d)",
    "leaky relu, other way": "d = Mul(slope, c) a = Max(d, c)",
}  # fmt: skip

ABSORBED = {
    "another clip": ("d = Mul(c, three) f = Add(d, four) a = Clip(f, zero, six)", "Conv Clip Conv"),
    "another range": ("d = Add(c, three) a = Clip(d, zero, five)", "Conv Clip Conv"),
    "another divisor": ("d = Add(c, four) e = Clip(d, zero, six) a = Div(e, two)",
                        "Conv Clip Conv"),
    "a scaled sigmoid": ("d = Mul(c, two) a = Sigmoid(d)", "Conv Sigmoid Conv"),
    "a scaled tanh": ("d = Mul(c, two) e = Tanh(d) f = Mul(e, half) a = Add(f, half)",
                      "Conv Tanh Conv"),
    "a scaled exp": ("d = Mul(c, two) e = Exp(d) a = Mul(e, half)", "Conv Exp Conv"),
    "behind an activation": ("r = Relu(c) d = Mul(r, half) a = Add(d, three)", "Conv Relu Conv"),
}  # fmt: skip


def between_convs(nodes: str) -> onnx.ModelProto:
    text = (
        f"(float[1,4,6,6] x) => (float[] y) {{ c = Conv(x, w1, b1) {nodes} y = Conv(a, w2, b2) }}"
    )
    used = {n: np.float32(v) for n, v in NUMBERS.items() if f" {n}" in text or f"({n}" in text}
    return model(text, w1=(4, 4, 1, 1), b1=(4,), w2=(4, 4, 1, 1), b2=(4,), **used)


@pytest.mark.parametrize("name", KEPT)
def test_constants_of_an_activation_stay(name):
    original = between_convs(KEPT[name])
    fused, codes = fuse(original)
    assert ops(fused) == ops(original)
    assert codes >= {"activation-constant"}


@pytest.mark.parametrize("name", ABSORBED)
def test_other_constants_are_absorbed(name):
    nodes, expected = ABSORBED[name]
    original = between_convs(nodes)
    fused, codes = fuse(original, exact=False)
    assert ops(fused) == expected.split()
    assert codes == set()


def test_only_the_constants_of_the_activation_stay():
    """A scale before a HardSwish belongs to the convolution, the 3, the 6 and the 1/6 do not."""
    nodes = "s = Mul(c, two) t = Add(s, half) " + KEPT["hard swish"].replace("c,", "t,")
    fused, codes = fuse(between_convs(nodes))
    assert kinds(fused) == {"Conv": 2, "Add": 1, "Clip": 1, "Div": 1, "Mul": 1}
    assert codes == {"activation-constant"}


def test_constants_may_be_of_any_rank_and_come_from_nodes():
    text = KEPT["gelu, half last"].replace("half", "h1")
    text = "h0 = Constant<value = float[1,1,1] {0.5}>() h1 = Identity(h0) " + text
    fused, _ = fuse(between_convs(text))
    assert kinds(fused)["Mul"] == 2
