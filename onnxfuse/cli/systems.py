"""``onnxfuse systems [NAME]`` prints the blocks that are known to fuse."""

from __future__ import annotations

import argparse
import json

from onnxfuse.cli import streams
from onnxfuse.outcome import Exit


def run(chosen: argparse.Namespace) -> Exit:
    """Print the table, or the part of it that holds a name."""
    from onnxfuse.report.systems import matching, page, show, table

    rows = matching(table(), chosen.name)
    if not rows:
        streams.tell(
            "error",
            f"no block or system holds {chosen.name!r}; onnxfuse systems lists them, and others "
            "fuse as well: try onnxfuse explain on the model",
        )
        return Exit.USAGE
    texts = {
        "json": lambda: json.dumps(rows, indent=1, ensure_ascii=False) + "\n",
        "markdown": lambda: page(rows),
        "text": lambda: show(rows, details=bool(chosen.name)),
    }
    lost = streams.write(texts[chosen.format], chosen.format)
    if lost:
        streams.tell("error", f"stdout cannot be written: {lost}; send it elsewhere")
        return Exit.USAGE
    return Exit.FINE
