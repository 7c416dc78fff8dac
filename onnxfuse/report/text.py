"""The report in a terminal: readable at 80 columns, plain where colours are not wanted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxfuse.outcome import Examined, Outcome
from onnxfuse.records import Counts, OutputError, RegionReport, Report, Verification
from onnxfuse.report import listing, tree
from onnxfuse.report.names import clean, nearest, number, shortened, spreads, took, totals

SHOWN_REFUSALS = 8
"""Places left alone that are listed without ``-v``."""


def rendered(outcome: Outcome, *, verbose: bool, quiet: bool) -> str:
    """What a command prints. ``quiet`` leaves findings and differences alone, and the rest of
    those commands that `formats` asks for nothing.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        if outcome.command == "fuse":
            _fused(outcome.files, console, verbose)
        elif outcome.command == "explain":
            tree.show(outcome.files, console, verbose=verbose)
        elif outcome.command == "check":
            listing.show(outcome, console, verbose=verbose, quiet=quiet)
        elif outcome.compared is not None:
            listing.compared(outcome.compared, console, quiet=quiet)
    return re.sub(r" +$", "", captured.get(), flags=re.MULTILINE)  # rich pads what it wraps


def _fused(files: Sequence[Examined], console: Console, verbose: bool) -> None:
    for file in files:
        if file.report is not None:
            show(file.report, console, verbose=verbose)
            if verbose:
                console.print(f"{took(file.stages).capitalize()}.")


def show(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Print regions, totals and verification."""
    if report.regions:
        console.print(_regions(report.regions))
        console.print()
        if verbose:
            _show_expressions(report.regions, console)
        console.print(_totals(report.before, report.after))
        console.print()
    elif report.changed:
        console.print(
            "Nothing to fuse: the output is the input, but for what the switches changed."
        )
    else:
        console.print("Nothing to fuse: the output is the input, byte for byte.")
    _show_refusals(report, console, verbose)
    if report.assumed and report.regions:
        shapes = ", ".join(
            f"{clean(name)}:{','.join(str(n) for n in shape)}"
            for name, shape in report.assumed.items()
        )
        console.print(f"MACs are counted at {shapes} (--input-shape changes that).", soft_wrap=True)
    if report.regions:
        _show_proof(report, console)


def _show_expressions(regions: tuple[RegionReport, ...], console: Console) -> None:
    """What each region computes, ∘ for composition, and the nodes it stood in."""
    for region in regions:
        console.print(Text(clean(region.place), style="bold"))
        console.print(Text(f"  = {clean(region.expression)}"))
        nodes = ", ".join(clean(node) for node in region.nodes)
        console.print(Text(f"  from {nodes}", style="dim"))
        if region.error is not None:
            held = f"differs by {region.error.exact:.1e}, rounding allows {region.error.bound:.1e}"
            console.print(Text(f"  in float64 {held}", style="dim"))
        if region.ranges and region.ranges_after:
            console.print(Text(f"  {spreads(region)}", style="dim"))
    console.print()


def _regions(regions: tuple[RegionReport, ...]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", expand=True)
    table.add_column("Region", overflow="fold", max_width=20)
    table.add_column("Was → became", overflow="fold", ratio=1)
    for title in ("Conv", "MACs", "Params", "Error"):
        table.add_column(title, justify="right", no_wrap=True)
    for region in regions:
        before, after = region.before, region.after
        text = Text(region.was)
        text.append(f" → {region.became}", style="green")
        table.add_row(
            Text(shortened(clean(region.place))),
            text,
            f"{before.conv}→{after.conv}",
            f"{number(before.macs)}→{number(after.macs)}",
            f"{number(before.parameters)}→{number(after.parameters)}",
            _ratio(region),
        )
    return table


def _ratio(region: RegionReport) -> str:
    """The region's RMS error against float64, over the original's own."""
    if region.error is None:
        return ""
    return "exact" if region.error.ratio is None else f"{region.error.ratio:.2f}×"


def _totals(before: Counts, after: Counts) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Total")
    table.add_column("Original", justify="right")
    table.add_column("Fused", justify="right")
    for title, old, new in totals(before, after):
        style = "green" if new < old else ""
        table.add_row(title, f"{old:,}", Text(f"{new:,}", style=style))
    return table


def _show_refusals(report: Report, console: Console, verbose: bool) -> None:
    if not report.refusals:
        return
    shown = report.refusals if verbose else report.refusals[:SHOWN_REFUSALS]
    console.print(Text("Left alone", style="bold"))
    for refusal in shown:
        line = Text(f"  {clean(refusal.place)}: {clean(refusal.text)} ")
        line.append(f"[{refusal.code.value}]", style="yellow")
        console.print(line)
    rest = len(report.refusals) - len(shown)
    if rest:
        console.print(f"  … and {rest} more (-v lists all)")


def _show_proof(report: Report, console: Console) -> None:
    errors = [region.error for region in report.regions if region.error is not None]
    if errors:
        worst = nearest(errors)
        console.print(
            f"Proved {len(errors)} region{'s' * (len(errors) > 1)} in float64: largest difference "
            f"{worst.exact:.1e}, rounding allows {worst.bound:.1e}. Error is the RMS error "
            "against float64, fused over original."
        )
    off = [r.error.border for r in report.regions if r.approximate and r.error is not None]
    if off:
        console.print(
            Text(
                f"{len(off)} region{'s' * (len(off) > 1)} approximate at the border, exact inside: "
                f"there the difference is up to {max(off):.2f} of the output's RMS.",
                style="yellow",
            )
        )
    if report.verification is not None:
        _show_verification(report.verification, console)


def _allowance(output: OutputError) -> str:
    """What an output may differ by, and why."""
    if output.text:
        return f"each element being within the tolerance ({output.text})"
    return f"rounding explains {output.allowed:.1e}"


def _show_verification(found: Verification, console: Console) -> None:
    if found.status == "passed":
        worst = max(
            found.outputs, key=lambda o: o.rms / o.allowed if o.allowed else 0, default=None
        )
        detail = ""
        if worst is not None:
            detail = (
                f": {clean(worst.name)!r} differs by {worst.rms:.1e} relative RMS, "
                f"{_allowance(worst)}"
            )
        runs = " and ".join(clean(run) for run in found.runs)
        console.print(f"Whole model equal in {found.oracle} at {runs}{detail}.")
    elif found.status == "approximate":
        off = max((output.rms for output in found.outputs), default=0.0)
        console.print(
            Text(
                f"Approximate: outputs differ by up to {off:.1e} relative RMS in {found.oracle}, "
                "because borders do.",
                style="yellow",
            )
        )
    elif found.status == "not-run":
        console.print(Text("Whole model not run; the regions' proofs stand.", style="yellow"))
    for note in found.notes:
        console.print(Text(f"  note: {clean(note)}", style="dim"))
