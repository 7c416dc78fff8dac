"""Models written as ONNX text, run unoptimised, and compared to the last bit.

Weights are small integers and inputs too, so that float32 adds them up without rounding: a fused
model must then equal the original exactly, whatever the order of summation.
"""

from __future__ import annotations

from collections import Counter
from zlib import crc32

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

import onnxfuse


def integers(name: str, *shape: int) -> np.ndarray:
    """Nonzero integers from -3 to 3, the same for the same name."""
    generator = np.random.default_rng(crc32(name.encode()))
    signs = generator.choice([-1, 1], shape)
    return (signs * generator.integers(1, 4, shape)).astype(np.float32)


def model(text: str, opset: int = 17, ir: int = 8, **tensors: object) -> onnx.ModelProto:
    """The model of ``(inputs) => (outputs) { nodes }``; a tensor is an array or its shape.

    Nodes without a name are named after their first output.
    """
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}, "custom" : 1]> g '
    built = parser.parse_model(header + text)
    for node in built.graph.node:
        node.name = node.name or node.output[0]
    for name, value in tensors.items():
        array = integers(name, *value) if isinstance(value, tuple) else np.asarray(value)
        built.graph.initializer.append(numpy_helper.from_array(array, name))
    return built


def norm(name: str, channels: int) -> dict[str, np.ndarray]:
    """BatchNormalization parameters whose scale is exact: the variances are powers of four."""
    generator = np.random.default_rng(crc32(name.encode()))
    return {
        f"{name}_s": integers(name + "s", channels),
        f"{name}_b": integers(name + "b", channels),
        f"{name}_m": integers(name + "m", channels),
        f"{name}_v": 4.0 ** generator.integers(-1, 2, channels).astype(np.float32),
    }


def bn(out: str, x: str, name: str) -> str:
    """The line of a BatchNormalization with the parameters of `norm`."""
    parameters = ", ".join(f"{name}_{part}" for part in "sbmv")
    return f"{out} = BatchNormalization <epsilon = 0.0> ({x}, {parameters})"


def ops(of: onnx.ModelProto) -> list[str]:
    """The operators of the graph in order."""
    return [node.op_type for node in of.graph.node]


def node(of: onnx.ModelProto, op_type: str, index: int = 0) -> onnx.NodeProto:
    return [n for n in of.graph.node if n.op_type == op_type][index]


def attributes(of: onnx.NodeProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in of.attribute}


def constant(of: onnx.ModelProto, name: str) -> np.ndarray:
    found = next(tensor for tensor in of.graph.initializer if tensor.name == name)
    return numpy_helper.to_array(found)


def session(of: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(of.SerializeToString(), options, ["CPUExecutionProvider"])


def feeds(of: onnx.ModelProto, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Integer-valued inputs, dynamic dimensions being ``size``."""
    generator = np.random.default_rng(seed)
    given = {tensor.name for tensor in of.graph.initializer}
    return {
        value.name: generator.integers(
            -4, 5, [dim.dim_value or size for dim in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in of.graph.input
        if value.name not in given
    }


def assert_equal_results(
    left: onnx.ModelProto, right: onnx.ModelProto, *sizes: int, exact: bool = True
) -> None:
    """Both models give the same bits, at each size of the dynamic dimensions.

    Where not ``exact``, within what rounding explains: no test model sums more than 64 terms on
    the way to an output, each rounded once to 2⁻²⁴ of a partial sum, and partial sums here stay
    below 16 times the largest output; the two models err each in its own way.
    """
    sessions = session(left), session(right)
    for size in sizes or (7,):
        data = feeds(left, size)
        for a, b in zip(*(s.run(None, data) for s in sessions), strict=True):
            slack = 0 if exact else 2 * 64 * 16 * 2.0**-24 * np.abs(a).max()
            np.testing.assert_allclose(b, a, rtol=0, atol=slack)


def fuse(
    of: onnx.ModelProto, *sizes: int, exact: bool = True, **options: object
) -> tuple[onnx.ModelProto, set[str]]:
    """The fused model, checked against the original, and the codes of what was refused.

    Where nothing was fused the model must come back equal.
    """
    before = of.SerializeToString(deterministic=True)
    fused, report = onnxfuse.fuse(of, **options)
    planned = onnxfuse.plan(of, **options)
    assert of.SerializeToString(deterministic=True) == before
    codes = {refusal.code.value for refusal in report.refusals}
    if "overflow" not in codes:  # the one thing a plan, which reads no kernel, cannot know
        assert [r.root for r in planned.regions] == [r.root for r in report.regions]
    if report.changed:
        assert_equal_results(of, fused, *sizes, exact=exact)
    else:
        assert fused == of
    return fused, codes


def kinds(of: onnx.ModelProto) -> Counter[str]:
    return Counter(ops(of))
