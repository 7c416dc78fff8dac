"""What the tests of bodies share: models are fused, planned, fused again and run both ways."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser
from onnx_text import bn, integers, norm, session

import onnxfuse
from onnxfuse.model.walk import inner_nodes

K3 = "<pads = [1,1,1,1]>"
WEIGHTS = {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3), **norm("n", 4), **norm("m", 4)}


def inner(of: onnx.ModelProto) -> list[str]:
    """The operators below the main graph."""
    return [node.op_type for node in inner_nodes(of)]


def feeds(of: onnx.ModelProto, flag: bool) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    given = {tensor.name for tensor in of.graph.initializer}
    found = {}
    for value in of.graph.input:
        if value.name in given:
            continue
        shape = [dim.dim_value or 7 for dim in value.type.tensor_type.shape.dim]
        kind = value.type.tensor_type.elem_type
        if kind == TensorProto.BOOL:
            found[value.name] = np.full(shape, flag)
        elif kind == TensorProto.INT64:
            found[value.name] = np.full(shape, 3)
        else:
            found[value.name] = generator.integers(-4, 5, shape).astype(np.float32)
    return found


def fuse(of: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, onnxfuse.Report]:
    """The fused model, with everything that must hold of it checked."""
    before = of.SerializeToString(deterministic=True)
    fused, report = onnxfuse.fuse(of, **options)
    assert of.SerializeToString(deterministic=True) == before
    planned = onnxfuse.plan(of, **options)
    keys = [[(r.scope, r.root, r.became, r.after) for r in found.regions]
            for found in (planned, report)]  # fmt: skip
    assert keys[0] == keys[1]
    assert planned.refusals == report.refusals
    for name in ("nodes", "conv", "batch_normalization", "parameters", "macs"):
        assert getattr(planned.after, name) == getattr(report.after, name), name
    assert report.after.parameters <= report.before.parameters + 256 * len(report.regions)
    again, second = onnxfuse.fuse(fused, **options)
    assert not second.changed
    assert again == fused
    if not report.changed:
        assert fused == of
        return fused, report
    left, right = session(of), session(fused)
    for flag in (False, True):
        data = feeds(of, flag)
        for a, b in zip(left.run(None, data), right.run(None, data), strict=True):
            np.testing.assert_array_equal(a, b)
    return fused, report


def places(report: onnxfuse.Report) -> list[tuple[str, str]]:
    return [(region.root, region.scope) for region in report.regions]


LOOP = f"""(float[1,4,8,8] x, int64 n, bool more) => (float[] u) {{
    u = Loop (n, more, x) <body = g1 (int64 i, bool on, float[1,4,8,8] h) => (bool o, float[] r) {{
        o = Identity(on) c = Conv PADS (h, w) {bn("b", "c", "n")} r = Relu(b) }}> }}"""


def called(body: str, attribute: str = "") -> onnx.ModelProto:
    """Two calls of a function that reads its weights from Constant nodes."""
    text = f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[1,4,8,8] x, float[1,4,8,8] z) => (float[1,4,8,8] y) {{
            a = local.Block{attribute}(x) b = local.Block{attribute}(z) y = Add(a, b) }}
        <domain: "local", opset_import: ["" : 17]>
        Block {"<slope>" if attribute else ""} (h) => (r) {{ {body} }}"""
    built = parser.parse_model(text)
    arrays = {"w": integers("w", 4, 4, 3, 3), **norm("n", 4)}
    function = built.functions[0]
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))
        for name, array in arrays.items()
    ] + list(function.node)
    del function.node[:]
    function.node.extend(nodes)
    return built
