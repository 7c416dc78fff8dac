"""The manifest of a folder of fixtures: what each file is, and why some do not exist.

It knows the standard library alone, so that every exporter's environment can import it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Manifest:
    """``manifest.json`` in ``folder``; entries whose file name is not ``known`` are forgotten."""

    def __init__(self, folder: Path, known: Callable[[str], bool], notes: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.notes = notes
        self._place = folder / "manifest.json"
        before = json.loads(self._place.read_text()) if self._place.exists() else {}
        self._files, self._skipped = (
            {name: entry for name, entry in before.get(key, {}).items() if known(name)}
            for key in ("files", "skipped")
        )

    def skip(self, name: str, reason: str) -> None:
        """Say why a file does not exist."""
        self._forget(name)
        self._skipped[name] = reason
        print(f"{name}: skipped: {reason}", file=sys.stderr, flush=True)

    def put(self, name: str, content: bytes, entry: dict[str, Any], *, write: bool = True) -> None:
        """Write a file (unless it is only described) and its entry."""
        self._forget(name)
        self._files[name] = entry
        if write:
            (self.folder / name).write_bytes(content)
        print(f"{name}: {entry['nodes']} nodes, {len(content)} bytes", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Write the manifest, entries sorted by file name."""
        content = {
            "notes": self.notes,
            "files": dict(sorted(self._files.items())),
            "skipped": dict(sorted(self._skipped.items())),
        }
        self._place.write_text(json.dumps(content, indent=1) + "\n")

    def _forget(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        self._files.pop(name, None)
        self._skipped.pop(name, None)
