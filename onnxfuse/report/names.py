"""Names and numbers as people read them; a name from a model is never trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnxfuse.records import Counts, RegionError, RegionReport, Spread


def clean(name: str) -> str:
    """A name from a model, safe to print: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def shortened(name: str, limit: int = 40) -> str:
    """A long name with its middle left out; ``-v`` prints names whole."""
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-limit // 2 :]}"


def number(value: int) -> str:
    """Three significant digits with a suffix: 1.29M."""
    for size, suffix in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return (
                f"{value / size:.3g}{suffix}" if value < 999 * size else f"{value // size}{suffix}"
            )
    return str(value)


def plural(count: int, word: str) -> str:
    """``1 region``, ``2 regions``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def took(stages: Mapping[str, float]) -> str:
    """``took 0.531 s: imports 0.212, read 0.001, …``."""
    parts = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in stages.items())
    return f"took {sum(stages.values()):.3f} s: {parts}"


def totals(before: Counts, after: Counts) -> Iterator[tuple[str, int, int]]:
    """The counts of a model by title, before and after."""
    yield "Nodes", before.nodes, after.nodes
    yield "Conv", before.conv, after.conv
    yield "BatchNormalization", before.batch_normalization, after.batch_normalization
    yield "Parameters", before.parameters, after.parameters
    yield "MACs", before.macs, after.macs
    yield "File size (bytes)", before.bytes, after.bytes


def spreads(region: RegionReport) -> str:
    """How wide the kernels' output channels spread before and after, as quantisation sees it."""
    before, after = (_widest(held) for held in (region.ranges, region.ranges_after))
    return f"widest channel ÷ median of max |w|: {before} → {after}"


def _widest(held: tuple[Spread, ...]) -> str:
    known = [spread.ratio for spread in held if spread.ratio is not None]
    return f"{max(known):.2f}" if known else "–"


def nearest(errors: Sequence[RegionError]) -> RegionError:
    """The error that is nearest to what rounding allows."""
    return max(errors, key=lambda error: error.exact / error.bound if error.bound else error.exact)
