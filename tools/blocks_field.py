"""The parts that the blocks of `fixtures/field` are made of, and how they get their weights.

This file knows torch and nothing of ONNX or of merging. Parameters are named by what they are:
`weight…` has a fan-in, `bias` and `shift` are added, every other one is a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, ...]
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def conv(
    in_channels: int,
    out_channels: int,
    kernel: Size,
    stride: Size = 1,
    padding: Size | None = None,
    groups: int = 1,
    dilation: Size = 1,
    bn: bool = True,
    bias: bool = False,
    rank: int = 2,
) -> nn.Sequential:
    """Return a convolution, "same"-padded unless `padding` is given, and its BN."""
    if padding is None:
        kernels = kernel if isinstance(kernel, tuple) else (kernel,) * rank
        padding = tuple(k // 2 for k in kernels)
    layer = CONVS[rank - 1](
        in_channels,
        out_channels,
        kernel,  # one number or one for each axis
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    return nn.Sequential(layer, NORMS[rank - 1](out_channels)) if bn else nn.Sequential(layer)


def depthwise(channels: int, kernel: Size, stride: Size = 1, **settings: bool) -> nn.Sequential:
    """Return a depthwise convolution and its BN."""
    return conv(channels, channels, kernel, stride, groups=channels, **settings)


class Sum(nn.Module):
    """The sum of branches that read the same input, and what follows it."""

    def __init__(self, branches: Iterable[nn.Module], post: nn.Module | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.post = nn.Identity() if post is None else post

    def forward(self, x: Tensor) -> Tensor:
        total = reduce(torch.add, [branch(x) for branch in self.branches])
        return cast("Tensor", self.post(total))


class Concat(nn.Module):
    """The outputs of branches that read the same input, or a piece of it each, side by side."""

    def __init__(self, branches: Iterable[nn.Module], pieces: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        inputs = torch.split(x, self.pieces, 1) if self.pieces else [x] * len(self.branches)
        return torch.cat([f(part) for f, part in zip(self.branches, inputs, strict=True)], 1)


class Scale(nn.Module):
    """A learned factor of the given shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Shift(nn.Module):
    """A learned summand of the given shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Rearranged(nn.Module):
    """`body` between a rearrangement and its way back."""

    def __init__(
        self,
        there: Callable[[Tensor], Tensor],
        body: nn.Module,
        back: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.there, self.body, self.back = there, body, back

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.body(self.there(x)))


class PadFirst(nn.Module):
    """Zeros around the input, before anything else reads it."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, [self.pad] * 4)


def fill(model: nn.Module, seed: int, gain: float) -> None:
    """Give every layer seeded weights and every BN statistics of a trained look, in place.

    Weights have the variance gain/fan_in. Parameters that need no gradient are part of the block.
    """
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, NORMS):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=rng)
            module.running_var.uniform_(0.5, 1.5, generator=rng)
            module.weight.data.uniform_(0.5, 1.5, generator=rng)
            module.bias.data.normal_(0, 0.3, generator=rng)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name.startswith("weight"):
                fan_in = math.prod(parameter.shape[1:])
                parameter.data.normal_(0, math.sqrt(gain / fan_in), generator=rng)
            elif name in ("bias", "shift"):
                parameter.data.normal_(0, 0.3, generator=rng)
            else:
                parameter.data.uniform_(0.5, 1.5, generator=rng)
