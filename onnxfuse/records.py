"""What fusing reports: frozen records with a dictionary form. They know no other room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxfuse.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Counts:
    """Operators and work. ``macs`` counts Conv, ConvTranspose, Gemm and MatMul."""

    nodes: int
    conv: int
    batch_normalization: int
    parameters: int
    macs: int
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class RegionError:
    """How far a region stands from float64, measured on seeded normal inputs.

    ``exact`` is the largest difference between the original region and its replacement with
    unrounded weights, both in float64, and ``bound`` what rounding allows there.
    ``rms_original`` and ``rms_fused`` are the relative RMS errors of the two in the model's own
    arithmetic; ``sizes`` are the input shapes tried. Where an approximation at the border was
    asked for, all of these speak of the interior, and ``border`` is the RMS of the difference at
    the border over that of the output.
    """

    exact: float
    bound: float
    rms_original: float
    rms_fused: float
    sizes: tuple[tuple[int, ...], ...]
    border: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Fused over original; ``None`` where the original has no error."""
        return self.rms_fused / self.rms_original if self.rms_original > 0 else None


@dataclass(frozen=True, slots=True)
class RegionReport:
    """One region: the tensor it computes, its nodes, and what they became.

    ``constant`` says how a constant that varies in space is written: map, plane or channel;
    ``approximate``, that the region equals the original in the interior alone.
    """

    root: str
    node: str
    nodes: tuple[str, ...]
    was: str
    became: str
    expression: str
    before: Counts
    after: Counts
    error: RegionError | None = None
    constant: str = ""
    approximate: bool = False


@dataclass(frozen=True, slots=True)
class OutputError:
    """A tensor of the whole-model run: relative RMS difference, and what is allowed."""

    name: str
    rms: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Verification:
    """The whole-model run: ``status`` is passed, approximate, skipped or not-run.

    ``notes`` say why. An approximate run only measures: its outputs differ as far as borders do.
    """

    status: str
    runs: tuple[str, ...] = ()
    outputs: tuple[OutputError, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What was done to a model, or would be (``planned``)."""

    version: str
    planned: bool
    regions: tuple[RegionReport, ...]
    refusals: tuple[Refusal, ...]
    before: Counts
    after: Counts
    verification: Verification | None = None
    assumed: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return bool(self.regions)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, ready for JSON."""
        result = asdict(self)
        result["changed"] = self.changed
        for region, record in zip(result["regions"], self.regions, strict=True):
            if record.error is not None:
                region["error"]["ratio"] = record.error.ratio
        for refusal, value in zip(result["refusals"], self.refusals, strict=True):
            refusal["code"] = value.code.value
        result["assumed"] = {name: list(shape) for name, shape in self.assumed.items()}
        return result

    def __str__(self) -> str:
        verb = "would be fused" if self.planned else "fused"
        lines = [f"{len(self.regions)} region(s) {verb}, {len(self.refusals)} place(s) left alone"]
        lines += [f"  {r.node}: {r.was} -> {r.became}" for r in self.regions]
        lines += [f"  {refusal}" for refusal in self.refusals]
        lines.append(
            f"  Conv {self.before.conv} -> {self.after.conv}, "
            f"nodes {self.before.nodes} -> {self.after.nodes}, "
            f"MACs {self.before.macs:,} -> {self.after.macs:,}, "
            f"parameters {self.before.parameters:,} -> {self.after.parameters:,}"
        )
        return "\n".join(lines)
