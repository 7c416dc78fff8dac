"""Reading a file that a user named: all of it, or one line that says why not."""

from __future__ import annotations

import contextlib
import mmap
import stat
from collections.abc import Iterator
from pathlib import Path

from onnxfuse.errors import InputError


def read(path: Path, what: str = "", missing: str = "") -> bytes:
    """The bytes of a regular file; nothing else is opened, as it may never end.

    Raises `InputError`: its sentence begins with ``what`` (the path itself where that is empty),
    and ``missing`` ends the one about a file that does not exist.
    """
    what = what or str(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{what} does not exist{missing}") from None
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror}") from error
    kind = "a directory; name a file" if stat.S_ISDIR(mode) else "not a regular file"
    raise InputError(f"{what} is {kind}")


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """A regular file that is not empty, of which only what is looked at is read.

    Raises `InputError`.
    """
    with contextlib.ExitStack() as stack:
        try:
            if not path.is_file():
                raise InputError(f"{path} is not a regular file")
            stream = stack.enter_context(path.open("rb"))
            held = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # nothing is mapped of an empty file
            raise InputError(f"{path} cannot be read: {error}") from error
        yield stack.enter_context(held)
