"""Explanations in a terminal: each region as a small tree, with what it becomes or why it stays.

Operators that follow one another stand on one line, ∘ for composition; sums branch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from rich.tree import Tree

from onnxfuse.outcome import Examined
from onnxfuse.records import Kept, Operator, RegionReport, Report
from onnxfuse.report.names import clean, number, plural, shortened, spreads, took

SUMS = ("Add", "Sum")
SHORT = {"BatchNormalization": "BN", "AveragePool": "AvgPool"}
MOST = 60
"""Lines of one tree."""
LONGEST = 16
"""Operators named on one line of it."""


def show(files: Sequence[Examined], console: Console, *, verbose: bool = False) -> None:
    """Print every region and every place that stays."""
    for file in files:
        if file.report is None:
            continue
        for region in file.report.regions:
            _region(region, console, verbose)
        for kept in file.report.refusals:
            _kept(kept, console)
        console.print(_summary(file.report))
        if verbose:
            console.print(f"{took(file.stages).capitalize()}.")


def _summary(report: Report) -> str:
    fusible, kept = len(report.regions), len(report.refusals)
    if not fusible and not kept:
        return "Nothing linear meets anything linear: there is nothing to fuse."
    words = []
    if fusible:
        words.append(f"{plural(fusible, 'region')} {'would be' if report.planned else 'are'} fused")
    if kept:
        words.append(f"{plural(kept, 'place')} {'stays' if kept == 1 else 'stay'} unfused")
    return f"{'; '.join(words)}."


def _region(region: RegionReport, console: Console, verbose: bool) -> None:
    head = Text(clean(region.place), style="bold")
    head.append(" becomes ", style="not bold")
    head.append(clean(_words(region.drawn_after) or region.became), style="green")
    console.print(grown(region.drawn, region.root, head))
    lines = [f"= {clean(region.expression)}", _change(region)]
    if verbose and region.ranges and region.ranges_after:
        lines.append(spreads(region))
    if verbose:
        lines.append(f"from {', '.join(clean(name) for name in region.nodes)}")
    _indented(lines, console)


def _change(region: RegionReport) -> str:
    old, new = region.before, region.after
    words = [
        f"nodes {old.nodes}→{new.nodes}",
        f"Conv {old.conv}→{new.conv}",
        f"MACs {number(old.macs)}→{number(new.macs)}",
        f"parameters {number(old.parameters)}→{number(new.parameters)}",
    ]
    if region.estimate is not None:
        words.append(f"estimated time {region.estimate:.2f}×")
    if region.error is not None and region.error.ratio is not None:
        words.append(f"error {region.error.ratio:.2f}×")
    return ", ".join(words)


def _kept(kept: Kept, console: Console) -> None:
    head = Text(clean(kept.place if kept.node else kept.root), style="bold")
    head.append(" stays ", style="not bold")
    head.append(f"[{kept.code.value}]", style="not bold yellow")
    console.print(grown(kept.drawn, kept.drawn[-1].outputs[0] if kept.drawn else "", head))
    lines = [f"because {clean(kept.text)}", f"what to do: {kept.advice}"]
    if kept.expression:
        lines.insert(0, f"= {clean(kept.expression)}")
    _indented(lines, console)


def _indented(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))
    console.print()


def grown(drawn: Sequence[Operator], root: str, head: Text) -> Tree:
    """The operators behind ``root`` as branches of ``head``; what is met twice is named once."""
    producers = {out: operator for operator in drawn for out in operator.outputs}
    readers = Counter(name for operator in drawn for name in operator.inputs)
    shared = {name for name, count in readers.items() if count > 1}
    tree = Tree(head, guide_style="dim")
    stack: list[tuple[str, Tree]] = [(root, tree)]
    seen: set[str] = set()
    lines = 0
    while stack:
        tensor, under = stack.pop()
        if lines >= MOST:
            under.add(Text("…", style="dim"))
            break
        lines += 1
        words, rest = _line(tensor, producers, shared, seen)
        branch = under.add(Text(clean(words)))
        stack += [(name, branch) for name in reversed(rest)]
    return tree


def _line(
    tensor: str, producers: dict[str, Operator], shared: set[str], seen: set[str]
) -> tuple[str, list[str]]:
    """The operators that follow one another down from a tensor, and where they branch."""
    words: list[str] = []
    while True:
        operator = producers.get(tensor)
        if operator is None:
            words.append(shortened(tensor))
            return _composed(words), []
        if tensor in seen:
            words.append(f"{shortened(operator.name)} (above)")
            return _composed(words), []
        if tensor in shared:
            seen.add(tensor)
        words.append(named(operator))
        inputs = list(_summands(operator, producers, shared))
        if len(inputs) != 1:
            return _composed(words), inputs
        tensor = inputs[0]


def _summands(
    operator: Operator, producers: dict[str, Operator], shared: set[str]
) -> Iterator[str]:
    """What an operator reads: for a sum its terms, sums of sums being one; else each once."""
    if operator.kind not in SUMS:
        yield from dict.fromkeys(operator.inputs)
        return
    stack = list(reversed(operator.inputs))
    while stack:
        name = stack.pop()
        inner = producers.get(name)
        if inner is not None and inner.kind in SUMS and name not in shared:
            stack += reversed(inner.inputs)
        else:
            yield name


def _composed(words: Sequence[str]) -> str:
    """The words of one line; runs of equal ones are counted, a long line has its middle cut."""
    runs = [(word, len(list(run))) for word, run in groupby(words)]
    texts = [word if count == 1 else f"{count} {word}" for word, count in runs]
    if len(texts) > LONGEST:
        texts[LONGEST // 2 : -LONGEST // 2] = [f"… {len(texts) - LONGEST} more …"]
    return " ∘ ".join(texts)


def _words(drawn: Sequence[Operator]) -> str:
    return ", ".join(named(operator) for operator in drawn)


def named(operator: Operator) -> str:
    """``Conv 3×3 8→8``."""
    return f"{SHORT.get(operator.kind, operator.kind)} {operator.detail}".strip()
