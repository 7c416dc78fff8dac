"""The report as one HTML page that needs nothing else: totals, regions drawn, reasons.

Names come from models, so they are hostile: what is not printable is escaped as in a terminal,
the template escapes the rest, and the page's policy lets only its own style and script run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from onnxfuse.outcome import Examined, Exit, Outcome
from onnxfuse.records import Kept, Operator, RegionReport, Report, Spread, Verification
from onnxfuse.report.drawing import draw, group
from onnxfuse.report.names import clean, nearest, number, plural

OPEN = 2
"""Regions of the first file that are open to begin with."""

GROUPS = {
    "conv": "convolution",
    "affine": "scale or shift",
    "sum": "sum",
    "pool": "pool",
    "border": "border",
    "other": "other, or several",
    "tensor": "tensor read or written",
}
CONSTANTS = {
    "map": "The border needs a constant that varies in space: a stored map is added.",
    "plane": "The border needs a constant that varies in space: a convolution of ones is added.",
    "shift": "The border needs a constant that varies in space: the source is shifted before it.",
    "channel": "The border needs a constant that varies in space: a channel of ones carries it.",
}
METRICS = (
    ("Nodes", "nodes"),
    ("Conv", "conv"),
    ("BatchNormalization", "batch_normalization"),
    ("Parameters", "parameters"),
    ("MACs", "macs"),
    ("File size (bytes)", "bytes"),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One total before and after; ``old`` and ``new`` are in percent of the larger."""

    title: str
    before: int
    after: int

    @property
    def old(self) -> float:
        return round(100 * self.before / max(self.before, self.after), 2)

    @property
    def new(self) -> float:
        return round(100 * self.after / max(self.before, self.after), 2)


@dataclass(frozen=True, slots=True)
class Badge:
    """A verdict in a word or two; ``tone`` is good, warn, bad or plain, and never alone."""

    tone: str
    text: str


@dataclass(frozen=True, slots=True)
class Named:
    """An operator in the list of names: its place on the page, what it is, what it writes."""

    anchor: str
    kind: str
    group: str
    name: str
    outputs: tuple[str, ...]


def render(outcome: Outcome) -> str:
    """The page; files with findings come first."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
            return value
        return clean(value)

    loader = PackageLoader("onnxfuse", "report")
    page = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = (loader.get_source(page, name)[0] for name in ("page.css", "page.js"))
    page.filters["number"] = number
    page.globals.update({helper.__name__: helper for helper in _HELPERS})
    files = sorted(outcome.files, key=lambda file: file.code is Exit.FINE)
    return page.get_template("page.html.jinja").render(
        outcome=outcome,
        files=files,
        headline=headline(outcome),
        drawn=any(f.report and (f.report.regions or f.report.refusals) for f in files),
        style=style,
        script=script,
        policy=policy(style, script),
        GROUPS=GROUPS,
        CONSTANTS=CONSTANTS,
        OPEN=OPEN,
    )


def policy(style: str, script: str) -> str:
    """A Content-Security-Policy under which this style and this script are all that works."""
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def name_of(path: str) -> str:
    """The file of a path, as Windows and others write paths."""
    return PurePath(path.replace("\\", "/")).name or path


def headline(outcome: Outcome) -> str:
    """The result in one line."""
    if outcome.compared is not None and not outcome.files:
        words = {Exit.FINE: "The models are equivalent", Exit.FINDING: "The models differ"}
        return words.get(outcome.compared.code, "The models could not be compared")
    files = outcome.files
    if len(files) != 1:
        off = sum(file.code is not Exit.FINE for file in files)
        return (
            f"{off:,} of {plural(len(files), 'model')} need attention"
            if off
            else f"{plural(len(files), 'model')} examined, nothing found"
        )
    return badge(files[0]).text.capitalize()


def badge(file: Examined) -> Badge:
    """What came of one file."""
    if file.failure is not None:
        why = {Exit.UNPROVED: "not proved equal", Exit.INTERRUPTED: "interrupted"}
        return Badge("bad", why.get(file.failure.code, "not usable"))
    regions = len(file.report.regions) if file.report is not None else 0
    words = []
    if regions and file.report is not None:
        verb = "would be fused" if file.report.planned else "fused"
        words.append(f"{plural(regions, 'region')} {'not fused' if file.gate else verb}")
    if file.exceeded:
        words.append(f"{plural(len(file.exceeded), 'budget')} exceeded")
    if not words:
        return Badge("good", "nothing left to fuse" if file.gate else "nothing to fuse")
    tone = "bad" if file.exceeded else "warn" if file.gate else "good"
    return Badge(tone, ", ".join(words))


def bars(report: Report) -> list[Bar]:
    """Totals that are known and not nothing; a plan does not know the size of the file."""
    found = [
        Bar(title, getattr(report.before, field), getattr(report.after, field))
        for title, field in METRICS
    ]
    return [
        bar
        for bar in found
        if (bar.before or bar.after) and not (bar.title.startswith("File") and not bar.after)
    ]


def percent(before: float, after: float) -> str:
    """``−57 %`` with as many digits as say something; empty where nothing changed."""
    if before == after or not before:
        return ""
    off = 100 * (after - before) / before
    size = f"{abs(off):.3g}" if 99 < abs(off) < 100 else f"{abs(off):.2g}"
    size = f"{abs(off):,.0f}" if abs(off) >= 100 else size
    return f"{'−' if off < 0 else '+'}{size} %"


def change(before: int, after: int) -> str:
    """``5 → 1``, short."""
    return f"{number(before)} → {number(after)}"


def counts(region: RegionReport) -> list[tuple[str, str, str, str]]:
    """Rows of a region's table: title, before, after, change. Unknown work is a dash."""
    rows = []
    for title, field in METRICS[:-1]:
        old, new = getattr(region.before, field), getattr(region.after, field)
        unknown = field == "macs" and region.after.conv and not new
        if old or new:
            rows.append(
                (
                    title,
                    f"{old:,}",
                    "unknown" if unknown else f"{new:,}",
                    "" if unknown else percent(old, new),
                )
            )
    if region.estimate is not None:
        rows.append(("Estimated time", "1", f"{region.estimate:.2f}", percent(1, region.estimate)))
    return rows


