"""The same work on many things, shared among processes that are forked from this one.

They gain more than threads, as NumPy's calls are short, and Python's lock goes to and fro between
those. A forked process has all that this one has, so that nothing is handed to it; what it gives
back is small. It knows processes, and nothing of models. Only the program does so, as another may
have threads and devices that outlive no fork. What is too little for that is left to threads.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from onnxfuse import threaded
from onnxfuse.threaded import done, results, shared, tried

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
R = TypeVar("R")

LEAST = 1 << 25
"""What a share must come to at least, in the elements that it works on: a tenth of a second. With
less, what a fork takes, and the pages that it copies as they are written, undo the gain."""


def each(
    work: Callable[[T], R],
    items: Sequence[T],
    sizes: Sequence[int],
    count: int,
    show: Callable[[int, int], None],
) -> list[R]:
    """What ``work`` gives for each of ``items``, in order, in up to ``count`` processes.

    Raises what it raises for the first of them that fails. What it changes in memory counts only
    where it happens in this process. ``show`` is told how many of how many are done here.
    """
    enough = sum(sizes) // LEAST if sys.platform == "linux" else 0  # elsewhere no fork is safe
    shares = shared(sizes, min(count, len(items), enough))
    if len(shares) == 1:
        return threaded.each(work, items, sizes, count, show)
    with _forked(work, items, shares[1:]) as others:
        found = done(work, items, shares[0], show)
        for share, theirs in zip(shares[1:], others, strict=True):
            found.update(_received(theirs) or {i: tried(work, items[i]) for i in share})
    return results(found, len(items))


def _received(theirs: Connection) -> Any:
    """What a process found; ``None`` where it died."""
    with suppress(Exception):  # it may be the error that does not come out as it went in
        return theirs.recv()
    return None


@contextmanager
def _forked(
    work: Callable[[T], R], items: Sequence[T], shares: Sequence[Sequence[int]]
) -> Iterator[list[Connection]]:
    """Processes at work, each with the end of a pipe that its results come from.

    They are gone when the block is left.
    """
    from multiprocessing import get_context  # which takes a while, and most models are small

    context = get_context("fork")
    started, ends = [], []
    try:
        for share in shares:
            ours, theirs = context.Pipe(duplex=False)
            ends.append(ours)
            process = context.Process(
                target=_work, args=(work, items, share, theirs, os.getpid()), daemon=True
            )
            with warnings.catch_warnings():  # of threads, of which the fork does not need any
                warnings.simplefilter("ignore", DeprecationWarning)
                # no room for a process, or this one may have none: it does that share itself
                with suppress(OSError, AssertionError):
                    process.start()
                    started.append(process)
            theirs.close()
        yield ends
    finally:
        for process in started:
            process.kill()
            process.join()
        for end in ends:
            end.close()


def _end_with_parent() -> None:
    """Let this process be killed when the one that forked it ends."""
    import ctypes  # as NumPy does

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _work(
    work: Callable[[T], R], items: Sequence[T], share: Sequence[int], theirs: Connection, ours: int
) -> None:
    """Do a share and send what came of it, unless the process that wants it is gone."""
    _end_with_parent()
    for name in ("SIGTERM", "SIGHUP"):  # what they clean up is not ours
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process hears it too, and ends this
    found = done(work, items, share, wanted=lambda: os.getppid() == ours)
    if os.getppid() != ours:
        return
    with suppress(Exception):  # nobody waits, or what was found cannot be sent
        theirs.send(found)
