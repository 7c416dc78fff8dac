"""The same work on many things, shared among processes that are forked from this one.

Threads gain little: NumPy's calls are short, and Python's lock goes to and fro between them. A
forked process has all that this one has, so that nothing is handed to it; what it gives back is
small. It knows processes, and nothing of models. Only the program does so, as another may have
threads and devices that outlive no fork.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
R = TypeVar("R")

LEAST = 1 << 25
"""What a share must come to at least, in the elements that it works on: a tenth of a second. With
less, what a fork takes, and the pages that it copies as they are written, undo the gain."""
MOST = 4
"""Processes at most; each takes memory of its own."""


def processes() -> int:
    """How many processes may share work here; 1 where none can be forked."""
    if sys.platform != "linux":  # elsewhere a fork is not safe, or not there
        return 1
    return min(len(os.sched_getaffinity(0)), MOST)


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
    shares = _shares(sizes, min(count, len(items), sum(sizes) // LEAST))
    found: dict[int, R | Exception] = {}
    with _forked(work, items, shares[1:]) as others:
        for done, index in enumerate(shares[0]):
            show(done, len(shares[0]))
            found[index] = _tried(work, items[index])
            if isinstance(found[index], Exception):
                break
        for share, theirs in zip(shares[1:], others, strict=True):
            found.update(_received(theirs) or {i: _tried(work, items[i]) for i in share})
    results = []
    for index in range(len(items)):
        result = found[index]
        if isinstance(result, Exception):
            raise result
        results.append(result)
    return results


def _shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Indices by share: what is largest goes where there is least so far. Each is in order."""
    shares: list[list[int]] = [[] for _ in range(max(count, 1))]
    load = [0] * len(shares)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        least = load.index(min(load))
        shares[least].append(index)
        load[least] += sizes[index]
    return [sorted(share) for share in shares]


def _tried(work: Callable[[T], R], item: T) -> R | Exception:
    try:
        return work(item)
    except Exception as error:
        return error


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
    if not shares:
        yield []
        return
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
    found = {}
    for index in share:
        if os.getppid() != ours:
            return
        found[index] = _tried(work, items[index])
        if isinstance(found[index], Exception):
            break
    with suppress(Exception):  # nobody waits, or what was found cannot be sent
        theirs.send(found)
