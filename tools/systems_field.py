"""The table of systems in `fixtures/field`: published blocks, their shapes and kinds of export.

`forms_field` has the best exact form of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import blocks_field_conv as c
import blocks_field_linear as t
import blocks_field_mobile as m
from blocks_field import Scale, Sum, conv
from systems_pytorch import System
from torch import nn

MAP = {0: "batch", 2: "height", 3: "width"}
ROW = {0: "batch", 2: "length"}
VOLUME = {0: "batch", 2: "depth", 3: "height", 4: "width"}
TOKENS = {0: "batch", 1: "tokens"}
VECTOR = {0: "batch"}


@dataclass(frozen=True)
class FieldSystem(System):
    """A system with the kinds it is exported as, and the axes that may be left open."""

    kinds: tuple[str, ...]
    axes: dict[int, str]


def _row(
    name: str,
    shape: tuple[int, ...],
    build: Callable[[], nn.Module],
    *more: str,
    act: Callable[[], nn.Module] | None = None,
    axes: dict[int, str] = MAP,
) -> FieldSystem:
    def model() -> nn.Module:
        return build() if act is None else nn.Sequential(build(), act())

    return FieldSystem(name, model, shape, {}, 0.6, ("ts", "dynamo", *more), axes)


PRE, DYN = "preserve", "dynamo-dyn"
RELU, SILU = nn.ReLU, nn.SiLU
A, B, S = (1, 8, 12, 11), (1, 8, 11, 12), (1, 8, 13, 12)
TOKEN, VEC = (2, 6, 8), (3, 8)

CONVOLUTIONS = (
    _row("repvgg_se", A, lambda: nn.Sequential(c.repvgg(8, 8), c.SqueezeExcite(8, 4)), act=RELU),
    _row("repvgg_1d", (1, 8, 20), lambda: c.repvgg(8, 8, rank=1), PRE, DYN, act=RELU, axes=ROW),
    _row("repvgg_1d_s2", (1, 8, 21), lambda: c.repvgg(8, 12, 2, 2, rank=1), act=RELU, axes=ROW),
    _row(
        "repvgg_3d",
        (1, 4, 6, 7, 5),
        lambda: c.repvgg(4, 4, rank=3),
        PRE,
        DYN,
        act=RELU,
        axes=VOLUME,
    ),
    _row("acnet_1d", (1, 8, 20), lambda: c.acnet(8, 8, 5, 1), act=RELU, axes=ROW),
    _row("acnet_3d", (1, 4, 6, 7, 5), lambda: c.acnet(4, 6, 3, 3), DYN, act=RELU, axes=VOLUME),
    _row("qarep", A, lambda: c.qarepvgg(8, pool=False), PRE, DYN, act=RELU),
    _row("qarep_pool", B, lambda: c.qarepvgg(8, pool=True), PRE, DYN, act=RELU),
    _row("yolonas", A, lambda: c.yolonas(8), act=RELU),
    _row("linear_add", A, lambda: c.linear_add(8), DYN, act=RELU),
    _row("yolov7_repconv", A, lambda: c.repvgg(8, 8), act=SILU),
    _row("yolov7_implicit", A, lambda: nn.Sequential(nn.ReLU(), c.implicit_head(8, 6)), DYN),
    _row("yolov9_repconvn", B, lambda: Sum(conv(8, 12, k) for k in (3, 1)), act=SILU),
    _row("ppyoloe", B, lambda: c.ppyoloe(8, 12), act=SILU),
    _row("textnet", A, lambda: c.textnet(8, 8, (3, 3)), act=RELU),
    _row("textnet_s2", S, lambda: c.textnet(8, 12, (3, 3), 2), act=RELU),
    _row("textnet_flat", A, lambda: c.textnet(8, 8, (1, 3)), PRE, act=RELU),
    _row("ecbsr", B, lambda: c.ecb(8, [c.SOBEL_X, c.LAPLACIAN]), PRE),
    _row("ecbsr_open", (1, 4, 11, 12), lambda: c.ecb(4, [c.SOBEL_Y]), DYN),
    _row("orepa", A, lambda: c.OnlineConv(8, 12), PRE, DYN, act=RELU),
    _row("span", A, lambda: c.conv3xc(8, 2), DYN, act=lambda: nn.LeakyReLU(0.05)),
    _row("vanillanet_stem", (1, 3, 16, 20), lambda: c.vanilla_stem(3, 16), PRE, DYN, act=RELU),
    _row("vanillanet_block", (1, 8, 12, 10), lambda: c.vanilla_block(8), PRE),
    _row("slak", (1, 4, 16, 15), lambda: c.slak(4, 51, 5), PRE, act=RELU),
    _row("some_pay", A, lambda: c.some_pay(8), PRE, act=RELU),
    _row(
        "bsconv_u",
        A,
        lambda: nn.Sequential(conv(8, 12, 1), conv(12, 12, 3, groups=12)),
        PRE,
        act=RELU,
    ),
    _row(
        "bsconv_s",
        A,
        lambda: nn.Sequential(conv(8, 2, 1, bn=False), conv(2, 12, 1), conv(12, 12, 3, groups=12)),
        PRE,
        act=RELU,
    ),
    _row("bottleneck", (1, 16, 9, 10), lambda: c.dense_chain(16, 4, 4, 16), PRE, act=RELU),
    _row("expansion", A, lambda: c.dense_chain(8, 32, 32, 8, middle=1), PRE, act=RELU),
    _row("concat_same", A, lambda: c.side_by_side(8, (3, 3)), DYN, act=RELU),
    _row("concat_mixed", A, lambda: c.side_by_side(8, (3, 3, 1)), act=RELU),
    _row("split_concat", A, lambda: c.split_transform(8), DYN, act=RELU),
    _row("chunk_conv", A, lambda: c.chunk_conv(8, 11), PRE, act=RELU),
)

TRANSPOSED = (
    _row("deconv_head", (1, 8, 5, 6), lambda: c.detection_head(8), DYN),
    _row(
        "deconv_scale",
        (1, 8, 5, 6),
        lambda: nn.Sequential(nn.ReLU(), Scale(1, 8, 1, 1), c.deconv(8, 6, 2, bias=True)),
        DYN,
    ),
    _row(
        "deconv_bn_first",
        (1, 8, 5, 6),
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8), c.deconv(8, 6, 2)),
    ),
    _row(
        "deconv_pointwise",
        (1, 8, 5, 6),
        lambda: nn.Sequential(conv(8, 8, 1, bn=False), c.deconv(8, 8, 2, bias=True), conv(8, 8, 1)),
        DYN,
        act=RELU,
    ),
    _row(
        "deconv_sum", (1, 8, 5, 6), lambda: c.deconv_sum(8, 6, (4, 1, 0), (4, 1, 0)), DYN, act=RELU
    ),
    _row("deconv_nested", (1, 8, 5, 6), lambda: c.deconv_sum(8, 6, (4, 1, 0), (2, 0, 0)), act=RELU),
    _row(
        "deconv_output_padding",
        (1, 8, 5, 6),
        lambda: c.deconv_sum(8, 6, (3, 1, 1), (2, 0, 0)),
        DYN,
        act=RELU,
    ),
    _row(
        "deconv_depthwise",
        (1, 8, 5, 6),
        lambda: nn.Sequential(c.deconv(8, 8, 4, 1, groups=8), nn.BatchNorm2d(8), conv(8, 8, 1)),
        act=RELU,
    ),
)

MOBILE = (
    _row("mobileone_pw", A, lambda: m.mobileone(8, 1, 4), act=RELU),
    _row("repmixer", A, lambda: m.RepMixer(8, 3), PRE, DYN),
    _row("repcpe", B, lambda: m.position_encoding(8), DYN, act=RELU),
    _row("fastvit_patch", S, lambda: m.patch_embedding(8), act=RELU),
    _row("fastvit_ffn", A, lambda: m.feed_forward(8), PRE),
    _row("mobileclip_text", (2, 13, 8), lambda: m.text_mixer(8, 11), DYN, axes=TOKENS),
    _row("repvit", A, lambda: m.repvit(8), PRE, DYN, act=RELU),
    _row("yolov10_repvggdw", A, lambda: m.two_depthwise(8, 7, 3), act=SILU),
    _row("lcnetv2", A, lambda: m.two_depthwise(8, 5, 3, 1), act=RELU),
    _row("lcnetv3_s21", S, lambda: m.light_block(8, 3, (2, 1)), PRE, DYN),
    _row("lcnetv3_s12", S, lambda: m.light_block(8, 5, (1, 2))),
    _row("lcnetv3_s2", S, lambda: m.light_block(8, 3, 2)),
    _row("lab_1x1", A, lambda: m.lab_stage(8, 1), DYN),
    _row("lab_3x3", A, lambda: m.lab_stage(8, 3), DYN),
    _row("repghost", A, lambda: m.repghost(8), PRE),
    _row("ghostnetv3", (1, 8, 12, 10), lambda: m.GhostV3(8), PRE),
    _row("repnext_small", A, lambda: m.repnext_small(8), DYN, act=RELU),
    _row("repnext_serial_in_7x7", A, lambda: m.repnext_medium(8, 7), DYN, act=RELU),
    _row("repnext_serial_alone", A, lambda: m.repnext_medium(8, 3), act=RELU),
    _row("repnext_down", S, lambda: m.repnext_medium(8, 3, 2), DYN, act=RELU),
    _row("replknet", (1, 8, 15, 14), lambda: m.replk_block(8, 13), PRE, DYN),
    _row(
        "unireplknet_outer",
        (1, 8, 15, 14),
        lambda: m.dilated(8, 9, (5, 1), (3, 3), (5, 2)),
        PRE,
        DYN,
        act=RELU,
    ),
    _row("efficientvit", A, lambda: m.linear_embedding(8), PRE),
    _row("tinyvit", A, lambda: m.inverted_residual(8), PRE),
    _row("nextvit_mlp", A, lambda: m.next_mlp(8), DYN),
)

LINEAR = (
    _row("lora", TOKEN, lambda: t.lora(8, 12, 2), DYN, axes=TOKENS),
    _row("lora_vector", VEC, lambda: t.lora(8, 12, 2), DYN, axes=VECTOR),
    _row("lora_conv", A, lambda: t.lora_conv(8, 12, 2), DYN),
    _row("slab", TOKEN, lambda: t.slab(8, 12), DYN, axes=TOKENS),
    _row("levit_linear_bn", TOKEN, lambda: t.LinearBN(8, 12), DYN, act=nn.Hardswish, axes=TOKENS),
    _row("bn_linear", VEC, lambda: t.bn_linear(8, 12), DYN, axes=VECTOR),
    _row("two_heads", VEC, lambda: t.TwoHeads(8, 12), DYN, axes=VECTOR),
    _row("classifier", A, lambda: t.classifier(8, 12)),
    _row("arcface", (1, 8, 3, 4), lambda: t.embedding(8, 12, 10)),
    _row("linear_expansion", VEC, lambda: t.pointwise_chain(8, 32, 8), act=RELU, axes=VECTOR),
    _row("linear_bottleneck", VEC, lambda: t.pointwise_chain(8, 2, 8), act=RELU, axes=VECTOR),
    _row("nextvit_tokens", (1, 8, 4, 5), lambda: t.TokensBN(8, 12)),
    _row("nextvit_attention", (2, 8, 8), lambda: t.ReducedAttention(8, 2), axes=TOKENS),
    _row("repmlp", (1, 4, 4, 4), lambda: t.RepMLP(4, 4, 4), PRE, act=RELU),
    _row("unireplknet", (1, 8, 11, 12), lambda: t.UniRepBlock(8), PRE),
)

SYSTEMS: tuple[FieldSystem, ...] = CONVOLUTIONS + TRANSPOSED + MOBILE + LINEAR
