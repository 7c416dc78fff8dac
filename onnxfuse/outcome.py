"""What a command found, for every format alike: files, verdicts, and the exit code they mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from onnxfuse.records import Equivalence, RegionReport, Report


class Exit(IntEnum):
    """Exit codes, the same for every command and format."""

    FINE = 0
    FINDING = 1
    USAGE = 2
    UNPROVED = 3
    INTERRUPTED = 130


_OUTRANKS = (Exit.INTERRUPTED, Exit.USAGE, Exit.UNPROVED, Exit.FINDING, Exit.FINE)


def worst(codes: Iterable[Exit]) -> Exit:
    """The code that stands for several: unusable input, then unproved, then a finding.

    >>> worst([Exit.FINDING, Exit.UNPROVED]).name
    'UNPROVED'
    """
    return min(codes, key=_OUTRANKS.index, default=Exit.FINE)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file could not be judged: one line, and the exit code it means."""

    code: Exit
    message: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """A budget held against a model: ``actual`` may be at most ``limit``.

    ``metric`` is bytes, parameters, macs or nodes; ``source`` says where the limit stands.
    """

    metric: str
    actual: int
    limit: int
    source: str

    @property
    def exceeded(self) -> bool:
        return self.actual > self.limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of a result: ``status`` is passed, failed, error or noted."""

    file: str
    name: str
    status: str
    text: str


@dataclass(frozen=True, slots=True)
class Examined:
    """One model: its report, the budgets held against it, or why it could not be judged.

    ``gate`` says that a region which could be fused is a finding. ``stages`` are the seconds
    that each stage took, ``recorded`` the baseline that its sizes are written to.
    """

    path: str
    report: Report | None = None
    budgets: tuple[Judgement, ...] = ()
    failure: Failure | None = None
    output: str | None = None
    gate: bool = False
    stages: Mapping[str, float] = field(default_factory=dict)
    recorded: str = ""

    @property
    def seconds(self) -> float:
        """The time taken."""
        return sum(self.stages.values())

    @property
    def code(self) -> Exit:
        if self.failure is not None:
            return self.failure.code
        return Exit.FINDING if self.fusible or self.exceeded else Exit.FINE

    @property
    def fusible(self) -> tuple[RegionReport, ...]:
        """Regions that a check found unfused."""
        return self.report.regions if self.gate and self.report is not None else ()

    @property
    def exceeded(self) -> tuple[Judgement, ...]:
        return tuple(budget for budget in self.budgets if budget.exceeded)


@dataclass(frozen=True, slots=True)
class Compared:
    """Two models and whether they are equivalent, or why that could not be told."""

    left: str
    right: str
    equivalence: Equivalence | None = None
    failure: Failure | None = None

    @property
    def code(self) -> Exit:
        if self.failure is not None:
            return self.failure.code
        assert self.equivalence is not None
        codes = {"equal": Exit.FINE, "different": Exit.FINDING}
        return codes.get(self.equivalence.status, Exit.UNPROVED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything a command found; ``command`` is fuse, check, explain or verify."""

    command: str
    files: tuple[Examined, ...] = ()
    compared: Compared | None = None
    version: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def code(self) -> Exit:
        codes = [file.code for file in self.files]
        return worst([*codes, self.compared.code] if self.compared is not None else codes)

    @property
    def failures(self) -> tuple[str, ...]:
        """The errors, each with the file it is about where several were asked for."""
        found = [(file.path, file.failure) for file in self.files]
        if self.compared is not None:
            found.append(("", self.compared.failure))
        return tuple(
            failure.message
            if len(found) < 2 or path in failure.message
            else f"{path}: {failure.message}"
            for path, failure in found
            if failure is not None
        )

    def verdicts(self) -> Iterator[Verdict]:
        """The result line by line, as continuous integration wants it."""
        for file in self.files:
            yield from _verdicts(file)
        if self.compared is not None:
            yield from _compared(self.compared)


def _verdicts(file: Examined) -> Iterator[Verdict]:
    if file.failure is not None:
        yield Verdict(file.path, "model", "error", file.failure.message)
        return
    regions = file.report.regions if file.report is not None else ()
    for region in regions:
        change = f"{region.was} → {region.became}"
        if file.gate:
            change += " is exact and cheaper; run onnxfuse on the model"
        yield Verdict(
            file.path, f"region {region.place}", "failed" if file.gate else "noted", change
        )
    if file.gate and file.report is not None and not regions:
        yield Verdict(file.path, "nothing left to fuse", "passed", "")
    for budget in file.budgets:
        yield Verdict(
            file.path,
            f"{budget.metric} within {budget.source}",
            "failed" if budget.exceeded else "passed",
            f"{budget.actual:,} {budget.metric}, at most {budget.limit:,} allowed",
        )
    if file.report is not None and file.report.verification is not None:
        yield from _verified(file.path, file.report)


def _verified(path: str, report: Report) -> Iterator[Verdict]:
    found = report.verification
    assert found is not None
    status = "passed" if found.status == "passed" else "noted"
    text = f"{found.status} in {found.oracle}" if found.oracle else found.status
    yield Verdict(path, "whole model", status, text)


def _compared(found: Compared) -> Iterator[Verdict]:
    place = found.right
    if found.failure is not None:
        yield Verdict(place, f"equivalent to {found.left}", "error", found.failure.message)
        return
    assert found.equivalence is not None
    if found.equivalence.status == "not-run":
        text = "; ".join(found.equivalence.notes) or "not run"
        yield Verdict(place, f"equivalent to {found.left}", "error", text)
    for output in found.equivalence.outputs:
        text = output.text or f"differs by {output.rms:.3g}, rounding explains {output.allowed:.3g}"
        yield Verdict(place, f"output {output.name}", "passed" if output.equal else "failed", text)
