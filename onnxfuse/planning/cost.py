"""What an operator costs: multiply-accumulates, kernel parameters, and an estimate of time.

The estimate is in units of one multiply-accumulate of a well-fed core:

    time = max(w · MACs, BYTE_COST · activation bytes)

with ``w = DEPTHWISE`` for depthwise maps, else the waste of padding C/g and O/g to multiples of
`SIMD`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from onnxfuse.algebra.geometry import Geometry

BYTE_COST = 1
"""Of a byte that is read or written."""
SIMD = 16
"""Channels that a core works on at once."""
DEPTHWISE = 3
"""Of a multiply-accumulate of a depthwise map. `tools/bench_cost.py` measures all three."""
UNKNOWN_LENGTH = 32
"""The length assumed where not even a nominal one is known."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts that add up. ``macs`` and ``parameters`` are those of convolution kernels.

    ``depthwise_macs`` and ``depthwise_parameters`` are the part of them that reads one channel.
    """

    macs: int = 0
    parameters: int = 0
    time: int = 0
    depthwise_macs: int = 0
    depthwise_parameters: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.parameters + other.parameters,
            self.time + other.time,
            self.depthwise_macs + other.depthwise_macs,
            self.depthwise_parameters + other.depthwise_parameters,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.macs - other.macs,
            self.parameters - other.parameters,
            self.time - other.time,
            self.depthwise_macs - other.depthwise_macs,
            self.depthwise_parameters - other.depthwise_parameters,
        )

    def without_parameters(self) -> Cost:
        """The cost of an operator whose kernel stays in the file for another one."""
        return Cost(self.macs, 0, self.time, self.depthwise_macs, 0)


@dataclass(frozen=True, slots=True)
class Policy:
    """What may grow where the estimated time falls.

    Neither MACs nor kernel parameters may, but that those of depthwise maps may grow to ``share``
    times what they were: such maps wait for memory, not for arithmetic.
    """

    share: float = 1.0

    def macs(self, new: Cost, old: Cost) -> int:
        """By how many MACs ``new`` exceeds what may stand in place of ``old``."""
        return self._excess(new.macs, new.depthwise_macs, old.macs, old.depthwise_macs)

    def parameters(self, new: Cost, old: Cost) -> int:
        """By how many kernel parameters it does."""
        return self._excess(
            new.parameters, new.depthwise_parameters, old.parameters, old.depthwise_parameters
        )

    def excess(self, new: Cost, old: Cost) -> int:
        """By how much ``new`` breaks the policy; zero where it keeps to it."""
        return self.macs(new, old) + self.parameters(new, old)

    def _excess(self, new: int, new_light: int, old: int, old_light: int) -> int:
        dense_grows = new - new_light > old - old_light
        spare = 0 if dense_grows else int((self.share - 1) * old_light)
        return max(new - old - spare, 0)


POLICIES = {"default": Policy(), "latency": Policy(1.5)}
"""The policies by the name that users give."""


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
        effort = DEPTHWISE * macs
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
    light = fan_in == 1
    parameters = geometry.parameters
    return Cost(macs, parameters, max(effort, moved), macs * light, parameters * light)


def _round_up(channels: int) -> int:
    return -(-channels // SIMD) * SIMD
