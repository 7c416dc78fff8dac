"""What a fuzz run met: models, operators, laws, refusals and failures, added up over processes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from checking import Outcome

from onnxfuse import describe
from onnxfuse.algebra import commuting, joining, laws, layouts, maps, padding, reshaping
from onnxfuse.planning import forward
from onnxfuse.refusal import Refusal

_ROOMS = (laws, joining, padding, maps, layouts, reshaping, commuting)
LAWS = sorted(
    name
    for room in _ROOMS
    for name, law in vars(room).items()
    if isinstance(law, type) and law.__module__ == room.__name__ and "apply" in vars(law)
    if law is not laws.Law
)
"""The laws of the algebra by name."""


@dataclass
class Tally:
    """Counts of one run or of a part of it.

    ``proved`` counts steps of fused regions by law; ``accepted`` and ``refused`` how often a law
    was tried while plans were looked for.
    """

    totals: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    proved: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    broken: list[int] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in the counts of another part."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                mine.extend(theirs)

    def count(self, outcome: Outcome) -> None:
        """Count what one seed met."""
        self.totals["made"] += 1
        self.totals["invalid"] += not outcome.valid
        self.totals["runs compared"] += outcome.runs
        self.totals["runs with empty tensors left out"] += outcome.empty
        if outcome.report is None:
            return
        self.totals["fused"] += outcome.report.changed
        self.codes.update(str(refusal.code) for refusal in outcome.report.refusals)
        for one in outcome.report.regions:
            self.totals["regions"] += 1
            self.totals["merges of several Conv"] += one.before.conv > one.after.conv > 0
            for part in one.was.split(", "):
                count, _, name = part.rpartition(" ")
                self.operators[name] += int(count or 1)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count laws where plans try them, and once more where a region is fused and proved."""
        apply, described = forward.applied, describe.region

        def applied(law: Any, *arguments: Any) -> Any:
            result = apply(law, *arguments)
            met = self.refused if isinstance(result, Refusal) else self.accepted
            met[type(law).__name__] += 1
            return result

        def proved(replacement: Any, problem: Any, error: Any, *, read: bool) -> Any:
            if error is not None:
                steps = replacement.region.interior
                self.proved.update(type(step.law).__name__ for step in steps)
            return described(replacement, problem, error, read=read)

        with (
            mock.patch.object(forward, "applied", applied),
            mock.patch.object(describe, "region", proved),
        ):
            yield

    def rare(self, least: int) -> list[str]:
        """The laws that were accepted fewer than ``least`` times."""
        return [law for law in LAWS if self.accepted[law] < least]

    def lines(self) -> Iterator[str]:
        """The counts as they are printed."""
        for title, counter in (
            ("models", self.totals),
            ("operators in fused regions", self.operators),
            ("refusals", self.codes),
        ):
            yield f"{title}: {_listed(counter.most_common())}"
        yield "laws (in fused regions, accepted, refused while planning):"
        for law in LAWS:
            yield f"  {law} {self.proved[law]}, {self.accepted[law]}, {self.refused[law]}"
        yield f"failures: {_listed(self.failures.most_common())}"
        if self.broken:
            yield f"failing seeds: {' '.join(map(str, sorted(self.broken)))}"


def _listed(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts) or "none"
