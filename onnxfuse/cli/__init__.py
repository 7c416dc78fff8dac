"""The command. Everything it needs is imported within its reach, so that Ctrl-C ends it quietly."""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes a while to load
    from collections.abc import Sequence

COLLECTED = 100_000
"""Objects more than before from which on Python looks for cycles; a graph is made of many that
live to the end, and are in none."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        # proofs multiply small matrices: threads would only wait for each other
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from onnxfuse.cli import command

        return command.run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        if sys.stderr is not None:
            print("onnxfuse: error: interrupted; no file is half written", file=sys.stderr)
        return 130


def script() -> None:
    """The program: `main`, and an end that does not take apart what the system takes back anyway.

    That is a tenth of the time of a small file. Python ends the long way where it raised
    `SystemExit`, for an error that says so, and where a pool of processes was started, for what
    they share has to be given back.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # products are small; proofs are shared
    gc.set_threshold(COLLECTED, 50, 50)
    code = main()
    if "onnxfuse.pool" not in sys.modules:
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except (OSError, ValueError, AttributeError):  # closed or full: Python's end says so
            sys.exit(code)
        os._exit(code)
    sys.exit(code)
