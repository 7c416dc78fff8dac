"""Export training-time blocks from Keras to ONNX, with a manifest.

    python tools/export_keras.py [--backend torch] [--out fixtures/keras] [--only GLOB] [--list]

Kinds of export, each `SYSTEM.KIND.onnx`; the first six need the TensorFlow backend, the others
the torch backend, each in an environment of its own:

    tf2onnx       Keras 3 through tf2onnx.convert.from_keras, batch open, fixed sizes
    tf2onnx-dyn   the same, height and width left open too
    tf2onnx-op11  as tf2onnx, at opset 11 in place of tf2onnx' own choice
    tf2onnx-op18  as tf2onnx, at opset 18
    tfkeras       tf_keras (Keras 2) through tf2onnx.convert.from_keras, batch open, fixed sizes
    export        Keras 3, model.export(format="onnx"), all sizes fixed
    torch         Keras 3 on torch, model.export(format="onnx"), batch open, fixed sizes: Keras
                  takes the TorchScript exporter as soon as one size is open
    torch-dyn     the same, height and width left open too
    torch-dynamo  as torch, all sizes fixed: Keras takes the torch.export-based exporter

A file is written only if onnxruntime, optimisations off, agrees with Keras on it.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib
import importlib.metadata
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from blocks_keras import Layers, fill
from manifest import Manifest
from systems_keras import SYSTEMS, System

SEED = 2026
KINDS = {
    "tensorflow": ("tf2onnx", "tf2onnx-dyn", "tf2onnx-op11", "tf2onnx-op18", "tfkeras", "export"),
    "torch": ("torch", "torch-dyn", "torch-dynamo"),
}
PACKAGES = {
    "tf2onnx": ("keras", "tensorflow-cpu", "tf2onnx"),
    "tfkeras": ("tf_keras", "tensorflow-cpu", "tf2onnx"),
    "export": ("keras", "tensorflow-cpu", "tf2onnx"),
    "torch": ("keras", "torch", "onnxscript"),
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",  # tf2onnx orders independent nodes by the hashes of their names
}
TOLERANCE = 1e-4  # float32 against float32, other order of sums, relative to the largest output
# The dynamo exporter notes each node's Python traceback, with the absolute paths of the machine.
REMOVED_METADATA = ("pkg.torch.onnx.stack_trace",)
REMOVED = {"torch-dynamo": list(REMOVED_METADATA), "export": ["graph.doc_string"]}


class MismatchError(Exception):
    """An export does not compute what its model computes."""


def inputs_for(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return a seeded standard-normal float32 input."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def moved(x: np.ndarray, channels_first: bool) -> np.ndarray:
    """Return `x` with its channels, which are last, moved to where the system has them."""
    return np.moveaxis(x, -1, 1) if channels_first else x


def open_axes(kind: str) -> tuple[bool, bool]:
    """Return whether the batch and whether the height and width are open in `kind`."""
    return kind not in {"export", "torch-dynamo"}, kind.endswith("-dyn")


def build(system: System, kind: str, channels_first: bool) -> Any:
    """Return the system's Keras model, filled; layer names start anew with each call."""
    keras = importlib.import_module("tf_keras" if kind == "tfkeras" else "keras")
    keras.backend.clear_session()
    net = Layers(keras, channels_first)
    open_batch, open_sizes = open_axes(kind)
    batch, *sizes, channels = system.shape
    inner = [None] * len(sizes) if open_sizes else sizes
    shape = (channels, *inner) if channels_first else (*inner, channels)
    x = keras.Input(shape, batch_size=None if open_batch else batch, name="input")
    y = system.build(net, x)
    model = keras.Model(x, net.relu(y) if system.activation else y, name="net")
    fill(model, SEED, system.gain)
    return model


def settle_tf2onnx() -> None:
    """Make tf2onnx name and order things by what it is given and not by chance.

    It counts names through the whole process, and goes through sets of nodes, which Python
    orders by their addresses.
    """
    import tf2onnx

    tf2onnx.utils.INTERNAL_NAME = 1
    tf2onnx.graph.Node.__hash__ = lambda node: hash(node.name)


