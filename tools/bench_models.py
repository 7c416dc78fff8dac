"""The models that the benchmark measures, and each as other optimizers write it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_measure import Ran, run, session
from onnx import helper

TOOLS = Path(__file__).resolve().parent
PEERS = ("onnxsim", "onnxslim", "onnxruntime")
WRONG = 1e-3
"""Relative RMS beyond which an output is not the model's: float32 rounding leaves 1e-7 to 1e-5."""
ORT = """
import sys, onnxruntime as ort
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
options.optimized_model_filepath = sys.argv[2]
options.log_severity_level = 4
ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def exported(cache: Path) -> Path:
    """The folder with the exports of `systems_wide`, made where it is not there yet."""
    folder = cache / "wide"
    done = folder / "complete"
    table = (TOOLS / "systems_wide.py").read_text()
    if not done.exists() or done.read_text() != table:
        command = [sys.executable, str(TOOLS / "export_pytorch.py"), "--table", "wide"]
        subprocess.run([*command, "--large", "--out", str(folder)], check=True)
        done.write_text(table)
    return folder


def wanted(system: str, only: list[str]) -> bool:
    """Whether a system was asked for; all are where none was named."""
    return not only or any(fnmatchcase(system, glob) for glob in only)


def command(tool: str, source: Path, target: Path) -> list[str]:
    """How a tool is called on a file."""
    python = Path(sys.executable)
    return {
        "onnxfuse": [str(python.with_name("onnxfuse")), "--no-verify", str(source), str(target)],
        "onnxfuse, verified": [str(python.with_name("onnxfuse")), str(source), str(target)],
        "onnxsim": [str(python.with_name("onnxsim")), str(source), str(target)],
        "onnxslim": [str(python.with_name("onnxslim")), str(source), str(target)],
        "onnxruntime": [str(python), "-c", ORT, str(source), str(target)],
    }[tool]


def rewritten(tool: str, source: Path, target: Path, limit: float) -> Ran:
    """Run a tool on a file; what it did wrong is said in the result."""
    target.unlink(missing_ok=True)
    done = run(command(tool, source, target), limit)
    if not done.failed and not target.exists():
        done.failed = "nothing was written"
    return done


def feeds(model: onnx.ModelProto) -> dict[str, Any]:
    """Seeded standard-normal inputs."""
    generator = np.random.default_rng(0)
    stored = {tensor.name for tensor in model.graph.initializer}
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in stored
    }
    return {name: generator.standard_normal(s).astype(np.float32) for name, s in sizes.items()}


def apart(value: np.ndarray, truth: np.ndarray) -> float:
    """The RMS of the difference over that of the truth."""
    if value.shape != truth.shape:
        return float("inf")
    a, b = value.astype(np.float64), truth.astype(np.float64)
    scale = float(np.sqrt(np.mean(b**2)))
    off = float(np.sqrt(np.mean((a - b) ** 2))) / (scale or 1.0)
    return off if np.isfinite(off) else float("inf")


def ran(path: Path, threads: int) -> Counter[str]:
    """The operators of the graph that onnxruntime runs of a file, all its optimisations on."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "ran.onnx"
        session(path, threads, saved)
        return operators(onnx.load(saved))


def operators(model: onnx.ModelProto) -> Counter[str]:
    """The nodes of a model in words: operator, kernel, stride, dilation, pads and groups.

    Of onnxruntime's own operators also their domain, and what is fused into them.
    """
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: Counter[str] = Counter()
    for node in model.graph.node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            stored[node.output[0]] = tuple(given["value"].dims) if "value" in given else ()
            continue
        words = [node.domain, node.op_type]
        kind = node.op_type.removeprefix("Fused")
        if kind in ("Conv", "Gemm", "MatMul") and len(node.input) > 1:
            words.append("×".join(map(str, stored.get(node.input[1], ()))))
        if kind == "Conv" and len(node.input) > 3:
            words.append("plus a tensor")
        for name, usual in (("strides", 1), ("dilations", 1), ("pads", 0)):
            held = list(given.get(name, ()))
            if held and held != [usual] * len(held):
                words.append(f"{name} {','.join(map(str, held))}")
        if given.get("group", 1) != 1:
            words.append(f"groups {given['group']}")
        for name in sorted(key for key in given if key.startswith("activation")):
            held = given[name]
            words.append(f"{name} {held.decode() if isinstance(held, bytes) else held}")
        found[" ".join(word for word in words if word)] += 1
    return found


def difference(mine: Counter[str], theirs: Counter[str]) -> str:
    """What the first has more (+) and less (−) than the second."""
    counts = {key: mine[key] - theirs[key] for key in mine | theirs}
    parts = [f"{'+' if n > 0 else '−'}{abs(n)} {key}" for key, n in sorted(counts.items()) if n]
    return "; ".join(parts)
