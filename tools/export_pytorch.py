"""Export training-time blocks from PyTorch to ONNX, with their deploy forms and a manifest.

    python tools/export_pytorch.py [--table NAME] [--out FOLDER] [--only GLOB] [--list] [--large]

The tables are `systems_pytorch` (fixtures/pytorch), `systems_field` (fixtures/field) and
`systems_wide` (committed nowhere; tools/bench.py has it made). Kinds of export, each
`SYSTEM.KIND.onnx`:

    ts          TorchScript exporter, evaluation mode, fixed sizes
    preserve    TorchScript exporter, training=PRESERVE, no constant folding
    dynamo      torch.export-based exporter, fixed sizes
    ts-dyn      as ts, with batch, height and width left open
    dynamo-dyn  as dynamo, with batch, height and width left open
    deploy      the hand-merged model (`deploy_pytorch.deploy`), exported as ts

A file is written only if onnxruntime, optimisations off, agrees with torch on it.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import hashlib
import io
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blocks_field
import blocks_pytorch
import numpy as np
import onnx
import onnxruntime as ort
import systems_field
import systems_pytorch
import systems_wide
import torch
from deploy_pytorch import deploy
from forms_field import FORMS, best
from manifest import Manifest
from systems_field import FieldSystem
from systems_pytorch import System
from torch import Tensor, nn

SEED = 2026
GROWTH = (1, 2, 3, 2, 1)  # how much longer each axis is in the second run of an open one
KINDS = ("ts", "preserve", "dynamo", "ts-dyn", "dynamo-dyn", "deploy")
AXES = {0: "batch", 2: "height", 3: "width"}
TABLES: dict[str, tuple[System, ...]] = {
    "pytorch": systems_pytorch.SYSTEMS,
    "field": systems_field.SYSTEMS,
    "wide": systems_wide.SYSTEMS,
}
ONNX_TOLERANCE = 1e-4  # float32 against float32, other order of sums, outputs of size 1 to 10
DEPLOY_TOLERANCE = 1e-9  # float64 against float64
LARGE = 1_000_000  # bytes; a larger file is described in the manifest but not committed
# The dynamo exporter notes each node's Python traceback, with the absolute paths of the machine.
REMOVED_METADATA = ("pkg.torch.onnx.stack_trace",)


class MismatchError(Exception):
    """An export does not compute what its model computes."""


def inputs_for(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return a seeded standard-normal float32 input."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def export_torchscript(
    model: nn.Module, x: Tensor, axes: dict[int, str] | None, preserve: bool
) -> bytes:
    """Return the model as the TorchScript exporter writes it, `axes` being open."""
    mode = torch.onnx.TrainingMode.PRESERVE if preserve else torch.onnx.TrainingMode.EVAL
    buffer = io.BytesIO()
    torch.onnx.export(
        model,
        (x,),
        buffer,  # type: ignore[arg-type]  # accepted, though the signature names paths only
        dynamo=False,
        input_names=["input"],
        output_names=["output"],
        training=mode,
        do_constant_folding=not preserve,
        dynamic_axes={"input": axes} if axes else None,
    )
    return buffer.getvalue()


def export_dynamo(model: nn.Module, x: Tensor, axes: dict[int, str] | None) -> bytes:
    """Return the model as the dynamo exporter writes it, less the metadata that names paths."""
    program = torch.onnx.export(
        model,
        (x,),
        dynamo=True,
        verbose=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=(axes,) if axes else None,
    )
    assert program is not None
    proto = program.model_proto
    for owner in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info):
        kept = [entry for entry in owner.metadata_props if entry.key not in REMOVED_METADATA]
        del owner.metadata_props[:]
        owner.metadata_props.extend(kept)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def export(model: nn.Module, x: Tensor, kind: str, axes: dict[int, str]) -> bytes:
    """Return `model` exported as one of `KINDS`; the caller passes the merged model for deploy."""
    base, _, dynamic = kind.partition("-")
    if base == "dynamo":
        return export_dynamo(model, x, axes if dynamic else None)
    return export_torchscript(model, x, axes if dynamic else None, preserve=base == "preserve")


def check_onnx(content: bytes, model: nn.Module, inputs: list[Tensor]) -> None:
    """Raise `MismatchError` unless onnxruntime computes what torch computes on each input."""
    onnx.checker.check_model(content, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    for x in inputs:
        with torch.no_grad():
            expected = model(x).numpy()
        got = session.run(None, {"input": x.numpy()})[0]
        error = float(np.abs(got - expected).max())
        if not error <= ONNX_TOLERANCE:
            raise MismatchError(
                f"onnxruntime differs from torch by {error:.1e} at {tuple(x.shape)}"
            )


def check_deploy(model: nn.Module, merged: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise `MismatchError` unless the merged float64 model equals the training form."""
    x = inputs_for(shape, SEED + 1).double()
    with torch.no_grad():
        error = float((copy.deepcopy(model).double()(x) - merged(x)).abs().max())
    if not error <= DEPLOY_TOLERANCE:
        raise MismatchError(f"the deploy form differs from the training form by {error:.1e}")


def check_anonymous(content: bytes) -> None:
    """Raise `MismatchError` if the file names a place on this machine."""
    for place in (Path(__file__).resolve().parent, Path(torch.__file__).parent, Path.cwd()):
        if str(place).encode() in content:
            raise MismatchError("the file holds an absolute path of the exporting machine")


