"""Export training-time blocks from Paddle to ONNX, with a manifest.

    python tools/export_paddle.py --out fixtures/paddle [--only GLOB] [--list]

Kinds of export, each `SYSTEM.KIND.onnx`:

    default      paddle.onnx.export with its own defaults, fixed sizes
    raw          paddle2onnx.export without constant folding (optimize_tool="None")
    default-dyn  as default, with batch, height and width left open
    op7 … op16   as default, with another opset asked for; -dyn as above

A file is written only if onnxruntime, optimisations off, agrees with paddle on it. One thing is
changed in what the exporter writes: see `mend_pads`.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import io
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import paddle
import paddle2onnx
from blocks_paddle import fill
from manifest import Manifest
from onnx import numpy_helper
from paddle import nn
from systems_paddle import SYSTEMS, System

SEED = 2026
DEFAULT_OPSET = 9  # what paddle.onnx.export asks for where it is told nothing
KINDS = ("default", "raw", "default-dyn")
PAD_VALUE = 1e-38  # what `mend_pads` writes: like the exporter's better runs, not exactly zero
TOLERANCE = 1e-4  # relative: float32 against float32, other order of sums
EXPORTER_PACKAGES = ("paddlepaddle", "paddle2onnx", "polygraphy", "onnx", "onnx_graphsurgeon")


class MismatchError(Exception):
    """An export does not compute what its model computes."""


class NoFileError(Exception):
    """The exporter wrote nothing."""


def inputs_for(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return a seeded standard-normal float32 input."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def kinds_of(system: System) -> tuple[str, ...]:
    """Return all kinds of export to consider for one system."""
    return (*KINDS, *system.kinds)


def export(model: nn.Layer, system: System, kind: str) -> bytes:
    """Return `model` exported as `kind`."""
    n, c, h, w = system.shape
    base, _, dynamic = kind.partition("-")
    shape = [-1, c, -1, -1] if dynamic else [n, c, h, w]
    spec = paddle.static.InputSpec(shape, "float32", "input")
    with tempfile.TemporaryDirectory() as folder:
        stem = str(Path(folder) / "model")
        file = Path(f"{stem}.onnx")
        if base == "raw":  # paddle.onnx.export does not pass optimize_tool on
            paddle.jit.save(model, stem, [spec])
            paddle2onnx.export(
                f"{stem}.json",
                f"{stem}.pdiparams",
                str(file),
                opset_version=DEFAULT_OPSET,
                optimize_tool="None",
            )
        else:
            opset = int(base[2:]) if base.startswith("op") else DEFAULT_OPSET
            paddle.onnx.export(model, stem, input_spec=[spec], opset_version=opset)
        if not file.exists():  # the exporter logs its failures and returns
            raise NoFileError("the exporter wrote no file")
        return file.read_bytes()


def check_onnx(content: bytes, model: nn.Layer, inputs: list[np.ndarray]) -> None:
    """Raise `MismatchError` unless onnxruntime computes what paddle computes on each input."""
    onnx.checker.check_model(content)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    runner = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    for x in inputs:
        with paddle.no_grad():
            expected = model(paddle.to_tensor(x)).numpy()
        got = runner.run(None, {"input": x})[0]
        if got.shape != expected.shape:
            raise MismatchError(f"onnxruntime gives the shape {got.shape}, not {expected.shape}")
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
        if not error <= TOLERANCE:
            raise MismatchError(f"onnxruntime differs from paddle by {error:.1e} at {x.shape}")


def check_anonymous(content: bytes) -> None:
    """Raise `MismatchError` if the file names a place on this machine."""
    places = (
        Path(__file__).resolve().parent,
        Path(paddle.__file__).parent,
        Path.cwd(),
        Path(tempfile.gettempdir()),
    )
    for place in places:
        if str(place).encode() in content:
            raise MismatchError("the file holds an absolute path of the exporting machine")


def pad_constants(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return, by the name of the Pad's output, the tensor that holds each Pad's value."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            tensors[node.output[0]] = node.attribute[0].t
    pads = [node for node in proto.graph.node if node.op_type == "Pad"]
    return {
        node.output[0]: tensors[node.input[2]] for node in pads if node.input[2:] and node.input[2]
    }


def mend_pads(content: bytes) -> tuple[bytes, int]:
    """Return the model with `PAD_VALUE` in its 5-D Pads, and how many were changed.

    The exporter writes uninitialised memory as the value of what comes from Pad2D and from F.pad
    with four numbers: mostly tiny, sometimes huge (1e30), another one in each run.
    """
    proto = onnx.load_from_string(content)
    constants = pad_constants(proto)
    changed = 0
    for node in proto.graph.node:
        if node.op_type != "Pad" or not node.output[0].startswith("p2o.pd_op.pad3d"):
            continue
        changed += 1
        for attribute in node.attribute:
            if attribute.name == "value":
                attribute.f = PAD_VALUE
        if node.output[0] in constants:
            tensor = constants[node.output[0]]
            value = np.full(tuple(tensor.dims), PAD_VALUE, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return (proto.SerializeToString(deterministic=True) if changed else content), changed


def describe(content: bytes, mended_pads: int, system: System, kind: str) -> dict[str, Any]:
    """Return the manifest entry of one exported file."""
    proto = onnx.load_from_string(content)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.output}
    ops = Counter(node.op_type for node in proto.graph.node)
    dims = next(iter(shapes.values()))
    return {
        "system": system.name,
        "exporter": "paddle2onnx",
        "kind": kind,
        "dynamic": kind.endswith("-dyn"),
        "paddle2onnx": version("paddle2onnx"),
        "opset": next(entry.version for entry in proto.opset_import if entry.domain == ""),
        "ir_version": proto.ir_version,
        "seed": SEED,
        "gain": system.gain,
        "best": system.best,
        "input_shapes": {"input": list(system.shape)},
        "output_dims": {
            name: [dim.dim_param or dim.dim_value for dim in dims] for name, dims in shapes.items()
        },
        "channels": {"in": system.shape[1], "out": dims[1].dim_value},
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "committed": True,
        "nodes": sum(ops.values()),
        "ops": dict(sorted(ops.items())),
        "mended_pads": mended_pads,
    }


def exports(system: System) -> Iterator[tuple[str, tuple[bytes, int] | str]]:
    """Yield (kind, (content of the file, mended Pads)) or (kind, reason for having none)."""
    n, c, h, w = system.shape
    x = inputs_for(system.shape, SEED)
    other = inputs_for((n + 1, c, h + 3, w + 2), SEED)
    for kind in kinds_of(system):
        if kind in system.skip:
            yield kind, system.skip[kind]
            continue
        try:
            with paddle.utils.unique_name.guard():  # names count from 0 in every file
                model = system.build()
                fill(model, SEED, system.gain)
                model.eval()
                content, mended = mend_pads(export(model, system, kind))
            check_anonymous(content)
            check_onnx(content, model, [x, other] if kind.endswith("-dyn") else [x])
        except Exception as failure:  # a failing exporter is a finding
            yield kind, f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}"
        else:
            yield kind, (content, mended)


def notes() -> dict[str, Any]:
    """Return what holds for all entries of the manifest."""
    return {
        "versions": {name: version(name) for name in EXPORTER_PACKAGES},
        "command": "python tools/export_paddle.py --out fixtures/paddle",
        "checked": "onnxruntime, optimisations off, against paddle, float32, largest difference "
        f"{TOLERANCE:g} of the largest output",
        "reproducible": "two runs on one machine gave the same bytes for every file; another "
        "processor may round folded constants differently",
        "mended_pads": "the exporter writes uninitialised memory as the value of the 5-D Pads that "
        "come from Pad2D, ZeroPad2D and F.pad with four numbers: usually 0 or below 1e-38, at "
        f"times as large as 1e32, another one in each run. {PAD_VALUE:g} stands there instead, in "
        "as many Pads as the entry says. Nothing else was changed",
        "best": "the best exact form that arithmetic gives, in words; 'open sizes' is what holds "
        "of the -dyn kinds",
    }


def run(systems: list[System], out: Path) -> None:
    """Export `systems` into `out`, keeping the manifest's entries of the others."""
    known = {f"{system.name}.{kind}.onnx" for system in SYSTEMS for kind in kinds_of(system)}
    manifest = Manifest(out, known.__contains__, notes())
    for system in systems:
        for kind, result in exports(system):
            name = f"{system.name}.{kind}.onnx"
            if isinstance(result, str):
                manifest.skip(name, result)
                continue
            content, mended = result
            manifest.put(name, content, describe(content, mended, system, kind))
        manifest.save()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 0."""
    parser = argparse.ArgumentParser(description="Export Paddle blocks to ONNX fixtures.")
    parser.add_argument("--out", type=Path, default=Path("fixtures/paddle"))
    parser.add_argument("--only", default="*", metavar="GLOB", help="systems to export")
    parser.add_argument("--list", action="store_true", help="print the systems and stop")
    options = parser.parse_args(arguments)
    systems = [system for system in SYSTEMS if fnmatch.fnmatch(system.name, options.only)]
    if options.list:
        print("\n".join(f"{system.name} {list(system.shape)}" for system in systems))
        return 0
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
        run(systems, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
