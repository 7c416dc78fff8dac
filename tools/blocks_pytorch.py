"""Training-time re-parameterizable blocks, written from their papers.

A `Block` is a module that is an affine map of its input and equals one convolution; its
`geometry` says which one. This file knows torch and nothing of ONNX or of merging.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]


def pair(value: int | Pair) -> Pair:
    """Return (vertical, horizontal) from one number or two."""
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True)
class Geometry:
    """The convolution that a block equals; `padding` is the same at both ends of an axis."""

    in_channels: int
    out_channels: int
    kernel: Pair
    stride: int = 1
    padding: Pair = (0, 0)
    groups: int = 1


class Block(nn.Module):
    """The sum of branches, each an affine map of the same input, then an optional BN.

    `from_zero` starts the sum at a literal zero, as MobileOne does. It is a float here: an
    exporter keeps `0.0 + x` as an Add of a constant, and drops the `0 + x` of integers.
    """

    def __init__(
        self,
        geometry: Geometry,
        branches: Iterable[nn.Module],
        post: nn.Module | None = None,
        from_zero: bool = False,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.branches = nn.ModuleList(branches)
        self.post = post
        self.from_zero = from_zero

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        total = 0.0 + outputs[0] if self.from_zero else outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total if self.post is None else cast("Tensor", self.post(total))


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int | Pair,
    stride: int = 1,
    padding: int | Pair = 0,
    groups: int = 1,
    dilation: int = 1,
    bn: bool = True,
) -> nn.Sequential:
    """Return a convolution without bias, followed by a BN unless `bn` is false."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
    ]
    if bn:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)


def conv_block(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    bn: bool = True,
) -> Block:
    """Return a block of one "same"-padded convolution branch."""
    padding = kernel // 2
    geometry = Geometry(in_channels, out_channels, pair(kernel), stride, pair(padding), groups)
    branch = conv(in_channels, out_channels, kernel, stride, padding, groups, bn=bn)
    return Block(geometry, [branch])


def two_conv3x3(channels: int) -> Block:
    """Return the smallest case: two parallel 3x3 convolutions, each with BN."""
    geometry = Geometry(channels, channels, (3, 3), padding=(1, 1))
    return Block(geometry, [conv(channels, channels, 3, padding=1) for _ in range(2)])


