"""Inputs that a user gives in a file, and what is asked of the run of the whole model.

Everything is checked before any work: names, types and shapes, each with one line that says how
to mend it. Nothing is run here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfuse import files
from onnxfuse.errors import InputError
from onnxfuse.model.shapes import Shape
from onnxfuse.model.tensors import dtype_of
from onnxfuse.options import Options

Data = Mapping[str, Any]


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arrays of an .npz file by name, or that of an .npy file under the name ""."""
    data = files.read(Path(path), f"the input data {path}")
    try:
        held = np.load(io.BytesIO(data), allow_pickle=False)
        return {"": held} if isinstance(held, np.ndarray) else dict(held)
    except Exception as error:  # zipfile, zlib and NumPy have many
        detail = " ".join(str(error).split())[:120]
        raise InputError(
            f"the input data {path} is no .npz or .npy file of plain arrays ({detail}); write it "
            "with numpy.savez"
        ) from error


def matched(data: Data, inputs: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, Shape]) -> Data:
    """The arrays by input, in the inputs' order. Raises `InputError` where one does not fit."""
    names = [value.name for value in inputs]
    known = ", ".join(map(repr, names)) or "none"
    if "" in data and "" not in names:
        if len(names) != 1:
            raise InputError(
                f"the input data is a single array, and the model's inputs are {known}; write an "
                ".npz file that names an array for each"
            )
        data = {names[0]: data[""]}
    for name in data:
        if name not in names:
            raise InputError(
                f"the model has no input {name!r}, which the input data names; its inputs are "
                f"{known}"
            )
    for name in names:
        if name not in data:
            raise InputError(f"the input data lacks input {name!r}; the model's inputs are {known}")
    return {value.name: _fitting(value, data[value.name], shapes) for value in inputs}


def _fitting(value: onnx.ValueInfoProto, given: Any, shapes: Mapping[str, Shape]) -> Any:
    array, kind = np.asarray(given), value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.elem_type:
        raise InputError(f"input {value.name!r} is no tensor of a known type; run without data")
    if kind.elem_type == onnx.TensorProto.STRING and array.dtype.kind == "U":
        array = array.astype(object)
    wanted = dtype_of(kind.elem_type)
    if array.dtype != wanted:
        raise InputError(
            f"the data of input {value.name!r} is {array.dtype}, and the model takes {wanted}; "
            f"convert it with .astype({wanted.name!r})"
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(
            f"the data of input {value.name!r} holds NaN, and models are equal for finite inputs; "
            "leave it out"
        )
    if not kind.HasField("shape"):
        return array
    sizes = [dim.dim_value or None for dim in kind.shape.dim]
    asked = shapes.get(value.name)
    for what, shape in (("the model takes", sizes), ("--input-shape says", asked)):
        if shape is not None and not _is_of(array.shape, shape):
            raise InputError(
                f"the data of input {value.name!r} is {_written(array.shape)}, and {what} "
                f"{_written(shape)}; reshape it"
            )
    return array


def _written(shape: Sequence[int | None]) -> str:
    return "×".join("any" if size is None else str(size) for size in shape) or "a number"


def _is_of(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        size in (None, have) for have, size in zip(shape, wanted, strict=True)
    )


def check(model: onnx.ModelProto, options: Options) -> None:
    """Raise `InputError` where what is asked of the run of the whole model cannot be done."""
    if not options.judged:
        return
    if not options.verify:
        raise InputError(
            "input data, a seed and tolerances are for the run of the whole model, which is left "
            "out; leave out --no-verify, or them"
        )
    if options.input_data is not None:
        if options.seed is not None:
            raise InputError("--seed draws inputs and --input-data gives them; leave one out")
        stored = {tensor.name for tensor in model.graph.initializer}
        stored |= {sparse.values.name for sparse in model.graph.sparse_initializer}
        inputs = [value for value in model.graph.input if value.name not in stored]
        matched(options.input_data, inputs, options.input_shapes or {})
    outputs = [value.name for value in model.graph.output]
    for name in (*options.rtol, *options.atol):
        if name and name not in outputs:
            raise InputError(
                f"the model has no output {name!r}; its outputs are {', '.join(map(repr, outputs))}"
            )
