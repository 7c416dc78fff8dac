"""Every committed PyTorch export, through the command, against its hand-merged deploy form."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from settled import assert_settled

import onnxfuse
from onnxfuse.cli import main

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
MANIFEST = json.loads((FIXTURES / "manifest.json").read_text())["files"]
EXPORTS = sorted(
    name for name, entry in MANIFEST.items() if entry["committed"] and entry["exporter"] != "deploy"
)
CONTROLS = ("basic_block", "mobilenet_block")
KEPT_SPLIT = ("bsconv_u", "bsconv_u_bn", "bsconv_s", "bsconv_s_bn")


def convolutions(model: onnx.ModelProto) -> Counter[tuple[object, ...]]:
    """Conv nodes by kernel shape, group, stride and pads."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            weights[node.output[0]] = tuple(node.attribute[0].t.dims)
        if node.op_type == "Identity" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    found: Counter[tuple[object, ...]] = Counter()
    for node in model.graph.node:
        if node.op_type == "Conv":
            settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            rank = len(weights[node.input[1]]) - 2
            found[
                weights[node.input[1]],
                settings.get("group", 1),
                tuple(settings.get("strides", [1] * rank)),
                tuple(settings.get("pads", [0] * 2 * rank)),
            ] += 1
    return found


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def feeds_of(entry: dict, *, grow: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(11)
    shapes = {
        name: [size + grow if axis != 1 else size for axis, size in enumerate(shape)]
        for name, shape in entry["input_shapes"].items()
    }
    return {n: generator.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_reaches_its_deploy_form(name: str, tmp_path: Path) -> None:
    entry = MANIFEST[name]
    source, out = FIXTURES / name, tmp_path / "fused.onnx"
    assert main([str(source), str(out), "-q"]) == 0
    original, fused = onnx.load(source), onnx.load(out)
    deploy = onnx.load(FIXTURES / entry["deploy"])

    assert convolutions(fused) == convolutions(deploy)
    kinds = Counter(node.op_type for node in fused.graph.node)
    assert kinds["BatchNormalization"] == 0
    assert kinds["Add"] == Counter(node.op_type for node in deploy.graph.node)["Add"]
    assert len(fused.graph.node) <= len(deploy.graph.node)
    assert fused.graph.output == original.graph.output

    # Two summation orders of at most a few thousand float32 terms of rms 1 differ by less than
    # 1e-4 of the output's rms; a wrong border or scale shows at 1e-2 and above.
    feeds = feeds_of(entry, grow=3 if entry["dynamic"] else 0)
    for expected, actual in zip(run(original, feeds), run(fused, feeds), strict=True):
        scale = float(np.sqrt(np.mean(np.square(expected))))
        assert np.abs(expected - actual).max() <= 1e-4 * max(scale, 1e-3)


@pytest.mark.parametrize("name", [n for n in EXPORTS if n.split(".")[0] in CONTROLS])
def test_a_control_is_only_rid_of_its_bn(name: str) -> None:
    model = onnx.load(FIXTURES / name)
    fused, report = onnxfuse.fuse(FIXTURES / name)
    count = Counter(node.op_type for node in model.graph.node)["BatchNormalization"]
    assert len(fused.graph.node) == len(model.graph.node) - count
    assert len(report.regions) == count
    if not count:
        assert fused == model


@pytest.mark.parametrize("name", [n for n in EXPORTS if n.split(".")[0] in KEPT_SPLIT])
def test_a_split_that_pays_is_kept_and_said(name: str) -> None:
    _, report = onnxfuse.fuse(FIXTURES / name)
    assert {str(r.code) for r in report.refusals} & {"cost", "border-bias"}


@pytest.mark.parametrize("name", EXPORTS)
def test_the_plan_agrees_and_a_second_run_changes_nothing(name: str) -> None:
    fused, report = onnxfuse.fuse(FIXTURES / name, verify=False)
    assert_settled(FIXTURES / name, fused, report)
    for region in report.regions:
        assert region.after.macs <= region.before.macs
        assert region.error is not None
        assert region.error.exact <= region.error.bound
