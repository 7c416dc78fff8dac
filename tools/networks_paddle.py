"""Blocks with activations, and small networks, of the blocks in `blocks_paddle.py`."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from blocks_paddle import Pair, ScalarAffine, conv, lcnetv3_layer, repvgg
from paddle import Tensor, nn


class SqueezeExcite(nn.Layer):
    """Squeeze-and-excitation (arXiv 1709.01507) with a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2D(1),
            nn.Conv2D(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2D(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def lcnetv3_block(
    in_channels: int, out_channels: int, kernel: int, stride: int | Pair = 1, gated: bool = False
) -> nn.Sequential:
    """Return PP-LCNetV3's block: depthwise layer, optional gate, pointwise layer."""
    gate: list[nn.Layer] = [SqueezeExcite(in_channels)] if gated else []
    return nn.Sequential(
        lcnetv3_layer(in_channels, in_channels, kernel, stride, in_channels),
        *gate,
        lcnetv3_layer(in_channels, out_channels, 1),
    )


def lab_conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return conv, BN, ReLU and PP-HGNetV2's scalar affine map behind the activation."""
    return nn.Sequential(
        conv(in_channels, out_channels, kernel, stride, kernel // 2, groups),
        nn.ReLU(),
        ScalarAffine(),
    )


class HGBlock(nn.Layer):
    """PP-HGNetV2's block: a chain of 3x3 layers, all outputs concatenated, two 1x1 layers."""

    def __init__(self, channels: int, middle: int, out_channels: int, depth: int) -> None:
        super().__init__()
        widths = [channels, *[middle] * (depth - 1)]
        self.chain = nn.LayerList([lab_conv(width, middle, 3) for width in widths])
        self.gather = nn.Sequential(
            lab_conv(channels + depth * middle, out_channels // 2, 1),
            lab_conv(out_channels // 2, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer in self.chain:
            outputs.append(layer(outputs[-1]))
        return self.gather(paddle.concat(outputs, axis=1))


def head(channels: int, classes: int) -> nn.Sequential:
    """Return global average pooling and a linear classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(channels, classes))


def repvgg_net(widths: Sequence[int], classes: int) -> nn.Sequential:
    """Return a stem and two RepVGG blocks per width, the first of them strided."""
    layers: list[nn.Layer] = []
    channels = 3
    for width in widths:
        layers += [repvgg(channels, width, 2), nn.ReLU(), repvgg(width, width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, head(channels, classes))


def lcnetv3_net(classes: int) -> nn.Sequential:
    """Return a stem and three PP-LCNetV3 blocks, the last of them gated."""
    return nn.Sequential(
        conv(3, 8, 3, 2, 1),
        lcnetv3_block(8, 8, 3),
        lcnetv3_block(8, 12, 3, (2, 1)),
        lcnetv3_block(12, 12, 3, 2, gated=True),
        head(12, classes),
    )