def export_tf2onnx(model: Any, opset: int | None) -> bytes:
    """Return the model as tf2onnx writes it."""
    import tf2onnx

    settle_tf2onnx()
    proto, _ = tf2onnx.convert.from_keras(model, opset=opset)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def export_keras(model: Any) -> bytes:
    """Return the model as Keras itself writes it, less what names paths or counts calls.

    Keras opens the batch of every model that is exported without a signature.
    """
    import keras

    fixed = None not in model.input_shape
    signature = [keras.InputSpec("float32", model.input_shape, name="input")] if fixed else None
    if keras.backend.backend() == "tensorflow":
        settle_tf2onnx()
    model(np.zeros([size or 1 for size in model.input_shape], np.float32))  # it must have run once
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.export(str(path), format="onnx", verbose=False, input_signature=signature)
        proto = onnx.load(path)
    for owner in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info):
        kept = [entry for entry in owner.metadata_props if entry.key not in REMOVED_METADATA]
        del owner.metadata_props[:]
        owner.metadata_props.extend(kept)
    proto.graph.ClearField("doc_string")  # on TensorFlow: a function's number in this process
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def export(model: Any, kind: str) -> bytes:
    """Return `model` exported as `kind`."""
    base, _, variant = kind.partition("-")
    if base in {"tf2onnx", "tfkeras"}:
        opset = int(variant.removeprefix("op")) if variant.startswith("op") else None
        return export_tf2onnx(model, opset)
    return export_keras(model)


def as_numpy(value: Any) -> np.ndarray:
    """Return what a model returned as an array."""
    return value.detach().numpy() if hasattr(value, "detach") else np.asarray(value)


