"""Annotations of GitHub Actions: one line for each finding, error and notice.

Annotations fail no job; the exit code does.
"""

from __future__ import annotations

import os
from pathlib import Path

from onnxfuse.outcome import Outcome, Verdict
from onnxfuse.report.names import clean

_COMMANDS = {"failed": "error", "error": "error", "noted": "notice"}
MOST = 50
"""Annotations printed for one run; the runner shows no more of them than that."""


def rendered(outcome: Outcome) -> str:
    """The verdicts that matter as workflow commands, the worst first."""
    order = ["error", "failed", "noted"]
    wanted = [verdict for verdict in outcome.verdicts() if verdict.status in order]
    wanted.sort(key=lambda verdict: order.index(verdict.status))
    lines = [_line(verdict) for verdict in wanted[:MOST]]
    if len(wanted) > MOST:
        lines.append(f"::notice title=onnxfuse::{len(wanted) - MOST} more are in the job summary")
    return "".join(f"{line}\n" for line in lines)


def _line(verdict: Verdict) -> str:
    place = f"file={_property(_located(verdict.file))}," if verdict.file else ""
    title = _property(f"onnxfuse: {verdict.name}")
    command = _COMMANDS[verdict.status]
    return f"::{command} {place}title={title}::{_message(verdict.text or verdict.name)}"


def _located(file: str) -> str:
    """The path as the runner wants it: relative to the workspace, wherever the command ran."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    place = os.path.realpath(file)
    if not workspace or not Path(place).is_relative_to(os.path.realpath(workspace)):
        return file
    return os.path.relpath(place, os.path.realpath(workspace))


def _message(text: str) -> str:
    """A text as the runner's parser wants it, on its line."""
    return clean(text).replace("%", "%25")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
