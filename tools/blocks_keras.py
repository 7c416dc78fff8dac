"""Training-time re-parameterizable blocks in Keras, written from their papers.

A block is a function of a `Layers` and a symbolic tensor. This file knows the layers that Keras 3
and tf_keras share and nothing of ONNX or of merging; it imports neither of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Pair = tuple[int, int]
Tensor = Any  # keras.KerasTensor or tf_keras' own


def pair(value: int | Pair) -> Pair:
    """Return (vertical, horizontal) from one number or two."""
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True)
class Layers:
    """The layers of one Keras: `keras` is the module `keras` or `tf_keras`.

    A tensor of rank 3 gets the one-dimensional layers. `channels_first` holds for all layers.
    """

    keras: Any
    channels_first: bool = False

    def layer(self, name: str, x: Tensor, **arguments: Any) -> Any:
        """Return the layer `name` for the rank of `x`: Conv1D or Conv2D for "Conv"."""
        order = "channels_first" if self.channels_first else "channels_last"
        kind = getattr(self.keras.layers, f"{name}{len(x.shape) - 2}D")
        return kind(data_format=order, **arguments)

    def channels(self, x: Tensor) -> int:
        """Return the number of channels of `x`."""
        return int(x.shape[1 if self.channels_first else -1])

    def bn(self, x: Tensor) -> Tensor:
        """Return the BN of `x`, with Keras' own epsilon of 1e-3."""
        return self.keras.layers.BatchNormalization(axis=1 if self.channels_first else -1)(x)

    def conv(
        self,
        x: Tensor,
        filters: int,
        kernel: int | Pair,
        stride: int = 1,
        padding: str = "same",
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        bn: bool = True,
    ) -> Tensor:
        """Return the convolution of `x`, followed by a BN unless `bn` is false."""
        y = self.layer(
            "Conv",
            x,
            filters=filters,
            kernel_size=kernel,
            strides=stride,
            padding=padding,
            dilation_rate=dilation,
            groups=groups,
            use_bias=bias,
        )(x)
        return self.bn(y) if bn else y

    def depthwise(
        self, x: Tensor, kernel: int, stride: int = 1, bias: bool = False, bn: bool = True
    ) -> Tensor:
        """Return the "same" depthwise convolution of `x`, followed by a BN unless told not."""
        y = self.layer(
            "DepthwiseConv", x, kernel_size=kernel, strides=stride, padding="same", use_bias=bias
        )(x)
        return self.bn(y) if bn else y

    def pool(self, x: Tensor, size: int, stride: int) -> Tensor:
        """Return the "same" average of `x`, which leaves the padding out of its counts."""
        layer = self.layer("AveragePooling", x, pool_size=size, strides=stride, padding="same")
        return layer(x)

    def crop(self, x: Tensor, size: int) -> Tensor:
        """Take `size` rows and columns off all sides."""
        return self.layer("Cropping", x, cropping=size)(x) if size else x

    def zero_pad(self, x: Tensor, size: int) -> Tensor:
        """Put `size` rows and columns of zeros on all sides, by a layer of its own."""
        return self.layer("ZeroPadding", x, padding=size)(x)

    def add(self, *branches: Tensor) -> Tensor:
        """Return the sum of the branches."""
        return self.keras.layers.Add()(list(branches))

    def relu(self, x: Tensor) -> Tensor:
        """Return max(x, 0)."""
        return self.keras.layers.ReLU()(x)

    def head(self, x: Tensor, classes: int) -> Tensor:
        """Return global average pooling and a linear classifier."""
        return self.keras.layers.Dense(classes)(self.layer("GlobalAveragePooling", x)(x))


def repvgg(
    net: Layers,
    x: Tensor,
    filters: int,
    stride: int = 1,
    padding: str = "same",
    groups: int = 1,
    bias: bool = False,
) -> Tensor:
    """RepVGG (arXiv 2101.03697): 3x3+BN, 1x1+BN and, where shapes allow, an identity BN.

    With "valid" padding the 1x1 and the identity read the input less a border of one.
    """
    inner = net.crop(x, 1) if padding == "valid" else x
    branches = [
        net.conv(x, filters, 3, stride, padding, groups=groups, bias=bias),
        net.conv(inner, filters, 1, stride, padding, groups=groups, bias=bias),
    ]
    if net.channels(x) == filters and stride == 1:
        branches.append(net.bn(inner))
    return net.add(*branches)


