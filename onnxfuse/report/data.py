"""The JSON report. `schema.json` beside this file describes it; the version says which one."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite
from typing import Any

from onnxfuse.outcome import Compared, Examined, Failure, Outcome

SCHEMA = 1


def to_json(outcome: Outcome, *, verbose: bool = False) -> str:
    """An outcome as one JSON document, the same for the same models every time.

    ``verbose`` adds the times, which are not.
    """
    found = document(outcome, verbose=verbose)
    return json.dumps(_plain(found), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: a number that is not finite becomes null."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value


def document(outcome: Outcome, *, verbose: bool = False) -> dict[str, Any]:
    """An outcome as plain dictionaries and lists.

    ``fuse`` and ``explain`` speak of one model, whose keys stand at the top; ``check`` has a list
    of such models under ``files``; ``verify`` has the outputs of its two models.
    """
    found: dict[str, Any] = {
        "schema_version": SCHEMA,
        "onnxfuse": outcome.version,
        "command": outcome.command,
        "exit_code": int(outcome.code),
    }
    if outcome.compared is not None:
        return found | _compared(outcome.compared)
    files = [_examined(file, verbose) for file in outcome.files]
    return found | ({"files": files} if outcome.command == "check" else files[0])


def _examined(file: Examined, verbose: bool) -> dict[str, Any]:
    held: dict[str, Any] = {
        "planned": None,
        "changed": None,
        "before": None,
        "after": None,
        "regions": [],
        "verification": None,
        "assumed": {},
        "frozen": [],
        "inference": [],
        "overridable": 0,
        "notes": [],
    }
    if file.report is not None:
        held = file.report.to_dict()
    budgets = [asdict(budget) | {"exceeded": budget.exceeded} for budget in file.budgets]
    times = {"stages": dict(file.stages)} if verbose else {}
    return {
        "path": file.path,
        "output": file.output,
        "status": _STATUS[int(file.code)],
        "error": _error(file.failure),
        "fusible": len(file.fusible) if file.gate else None,
        "budgets": budgets,
        **held,
        **times,
    }


_STATUS = {0: "fine", 1: "finding", 2: "unusable", 3: "unproved"}


def _error(failure: Failure | None) -> dict[str, Any] | None:
    return None if failure is None else {"code": int(failure.code), "message": failure.message}


def _compared(found: Compared) -> dict[str, Any]:
    held = found.equivalence
    return {
        "left": found.left,
        "right": found.right,
        "status": "not-run" if held is None else held.status,
        "error": _error(found.failure),
        "runs": [] if held is None else list(held.runs),
        "outputs": [] if held is None else [asdict(out) for out in held.outputs],
        "notes": [] if held is None else list(held.notes),
    }
