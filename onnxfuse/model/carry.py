"""The data files of a model on their way beside an output in another directory.

Large ones are copied by a thread while the rest of the run goes on, into temporary files; none has
its name before everything else is settled.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from onnxfuse.background import Background
from onnxfuse.errors import InputError
from onnxfuse.model import io, temporary

AT_ONCE = 1 << 26
"""Bytes that are copied at once; in between, an end of the run is heard."""
BLOCK = 1 << 22
"""The same, where it has to be read for that."""
MOST = 16
"""Files that are copied ahead; one that keeps each tensor in a file of its own has thousands."""


class Carry:
    """Copies data files into the directory ``target``; nothing where they lie in it already.

    Files are given by where they are to lie there. Raises `InputError` where another file stands
    in the way of one.
    """

    def __init__(self, source: Path | None, target: Path) -> None:
        self._target = target
        self.needed = source is not None and source.resolve() != target.resolve()
        self._ahead: dict[Path, Path] = {}
        """The copies that are made ahead, by where they are to go."""
        self._stack = contextlib.ExitStack()
        self._ending = threading.Event()
        self._copying: Background[None] | None = None

    def begin(self, files: Mapping[str, Path]) -> None:
        """Copy large files from now on, while other things are done.

        What stands in the way of one may turn out not to matter, so that is for `finish` to say.
        """
        wanted = {self._target / where: place for where, place in files.items()}
        large = {
            new: place
            for new, place in (wanted.items() if self.needed else ())
            if place.stat().st_size >= AT_ONCE and new.parent.is_dir() and not os.path.lexists(new)
        }
        if not large or len(large) > MOST:
            return
        with self._undone():
            for new in large:
                with io.written(new):
                    self._ahead[new] = self._stack.enter_context(temporary.beside(new))
            self._copying = Background(partial(self._copy, large))

    def _lacking(self, files: Mapping[str, Path]) -> dict[Path, Path]:
        """Where files have to go, and where they lie; those that are there already are left out."""
        found = {}
        for where, place in files.items() if self.needed else ():
            new = self._target / where
            if not new.exists():
                found[new] = place
            elif not _same(place, new):
                raise InputError(
                    f"{new} exists and differs from the data file {place}; "
                    "choose another output directory or remove it"
                )
        return found

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        """Leave nothing behind where what is within fails."""
        try:
            yield
        except BaseException:
            self.discard()
            raise

    def _copy(self, files: Mapping[Path, Path]) -> None:
        for new, place in files.items():
            _fill(place, self._ahead[new], self._ending)

    def finish(self, files: Mapping[str, Path], carried: list[Path]) -> None:
        """Give each file its name; what was made is added to ``carried``.

        Nothing is where one cannot be copied.
        """
        with self._undone():
            left = self._lacking(files)
            if self._copying is not None and self._ahead.keys() & left.keys():
                with io.written(next(iter(self._ahead))):
                    self._copying.result()
            for new, place in left.items():
                if new in self._ahead:
                    made = _named(place, self._ahead[new], new)
                else:
                    made = _copied(place, new)
                if made:
                    carried.append(new)
        self.discard()

    def discard(self) -> None:
        """End what goes on, and remove what has no name yet."""
        self._ending.set()
        try:
            if self._copying is not None:
                self._copying.wait()
        finally:  # Ctrl-C once more
            self._stack.close()
            self._ahead.clear()


def _copied(place: Path, new: Path) -> bool:
    """Copy a file; whether that was needed in the end."""
    try:
        new.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{new.parent} cannot be made: {error.strerror}") from error
    with io.written(new), temporary.beside(new) as copy:
        _fill(place, copy)
        return _named(place, copy, new)


def _named(place: Path, copy: Path, new: Path) -> bool:
    """Give a copy its name if nothing has that; another run may have been faster."""
    with io.written(new):
        if copy.stat().st_size != place.stat().st_size:
            raise InputError(f"the data file {place} changed while it was copied to {new}")
        copy.chmod(io.mode_of(new))
        try:
            new.hardlink_to(copy)  # a rename would replace what another run wrote
        except FileExistsError:
            if not (new.exists() and _same(place, new)):
                raise
            return False
        except OSError:  # a file system without links
            copy.replace(new)
    return True


def _fill(place: Path, copy: Path, ending: threading.Event | None = None) -> None:
    """Copy the data of a file into one that is there and empty.

    It is not truncated: file systems write out what was, as soon as it is closed, for fear of
    losing both the old data and the new; that takes half as long as to copy.
    """
    with place.open("rb") as source, copy.open("r+b") as target:
        with contextlib.suppress(AttributeError, OSError):  # not every system or pair of disks
            while os.copy_file_range(source.fileno(), target.fileno(), AT_ONCE):
                if ending is not None and ending.is_set():
                    return
        done = os.lseek(source.fileno(), 0, os.SEEK_CUR)
        for stream in (source, target):
            stream.seek(done)
        while block := source.read(BLOCK):  # the rest, where that ended early
            if ending is not None and ending.is_set():
                return
            target.write(block)


def _same(left: Path, right: Path) -> bool:
    if left.samefile(right):
        return True
    if left.stat().st_size != right.stat().st_size:
        return False
    with left.open("rb") as a, right.open("rb") as b:
        while True:
            block = a.read(1 << 20)
            if block != b.read(1 << 20):
                return False
            if not block:
                return True
