"""Blocks of mobile networks: depthwise mixers, scalar affines around activations, gates.

Written from their papers.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from blocks_field import Rearranged, Scale, Shift, Sum, conv, depthwise
from torch import Tensor, nn


def mobileone(
    channels: int, kernel: int | tuple[int, int], branches: int, stride: int = 1, groups: int = 1
) -> Sum:
    """MobileOne (arXiv 2206.04040): identity BN, 1x1 (where k > 1) and kxk branches."""
    layers: list[nn.Module] = [nn.BatchNorm2d(channels)] if stride == 1 else []
    if kernel != 1:
        layers.append(conv(channels, channels, 1, stride, groups=groups))
    layers += [conv(channels, channels, kernel, stride, groups=groups) for _ in range(branches)]
    return Sum(layers)


class Residual(nn.Module):
    """x plus a body, scaled per channel where `gamma` says so."""

    def __init__(self, channels: int, body: nn.Module, gamma: bool = False) -> None:
        super().__init__()
        self.body = body
        self.gamma = Scale(channels, 1, 1) if gamma else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + cast("Tensor", self.gamma(self.body(x)))


class RepMixer(nn.Module):
    """FastViT's token mixer (arXiv 2303.14189): x + gamma * (mixer(x) - BN(x))."""

    def __init__(self, channels: int, kernel: int | tuple[int, int]) -> None:
        super().__init__()
        self.mixer = mobileone(channels, kernel, 1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * (self.mixer(x) - self.norm(x))


def text_mixer(channels: int, kernel: int) -> Rearranged:
    """MobileCLIP's text mixer (arXiv 2311.17049): tokens (B, T, C) as rows of one pixel."""
    return Rearranged(
        lambda x: x.transpose(1, 2).unsqueeze(2),
        RepMixer(channels, (1, kernel)),
        lambda y: y.squeeze(2).transpose(1, 2),
    )


def position_encoding(channels: int) -> Sum:
    """FastViT's conditional position encoding: a depthwise 7x7 with bias, and x."""
    return Sum([depthwise(channels, 7, bn=False, bias=True), nn.Identity()])


def patch_embedding(channels: int) -> nn.Sequential:
    """FastViT's patch embedding: a strided large kernel that doubles the channels, then a 1x1."""
    wide = 2 * channels
    large = Sum(conv(channels, wide, k, 2, groups=channels) for k in (7, 3))
    return nn.Sequential(large, nn.GELU(), mobileone(wide, 1, 1))


def feed_forward(channels: int) -> Residual:
    """FastViT's FFN: depthwise 7x7+BN, 1x1, GELU, 1x1, the layer scale, x."""
    body = nn.Sequential(
        depthwise(channels, 7),
        conv(channels, 2 * channels, 1, bn=False, bias=True),
        nn.GELU(),
        conv(2 * channels, channels, 1, bn=False, bias=True),
    )
    return Residual(channels, body, gamma=True)


def repvit(channels: int) -> Sum:
    """RepViT's token mixer (arXiv 2307.09283): BN(depthwise 3x3+BN, 1x1 with bias, x)."""
    pointwise = depthwise(channels, 1, bn=False, bias=True)
    branches = [depthwise(channels, 3), pointwise, nn.Identity()]
    return Sum(branches, nn.BatchNorm2d(channels))


def two_depthwise(channels: int, *kernels: int) -> Sum:
    """Return parallel depthwise kernels, as RepVGGDW of YOLOv10 (arXiv 2405.14458) has them."""
    return Sum(depthwise(channels, k) for k in kernels)


def affine() -> nn.Sequential:
    """Return a learned scalar factor and summand (LAB of HGNetV2 and PP-LCNetV3)."""
    return nn.Sequential(Scale(1), Shift(1))


def light_layer(
    channels: int, kernel: int, stride: int | tuple[int, int] = 1, groups: int = 1
) -> nn.Sequential:
    """PP-LCNetV3's LearnableRepLayer: branches, affine, and at stride 1 hardswish, affine."""
    branches: list[nn.Module] = [nn.BatchNorm2d(channels)] if stride == 1 else []
    if kernel > 1:
        branches.append(conv(channels, channels, 1, stride, groups=groups))
    branches += [conv(channels, channels, kernel, stride, groups=groups) for _ in range(3)]
    tail = [] if stride == 2 else [nn.Hardswish(), affine()]
    return nn.Sequential(Sum(branches), affine(), *tail)


def light_block(channels: int, kernel: int, stride: int | tuple[int, int]) -> nn.Sequential:
    """PP-LCNetV3's block: a depthwise layer, then a pointwise one."""
    return nn.Sequential(light_layer(channels, kernel, stride, channels), light_layer(channels, 1))


def lab_stage(channels: int, kernel: int) -> nn.Sequential:
    """HGNetV2's stage: convolution, ReLU and a scalar affine, twice."""
    layers: list[nn.Module] = []
    for k in (3, kernel):
        layers += [conv(channels, channels, k), nn.ReLU(), affine()]
    return nn.Sequential(*layers[:-1])


def repghost(channels: int) -> nn.Sequential:
    """RepGhost's module (arXiv 2211.06088): 1x1, ReLU, depthwise 3x3+BN plus BN, ReLU."""
    fusion = Sum([depthwise(channels, 3), nn.BatchNorm2d(channels)])
    return nn.Sequential(conv(channels, channels, 1), nn.ReLU(), fusion, nn.ReLU())


class GhostV3(nn.Module):
    """GhostNetV3's module (arXiv 2404.11202): primary and cheap branches, and a pooled gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.primary = mobileone(channels, 1, 3)
        self.cheap = mobileone(channels, 3, 3, groups=channels)
        self.gate = nn.Sequential(
            nn.AvgPool2d(2, 2),
            conv(channels, wide, 1),
            depthwise(wide, (1, 5)),
            depthwise(wide, (5, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        primary = F.relu(self.primary(x))
        both = torch.cat([primary, F.relu(self.cheap(primary))], 1)
        gate = torch.sigmoid(self.gate(x))
        return both * F.interpolate(gate, scale_factor=2.0, mode="nearest")


def repnext_small(channels: int) -> Sum:
    """RepNeXt's small mixer (arXiv 2406.16004): 3x3, 3x1, 1x3 and a dilated 2x2, one BN."""
    branches = [depthwise(channels, k, bn=False) for k in ((3, 3), (3, 1), (1, 3))]
    branches.append(conv(channels, channels, 2, groups=channels, dilation=2, bn=False))
    return Sum(branches, nn.BatchNorm2d(channels))


def serial(channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return depthwise 1xk, then kx1, neither with a bias; each strides along its own axis."""
    return nn.Sequential(
        *depthwise(channels, (1, kernel), (1, stride), bn=False),
        *depthwise(channels, (kernel, 1), (stride, 1), bn=False),
    )


def repnext_medium(channels: int, beside: int, stride: int = 1) -> Sum:
    """RepNeXt's medium mixer: a kernel, a serial 1x7, 7x1 (3 where strided), one BN."""
    branches = [
        depthwise(channels, beside, stride, bn=False),
        serial(channels, 7 if stride == 1 else 3, stride),
    ]
    if stride > 1:
        even = conv(channels, channels, 2, stride, groups=channels, dilation=2, bn=False)
        branches.append(even)
    return Sum(branches, nn.BatchNorm2d(channels))


def replk_block(channels: int, kernel: int) -> Residual:
    """RepLKNet's block (arXiv 2203.06717): BN, 1x1, large depthwise and small, 1x1, x."""
    body = nn.Sequential(
        nn.BatchNorm2d(channels),
        conv(channels, channels, 1),
        nn.ReLU(),
        two_depthwise(channels, kernel, 5),
        nn.ReLU(),
        conv(channels, channels, 1),
    )
    return Residual(channels, body)


def dilated(channels: int, large: int, *branches: tuple[int, int]) -> Sum:
    """UniRepLKNet's kernel (arXiv 2311.15599): dilated ones inside a large one, BNs, a BN."""
    layers = [depthwise(channels, large)]
    for kernel, dilation in branches:
        pad = dilation * (kernel - 1) // 2
        layers.append(
            conv(channels, channels, kernel, padding=pad, groups=channels, dilation=dilation)
        )
    return Sum(layers, nn.BatchNorm2d(channels))


def linear_embedding(channels: int) -> nn.Sequential:
    """EfficientViT's half block (arXiv 2305.07027): x + depthwise 3x3, then x + FFN."""
    ffn = nn.Sequential(conv(channels, 2 * channels, 1), nn.ReLU(), conv(2 * channels, channels, 1))
    return nn.Sequential(Residual(channels, depthwise(channels, 3)), Residual(channels, ffn))


def inverted_residual(channels: int) -> Residual:
    """TinyViT's MBConv (arXiv 2207.10666): every convolution with a BN, activations between."""
    wide = 2 * channels
    body = nn.Sequential(
        conv(channels, wide, 1), nn.ReLU(), depthwise(wide, 3), nn.ReLU(), conv(wide, channels, 1)
    )
    return Residual(channels, body)


def next_mlp(channels: int) -> Residual:
    """NextViT's MLP (arXiv 2207.05501): BN, 1x1 with bias, ReLU, 1x1 with bias, x."""
    body = nn.Sequential(
        nn.BatchNorm2d(channels),
        conv(channels, 2 * channels, 1, bn=False, bias=True),
        nn.ReLU(),
        conv(2 * channels, channels, 1, bn=False, bias=True),
    )
    return Residual(channels, body)
