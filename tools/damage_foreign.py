"""Models that no law takes and that are not damaged: they must come out byte for byte."""

from __future__ import annotations

import numpy as np
import onnx
from damage_kinds import Rng, pick
from onnx import numpy_helper, parser

FOREIGN = {
    "quantised": """(float[1,4,8,8] x) => (float[] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = DequantizeLinear(w, s, z)
        a = Conv(d, e) r = QuantizeLinear(a, s, z) f = DequantizeLinear(r, s, z)
        g = DequantizeLinear(v, s, z) b = Conv(f, g) t = QuantizeLinear(b, s, z)
        y = DequantizeLinear(t, s, z) }""",
    "weights quantised": """(float[1,4,8,8] x) => (float[] y) { e = DequantizeLinear(w, s, z)
        a = Conv(x, e) y = BatchNormalization(a, k, k, k, k) }""",
    "quantised kernels": """(int8[1,4,8,8] x) => (int8[] y) {
        a = QLinearConv(x, s, z, v, s, z, s, z) y = QLinearConv(a, s, z, v, s, z, s, z) }""",
    "integer kernels": """(int8[1,4,8,8] x) => (int32[] y) {
        a = ConvInteger(x, v) b = Mul(a, j) c = Add(b, j) y = Add(c, j) }""",
    "integers": "(int64[1,4,8,8] x) => (int64[] y) { a = Mul(x, i) b = Add(a, i) y = Mul(b, i) }",
    "custom": """(float[1,4,8,8] x) => (float[] y) { a = nobody.Conv(x, u)
        b = nobody.BatchNormalization(a, k, k, k, k) y = nobody.Add(b, b) }""",
}


def foreign(rng: Rng) -> onnx.ModelProto:
    """A quantised, an integer or a custom model, with other numbers each time."""
    text = FOREIGN[str(pick(rng, list(FOREIGN)))]
    header = '<ir_version: 8, opset_import: ["" : 17, "nobody" : 1]> g '
    model = parser.parse_model(header + text)
    stored = {
        "s": np.float32(rng.random() + 0.1), "z": np.int8(rng.integers(-9, 9)),
        "w": rng.integers(-9, 9, (4, 4, 3, 3)).astype(np.int8),
        "v": rng.integers(-9, 9, (4, 4, 1, 1)).astype(np.int8),
        "u": rng.random((4, 4, 1, 1), np.float32), "k": rng.random(4, np.float32),
        "i": np.int64(rng.integers(9)), "j": np.int32(rng.integers(9)),
    }  # fmt: skip
    read = {name for node in model.graph.node for name in node.input}
    for name in sorted(read & stored.keys()):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(stored[name]), name))
    return model
