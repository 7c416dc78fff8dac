"""Blocks of plain convolutions: parallel branches, weights built in the graph, other ranks.

Written from their papers; `blocks_pytorch` has RepVGG, ACNet, DBB, MobileOne and their kin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from blocks_field import Concat, PadFirst, Scale, Shift, Size, Sum, conv, depthwise
from torch import Tensor, nn


def ring(rank: int, kernel: int) -> list[tuple[int, ...]]:
    """Return the kernels that are flat but along one axis: (3, 1, 1), (1, 3, 1), (1, 1, 3)."""
    return [tuple(kernel if a == b else 1 for a in range(rank)) for b in range(rank)]


def repvgg(
    in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, rank: int = 2
) -> Sum:
    """RepVGG (arXiv 2101.03697) at any rank: 3+BN, 1+BN and, where shapes allow, a BN."""
    branches: list[nn.Module] = [
        conv(in_channels, out_channels, k, stride, groups=groups, rank=rank) for k in (3, 1)
    ]
    if in_channels == out_channels and stride == 1:
        branches.append((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1](in_channels))
    return Sum(branches)


def acnet(in_channels: int, out_channels: int, kernel: int, rank: int) -> Sum:
    """ACNet (arXiv 1908.03930) at any rank: the full kernel and one flat kernel for each axis.

    On one axis a flat kernel is the full one, so a shorter and a pointwise kernel stand there.
    """
    flat: list[tuple[int, ...]] = [(3,), (1,)] if rank == 1 else ring(rank, kernel)
    kernels: list[Size] = [(kernel,) * rank, *flat]
    return Sum(conv(in_channels, out_channels, k, rank=rank) for k in kernels)


class SqueezeExcite(nn.Module):
    """A gate from the mean of each channel (arXiv 1709.01507)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, inner, 1)
        self.up = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(F.relu(self.down(gate))))


def qarepvgg(channels: int, pool: bool) -> Sum:
    """QARepVGG (arXiv 2212.01593, YOLOv6): 3x3+BN, bare 1x1, x, maybe a pool, then a BN."""
    branches: list[nn.Module] = [
        conv(channels, channels, 3),
        conv(channels, channels, 1, bn=False),
        nn.Identity(),
    ]
    if pool:
        branches.append(nn.AvgPool2d(3, 1, 1))
    return Sum(branches, nn.BatchNorm2d(channels))


def yolonas(channels: int) -> Sum:
    """YOLO-NAS's QARepVGG: 3x3+BN, a learned scalar times a 1x1 with bias, x, then a BN."""
    scaled = nn.Sequential(conv(channels, channels, 1, bn=False, bias=True), Scale())
    return Sum([conv(channels, channels, 3), scaled, nn.Identity()], nn.BatchNorm2d(channels))


def linear_add(channels: int) -> Sum:
    """RepOptimizer's target structure (arXiv 2205.15242): each branch scaled, one BN behind."""
    scaled = [
        nn.Sequential(conv(channels, channels, k, bn=False), Scale(1, channels, 1, 1))
        for k in (3, 1)
    ]
    return Sum([*scaled, Scale(1, channels, 1, 1)], nn.BatchNorm2d(channels))


def implicit_head(channels: int, out_channels: int) -> nn.Sequential:
    """YOLOv7's detection head (arXiv 2207.02696): ImplicitA, a 1x1, ImplicitM."""
    return nn.Sequential(
        Shift(1, channels, 1, 1),
        nn.Conv2d(channels, out_channels, 1),
        Scale(1, out_channels, 1, 1),
    )


def ppyoloe(in_channels: int, out_channels: int) -> Sum:
    """PP-YOLOE's RepVggBlock (arXiv 2203.16250): 3x3+BN and a learned scalar times 1x1+BN."""
    scaled = nn.Sequential(conv(in_channels, out_channels, 1), Scale(1))
    return Sum([conv(in_channels, out_channels, 3), scaled])


def textnet(in_channels: int, out_channels: int, kernel: tuple[int, int], stride: int = 1) -> Sum:
    """TextNet's block (FAST, arXiv 2111.02394): the kernel, its two flat parts, a BN."""
    kernels = dict.fromkeys([kernel, (kernel[0], 1), (1, kernel[1])])
    branches: list[nn.Module] = [
        conv(in_channels, out_channels, k, stride) for k in kernels if k != (1, 1)
    ]
    if in_channels == out_channels and stride == 1:
        branches.append(nn.BatchNorm2d(in_channels))
    return Sum(branches)


