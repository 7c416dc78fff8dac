"""Running a model without optimisations, and telling rounding from a wrong result.

Inputs come from a seed, at the nominal sizes and at others where some are dynamic. Two results
are compared by what rounding can do to this very model at these inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

Feeds = dict[str, Any]
Run = Callable[[Feeds], list[Any]]
FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
ROUNDOFF = {"float16": 2.0**-11, "float32": 2.0**-24}


class Rejected(Exception):  # noqa: N818
    """The model, or this input, cannot be run."""


def narrowed(model: ModelProto) -> ModelProto:
    """A float64 model in float32: onnxruntime has no float64 Conv, and structure is what counts.

    (onnx's ReferenceEvaluator computes BatchNormalization before opset 14 wrongly.)
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    stored = list(copy.graph.initializer)
    values = [*copy.graph.input, *copy.graph.output, *copy.graph.value_info]
    for attribute in (a for node in copy.graph.node for a in node.attribute):
        stored += [attribute.t] * (attribute.type == onnx.AttributeProto.TENSOR)
        values += attribute.g.output
        if attribute.name == "to" and attribute.i == TensorProto.DOUBLE:  # a Cast
            attribute.i = TensorProto.FLOAT
    for tensor in stored:
        if tensor.data_type == TensorProto.DOUBLE:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in values:
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


def runner(model: ModelProto) -> Run:
    """A function that runs a model without optimisations."""
    if feeds_kind(model) == TensorProto.DOUBLE:
        narrow = runner(narrowed(model))
        return lambda feeds: narrow({n: a.astype(np.float32) for n, a in feeds.items()})
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise Rejected(str(error)) from error

    def by_runtime(feeds: Feeds) -> list[Any]:
        try:
            return list(session.run(None, feeds))
        except Exception as error:
            raise Rejected(str(error)) from error

    return by_runtime


def feeds_kind(model: ModelProto) -> int:
    """The floating-point type of a model.

    A shrunken model may have no input, or an integer one; its outputs tell as well.
    """
    values = [*model.graph.input, *model.graph.output]
    kinds = [int(value.type.tensor_type.elem_type) for value in values]
    return next((kind for kind in kinds if kind in FLOATING), int(TensorProto.FLOAT))


def feeds_of(model: ModelProto, nominal: Mapping[str, int], seed: int) -> Iterator[Feeds]:
    """Inputs at the nominal sizes, then at a small and at a larger size where some are dynamic.

    Initializers that are also inputs are overridden in the second and third run.
    """
    rng = np.random.default_rng(seed)
    stored = {t.name: t for t in model.graph.initializer}
    dynamic = any(d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim)
    small = {name: int(rng.integers(1, 4)) for name in nominal}
    large = {name: size + int(rng.integers(1, 9)) for name, size in nominal.items()}
    for turn, sizes in enumerate([dict(nominal), small, large][: 3 if dynamic else 1]):
        feeds = {}
        for value in model.graph.input:
            kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            dims = value.type.tensor_type.shape.dim
            shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in dims]
            if value.name not in stored:
                feeds[value.name] = rng.standard_normal(shape).astype(kind)
            elif turn or not dynamic:  # positive: it may be a variance
                feeds[value.name] = rng.uniform(0.5, 1.5, shape).astype(kind)
        yield feeds


def rms(array: Any) -> float:
    """The root of the mean square; zero of nothing."""
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0


def noisy(model: ModelProto, level: float) -> ModelProto:
    """The model with every floating-point node output multiplied by ``1 + level · N(0, 1)``."""
    copy = narrowed(model)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred(copy).value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in copy.graph.output}
    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
                continue
            if node.op_type in ("Constant", "Identity", "Transpose", "Shape", "If"):
                continue
            clean, noise, part = (f"{name}/{suffix}" for suffix in ("clean", "noise", "part"))
            node.output[index] = clean
            nodes += [
                helper.make_node("RandomNormalLike", [clean], [noise], scale=level, seed=1.0),
                helper.make_node("Mul", [clean, noise], [part]),
                helper.make_node("Add", [clean, part], [name]),
            ]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def inferred(model: ModelProto) -> onnx.GraphProto:
    """The graph with the types and shapes of its tensors."""
    return shape_inference.infer_shapes(model, data_prop=True).graph


def differing(
    original: ModelProto, feeds: Feeds, expected: Sequence[Any], actual: Sequence[Any]
) -> str | None:
    """How the outputs differ by more than rounding explains, or ``None``.

    First screen: ``rms(f - o) <= 2**10 · u · (rms(o) + 1e-3)`` (6e-5 in float32). A dot product
    of n terms errs by about √n·u of its magnitude, n < 1,000 here, and a dozen follow each other;
    so this holds unless the model cancels, as in ``x - x``. What the screen stops is judged by
    the model's own condition: 16 units of roundoff are put on every node's output, and the fused
    model may differ by 16 times the response. Every operator of the generator is continuous, so
    the response is proportional to the noise.
    """
    for index, (o, f) in enumerate(zip(expected, actual, strict=True)):
        if o.shape != f.shape or o.dtype != f.dtype:
            return f"output {index}: {f.dtype}{list(f.shape)} instead of {o.dtype}{list(o.shape)}"
        wide, other = o.astype(np.float64), f.astype(np.float64)
        if not np.isfinite(wide).all():
            continue  # equality is claimed for finite values
        error, unit = rms(other - wide), ROUNDOFF[o.dtype.name]
        if error <= 2**10 * unit * (rms(wide) + 1e-3):
            continue
        narrow = {n: a.astype(o.dtype) if a.dtype.kind == "f" else a for n, a in feeds.items()}
        disturbed = runner(noisy(original, 16 * unit))(narrow)[index]
        if error <= 16 * rms(disturbed.astype(np.float64) - wide):
            continue
        return f"output {index} differs by rms {error:.3g} at rms {rms(wide):.3g}"
    return None
