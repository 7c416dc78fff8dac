"""A small model of the region that a proof failed at: its original nodes, weights and inputs.

Only what the region's result is computed from is written, at the sizes where the proof failed. A
repro that cannot be made or written never hides the proof's own error.
"""

from __future__ import annotations

import io as streams
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxfuse.errors import InputError, ProofError
from onnxfuse.lift import View
from onnxfuse.model import io, tensors
from onnxfuse.realise import Replacement
from onnxfuse.verify.region import SEED
from onnxfuse.verify.run import AUXILIARY, DOUBLE, run_original
from onnxfuse.verify.sizes import Sizes, proof_sizes

Found = tuple[Replacement, View, str]
"""A region as it was replaced, the view of the model that it was found in, and which body it is."""


@contextmanager
def saving(
    place: str | None, regions: Iterable[Found], origin: Mapping[str, str]
) -> Iterator[None]:
    """Write the region that a `ProofError` names to the directory ``place``, and say where.

    ``origin`` names the given model's tensor that a tensor holds in another layout.
    """
    try:
        yield
    except ProofError as error:
        if place is None:
            raise
        mine = [
            found
            for found in regions
            if error.root
            and error.root in (found[0].root, origin.get(found[0].root))
            and error.scope == found[2]
        ]
        text = f"{error}; {_saved(Path(place), mine, error.sizes)}"
        raise ProofError(text, error.root, error.sizes, error.scope) from error


def check_place(place: str) -> None:
    """Raise `InputError` where ``place`` cannot become a directory that holds a repro."""
    path = Path(place)
    try:
        usable = bool(place) and (path.is_dir() or not path.exists())
    except (OSError, ValueError):
        usable = False
    if not usable:
        raise InputError(f"--save-repro {place!r} is no directory; name one, it is made if needed")


def _saved(place: Path, found: Sequence[Found], sizes: Sizes) -> str:
    if not found:
        return "no repro was written, as no single region is guilty"
    try:
        replacement, view, _ = found[0]
        model, arrays = _made(replacement, view, sizes)
        held = streams.BytesIO()
        np.savez(held, **arrays)
        place.mkdir(parents=True, exist_ok=True)
        path = _free(place, replacement.region.root.node.label)
        io.write(path, io.serialise(model).joined())
        io.write(path.with_suffix(".npz"), held.getvalue())
    except Exception as error:  # whatever it is, the proof's error comes first
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        return f"no repro could be written ({detail})"
    return f"the region's nodes are in {path}, their inputs in {path.with_suffix('.npz')}"


def _free(place: Path, label: str) -> Path:
    """A name in a directory that stands for no file yet."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", label).strip("_")[:60] or "region"
    for count in range(1, 1000):
        path = place / (f"{stem}.onnx" if count == 1 else f"{stem}-{count}.onnx")
        if not path.exists() and not path.with_suffix(".npz").exists():
            return path
    raise InputError(f"{place} holds a thousand repros; name another directory")


@dataclass(frozen=True, slots=True)
class _Part:
    """What one tensor is computed from: nodes by position, constants, and tensors from outside."""

    nodes: set[int]
    constants: dict[str, Any]
    sources: dict[str, None]


def _part(replacement: Replacement, view: View, given: Sizes) -> _Part:
    found = _Part(set(), {}, {})
    interior = {step.node.index for step in replacement.region.interior}
    seen, stack = set(given), [replacement.root]
    found.sources.update(dict.fromkeys(given))
    while stack:
        name = stack.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        node = view.graph.producer.get(name)
        value = view.constants.value(name) if view.constants.known(name) else None
        if value is not None:
            found.constants[name] = value
        elif node is not None and (node.index in interior or node.op_type in AUXILIARY):
            found.nodes.add(node.index)
            stack += node.inputs
        else:
            found.sources[name] = None
    return found


def _made(
    replacement: Replacement, view: View, sizes: Sizes
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model of a region and inputs for it, in the model's own types."""
    sizes = sizes or _sizes(replacement, view)
    part, whole = _part(replacement, view, sizes), view.graph.model
    sizes = {name: sizes.get(name) or _outside(name, view) for name in part.sources}
    generator = np.random.default_rng(SEED)
    arrays = {
        name: generator.standard_normal(shape).astype(tensors.dtype_of(view.shapes.type_of(name)))
        for name, shape in sizes.items()
    }
    root = replacement.root
    wide = {
        name: array.astype(np.float64) if array.dtype.kind != "i" else array
        for name, array in arrays.items()
    }
    shape = run_original(replacement, view, wide, DOUBLE).shape
    graph = helper.make_graph(
        [whole.graph.node[node.index] for node in view.graph.order if node.index in part.nodes],
        "repro",
        [_value(name, view, sizes[name]) for name in part.sources],
        [_value(root, view, shape)],
        [_constant(name, value, view) for name, value in part.constants.items()],
        doc_string=f"the region at {replacement.region.root.node.label}",
    )
    model = helper.make_model(graph, opset_imports=list(whole.opset_import))
    model.ir_version = max(whole.ir_version, tensors.FREE_INITIALIZERS)
    return model, arrays


def _sizes(replacement: Replacement, view: View) -> Sizes:
    """The first shapes of the proof that the region takes."""
    every = list(proof_sizes(replacement, view))
    for sizes in every:
        with suppress(ValueError, ProofError):
            arrays = {name: np.ones(shape) for name, shape in sizes.items()}
            if run_original(replacement, view, arrays, DOUBLE).size:
                return sizes
    return every[0]


def _outside(name: str, view: View) -> tuple[int, ...]:
    """The shape of a tensor of which the region needs the size alone."""
    shape = view.shape(name)
    if shape is None or None in shape:
        raise InputError(f"it needs the size of {name!r}, which is not known")
    return tuple(int(size or 0) for size in shape)


def _value(name: str, view: View, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, view.shapes.type_of(name), shape)


def _constant(name: str, value: Any, view: View) -> TensorProto:
    array = np.asarray(value)
    stored = view.constants.stored(name)
    if stored is not None:
        kind = stored.data_type
    elif array.dtype.kind == "f":
        kind = view.shapes.type_of(name) or helper.np_dtype_to_tensor_dtype(array.dtype)
    else:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    # not as fused weights are written: that may be what is wrong
    made: TensorProto = numpy_helper.from_array(array.astype(tensors.dtype_of(kind)), name)
    return made
