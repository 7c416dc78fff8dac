"""Training-time re-parameterizable blocks in Paddle, written from their papers.

This file knows paddle and nothing of ONNX or of merging. Where a block has been ported to Paddle
in more than one way that exports differently, a parameter chooses the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

Pair = tuple[int, int]


class Block(nn.Layer):
    """The sum of branches, each an affine map of the same input, then an optional layer.

    `from_zero` starts the sum at a literal zero, as MobileOne and PP-LCNetV3 do: `0 + x` is
    exported as a Mul by 1.0 and an Add of 0.0.
    """

    def __init__(
        self,
        branches: Iterable[nn.Layer],
        post: nn.Layer | None = None,
        from_zero: bool = False,
    ) -> None:
        super().__init__()
        self.branches = nn.LayerList(list(branches))
        self.post = post
        self.from_zero = from_zero

    def forward(self, x: Tensor) -> Tensor:
        if self.from_zero:
            total = 0
            for branch in self.branches:
                total += branch(x)
        else:
            total = self.branches[0](x)
            for branch in self.branches[1:]:
                total = total + branch(x)
        return total if self.post is None else self.post(total)


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int | Pair,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    groups: int = 1,
    bias: bool = False,
    bn: bool = True,
) -> nn.Sequential:
    """Return a convolution, followed by a BN unless `bn` is false."""
    layers: list[nn.Layer] = [
        nn.Conv2D(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            bias_attr=None if bias else False,
        )
    ]
    if bn:
        layers.append(nn.BatchNorm2D(out_channels))
    return nn.Sequential(*layers)


def repvgg(
    in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> Block:
    """RepVGG (arXiv 2101.03697): 3x3+BN, 1x1+BN and, where shapes allow, an identity BN."""
    branches: list[nn.Layer] = [
        conv(in_channels, out_channels, 3, stride, 1, groups, bias),
        conv(in_channels, out_channels, 1, stride, 0, groups, bias),
    ]
    if in_channels == out_channels and stride == 1:
        branches.append(nn.BatchNorm2D(in_channels))
    return Block(branches)


class Crop(nn.Layer):
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


def acnet(in_channels: int, out_channels: int, padded: bool = True, stride: int = 1) -> Block:
    """ACNet (arXiv 1908.03930): 3x3 + 3x1 + 1x3, each with BN.

    Unpadded, the flat branches read a cropped input, so that their taps lie on the middle row
    and column of the square kernel.
    """
    pad = int(padded)
    square = conv(in_channels, out_channels, 3, stride, pad)
    column = conv(in_channels, out_channels, (3, 1), stride, (pad, 0))
    row = conv(in_channels, out_channels, (1, 3), stride, (0, pad))
    if padded:
        return Block([square, column, row])
    return Block([square, nn.Sequential(Crop(0, 1), column), nn.Sequential(Crop(1, 0), row)])


def statistics(bn: nn.BatchNorm2D) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance, of shape (channels,)."""
    return bn._mean, bn._variance  # noqa: SLF001  # paddle has no public name for them


