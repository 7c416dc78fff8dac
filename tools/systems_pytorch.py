"""The table of systems that `export_pytorch.py` exports: a name, a model, an input shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import blocks_pytorch as b
from torch import nn

DBB_DYNAMIC_TS = (
    "the TorchScript exporter fixes the extents of BNAndPad's slice assignments at the example "
    "input's: with another height or width onnxruntime fails on an Expand"
)
NETWORK_DYNAMIC = "not made, to keep the fixtures small: the single blocks have it"
DBB_PRESERVE = "not made, to keep the fixtures small: dbb_k3_s1 and dbb_k5_s1 have it"


@dataclass(frozen=True)
class System:
    """One model to export; `skip` maps a kind of export to the reason for leaving it out.

    `gain` is what `fill` takes, chosen so that outputs are of size 1 to 10 and depend on the input.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    skip: dict[str, str]
    gain: float


def _row(
    name: str,
    shape: tuple[int, int, int, int],
    build: Callable[[], nn.Module],
    skip: dict[str, str] | None = None,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
    gain: float = 0.6,
) -> System:
    def model() -> nn.Module:
        return build() if activation is None else nn.Sequential(build(), activation())

    return System(name, model, shape, skip or {}, gain)


def _dbb_stack() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(7):
        layers += [b.dbb(8, 8), nn.ReLU()]
    return nn.Sequential(*layers)


def _basic_block() -> nn.Module:
    body = nn.Sequential(b.conv_block(8, 8, 3), nn.ReLU(), b.conv_block(8, 8, 3))
    return b.Residual(body)


def _mobilenet_block() -> nn.Module:
    return nn.Sequential(
        b.conv_block(8, 8, 3, groups=8), nn.ReLU6(), b.conv_block(8, 16, 1), nn.ReLU6()
    )


UNIREP_13 = ((13, 1), (5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
NO_DBB_TS = {"ts-dyn": DBB_DYNAMIC_TS}
NO_DBB_TS_NOR_PRESERVE = {**NO_DBB_TS, "preserve": DBB_PRESERVE}
NO_DYNAMIC = {"ts-dyn": NETWORK_DYNAMIC, "dynamo-dyn": NETWORK_DYNAMIC}

SYSTEMS: tuple[System, ...] = (
    _row("two_conv3x3", (1, 8, 12, 12), lambda: b.two_conv3x3(8)),
    _row("repvgg_s1_g1", (1, 8, 12, 12), lambda: b.repvgg(8, 8)),
    _row("repvgg_s1_g2", (1, 8, 11, 13), lambda: b.repvgg(8, 8, groups=2)),
    _row("repvgg_s2_g1", (1, 8, 13, 12), lambda: b.repvgg(8, 12, stride=2)),
    _row("repvgg_s2_g2", (1, 8, 12, 15), lambda: b.repvgg(8, 16, stride=2, groups=2)),
    _row("acnet_k3", (1, 8, 12, 12), lambda: b.acnet(8, 12, 3)),
    _row("acnet_k3_shared_bn", (1, 8, 9, 13), lambda: b.acnet(8, 12, 3, shared_bn=True)),
    _row("acnet_k3_crop", (1, 8, 12, 11), lambda: b.acnet(8, 12, 3, padding=0)),
    _row("acnet_k5", (1, 8, 12, 11), lambda: b.acnet(8, 8, 5)),
    _row("acnet_k5_crop", (1, 8, 13, 12), lambda: b.acnet(8, 8, 5, padding=0)),
    _row("acnet_k5_pad1_crop", (1, 8, 11, 12), lambda: b.acnet(8, 8, 5, padding=1)),
    _row("acnet_k3_s2", (1, 8, 13, 12), lambda: b.acnet(8, 12, 3, stride=2)),
    _row("acnet_k3_g2", (1, 8, 12, 9), lambda: b.acnet(8, 12, 3, groups=2)),
    _row("dbb_k3_s1", (1, 8, 12, 12), lambda: b.dbb(8, 8), NO_DBB_TS),
    _row("dbb_k3_s2", (1, 8, 13, 12), lambda: b.dbb(8, 12, stride=2), NO_DBB_TS_NOR_PRESERVE),
    _row("dbb_k5_s1", (1, 8, 11, 12), lambda: b.dbb(8, 12, 5), NO_DBB_TS),
    _row("dbb_k5_s2", (1, 8, 12, 15), lambda: b.dbb(8, 8, 5, stride=2), NO_DBB_TS_NOR_PRESERVE),
    _row("dbb_k3_g2", (1, 8, 12, 11), lambda: b.dbb(8, 12, groups=2), NO_DBB_TS_NOR_PRESERVE),
    _row("dbb_k3_identity", (1, 8, 12, 12), lambda: b.dbb(8, 8, identity_1x1=True), NO_DBB_TS),
    _row("dbb_k3_not_affine", (1, 8, 9, 12), lambda: b.dbb(8, 8, affine=False), NO_DBB_TS),
    _row("dbb_k3_depthwise", (1, 8, 12, 13), lambda: b.dbb(8, 8, groups=8), NO_DBB_TS),
    _row("mobileone_dw", (1, 8, 12, 12), lambda: b.mobileone(8, 8, 3, groups=8)),
    _row("mobileone_dw_s2", (1, 8, 13, 12), lambda: b.mobileone(8, 8, 3, stride=2, groups=8)),
    _row("mobileone_pw", (1, 8, 12, 11), lambda: b.mobileone(8, 8, 1)),
    _row("bsconv_u", (1, 8, 12, 12), lambda: b.bsconv_u(8, 12, bn=False)),
    _row("bsconv_u_bn", (1, 8, 12, 11), lambda: b.bsconv_u(8, 12, bn=True)),
    _row("bsconv_s", (1, 8, 11, 12), lambda: b.bsconv_s(8, 12, bn=False)),
    _row("bsconv_s_bn", (1, 8, 12, 12), lambda: b.bsconv_s(8, 12, bn=True)),
    _row("replk_13", (1, 8, 15, 16), lambda: b.dilated_depthwise(8, ((13, 1), (5, 1)))),
    _row("unirep_13", (1, 8, 16, 15), lambda: b.dilated_depthwise(8, UNIREP_13)),
    _row("basic_block", (1, 8, 12, 12), _basic_block, activation=None),
    _row("mobilenet_block", (1, 8, 12, 11), _mobilenet_block, activation=None),
    _row("dbb_stack7", (1, 8, 12, 12), _dbb_stack, NO_DBB_TS, activation=None),
    _row(
        "repvgg_a0",
        (1, 3, 64, 64),
        lambda: b.repvgg_a0((8, 8, 12, 16, 24), classes=10),
        NO_DYNAMIC,
        activation=None,
        gain=0.45,
    ),
    _row(
        "dbb_resnet18",
        (1, 3, 64, 64),
        lambda: b.dbb_resnet18((4, 4, 8, 12), classes=10),
        NO_DYNAMIC,
        activation=None,
        gain=0.9,
    ),
)
