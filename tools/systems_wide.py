"""The systems of fixtures/pytorch at the widths and sizes of real networks, for the benchmark.

The fixtures are narrow, to be small; what a runtime takes for eight channels says little. Blocks
have 64 or 128 channels here, on maps that networks of 224×224 have where such blocks stand; the
networks have half their published widths, DBB-ResNet-18 a quarter, since hand-merged forms are
measured impulse by impulse. ResNet-50 has all of it, for what a tool takes for a usual file.
"""

from __future__ import annotations

from collections.abc import Callable

import blocks_pytorch as b
from systems_pytorch import UNIREP_13, System
from torch import nn

SKIPPED = dict.fromkeys(("preserve", "dynamo", "ts-dyn", "dynamo-dyn"), "not measured")
WHOLE = dict.fromkeys(("ts", "dynamo", "ts-dyn", "dynamo-dyn", "deploy"), "not measured")
"""What is skipped of a network that is only rewritten."""


def _row(
    name: str, channels: int, size: int, block: Callable[[], nn.Module], gain: float = 0.6
) -> System:
    """A block that a Relu follows, on maps of ``size``×``size``."""
    return System(
        name, lambda: nn.Sequential(block(), nn.ReLU()), (1, channels, size, size), SKIPPED, gain
    )


def _network(
    name: str,
    build: Callable[[], nn.Module],
    gain: float,
    shape: tuple[int, int, int, int] = (1, 3, 224, 224),
    skip: dict[str, str] = SKIPPED,
) -> System:
    return System(name, build, shape, skip, gain)


def _basic_block() -> nn.Module:
    return b.Residual(nn.Sequential(b.conv_block(64, 64, 3), nn.ReLU(), b.conv_block(64, 64, 3)))


def _mobilenet_block() -> nn.Module:
    narrow = b.conv_block(128, 128, 3, groups=128)
    return nn.Sequential(narrow, nn.ReLU6(), b.conv_block(128, 128, 1), nn.ReLU6())


def _dbb_stack(channels: int, depth: int) -> nn.Module:
    layers = [layer for _ in range(depth) for layer in (b.dbb(channels, channels), nn.ReLU())]
    return nn.Sequential(*layers)