class BNAndPad(nn.Layer):
    """A BN, then a border holding the BN's response to zero.

    With it, padding after a 1x1+BN equals padding before it. `way` says how the border is made:
    "map" pads with zeros and adds the response times a mask of the border, "map8" does so
    with one pad entry per axis end (a 4-D Pad instead of a 5-D one), "strips" concatenates the
    response around the data, "assign" writes it over a zero border.
    """

    def __init__(self, channels: int, pad: int, way: str) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2D(channels)
        self.pad = pad
        self.way = way

    def zero_response(self) -> Tensor:
        """Return the BN of zero, of shape (1, channels, 1, 1)."""
        mean, variance = statistics(self.bn)
        response = self.bn.bias - mean * self.bn.weight / paddle.sqrt(variance + 1e-5)
        return paddle.reshape(response, [1, -1, 1, 1])

    def with_zeros(self, x: Tensor, every_axis: bool) -> Tensor:
        """Return `x` padded with zeros, by a list of pads for every axis or for the last two."""
        p = self.pad
        return F.pad(x, [0, 0, 0, 0, p, p, p, p] if every_axis else [p, p, p, p])

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        border = self.zero_response()
        if self.way == "strips":
            return self.strips(y, border)
        if self.way == "assign":
            return self.assign(self.with_zeros(y, every_axis=False), border)
        mask = 1.0 - self.with_zeros(paddle.ones([1, 1, y.shape[2], y.shape[3]]), every_axis=True)
        return self.with_zeros(y, every_axis=self.way == "map8") + border * mask

    def strips(self, y: Tensor, border: Tensor) -> Tensor:
        """Return `y` with the border set around it by two Concats."""
        batch, channels, height, width = y.shape
        p = self.pad
        side = paddle.expand(border, [batch, channels, height, p])
        y = paddle.concat([side, y, side], axis=3)
        edge = paddle.expand(border, [batch, channels, p, width + 2 * p])
        return paddle.concat([edge, y, edge], axis=2)

    def assign(self, y: Tensor, border: Tensor) -> Tensor:
        """Return `y` with the border written over its edges."""
        p = self.pad
        y[:, :, 0:p, :] = border
        y[:, :, -p:, :] = border
        y[:, :, :, 0:p] = border
        y[:, :, :, -p:] = border
        return y


def dbb(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    way: str = "map",
    pool: bool = True,
) -> Block:
    """Diverse Branch Block (arXiv 2103.13425): kxk; 1x1; 1x1-AvgPool; 1x1-kxk.

    `way` is that of `BNAndPad`, or "zeros" for the ports without it: there the 1x1-kxk branch
    pads with zeros behind the inner BN, and the pool leaves its padding out of the mean.
    """
    pad = kernel // 2
    zeros = way == "zeros"
    outer = pad if zeros else 0

    def padded_bn(channels: int) -> nn.Layer:
        return nn.BatchNorm2D(channels) if zeros else BNAndPad(channels, pad, way)

    branches: list[nn.Layer] = [
        conv(in_channels, out_channels, kernel, stride, pad),
        conv(in_channels, out_channels, 1, stride),
        nn.Sequential(
            conv(in_channels, in_channels, 1, bn=False),
            padded_bn(in_channels),
            conv(in_channels, out_channels, kernel, stride, outer),
        ),
    ]
    if pool:
        branches.append(
            nn.Sequential(
                conv(in_channels, out_channels, 1, bn=False),
                padded_bn(out_channels),
                nn.AvgPool2D(kernel, stride, outer, exclusive=True),
                nn.BatchNorm2D(out_channels),
            )
        )
    return Block(branches)


def bsconv_u(in_channels: int, out_channels: int, bn: bool) -> nn.Sequential:
    """BSConv-U (arXiv 2003.13549): pointwise, [BN], depthwise 3x3, BN."""
    return nn.Sequential(
        conv(in_channels, out_channels, 1, bn=bn),
        conv(out_channels, out_channels, 3, padding=1, groups=out_channels),
    )


