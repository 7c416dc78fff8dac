"""The deploy form of a model: every `Block` measured and replaced by one convolution.

The convolution is found by arithmetic alone: unit impulses go in, in float64, and the kernel is
read off the output, so nothing here knows which branches a block has.
"""

from __future__ import annotations

import copy

import torch
from blocks_pytorch import Block
from torch import nn


@torch.no_grad()
def merge(block: Block) -> nn.Conv2d:
    """Return the float64 convolution that `block` equals, measured with unit impulses.

    Away from the borders out(o) = bias + sum W[t] * in(o*stride - padding + t). The zero input
    gives the bias, and an impulse at tap t in the i-th channel of every group gives W[:, i, t],
    because an output sees the channels of its own group only.
    """
    g = block.geometry
    block = copy.deepcopy(block).double().eval()
    (kh, kw), (ph, pw) = g.kernel, g.padding
    # An output position whose taps begin a whole kernel away from the border.
    oy, ox = (-(-(k + p) // g.stride) for k, p in ((kh, ph), (kw, pw)))
    top, left = oy * g.stride - ph, ox * g.stride - pw
    size = (top + 2 * kh, left + 2 * kw)
    zero = torch.zeros(1, g.in_channels, *size, dtype=torch.float64)
    bias = block(zero)[0, :, oy, ox]

    group_width = g.in_channels // g.groups
    weight = torch.zeros(g.out_channels, group_width, kh, kw, dtype=torch.float64)
    for channel in range(group_width):
        impulses = torch.zeros(kh * kw, g.in_channels, *size, dtype=torch.float64)
        for tap in range(kh * kw):
            impulses[tap, channel::group_width, top + tap // kw, left + tap % kw] = 1
        response = block(impulses)[:, :, oy, ox] - bias
        weight[:, channel] = response.T.reshape(g.out_channels, kh, kw)

    has_bias = bool(bias.any())
    merged = nn.Conv2d(
        g.in_channels, g.out_channels, g.kernel, g.stride, g.padding, groups=g.groups, bias=has_bias
    ).double()
    merged.weight.data = weight
    if merged.bias is not None:
        merged.bias.data = bias
    return merged


def deploy(model: nn.Module) -> nn.Module:
    """Return a float64 copy of `model` in which every `Block` is one convolution."""
    merged = copy.deepcopy(model).double().eval()
    for parent in list(merged.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Block):
                setattr(parent, name, merge(child))
    return merged
