"""Annotations of GitHub Actions: one line for each finding, error and notice.

Annotations fail no job; the exit code does.
"""

from __future__ import annotations

from onnxfuse.outcome import Outcome, Verdict

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
    title = _property(f"onnxfuse: {verdict.name}")
    return (
        f"::{_COMMANDS[verdict.status]} file={_property(verdict.file)},title={title}"
        f"::{_message(verdict.text or verdict.name)}"
    )


def _message(text: str) -> str:
    """A text as the runner's parser wants it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
