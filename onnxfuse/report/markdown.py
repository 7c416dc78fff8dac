"""Markdown, for job summaries and comments: tables of totals, findings and budgets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from onnxfuse.outcome import Compared, Examined, Outcome
from onnxfuse.records import Counts, Kept, RegionReport, Verification
from onnxfuse.report.names import clean, number, plural, totals

MOST = 200
"""Regions and places of one model that are listed; a job summary may hold one megabyte."""


def summarised(outcome: Outcome) -> str:
    """The same as `rendered`, ready to be appended to other summaries."""
    return rendered(outcome) + "\n"


def rendered(outcome: Outcome) -> str:
    """An outcome as GitHub-flavoured Markdown."""
    lines = [f"## onnxfuse {outcome.command}", ""]
    if len(outcome.files) > 1:
        lines += _table(("Model", "Result", "Fusible", "Over budget"), _overview(outcome.files))
    for file in outcome.files:
        lines += _file(file)
    if outcome.compared is not None:
        lines += _compared(outcome.compared)
    return "\n".join(lines).rstrip() + "\n"


def code(text: str) -> str:
    """A name as inline code that cannot break out of its cell."""
    safe = clean(text).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", safe)), default=0) + 1)
    pad = " " if safe.startswith("`") or safe.endswith("`") else ""
    return f"{fence}{pad}{safe}{pad}{fence}"


def plain(text: str) -> str:
    """A sentence as it stands: nothing in it is markup."""
    safe = re.sub(r"([\\`*_{}\[\]()#+!~<>|$-])", r"\\\1", clean(text))
    return safe.replace("@", "@\u200b")  # a name in a model must not notify anybody


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return [*lines, ""]


_RESULT = {0: "fine", 1: "**finding**", 2: "**unusable**", 3: "**unproved**"}


def _overview(files: Sequence[Examined]) -> Iterator[Sequence[str]]:
    for file in files:
        fusible = str(len(file.fusible)) if file.gate and file.report is not None else ""
        yield code(file.path), _RESULT[int(file.code)], fusible, str(len(file.exceeded) or "")


def _file(file: Examined) -> Iterator[str]:
    target = f" → {code(file.output)}" if file.output else ""
    yield from (f"### {code(file.path)}{target}", "")
    if file.failure is not None:
        yield from (f"**{_RESULT[int(file.code)].strip('*')}**: {plain(file.failure.message)}", "")
    if file.budgets:
        yield from _table(
            ("Budget", "Actual", "Limit", ""),
            (
                (
                    plain(f"{b.metric}, {b.source}"),
                    f"{b.actual:,}",
                    f"{b.limit:,}",
                    "**exceeded**" if b.exceeded else "ok",
                )
                for b in file.budgets
            ),
        )
    report = file.report
    if report is None:
        return
    yield from _table(("Total", "Original", "Fused"), _totals(report.before, report.after))
    if report.regions:
        verb = "Would be fused" if report.planned else "Fused"
        yield from (f"{verb}: {plural(len(report.regions), 'region')}", "")
        yield from _table(
            ("Region", "Was → became", "MACs", "Parameters", "Error"),
            map(_region, report.regions[:MOST]),
        )
        yield from _more(len(report.regions))
    if report.refusals:
        yield from (f"Left alone: {plural(len(report.refusals), 'place')}", "")
        yield from _table(("Node", "Why", "What to do"), map(_kept, report.refusals[:MOST]))
        yield from _more(len(report.refusals))
    if report.verification is not None:
        yield from _verified(report.verification)
    for note in report.notes:
        yield from (f"Note: {plain(note)}", "")


def _verified(found: Verification) -> Iterator[str]:
    """The run of the whole model, with what is allowed beside what was measured."""
    oracle = f" in {plain(found.oracle)}" if found.oracle else ""
    yield from (f"Whole model{oracle}: {plain(found.status)}", "")
    if found.outputs:
        yield from _table(
            ("Output", "Relative RMS difference", "Allowed"),
            (
                (code(out.name), f"{out.rms:.1e}", f"{out.allowed:.1e} {plain(out.text)}".strip())
                for out in found.outputs[:MOST]
            ),
        )
        yield from _more(len(found.outputs))


def _more(count: int) -> Iterator[str]:
    if count > MOST:
        yield from (f"… and {count - MOST:,} more", "")


def _totals(before: Counts, after: Counts) -> Iterator[Sequence[str]]:
    for title, old, new in totals(before, after):
        yield title, f"{old:,}", f"{new:,}" if new == old else f"**{new:,}**"


def _region(region: RegionReport) -> Sequence[str]:
    ratio = region.error.ratio if region.error is not None else None
    return (
        code(region.place),
        plain(f"{region.was} → {region.became}"),
        f"{number(region.before.macs)} → {number(region.after.macs)}",
        f"{number(region.before.parameters)} → {number(region.after.parameters)}",
        f"{ratio:.2f}×" if ratio is not None else "",
    )


def _kept(kept: Kept) -> Sequence[str]:
    return code(kept.place), f"{plain(kept.text)} ({code(kept.code.value)})", plain(kept.advice)


def _compared(found: Compared) -> Iterator[str]:
    yield from (f"{code(found.left)} and {code(found.right)}", "")
    if found.failure is not None:
        yield from (f"**could not be compared**: {plain(found.failure.message)}", "")
        return
    held = found.equivalence
    assert held is not None
    yield from (f"**{held.status}** at {plain(' and '.join(held.runs)) or 'no size'}", "")
    yield from _table(
        ("Output", "Relative difference", "Allowed", "Largest", ""),
        (
            (
                code(out.name),
                f"{out.rms:.3g}",
                f"{out.allowed:.3g}",
                f"{out.largest:.3g}",
                ("ok" if out.equal else "**differs**") + (f": {plain(out.text)}" * bool(out.text)),
            )
            for out in held.outputs
        ),
    )
    for note in held.notes:
        yield f"- {plain(note)}"
