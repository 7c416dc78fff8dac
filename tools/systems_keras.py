"""The table of systems that `export_keras.py` exports: a name, a model, an input shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import blocks_keras as b
from blocks_keras import Layers, Tensor

# What the best exact form of a block is, known by arithmetic and not by any program.
ONE = "1 Conv 3x3"
ONE_MAP = "1 Conv 3x3 + constant map"
POOLED = "merged 3x3 Conv, 1x1 Conv, exclude-pad AveragePool, constant map"
SPLIT = "kept split: pointwise + depthwise, BN folded"
PARITY = "kept: 2 Convs, BN folded; where their taps meet depends on the parity of the open size"
ONES = (
    "4 Convs and the AveragePool, BN folded; 2 Convs, Pad and the AveragePool with a channel of "
    "ones, as a constant map needs a fixed size"
)
ONES_NO_POOL = (
    "3 Convs, BN folded; 1 Conv and Pad with a channel of ones, as a constant map needs a fixed "
    "size"
)


@dataclass(frozen=True)
class System:
    """One model to export in `kinds`; `best` is its best exact form, `best_open` at open sizes.

    `shape` is (batch, height, width, channels), or (batch, length, channels), whatever the
    data format.
    """

    name: str
    shape: tuple[int, ...]
    build: Callable[[Layers, Tensor], Tensor]
    best: str
    kinds: tuple[str, ...]
    best_open: str
    activation: bool
    channels_first: bool
    gain: float


def _row(
    name: str,
    shape: tuple[int, ...],
    build: Callable[[Layers, Tensor], Tensor],
    best: str,
    kinds: str,
    best_open: str | None = None,
    activation: bool = True,
    channels_first: bool = False,
    gain: float = 0.6,
) -> System:
    return System(
        name,
        shape,
        build,
        best,
        tuple(kinds.split()),
        best if best_open is None else best_open,
        activation,
        channels_first,
        gain,
    )


SYSTEMS: tuple[System, ...] = (
    _row(
        "repvgg_s1",
        (1, 12, 12, 8),
        lambda n, x: b.repvgg(n, x, 8),
        ONE,
        "tf2onnx tf2onnx-dyn tf2onnx-op11 tfkeras export torch torch-dyn torch-dynamo",
    ),
    _row(
        "repvgg_s1_odd",
        (1, 11, 13, 8),
        lambda n, x: b.repvgg(n, x, 8, bias=True),
        ONE,
        "tf2onnx tfkeras",
    ),
    _row(
        "repvgg_s2",
        (1, 12, 14, 8),
        lambda n, x: b.repvgg(n, x, 12, stride=2),
        ONE,
        "tf2onnx tf2onnx-dyn tfkeras export torch torch-dyn torch-dynamo",
        PARITY,
    ),
    _row(
        "repvgg_s2_odd",
        (1, 13, 11, 8),
        lambda n, x: b.repvgg(n, x, 12, stride=2, bias=True),
        ONE,
        "tf2onnx torch-dynamo",
    ),
    _row(
        "repvgg_s2_mixed",
        (1, 12, 13, 8),
        lambda n, x: b.repvgg(n, x, 8, stride=2),
        ONE,
        "tf2onnx",
    ),
    _row(
        "repvgg_valid",
        (1, 12, 11, 8),
        lambda n, x: b.repvgg(n, x, 8, padding="valid"),
        ONE,
        "tf2onnx tf2onnx-dyn tfkeras torch torch-dynamo",
    ),
    _row(
        "repvgg_inner",
        (1, 12, 11, 6),
        lambda n, x: b.repvgg(n, n.relu(n.conv(x, 8, 1)), 8),
        "2 Convs: 1x1, 3x3",
        "tf2onnx tfkeras torch-dynamo",
    ),
    _row(
        "repvgg_groups",
        (1, 12, 12, 8),
        lambda n, x: b.repvgg(n, x, 8, groups=2),
        "1 Conv 3x3, group 2",
        "tf2onnx tfkeras torch torch-dynamo",
    ),
    _row(
        "repvgg_first",
        (1, 12, 11, 8),
        lambda n, x: b.repvgg(n, x, 8),
        ONE,
        "tf2onnx tfkeras torch torch-dynamo",
        channels_first=True,
    ),
    _row(
        "acnet_first",
        (1, 11, 12, 8),
        lambda n, x: b.acnet(n, x, 12, 3, bias=True),
        ONE,
        "tf2onnx tfkeras",
        channels_first=True,
    ),
    _row(
        "repvgg_1d",
        (1, 15, 8),
        lambda n, x: b.repvgg(n, x, 8),
        "1 Conv 3",
        "tf2onnx tf2onnx-dyn tf2onnx-op11 tfkeras torch",
    ),
    _row(
        "repvgg_1d_s2",
        (1, 14, 8),
        lambda n, x: b.repvgg(n, x, 12, stride=2, bias=True),
        "1 Conv 3",
        "tf2onnx",
    ),
    _row(
        "repvgg_se",
        (1, 12, 12, 8),
        lambda n, x: b.squeeze_excite(n, b.repvgg(n, x, 8)),
        "1 Conv 3x3, squeeze-excite kept",
        "tf2onnx tf2onnx-dyn torch",
    ),
    _row(
        "acnet_k3",
        (1, 12, 12, 8),
        lambda n, x: b.acnet(n, x, 12, 3),
        ONE,
        "tf2onnx tfkeras torch",
    ),
    _row(
        "acnet_k3_s2",
        (1, 12, 13, 8),
        lambda n, x: b.acnet(n, x, 12, 3, stride=2, bias=True),
        ONE,
        "tf2onnx tf2onnx-dyn",
        "kept: 3 Convs, BN folded; where their taps meet depends on the parity of the open size",
    ),
    _row(
        "dbb_s1",
        (1, 12, 12, 8),
        lambda n, x: b.dbb(n, x, 8),
        POOLED,
        "tf2onnx tf2onnx-dyn tf2onnx-op11 tfkeras export torch torch-dynamo",
        ONES,
    ),
    _row(
        "dbb_s1_bias",
        (1, 11, 12, 8),
        lambda n, x: b.dbb(n, x, 12, bias=True),
        POOLED,
        "tf2onnx torch",
    ),
    _row(
        "dbb_s1_inner_bias",
        (1, 12, 11, 8),
        lambda n, x: b.dbb(n, x, 12, inner_bn=False),
        POOLED,
        "tf2onnx",
    ),
    _row(
        "dbb_s2",
        (1, 12, 12, 8),
        lambda n, x: b.dbb(n, x, 12, stride=2),
        POOLED,
        "tf2onnx tf2onnx-dyn tfkeras",
        "5 Convs and the AveragePool, BN folded: the 1x1 of stride 2 meets the 3x3 at a tap that "
        "depends on the parity of the open size",
    ),
    _row(
        "dbb_d2",
        (1, 12, 13, 8),
        lambda n, x: b.dbb(n, x, 8, dilation=2),
        "merged 3x3 Conv of dilation 2, 1x1 Conv, exclude-pad AveragePool, constant map",
        "tf2onnx tf2onnx-dyn tfkeras torch",
        "kept, the 1x1's and the pool's BN folded: at open sizes tf2onnx writes a dilated Conv as "
        "Pad, SpaceToDepth, Conv, DepthToSpace and Slice",
    ),
    _row(
        "dbb_no_pool",
        (1, 12, 12, 8),
        lambda n, x: b.dbb(n, x, 8, pool=False),
        ONE_MAP,
        "tf2onnx tf2onnx-dyn tfkeras export torch torch-dynamo",
        ONES_NO_POOL,
    ),
    _row(
        "dbb_no_pool_k5",
        (1, 12, 11, 6),
        lambda n, x: b.dbb(n, x, 8, 5, pool=False, inner_bn=False),
        "1 Conv 5x5 + constant map",
        "tf2onnx",
    ),
    _row(
        "dbb_no_pool_s2",
        (1, 12, 12, 8),
        lambda n, x: b.dbb(n, x, 12, stride=2, pool=False, bias=True),
        ONE_MAP,
        "tf2onnx",
    ),
    _row(
        "dbb_depthwise",
        (1, 12, 13, 8),
        b.dbb_depthwise,
        "1 depthwise Conv 3x3 + constant map",
        "tf2onnx tfkeras torch",
    ),
    _row(
        "mobileone_dw",
        (1, 12, 11, 8),
        b.mobileone_depthwise,
        "1 depthwise Conv 3x3",
        "tf2onnx tf2onnx-dyn tfkeras torch torch-dynamo",
    ),
    _row(
        "mobileone_dw_s2",
        (1, 12, 14, 8),
        lambda n, x: b.mobileone_depthwise(n, x, 2, bias=True),
        "1 depthwise Conv 3x3",
        "tf2onnx tf2onnx-dyn",
        "kept: 2 depthwise Convs, BN folded; where their taps meet depends on the parity of the "
        "open size",
    ),
    _row(
        "mobileone_pw",
        (1, 11, 12, 8),
        lambda n, x: b.mobileone_pointwise(n, x, bias=True),
        "1 Conv 1x1",
        "tf2onnx tfkeras",
    ),
    _row(
        "bsconv_u",
        (1, 12, 12, 8),
        lambda n, x: b.bsconv_u(n, x, 12, bn=False),
        SPLIT,
        "tf2onnx tf2onnx-dyn tfkeras",
    ),
    _row(
        "bsconv_u_bn",
        (1, 12, 11, 8),
        lambda n, x: b.bsconv_u(n, x, 12, bn=True, bias=True),
        SPLIT,
        "tf2onnx",
    ),
    _row(
        "bsconv_s_bn",
        (1, 11, 12, 8),
        lambda n, x: b.bsconv_s(n, x, 12),
        "kept split: 1x1 + 1x1 + depthwise, BN folded",
        "tf2onnx tfkeras",
    ),
    _row(
        "residual",
        (1, 12, 11, 8),
        lambda n, x: b.residual(n, x, bias=False),
        ONE,
        "tf2onnx tf2onnx-dyn torch",
    ),
    _row(
        "residual_bias",
        (1, 11, 12, 8),
        lambda n, x: b.residual(n, x, bias=True),
        ONE,
        "tf2onnx tfkeras torch-dynamo",
    ),
    _row(
        "bn_first",
        (1, 12, 11, 8),
        lambda n, x: b.bn_first(n, x, 12),
        ONE_MAP,
        "tf2onnx tf2onnx-dyn torch",
        "BN and 1 Conv 3x3; 1 Conv and Pad with a channel of ones, as a constant map needs a "
        "fixed size",
    ),
    _row(
        "zero_pad_s1",
        (1, 12, 11, 8),
        lambda n, x: b.zero_padded(n, x, 12, 1),
        ONE,
        "tf2onnx tf2onnx-dyn tfkeras",
    ),
    _row(
        "zero_pad_s2",
        (1, 12, 13, 8),
        lambda n, x: b.zero_padded(n, x, 12, 2, bias=True),
        ONE,
        "tf2onnx",
    ),
    _row(
        "zero_pad_shared",
        (1, 12, 12, 8),
        lambda n, x: b.zero_padded_pair(n, x, 12),
        ONE,
        "tf2onnx torch-dynamo",
    ),
    _row(
        "even_k2",
        (1, 12, 11, 8),
        lambda n, x: b.parallel(n, x, 12, (3, 2)),
        ONE,
        "tf2onnx tfkeras torch-dynamo",
    ),
    _row(
        "even_k4",
        (1, 11, 12, 8),
        lambda n, x: b.parallel(n, x, 12, (4, 3, 2), bias=True),
        "1 Conv 4x4",
        "tf2onnx",
    ),
    _row(
        "repvgg_net",
        (1, 27, 30, 3),
        lambda n, x: b.repvgg_net(n, x, (6, 8, 12), 10),
        "6 Convs 3x3, pooling, Dense",
        "tf2onnx tf2onnx-op18 tfkeras export torch",
        activation=False,
        gain=0.45,
    ),
    _row(
        "dbb_net",
        (1, 12, 12, 3),
        lambda n, x: b.dbb_net(n, x, (6, 8, 6)),
        "3 Convs 3x3 + 3 constant maps",
        "tf2onnx tfkeras",
        activation=False,
    ),
    _row(
        "residual_net",
        (1, 15, 16, 3),
        b.residual_net,
        "5 Convs 3x3 and 1 Conv 1x1, BN folded, both Adds kept, pooling, Dense",
        "tf2onnx tfkeras",
        activation=False,
    ),
)
