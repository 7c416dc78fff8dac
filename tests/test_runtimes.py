"""The recipes of docs/runtimes.md, run as they stand there, on exports of every framework."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
BLOCK = re.compile(r"^<!-- test: (\S+) -->\n```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8"))

FIXED = (
    "pytorch/repvgg_s1_g1.ts",
    "pytorch/dbb_k3_s1.ts",
    "pytorch/acnet_k3.ts",
    "pytorch/repvgg_a0.ts",
    "keras/repvgg_net.tf2onnx",
    "keras/dbb_net.tf2onnx",
    "paddle/dbb_map_s1.default",
)
OPEN = ("pytorch/repvgg_s1_g1.ts-dyn", "pytorch/acnet_k3.ts-dyn", "paddle/acnet_k3.default-dyn")
COMPARING = ("onnxruntime", "openvino", "ncnn", "mnn")  # recipes that print a relative difference
LIMIT = 5e-4  # MNN's and ncnn's fast convolutions are several times coarser than direct ones

RUNTIMES = "pip install -e '.[runtimes]'"
NEEDS = {  # a recipe: the modules it needs, and how to get them
    "openvino": (("openvino",), RUNTIMES),
    "ovc": (("openvino",), RUNTIMES),
    "ncnn": (("ncnn", "pnnx"), f"{RUNTIMES} and pip install --no-deps pnnx"),
    "mnn": (("MNN",), RUNTIMES),
    "pytorch": (("torch", "onnxscript"), "pip install -r tools/requirements-pytorch.txt"),
    "keras": (("keras", "tensorflow", "tf2onnx"), "pip install -r tools/requirements-keras.txt"),
    "paddle": (("paddle", "paddle2onnx"), "pip install -r tools/requirements-paddle.txt"),
}

NETS = {  # a RepVGG block, as `net.py`, for the recipes that start in a framework
    "pytorch": """\
import torch


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv3 = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.conv1 = torch.nn.Conv2d(8, 8, 1)
        self.bn = torch.nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.conv3(x) + self.conv1(x) + self.bn(x))


net = Block()
""",
    "keras": """\
import keras
from keras import layers

x = keras.Input((32, 32, 8))
branches = layers.Conv2D(8, 3, padding="same")(x), layers.Conv2D(8, 1)(x)
net = keras.Model(x, layers.ReLU()(layers.Add()([*branches, layers.BatchNormalization()(x)])))
""",
    "paddle": """\
import paddle


class Block(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv3 = paddle.nn.Conv2D(8, 8, 3, padding=1)
        self.conv1 = paddle.nn.Conv2D(8, 8, 1)
        self.bn = paddle.nn.BatchNorm2D(8)

    def forward(self, x):
        return paddle.nn.functional.relu(self.conv3(x) + self.conv1(x) + self.bn(x))


net = Block()
""",
}


def environment(home: Path) -> dict[str, str]:
    """This interpreter's programs first; a home of its own, and `CI`, which quiets OpenVINO."""
    changed = {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(home))),
        "HOME": str(home),
        "CI": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return {**os.environ, **changed}


def needs(recipe: str) -> None:
    """Skip where the runtime of a recipe is missing, and say how to install it."""
    modules, install = NEEDS.get(recipe, ((), ""))
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: {install}")