def acnet(
    net: Layers, x: Tensor, filters: int, kernel: int, stride: int = 1, bias: bool = False
) -> Tensor:
    """ACNet (arXiv 1908.03930): kxk + kx1 + 1xk, each with BN."""
    shapes: list[Pair] = [(kernel, kernel), (kernel, 1), (1, kernel)]
    return net.add(*(net.conv(x, filters, shape, stride, bias=bias) for shape in shapes))


def dbb(
    net: Layers,
    x: Tensor,
    filters: int,
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
    pool: bool = True,
    bias: bool = False,
    inner_bn: bool = True,
) -> Tensor:
    """Diverse Branch Block (arXiv 2103.13425) in its Keras form, with "same" padding throughout.

    The branches are kxk, 1x1, 1x1-kxk and 1x1-pool. The padding after a 1x1 is of zeros and the
    pool leaves it out of its counts, unlike the paper's. The pool is never dilated.
    Without `inner_bn` the inner 1x1 has a bias in the place of its BN.
    """
    inner = net.conv(x, filters, 1, bias=bias or not inner_bn, bn=inner_bn)
    branches = [
        net.conv(x, filters, kernel, stride, dilation=dilation, bias=bias),
        net.conv(x, filters, 1, stride, bias=bias),
        net.conv(inner, filters, kernel, stride, dilation=dilation, bias=bias),
    ]
    if pool:
        narrow = net.conv(x, filters, 1, bias=bias)
        branches.append(net.bn(net.pool(narrow, kernel, stride)))
    return net.add(*branches)


def dbb_depthwise(net: Layers, x: Tensor, kernel: int = 3, bias: bool = False) -> Tensor:
    """Return a Diverse Branch Block of depthwise convolutions, without a pool."""
    inner = net.depthwise(x, 1, bias=bias)
    return net.add(
        net.depthwise(x, kernel, bias=bias),
        net.depthwise(x, 1, bias=bias),
        net.depthwise(inner, kernel, bias=bias),
    )


def mobileone_depthwise(net: Layers, x: Tensor, stride: int = 1, bias: bool = False) -> Tensor:
    """MobileOne (arXiv 2206.04040): identity BN, 1x1 scale and three 3x3, all depthwise."""
    branches = [net.bn(x)] if stride == 1 else []
    branches.append(net.depthwise(x, 1, stride, bias))
    branches += [net.depthwise(x, 3, stride, bias) for _ in range(3)]
    return net.add(*branches)


def mobileone_pointwise(net: Layers, x: Tensor, bias: bool = False) -> Tensor:
    """MobileOne's pointwise part: identity BN and three 1x1."""
    filters = net.channels(x)
    return net.add(net.bn(x), *(net.conv(x, filters, 1, bias=bias) for _ in range(3)))


def bsconv_u(net: Layers, x: Tensor, filters: int, bn: bool, bias: bool = False) -> Tensor:
    """BSConv-U (arXiv 2003.13549): pointwise, [BN], depthwise 3x3, BN."""
    return net.depthwise(net.conv(x, filters, 1, bias=bias, bn=bn), 3, bias=bias)


