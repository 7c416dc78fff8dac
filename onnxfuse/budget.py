"""Budgets: how large a model may be, outright or against a committed baseline."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from onnxfuse import files
from onnxfuse.errors import InputError
from onnxfuse.outcome import Judgement
from onnxfuse.records import Counts

LIMITS = {
    "max-bytes": "bytes",
    "max-params": "parameters",
    "max-macs": "macs",
    "max-nodes": "nodes",
}
"""Options and configuration keys, with the count that each limits."""
SCHEMA = 1
_SUFFIXES = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def amount(value: object, option: str) -> int:
    """A limit in figures: ``200``, ``5.1M``, ``12MB``, ``12MiB``. K is 1000, Ki is 1024.

    >>> amount("5.1M", "max-params"), amount("12MiB", "max-bytes")
    (5100000, 12582912)
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
        return value
    text = str(value).strip().replace("_", "")
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]*)?|\.[0-9]+)\s*([kKMGT]?)(i?)(B?)", text)
    if found is None or isinstance(value, bool) or ("." in text and not found[2]):
        raise InputError(f"{option}: {value!r} is not a size; write 200, 5.1M or 12MB")
    number, suffix, binary, unit = found.groups()
    if (binary or unit) and LIMITS.get(option, "bytes") != "bytes":
        raise InputError(f"{option}: {value!r} counts bytes, but this limit does not")
    base = 1024 if binary else 1000
    return int(Decimal(number) * base ** _SUFFIXES[suffix.upper()])


def growth(value: object, option: str = "max-growth") -> Decimal:
    """A share of growth: ``2%`` is 0.02, ``0`` is none."""
    text = str(value).strip()
    if text == "0":
        return Decimal(0)
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)\s*%", text)
    if found is None:
        raise InputError(f"{option}: {value!r} is not a share; write it as 2%")
    return Decimal(found[1]) / 100


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``most`` of a ``metric``; ``source`` says who asks for it."""

    metric: str
    most: int
    source: str


def judge(counts: Counts, limits: Iterable[Limit]) -> tuple[Judgement, ...]:
    """The limits held against a model's counts. Raises `InputError` for MACs nobody can count."""
    found = []
    for limit in limits:
        if limit.metric == "macs" and counts.uncounted:
            raise InputError(
                f"the MACs of {counts.uncounted} operators cannot be counted, so {limit.source} "
                "cannot be judged: their shapes are unknown (try --input-shape)"
            )
        found.append(
            Judgement(limit.metric, metric(counts, limit.metric), limit.most, limit.source)
        )
    return tuple(found)


def metric(counts: Counts, name: str) -> int:
    """One count by name."""
    return int(asdict(counts)[name])


@dataclass(frozen=True, slots=True)
class Baseline:
    """Counts by model file, as committed; paths are relative to the baseline's directory."""

    path: Path
    models: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)

    def key(self, model: str) -> str:
        return Path(os.path.relpath(Path(model).resolve(), self.home)).as_posix()

    @property
    def home(self) -> Path:
        """The directory that its paths are relative to: that of the file behind any link."""
        return self.path.resolve().parent

    def limits(self, model: str, share: Decimal) -> Iterator[Limit]:
        """How far a model may grow. Raises `InputError` for a model the baseline does not know."""
        known = self.models.get(self.key(model))
        if known is None:
            raise InputError(
                f"{model} is not in the baseline {self.path}; add it with --update-baseline"
            )
        for name in LIMITS.values():
            value = known.get(name)
            if value is not None:
                most = int(value * (1 + share))
                yield Limit(name, most, f"{self.path.name} + {(share * 100).normalize():f}%")

    def updated(self, counted: Mapping[str, Counts]) -> Baseline:
        """The baseline with these models' counts; models whose files are gone are left out."""
        models = {key: values for key, values in self.models.items() if not _gone(self.home / key)}
        for model, counts in counted.items():
            models[self.key(model)] = {
                name: None if name == "macs" and counts.uncounted else metric(counts, name)
                for name in LIMITS.values()
            }
        return Baseline(self.path, dict(sorted(models.items())))

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA, "models": self.models}, indent=2) + "\n"


def read_baseline(path: Path, *, may_be_missing: bool = False) -> Baseline:
    """A committed baseline. Raises `InputError` where it is missing or is not one."""
    if may_be_missing and _gone(path):
        return Baseline(path)
    data = files.read(path, f"the baseline {path}", "; write it with --update-baseline")
    mend = "name another file, or delete it, then write it anew with --update-baseline"
    try:
        held = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the baseline {path} is not JSON ({error}); {mend}") from error
    if not _is_baseline(held):
        raise InputError(f"{path} is not a baseline of schema {SCHEMA}; {mend}")
    return Baseline(path, held["models"])


def _gone(path: Path) -> bool:
    """Whether a file is not there; one that cannot be looked at is."""
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def _is_baseline(held: Any) -> bool:
    if not isinstance(held, dict) or held.get("schema_version") != SCHEMA:
        return False
    models = held.get("models")
    return isinstance(models, dict) and all(
        isinstance(values, dict)
        and all(_is_count(name, values.get(name)) for name in LIMITS.values())
        for values in models.values()
    )


def _is_count(name: str, value: Any) -> bool:
    """Whether a baseline may hold a value; MACs that nobody can count are null."""
    return (value is None and name == "macs") or (type(value) is int and value >= 0)
