"""Where fused weights go as soon as they are folded: into memory, or into a new data file.

A data file is written beside its final place under a temporary name, and nothing stands under its
own name until `DataFile.commit`. It begins with a mark, so that a later run knows it for one that
onnxfuse made.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from onnxfuse.emit import Stored, Weight
from onnxfuse.errors import InputError
from onnxfuse.model import held, temporary

MARK = b"onnxfuse external data\n"
THRESHOLD = 1024
"""Bytes from which on a weight goes to the data file: as onnx has it."""
ALIGNED, PAGE = 64, 4096
"""Where tensors begin: small ones fit cache lines, those of a MiB are mapped by whole pages."""
MAPPED = 1 << 20
BLOCK = 1 << 22
"""Bytes that are copied at once."""
TAKEN = 1 << 25
"""Bytes that are taken from the system at once; only what is written to becomes memory."""


class Store(Protocol):
    """Takes weights in the model's type; ``location`` names its data file, if it has one."""

    @property
    def location(self) -> str: ...

    @property
    def size(self) -> int:
        """The bytes of that file."""
        ...

    def keep(self, weight: Weight, dtype: np.dtype[Any]) -> bool:
        """Round a weight once and store it; whether it is finite in its type."""
        ...

    def place(self, weight: Weight, dtype: np.dtype[Any]) -> bool:
        """Make room for a weight where another process may store it; whether there is any."""
        ...

    def mark(self) -> tuple[int, int]:
        """A place to come back to where what was stored since is not needed."""
        ...

    def back_to(self, mark: tuple[int, int]) -> None:
        """Forget what was stored since."""
        ...