def describe(content: bytes, system: System, kind: str) -> dict[str, Any]:
    """Return the manifest entry of one exported file."""
    proto = onnx.load_from_string(content)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.output}
    ops = Counter(node.op_type for node in proto.graph.node)
    base, _, dynamic = kind.partition("-")
    if isinstance(system, FieldSystem):
        stated = {"best": best(system.name, kind), "why": FORMS[system.name][1]}
    else:
        stated = {"deploy": f"{system.name}.deploy.onnx"}
    return {
        "system": system.name,
        "exporter": base,
        "dynamic": bool(dynamic),
        "torch": torch.__version__.partition("+")[0],
        "opset": next(entry.version for entry in proto.opset_import if entry.domain == ""),
        "seed": SEED,
        "gain": system.gain,
        "input_shapes": {"input": list(system.shape)},
        "output_dims": {
            name: [dim.dim_param or dim.dim_value for dim in dims] for name, dims in shapes.items()
        },
        "channels": channels(proto, system),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "committed": len(content) <= LARGE,
        "nodes": sum(ops.values()),
        "ops": dict(sorted(ops.items())),
        **stated,
        "removed_metadata": list(REMOVED_METADATA) if base == "dynamo" else [],
    }


def channels(proto: onnx.ModelProto, system: System) -> dict[str, int]:
    """Return the numbers of channels in and out."""
    axis = 2 if isinstance(system, FieldSystem) and 1 in system.axes else 1
    out = proto.graph.output[0].type.tensor_type.shape.dim[axis]
    return {"in": system.shape[axis], "out": out.dim_value}


def exports(system: System) -> Iterator[tuple[str, bytes | str]]:
    """Yield (kind, content of the file) or (kind, reason for having none) for one system."""
    model = system.build()
    field = isinstance(system, FieldSystem)
    (blocks_field if field else blocks_pytorch).fill(model, SEED, system.gain)
    kinds, axes = (system.kinds, system.axes) if field else (KINDS, AXES)
    model.eval()
    x = inputs_for(system.shape, SEED)
    grown = [size + GROWTH[axis] * (axis in axes) for axis, size in enumerate(system.shape)]
    other = inputs_for(tuple(grown), SEED)
    for kind in kinds:
        if kind in system.skip:
            yield kind, system.skip[kind]
            continue
        try:
            subject = model
            if kind == "deploy":
                merged = deploy(model)
                check_deploy(model, merged, system.shape)
                subject = merged.float()
            content = export(subject, x, kind, axes)
            check_anonymous(content)
            check_onnx(content, model, [x, other] if kind.endswith("-dyn") else [x])
        except Exception as failure:  # a failing exporter is a finding
            yield kind, f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}"
        else:
            yield kind, content


def notes(table: str) -> dict[str, str]:
    """Return what holds for all entries of a table's manifest."""
    field = table == "field"
    command = "python tools/export_pytorch.py"
    checked = (
        "onnxruntime, optimisations off, against torch, float32, largest absolute "
        f"difference {ONNX_TOLERANCE:g}"
    )
    deploy = f"; deploy against training form in float64, {DEPLOY_TOLERANCE:g}"
    stated = {
        "best": "the operators of the best exact form, derived by hand in tools/forms_field.py; "
        "why says what decides it"
    }
    merged = {
        "deploy": "every re-parameterizable block is one convolution; BSConv keeps its pointwise "
        "and depthwise convolutions apart, with their BNs folded"
    }
    return {
        "command": f"{command} --table field" if field else f"{command} --out fixtures/pytorch",
        "reproducible": "two runs on one machine gave the same bytes for every file, dynamo's "
        "included; another processor may round folded constants differently",
        "checked": checked if field else checked + deploy,
        "removed_metadata": "from dynamo files the listed metadata keys were removed, because "
        "they hold absolute paths; nothing else was changed",
        **(stated if field else merged),
    }


def run(table: str, systems: list[System], out: Path, large: bool) -> None:
    """Export `systems` into `out`, keeping the manifest's entries of the others in the table."""
    known = {system.name for system in TABLES[table]}
    manifest = Manifest(out, lambda name: name.split(".")[0] in known, notes(table))
    for system in systems:
        for kind, result in exports(system):
            name = f"{system.name}.{kind}.onnx"
            if isinstance(result, str):
                manifest.skip(name, result)
                continue
            entry = describe(result, system, kind)
            manifest.put(name, result, entry, write=entry["committed"] or large)
        manifest.save()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 0."""
    parser = argparse.ArgumentParser(description="Export PyTorch blocks to ONNX fixtures.")
    parser.add_argument("--table", choices=TABLES, default="pytorch", help="which systems")
    parser.add_argument("--out", type=Path, help="the folder (default: fixtures/TABLE)")
    parser.add_argument("--only", default="*", metavar="GLOB", help="systems to export")
    parser.add_argument("--list", action="store_true", help="print the systems and stop")
    parser.add_argument("--large", action="store_true", help="write files over 1 MB as well")
    options = parser.parse_args(arguments)
    table = TABLES[options.table]
    systems = [system for system in table if fnmatch.fnmatch(system.name, options.only)]
    if options.list:
        print("\n".join(f"{system.name} {list(system.shape)}" for system in systems))
        return 0
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    out = options.out or Path("fixtures") / options.table
    run(options.table, systems, out, options.large)
    return 0


if __name__ == "__main__":
    sys.exit(main())
