"""Which files a command line means: names, globs, directories, and the configured paths."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from onnxfuse.config import Rule
from onnxfuse.errors import InputError
from onnxfuse.outcome import Examined, Exit, Failure


def models(inputs: Sequence[str], rules: Sequence[Rule]) -> tuple[list[str], list[Examined]]:
    """The models to check, each once, and what was named but stands for none."""
    if "" in inputs:
        raise InputError("an empty name stands for no model")
    named = [(text, _matches(text)) for text in inputs]
    if not named:
        for rule in rules:
            found = [os.path.relpath(path) for path in _matches(rule.path, rule.base)]
            named.append((os.path.relpath(rule.base / rule.path), found))
    if not named:
        raise InputError("no model is named and no budget is configured; see onnxfuse check --help")
    files: dict[str, str] = {}
    for _, found in named:
        for path in found:
            files.setdefault(os.path.realpath(path), path)
    return list(files.values()), [_missing(text) for text, found in named if not found]


def meant(path: str, rule: Rule) -> bool:
    """Whether a model is one of a rule's."""
    place = os.path.realpath(path)
    return any(os.path.realpath(match) == place for match in _matches(rule.path, rule.base))


def _matches(text: str, base: Path = Path()) -> list[str]:
    """The files that a name, a glob or a directory stands for, in order."""
    place = base / text
    if place.is_file():
        return [str(place)]
    if place.is_dir():
        return sorted(str(found) for found in place.rglob("*.onnx") if found.is_file())
    if not glob.has_magic(text):
        return []
    prefix = "" if base == Path() else f"{glob.escape(str(base))}/"
    found = glob.glob(prefix + text, recursive=True)  # noqa: PTH207 - it takes absolute globs
    return sorted(path for path in found if Path(path).is_file())


def _missing(text: str) -> Examined:
    reason = f"{text} does not exist"
    if glob.has_magic(text):
        reason = f"no file matches {text}"
    elif Path(text).is_dir():
        reason = f"the directory {text} holds no .onnx file"
    return Examined(text, failure=Failure(Exit.USAGE, reason))