def mobileone(channels: int, out_channels: int, kernel: int, stride: int = 1) -> Block:
    """MobileOne (arXiv 2206.04040): identity BN, 1x1 scale and three kxk branches.

    Depthwise where the kernel is larger than 1, else pointwise.
    """
    groups = channels if kernel > 1 else 1
    branches: list[nn.Layer] = []
    if channels == out_channels and stride == 1:
        branches.append(nn.BatchNorm2D(channels))
    if kernel > 1:
        branches.append(conv(channels, out_channels, 1, stride, 0, groups))
    branches += [
        conv(channels, out_channels, kernel, stride, kernel // 2, groups) for _ in range(3)
    ]
    return Block(branches, from_zero=True)


class ScalarAffine(nn.Layer):
    """A learnable affine map of two numbers: scale * x + shift."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.create_parameter([1])
        self.shift = self.create_parameter([1], is_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


def lcnetv3_layer(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int | Pair = 1,
    groups: int = 1,
    branches: int = 4,
) -> nn.Sequential:
    """PP-LCNetV3's learnable re-parameterizable layer.

    An identity BN, a 1x1 and `branches` kxk convolutions with BN, a scalar affine map; then,
    where neither axis or only one is strided, hardswish and another scalar affine map.
    """
    strides = (stride, stride) if isinstance(stride, int) else stride
    layers: list[nn.Layer] = []
    if in_channels == out_channels and strides == (1, 1):
        layers.append(nn.BatchNorm2D(in_channels))
    if kernel > 1:
        layers.append(conv(in_channels, out_channels, 1, strides, 0, groups))
    layers += [
        conv(in_channels, out_channels, kernel, strides, kernel // 2, groups)
        for _ in range(branches)
    ]
    affine: list[nn.Layer] = [ScalarAffine()]
    if strides != (2, 2):
        affine += [nn.Hardswish(), ScalarAffine()]
    return nn.Sequential(Block(layers, from_zero=True), *affine)


def lcnetv2_depthwise(channels: int, stride: int = 1) -> Block:
    """PP-LCNetV2's depthwise sum of kernels 5, 3 and, unless strided, 1, each with BN."""
    kernels = (5, 3, 1) if stride == 1 else (5, 3)
    return Block([conv(channels, channels, k, stride, k // 2, channels) for k in kernels])


class Scaled(nn.Layer):
    """A layer times a learnable number."""

    def __init__(self, inner: nn.Layer) -> None:
        super().__init__()
        self.inner = inner
        self.scale = self.create_parameter([1])

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x)


def ppyoloe(in_channels: int, out_channels: int) -> Block:
    """Return PP-YOLOE's (arXiv 2203.16250) block: 3x3+BN plus alpha times 1x1+BN."""
    return Block(
        [
            conv(in_channels, out_channels, 3, padding=1),
            Scaled(conv(in_channels, out_channels, 1)),
        ]
    )


def residual(channels: int, bias: bool = True) -> Block:
    """Return x + Conv(x)."""
    return Block([nn.Identity(), conv(channels, channels, 3, padding=1, bias=bias, bn=False)])


class Pad8(nn.Layer):
    """Zero padding of the two last axes by one, written with one entry per axis end."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, [0, 0, 0, 0, 1, 1, 1, 1])


def padded_branch(in_channels: int, out_channels: int, layer: nn.Layer, stride: int = 1) -> Block:
    """Return a 3x3 branch whose zero padding is a layer of its own, plus a 1x1 branch."""
    return Block(
        [
            nn.Sequential(layer, conv(in_channels, out_channels, 3, stride)),
            conv(in_channels, out_channels, 1, stride),
        ]
    )


def same_branches(in_channels: int, out_channels: int, stride: int = 1) -> Block:
    """Return 5x5 + 3x3 + 1x1 branches whose padding is the word SAME."""
    return Block([conv(in_channels, out_channels, k, stride, "SAME") for k in (5, 3, 1)])


def fill(model: nn.Layer, seed: int, gain: float) -> None:
    """Give every layer seeded weights and every BN statistics of a trained look, in place.

    A convolution's weights have the variance gain/fan_in; biases are never zero.
    """
    rng = np.random.default_rng(seed)

    def normal(parameter: Tensor, deviation: float) -> None:
        parameter.set_value(rng.normal(0, deviation, parameter.shape).astype(np.float32))

    def uniform(parameter: Tensor) -> None:
        parameter.set_value(rng.uniform(0.5, 1.5, parameter.shape).astype(np.float32))

    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            mean, variance = statistics(layer)
            normal(mean, 0.3)
            uniform(variance)
            uniform(layer.weight)
            normal(layer.bias, 0.3)
        elif isinstance(layer, nn.Conv2D):
            normal(layer.weight, math.sqrt(gain / math.prod(layer.weight.shape[1:])))
            if layer.bias is not None:
                normal(layer.bias, 0.3)
        elif isinstance(layer, nn.Linear):
            normal(layer.weight, math.sqrt(gain / layer.weight.shape[0]))
            normal(layer.bias, 0.3)
        elif isinstance(layer, ScalarAffine):
            uniform(layer.scale)
            normal(layer.shift, 0.3)
        elif isinstance(layer, Scaled):
            uniform(layer.scale)
