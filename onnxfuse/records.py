"""What fusing reports: frozen records with a dictionary form. They know no other room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onnxfuse.refusal import ADVICE, Refusal


@dataclass(frozen=True, slots=True)
class Counts:
    """Operators and work. ``macs`` counts Conv, ConvTranspose, Gemm and MatMul.

    Below the main graph each of them counts as one run of its body, those of a function once for
    each call. ``uncounted`` are those whose work is not in ``macs``: their shapes are unknown.
    """

    nodes: int
    conv: int
    batch_normalization: int
    parameters: int
    macs: int
    bytes: int = 0
    uncounted: int = 0


@dataclass(frozen=True, slots=True)
class RegionError:
    """How far a region stands from float64, measured on seeded normal inputs.

    ``exact`` is the largest difference between the original region and its replacement with
    unrounded weights, both in float64, and ``bound`` what rounding allows there.
    ``rms_original`` and ``rms_fused`` are the relative RMS errors of the two in the model's own
    arithmetic; ``sizes`` are the input shapes tried. Where an approximation at the border was
    asked for, all of these speak of the interior, and ``border`` is the RMS of the difference at
    the border over that of the output. ``scale`` is the RMS of the output itself.
    """

    exact: float
    bound: float
    rms_original: float
    rms_fused: float
    sizes: tuple[tuple[int, ...], ...]
    border: float = 0.0
    scale: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Fused over original; ``None`` where the original has no error."""
        return self.rms_fused / self.rms_original if self.rms_original > 0 else None


@dataclass(frozen=True, slots=True)
class Operator:
    """A node as it is drawn: ``detail`` is its window and channels, ``inputs`` its data inputs."""

    name: str
    kind: str
    detail: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """The range of a kernel's output channels: ``max |w|`` of each, least, median and largest."""

    kernel: str
    least: float
    median: float
    largest: float

    @property
    def ratio(self) -> float | None:
        """Largest over median: what one scale for the whole tensor costs the usual channel."""
        return self.largest / self.median if self.median > 0 else None


def placed(node: str, scope: str) -> str:
    """A node with the body that it stands in.

    >>> placed("conv", "then_branch of If 'if_3'")
    "conv (then_branch of If 'if_3')"
    """
    return f"{node} ({scope})" if scope else node


