"""The same work on many things, shared among threads.

NumPy lets other threads go on while it works on an array, so that the large ones gain from it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from onnxfuse.background import Background

T = TypeVar("T")
R = TypeVar("R")

LEAST = 1 << 20
"""What a share must come to at least, in the elements that it works on: some milliseconds."""
MOST = 4
"""Threads, or processes, at most."""


def workers() -> int:
    """How many threads or processes may share work here."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), MOST)
    return min(os.cpu_count() or 1, MOST)


def each(
    work: Callable[[T], R],
    items: Sequence[T],
    sizes: Sequence[int],
    count: int,
    show: Callable[[int, int], None],
) -> list[R]:
    """What ``work`` gives for each of ``items``, in order, in up to ``count`` threads.

    Raises what it raises for the first of them that fails. ``show`` is told how many of how many
    are done in this thread.
    """
    shares = shared(sizes, min(count, len(items), sum(sizes) // LEAST))
    ending = threading.Event()
    do = partial(done, work, items, wanted=lambda: not ending.is_set())
    others = [Background(partial(do, share)) for share in shares[1:]]
    try:
        found = do(shares[0], show)
        for other in others:
            found.update(other.result())
    except BaseException:  # Ctrl-C: nobody works on while others clean up
        ending.set()
        for other in others:
            other.wait()
        raise
    return results(found, len(items))


def shared(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Indices by share: what is largest goes where there is least so far. Each is in order."""
    shares: list[list[int]] = [[] for _ in range(max(count, 1))]
    load = [0] * len(shares)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        least = load.index(min(load))
        shares[least].append(index)
        load[least] += sizes[index]
    return [sorted(share) for share in shares]


def done(
    work: Callable[[T], R],
    items: Sequence[T],
    share: Iterable[int],
    show: Callable[[int, int], None] | None = None,
    wanted: Callable[[], bool] | None = None,
) -> dict[int, R | Exception]:
    """What came of a share, up to the first that fails, and as long as it is ``wanted``."""
    found: dict[int, R | Exception] = {}
    indices = list(share)
    for at, index in enumerate(indices):
        if wanted is not None and not wanted():
            break
        if show is not None:
            show(at, len(indices))
        found[index] = tried(work, items[index])
        if isinstance(found[index], Exception):
            break
    return found


def tried(work: Callable[[T], R], item: T) -> R | Exception:
    """What comes of one item, be it an error."""
    try:
        return work(item)
    except Exception as error:
        return error


def results(found: Mapping[int, R | Exception], count: int) -> list[R]:
    """All of them in order. Raises the first error."""
    given = []
    for index in range(count):
        result = found[index]
        if isinstance(result, Exception):
            raise result
        given.append(result)
    return given
