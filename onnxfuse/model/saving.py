"""An output with its data file: what goes where, in which order, and what is removed after.

Weights are written to a data file of a new name first; the rename of the model file is the commit.
Until then an output that is replaced, and its own data, are whole; after it, data that only the
replaced output used is removed, if onnxfuse made it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Container, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx
from onnx import TensorProto

from onnxfuse.errors import InputError
from onnxfuse.model import held, io, tensors, walk
from onnxfuse.model.carry import Carry
from onnxfuse.model.draft import Draft
from onnxfuse.model.held import Serialised
from onnxfuse.model.store import MARK, THRESHOLD, DataFile, Held, Store

LIMIT = 2**31 - 2**20
"""Bytes of a serialised model from which on weights must lie beside it; protobuf ends at 2 GiB."""
SUFFIX = ".onnxfuse"
"""Stands in the names of data files that nobody chose."""


def check_file(name: str, place: Path, *others: str | None) -> None:
    """Raise `InputError` where a data file of this name cannot be made beside ``place``."""
    if not name or name != os.path.basename(name) or name in (".", "..") or "\0" in name:  # noqa: PTH119
        raise InputError(
            f"--external-data {name!r} is no plain file name; it is written beside the model"
        )
    target = place.parent / name
    taken = {os.path.realpath(other) for other in others if other}
    if target == place or os.path.realpath(target) in taken:
        raise InputError(f"--external-data {name!r} is a file of this run; name another")
    if os.path.lexists(target):
        raise InputError(
            f"the data file {target} exists, and the model that uses it would break; name another, "
            "or remove it first"
        )


class Output:
    """A model to be written at ``place``, with what becomes of its weights.

    New weights go to a data file where the given model has one already, where ``file`` names it,
    and where the model is too large without.
    """

    def __init__(
        self, place: Path, given: io.Loaded, file: str | None = None, threshold: int | None = None
    ) -> None:
        self.place = place
        self.notes: list[str] = []
        self._given = given
        self._file = file
        self._locations = {location for location, _ in located(given.model)}
        self._threshold = THRESHOLD if threshold is None else threshold
        self.data = DataFile(place.parent, file or self._free(), self._threshold)
        self.store: Store = Held()
        """Where fused weights go."""
        if file is not None or self._locations:
            self.store = self.data
        self._carry = Carry(given.base, place.parent)
        self._draft: Draft | None = None
        if file is not None and file in self._locations:
            raise InputError(f"--external-data {file!r} is a data file of the model; name another")

    @property
    def asked(self) -> bool:
        """Whether a data file was asked for, whatever is fused."""
        return self._file is not None

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.data.discard)
            if self._draft is not None:
                stack.callback(self._draft.discard)
            stack.callback(self._carry.discard)  # the first that is done

    @property
    def carries(self) -> bool:
        """Whether data files have to be copied."""
        return self._carry.needed and bool(self._locations) and self._file is None

    def begin(self, dropped: Container[str]) -> None:
        """Copy data files from now on, but for those that hold only initializers that go.

        Raises `InputError` where none can be written beside the output.
        """
        self._carry.begin(self._files(self._given.model, dropped))

    def _files(self, model: onnx.ModelProto, dropped: Container[str] = ()) -> dict[str, Path]:
        """The data files of a model that the output's own is none of."""
        if self._given.base is None:
            return {}
        return io.data_files(model, self._given.base, self.data.location, dropped)

    def _free(self) -> str:
        """A name that no file has, and none that the model refers to."""
        stem = self.place.stem
        count = 1
        while True:
            name = f"{stem}{SUFFIX}{f'-{count}' if count > 1 else ''}.data"
            if name not in self._locations and not os.path.lexists(self.place.parent / name):
                return name
            count += 1

    def settled(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, Serialised]:
        """The model with its weights where they will lie, and what its file holds.

        That is written from now on, under a temporary name.
        """
        if self._file is not None or self._wasted(model):
            model = self._moved(model, inline=self._file is not None)
        data = io.serialised(model)
        if data is None or data.size > LIMIT:
            del data
            model = self._moved(model, inline=True)
            data = io.serialise(model)
            self.notes.append("the model is larger than the 2 GiB that one file can hold")
        if any(location == self.data.location for location, _ in located(model)):
            self.notes.append(
                f"weights are kept in {self.data.location}, beside {self.place.name}; keep the two "
                "together"
            )
        self._draft = Draft(self.place, data, model)
        return model, data

    def _wasted(self, model: onnx.ModelProto) -> bool:
        """Whether the data file holds weights that were fused again."""
        own = [tensor for location, tensor in located(model) if location == self.data.location]
        return sum(tensors.length_of(tensor) for tensor in own) < self.data.held

    def _moved(self, model: onnx.ModelProto, *, inline: bool) -> onnx.ModelProto:
        """A copy of the model with weights of the main graph in the data file, ``inline`` ones too.

        What else the file held is left behind.
        """
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        old = self.data
        if self._wasted(model):
            self.data = DataFile(old.folder, old.location, self._threshold)
        for tensor in copy.graph.initializer:
            if tensors.in_file(tensor):
                self._stream(tensor, old)
            elif inline:
                self._write(tensor)
        if self.data is not old:
            old.discard()
        return copy

    def _stream(self, tensor: TensorProto, old: DataFile) -> None:
        """Copy the data of an external tensor, where it is to lie in another file."""
        own = held.entries(tensor).get("location") == old.location
        if (own and self.data is old) or (not own and self._file is None):
            return
        source = old.path if own else tensors.external_path(tensor, self._given.base)
        size = tensors.length_of(tensor)
        offset = self.data.stream(source, tensors.offset_of(tensor), size)
        tensors.refer(tensor, self.data.location, offset, size)

    def _write(self, tensor: TensorProto) -> None:
        """Take the data of a tensor out of the model, where it is not too small."""
        data = tensors.stored_bytes(tensor)
        if data is not None and len(data) >= self._threshold:
            tensors.refer(tensor, self.data.location, self.data.add(data), len(data))

    def commit(self, model: onnx.ModelProto, data: Serialised) -> None:
        """Write everything; the model last. What stood there before is whole until then."""
        before = self._before()
        carried: list[Path] = []
        named = False
        try:
            self._carry.finish(self._files(model), carried)
            named = self.data.commit(io.mode_of(self.place), durable=self.place.exists())
            if self._draft is None:
                self._draft = Draft(self.place, data, model)
            self._draft.commit()
        except BaseException:
            if self._draft is not None and self._draft.named:  # Ctrl-C at the very end
                raise
            for path in carried:
                path.unlink(missing_ok=True)
            if named:
                (self.place.parent / self.data.location).unlink(missing_ok=True)
            raise
        self._remove(before - {location for location, _ in located(model)} - self._locations)

    def _before(self) -> set[str]:
        """The data files of the output that is replaced, of those that onnxfuse names."""
        folder, stem = self.place.parent, self.place.stem
        if not self.place.is_file() or not any(
            entry.name.startswith(stem + SUFFIX) for entry in folder.iterdir()
        ):
            return set()
        with contextlib.suppress(InputError):
            return {location for location, _ in located(io.load(self.place).model)}
        return set()

    def _remove(self, locations: set[str]) -> None:
        """Remove data that nothing refers to any more; only what onnxfuse made and named."""
        folder = self.place.parent
        for location in locations:
            path = folder / location
            named = re.fullmatch(re.escape(self.place.stem + SUFFIX) + r"(-\d+)?\.data", location)
            if named and _is_ours(path) and not _is_named_beside(path, self.place):
                with contextlib.suppress(OSError):
                    path.unlink()


def located(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """The tensors whose data lies in files, each with the name of its file."""
    for tensor in walk.stored(model):
        if tensors.in_file(tensor):
            yield held.entries(tensor).get("location", ""), tensor


def _is_ours(path: Path) -> bool:
    """Whether a file begins as those do that onnxfuse makes."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(len(MARK)) == MARK
    except OSError:
        return False


def _is_named_beside(path: Path, model: Path) -> bool:
    """Whether another file of the directory may be a model that refers to a data file.

    One that cannot be read may.
    """
    name = path.name.encode()
    try:
        for other in path.parent.iterdir():
            if other in (path, model) or not other.is_file():
                continue
            if not 0 < other.stat().st_size < 2**31:  # no model is larger
                continue
            with other.open("rb") as stream:
                if _is_ours(other):
                    continue
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as held:
                    if held.find(name) >= 0:
                        return True
    except OSError:
        return True
    return False
