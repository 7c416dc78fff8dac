"""The table of systems that `export_paddle.py` exports: a name, a model, an input shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import blocks_paddle as b
import networks_paddle as networks
from paddle import nn

SMALL = "not made, to keep the fixtures small"


@dataclass(frozen=True)
class System:
    """One model to export; `skip` maps a kind of export to the reason for leaving it out.

    `best` says in words the best exact form of the block, as arithmetic gives it. `kinds` lists
    the further kinds to export, `gain` is what `fill` takes.
    """

    name: str
    build: Callable[[], nn.Layer]
    shape: tuple[int, int, int, int]
    best: str
    gain: float = 0.6
    kinds: tuple[str, ...] = ()
    skip: dict[str, str] = field(default_factory=dict)


def _row(
    name: str,
    shape: tuple[int, int, int, int],
    best: str,
    build: Callable[[], nn.Layer],
    activation: Callable[[], nn.Layer] | None = nn.ReLU,
    gain: float = 0.6,
    kinds: tuple[str, ...] = (),
    skip: dict[str, str] | None = None,
) -> System:
    def model() -> nn.Layer:
        return build() if activation is None else nn.Sequential(build(), activation())

    return System(name, model, shape, best, gain, kinds, skip or {})


NO_RAW = {"raw": SMALL}
NO_DYN = {"default-dyn": SMALL}
ONE = "1 Conv 3x3"
ONE_5 = "1 Conv 5x5"
DEPTHWISE = "1 depthwise Conv 3x3"
PADDED = "1 Conv 3x3: the pad value 1e-38 is within rounding of zero"
BORDER_MAP = (
    "1 Conv 3x3 and a constant map [1,C,H,W], 0 inside; "
    "open sizes: 3 Convs, or 1 with a channel of ones"
)
ZERO_POOL = (
    "merged 3x3 Conv, the pool's 1x1 Conv holding its two BNs, exclude-pad AveragePool, constant "
    "map [1,C,H,W], 0 inside; open sizes: 4 Convs and the pool, or 2 and the pool with a channel "
    "of ones"
)
SAME_STRIDED = (
    "1 Conv 5x5 with pads; open sizes: a 5x5 SAME Conv that holds the 3x3, and the 1x1 Conv, "
    "whose place under the 5x5 depends on the parity of height and width"
)

SYSTEMS: tuple[System, ...] = (
    _row(
        "repvgg_s1",
        (1, 8, 12, 12),
        ONE,
        lambda: b.repvgg(8, 8),
        kinds=("op7", "op11", "op16"),
    ),
    _row("repvgg_s1_bias", (1, 8, 11, 12), ONE, lambda: b.repvgg(8, 8, bias=True), skip=NO_DYN),
    _row(
        "repvgg_s1_g2",
        (1, 8, 11, 13),
        ONE + ", group 2",
        lambda: b.repvgg(8, 8, groups=2),
        skip=NO_RAW,
    ),
    _row("repvgg_s2_even", (1, 8, 12, 14), ONE, lambda: b.repvgg(8, 12, 2), skip=NO_RAW),
    _row("repvgg_s2_odd", (1, 8, 13, 15), ONE, lambda: b.repvgg(8, 12, 2), skip=NO_RAW),
    _row("acnet_k3", (1, 8, 12, 11), ONE, lambda: b.acnet(8, 12), skip=NO_RAW),
    _row("acnet_k3_s2", (1, 8, 13, 12), ONE, lambda: b.acnet(8, 12, stride=2), skip=NO_RAW),
    _row(
        "acnet_k3_crop",
        (1, 8, 12, 11),
        ONE + ", unpadded",
        lambda: b.acnet(8, 12, padded=False),
        kinds=("op7", "op16"),
    ),
    _row("dbb_map_s1", (1, 8, 12, 12), ONE, lambda: b.dbb(8, 8), kinds=("op7", "op16", "op16-dyn")),
    _row("dbb_map_s2", (1, 8, 9, 8), ONE, lambda: b.dbb(8, 12, stride=2), skip=NO_RAW | NO_DYN),
    _row("dbb_map_k5", (1, 8, 7, 8), ONE_5, lambda: b.dbb(8, 8, 5), skip=NO_RAW | NO_DYN),
    _row("dbb_map8_s1", (1, 8, 12, 11), ONE, lambda: b.dbb(8, 12, way="map8")),
    _row(
        "dbb_strips_s1",
        (1, 8, 12, 12),
        ONE,
        lambda: b.dbb(8, 8, way="strips"),
        kinds=("op7", "op16", "op16-dyn"),
    ),
    _row(
        "dbb_strips_s2",
        (1, 8, 12, 13),
        ONE,
        lambda: b.dbb(8, 12, stride=2, way="strips"),
        skip=NO_RAW | NO_DYN,
    ),
    _row(
        "dbb_strips_k5_s2",
        (1, 8, 12, 13),
        ONE_5,
        lambda: b.dbb(8, 8, 5, stride=2, way="strips"),
        skip=NO_RAW | NO_DYN,
    ),
    _row("dbb_assign_s1", (1, 8, 12, 12), ONE, lambda: b.dbb(8, 8, way="assign")),
    _row(
        "dbb_assign_s2",
        (1, 8, 13, 12),
        ONE,
        lambda: b.dbb(8, 8, stride=2, way="assign"),
        skip=NO_RAW | NO_DYN,
    ),
    _row("dbb_map_no_pool", (1, 8, 12, 12), ONE, lambda: b.dbb(8, 8, pool=False), skip=NO_RAW),
    _row("dbb_zeros_s1", (1, 8, 12, 12), ZERO_POOL, lambda: b.dbb(8, 8, way="zeros")),
    _row(
        "dbb_zeros_s2",
        (1, 8, 13, 12),
        ZERO_POOL,
        lambda: b.dbb(8, 12, stride=2, way="zeros"),
        skip=NO_RAW,
    ),
    _row(
        "dbb_zeros_no_pool",
        (1, 8, 12, 12),
        BORDER_MAP,
        lambda: b.dbb(8, 8, way="zeros", pool=False),
    ),
    _row("mobileone_dw_s1", (1, 8, 12, 12), DEPTHWISE, lambda: b.mobileone(8, 8, 3)),
    _row(
        "mobileone_dw_s2", (1, 8, 13, 12), DEPTHWISE, lambda: b.mobileone(8, 8, 3, 2), skip=NO_RAW
    ),
    _row("mobileone_pw", (1, 8, 12, 11), "1 Conv 1x1", lambda: b.mobileone(8, 8, 1), skip=NO_RAW),
    _row(
        "lcnetv3_s1",
        (1, 8, 12, 12),
        DEPTHWISE + "; hardswish and the affine map behind it stay",
        lambda: b.lcnetv3_layer(8, 8, 3, 1, 8),
        activation=None,
        kinds=("op7", "op11", "op16"),
    ),
    _row(
        "lcnetv3_s21",
        (1, 8, 12, 13),
        DEPTHWISE + "; hardswish and the affine map behind it stay",
        lambda: b.lcnetv3_layer(8, 8, 3, (2, 1), 8),
        activation=None,
        skip=NO_RAW,
    ),
    _row(
        "lcnetv3_s12",
        (1, 8, 13, 12),
        "1 depthwise Conv 5x5; hardswish and the affine map behind it stay",
        lambda: b.lcnetv3_layer(8, 8, 5, (1, 2), 8),
        activation=None,
        skip=NO_RAW | NO_DYN,
    ),
    _row(
        "lcnetv3_s2",
        (1, 8, 12, 13),
        DEPTHWISE,
        lambda: b.lcnetv3_layer(8, 8, 3, 2, 8),
        activation=None,
        skip=NO_RAW,
    ),
    _row(
        "lcnetv3_pw",
        (1, 8, 12, 12),
        "1 Conv 1x1; hardswish and the affine map behind it stay",
        lambda: b.lcnetv3_layer(8, 12, 1),
        activation=None,
        skip=NO_RAW | NO_DYN,
    ),
    _row(
        "lcnetv2_dw_s1",
        (1, 8, 12, 11),
        "1 depthwise Conv 5x5",
        lambda: b.lcnetv2_depthwise(8),
        nn.Hardswish,
        skip=NO_RAW,
    ),
    _row(
        "lcnetv2_dw_s2",
        (1, 8, 13, 12),
        "1 depthwise Conv 5x5",
        lambda: b.lcnetv2_depthwise(8, 2),
        nn.Hardswish,
        skip=NO_RAW,
    ),
    _row("ppyoloe", (1, 8, 12, 12), ONE, lambda: b.ppyoloe(8, 8), nn.Swish, kinds=("op16",)),
    _row(
        "bsconv_u",
        (1, 8, 12, 12),
        "1x1 Conv, depthwise 3x3 Conv with its BN folded",
        lambda: b.bsconv_u(8, 12, bn=False),
        skip=NO_RAW | NO_DYN,
    ),
    _row(
        "bsconv_u_bn",
        (1, 8, 12, 11),
        "1x1 Conv, depthwise 3x3 Conv, both BNs folded",
        lambda: b.bsconv_u(8, 12, bn=True),
        skip=NO_RAW | NO_DYN,
    ),
    _row("residual", (1, 8, 12, 12), ONE, lambda: b.residual(8)),
    _row(
        "pad2d_s1",
        (1, 8, 12, 11),
        PADDED,
        lambda: b.padded_branch(8, 12, nn.Pad2D(1)),
        kinds=("op11", "op16"),
    ),
    _row(
        "pad2d_s2",
        (1, 8, 12, 11),
        PADDED,
        lambda: b.padded_branch(8, 12, nn.Pad2D([1, 1, 1, 1]), 2),
        skip=NO_RAW,
    ),
    _row(
        "zeropad2d_s1",
        (1, 8, 11, 12),
        PADDED,
        lambda: b.padded_branch(8, 8, nn.ZeroPad2D(1)),
        skip=NO_RAW | NO_DYN,
    ),
    _row("pad8_s1", (1, 8, 12, 12), ONE, lambda: b.padded_branch(8, 8, b.Pad8())),
    _row("same_s1", (1, 8, 12, 11), ONE_5, lambda: b.same_branches(8, 12)),
    _row(
        "same_s2_even", (1, 8, 12, 14), SAME_STRIDED, lambda: b.same_branches(8, 12, 2), skip=NO_RAW
    ),
    _row(
        "same_s2_odd", (1, 8, 13, 11), SAME_STRIDED, lambda: b.same_branches(8, 12, 2), skip=NO_RAW
    ),
    _row(
        "lab_1x1",
        (1, 8, 12, 12),
        "Conv 3x3, ReLU, Conv 1x1 holding the scalar affine map",
        lambda: nn.Sequential(networks.lab_conv(8, 8, 3), b.conv(8, 12, 1)),
        skip=NO_RAW,
    ),
    _row(
        "lab_3x3",
        (1, 8, 12, 11),
        "Conv 3x3, ReLU, Conv 3x3 holding the scale, and a constant map for the shift; "
        "open sizes: an Add of the shift before the second Conv stays",
        lambda: nn.Sequential(networks.lab_conv(8, 8, 3), b.conv(8, 12, 3, padding=1)),
        skip=NO_RAW,
    ),
    _row(
        "hgnetv2_block",
        (1, 8, 12, 12),
        "5 Convs with their BNs folded; the first 1x1 layer's affine map is in the second 1x1 "
        "Conv, the last 3x3 layer's in the first 1x1 Conv through the Concat; those of the other "
        "3x3 layers, which a padded Conv reads too, and the block's last one stay",
        lambda: networks.HGBlock(8, 6, 12, 3),
        activation=None,
        skip=NO_RAW,
    ),
    _row(
        "repvgg_net",
        (1, 3, 32, 32),
        "6 Convs 3x3, each with a ReLU",
        lambda: networks.repvgg_net((8, 8, 12), classes=10),
        activation=None,
        skip=NO_RAW,
    ),
    _row(
        "lcnetv3_net",
        (1, 3, 32, 32),
        "stem Conv, 3 depthwise and 3 pointwise Convs, 2 Convs of the gate; the affine map behind "
        "a hardswish is in the pointwise Conv that reads it, the others stay",
        lambda: networks.lcnetv3_net(classes=10),
        activation=None,
        skip=NO_RAW | NO_DYN,
    ),
)