def _resnet18() -> nn.Module:
    """ResNet-18, half as wide: nothing to merge once an exporter has folded its BNs."""
    layers: list[nn.Module] = [b.conv_block(3, 32, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 32
    for stage, width in enumerate((32, 64, 128, 256)):
        for index in range(2):
            stride = 2 if stage > 0 and index == 0 else 1
            first, second = b.conv_block(channels, width, 3, stride), b.conv_block(width, width, 3)
            same = stride == 1 and channels == width
            shortcut = None if same else b.conv_block(channels, width, 1, stride)
            layers.append(b.Residual(nn.Sequential(first, nn.ReLU(), second), shortcut))
            channels = width
    return nn.Sequential(*layers, b.head(channels, 1000))


def _resnet50() -> nn.Module:
    """ResNet-50; exported in training's form, so that no exporter folds its BNs."""
    layers: list[nn.Module] = [b.conv_block(3, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            body = [
                b.conv_block(channels, width, 1),
                nn.ReLU(),
                b.conv_block(width, width, 3, stride),
            ]
            body += [nn.ReLU(), b.conv_block(width, 4 * width, 1)]
            shortcut = None if index else b.conv_block(channels, 4 * width, 1, stride)
            layers.append(b.Residual(nn.Sequential(*body), shortcut))
            channels = 4 * width
    return nn.Sequential(*layers, b.head(channels, 1000))


def _mobileone() -> nn.Module:
    """A network of MobileOne-S1's depth and half its widths, less its squeeze-and-excitation."""
    layers: list[nn.Module] = [b.mobileone(3, 32, 3, stride=2), nn.ReLU()]
    channels = 32
    for width, depth in ((48, 2), (96, 8), (256, 10), (640, 1)):
        for index in range(depth):
            stride = 2 if index == 0 else 1
            layers += [b.mobileone(channels, channels, 3, stride, groups=channels), nn.ReLU()]
            layers += [b.mobileone(channels, width, 1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, b.head(channels, 1000))


SYSTEMS: tuple[System, ...] = (
    _row("two_conv3x3", 64, 56, lambda: b.two_conv3x3(64)),
    _row("repvgg_s1_g1", 64, 56, lambda: b.repvgg(64, 64)),
    _row("repvgg_s1_g2", 64, 56, lambda: b.repvgg(64, 64, groups=2)),
    _row("repvgg_s2_g1", 64, 56, lambda: b.repvgg(64, 128, stride=2)),
    _row("repvgg_s2_g2", 64, 56, lambda: b.repvgg(64, 128, stride=2, groups=2)),
    _row("acnet_k3", 64, 56, lambda: b.acnet(64, 64, 3)),
    _row("acnet_k3_shared_bn", 64, 56, lambda: b.acnet(64, 64, 3, shared_bn=True)),
    _row("acnet_k3_crop", 64, 56, lambda: b.acnet(64, 64, 3, padding=0)),
    _row("acnet_k5", 64, 28, lambda: b.acnet(64, 64, 5)),
    _row("acnet_k5_crop", 64, 28, lambda: b.acnet(64, 64, 5, padding=0)),
    _row("acnet_k5_pad1_crop", 64, 28, lambda: b.acnet(64, 64, 5, padding=1)),
    _row("acnet_k3_s2", 64, 56, lambda: b.acnet(64, 128, 3, stride=2)),
    _row("acnet_k3_g2", 64, 56, lambda: b.acnet(64, 64, 3, groups=2)),
    _row("dbb_k3_s1", 64, 56, lambda: b.dbb(64, 64)),
    _row("dbb_k3_s2", 64, 56, lambda: b.dbb(64, 128, stride=2)),
    _row("dbb_k5_s1", 64, 28, lambda: b.dbb(64, 64, 5)),
    _row("dbb_k5_s2", 64, 28, lambda: b.dbb(64, 64, 5, stride=2)),
    _row("dbb_k3_g2", 64, 56, lambda: b.dbb(64, 64, groups=2)),
    _row("dbb_k3_identity", 64, 56, lambda: b.dbb(64, 64, identity_1x1=True)),
    _row("dbb_k3_not_affine", 64, 56, lambda: b.dbb(64, 64, affine=False)),
    _row("dbb_k3_depthwise", 128, 28, lambda: b.dbb(128, 128, groups=128)),
    _row("mobileone_dw", 128, 28, lambda: b.mobileone(128, 128, 3, groups=128)),
    _row("mobileone_dw_s2", 128, 28, lambda: b.mobileone(128, 128, 3, stride=2, groups=128)),
    _row("mobileone_pw", 128, 28, lambda: b.mobileone(128, 128, 1)),
    _row("bsconv_u", 64, 56, lambda: b.bsconv_u(64, 128, bn=False)),
    _row("bsconv_u_bn", 64, 56, lambda: b.bsconv_u(64, 128, bn=True)),
    _row("bsconv_s", 64, 56, lambda: b.bsconv_s(64, 128, bn=False)),
    _row("bsconv_s_bn", 64, 56, lambda: b.bsconv_s(64, 128, bn=True)),
    _row("replk_13", 128, 28, lambda: b.dilated_depthwise(128, ((13, 1), (5, 1)))),
    _row("unirep_13", 128, 28, lambda: b.dilated_depthwise(128, UNIREP_13)),
    _network("basic_block", _basic_block, 0.6, (1, 64, 56, 56)),
    _network("mobilenet_block", _mobilenet_block, 0.6, (1, 128, 28, 28)),
    _network("dbb_stack5", lambda: _dbb_stack(64, 5), 0.6, (1, 64, 28, 28)),
    _network("repvgg_a0", lambda: b.repvgg_a0((24, 24, 48, 96, 640), classes=1000), 0.2),
    _network("mobileone", _mobileone, 0.03),
    _network("resnet18", _resnet18, 0.9),
    _network("resnet50", _resnet50, 0.9, skip=WHOLE),
    _network("dbb_resnet18", lambda: b.dbb_resnet18((16, 32, 64, 128), classes=1000), 0.3),
)
