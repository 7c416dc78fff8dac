"""TensorProtos as arrays: inline or external, checked before they are trusted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxfuse.errors import InputError
from onnxfuse.model import held
from onnxfuse.model.held import Buffer

FLOATS: dict[int, float] = {
    TensorProto.FLOAT: 2.0**-24,
    TensorProto.DOUBLE: 2.0**-53,
    TensorProto.FLOAT16: 2.0**-11,
    TensorProto.BFLOAT16: 2.0**-8,
}
"""The data types whose linear maps are fused, with their unit roundoff."""


_FIELDS = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT32: "int32_data",
    TensorProto.INT64: "int64_data",
}
"""Types whose numbers may stand in a field of their own, one for one."""
SHOWN = 200
"""So much of a name that a file gives is said in an error."""
FREE_INITIALIZERS = 4
"""From this IR version on an initializer need not be a graph input, which a caller may set."""


def dtype_of(data_type: int) -> np.dtype[Any]:
    """The NumPy type of an ONNX element type."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))


def read(tensor: TensorProto, base: Path | None) -> Any:
    """The array of a tensor. Raises `InputError` where its data is missing or damaged."""
    try:
        if held.is_held(tensor):
            return np.frombuffer(held.view(tensor), dtype_of(tensor.data_type)).reshape(
                tuple(tensor.dims)
            )
        if tensor.data_location == TensorProto.EXTERNAL:
            return _external(tensor, base)
        return numpy_helper.to_array(tensor)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"tensor {tensor.name!r} cannot be read: {_line(error)}") from error


def in_file(tensor: TensorProto) -> bool:
    """Whether the data of a tensor lies in a file beside the model's."""
    return tensor.data_location == TensorProto.EXTERNAL and not held.is_held(tensor)


def external_path(tensor: TensorProto, base: Path | None) -> Path:
    """The data file of a tensor, inside the model's directory."""
    location = held.entries(tensor).get("location", "")
    shown = location if len(location) <= SHOWN else f"{location[:SHOWN]}…"
    if base is None:
        raise InputError(
            f"tensor {tensor.name!r} is kept in {shown!r} beside the model file; "
            "pass the model's path instead of the loaded model"
        )
    try:
        path = (base / location).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a null byte; links in a circle
        raise InputError(
            f"tensor {tensor.name!r} is kept in {shown!r}, which is no path"
        ) from error
    if not location or not path.is_relative_to(base.resolve()):
        raise InputError(
            f"tensor {tensor.name!r} is kept in {shown!r}, outside the model's directory"
        )
    return path


def offset_of(tensor: TensorProto) -> int:
    """Where the data of an external tensor begins in its file."""
    return int(held.entries(tensor).get("offset", 0))


def length_of(tensor: TensorProto) -> int:
    """The bytes of an external tensor, which its file need not say."""
    said = held.entries(tensor).get("length")
    return int(said) if said else prod(tensor.dims) * dtype_of(tensor.data_type).itemsize


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Let the data of a tensor be that in a file; what else is said of the tensor stays."""
    for name in ("raw_data", "external_data", *_FIELDS.values()):
        tensor.ClearField(name)
    held.refer(tensor, location, offset, length)


def stored_bytes(tensor: TensorProto) -> Buffer | None:
    """The data of an inline tensor as a file holds it; ``None`` where it has another form."""
    if held.is_held(tensor):
        return held.view(tensor)
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    field = {int(kind): name for kind, name in _FIELDS.items()}.get(tensor.data_type)
    if field is not None and len(getattr(tensor, field)):
        return bytes(numpy_helper.to_array(tensor).tobytes())
    return None


def _external(tensor: TensorProto, base: Path | None) -> Any:
    path = external_path(tensor, base)
    entries = held.entries(tensor)
    offset = int(entries.get("offset", 0))
    kind = dtype_of(tensor.data_type)
    count = prod(tensor.dims)
    if not path.is_file():
        raise InputError(f"the data file {path} of tensor {tensor.name!r} is missing")
    if offset + count * kind.itemsize > path.stat().st_size:
        raise InputError(f"the data file {path} is too short for tensor {tensor.name!r}")
    flat = np.memmap(path, kind, "r", offset, (count,)) if count else np.zeros(0, kind)
    return flat.view(np.ndarray).reshape(tuple(tensor.dims))


def check_size(tensor: TensorProto) -> None:
    """Refuse a tensor whose inline data cannot be what its dimensions say."""
    if tensor.data_location == TensorProto.EXTERNAL or not tensor.HasField("raw_data"):
        return
    if any(size < 0 for size in tensor.dims):
        raise InputError(f"tensor {tensor.name!r} has a negative dimension")
    try:
        itemsize = dtype_of(tensor.data_type).itemsize
    except (KeyError, TypeError):
        return
    if tensor.data_type in FLOATS and prod(tensor.dims) * itemsize != len(tensor.raw_data):
        raise InputError(
            f"tensor {tensor.name!r} should hold {prod(tensor.dims) * itemsize} bytes "
            f"but holds {len(tensor.raw_data)}; the file is damaged"
        )


def check_external(tensor: TensorProto, file: str, size: int) -> None:
    """Refuse a tensor that its data ``file`` of ``size`` bytes cannot hold."""
    entries = held.entries(tensor)
    places = [entries.get(key) or "0" for key in ("offset", "length")]
    if not all(re.fullmatch("[0-9]{1,18}", place) for place in places):
        raise InputError(f"tensor {tensor.name!r} has no usable offset or length in {file}")
    offset, length = map(int, places)
    wanted = length
    if tensor.data_type in FLOATS:
        if any(axis < 0 for axis in tensor.dims):
            raise InputError(f"tensor {tensor.name!r} has a negative dimension")
        wanted = prod(tensor.dims) * dtype_of(tensor.data_type).itemsize
        if entries.get("length") and length != wanted:
            raise InputError(
                f"tensor {tensor.name!r} should hold {wanted} bytes but is given {length} in "
                f"{file}; the model is damaged"
            )
    if offset + wanted > size:
        raise InputError(
            f"the data file {file} is too short for tensor {tensor.name!r}: it ends after {size} "
            "bytes; copy it again, whole"
        )


def make(name: str, array: Any, data_type: int) -> TensorProto:
    """A TensorProto of the given type with raw data."""
    converted = np.ascontiguousarray(np.asarray(array).astype(dtype_of(data_type), copy=False))
    tensor: onnx.TensorProto = numpy_helper.from_array(converted, name)
    return tensor


def constant_node(tensor: TensorProto) -> onnx.NodeProto:
    """A Constant node that gives a tensor under its name."""
    value = TensorProto()
    value.CopyFrom(tensor)
    return helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=value)


def placeholder(name: str, shape: Sequence[int], data_type: int) -> TensorProto:
    """A tensor without data, for models that are planned and never written."""
    return TensorProto(
        name=name, dims=shape, data_type=data_type, data_location=TensorProto.EXTERNAL
    )


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
