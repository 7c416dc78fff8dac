"""Temporary files beside an output: gone however a run ends, or known as what a killed run left.

Each is locked while its run lives, and the lock goes with the process, so that a later run tells
what was left from what is being written. It knows files, and nothing of models.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no lock, so that nothing is taken for left behind
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".onnxfuse.tmp"
_STEM = 48
"""Characters of the output's name that a temporary's shows; file systems take 255 bytes."""
_ENDINGS = ("SIGTERM", "SIGHUP")
"""Signals that end a process politely. Ctrl-C is an exception in Python already."""


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A new file in the directory of ``path``, which is gone at the end unless it was renamed.

    Raises `OSError` where it cannot be made.
    """
    temporary = path.with_name(f".{path.name[:_STEM]}.{secrets.token_hex(8)}{SUFFIX}")
    with _swept(temporary):
        handle = None
        try:  # Ctrl-C may come as soon as the file is there
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            if fcntl is None:
                os.close(handle)  # Windows renames no open file
                handle = None
            else:
                with contextlib.suppress(OSError):  # not every file system has locks
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield temporary
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if handle is not None:
                os.close(handle)


@contextlib.contextmanager
def _swept(temporary: Path) -> Iterator[None]:
    """Remove a file when a signal ends the process; one that somebody handles is theirs.

    Files come and go in any order, so one handler serves all of them.
    """
    main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    _living.add(temporary)
    if main and not _replaced:
        for number in (getattr(signal, name, None) for name in _ENDINGS):
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _sweep)
                _replaced.add(number)
    try:
        yield
    finally:
        _living.discard(temporary)
        if main and not _living:
            while _replaced:
                signal.signal(_replaced.pop(), signal.SIG_DFL)


_living: set[Path] = set()
"""The temporary files of this process."""
_replaced: set[int] = set()
"""The signals that remove them."""


def _sweep(number: int, frame: Any) -> None:
    """Remove temporary files as a signal ends the process, and let the signal go on."""
    for temporary in list(_living):
        with contextlib.suppress(OSError):
            temporary.unlink()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def left(directories: Iterable[Path]) -> list[Path]:
    """The temporary files that killed runs left in directories; those of living runs are not."""
    found = []
    for directory in dict.fromkeys(directories):
        with contextlib.suppress(OSError):
            found += [place for place in directory.glob(f".*{SUFFIX}") if _is_left(place)]
    return sorted(found)


def _is_left(place: Path) -> bool:
    """Whether no process holds a file's lock; where that cannot be told, one might."""
    if fcntl is None:
        return False
    try:
        handle = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