class EdgeBranch(nn.Module):
    """A 1x1 whose border holds its bias, then a fixed depthwise mask times a learned scale."""

    def __init__(self, channels: int, mask: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        fixed = torch.tensor(mask).repeat(channels, 1, 1, 1)
        self.mask = nn.Parameter(fixed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.pointwise(x), [1, 1, 1, 1])
        assert self.pointwise.bias is not None
        border = self.pointwise.bias.view(1, -1, 1, 1)
        y[:, :, 0:1, :] = border
        y[:, :, -1:, :] = border
        y[:, :, :, 0:1] = border
        y[:, :, :, -1:] = border
        return F.conv2d(y, self.scale * self.mask, self.bias, groups=y.shape[1])


SOBEL_X = [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]
SOBEL_Y = [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]
LAPLACIAN = [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]


def ecb(channels: int, masks: Sequence[Sequence[Sequence[float]]]) -> nn.Sequential:
    """ECBSR's edge block (ACM MM 2021): 3x3, the edge branches, x, then PReLU."""
    branches = [EdgeBranch(channels, mask) for mask in masks]
    full = conv(channels, channels, 3, bn=False, bias=True)
    return nn.Sequential(Sum([full, *branches, nn.Identity()]), nn.PReLU(channels))


class OnlineConv(nn.Module):
    """OREPA (arXiv 2204.00826): the branches meet in the weights, before any convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 3, 3))
        self.weight_point = nn.Parameter(torch.zeros(out_channels, in_channels))
        self.weight_pool = nn.Parameter(torch.zeros(out_channels, in_channels))
        self.weight_first = nn.Parameter(torch.zeros(in_channels, in_channels))
        self.weight_second = nn.Parameter(torch.zeros(out_channels, in_channels, 3, 3))
        self.scales = nn.Parameter(torch.ones(4, out_channels))
        pool = torch.full((3, 3), 1 / 9)
        centre = F.pad(torch.ones(1, 1), [1, 1, 1, 1])
        self.pool = nn.Parameter(pool, requires_grad=False)
        self.centre = nn.Parameter(centre, requires_grad=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.weight,
            torch.einsum("oi,hw->oihw", self.weight_point, self.centre),
            torch.einsum("oi,hw->oihw", self.weight_pool, self.pool),
            torch.einsum("ti,othw->oihw", self.weight_first, self.weight_second),
        )
        kernel = torch.zeros_like(self.weight)
        for index, branch in enumerate(branches):
            kernel = kernel + torch.einsum("oihw,o->oihw", branch, self.scales[index])
        return cast("Tensor", self.bn(F.conv2d(x, kernel, padding=1)))


def conv3xc(channels: int, gain: int) -> Sum:
    """SPAN's Conv3XC (arXiv 2311.12770): a 1x1, and zeros around x, then 1x1, 3x3, 1x1."""
    wide = channels * gain
    serial = nn.Sequential(
        PadFirst(1),
        conv(channels, wide, 1, bn=False, bias=True),
        conv(wide, wide, 3, padding=0, bn=False, bias=True),
        conv(wide, channels, 1, bn=False, bias=True),
    )
    return Sum([conv(channels, channels, 1, bn=False, bias=True), serial])


def vanilla_stem(in_channels: int, channels: int) -> nn.Sequential:
    """VanillaNet's stem (arXiv 2305.12972) after training: the inner activation has slope 1."""
    return nn.Sequential(
        conv(in_channels, channels, 4, stride=4, padding=0),
        nn.LeakyReLU(1.0),
        conv(channels, channels, 1),
    )


def vanilla_block(channels: int) -> nn.Sequential:
    """VanillaNet's block: 1x1, a LeakyReLU of slope 1, 1x1, a pool, the series activation."""
    return nn.Sequential(
        conv(channels, channels, 1),
        nn.LeakyReLU(1.0),
        conv(channels, channels, 1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        depthwise(channels, 3),
    )


def slak(channels: int, long: int, short: int) -> Sum:
    """SLaK (arXiv 2207.03620): two depthwise strips and a small square."""
    kernels = [(long, short), (short, long), (short, short)]
    return Sum(depthwise(channels, k) for k in kernels)


def some_pay(channels: int) -> Sum:
    """Return dense 3x3 and 1x1 beside a large depthwise kernel: only the dense ones merge."""
    return Sum([conv(channels, channels, 3), conv(channels, channels, 1), depthwise(channels, 7)])


def dense_chain(*channels: int, middle: int = 3) -> nn.Sequential:
    """Return 1x1, middle, 1x1 without activations, a BN behind each."""
    first, second, third, fourth = channels
    return nn.Sequential(
        conv(first, second, 1), conv(second, third, middle, padding=0), conv(third, fourth, 1)
    )


def side_by_side(channels: int, kernels: Sequence[int]) -> Concat:
    """Return parallel convolutions of one input into one Concat."""
    return Concat(conv(channels, channels, k) for k in kernels)


def split_transform(channels: int) -> Concat:
    """Return two halves, each with its own 3x3, side by side again."""
    half = channels // 2
    return Concat([conv(half, half, 3), conv(half, half, 3)], (half, half))


def chunk_conv(channels: int, strip: int) -> Concat:
    """InceptionNeXt's mixer (arXiv 2303.16900): x, a square and two strips, on pieces of x."""
    piece = channels // 4
    kernels = ((3, 3), (1, strip), (strip, 1))
    return Concat([nn.Identity(), *(depthwise(piece, k) for k in kernels)], (piece,) * 4)


def deconv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    padding: int = 0,
    longer: int = 0,
    groups: int = 1,
    bias: bool = False,
) -> nn.ConvTranspose2d:
    """Return a transposed convolution of stride 2, `longer` by so many rows at the end."""
    return nn.ConvTranspose2d(
        in_channels, out_channels, kernel, 2, padding, longer, groups=groups, bias=bias
    )


def detection_head(channels: int) -> nn.Sequential:
    """DB's head (arXiv 1911.08947): ConvTranspose, a bias of its own, BN; twice."""
    return nn.Sequential(
        deconv(channels, channels, 2),
        Shift(1, channels, 1, 1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        deconv(channels, 1, 2),
        Shift(1, 1, 1, 1),
        nn.BatchNorm2d(1),
        nn.Sigmoid(),
    )


def deconv_sum(in_channels: int, out_channels: int, *shapes: tuple[int, int, int]) -> Sum:
    """Return parallel ones, given as (kernel, padding, longer), a BN behind each."""
    return Sum(
        nn.Sequential(deconv(in_channels, out_channels, *shape), nn.BatchNorm2d(out_channels))
        for shape in shapes
    )