def check_onnx(content: bytes, model: Any, inputs: list[np.ndarray], channels_first: bool) -> None:
    """Raise `MismatchError` unless onnxruntime computes what Keras computes on each input.

    `model` and `inputs` have their channels last, as TensorFlow computes nothing else on a CPU.
    """
    onnx.checker.check_model(content, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    for x in inputs:
        expected = moved(as_numpy(model(x, training=False)), channels_first)
        got = session.run(None, {name: np.ascontiguousarray(moved(x, channels_first))})[0]
        if got.shape != expected.shape:
            raise MismatchError(f"onnxruntime returns {got.shape}, Keras {expected.shape}")
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
        if not error <= TOLERANCE:
            raise MismatchError(f"onnxruntime differs from Keras by {error:.1e} at {x.shape}")


def check_anonymous(content: bytes) -> None:
    """Raise `MismatchError` if the file names a place on this machine."""
    packages = Path(np.__file__).parent.parent
    for place in (Path(__file__).resolve().parent, packages, Path.cwd(), tempfile.gettempdir()):
        if f"{place}/".encode() in content:
            raise MismatchError("the file holds an absolute path of the exporting machine")


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    """Return the declared shape of a graph input or output."""
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def describe(content: bytes, system: System, kind: str, backend: str) -> dict[str, Any]:
    """Return the manifest entry of one exported file."""
    graph = onnx.load_from_string(content)
    shape = tuple(np.moveaxis(np.empty(system.shape), -1, 1).shape)
    ops = Counter(node.op_type for node in graph.graph.node)
    output = graph.graph.output[0]
    last = -1 if not system.channels_first or len(dims(output)) == 2 else 1
    open_batch, open_sizes = open_axes(kind)
    base = kind.partition("-")[0]
    return {
        "system": system.name,
        "exporter": base,
        "kind": kind,
        "backend": backend,
        "dynamic": open_sizes,
        "open_batch": open_batch,
        "versions": {name: version(name) for name in (*PACKAGES[base], "onnx")},
        "opset": next(entry.version for entry in graph.opset_import if entry.domain == ""),
        "seed": SEED,
        "gain": system.gain,
        "layout": "channels_first" if system.channels_first else "channels_last",
        "input_shapes": {
            graph.graph.input[0].name: list(shape if system.channels_first else system.shape)
        },
        "input_dims": {value.name: dims(value) for value in graph.graph.input},
        "output_dims": {value.name: dims(value) for value in graph.graph.output},
        "channels": {"in": system.shape[-1], "out": dims(output)[last]},
        "best": system.best_open if open_sizes else system.best,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "committed": True,
        "nodes": sum(ops.values()),
        "ops": dict(sorted(ops.items())),
        "removed": REMOVED.get(kind, []),
    }


def version(package: str) -> str:
    """Return the version of an installed package, less what names its build."""
    return importlib.metadata.version(package).partition("+")[0]


def exports(system: System, backend: str) -> Iterator[tuple[str, bytes | str]]:
    """Yield (kind, content of the file) or (kind, reason for having none) for one system."""
    for kind in KINDS[backend]:
        if kind not in system.kinds:
            continue
        try:
            content = export(build(system, kind, system.channels_first), kind)
            check_anonymous(content)
            open_batch, open_sizes = open_axes(kind)
            batch, *sizes, channels = system.shape
            if open_sizes:
                sizes = [size + grow for size, grow in zip(sizes, (3, 2), strict=False)]
            other = (batch + open_batch, *sizes, channels)
            inputs = [inputs_for(system.shape, SEED), inputs_for(other, SEED + 1)]
            check_onnx(content, build(system, kind, False), inputs, system.channels_first)
        except Exception as failure:  # a failing exporter is a finding
            yield kind, f"{type(failure).__name__}: {str(failure).strip().splitlines()[0][:200]}"
        else:
            yield kind, content


def notes() -> dict[str, str]:
    """Return what holds for all entries of the manifest."""
    return {
        "command": "python tools/export_keras.py, then, in the environment of "
        "tools/requirements-keras-torch.txt, python tools/export_keras.py --backend torch",
        "reproducible": "two runs on one machine gave the same bytes for every file; another "
        "processor may round folded constants differently",
        "checked": "onnxruntime, optimisations off, against Keras, float32, largest difference "
        f"{TOLERANCE:g} of the largest output, at two inputs: open sizes at two sizes",
        "best": "the best exact form of the system in words, known by arithmetic",
        "input_dims": "as declared in the file: the names of open sizes are the exporter's",
        "removed": "what was taken out of the exporter's output: metadata that holds absolute "
        "paths, and a comment that counts calls; nothing else was changed",
        "missing": "a kind of a system that is neither in files nor in skipped was not made, to "
        "keep the fixtures small",
    }


def run(systems: list[System], out: Path, backend: str) -> None:
    """Export `systems` into `out`, keeping the manifest's entries of the others."""
    known = {f"{system.name}.{kind}.onnx" for system in SYSTEMS for kind in system.kinds}
    manifest = Manifest(out, known.__contains__, notes())
    for stale in out.glob("*.onnx"):
        if stale.name not in known:
            stale.unlink()
    for system in systems:
        for kind, result in exports(system, backend):
            name = f"{system.name}.{kind}.onnx"
            if isinstance(result, str):
                manifest.skip(name, result)
                continue
            manifest.put(name, result, describe(result, system, kind, backend))
        manifest.save()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 0."""
    parser = argparse.ArgumentParser(description="Export Keras blocks to ONNX fixtures.")
    parser.add_argument("--backend", choices=sorted(KINDS), default="tensorflow")
    parser.add_argument("--out", type=Path, default=Path("fixtures/keras"))
    parser.add_argument("--only", default="*", metavar="GLOB", help="systems to export")
    parser.add_argument("--list", action="store_true", help="print the systems and stop")
    options = parser.parse_args(arguments)
    systems = [system for system in SYSTEMS if fnmatch.fnmatch(system.name, options.only)]
    if options.list:
        for system in systems:
            print(f"{system.name} {list(system.shape)} {system.best}")
        return 0
    if os.environ.get("PYTHONHASHSEED") != ENVIRONMENT["PYTHONHASHSEED"]:
        os.environ.update(ENVIRONMENT)  # hashes and threads are settled as Python starts
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    os.environ.update(ENVIRONMENT, KERAS_BACKEND=options.backend)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    run(systems, options.out, options.backend)
    return 0


if __name__ == "__main__":
    sys.exit(main())
