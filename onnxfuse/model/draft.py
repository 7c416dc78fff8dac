"""A model's file while it is written, by a thread, as the model is proved.

It stands under a temporary name until `Draft.commit`. What replaces another file is on the disk
before it does, and what was written in pieces is read again: see `onnxfuse.model.held`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from functools import partial
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxfuse import files
from onnxfuse.background import Background
from onnxfuse.errors import InputError, ProofError
from onnxfuse.model import held, io, temporary
from onnxfuse.model.held import Serialised

AT_ONCE = 1 << 26
"""Bytes that are written at once; in between, an end of the run is heard."""


class Draft:
    """The file ``path`` that is to hold ``model``, whose bytes are ``data``.

    Raises `InputError` where nothing can be written beside it.
    """

    def __init__(self, path: Path, data: Serialised, model: onnx.ModelProto) -> None:
        self._path = path
        self._data = data
        self._model = model
        self._synced = False
        self._ending = threading.Event()
        self._stack = contextlib.ExitStack()
        with io.written(path):
            self._place = self._stack.enter_context(temporary.beside(path))
            self._status = self._place.stat()
        self._writing = Background(self._write)

    @property
    def named(self) -> bool:
        """Whether the file has its name, whatever went wrong after that."""
        try:
            return os.path.samestat(self._path.stat(), self._status)
        except OSError:
            return False

    def _write(self) -> None:
        with self._place.open("r+b") as stream:
            for piece in self._data.pieces:
                for start in range(0, len(piece), AT_ONCE):
                    if self._ending.is_set():
                        return
                    stream.write(memoryview(piece)[start : start + AT_ONCE])
            stream.flush()
            if self._path.exists():
                os.fsync(stream.fileno())
                self._synced = True
        if len(self._data.pieces) > 1:
            self._check()

    def _check(self) -> None:
        with files.mapped(self._place) as data:
            try:
                same = held.is_same(data, self._model)
            except (DecodeError, InputError):
                same = False
        if not same:
            raise ProofError(
                f"what was written for {self._path} is not the model that was proved, so it was "
                "not kept; please report this"
            )

    def commit(self) -> None:
        """Give the file its name, once it is whole.

        Raises `InputError` where it cannot be written, `ProofError` where it is not the model.
        """
        try:
            with io.written(self._path):
                self._writing.result()
                if self._path.exists() and not self._synced:  # it came meanwhile
                    io.sync(self._place)
                self._name()
        finally:
            self.discard()

    def _name(self) -> None:
        """Give the file its name. The system frees what had it before when that is closed.

        That takes as long as to print what was done, so a thread does it.
        """
        old = None
        if os.name == "posix":  # elsewhere nothing that is open is replaced
            with contextlib.suppress(OSError):
                old = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            io.name(self._place, self._path)
        finally:
            if old is not None:
                Background(partial(os.close, old))

    def discard(self) -> None:
        """End what goes on, and remove what has no name."""
        self._ending.set()
        try:
            self._writing.wait()
        finally:  # Ctrl-C once more
            self._stack.close()
