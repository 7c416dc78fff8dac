"""Weights that stand beside their message, in the memory they were read to or folded into.

A tensor of a message refers to them as it would to a data file, by a name that no file can have,
so a model is copied, spliced and serialised without its weights, as often as that is needed. A file
of it is written in pieces, with the weights in their places: the bytes that protobuf would give.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnx
from onnx import TensorProto

from onnxfuse.errors import InputError
from onnxfuse.model import walk, wire
from onnxfuse.model.wire import LEN, Data, Field

LEAST = 1 << 14
"""Bytes from which on a weight is held: what shapes are computed from stands in the message."""
Buffer = bytes | memoryview

_MARK = "\0onnxfuse:"
"""Begins the names of what is held; no path has a null byte."""
_GRAPH, _INITIALIZER = 7, 5
"""Numbers of fields in onnx.proto: of a model, and of a graph."""
_DIMS, _DATA_TYPE, _RAW_DATA = 1, 2, 9
_DATA = {_DATA_TYPE, 3, 4, 5, 6, 7, _RAW_DATA, 10, 11, 13, 14}
"""Numbers of fields of a tensor; `_DATA` are all that say what its data is, or where."""
_SIZES: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.DOUBLE: 8, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2,
    TensorProto.INT8: 1, TensorProto.INT16: 2, TensorProto.INT32: 4, TensorProto.INT64: 8,
    TensorProto.UINT8: 1, TensorProto.UINT16: 2, TensorProto.UINT32: 4, TensorProto.UINT64: 8,
}  # fmt: skip
"""Bytes of an element, of the types that are held."""

_holds: WeakValueDictionary[str, Hold] = WeakValueDictionary()


class Hold:
    """Bytes that tensors refer to by its ``name`` and an offset; they live as long as it does."""

    def __init__(self) -> None:
        self.name = _MARK + secrets.token_hex(8)
        self.size = 0
        self._parts: dict[int, memoryview] = {}
        _holds[self.name] = self

    def add(self, part: Any) -> int:
        """Hold a contiguous array or a buffer; its offset."""
        offset = self.size
        view = part.reshape(-1).view(np.uint8).data if isinstance(part, np.ndarray) else part
        self._parts[offset] = memoryview(view)
        self.size += self._parts[offset].nbytes
        return offset

    def back_to(self, size: int) -> None:
        """Forget what was added since there were ``size`` bytes."""
        for offset in [offset for offset in self._parts if offset >= size]:
            del self._parts[offset]
        self.size = size

    def part(self, offset: int) -> memoryview:
        return self._parts[offset]


def text(value: str | bytes) -> str:
    """A string of a message; protobuf gives one that is no UTF-8 as its bytes."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def entries(tensor: TensorProto) -> dict[str, str]:
    """Where the data of a tensor without any lies: location, offset, length."""
    return {text(entry.key): text(entry.value) for entry in tensor.external_data}


def is_held(tensor: TensorProto) -> bool:
    """Whether the data of a tensor is held in memory, beside the message."""
    return bool(tensor.external_data) and text(tensor.external_data[0].value).startswith(_MARK)


def view(tensor: TensorProto) -> memoryview:
    """The data of a tensor that `is_held`. Raises `InputError` where nobody holds it any more."""
    found = entries(tensor)
    try:
        return _holds[found["location"]].part(int(found["offset"]))
    except (KeyError, ValueError):
        raise InputError(f"tensor {tensor.name!r} refers to data that is not there") from None


def parse(data: Data) -> tuple[onnx.ModelProto, Hold]:
    """A model whose large weights stay in ``data``, and what keeps them there.

    Raises what protobuf raises where that is no model.
    """
    hold = Hold()
    model = onnx.ModelProto()
    model.ParseFromString(_light(data, hold))
    return model, hold


def outline(data: Data) -> bytes:
    """The bytes of a model without its large weights, of which no tensor says where they are."""
    return _light(data, None)


def _light(data: Data, hold: Hold | None) -> bytes:
    """The bytes of a model without those of its large weights; all where they cannot be told."""
    if len(data) < LEAST or sys.byteorder != "little":
        return data[:]
    pieces: list[Buffer] = []
    done = 0
    try:
        for field in wire.fields(data, 0, len(data), LEAST):
            if field.number == _GRAPH and field.kind == LEN:
                graph = _light_graph(data, field, hold)
                pieces += [data[done : field.begin], wire.head(_GRAPH, _size(graph)), *graph]
                done = field.end
    except wire.UnreadableError:
        if hold is not None:
            hold.back_to(0)
        return data[:]
    return b"".join([*pieces, data[done:]])


def _light_graph(data: Data, graph: Field, hold: Hold | None) -> list[Buffer]:
    pieces: list[Buffer] = []
    done = graph.value
    for field in wire.fields(data, graph.value, graph.end, LEAST):
        if field.number != _INITIALIZER or field.kind != LEN:
            continue
        raw = _raw_data(data, field)
        if raw is None:
            continue
        refers = b"" if hold is None else _reference(hold, memoryview(data)[raw.value : raw.end])
        size = field.end - field.value - (raw.end - raw.begin) + len(refers)
        pieces += [
            data[done : field.begin],
            wire.head(_INITIALIZER, size),
            data[field.value : raw.begin],
            data[raw.end : field.end],
            refers,
        ]
        done = field.end
    return [*pieces, data[done : graph.end]]


