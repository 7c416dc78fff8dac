"""The same work on many things: results in their order, and what went wrong as a value.

It knows processes and executors, and nothing of models. A worker that dies stops nobody else: what
was in work then is done again, each thing by itself, so that the guilty one is known. No worker
outlives the process that started it, or the call.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

from onnxfuse.errors import WorkerError
from onnxfuse.watch import Progress, unseen

T = TypeVar("T")
R = TypeVar("R")

GRACE = 5.0
"""Seconds that a worker has to leave what it is doing; onnxruntime cannot be interrupted."""


def cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_executor(
    work: Callable[[T], R], items: Sequence[T], executor: Executor, show: Progress = unseen
) -> list[R | Exception]:
    """All of it handed to an executor, whose workers must be able to import ``work``."""
    futures: list[Future[R]] = []
    try:
        futures += (executor.submit(work, item) for item in items)
        for done, _ in enumerate(as_completed(futures), 1):
            show("", done, len(items))
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return [_outcome(future) for future in futures]


def in_processes(
    work: Callable[[T], R], items: Sequence[T], jobs: int, show: Progress = unseen
) -> list[R | Exception]:
    """In up to ``jobs`` processes of our own. Raises `WorkerError` where none can be started."""
    found: dict[int, R | Exception] = {}
    waiting = list(reversed(range(len(items))))
    while waiting:
        with _Workers(min(jobs, len(waiting))) as workers:
            lost = workers.run(work, items, waiting, found, show)
        for index in lost:
            with _Workers(1) as one:
                if one.run(work, items, [index], found, show):
                    found[index] = WorkerError(
                        f"the process that worked on {items[index]} ended abruptly, alone and "
                        "with all memory to itself too: it crashed, or there is too little memory"
                    )
    return [found[index] for index in range(len(items))]


def _outcome(future: Future[Any]) -> Any:
    """What a future came to; an error is a value too."""
    try:
        return future.result()
    except CancelledError:
        return WorkerError("the executor cancelled it")
    except BrokenExecutor as error:
        return WorkerError(f"a worker of the executor died, perhaps on another file: {error}")
    except Exception as error:
        return error


class _Workers:
    """A process pool that is gone when its block is left, whatever ends it.

    The workers hold one end of a pipe. When this process closes the other, or dies, they stop.
    """

    def __init__(self, jobs: int) -> None:
        context = multiprocessing.get_context("spawn")  # threads and fork do not go together
        self._jobs = jobs
        try:
            self._theirs, self._ours = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(jobs, context, _begin, (self._theirs,))
        except (OSError, ImportError, NotImplementedError) as error:  # where there is no /dev/shm
            raise WorkerError(f"no worker process can start: {error}") from error

    def __enter__(self) -> _Workers:
        try:
            with _unsignalled():
                first = self._pool.submit(os.getpid)
            first.result()
        except BaseException as error:
            self.__exit__(None, None, None)
            if isinstance(error, OSError):
                raise WorkerError(f"no worker process can start: {error}") from error
            if isinstance(error, BrokenExecutor):
                raise WorkerError(
                    "no worker process can start; in a script, call this below "
                    '`if __name__ == "__main__":`'
                ) from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ours.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._theirs.close()

    def run(
        self,
        work: Callable[[T], R],
        items: Sequence[T],
        waiting: list[int],
        found: dict[int, R | Exception],
        show: Progress,
    ) -> list[int]:
        """Work on what waits, the last first, until nothing does or a worker dies.

        Gives what was in work then. No more is handed out than there are workers: so that is all
        that may be guilty.
        """
        running: dict[Future[R], int] = {}
        while waiting or running:
            while waiting and len(running) < self._jobs:
                with _unsignalled():
                    running[self._pool.submit(partial(_do, work), items[waiting[-1]])] = waiting[-1]
                waiting.pop()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                if isinstance(future.exception(), BrokenExecutor):
                    wait(running)
                    return [n for f, n in running.items() if not _kept(f, n, found)]
                index = running.pop(future)
                found[index] = _outcome(future)
                show(str(items[index]), len(found), len(items))
        return []


def _kept(future: Future[R], index: int, found: dict[int, R | Exception]) -> bool:
    """Whether a future had its result before a worker died."""
    if isinstance(future.exception(), BrokenExecutor):
        return False
    found[index] = _outcome(future)
    return True


@contextmanager
def _unsignalled() -> Iterator[None]:
    """Within, processes are started that Ctrl-C does not reach: this one hears it, and ends them.

    A signal mask is inherited, so that not even the start of Python is interrupted.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(lifeline: Connection) -> None:
    """Prepare a worker: it leaves the keyboard to others, and ends with its lifeline."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_hold, args=(lifeline,), daemon=True).start()


def _hold(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()  # nothing is ever sent
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(GRACE)
    os._exit(1)


def _leave(number: int, frame: object) -> None:
    """End a worker that has nothing in work."""
    os._exit(1)


def _stop(number: int, frame: object) -> None:
    """Leave what is in work as an error would, so that no file is left half written."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(1)


def _do(work: Callable[[T], R], item: T) -> R:
    """In a worker: the work, and the end of the process where that was stopped."""
    try:
        signal.signal(signal.SIGTERM, _stop)
        try:
            return work(item)
        finally:
            signal.signal(signal.SIGTERM, _leave)
    except SystemExit:
        os._exit(1)
