"""One run of the command: what it is asked for, what it prints, its exit code."""

from __future__ import annotations

import os

from onnxfuse.cli import streams
from onnxfuse.errors import OnnxfuseError
from onnxfuse.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:  # what the answer to --version does not need is imported by what does
    import argparse
    from collections.abc import Sequence

    from onnxfuse.outcome import Exit, Failure, Outcome


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code. Leaves on ``--help`` and on wrong usage."""
    streams.prepare()
    if list(arguments) == ["--version"]:  # alone, it needs no parser
        return _told(f"onnxfuse {__version__}\n")
    from onnxfuse.cli.arguments import UsageError, parsed

    try:
        chosen = parsed(arguments)
    except UsageError as error:
        if error.form not in (None, "text"):
            from onnxfuse.outcome import Exit, Failure

            failed, form = _failed(error.command, Failure(Exit.USAGE, str(error))), error.form
            streams.write(lambda: _rendered(failed, form), form)
        error.leave()
    except SystemExit:  # the help is printed
        if code := _told(""):
            return code
        raise
    if chosen.command == "systems":
        from onnxfuse.cli import systems

        return int(systems.run(chosen))
    try:
        outcome = _outcome(chosen)
    except Exception as error:
        if os.environ.get("ONNXFUSE_TRACEBACK") and not isinstance(error, OnnxfuseError):
            raise
        outcome = _stopped(error, chosen)
    return int(_said(outcome, chosen))


def _told(text: str) -> int:
    """Print what no command is run for; returns the exit code."""
    lost = streams.write(lambda: text, "text")
    if not lost:
        return 0
    from onnxfuse.outcome import Exit

    streams.tell("error", f"stdout cannot be written: {lost}")
    return int(Exit.USAGE)


def _outcome(chosen: argparse.Namespace) -> Outcome:
    from onnxfuse.cli.settle import settle

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


def _stopped(error: Exception, chosen: argparse.Namespace) -> Outcome:
    """What stopped a command before it judged a file."""
    from onnxfuse.cli.examine import failure

    chosen.format = chosen.format or "text"
    path = "" if chosen.command in ("check", "verify") else chosen.input
    sides = (chosen.left, chosen.right) if chosen.command == "verify" else ("", "")
    return _failed(chosen.command, failure(error), path, sides)


def _failed(
    command: str, failure: Failure, path: str = "", sides: tuple[str, str] = ("", "")
) -> Outcome:
    from onnxfuse.outcome import Compared, Examined, Outcome

    if command == "verify":
        return Outcome(command, compared=Compared(*sides, failure=failure), version=__version__)
    return Outcome(command, (Examined(path, failure=failure),), version=__version__)


def _said(outcome: Outcome, chosen: argparse.Namespace) -> Exit:
    """Print an outcome in the format asked for; gives the exit code.

    The files are written by now, so whatever goes wrong here does not speak for them.
    """
    from onnxfuse.outcome import Exit

    for message in outcome.failures:
        streams.tell("error", message)
    for note in outcome.notes if not chosen.quiet else ():
        streams.tell("note", note)
    written = "".join(f"; {file.output} is written" for file in outcome.files if file.output)
    volume = {"verbose": chosen.verbose, "quiet": chosen.quiet}
    try:
        lost = streams.write(lambda: _rendered(outcome, chosen.format, **volume), chosen.format)
    except Exception as error:
        if os.environ.get("ONNXFUSE_TRACEBACK"):
            raise
        message = f"internal error, nothing can be reported{written}: {error!r}"
        streams.tell("error", f"{message}; please report this (ONNXFUSE_TRACEBACK=1 shows where)")
        return Exit.UNPROVED
    if lost:
        streams.tell("error", f"stdout cannot be written: {lost}; send it elsewhere{written}")
        return Exit.USAGE
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if chosen.format == "github" and summary:
        _summarise(outcome, summary, quiet=chosen.quiet)
    return outcome.code


def _rendered(
    outcome: Outcome, form: str | None, *, verbose: bool = False, quiet: bool = False
) -> str:
    from onnxfuse.report import formats

    return formats.render(outcome, form or "text", verbose=verbose, quiet=quiet)


def _summarise(outcome: Outcome, place: str, *, quiet: bool) -> None:
    """Append the outcome to a job's summary; that it cannot be changes no verdict."""
    from onnxfuse.report.markdown import summarised

    data = summarised(outcome).encode("utf-8", "backslashreplace")
    try:
        with open(place, "ab") as stream:  # noqa: PTH123 - the runner's file
            stream.write(data)
    except OSError as error:
        if not quiet:
            streams.tell("note", f"the job summary {place} cannot be written: {error.strerror}")
