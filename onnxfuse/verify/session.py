"""What onnxruntime is asked: sessions without optimisations, and seeded inputs.

It knows models and feeds, and nothing of what results are compared for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from onnxfuse.model import held, holes, tensors
from onnxfuse.model.shapes import Shape
from onnxfuse.model.tensors import dtype_of

FACTOR, NARROW = 16.0, 4.0
"""How many times the response to noise two results may differ by; the second in half precision.

Noise is four roundoffs and merging leaves about one, so that four times is sixteen still. Sixteen
times would be a quarter of a bfloat16 output, which a wrong model may meet.
"""
UNITS = 4.0
"""Disturbances are at least this many units of roundoff."""
SIZES = ((1, 32), (2, 45))
"""Batch and other dynamic dimensions of the two runs where sizes are dynamic."""
SEED = 7
LARGEST = 1 << 26
"""Elements of the largest input that is drawn: half a gigabyte as they are drawn."""
FEW = range(4)
"""The integers that are drawn where nothing else is known or asked for."""


KINDS = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(double)": TensorProto.DOUBLE,
    "tensor(float16)": TensorProto.FLOAT16,
    "tensor(bfloat16)": TensorProto.BFLOAT16,
}
"""What onnxruntime calls the types that are rounded."""

UNDEFINED = "Type Error: Type 'tensor(bfloat16)'"
EXCHANGES = "onnxruntime exchanges no bfloat16 with Python"
NO_ARRAY = ("No corresponding Numpy type", "can't be converted to MLDataType")
"""What onnxruntime says of an output and of an input that NumPy has no type for."""

NAME = f"onnxruntime {ort.__version__}"

ort.set_default_logger_severity(4)


class CannotRunError(Exception):
    """A runtime does not load a model."""


class NoKernelError(CannotRunError):
    """onnxruntime knows an operator, and has nothing that computes it for its types."""


def opened(model: onnx.ModelProto | bytes | str, base: str | None) -> ort.InferenceSession:
    """A session of a model, its bytes or its path; ``base`` is where its external data lies.

    Raises `CannotRunError` with onnxruntime's own line.
    """
    if isinstance(model, onnx.ModelProto):
        check_survivable(model)
    try:
        if isinstance(model, onnx.ModelProto):
            found = _apart(model, base)
            if found is not None:
                return found
            model = held.serialised(model).joined()
        return _started(model, _options(base))
    except ort.capi.onnxruntime_pybind11_state.NotImplemented as error:
        raise NoKernelError(line(error)) from error
    except Exception as error:
        if UNDEFINED in str(error):  # exporters write what these operator sets do not define yet
            raise NoKernelError(line(error)) from error
        raise CannotRunError(line(error)) from error


def _options(base: str | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if base is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", base
        )
        # weights are then read where they are mapped; packed for speed they would be copied
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _started(model: bytes | str, options: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _apart(model: onnx.ModelProto, base: str | None) -> ort.InferenceSession | None:
    """A session that reads large weights where they are held, if there is one.

    They must live as long as it. It takes none that no node reads, and no integers that it computes
    shapes from while it loads; NumPy has no bfloat16 to hand over.
    """
    found = [tensor for tensor in model.graph.initializer if held.is_held(tensor)]
    if not found or any(tensor.data_type == TensorProto.BFLOAT16 for tensor in found):
        return None
    arrays = [np.require(tensors.read(tensor, None), requirements="A") for tensor in found]
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    options = _options(base)
    options.add_external_initializers([tensor.name for tensor in found], values)
    try:
        session = _started(bytes(model.SerializeToString()), options)
    except Exception:  # told whole, it takes the model, or says why not
        return None
    session.kept = values  # onnxruntime reads where these are, and does not own them
    return session


def check_exchangeable(session: ort.InferenceSession) -> None:
    """Raises `NoKernelError` where an input or output is of a type that Python cannot hand over."""
    if any(v.type == "tensor(bfloat16)" for v in (*session.get_inputs(), *session.get_outputs())):
        raise NoKernelError(EXCHANGES)


def check_survivable(model: onnx.ModelProto) -> None:
    """Raises `CannotRunError` for a model that would end the process, and not with an exception."""
    if hole := holes.hole(model):
        raise CannotRunError(f"{hole}, which would end the process")


def kinds(model: onnx.ModelProto, names: Sequence[str], base: str | None) -> dict[str, int]:
    """The element types that onnxruntime finds for tensors; those that are none are left out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    wanted = set(names)
    return {
        value.name: KINDS[value.type]
        for value in opened(copy, base).get_outputs()
        if value.name in wanted and value.type in KINDS
    }


def line(error: Exception) -> str:
    """The first line of an error, which is what fits into a report."""
    lines = str(error).strip().splitlines()
    if lines and any(words in lines[0] for words in NO_ARRAY):
        return f"{EXCHANGES}; cast to float32 in both models"
    return lines[0][:300] if lines else type(error).__name__


def written(shapes: Mapping[str, Any]) -> str:
    """The shapes of arrays by name, as ``--input-shape`` takes them."""
    return ", ".join(f"{n}:{'x'.join(map(str, a.shape))}" for n, a in shapes.items())


def feeds(
    values: Sequence[onnx.ValueInfoProto],
    shapes: Mapping[str, Shape],
    ranges: Mapping[str, range] | None = None,
    seed: int = SEED,
) -> Iterator[dict[str, Any]]:
    """Seeded inputs: at two sizes where dimensions are dynamic and no shape was given.

    ``ranges`` are those of integers, which are 0 to 3 where none is given.
    """
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for batch, size in SIZES:
        generator = np.random.default_rng(seed)
        found = {}
        for value in values:
            shape = _shape(value, shapes.get(value.name), batch, size)
            if prod(shape) > LARGEST:
                raise CannotRunError(f"input {value.name!r} is too large to draw")
            among = (ranges or {}).get(value.name, FEW)
            found[value.name] = _random(generator, shape, value.type.tensor_type.elem_type, among)
        key = tuple(array.shape for array in found.values())
        if key not in seen:
            seen.add(key)
            yield found


def _shape(
    value: onnx.ValueInfoProto, given: Shape | None, batch: int, size: int
) -> tuple[int, ...]:
    if given is not None:
        return tuple(int(n or 1) for n in given)
    dims = value.type.tensor_type.shape.dim
    return tuple(
        dim.dim_value if dim.dim_value > 0 else (batch if axis == 0 else size)
        for axis, dim in enumerate(dims)
    )


def _random(generator: np.random.Generator, shape: tuple[int, ...], kind: int, among: range) -> Any:
    dtype = dtype_of(kind)
    if dtype.kind in "iu":
        return generator.integers(among.start, among.stop, shape).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
