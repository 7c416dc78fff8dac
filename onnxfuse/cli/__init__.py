"""The command: what it is asked for, what it prints, its exit code. Heavy packages come late."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from onnxfuse.cli.arguments import parsed, settle
from onnxfuse.errors import OnnxfuseError
from onnxfuse.outcome import Compared, Examined, Exit, Outcome
from onnxfuse.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    chosen = parsed(sys.argv[1:] if arguments is None else arguments)
    code = Exit.FINE
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character still gets on
            stream.reconfigure(errors="backslashreplace")
    try:
        outcome = _outcome(chosen)
        code = outcome.code
        _say(outcome, chosen)
        return int(code)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", Exit.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(code)
    except Exception as error:
        if os.environ.get("ONNXFUSE_TRACEBACK") and not isinstance(error, OnnxfuseError):
            raise
        return _stopped(error, chosen)


def _outcome(chosen: argparse.Namespace) -> Outcome:
    config = settle(chosen)
    if chosen.command == "check":
        from onnxfuse.cli import check

        return check.run(chosen, config)
    if chosen.command == "explain":
        from onnxfuse.cli import explain

        return explain.run(chosen)
    if chosen.command == "verify":
        from onnxfuse.cli import verify

        return verify.run(chosen)
    from onnxfuse.cli import fuse

    return fuse.run(chosen)


def _say(outcome: Outcome, chosen: argparse.Namespace) -> None:
    """The outcome on stdout, in the format asked for; errors and notes on stderr."""
    for message in outcome.failures:
        print(f"onnxfuse: error: {_printable(message)}", file=sys.stderr)
    if not chosen.quiet:
        for note in outcome.notes:
            print(f"onnxfuse: note: {_printable(note)}", file=sys.stderr)
    from onnxfuse.report import formats

    text = formats.render(outcome, chosen.format, verbose=chosen.verbose, quiet=chosen.quiet)
    if chosen.format != "text" and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as XML says, and JSON and the runner expect
    sys.stdout.write(text)
    sys.stdout.flush()
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if chosen.format == "github" and summary:
        from onnxfuse.report.markdown import summarised

        with open(summary, "a", encoding="utf-8") as stream:  # noqa: PTH123 - the runner's file
            stream.write(summarised(outcome))


def _stopped(error: Exception, chosen: argparse.Namespace) -> int:
    """What stopped a command before it judged a file, in the format asked for."""
    from onnxfuse.cli.examine import failure

    found = failure(error)
    chosen.format = chosen.format or "text"
    if chosen.command == "verify":
        compared = Compared(chosen.left, chosen.right, failure=found)
        _say(Outcome("verify", compared=compared, version=__version__), chosen)
    else:
        path = "" if chosen.command == "check" else chosen.input
        stopped = Examined(path, failure=found)
        _say(Outcome(chosen.command, (stopped,), version=__version__), chosen)
    return int(found.code)


def _fail(message: str, code: Exit) -> int:
    print(f"onnxfuse: error: {_printable(message)}", file=sys.stderr)
    return int(code)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
