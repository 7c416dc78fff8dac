"""Configuration: ``[tool.onnxfuse]`` of a pyproject.toml, or a TOML file of its own.

Every key is known or refused with a suggestion. Paths are relative to the file they stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxfuse import files
from onnxfuse.budget import LIMITS, Limit, amount, growth
from onnxfuse.errors import InputError
from onnxfuse.version import FORMATS, POLICIES


@dataclass(frozen=True, slots=True)
class Rule:
    """Limits of the models whose paths match ``path``, a glob relative to ``base``."""

    path: str
    base: Path
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one file by key, checked; ``rules`` are its budgets."""

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()


def find(start: Path) -> Path | None:
    """The nearest pyproject.toml with a ``[tool.onnxfuse]`` table, from ``start`` upwards."""
    for folder in (start, *start.parents):
        place = folder / "pyproject.toml"
        try:
            held = place.is_file()
        except OSError as error:
            raise InputError(
                f"whether there is a configuration {place} cannot be told: {error.strerror}; "
                "name one with --config, or pass --isolated"
            ) from error
        if held and "onnxfuse" in _tools(_parsed(place)):
            return place
    return None


def load(path: Path) -> Config:
    """The configuration in a file. Raises `InputError` for anything it cannot mean."""
    held = _parsed(path)
    table: Any = held
    where = str(path)
    if path.name == "pyproject.toml" or "tool" in held:
        where = f"{path} [tool.onnxfuse]"
        table = _tools(held).get("onnxfuse")
        if table is None:
            raise InputError(f"{path} has no [tool.onnxfuse] table")
    if not isinstance(table, dict):
        raise InputError(f"{where} is not a table")
    values = _checked({k: v for k, v in table.items() if k != "budget"}, KEYS, where, ["budget"])
    rules = table.get("budget", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise InputError(f"{where}: budget is a list of tables; write [[tool.onnxfuse.budget]]")
    if values.get("no-fusible") and values.get("budget-only"):
        raise InputError(
            f"{where}: no-fusible and budget-only together judge nothing; leave one of them out"
        )
    base = path.resolve().parent
    if "baseline" in values:
        values["baseline"] = str(base / values["baseline"])
    return Config(path, values, tuple(_rule(rule, base, f"{where} budget") for rule in rules))


def _parsed(path: Path) -> dict[str, Any]:
    import tomllib

    data = files.read(path, f"the configuration {path}")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the configuration {path} is not TOML ({error}); mend it, or pass --isolated"
        ) from error


def _tools(held: Mapping[str, Any]) -> Mapping[str, Any]:
    tools = held.get("tool")
    return tools if isinstance(tools, dict) else {}


def _rule(table: Mapping[str, Any], base: Path, where: str) -> Rule:
    found = _checked(table, {"path": _text} | _SIZES, where, [])
    if "path" not in found:
        raise InputError(f'{where}: a budget needs a path, as in path = "models/*.onnx"')
    limits = [
        Limit(metric, found[key], f"{key} of {found['path']}")
        for key, metric in LIMITS.items()
        if key in found
    ]
    if not limits:
        raise InputError(
            f"{where} of {found['path']!r} sets no limit; it takes {', '.join(LIMITS)}"
        )
    return Rule(found["path"], base, tuple(limits))


Check = Callable[[Any, str], Any]


def _checked(
    table: Mapping[str, Any], keys: Mapping[str, Check], where: str, others: list[str]
) -> dict[str, Any]:
    found = {}
    for key, value in table.items():
        if key not in keys:
            import difflib

            near = difflib.get_close_matches(key.replace("_", "-"), [*keys, *others], 1)
            known = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(keys)}"
            raise InputError(f"{where} has no key {key!r}; {known}")
        try:
            found[key] = keys[key](value, key)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return found


def _flag(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{key} is true or false, not {value!r}")
    return value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{key} is a text, not {value!r}")
    return value


def _texts(value: Any, key: str) -> list[str]:
    many = [value] if isinstance(value, str) else value
    if not isinstance(many, list) or not all(isinstance(text, str) for text in many):
        raise InputError(f"{key} is a list of texts, not {value!r}")
    return many


def _format(value: Any, key: str) -> str:
    if value not in FORMATS:
        raise InputError(f"{key} is one of {', '.join(FORMATS)}, not {value!r}")
    return str(value)


def _policy(value: Any, key: str) -> str:
    if value not in POLICIES:
        raise InputError(f"{key} is one of {', '.join(POLICIES)}, not {value!r}")
    return str(value)


def _bytes(value: Any, key: str) -> Any:
    amount(value, key)
    return value


def _growth(value: Any, key: str) -> str:
    growth(value, key)
    return str(value)


_SIZES: dict[str, Check] = dict.fromkeys(LIMITS, amount)
KEYS: dict[str, Check] = {
    "only": _texts,
    "except": _texts,
    "input-shape": _texts,
    "approximate-borders": _flag,
    "keep-post-bn": _flag,
    "policy": _policy,
    "freeze-initializers": _flag,
    "assume-inference": _flag,
    "verify": _flag,
    "external-data": _text,
    "external-data-threshold": _bytes,
    "format": _format,
    "no-fusible": _flag,
    "budget-only": _flag,
    "baseline": _text,
    "max-growth": _growth,
    **_SIZES,
}
"""What a configuration may say, each with the check of its value."""


def current(chosen: str | None, *, isolated: bool) -> Config:
    """The configuration to use: the one named, else the nearest; none where ``isolated``."""
    if chosen is not None:
        return load(Path(chosen))
    try:
        here = Path.cwd()
    except OSError as error:
        raise InputError(
            f"the working directory cannot be used: {error.strerror}; change to another"
        ) from error
    found = None if isolated else find(here)
    return Config() if found is None else load(found)
