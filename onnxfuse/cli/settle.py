"""What a command line leaves open, filled from the configuration behind it."""

from __future__ import annotations

import argparse
import os

from onnxfuse import config


def settle(chosen: argparse.Namespace) -> config.Config:
    """Fill what the command line leaves open from the configuration; returns the latter.

    ``chosen.typed`` keeps the names of the options that the command line gave, ``chosen.source``
    where the others stand.
    """
    found = config.current(chosen.config, isolated=chosen.isolated)
    chosen.source = os.path.relpath(found.path) if found.path is not None else ""
    chosen.typed = {name for name, value in vars(chosen).items() if value not in (None, [], False)}
    values = dict(found.values)
    if "verify" in values:
        values["no-verify"] = not values.pop("verify")
    if getattr(chosen, "no_fusible", None) or getattr(chosen, "budget_only", None):
        values.pop("no-fusible", None)
        values.pop("budget-only", None)
    names = {"except": "without"}
    for key, value in values.items():
        name = names.get(key, key.replace("-", "_"))
        if name in chosen and getattr(chosen, name) in (None, []):
            setattr(chosen, name, value)
    if chosen.format is None:
        chosen.format = "text"
    return found