def _reference(hold: Hold, data: memoryview) -> bytes:
    """The fields of a tensor whose data is held from now on."""
    found = TensorProto()
    refer(found, hold.name, hold.add(data), len(data))
    return bytes(found.SerializeToString())


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Let the data of a tensor without any be that in a file, or in what is held by that name."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _raw_data(data: Data, tensor: Field) -> Field | None:
    """Where the data of a tensor stands, if that is all there is to it and of the right size."""
    raw: list[Field] = []
    dims: list[int] = []
    kind = 0
    for field in wire.fields(data, tensor.value, tensor.end):
        if field.number == _DIMS:
            dims += wire.numbers(data, field)
        elif field.number == _DATA_TYPE and field.kind == wire.VARINT:
            kind = wire.varint(data, field.value)[0]
        elif field.number == _RAW_DATA and field.kind == LEN:
            raw.append(field)
        elif field.number in _DATA:
            return None
    if len(raw) != 1 or raw[0].end - raw[0].value < LEAST:
        return None
    return raw[0] if prod(dims) * _SIZES.get(kind, 0) == raw[0].end - raw[0].value else None


def is_same(data: Data, model: onnx.ModelProto) -> bool:
    """Whether bytes are those of a model, its weights included.

    Raises what protobuf raises where they are none of any.
    """
    found, _hold = parse(data)
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    pairs = zip(found.graph.initializer, wanted.graph.initializer, strict=False)
    for left, right in pairs:
        if is_held(left) and not is_held(right):
            put_in(left)
        elif is_held(left):
            ours, theirs = (np.frombuffer(view(one), np.uint8) for one in (left, right))
            if not np.array_equal(ours, theirs):
                return False
            for one in (left, right):
                one.ClearField("external_data")
                one.ClearField("data_location")
    left, right = (one.SerializeToString(deterministic=True) for one in (found, wanted))
    return bool(left == right)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all its data in the message; the same object where it is there already."""
    if not any(is_held(tensor) for tensor in walk.stored(model)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in walk.stored(copy):
        if is_held(tensor):
            put_in(tensor)
    return copy


def put_in(tensor: TensorProto) -> None:
    """Put held data into its message."""
    data = bytes(view(tensor))
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = data


@dataclass(frozen=True, slots=True)
class Serialised:
    """What a file of a model holds, in pieces."""

    pieces: Sequence[Buffer]

    @property
    def size(self) -> int:
        return _size(self.pieces)

    def joined(self) -> bytes:
        """All of it as one."""
        return b"".join(self.pieces)


def serialised(model: onnx.ModelProto) -> Serialised:
    """The bytes of a model, the held weights in their places.

    Raises what protobuf raises where even the rest is too large for it.
    """
    light = bytes(model.SerializeToString(deterministic=True))
    count = light.count(_MARK.encode())
    if not count:
        return Serialised((light,))
    with contextlib.suppress(wire.UnreadableError):  # what it does not know protobuf keeps
        found, put = _whole(light)
        if put == count:
            return Serialised(found)
    return Serialised((bytes(inlined(model).SerializeToString(deterministic=True)),))


def _whole(light: bytes) -> tuple[list[Buffer], int]:
    """The bytes of a model with what is held for its initializers, and for how many it is."""
    found: list[Buffer] = []
    done = put = 0
    for field in wire.fields(light, 0, len(light)):
        if field.number == _GRAPH:
            graph, put = _whole_graph(light, field)
            found += [light[done : field.begin], wire.head(_GRAPH, _size(graph)), *graph]
            done = field.end
    return [*found, light[done:]], put


def _whole_graph(light: bytes, graph: Field) -> tuple[list[Buffer], int]:
    found: list[Buffer] = []
    done, put = graph.value, 0
    for field in wire.fields(light, graph.value, graph.end):
        if field.number != _INITIALIZER:
            continue
        if light.find(_MARK.encode(), field.value, field.end) < 0:
            continue
        refers = TensorProto.FromString(light[field.value : field.end])
        if is_held(refers):
            tensor = _whole_tensor(light, field, refers)
            found += [light[done : field.begin], wire.head(_INITIALIZER, _size(tensor)), *tensor]
            done = field.end
            put += 1
    return [*found, light[done : graph.end]], put


def _whole_tensor(light: bytes, tensor: Field, refers: TensorProto) -> list[Buffer]:
    """A tensor with its data in its place: protobuf writes fields by their numbers."""
    data = view(refers)
    parts = list(wire.fields(light, tensor.value, tensor.end))
    first = [light[part.begin : part.end] for part in parts if part.number < _RAW_DATA]
    rest = [
        light[part.begin : part.end]
        for part in parts
        if part.number > _RAW_DATA and part.number not in _DATA
    ]
    return [*first, wire.head(_RAW_DATA, data.nbytes), data, *rest]


def _size(parts: Iterable[Buffer]) -> int:
    return sum(map(len, parts))