def bsconv_s(net: Layers, x: Tensor, filters: int) -> Tensor:
    """BSConv-S: the pointwise of BSConv-U as a product of rank a quarter of the input's."""
    narrow = net.conv(x, net.channels(x) // 4, 1)
    return net.depthwise(net.conv(narrow, filters, 1), 3)


def residual(net: Layers, x: Tensor, bias: bool) -> Tensor:
    """Return x + Conv(x), without any BN."""
    return net.add(x, net.conv(x, net.channels(x), 3, bias=bias, bn=False))


def bn_first(net: Layers, x: Tensor, filters: int) -> Tensor:
    """Return Conv3x3(BN(x)) + Conv1x1(BN(x)): the padding of zeros comes after the BN."""
    y = net.bn(x)
    return net.add(
        net.conv(y, filters, 3, bias=True, bn=False), net.conv(y, filters, 1, bias=True, bn=False)
    )


def zero_padded(net: Layers, x: Tensor, filters: int, stride: int, bias: bool = False) -> Tensor:
    """Return a RepVGG without identity whose 3x3 is "valid" behind a padding layer."""
    return net.add(
        net.conv(net.zero_pad(x, 1), filters, 3, stride, "valid", bias=bias),
        net.conv(x, filters, 1, stride, bias=bias),
    )


def zero_padded_pair(net: Layers, x: Tensor, filters: int) -> Tensor:
    """Return two "valid" 3x3 of one padding layer's output, plus a 1x1 of its input."""
    padded = net.zero_pad(x, 1)
    branches = [net.conv(padded, filters, 3, padding="valid") for _ in range(2)]
    return net.add(*branches, net.conv(x, filters, 1))


def parallel(
    net: Layers, x: Tensor, filters: int, kernels: tuple[int, ...], bias: bool = False
) -> Tensor:
    """Return the sum of "same" convolutions of several kernels, each with BN."""
    return net.add(*(net.conv(x, filters, kernel, bias=bias) for kernel in kernels))


def squeeze_excite(net: Layers, x: Tensor, reduction: int = 4) -> Tensor:
    """Squeeze-and-Excitation (arXiv 1709.01507): scale each channel by a gate from its mean."""
    channels = net.channels(x)
    mean = net.layer("GlobalAveragePooling", x, keepdims=True)(x)
    narrow = net.relu(net.conv(mean, channels // reduction, 1, bias=True, bn=False))
    wide = net.conv(narrow, channels, 1, bias=True, bn=False)
    gate = net.keras.layers.Activation("sigmoid")(wide)
    return net.keras.layers.Multiply()([x, gate])


def basic_block(net: Layers, x: Tensor, filters: int, stride: int = 1) -> Tensor:
    """ResNet's basic block (arXiv 1512.03385), less its last activation."""
    y = net.relu(net.conv(x, filters, 3, stride))
    y = net.conv(y, filters, 3)
    same = stride == 1 and net.channels(x) == filters
    return net.add(y, x if same else net.conv(x, filters, 1, stride))


def repvgg_net(net: Layers, x: Tensor, widths: tuple[int, ...], classes: int) -> Tensor:
    """Return stages of two RepVGG blocks, the first of stride 2, and a classifier."""
    for width in widths:
        for stride in (2, 1):
            x = net.relu(repvgg(net, x, width, stride))
    return net.head(x, classes)


def dbb_net(net: Layers, x: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Return a row of Diverse Branch Blocks without pools; the last has no activation."""
    for width in widths[:-1]:
        x = net.relu(dbb(net, x, width, pool=False))
    return dbb(net, x, widths[-1], pool=False)


def residual_net(net: Layers, x: Tensor) -> Tensor:
    """Return a stem, a basic block, a basic block of stride 2 and a classifier."""
    x = net.relu(net.conv(x, 8, 3))
    x = net.relu(basic_block(net, x, 8))
    x = net.relu(basic_block(net, x, 12, stride=2))
    return net.head(x, 10)


def fill(model: Any, seed: int, gain: float) -> None:
    """Give every layer seeded weights and every BN statistics of a trained look, in place.

    A convolution's weights have the variance gain/fan_in. Biases are random too, so that none
    of the constants of a graph is trivially zero.
    """
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        values = []
        for weight in layer.weights:
            shape = tuple(weight.shape)
            kind = weight.name.split("/")[-1].split(":")[0]
            if kind in {"gamma", "moving_variance"}:
                value = rng.uniform(0.5, 1.5, shape)
            elif kind in {"beta", "moving_mean", "bias"}:
                value = rng.normal(0, 0.3, shape)
            else:
                depthwise = type(layer).__name__.startswith("DepthwiseConv")
                fan_in = math.prod(shape[:-2] if depthwise else shape[:-1])
                value = rng.normal(0, math.sqrt(gain / fan_in), shape)
            values.append(value.astype(np.float32))
        layer.set_weights(values)
