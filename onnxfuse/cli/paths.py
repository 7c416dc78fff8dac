"""Which files a command line means: names, globs, directories, and the configured paths."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from onnxfuse.config import Rule
from onnxfuse.errors import InputError
from onnxfuse.outcome import Examined, Exit, Failure


@dataclass(frozen=True, slots=True)
class Meant:
    """The models to check, each once; the names that cannot be used; the models of each rule."""

    files: tuple[str, ...]
    unusable: tuple[Examined, ...]
    ruled: tuple[tuple[Rule, frozenset[str]], ...]

    def rules(self, model: str) -> list[Rule]:
        """The rules that speak of a model."""
        place = os.path.realpath(model)
        return [rule for rule, places in self.ruled if place in places]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a name stands for: files in order, and by place why some of them are not known."""

    files: list[str]
    failures: dict[str, str]

    @property
    def unusable(self) -> Iterator[Examined]:
        for place, reason in self.failures.items():
            yield Examined(place, failure=Failure(Exit.USAGE, reason))


def models(inputs: Sequence[str], rules: Sequence[Rule]) -> Meant:
    """What is named, or else configured. A rule whose path means no file at all fails with it."""
    if "" in inputs:
        raise InputError("an empty name stands for no model")
    if not inputs and not rules:
        raise InputError("no model is named and no budget is configured; see onnxfuse check --help")
    configured = [_configured(rule) for rule in rules]
    named = [_found(text, text) for text in inputs] or configured
    unusable = [one for found in named for one in found.unusable]
    if inputs:
        unusable += (one for found in configured if not found.files for one in found.unusable)
    files: dict[str, str] = {}
    for found in named:
        for path in found.files:
            files.setdefault(os.path.realpath(path), path)
    return Meant(
        tuple(files.values()),
        tuple({one.path: one for one in unusable}.values()),
        tuple(
            (rule, frozenset(map(os.path.realpath, found.files)))
            for rule, found in zip(rules, configured, strict=True)
        ),
    )


def _configured(rule: Rule) -> _Found:
    """What a rule's path means, as seen from the working directory."""
    found = _found(rule.path, os.path.relpath(rule.base / rule.path), rule.base)
    hint = "; mend the path of this budget in the configuration"
    failures = {path: reason + hint for path, reason in found.failures.items()}
    return _Found([os.path.relpath(path) for path in found.files], failures)


def _found(path: str, text: str, base: Path = Path()) -> _Found:
    """The files that a name, a glob or a directory stands for; ``text`` is what to call it."""
    place = base / path
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        mode = 0
    except OSError as error:
        return _Found([], {text: f"{text} cannot be read: {error.strerror}"})
    if stat.S_ISREG(mode):
        return _Found([str(place)], {})
    if stat.S_ISDIR(mode):
        return _beneath(text, place)
    if mode:
        return _Found([], {text: f"{text} is not a regular file"})
    if glob.has_magic(path):
        return _matching(path, text, base)
    return _Found([], {text: f"{text} does not exist"})


def _beneath(text: str, place: Path) -> _Found:
    """The models in a directory, however deep."""
    errors: list[OSError] = []
    files = [
        os.path.join(folder, name)  # noqa: PTH118 - of thousands
        for folder, _, names in os.walk(place, onerror=errors.append)
        for name in names
        if name.endswith(".onnx")
    ]
    files = sorted(path for path in files if _usable(path))
    failures = _unreadable(errors)
    if not files and not failures:
        failures = {text: f"the directory {text} holds no .onnx file"}
    return _Found(files, failures)


def _matching(path: str, text: str, base: Path) -> _Found:
    """The files of a glob. What it cannot look into is no less a failure than in a directory."""
    fixed = base.joinpath(*takewhile(lambda part: not glob.has_magic(part), Path(path).parts))
    pattern = Path(glob.escape(str(base))) / path  # an absolute path stands for itself
    errors: list[OSError] = []
    for _, folders, _ in os.walk(fixed, onerror=errors.append):
        folders[:] = [name for name in folders if "**" in path and not name.startswith(".")]
    found = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - it takes absolute globs
    files = sorted(path for path in found if _usable(path))
    failures = _unreadable(errors)
    if not files and not failures:
        failures = {text: f"no file matches {text}"}
    return _Found(files, failures)


def _usable(path: str) -> bool:
    """Whether a path is a regular file, or cannot be asked: reading it will say why."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - of thousands
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _unreadable(errors: Sequence[OSError]) -> dict[str, str]:
    return {
        str(error.filename): f"the directory {error.filename} cannot be read: {error.strerror}"
        for error in errors
        if not isinstance(error, FileNotFoundError | NotADirectoryError)
    }