def attempt(recipe: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a recipe in `folder`, in their order, up to the first that fails."""
    blocks = [(language, text) for name, language, text in BLOCKS if name == recipe]
    assert blocks, f"docs/runtimes.md has no recipe {recipe}"
    for language, text in blocks:
        block = folder / f"block.{language}"
        block.write_text(text, encoding="utf-8")
        interpreter = "python" if language == "python" else "bash -eu -o pipefail"
        done = subprocess.run(
            ["bash", "-c", f"{interpreter} {block.name}"],
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            break
    return done


def run(recipe: str, folder: Path) -> str:
    """Run a recipe, which must succeed; returns what its last block prints."""
    done = attempt(recipe, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def number(text: str) -> float:
    """The last line that is a number; what a runtime prints itself may come behind it."""
    numbers = re.compile(r"[-+.0-9e]+|nan|inf")
    lines = [line for line in text.splitlines() if numbers.fullmatch(line.strip())]
    return float(lines[-1])


def prepare(name: str, folder: Path, sizes: dict[int, int] | None = None) -> None:
    """Put an export, its fused form and an input into `folder`; `sizes` are those of open axes."""
    model = onnx.load(FIXTURES / f"{name}.onnx")
    onnx.save(model, folder / "model.onnx")
    run("fuse", folder)
    assert count_conv(folder / "fused.onnx") < count_conv(folder / "model.onnx")
    (source,) = model.graph.input
    assert source.name == "input"  # the recipes call it so
    dims = source.type.tensor_type.shape.dim
    shape = [d.dim_value or (sizes or {}).get(axis, 1) for axis, d in enumerate(dims)]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.save(folder / "input.npy", x)


def damage(path: Path) -> None:
    """Make the first kernel of a model larger by one per cent."""
    model = onnx.load(path)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    kernel = next(i for i in model.graph.initializer if i.name == conv.input[1])
    louder = numpy_helper.to_array(kernel) * np.float32(1.01)
    kernel.CopyFrom(numpy_helper.from_array(louder, kernel.name))
    onnx.save(model, path)


def count_conv(path: Path) -> int:
    return sum(node.op_type == "Conv" for node in onnx.load(path).graph.node)


def test_every_recipe_is_tested() -> None:
    tested = {"fuse", "polygraphy", "polygraphy-open", "ovc", "quantise", *COMPARING, *NETS}
    assert {name for name, _, _ in BLOCKS} == tested
    text = (ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8")
    assert text.count("<!-- test: ") - 1 == len(BLOCKS) == text.count("```") / 2  # one is in prose


@pytest.mark.parametrize("name", FIXED)
def test_polygraphy_finds_them_equal(name: str, tmp_path: Path) -> None:
    prepare(name, tmp_path)
    printed = run("polygraphy", tmp_path)
    assert "Passed: 1/1 iterations" in printed
    assert "All outputs matched" in printed


@pytest.mark.parametrize("name", OPEN)
def test_polygraphy_finds_them_equal_at_open_sizes(name: str, tmp_path: Path) -> None:
    prepare(name, tmp_path)
    printed = run("polygraphy-open", tmp_path)
    assert "Passed: 1/1 iterations" in printed
    assert "17, 19)" in printed


@pytest.mark.parametrize("name", FIXED[::3])
def test_polygraphy_finds_a_damaged_model(name: str, tmp_path: Path) -> None:
    prepare(name, tmp_path)
    damage(tmp_path / "fused.onnx")
    done = attempt("polygraphy", tmp_path)
    assert done.returncode != 0
    assert "Passed: 0/1 iterations" in done.stdout


def loads_in(recipe: str, name: str) -> bool:
    """Whether a runtime loads the original: ncnn has no ScatterND."""
    return not (recipe == "ncnn" and name == "pytorch/dbb_k3_s1.ts")


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("recipe", COMPARING)
def test_a_runtime_computes_the_same(recipe: str, name: str, tmp_path: Path) -> None:
    needs(recipe)
    prepare(name, tmp_path)
    if loads_in(recipe, name):
        assert number(run(recipe, tmp_path)) < LIMIT
    else:
        assert "assert net.load_param" in attempt(recipe, tmp_path).stderr


@pytest.mark.parametrize("name", OPEN)
@pytest.mark.parametrize("recipe", COMPARING)
def test_a_runtime_computes_the_same_at_open_sizes(recipe: str, name: str, tmp_path: Path) -> None:
    needs(recipe)
    prepare(name, tmp_path, {0: 1 if recipe == "ncnn" else 2, 2: 17, 3: 19})
    assert number(run(recipe, tmp_path)) < LIMIT


@pytest.mark.parametrize("recipe", COMPARING)
def test_a_runtime_shows_a_damaged_model(recipe: str, tmp_path: Path) -> None:
    needs(recipe)
    prepare("pytorch/repvgg_a0.ts", tmp_path)
    damage(tmp_path / "fused.onnx")
    assert number(run(recipe, tmp_path)) > 2 * LIMIT


def test_ncnn_runs_what_it_could_not_load(tmp_path: Path) -> None:
    """PyTorch's Diverse Branch Block: no original to compare with but in onnxruntime."""
    needs("ncnn")
    prepare("pytorch/dbb_k3_s1.ts", tmp_path)
    attempt("ncnn", tmp_path)  # converts both; fails where it loads the original
    program = f"""
import ncnn, numpy as np, onnxruntime as ort
x = np.load("input.npy")
before = ort.InferenceSession("model.onnx").run(None, {{"input": x}})[0]
net = ncnn.Net()
assert net.load_param("fused.ncnn.param") == net.load_model("fused.ncnn.bin") == 0
extractor = net.create_extractor()
extractor.input("in0", ncnn.Mat(x[0]).clone())
after = np.array(extractor.extract("out0")[1])
assert np.abs(after - before[0]).max() < {LIMIT} * np.abs(before).max()
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_ovc_writes_one_convolution(tmp_path: Path) -> None:
    needs("ovc")
    prepare("pytorch/dbb_k3_s1.ts", tmp_path)
    run("ovc", tmp_path)
    assert (tmp_path / "fused.xml").read_text().count('type="Convolution"') == 1
    assert (tmp_path / "fused.bin").stat().st_size > 0


@pytest.mark.parametrize("recipe", sorted(NETS))
def test_a_framework_exports_what_fuses(recipe: str, tmp_path: Path) -> None:
    needs(recipe)
    (tmp_path / "net.py").write_text(NETS[recipe], encoding="utf-8")
    run(recipe, tmp_path)
    assert count_conv(tmp_path / "model.onnx") == 2
    run("fuse", tmp_path)
    assert count_conv(tmp_path / "fused.onnx") == 1


def test_the_cost_of_int8_is_measured(tmp_path: Path) -> None:
    prepare("pytorch/repvgg_a0.ts", tmp_path)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    rows = [line.split() for line in run("quantise", tmp_path).splitlines()[1:]]
    assert [row[:2] for row in rows] == [["model.onnx", "original"], ["model.onnx", "fused"]]
    for row in rows:
        tensor, channel = (float(figure.rstrip("%")) for figure in row[2:])
        assert 0 < channel < tensor < 50
