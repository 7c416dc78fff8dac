"""The command. Everything it needs is imported within its reach, so that Ctrl-C ends it quietly."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes a while to load
    from collections.abc import Sequence


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
