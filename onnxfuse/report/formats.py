"""The formats of stdout, by name: each gives an outcome as one text."""

from __future__ import annotations

from collections.abc import Callable

from onnxfuse.outcome import Outcome

SILENT = ("fuse", "explain")
"""Commands that print nothing when they are to be quiet; the others print what they found."""


def render(outcome: Outcome, form: str, *, verbose: bool = False, quiet: bool = False) -> str:
    """An outcome in one of `version.FORMATS`; ``quiet`` is for text, ``verbose`` for that
    and for JSON.
    """
    if form == "text" and quiet and outcome.command in SILENT:
        return ""  # rich takes longer to load than some models to fuse
    if form == "text":
        from onnxfuse.report.text import rendered

        return rendered(outcome, verbose=verbose, quiet=quiet)
    if form == "json":
        from onnxfuse.report.data import to_json

        return to_json(outcome, verbose=verbose)
    return _MACHINE[form](outcome)


def _markdown(outcome: Outcome) -> str:
    from onnxfuse.report.markdown import rendered

    return rendered(outcome)


def _github(outcome: Outcome) -> str:
    from onnxfuse.report.github import rendered

    return rendered(outcome)


def _junit(outcome: Outcome) -> str:
    from onnxfuse.report.junit import rendered

    return rendered(outcome)


_MACHINE: dict[str, Callable[[Outcome], str]] = {
    "markdown": _markdown,
    "github": _github,
    "junit": _junit,
}
