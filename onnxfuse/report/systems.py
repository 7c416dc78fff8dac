"""The known blocks: what each comes to, from which exporters; `systems.json` holds the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def table() -> list[Row]:
    """The rows of the table that is shipped."""
    rows: list[Row] = json.loads((Path(__file__).parent.parent / "systems.json").read_text("utf-8"))
    return rows


def matching(rows: Sequence[Row], text: str) -> list[Row]:
    """The rows whose block or systems hold ``text``, whatever its case."""
    wanted = text.casefold()
    return [
        row
        for row in rows
        if wanted in row["block"].casefold() or any(wanted in key for key in row["systems"])
    ]


def brief(row: Row) -> str:
    """What most exports of a block come to, convolutions alone."""
    counts: dict[str, int] = {}
    for system in row["systems"].values():
        for form, kinds in system["becomes"].items():
            counts[_working(form)] = counts.get(_working(form), 0) + len(kinds)
    ordered = sorted(counts, key=lambda form: (-counts[form], form))
    return "; ".join(ordered[:2]) + (f"; {len(ordered) - 2} more" if len(ordered) > 2 else "")


def _working(form: str) -> str:
    """The operators with kernels of a form, or all of it where it has none."""
    parts = [part for part in form.split(", ") if _kerneled(part)]
    return ", ".join(parts) or form


def _kerneled(part: str) -> bool:
    name = part.split(" ", 1)[1] if part[0].isdigit() else part
    return name.startswith(("Conv", "Gemm", "MatMul"))


def page(rows: Sequence[Row]) -> str:
    """The table as a page of Markdown."""
    lines = [
        "# Blocks that are known to fuse",
        "",
        "Each system below is an export in `fixtures/`, and a test holds it to the form it is said",
        "to become.",
        "The table is made by `python tools/list_systems.py`; `onnxfuse systems` prints it.",
        "Other blocks fuse as well: no rule names one.",
        "",
        "| block | origin | becomes | exporters | open sizes |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        opens = "yes" if row["open_sizes"] else ""
        lines.append(
            f"| {row['block']} | {row['origin']} | {brief(row)} | {', '.join(row['exporters'])} "
            f"| {opens} |"
        )
    for row in rows:
        lines += ["", f"## {row['block']}", "", "| system | becomes | kinds |", "|---|---|---|"]
        for key, system in row["systems"].items():
            for form, kinds in system["becomes"].items():
                lines.append(f"| `{key}` | {form} | {', '.join(kinds)} |")
        whys = {
            f"`{key}`: {system['why']}" + _missing(system)
            for key, system in row["systems"].items()
            if "why" in system
        }
        lines += ["", *(f"- {why}" for why in sorted(whys))] if whys else []
    return "\n".join(lines) + "\n"


def _missing(system: Row) -> str:
    """What stands in the way of the form that is stated, if something does."""
    return f" (not reached yet: {system['missing']})" if "missing" in system else ""


def show(rows: Sequence[Row], *, details: bool) -> str:
    """The table for a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    found = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    found.add_column("System" if details else "Block", overflow="fold")
    found.add_column("Becomes", overflow="fold")
    found.add_column("Exports" if details else "Exporters", overflow="fold")
    for row in rows:
        if not details:
            found.add_row(row["block"], brief(row), ", ".join(row["exporters"]))
            continue
        for key, system in row["systems"].items():
            for form, kinds in system["becomes"].items():
                found.add_row(key, form + _missing(system), ", ".join(kinds))
    with console.capture() as captured:
        console.print(found)
        if not details:
            console.print(
                "\nEach is backed by exports and their tests; onnxfuse systems NAME lists them. "
                "Other blocks fuse as well: no rule names one."
            )
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
