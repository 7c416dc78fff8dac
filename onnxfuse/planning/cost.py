"""What an operator costs: multiply-accumulates, kernel parameters, and an estimate of time.

The estimate is in units of one multiply-accumulate of a well-fed core:

    time = max(w · MACs, 5 · activation bytes)

with ``w = 2`` for depthwise maps, else the waste of padding C/g and O/g to multiples of 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from onnxfuse.algebra.geometry import Geometry

BYTE_COST = 5
SIMD = 16
UNKNOWN_LENGTH = 32
"""The length assumed where not even a nominal one is known."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts that add up. ``macs`` and ``parameters`` are those of convolution kernels."""

    macs: int = 0
    parameters: int = 0
    time: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs, self.parameters + other.parameters, self.time + other.time
        )


def passes(*element_counts: int, itemsize: int) -> Cost:
    """An elementwise operator that reads and writes tensors of these sizes."""
    return Cost(time=BYTE_COST * itemsize * sum(element_counts))


def bias(one_pass: Cost) -> Cost:
    """The Add of a bias behind a MatMul, of which some runtimes make one kernel."""
    return Cost(time=one_pass.time * 3 // 4)


def convolution(
    geometry: Geometry, lengths: Sequence[int], batch: int, itemsize: int, *, pool: bool = False
) -> Cost:
    """A Conv of ``geometry`` over an input of ``lengths``; a pool has no kernel to count."""
    out_lengths = [max(n or 0, 1) for n in geometry.lengths(tuple(lengths))]
    positions = batch * prod(out_lengths)
    if geometry.transposed:  # each position of the input is spread by the whole kernel
        positions = batch * prod(lengths)
    macs = geometry.parameters * positions
    fan_in = geometry.in_channels // geometry.groups
    fan_out = geometry.out_channels // geometry.groups
    if fan_in == 1:
        effort = 2 * macs
    else:
        padded = _round_up(fan_in) * _round_up(fan_out) * geometry.groups
        effort = padded * prod(geometry.taps) * positions
    seen = [
        min(n, p * axis.taps) if axis.taps < axis.stride else n
        for n, p, axis in zip(lengths, out_lengths, geometry.axes, strict=True)
    ]
    read = batch * geometry.in_channels * prod(seen)
    moved = BYTE_COST * itemsize * (read + batch * geometry.out_channels * prod(out_lengths))
    if pool:
        return Cost(time=max(effort, moved))
    return Cost(macs, geometry.parameters, max(effort, moved))


def _round_up(channels: int) -> int:
    return -(-channels // SIMD) * SIMD