@dataclass(frozen=True, slots=True)
class RegionReport:
    """One region: the tensor it computes, its nodes, and what they became.

    ``constant`` says how a constant that varies in space is written: map, plane, channel, shift;
    ``approximate``, that the region equals the original in the interior alone. ``estimate`` is
    the estimated time of the new operators over that of the old; ``drawn`` and ``drawn_after``
    are the operators before and after, ``ranges`` and ``ranges_after`` their kernels' ranges
    (empty in a plan, which reads no kernel). ``scope`` says which body the region stands in; it is
    empty in the main graph.
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
    estimate: float | None = None
    drawn: tuple[Operator, ...] = ()
    drawn_after: tuple[Operator, ...] = ()
    ranges: tuple[Spread, ...] = ()
    ranges_after: tuple[Spread, ...] = ()
    scope: str = ""

    @property
    def place(self) -> str:
        """The node, and where it is."""
        return placed(self.node, self.scope)

    def to_dict(self) -> dict[str, Any]:
        """The region as a row of the JSON report; ``status`` is fused."""
        error = None if self.error is None else asdict(self.error) | {"ratio": self.error.ratio}
        return {
            "root": self.root,
            "node": self.node,
            "scope": self.scope or None,
            "status": "fused",
            "reason": None,
            "nodes": list(self.nodes),
            "was": self.was,
            "became": self.became,
            "expression": self.expression,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "estimate": self.estimate,
            "error": error,
            "constant": self.constant or None,
            "approximate": self.approximate,
            "ranges": {
                "before": [asdict(spread) for spread in self.ranges],
                "after": [asdict(spread) for spread in self.ranges_after],
            },
        }


@dataclass(frozen=True, slots=True)
class Kept(Refusal):
    """A linear place that was left alone: a refusal with the tensor it stands at.

    ``drawn`` are the operators of the merge that was refused, or the node alone; ``scope`` the
    body it stands in, empty in the main graph.
    """

    root: str = ""
    drawn: tuple[Operator, ...] = ()
    scope: str = ""

    @property
    def place(self) -> str:
        """The node, and where it is."""
        return placed(self.node, self.scope)

    @property
    def advice(self) -> str:
        return ADVICE[self.code]

    def __str__(self) -> str:
        return f"{self.place}: {self.text} [{self.code}]"

    def to_dict(self) -> dict[str, Any]:
        """The place as a row of the JSON report; ``status`` is kept."""
        return {
            "root": self.root,
            "node": self.node,
            "scope": self.scope or None,
            "status": "kept",
            "reason": {"code": self.code.value, "text": self.text, "advice": self.advice},
            "nodes": [operator.name for operator in self.drawn],
            "was": None,
            "became": None,
            "expression": self.expression,
            "before": None,
            "after": None,
            "estimate": None,
            "error": None,
            "constant": None,
            "approximate": False,
            "ranges": {"before": [], "after": []},
        }


@dataclass(frozen=True, slots=True)
class OutputError:
    """A tensor of the whole-model run: relative RMS difference, and what is allowed.

    Where a tolerance was given, every element was held against it, ``text`` says which, and
    ``allowed`` is the relative RMS of a difference that reaches it everywhere.
    """

    name: str
    rms: float
    allowed: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """The whole-model run: ``status`` is passed, approximate, skipped or not-run.

    ``notes`` say why. An approximate run only measures: its outputs differ as far as borders do.
    ``oracle`` is what computed both models, with its version; empty where nothing did.
    """

    status: str
    runs: tuple[str, ...] = ()
    outputs: tuple[OutputError, ...] = ()
    notes: tuple[str, ...] = ()
    oracle: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """One output of two models that are compared.

    ``rms`` is the difference relative to A in the slice of the output that is nearest to its
    bound, ``allowed`` what it may be there, ``largest`` the greatest absolute difference anywhere.
    For integers, booleans and text ``rms`` and ``allowed`` are fractions of elements. ``text`` says
    where, and what else there is to know (a shape, a type, a missing output, how many elements are
    beyond a given tolerance, ``allowed`` being 0 then).
    """

    name: str
    equal: bool
    rms: float = 0.0
    largest: float = 0.0
    allowed: float = 0.0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether two models compute the same: ``status`` is equal, different or not-run.

    ``runs`` are the input shapes tried; ``notes`` say why something was not compared.
    """

    status: str
    runs: tuple[str, ...] = ()
    outputs: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What was done to a model, or would be (``planned``).

    ``frozen`` are the weights that were taken out of the inputs and ``inference`` the nodes that
    were taken to inference mode, where that was asked for; ``notes`` say so in words.
    ``overridable`` counts the weights that callers may override.
    """

    version: str
    planned: bool
    regions: tuple[RegionReport, ...]
    refusals: tuple[Kept, ...]
    before: Counts
    after: Counts
    verification: Verification | None = None
    assumed: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    inference: tuple[str, ...] = ()
    overridable: int = 0
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.regions or self.frozen or self.inference)

    def of(self, scope: str) -> Report:
        """The part that speaks of one body, or of the main graph."""
        return replace(
            self,
            regions=tuple(region for region in self.regions if region.scope == scope),
            refusals=tuple(kept for kept in self.refusals if kept.scope == scope),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, ready for JSON; `report/schema.json` describes them."""
        return {
            "planned": self.planned,
            "changed": self.changed,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "regions": [r.to_dict() for r in self.regions] + [r.to_dict() for r in self.refusals],
            "verification": None if self.verification is None else asdict(self.verification),
            "assumed": {name: list(shape) for name, shape in self.assumed.items()},
            "frozen": list(self.frozen),
            "inference": list(self.inference),
            "overridable": self.overridable,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        verb = "would be fused" if self.planned else "fused"
        lines = [f"{len(self.regions)} region(s) {verb}, {len(self.refusals)} place(s) left alone"]
        lines += [f"  {r.place}: {r.was} -> {r.became}" for r in self.regions]
        lines += [f"  {refusal}" for refusal in self.refusals]
        lines += [f"  {note}" for note in self.notes]
        lines.append(
            f"  Conv {self.before.conv} -> {self.after.conv}, "
            f"nodes {self.before.nodes} -> {self.after.nodes}, "
            f"MACs {self.before.macs:,} -> {self.after.macs:,}, "
            f"parameters {self.before.parameters:,} -> {self.after.parameters:,}"
        )
        return "\n".join(lines)
