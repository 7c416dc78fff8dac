"""A progress bar on a terminal's stderr, once the work has taken a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onnxfuse.watch import Progress, unseen


@contextmanager
def progress(*, enabled: bool) -> Iterator[Progress]:
    """What reports progress: a bar where somebody watches, else nothing."""
    if not enabled or not sys.stderr.isatty():
        yield unseen
        return
    started = time.monotonic()
    bar: Any = None
    task: Any = None

    def report(stage: str, done: int, total: int) -> None:
        nonlocal bar, task
        if bar is None and time.monotonic() - started > 1:
            from rich.console import Console
            from rich.progress import Progress as Bar

            bar = Bar(console=Console(stderr=True), transient=True)
            bar.start()
            task = bar.add_task(stage)
        if bar is not None:
            bar.update(task, description=stage, completed=done, total=total or None)

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()
