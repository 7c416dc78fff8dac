"""Work that a thread does while this one goes on, such as reading or writing a file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Begins at once with what ``work`` does; the process may end without it.

    Where the system has no room for a thread, the work is done before this goes on.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._run()

    def _run(self) -> None:
        try:
            self._found.append(self._work())
        except BaseException as error:  # for the thread that wants the result, whatever it is
            self._error = error

    def wait(self) -> None:
        """Wait until it is done, however that ends."""
        if self._thread.ident is not None:
            self._thread.join()

    def result(self) -> T:
        """What came of it; raises what that raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._found[0]