class Room:
    """Memory for arrays, taken in large pages where the system has them.

    It clears a page when that is first written to; in small ones that takes longer than to write.
    """

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """An array that holds anything."""
        size = prod(shape) * dtype.itemsize
        if self._block is None or self._used + size > len(self._block):
            self._block, self._used = _pages(max(TAKEN, size)), 0
        if self._block is None:
            return np.empty(shape, dtype)
        found = np.frombuffer(self._block, dtype, prod(shape), self._used).reshape(shape)
        self._used += -(-size // ALIGNED) * ALIGNED
        return found


def _pages(size: int) -> mmap.mmap | None:
    """Memory in large pages; ``None`` where there is none."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    with contextlib.suppress(OSError):
        found = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        found.madvise(mmap.MADV_HUGEPAGE)
        return found
    return None


class Memory:
    """Keeps weights as arrays."""

    location = ""
    size = 0

    def place(self, weight: Weight, dtype: np.dtype[Any]) -> bool:
        return False

    def keep(self, weight: Weight, dtype: np.dtype[Any]) -> bool:
        if len(list(weight.runs())) == 1:
            ((*_, part),) = _rounded(weight, dtype)
            weight.stored = Stored(np.asarray(part.reshape(weight.shape), order="C"))
            return bool(np.isfinite(part).all())
        target = np.empty(weight.shape, dtype)
        weight.stored = Stored(target)
        return _fill(target, weight)

    def mark(self) -> tuple[int, int]:
        return 0, 0

    def back_to(self, mark: tuple[int, int]) -> None:
        """Nothing is held here."""


class Held:
    """Keeps weights as arrays, and large ones beside the model: see `onnxfuse.model.held`."""

    size = 0

    def __init__(self) -> None:
        self._hold = held.Hold()
        self._memory = Memory()
        self._room = Room()

    @property
    def location(self) -> str:
        return self._hold.name

    def place(self, weight: Weight, dtype: np.dtype[Any]) -> bool:
        large = weight.size * dtype.itemsize >= held.LEAST
        if large and sys.byteorder == "little":  # as files have it
            array = self._room.empty(weight.shape, dtype)
            weight.stored = Stored(array, self._hold.add(array))
        return False

    def keep(self, weight: Weight, dtype: np.dtype[Any]) -> bool:
        if weight.stored is None:
            return self._memory.keep(weight, dtype)
        return _fill(weight.stored.array, weight)

    def mark(self) -> tuple[int, int]:
        return self._hold.size, self._hold.size

    def back_to(self, mark: tuple[int, int]) -> None:
        self._hold.back_to(mark[0])


def _rounded(weight: Weight, dtype: np.dtype[Any]) -> Iterator[tuple[int, int, Any]]:
    """A weight in its type, run by run, with where each run starts and stops."""
    for start, stop in weight.runs():
        with np.errstate(over="ignore"):
            yield start, stop, weight.part(start, stop).astype(dtype)


def _fill(target: Any, weight: Weight) -> bool:
    """Round a weight into an array, run by run; whether it is finite there."""
    finite = True
    for start, stop in weight.runs():
        run = () if weight.axis is None else (slice(None),) * weight.axis + (slice(start, stop),)
        with np.errstate(over="ignore"):
            target[run] = weight.part(start, stop)
        finite &= bool(np.isfinite(target[run]).all())
    return finite


def _write(stream: BinaryIO, data: memoryview, at: int) -> int:
    """Write at a place; the bytes that were. Other processes may write to the same file."""
    if hasattr(os, "pwrite"):
        return os.pwrite(stream.fileno(), data, at)
    stream.seek(at)
    stream.write(data)
    stream.flush()
    return data.nbytes


class Nowhere:
    """Keeps no large weight: for models that are looked at and never written."""

    location = "onnxfuse.data"

    def __init__(self, threshold: int = THRESHOLD) -> None:
        self.threshold = threshold
        self.size = 0
        self._memory = Memory()

    def place(self, weight: Weight, dtype: np.dtype[Any]) -> bool:
        return False

    def keep(self, weight: Weight, dtype: np.dtype[Any]) -> bool:
        size = weight.size * dtype.itemsize
        if size < self.threshold:
            return self._memory.keep(weight, dtype)
        weight.stored = Stored(None, self.size)
        self.size += size
        return all(bool(np.isfinite(part).all()) for *_, part in _rounded(weight, dtype))

    def mark(self) -> tuple[int, int]:
        return self.size, self.size

    def back_to(self, mark: tuple[int, int]) -> None:
        self.size = mark[0]


class DataFile:
    """A new data file of a model in ``folder``; ``location`` is its name there.

    It has ``size`` bytes, of which ``held`` are weights.
    """

    def __init__(self, folder: Path, location: str, threshold: int = THRESHOLD) -> None:
        self.folder = folder
        self.location = location
        self.threshold = threshold
        self.size = 0
        self.held = 0
        self._temporary: Path | None = None
        self._stream: BinaryIO | None = None
        self._stack = contextlib.ExitStack()
        self._memory = Memory()

    @property
    def path(self) -> Path:
        """Where the data lies just now."""
        return self._temporary or self.folder / self.location

    def keep(self, weight: Weight, dtype: np.dtype[Any]) -> bool:
        if weight.stored is None and not self.place(weight, dtype):
            return self._memory.keep(weight, dtype)
        assert weight.stored is not None
        offset = weight.stored.offset
        assert offset is not None
        if weight.axis:
            return _fill(np.memmap(self.path, dtype, "r+", offset, weight.shape), weight)
        # rows follow each other, and writing costs a tenth of mapping
        return all(self._append(offset, *piece) for piece in _rounded(weight, dtype))

    def place(self, weight: Weight, dtype: np.dtype[Any]) -> bool:
        if weight.size * dtype.itemsize < self.threshold:
            return False
        offset = self.reserve(weight.size * dtype.itemsize)
        stored = np.memmap(self.path, dtype, "r", offset, weight.shape)
        weight.stored = Stored(stored.view(np.ndarray), offset)
        return True

    def _append(self, offset: int, start: int, stop: int, part: Any) -> bool:
        """Write a run of rows of a weight that begins at ``offset``; whether it is finite."""
        assert self._stream is not None
        at = offset + start * part.nbytes // (stop - start)
        left = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        with self._written():
            while left.nbytes:
                done = _write(self._stream, left, at)
                left, at = left[done:], at + done
        return bool(np.isfinite(part).all())

    def mark(self) -> tuple[int, int]:
        return self.size, self.held

    def back_to(self, mark: tuple[int, int]) -> None:
        self.size, self.held = mark
        self.size = max(self.size, len(MARK) * (self._stream is not None))

    def reserve(self, size: int) -> int:
        """The offset of ``size`` new bytes, for which there is room on the disk for certain."""
        if self._stream is None:
            self._open()
        assert self._stream is not None
        step = PAGE if size >= MAPPED else ALIGNED
        offset = -(-self.size // step) * step
        with self._written():
            # a write to a mapped file would end the process where the disk is full
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._stream.fileno(), offset, max(size, 1))
            else:
                self._fill(offset, size)
        self.size = offset + size
        self.held += size
        return offset

    def add(self, data: bytes | memoryview) -> int:
        """Write bytes; their offset."""
        offset = self.reserve(len(data))
        assert self._stream is not None
        with self._written():
            self._stream.seek(offset)
            self._stream.write(data)
            self._stream.flush()
        return offset

    def stream(self, source: Path, start: int, size: int) -> int:
        """Copy bytes of another file without reading them into memory; their offset."""
        offset = self.reserve(size)
        assert self._stream is not None
        with self._written(), source.open("rb") as read:
            read.seek(start)
            self._stream.seek(offset)
            while size:
                block = read.read(min(size, BLOCK))
                if not block:
                    raise InputError(f"the data file {source} became shorter while it was read")
                self._stream.write(block)
                size -= len(block)
            self._stream.flush()
        return offset

    def _fill(self, offset: int, size: int) -> None:
        assert self._stream is not None
        self._stream.seek(offset)
        for first in range(0, size, BLOCK):
            self._stream.write(bytes(min(BLOCK, size - first)))
        self._stream.flush()

    def _open(self) -> None:
        with self._written():
            self._temporary = self._stack.enter_context(
                temporary.beside(self.folder / self.location)
            )
            self._stream = self._stack.enter_context(self._temporary.open("r+b"))
            self._stream.write(MARK)
            self._stream.flush()
        self.size = len(MARK)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> InputError:
        place = self.folder / self.location
        return InputError(f"the data file {place} cannot be written: {error.strerror}")

    def commit(self, mode: int, *, durable: bool) -> bool:
        """Give the file its name, if there is one; where ``durable`` its data is on the disk."""
        if self._temporary is None or self._stream is None:
            return False
        place = self.folder / self.location
        with self._written():
            self._stream.truncate(self.size)
            if durable:
                os.fsync(self._stream.fileno())
            self._temporary.chmod(mode)
            if place.exists():
                raise InputError(f"the data file {place} has come into being; name another")
            self._temporary.replace(place)
        self.discard()
        return True

    def discard(self) -> None:
        """Remove what was not committed."""
        self._stack.close()
        self._temporary = self._stream = None
