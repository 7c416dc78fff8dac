"""Checks and comparisons in a terminal: findings first, one line each."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxfuse.outcome import Compared, Examined, Judgement, Outcome
from onnxfuse.records import Difference, RegionReport
from onnxfuse.report.names import clean, number, plural, shortened, took

SHOWN = 8
"""Fusible regions of one model that are listed without ``-v``."""


def show(outcome: Outcome, console: Console, *, verbose: bool, quiet: bool) -> None:
    """Each model with what was found, then a line that counts them."""
    for file in outcome.files:
        if file.failure is None and (file.code or not quiet):
            _examined(file, console, verbose=verbose, quiet=quiet)
    if not quiet:
        console.print(_summary(outcome))


def _examined(file: Examined, console: Console, *, verbose: bool, quiet: bool) -> None:
    head = Text(clean(file.path), style="bold")
    head.append(": ", style="not bold")
    head.append(_result(file), style="not bold red" if file.code else "not bold green")
    console.print(head, soft_wrap=True)  # a path is worth a long line
    shown = file.fusible if verbose else file.fusible[:SHOWN]
    for region in shown:
        console.print(Padding(_fusible(region), (0, 0, 0, 2), expand=False))
    if len(shown) < len(file.fusible):
        console.print(f"  … and {len(file.fusible) - len(shown)} more (-v lists all)")
    if file.fusible and file.report is not None:
        old, new = file.report.before, file.report.after
        console.print(
            f"  together: Conv {old.conv}→{new.conv}, nodes {old.nodes}→{new.nodes}, "
            f"MACs {number(old.macs)}→{number(new.macs)}, bytes {number(old.bytes)}→"
            f"{number(new.bytes)}"
        )
    for budget in file.budgets:
        if budget.exceeded or not quiet:
            console.print(Padding(_budget(budget), (0, 0, 0, 2), expand=False))
    if verbose:
        console.print(Padding(took(file.stages), (0, 0, 0, 2), expand=False))


def _result(file: Examined) -> str:
    words = []
    if file.fusible:
        words.append(f"{plural(len(file.fusible), 'region')} can be fused")
    if file.exceeded:
        words.append(f"{plural(len(file.exceeded), 'budget')} exceeded")
    if words:
        return ", ".join(words)
    if file.gate:
        return "nothing left to fuse" + (", within budget" if file.budgets else "")
    if file.recorded:
        return f"its sizes are in {clean(file.recorded)} now"
    return "within budget" if file.budgets else "no budget is set for it"


def _fusible(region: RegionReport) -> Text:
    text = Text(f"{shortened(clean(region.place))}: {region.was}")
    text.append(f" → {region.became}", style="green")
    return text


def _budget(budget: Judgement) -> Text:
    sign = ">" if budget.exceeded else "≤"
    text = f"{budget.metric} {budget.actual:,} {sign} {budget.limit:,} ({clean(budget.source)})"
    return Text(text, style="red" if budget.exceeded else "")


def _summary(outcome: Outcome) -> str:
    fusible = sum(bool(file.fusible) for file in outcome.files)
    over = sum(bool(file.exceeded) for file in outcome.files)
    failed = sum(file.failure is not None for file in outcome.files)
    fine = sum(not file.code for file in outcome.files)
    words = [f"{fine} fine"]
    words += [f"{fusible} with regions to fuse"] * bool(fusible)
    words += [f"{over} over budget"] * bool(over)
    words += [f"{failed} that could not be judged"] * bool(failed)
    end = "" if not fusible else "; fuse with: onnxfuse IN OUT"
    return f"{plural(len(outcome.files), 'model')}: {', '.join(words)}{end}"


def compared(found: Compared, console: Console, *, quiet: bool) -> None:
    """Two models, the error at each output, and the answer."""
    held = found.equivalence
    if held is None:
        return
    wanted = [out for out in held.outputs if not quiet or not out.equal]
    if wanted:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("Output", overflow="fold")
        for title in ("Difference", "Allowed", "Largest"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("", overflow="fold")
        for out in wanted:
            table.add_row(*_difference(out))
        console.print(table)
    if quiet:
        return
    for note in held.notes:
        console.print(Text(f"note: {clean(note)}", style="dim"))
    answers = {
        "equal": ("Equivalent", "green"),
        "different": ("Not equivalent", "red"),
        "not-run": ("Could not be compared", "yellow"),
    }
    answer, style = answers[held.status]
    where = f" at {' and '.join(clean(run) for run in held.runs)}" if held.runs else ""
    console.print(Text(answer, style=style).append(f"{where}.", style="default"))


def _difference(out: Difference) -> tuple[Text, str, str, str, Text]:
    says = Text("ok" if out.equal else "differs", style="green" if out.equal else "red")
    if out.text:
        says.append(f": {clean(out.text)}", style="default")
    return Text(clean(out.name)), f"{out.rms:.2g}", f"{out.allowed:.2g}", f"{out.largest:.2g}", says
