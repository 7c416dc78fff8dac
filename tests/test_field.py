"""Published blocks of the field, each against its best exact form, which was derived by hand.

`tools/forms_field.py` states the forms. Where the package does not reach one, `MISSING` names the
law; the marks are strict, so that a law that arrives is noticed here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from forms_field import FORMS, MISSING, SPLIT, best
from onnx_text import attributes, session
from settled import assert_settled

import onnxfuse
from onnxfuse import Report

FIXTURES = Path(__file__).parent.parent / "fixtures" / "field"
FILES = json.loads((FIXTURES / "manifest.json").read_text())["files"]


@cache
def fused(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto, Report]:
    """The original, what it is fused to, and the report; regions and model were verified."""
    result, report = onnxfuse.fuse(FIXTURES / name)
    return onnx.load(FIXTURES / name), result, report


def parts(name: str) -> tuple[str, str]:
    """The system and the kind of export of a file."""
    system, kind, _ = name.split(".")
    return system, kind


def working(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes that work on data, not on constants or on sizes alone."""
    data = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type not in ("Shape", "Size") and data.intersection(node.input):
            data.update(node.output)
            yield node


def by_axis(values: list[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


def operator(node: onnx.NodeProto, kernels: dict[str, list[int]]) -> str:
    """An operator in words: ``Conv 3x3/2 g8``, ``ConvTranspose 2x2/2``, ``Add``."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return node.op_type
    settings = attributes(node)
    text = f"{node.op_type} " + "x".join(map(str, kernels[node.input[1]]))
    for name, mark in (("strides", "/"), ("dilations", " d")):
        values = settings.get(name, [1])
        text += mark + by_axis(values) if max(values) > 1 else ""
    groups = settings.get("group", 1)
    return text if groups == 1 else f"{text} g{groups}"


def form(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator works on data."""
    kernels = {tensor.name: list(tensor.dims[2:]) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            kernels[node.output[0]] = list(node.attribute[0].t.dims[2:])
        if node.op_type == "Identity" and node.input[0] in kernels:
            kernels[node.output[0]] = kernels[node.input[0]]
    return Counter(operator(node, kernels) for node in working(model))


def feeds(model: onnx.ModelProto, name: str, grow: int) -> np.ndarray:
    """An input whose open dimensions are longer by ``grow`` than in the exporter's example."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    example = FILES[name]["input_shapes"]["input"]
    shape = [dim.dim_value or size + grow for dim, size in zip(dims, example, strict=True)]
    return np.random.default_rng(grow).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", FILES)
def test_an_export_stays_equal(name: str) -> None:
    original, result, report = fused(name)
    sessions = [session(model) for model in (original, result)]
    for grow in (0, 1, 3, 4) if FILES[name]["dynamic"] else (0,):
        x = feeds(original, name, grow)
        expected, actual = (s.run(None, {"input": x})[0] for s in sessions)
        assert actual.shape == expected.shape
        # Two orders of summing some thousand float32 terms of rms 1 differ by less than 1e-4 of
        # the output's rms; a wrong border or scale shows at 1e-2 and above.
        scale = float(np.sqrt(np.mean(np.square(expected))))
        assert np.abs(expected - actual).max() <= 1e-4 * scale
    assert len(result.graph.node) <= len(original.graph.node)
    assert result.graph.output == original.graph.output
    for region in report.regions:
        assert region.after.macs <= region.before.macs
        if not region.constant:  # a map is no kernel parameter, but it is stored
            assert region.after.parameters <= region.before.parameters
        assert region.error is not None
        assert region.error.exact <= region.error.bound


def with_marks(name: str) -> object:
    """A file as a test's parameter, expected to fail where a law is missing."""
    system, kind = parts(name)
    reason = MISSING.get(system) or MISSING.get(f"{system}.{kind}")
    marks = [pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)] if reason else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [with_marks(name) for name in FILES])
def test_an_export_reaches_its_best_form(name: str) -> None:
    _, result, _ = fused(name)
    assert dict(sorted(form(result).items())) == best(*parts(name))


@pytest.mark.parametrize("name", FILES)
def test_the_plan_agrees_and_a_second_run_changes_nothing(name: str) -> None:
    _, result, report = fused(name)
    assert_settled(FIXTURES / name, result, report)


def test_every_form_has_both_exporters_and_is_the_one_in_the_manifest() -> None:
    kinds: dict[str, set[str]] = {}
    for name, entry in FILES.items():
        system, kind = parts(name)
        kinds.setdefault(system, set()).add(kind)
        assert entry["best"] == best(system, kind)
        assert entry["why"] == FORMS[system][1]
    assert kinds.keys() == FORMS.keys()
    assert all({"ts", "dynamo"} <= found for found in kinds.values())
    assert {name.split(".")[0] for name in MISSING} <= FORMS.keys()


KEPT = [system for system, (_, why) in FORMS.items() if why.startswith(SPLIT)]


@pytest.mark.parametrize("system", KEPT)
def test_a_split_that_pays_is_kept_and_said(system: str) -> None:
    _, _, report = fused(f"{system}.ts.onnx")
    assert "cost" in {refusal.code.value for refusal in report.refusals}
