"""Blocks of linear layers: adapters, BN around matrix products, tokens and their layouts.

Written from their papers. Tokens are (batch, tokens, channels).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from blocks_field import Sum, conv, depthwise
from blocks_field_mobile import dilated
from torch import Tensor, nn


class LowRank(nn.Module):
    """A low-rank adapter (LoRA, arXiv 2106.09685) left unmerged: base(x) + alpha/r * B(A(x))."""

    def __init__(self, base: nn.Module, down: nn.Module, up: nn.Module, factor: float) -> None:
        super().__init__()
        self.base, self.down, self.up = base, down, up
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.base(x) + self.factor * self.up(self.down(x)))


def lora(in_channels: int, out_channels: int, rank: int) -> LowRank:
    """Return an adapted linear layer."""
    down = nn.Linear(in_channels, rank, bias=False)
    up = nn.Linear(rank, out_channels, bias=False)
    return LowRank(nn.Linear(in_channels, out_channels), down, up, 2.0)


def lora_conv(in_channels: int, out_channels: int, rank: int) -> LowRank:
    """Return an adapted 3x3: the way down has its kernel, the way up is pointwise."""
    return LowRank(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.Conv2d(in_channels, rank, 3, padding=1, bias=False),
        nn.Conv2d(rank, out_channels, 1, bias=False),
        0.5,
    )


class RepBN(nn.Module):
    """SLAB's RepBN (arXiv 2405.11582) on tokens: alpha * x + BN(x), over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        x = self.bn(x) + self.alpha * x
        return x.transpose(1, 2)


def slab(channels: int, out_channels: int) -> nn.Sequential:
    """Return RepBN in front of a linear layer."""
    return nn.Sequential(RepBN(channels), nn.Linear(channels, out_channels))


class LinearBN(nn.Module):
    """LeViT's Linear_BN (arXiv 2104.01136): a bias-free product, BN over all tokens at once."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.bn = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return cast("Tensor", self.bn(x.flatten(0, 1)).reshape_as(x))


def bn_linear(channels: int, classes: int) -> nn.Sequential:
    """BN_Linear of LeViT, EfficientViT and SHViT: a BN in front of the classifier."""
    return nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, classes))


class TwoHeads(nn.Module):
    """The average of a classifier and a distillation head (RepViT, LeViT)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.head = bn_linear(channels, classes)
        self.distilled = bn_linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", (self.head(x) + self.distilled(x)) / 2)


def embedding(channels: int, pixels: int, features: int) -> nn.Sequential:
    """Return ArcFace's head (arXiv 1801.07698): BN, dropout, flatten, linear layer, BN."""
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(channels * pixels, features),
        nn.BatchNorm1d(features),
    )


class TokensBN(nn.Module):
    """NextViT's way into attention (arXiv 2207.05501): BN on the map, tokens, a linear layer."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.bn(x).flatten(2).transpose(1, 2)
        return F.relu(self.linear(tokens))


class ReducedAttention(nn.Module):
    """NextViT's E-MHSA, one head: keys and values from pooled tokens with a BN of their own."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.projection = (nn.Linear(channels, channels) for _ in range(4))
        self.pool = nn.AvgPool1d(reduction, reduction)
        self.bn = nn.BatchNorm1d(channels)
        self.factor = channels**-0.5

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x) * self.factor
        pooled = self.bn(self.pool(x.transpose(1, 2))).transpose(1, 2)
        attention = torch.softmax(q @ self.k(pooled).transpose(1, 2), -1)
        return cast("Tensor", self.projection(attention @ self.v(pooled)))


class RepMLP(nn.Module):
    """RepMLP (arXiv 2105.01883): a linear layer for each channel's map, and small convolutions.

    The product over the flattened map is a grouped 1x1, as the authors write it.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.shape = (channels, height, width)
        flat = channels * height * width
        self.fc = nn.Conv2d(flat, flat, 1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.local = Sum([depthwise(channels, 1), depthwise(channels, 3)])

    def forward(self, x: Tensor) -> Tensor:
        flat = self.fc(x.reshape(-1, self.fc.in_channels, 1, 1))
        return cast("Tensor", self.bn(flat.reshape(-1, *self.shape)) + self.local(x))


class ResponseNorm(nn.Module):
    """UniRepLKNet's GRN with its bias (arXiv 2311.15599), channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, 1, 1, channels))
        self.shift = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        share = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return (self.gamma * share + 1) * x + self.shift


class UniRepBlock(nn.Module):
    """UniRepLKNet's block: dilated kernels, outer BN, Linear, ReLU, GRN, Linear, BN, gamma, x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixer = dilated(channels, 9, (5, 1), (3, 3), (5, 2))
        self.first = nn.Linear(channels, 2 * channels)
        self.norm = ResponseNorm(2 * channels)
        self.second = nn.Linear(2 * channels, channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(x).permute(0, 2, 3, 1)
        y = self.second(self.norm(F.relu(self.first(y)))).permute(0, 3, 1, 2)
        return cast("Tensor", x + self.gamma.view(1, -1, 1, 1) * self.bn(y))


def pointwise_chain(in_channels: int, wide: int, out_channels: int) -> nn.Sequential:
    """Return two linear layers without an activation between them."""
    return nn.Sequential(nn.Linear(in_channels, wide), nn.Linear(wide, out_channels))


def classifier(channels: int, classes: int) -> nn.Sequential:
    """Return convolution, ReLU, mean, BN and linear layer."""
    return nn.Sequential(
        conv(channels, channels, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        *bn_linear(channels, classes),
    )
