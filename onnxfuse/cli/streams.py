"""Stdout and stderr: what is printed there, also where they are closed, full or not UTF-8."""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes a while to load
    from collections.abc import Callable
    from typing import Any


def prepare() -> None:
    """Make both streams take anything that is written to them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed; a file that is opened now would take its place
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character gets on
            stream.reconfigure(errors="backslashreplace")


def tell(kind: str, message: str) -> None:
    """One line on stderr; ``kind`` is error or note."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    try:
        print(f"onnxfuse: {kind}: {line}", file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def write(text: Callable[[], str], form: str | None) -> str:
    """A text on stdout; gives the reason where that cannot be. A reader that left is none.

    The text is made within, for what makes it asks stdout how wide it is.
    """
    try:
        made = text()
        if form != "text" and isinstance(sys.stdout, io.TextIOWrapper):
            # as XML says, and JSON and the runner expect
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        sys.stdout.write(made)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
    except OSError as error:
        _silence(sys.stdout)
        return error.strerror or type(error).__name__
    return ""


def _silence(stream: Any) -> None:
    """Send what a stream still holds nowhere, or Python itself complains as it ends."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # it has no file
        pass
