"""Random models in a branch of an If: what fuses there computes what it did."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import random_graphs
from onnx import TensorProto, helper
from onnx_text import session

import onnxfuse


def wrapped(seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A random model in the then branch of an If, its weights captured for odd seeds."""
    sample = random_graphs.make(seed)
    body = onnx.GraphProto()
    body.CopyFrom(sample.model.graph)
    built = onnx.ModelProto()
    built.CopyFrom(sample.model)
    stored = {t.name for t in body.initializer}
    free = {v.name for v in body.input} & stored
    graph = built.graph
    del graph.node[:], graph.output[:]
    del body.input[:]
    if seed % 2:
        del body.initializer[:]
    else:
        kept = [t for t in body.initializer if t.name not in free]
        outer = [t for t in body.initializer if t.name in free]
        del body.initializer[:], graph.initializer[:]
        body.initializer.extend(kept)
        graph.initializer.extend(outer)
    other = onnx.GraphProto(name="other")
    names = [value.name for value in body.output]
    kinds = [value.type.tensor_type.elem_type for value in body.output]
    source = graph.input[0].name
    for name, kind in zip(names, kinds, strict=True):
        other.node.append(helper.make_node("Abs", [source], [f"{name}_other"]))
        other.output.append(helper.make_tensor_value_info(f"{name}_other", kind, None))
        graph.output.append(helper.make_tensor_value_info(f"{name}_out", kind, None))
    graph.node.append(
        helper.make_node(
            "If",
            ["which"],
            [f"{n}_out" for n in names],
            "choose",
            then_branch=body,
            else_branch=other,
        )
    )
    graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    generator = np.random.default_rng(seed)
    data = {}
    for value in sample.model.graph.input:
        if value.name in stored:
            continue
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [
            sample.nominal[d.dim_param] if d.dim_param else d.dim_value
            for d in value.type.tensor_type.shape.dim
        ]
        data[value.name] = generator.standard_normal(shape).astype(kind)
    return built, data


def random_case(seed: int) -> bool | None:
    """Whether a wrapped random model was fused; ``None`` where it cannot be run."""
    built, data = wrapped(seed)
    try:
        left = session(built)
        expected = [left.run(None, data | {"which": np.array(flag)}) for flag in (True, False)]
    except Exception:
        return None
    fused, report = onnxfuse.fuse(built, verify=bool(seed % 3 == 0))
    planned = onnxfuse.plan(built)
    assert [r.root for r in planned.regions] == [r.root for r in report.regions]
    if not report.changed:
        assert fused.SerializeToString() == built.SerializeToString()
        return False
    _, second = onnxfuse.fuse(fused, verify=False)
    assert not second.changed
    right = session(fused)
    for flag, wanted in zip((True, False), expected, strict=True):
        actual = right.run(None, data | {"which": np.array(flag)})
        for a, b in zip(wanted, actual, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            unit = {2: 2.0**-11, 4: 2.0**-24, 8: 2.0**-53}[a.dtype.itemsize]
            scale = np.abs(a.astype(np.float64)).max(initial=0) + 1e-30
            worst = np.abs(a.astype(np.float64) - b).max(initial=0)
            assert worst <= 4096 * unit * max(scale, 1)
    return True


@pytest.mark.parametrize("chunk", range(6))
def test_random_models_in_a_branch(chunk):
    found = [random_case(seed) for seed in range(chunk * 10, chunk * 10 + 10)]
    assert any(found)


def as_function(seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A random model as a function that is called once, its weights in Constant nodes."""
    sample = random_graphs.make(seed, 2)
    graph, imports = sample.model.graph, list(sample.model.opset_import)
    stored = {t.name for t in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    names, outputs = [value.name for value in inputs], [value.name for value in graph.output]
    function = helper.make_function(
        "local", "Block", names, outputs, [*nodes, *graph.node], imports
    )
    call = helper.make_node("Block", names, [f"{out}_of" for out in outputs], domain="local")
    infos = [
        helper.make_tensor_value_info(f"{v.name}_of", v.type.tensor_type.elem_type, None)
        for v in graph.output
    ]
    built = helper.make_model(
        helper.make_graph([call], "main", inputs, infos),
        opset_imports=[*imports, helper.make_opsetid("local", 1)],
        functions=[function],
        ir_version=8,
    )
    generator = np.random.default_rng(seed)
    data = {}
    for value in inputs:
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        dims = value.type.tensor_type.shape.dim
        shape = [sample.nominal[d.dim_param] if d.dim_param else d.dim_value for d in dims]
        data[value.name] = generator.standard_normal(shape).astype(kind)
    return built, data


def test_random_models_as_functions():
    changed = 0
    for seed in range(20):
        built, data = as_function(seed)
        try:
            expected = session(built).run(None, data)
        except Exception:  # the random model itself is not valid
            continue
        fused, report = onnxfuse.fuse(built, verify=not seed % 4)
        planned = onnxfuse.plan(built)
        assert [r.root for r in planned.regions] == [r.root for r in report.regions]
        assert not onnxfuse.fuse(fused, verify=False)[1].changed
        changed += report.changed
        for a, b in zip(expected, session(fused).run(None, data), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            unit = {2: 2.0**-11, 4: 2.0**-24, 8: 2.0**-53}[a.dtype.itemsize]
            wide = a.astype(np.float64)
            assert np.abs(wide - b).max(initial=0) <= 4096 * unit * max(
                np.abs(wide).max(initial=0), 1
            )
    assert changed > 10
