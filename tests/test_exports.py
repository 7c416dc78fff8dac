"""Keras and Paddle exports: each is fused by the command to the form it states, and stays equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_text import session
from settled import assert_settled
from state_forms import form_of

import onnxfuse
from onnxfuse.cli import main

FIXTURES = Path(__file__).parent.parent / "fixtures"
FILES: dict[str, dict[str, Any]] = {}
FORMS: dict[str, dict[str, Any]] = {}
for _framework in ("keras", "paddle"):
    _folder = FIXTURES / _framework
    _listed = json.loads((_folder / "manifest.json").read_text())["files"]
    FILES |= {f"{_framework}/{name}": entry for name, entry in _listed.items()}
    _stated = json.loads((_folder / "forms.json").read_text())
    FORMS |= {f"{_framework}/{name}": form for name, form in _stated.items()}

ONE = [
    "acnet",
    "bn_first",
    "dbb_assign",
    "dbb_map",
    "dbb_strips",
    "even",
    "lcnetv2",
    "lcnetv3_pw",
    "lcnetv3_s",
    "mobileone",
    "pad2d",
    "pad8",
    "ppyoloe",
    "repvgg_1d",
    "repvgg_first",
    "repvgg_groups",
    "repvgg_s",
    "repvgg_valid",
    "residual",
    "same",
    "zero_pad",
    "zeropad2d",
]
"""Systems that are one convolution at fixed sizes."""
CONVOLUTIONS = {
    "repvgg_inner": 2,
    "repvgg_se": 3,  # one, and the two of the gate
    "lab": 2,
    "hgnetv2_block": 5,
    "lcnetv3_net": 9,  # a stem, three of each kind, and the two of the gate
    "repvgg_net": 6,
    "residual_net": 6,
    "dbb_no_pool": 1,
    "dbb_zeros_no_pool": 1,
    "dbb_depthwise": 1,
    "dbb_net": 3,
    "dbb_s": 2,  # the merged one, and the 1×1 before the pool
    "dbb_d2": 2,
    "dbb_zeros_s": 2,
    "bsconv_u": 2,
    "bsconv_s": 3,
}
"""Convolutions of the best exact form at fixed sizes, by the beginning of the system's name."""


def convolutions(system: str) -> int:
    """What a system reaches; the longest beginning that is listed counts."""
    known = {**dict.fromkeys(ONE, 1), **CONVOLUTIONS}
    return known[max((start for start in known if system.startswith(start)), key=len)]


def feeds(entry: dict[str, Any], batch: int, grow: int) -> dict[str, np.ndarray]:
    """Inputs with an open batch or open sizes made larger."""
    generator = np.random.default_rng(batch + grow)
    found = {}
    for name, shape in entry["input_shapes"].items():
        last = entry.get("layout") == "channels_last"
        spatial = range(1, len(shape) - 1) if last else range(2, len(shape))
        sizes = [n + grow if i in spatial else n for i, n in enumerate(shape)]
        sizes[0] = batch
        found[name] = generator.standard_normal(sizes).astype(np.float32)
    return found


def agree(original: onnx.ModelProto, fused: onnx.ModelProto, given: dict[str, np.ndarray]) -> None:
    """Two summation orders of some thousand float32 terms differ by less than 1e-4 of the RMS."""
    first, second = (session(model).run(None, given) for model in (original, fused))
    for expected, actual in zip(first, second, strict=True):
        scale = max(float(np.sqrt(np.mean(np.square(expected)))), 1e-3)
        assert actual.shape == expected.shape
        assert np.abs(expected - actual).max() <= 1e-4 * scale


@pytest.mark.parametrize("name", FILES)
def test_an_export_is_fused_to_the_form_it_states(name: str, tmp_path: Path) -> None:
    entry, stated = FILES[name], FORMS[name]
    source, out = FIXTURES / name, tmp_path / "fused.onnx"
    assert main([str(source), str(out), "-q"]) == 0
    original, fused = onnx.load(source), onnx.load(out)
    assert stated["policy"] == "default"
    assert stated["channels"] == entry["channels"]
    assert form_of(fused) == stated["form"]
    assert fused.graph.output == original.graph.output
    sizing = 4 * stated["constants"].count("plane")  # Shape, Slice, Concat, Expand
    assert len(fused.graph.node) <= len(original.graph.node) + sizing

    runs = [(1, 0)]
    if entry.get("open_batch") or entry["dynamic"]:
        runs.append((2, 0))
    if entry["dynamic"]:
        runs += [(1, 1), (2, 3)]
    for batch, grow in runs:
        agree(original, fused, feeds(entry, batch, grow))


@pytest.mark.parametrize("name", FILES)
def test_the_plan_agrees_and_a_second_run_changes_nothing(name: str) -> None:
    fused, report = onnxfuse.fuse(FIXTURES / name, verify=False)
    assert_settled(FIXTURES / name, fused, report)


@pytest.mark.parametrize("name", [n for n, e in FILES.items() if not e["dynamic"]])
def test_a_system_reaches_its_best_form_at_fixed_sizes(name: str) -> None:
    wanted = convolutions(FILES[name]["system"])
    form = FORMS[name]["form"]
    assert sum(n for kind, n in form.items() if kind.startswith("Conv ")) == wanted
    assert form.get("BatchNormalization", 0) == 0
    assert form.get("Transpose", 0) <= 2


@pytest.mark.parametrize("name", ["keras/dbb_s1.tf2onnx.onnx", "paddle/dbb_zeros_s1.default.onnx"])
def test_the_published_merge_is_one_convolution_and_said_to_be_approximate(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fused.onnx"
    assert main([str(FIXTURES / name), str(out), "--approximate-borders"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "approximate at the border, exact inside" in text
    fused = onnx.load(out)
    assert [n for n in form_of(fused) if n.startswith("Conv ")] == ["Conv 3x3"]
    (note,) = [e.value for e in fused.metadata_props if e.key == "onnxfuse"]
    assert "approximate borders" in note
    original = onnx.load(FIXTURES / name)
    given = feeds(FILES[name], 1, 0)
    expected, actual = (session(model).run(None, given)[0] for model in (original, fused))
    inside = (slice(None), *(slice(1, -1) if n > 8 else slice(None) for n in expected.shape[1:]))
    scale = float(np.sqrt(np.mean(np.square(expected))))
    assert np.abs(expected - actual)[inside].max() <= 1e-4 * scale
    assert np.abs(expected - actual).max() > 1e-2 * scale
    assert not onnxfuse.fuse(fused)[1].changed