def repvgg(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> Block:
    """RepVGG (arXiv 2101.03697): 3x3+BN, 1x1+BN and, where shapes allow, an identity BN."""
    branches: list[nn.Module] = [
        conv(in_channels, out_channels, 3, stride, 1, groups),
        conv(in_channels, out_channels, 1, stride, 0, groups),
    ]
    if in_channels == out_channels and stride == 1:
        branches.append(nn.BatchNorm2d(in_channels))
    geometry = Geometry(in_channels, out_channels, (3, 3), stride, (1, 1), groups)
    return Block(geometry, branches)


class Crop(nn.Module):
    """Take `rows` rows off the top and the bottom, `columns` columns off both sides."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows = rows
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        if self.rows:
            x = x[:, :, self.rows : -self.rows, :]
        if self.columns:
            x = x[:, :, :, self.columns : -self.columns]
        return x


def acnet(
    in_channels: int,
    out_channels: int,
    kernel: int,
    padding: int | None = None,
    stride: int = 1,
    groups: int = 1,
    shared_bn: bool = False,
) -> Block:
    """ACNet (arXiv 1908.03930): kxk + kx1 + 1xk, a BN in each branch or one after the sum.

    Where `padding` is less than k//2 the flat branches read a cropped input instead of a
    padded one, so that their taps lie on the middle row and column of the square kernel.
    """
    half = kernel // 2
    pad = half if padding is None else padding
    crop, edge = max(half - pad, 0), max(pad - half, 0)
    flat_branches = [
        (Crop(0, crop), (kernel, 1), (pad, edge)),
        (Crop(crop, 0), (1, kernel), (edge, pad)),
    ]
    bn = not shared_bn
    branches: list[nn.Module] = [
        conv(in_channels, out_channels, kernel, stride, pad, groups, bn=bn)
    ]
    for cropped, shape, pads in flat_branches:
        flat = conv(in_channels, out_channels, shape, stride, pads, groups, bn=bn)
        branches.append(nn.Sequential(cropped, flat) if crop else flat)
    post = nn.BatchNorm2d(out_channels) if shared_bn else None
    geometry = Geometry(in_channels, out_channels, pair(kernel), stride, pair(pad), groups)
    return Block(geometry, branches, post)


class BNAndPad(nn.Module):
    """A BN, then a border holding the BN's response to zero.

    With it, padding after a 1x1+BN equals padding before it: a padded zero that went through
    the BN would come out as beta - mean*gamma/sqrt(var + eps), not as zero.
    """

    def __init__(self, channels: int, pad: int, affine: bool = True) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, affine=affine)
        self.pad = pad

    def zero_response(self) -> Tensor:
        """Return the BN of zero, of shape (channels,)."""
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert var is not None
        deviation = torch.sqrt(var + self.bn.eps)
        if not self.bn.affine:
            return -mean / deviation
        return self.bn.bias.detach() - mean * self.bn.weight.detach() / deviation

    def forward(self, x: Tensor) -> Tensor:
        y = cast("Tensor", self.bn(x))
        p = self.pad
        if p == 0:
            return y
        y = F.pad(y, [p, p, p, p])
        border = self.zero_response().view(1, -1, 1, 1)
        y[:, :, 0:p, :] = border
        y[:, :, -p:, :] = border
        y[:, :, :, 0:p] = border
        y[:, :, :, -p:] = border
        return y


class IdentityPlusConv1x1(nn.Module):
    """A 1x1 convolution whose kernel is the identity plus a learned part.

    The identity is a plain tensor, neither parameter nor buffer, so that the TorchScript exporter
    without constant folding writes Conv(w = Add(initializer, Constant)).
    """

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        width = channels // groups
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(channels, width, 1, 1))
        self.identity = torch.eye(width).repeat(groups, 1)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + self.identity, groups=self.groups)


def dbb(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    identity_1x1: bool = False,
    affine: bool = True,
) -> Block:
    """Diverse Branch Block (arXiv 2103.13425): kxk; 1x1; 1x1-AvgPool; 1x1-kxk.

    A depthwise block has no 1x1 branch, its pool reads the input directly, and its 1x1-kxk
    branch is twice as wide. `affine` concerns the BNs inside the BNAndPad layers.
    """
    pad = kernel // 2
    depthwise = groups == in_channels == out_channels
    inner = 2 * in_channels if depthwise else in_channels
    square = conv(in_channels, out_channels, kernel, stride, pad, groups)
    if depthwise:
        pool: list[nn.Module] = [nn.AvgPool2d(kernel, stride, pad)]
        narrow: list[nn.Module] = []
    else:
        pool = [
            *conv(in_channels, out_channels, 1, groups=groups, bn=False),
            BNAndPad(out_channels, pad, affine),
            nn.AvgPool2d(kernel, stride, 0),
        ]
        narrow = [conv(in_channels, out_channels, 1, stride, 0, groups)]
    if identity_1x1:
        first: nn.Module = IdentityPlusConv1x1(in_channels, groups)
    else:
        first = nn.Conv2d(in_channels, inner, 1, groups=groups, bias=False)
    serial = [
        first,
        BNAndPad(inner, pad, affine),
        *conv(inner, out_channels, kernel, stride, 0, groups),
    ]
    branches = [
        square,
        *narrow,
        nn.Sequential(*pool, nn.BatchNorm2d(out_channels)),
        nn.Sequential(*serial),
    ]
    geometry = Geometry(in_channels, out_channels, pair(kernel), stride, pair(pad), groups)
    return Block(geometry, branches)


def bsconv_u(in_channels: int, out_channels: int, bn: bool) -> nn.Sequential:
    """BSConv-U (arXiv 2003.13549): pointwise, [BN], depthwise 3x3, BN; merged stage by stage."""
    return nn.Sequential(
        conv_block(in_channels, out_channels, 1, bn=bn),
        conv_block(out_channels, out_channels, 3, groups=out_channels),
    )


def bsconv_s(in_channels: int, out_channels: int, bn: bool) -> nn.Sequential:
    """BSConv-S: the pointwise of BSConv-U as a product of rank `in_channels // 4`."""
    rank = in_channels // 4
    return nn.Sequential(
        conv_block(in_channels, rank, 1, bn=bn),
        conv_block(rank, out_channels, 1, bn=bn),
        conv_block(out_channels, out_channels, 3, groups=out_channels),
    )


def mobileone(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> Block:
    """MobileOne (arXiv 2206.04040): identity BN, 1x1 scale (if k > 1) and three kxk branches."""
    branches: list[nn.Module] = []
    if in_channels == out_channels and stride == 1:
        branches.append(nn.BatchNorm2d(in_channels))
    if kernel > 1:
        branches.append(conv(in_channels, out_channels, 1, stride, 0, groups))
    pad = kernel // 2
    branches += [conv(in_channels, out_channels, kernel, stride, pad, groups) for _ in range(3)]
    geometry = Geometry(in_channels, out_channels, pair(kernel), stride, pair(pad), groups)
    return Block(geometry, branches, from_zero=True)


def dilated_depthwise(channels: int, branches: Sequence[Pair]) -> Block:
    """Return the sum of depthwise branches, given as (kernel, dilation), the largest first.

    RepLKNet (arXiv 2203.06717) has (13, 1) and (5, 1); UniRepLKNet (arXiv 2311.15599) adds
    dilated kernels whose extent d(k-1)+1 is at most the large kernel's.
    """
    largest = branches[0][0]
    layers = [
        conv(channels, channels, k, padding=d * (k - 1) // 2, groups=channels, dilation=d)
        for k, d in branches
    ]
    geometry = Geometry(
        channels, channels, pair(largest), padding=pair(largest // 2), groups=channels
    )
    return Block(geometry, layers)


class Residual(nn.Module):
    """ResNet's basic block (arXiv 1512.03385): relu(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def head(channels: int, classes: int) -> nn.Sequential:
    """Return global average pooling and a linear classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def repvgg_a0(widths: Sequence[int], classes: int) -> nn.Sequential:
    """Return a network of RepVGG-A0's depth: a stem, then stages of 2, 4, 14 and 1 blocks."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in zip(widths, (1, 2, 4, 14, 1), strict=True):
        for index in range(depth):
            layers += [repvgg(channels, width, 2 if index == 0 else 1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, head(channels, classes))


def dbb_resnet18(widths: Sequence[int], classes: int) -> nn.Sequential:
    """Return a ResNet-18 whose sixteen 3x3 convolutions in its blocks are DBBs."""
    layers: list[nn.Module] = [
        conv_block(3, widths[0], 7, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = widths[0]
    for stage, width in enumerate(widths):
        for index in range(2):
            stride = 2 if stage > 0 and index == 0 else 1
            body = nn.Sequential(dbb(channels, width, 3, stride), nn.ReLU(), dbb(width, width))
            same = stride == 1 and channels == width
            layers.append(Residual(body, None if same else conv_block(channels, width, 1, stride)))
            channels = width
    return nn.Sequential(*layers, head(channels, classes))


def fill(model: nn.Module, seed: int, gain: float) -> None:
    """Give every layer seeded weights and every BN statistics of a trained look, in place.

    A convolution's weights have the variance gain/fan_in. The gain decides whether a deep stack
    still tells two inputs apart: too little and the BN biases drown them, too much and the
    activations explode.
    """
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=rng)
            module.running_var.uniform_(0.5, 1.5, generator=rng)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=rng)
                module.bias.data.normal_(0, 0.3, generator=rng)
        elif isinstance(module, nn.Conv2d | nn.Linear | IdentityPlusConv1x1):
            fan_in = math.prod(module.weight.shape[1:])
            module.weight.data.normal_(0, math.sqrt(gain / fan_in), generator=rng)
        if isinstance(module, nn.Linear):
            module.bias.data.normal_(0, 0.3, generator=rng)
