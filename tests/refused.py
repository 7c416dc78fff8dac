"""Models by the reason code that they provoke: at least one for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx_text import bn, model, norm

from onnxfuse.refusal import Code

K1, K3 = (4, 4, 1, 1), (4, 4, 3, 3)
PAD = "<pads = [1,1,1,1]>"
IN, OPEN = "(float[1,4,6,6] x) => (float[] y)", "(float[N,4,H,W] x) => (float[] y)"


@dataclass(frozen=True)
class Case:
    """A model in which ``node`` stays for a reason; ``options`` are those of the command."""

    build: Callable[[], onnx.ModelProto]
    node: str
    says: str
    options: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False
    """Whether only `explain --node` speaks of it."""


def case(
    text: str,
    node: str,
    says: str,
    *,
    quiet: bool = False,
    options: dict[str, Any] | None = None,
    **tensors: object,
) -> Case:
    return Case(lambda: model(text, **tensors), node, says, options or {}, quiet)


def overridable() -> onnx.ModelProto:
    built = model(f"{IN} {{ c = Conv(x, w) {bn('y', 'c', 'n')} }}", w=K1, **norm("n", 4))
    built.graph.input.append(helper.make_tensor_value_info("w", 1, K1))
    return built


CONV_BN = f"c = Conv(x, w) {bn('y', 'c', 'n')}"
HUGE = np.full((4, 4, 1, 1), 1e30, np.float32)
POOL = "<kernel_shape = [2,2], pads = [1,1,1,1]>"
ALL_AROUND = np.array([0, 0, 1, 1, 0, 0, 1, 1])
INTEGERS = np.arange(-8, 8, dtype=np.int8).reshape(4, 4, 1, 1)
QUANTA = {"scale": np.float32(0.5), "zero": np.int8(0)}

CASES: dict[Code, list[Case]] = {
    Code.ACTIVATION: [
        case(
            f"""{IN} {{ c = Conv(x, w) d = Div(c, root) e = Erf(d) f = Add(e, one)
                g = Mul(c, f) y = Mul(g, half) }}""",
            "y",
            "Gelu",
            w=K1,
            root=np.float32(2**0.5),
            one=np.float32(1),
            half=np.float32(0.5),
        )
    ],
    Code.ALONE: [
        case(
            f"{IN} {{ c = Conv(x, w) y = Relu(c) }}",
            "c",
            "nothing that is linear meets it",
            quiet=True,
            w=K1,
        ),
    ],
    Code.BORDER_BIAS: [
        case(
            f"{IN} {{ s = Add(x, b) y = ConvTranspose <strides = [2,2]> (s, w) }}",
            "y",
            "a shift of up to 2.5 that meets a transposed convolution",
            w=K3,
            b=np.float32([1, -2.5, 0, 2]).reshape(4, 1, 1),
        ),
        case(
            f"{IN} {{ p = Pad(x, at, one) q = Pad(p, at, two) y = Conv(q, w) }}",
            "q",
            "it pads an input that already differs at the border, by up to 1",
            w=K3,
            at=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            one=np.float32(1),
            two=np.float32(2),
        ),
        case(
            f"{IN} {{ p = Pad(x, at, one) q = Pad(p, to, two) y = Conv(q, w) }}",
            "y",
            "different values on different sides, up to 1 apart",
            w=K3,
            at=np.array([0, 0, 1, 0, 0, 0, 1, 0]),
            to=np.array([0, 0, 0, 1, 0, 0, 0, 1]),
            one=np.float32(1),
            two=np.float32(2),
        ),
        case(
            f"{IN} {{ p = Pad(x, at, v) y = AveragePool {POOL} (p) }}",
            "y",
            "it pools an input that differs at the border, by up to 0.75",
            at=ALL_AROUND,
            v=np.float32(0.75),
        ),
        case(
            f"{IN} {{ p = Pad(x, at, v) y = Pad(p, to, zero) }}",
            "y",
            "it crops an input that differs at the border, by up to 0.75",
            at=ALL_AROUND,
            to=np.array([0, 0, -1, 0, 0, 0, 0, 0]),
            v=np.float32(0.75),
            zero=np.float32(0),
        ),
        case(
            f"{IN} {{ p = Pad(x, at, v) y = Conv {PAD} (p, w) }}",
            "y",
            "its padding value of 1e+30 is so large",
            at=ALL_AROUND,
            v=np.float32(1e30),
            w=K3,
        ),
        case(
            f"{IN} {{ p = Pad(x, at, v) q = Pad(p, at, v) y = Conv {PAD} (q, w) }}",
            "q",
            "it pads an input that already differs at the border, by up to inf",
            at=ALL_AROUND,
            v=np.float32(-np.inf),
            w=K3,
        ),
    ],
    Code.BORDER_WINDOW: [
        case(
            f"{IN} {{ c = Conv {PAD} (x, w) y = Conv {PAD} (c, v) }}",
            "y",
            "beyond the border",
            w=(1, 4, 3, 3),
            v=(4, 1, 3, 3),
        ),
    ],
    Code.BROADCAST: [
        case(f"{IN} {{ c = Conv(x, w) y = Mul(c, s) }}", "y", "not the channels", w=K1, s=(6,)),
    ],
    Code.CEIL_MODE: [
        case(
            f"""{OPEN} {{ c = Conv(x, w)
                y = AveragePool <kernel_shape = [2,2], strides = [2,2], ceil_mode = 1> (c) }}""",
            "y",
            "overhang",
            w=K1,
        ),
    ],
    Code.CHANNELS: [
        case(
            f"""{IN} {{ s, t = Split <axis = 1> (x) a = Conv(s, w) b = Conv(t, v)
                c = Concat <axis = 1> (a, b) y = Conv <group = 2> (c, u) }}""",
            "y",
            "groups cut across",
            w=(3, 2, 1, 1),
            v=(1, 2, 1, 1),
            u=(4, 2, 1, 1),
        ),
    ],
    Code.COST: [
        case(
            f"{IN} {{ c = Conv(x, w) y = Conv {PAD} (c, v) }}",
            "y",
            "MACs",
            w=(1, 4, 1, 1),
            v=(4, 1, 3, 3),
        ),
    ],
    Code.DYNAMIC_WEIGHTS: [
        case(
            """(float[1,4,6,6] x, float[4,4,1,1] w) => (float[] y) {
                c = Conv(x, w) y = Conv(c, v) }""",
            "c",
            "its kernel 'w' is not constant",
            v=K1,
        ),
    ],
    Code.EXCLUDE_PAD: [
        case(
            f"""{IN} {{
                p = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (x) y = Conv(p, w) }}""",
            "y",
            "pool",
            w=K1,
        ),
    ],
    Code.EXCLUDED: [
        case(
            f"{IN} {{ {CONV_BN} }}",
            "c",
            "--except",
            options={"without": ("c",)},
            w=K1,
            **norm("n", 4),
        ),
        case(
            f"{IN} {{ {CONV_BN} }}",
            "y",
            "--keep-post-bn",
            options={"keep_post_bn": True},
            w=K1,
            **norm("n", 4),
        ),
    ],
    Code.GRAPH_OUTPUT: [
        case(
            f"(float[1,4,6,6] x) => (float[] y, float[] c) {{ {CONV_BN} }}",
            "y",
            "'c' is a graph output",
            w=K1,
            **norm("n", 4),
        ),
    ],
    Code.LENGTH: [
        case(
            f"""{OPEN} {{
                c = Conv {PAD} (x, w) d = Conv (x, v) y = Add(c, d) }}""",
            "y",
            "height",
            w=K3,
            v=K3,
        ),
    ],
    Code.MALFORMED: [
        case(
            f"{IN} {{ c = Conv <group = 3> (x, w) {bn('y', 'c', 'n')} }}",
            "c",
            "group=3",
            w=K1,
            **norm("n", 4),
        ),
    ],
    Code.NONLINEAR: [
        case(f"{IN} {{ c = Conv(x, w) y = Relu(c) }}", "y", "Relu is not linear", quiet=True, w=K1),
    ],
    Code.OVERFLOW: [
        case(f"{IN} {{ c = Conv(x, w) y = Conv(c, v) }}", "y", "not finite", w=HUGE, v=HUGE),
    ],
    Code.OVERRIDABLE: [Case(overridable, "c", "its kernel 'w' is also a graph input")],
    Code.PARITY: [
        case(
            f"""{OPEN} {{ c = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (x, w)
                 d = Conv <strides = [2,2]> (x, v) y = Add(c, d) }}""",
            "y",
            "parity",
            w=K3,
            v=K1,
        ),
    ],
    Code.QUANTISED: [
        case(
            f"""{IN} {{ c = Conv(x, w) q = QuantizeLinear(c, scale, zero)
                d = DequantizeLinear(q, scale, zero) {bn("y", "d", "n")} }}""",
            "y",
            "its input 'c' is rounded by 'q'",
            w=K1,
            **norm("n", 4),
            **QUANTA,
        ),
        case(
            f"""{IN} {{ k = DequantizeLinear(stored, scale, zero) c = Conv(x, k)
                {bn("y", "c", "n")} }}""",
            "c",
            "'k' is stored as integers",
            stored=INTEGERS,
            **norm("n", 4),
            **QUANTA,
        ),
        case(  # weights as training with fake quantisation exports them
            f"""{IN} {{ r = QuantizeLinear(w, scale, zero) d = DequantizeLinear(r, scale, zero)
                k = Identity(d) c = Conv(x, k) {bn("y", "c", "n")} }}""",
            "c",
            "'k' is stored as integers",
            w=K1,
            **norm("n", 4),
            **QUANTA,
        ),
        case(
            f"""{IN} {{ k = DequantizeLinear(stored, scale, zero) c = Conv(x, k)
                q = QuantizeLinear(c, scale, zero) d = DequantizeLinear(q, scale, zero)
                y = Add(d, x) }}""",
            "y",
            "its input 'c' is rounded by 'q'",
            stored=INTEGERS,
            **QUANTA,
        ),
        case(
            """(float[2,3] x) => (float[] y) { k = DequantizeLinear(stored, scale, zero)
                m = MatMul(x, k) y = Add(m, b) }""",
            "m",
            "'k' is stored as integers",
            stored=INTEGERS[:3, :, 0, 0],
            b=(4,),
            **QUANTA,
        ),
        case(
            f"""{IN} {{ c = Conv(x, w) k = DequantizeLinear(stored, scale, zero)
                y = Mul(c, k) }}""",
            "y",
            "'k' is stored as integers",
            w=K1,
            stored=INTEGERS[:, :1],
            **QUANTA,
        ),
        case(
            f"""{IN} {{ q = QuantizeLinear(x, scale, zero)
                i = QLinearConv(q, scale, zero, stored, scale, zero, scale, zero)
                j = QLinearConv(i, scale, zero, stored, scale, zero, scale, zero)
                d = DequantizeLinear(j, scale, zero) {bn("y", "d", "n")} }}""",
            "j",
            "its input 'i' is made of integers",
            stored=INTEGERS,
            **norm("n", 4),
            **QUANTA,
        ),
    ],
    Code.READER: [
        case(
            f"(float[1,4,6,6] x) => (float[] y, float[] z) {{ {CONV_BN} z = Relu(c) }}",
            "y",
            "'c' has another reader",
            w=K1,
            **norm("n", 4),
        ),
    ],
    Code.SHARED_KERNEL: [
        case(
            f"""(float[1,4,6,6] x) => (float[] y, float[] z) {{
                {CONV_BN} r = Relu(y) z = Conv(r, w) }}""",
            "y",
            "parameters",
            w=K1,
            **norm("n", 4),
        ),
    ],
    Code.SIZE: [
        case(
            f"{IN} {{ c = Conv <pads = [5000,0,5000,0]> (x, w) {bn('y', 'c', 'n')} }}",
            "c",
            "4096 positions",
            w=K1,
            **norm("n", 4),
        ),
    ],
    Code.STRIDE: [
        case(
            """(float[1,4,3,3] x) => (float[] y) { c = Conv <strides = [2,2]> (x, w)
                 d = Conv (x, v) y = Add(c, d) }""",
            "y",
            "different strides",
            w=K1,
            v=(4, 4, 2, 2),
        ),
    ],
    Code.TRAINING: [
        case(
            f"""{IN} {{ c = Conv(x, w)
                y = BatchNormalization <training_mode = 1> (c, n_s, n_b, n_m, n_v) }}""",
            "y",
            "training mode",
            w=K1,
            **norm("n", 4),
        ),
    ],
    Code.UNKNOWN_SHAPE: [
        case(
            "(float[] x) => (float[] y) { c = Identity(x) y = Add(c, b) }",
            "y",
            "cannot be inferred",
            b=(4, 1, 1),
        ),
    ],
    Code.UNSUPPORTED: [
        case(
            f"""{IN} {{ p = Pad <mode = "reflect"> (x, a) y = Conv(p, w) }}""",
            "p",
            "reflect padding",
            a=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            w=K3,
        ),
    ],
}