def ratio(region: RegionReport) -> str:
    """The region's RMS error against float64, over the original's own."""
    if region.error is None:
        return ""
    return "exact" if region.error.ratio is None else f"{region.error.ratio:.2f}×"


def shape(sizes: Sequence[int | None]) -> str:
    """``1×8×12×12``; what is open is a question mark."""
    return "×".join("?" if size is None else str(size) for size in sizes) or "scalar"


def named(operators: Sequence[Operator], prefix: str) -> list[Named]:
    """The operators of one drawing by name; anchors are made of numbers alone."""
    return [
        Named(f"n-{prefix}{index}", operator.kind, group(operator), operator.name, operator.outputs)
        for index, operator in enumerate(operators)
    ]


def rest(region: RegionReport) -> list[str]:
    """Nodes of a region that are not drawn."""
    drawn = {operator.name for operator in region.drawn}
    return [name for name in region.nodes if name not in drawn]


def sources(operators: Sequence[Operator]) -> list[str]:
    """Tensors that operators read from outside."""
    made = {name for operator in operators for name in operator.outputs}
    read = dict.fromkeys(name for operator in operators for name in operator.inputs)
    return [name for name in read if name not in made]


def unread(operators: Sequence[Operator]) -> list[str]:
    """Tensors that operators write for others."""
    read = {name for operator in operators for name in operator.inputs}
    return [name for operator in operators for name in operator.outputs[:1] if name not in read]


def kept_by_code(report: Report) -> list[tuple[str, list[tuple[int, Kept]]]]:
    """Places left alone with their numbers, by reason, the most frequent first."""
    found: dict[str, list[tuple[int, Kept]]] = {}
    for index, refusal in enumerate(report.refusals):
        found.setdefault(refusal.code.value, []).append((index, refusal))
    return sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))


def widest_of(report: Report) -> tuple[float, float] | None:
    """The worst ratio of a kernel's widest channel to its usual one, before and after."""
    before = [s.ratio for region in report.regions for s in region.ranges if s.ratio is not None]
    after = [s.ratio for r in report.regions for s in r.ranges_after if s.ratio is not None]
    return (max(before), max(after)) if before and after else None


def ranges(region: RegionReport) -> list[tuple[str, Spread, tuple[float, float, float]]]:
    """Kernels before and after, with their range in percent of the largest of the region."""
    both = [("before", s) for s in region.ranges] + [("after", s) for s in region.ranges_after]
    top = max((spread.largest for _, spread in both), default=0.0) or 1.0
    return [
        (when, s, (round(100 * s.least / top, 1), round(100 * s.median / top, 1),
                   round(100 * s.largest / top, 1)))
        for when, s in both
    ]  # fmt: skip


def proof(report: Report) -> str:
    """What was proved about the regions, in a sentence."""
    errors = [region.error for region in report.regions if region.error is not None]
    if not report.regions:
        return "There was nothing to prove."
    if not errors:
        return "Nothing was proved: a plan reads no kernel."
    worst = nearest(errors)
    return (
        f"{plural(len(errors), 'region')} proved in float64: largest difference {worst.exact:.1e}, "
        f"rounding allows {worst.bound:.1e}."
    )


def verified(found: Verification) -> tuple[Badge, str]:
    """The run of the whole model: a verdict and a sentence."""
    runs = " and ".join(found.runs)
    if found.status == "passed":
        text = f"Original and fused agree in {found.oracle} at {runs}."
        return Badge("good", "whole model equal"), text
    if found.status == "approximate":
        off = max((output.rms for output in found.outputs), default=0.0)
        text = f"Outputs differ by up to {off:.1e} relative RMS in {found.oracle}, as borders do."
        return Badge("warn", "approximate"), text
    if found.status == "not-run":
        text = "The whole model was not run; the regions' proofs stand."
        return Badge("warn", "whole model not run"), text
    return Badge("plain", "whole model not run"), ""


_HELPERS: tuple[Callable[..., Any], ...] = (
    badge, bars, change, counts, draw, kept_by_code, name_of, named, percent, proof, ranges, ratio,
    rest, shape, sources, unread, verified, widest_of,
)  # fmt: skip
"""What the template calls."""
