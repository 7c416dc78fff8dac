"""Reading a file that a user named: all of it, or one line that says why not."""

from __future__ import annotations

import mmap
import stat
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


def holds(path: Path, text: bytes) -> bool:
    """Whether a regular file has ``text`` in it; what cannot be read has not."""
    try:
        if not path.is_file():
            return False
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as held,
        ):
            return held.find(text) >= 0
    except (OSError, ValueError):  # nothing is mapped of an empty file
        return False
