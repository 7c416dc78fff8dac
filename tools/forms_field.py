"""The best exact form of each block of `fixtures/field`, derived by hand, and what decides it.

A form lists the operators that work on data and must remain when neither multiply-accumulates
nor kernel parameters nor nodes may grow; what only computes constants or sizes is not counted.
Forms are not read off the package: where it does not reach one, `MISSING` names the law; the
marks of `tests/test_field.py` are strict, so that a law that arrives is noticed. This file imports
nothing.
"""

from __future__ import annotations

SUM = "a box that lies in another joins it for free"
SPLIT = "the merged kernel would raise MACs"

FORMS: dict[str, tuple[str, str]] = {
    "repvgg_se": (
        "Conv 3x3, GlobalAveragePool, Conv 1x1, Relu, Conv 1x1, Sigmoid, Mul, Relu",
        SUM + "; the gate's pool reads the whole map, so it is nothing to merge",
    ),
    "repvgg_1d": ("Conv 3, Relu", SUM),
    "repvgg_1d_s2": ("Conv 3/2 g2, Relu", SUM),
    "repvgg_3d": ("Conv 3x3x3, Relu", SUM),
    "acnet_1d": ("Conv 5, Relu", SUM),
    "acnet_3d": ("Conv 3x3x3, Relu", SUM),
    "qarep": ("Conv 3x3, Relu", "x is a 1x1 of ones; the BN behind the sum scales every branch"),
    "qarep_pool": ("Conv 3x3, Relu", "the pool counts its padding, so it is a depthwise 3x3"),
    "yolonas": ("Conv 3x3, Relu", "the scalar folds into the 1x1 and its bias"),
    "linear_add": ("Conv 3x3, Relu", "each factor is a depthwise 1x1"),
    "yolov7_repconv": ("Conv 3x3, Sigmoid, Mul", SUM),
    "yolov7_implicit": (
        "Relu, Conv 1x1",
        "the 1x1 pads nothing, so what is added before it is a bias behind it",
    ),
    "yolov9_repconvn": ("Conv 3x3, Sigmoid, Mul", SUM),
    "ppyoloe": ("Conv 3x3, Sigmoid, Mul", "the scalar folds into the 1x1"),
    "textnet": ("Conv 3x3, Relu", SUM),
    "textnet_s2": ("Conv 3x3/2, Relu", SUM),
    "textnet_flat": ("Conv 1x3, Relu", "the hull of a 1x3 and an identity is the 1x3"),
    "ecbsr": ("Conv 3x3, PRelu", "the border holds the bias, so 1x1 and mask are one 3x3"),
    "ecbsr_open": (
        "Conv 3x3, PRelu",
        "the border holds the bias, so 1x1 and mask are one 3x3; also at open sizes",
    ),
    "orepa": (
        "Conv 3x3, Relu",
        "the kernel is made of parameters alone, so it is a constant; the BN folds into it",
    ),
    "span": (
        "Conv 3x3, LeakyRelu",
        "the zeros stand before the first bias, so the serial branch is a padded 3x3",
    ),
    "vanillanet_stem": (
        "Conv 4x4/4, Relu",
        "a LeakyRelu of slope 1 is an identity; 768 weights do the work of 768 + 256",
    ),
    "vanillanet_block": (
        "Conv 1x1, MaxPool, Relu, Conv 3x3 g8",
        "a LeakyRelu of slope 1 is an identity, so two 1x1 are one",
    ),
    "slak": (
        "Conv 51x5 g4, Conv 5x51 g4, Add, Relu",
        "the 5x5 lies in a strip; both strips together would be 51x51, 2601 taps for 510",
    ),
    "some_pay": (
        "Conv 3x3, Conv 7x7 g8, Add, Relu",
        "the 1x1 joins the dense 3x3; a dense 7x7 would have 3136 weights for 576 + 392",
    ),
    "bsconv_u": (
        "Conv 1x1, Conv 3x3 g12, Relu",
        SPLIT + ": 864 weights for 96 + 108; only the BNs fold",
    ),
    "bsconv_s": (
        "Conv 1x1, Conv 1x1, Conv 3x3 g12, Relu",
        SPLIT + ": the product of rank 2 has 40 weights, the 1x1 that it equals 96",
    ),
    "bottleneck": (
        "Conv 1x1, Conv 3x3, Conv 1x1, Relu",
        SPLIT + ": 2304 weights for 64 + 144 + 64, and no two neighbours pay either",
    ),
    "expansion": ("Conv 1x1, Relu", "8 to 32 to 32 to 8 is 8 to 8: 64 weights for 1536"),
    "concat_same": (
        "Conv 3x3, Relu",
        "equal kernels of one input are stacked, and the Concat goes",
    ),
    "concat_mixed": (
        "Conv 3x3, Conv 1x1, Concat, Relu",
        "the two 3x3 are stacked; the 1x1 as a 3x3 would have nine times its weights",
    ),
    "split_concat": (
        "Conv 3x3 g2, Relu",
        "convolutions of equal shape on runs of the channels are one with groups",
    ),
    "chunk_conv": (
        "Split, Conv 3x3 g2, Conv 1x11 g2, Conv 11x1 g2, Concat, Relu",
        SPLIT + ": an 11x11 for each channel; only the BNs fold",
    ),
    "deconv_head": (
        "ConvTranspose 2x2/2, Relu, ConvTranspose 2x2/2, Sigmoid",
        "an affine map per channel behind a transposed convolution is in its kernel and bias",
    ),
    "deconv_scale": (
        "Relu, ConvTranspose 2x2/2",
        "a factor before a transposed convolution is in its kernel",
    ),
    "deconv_bn_first": (
        "Relu, BatchNormalization, ConvTranspose 2x2/2",
        (
            "the BN's shift comes out with another sum in each phase, which is no bias; the factor "
            "alone would leave an Add where the BN stands"
        ),
    ),
    "deconv_pointwise": (
        "ConvTranspose 2x2/2, Relu",
        "a 1x1 without bias before, any 1x1 behind: 256 MACs a pixel for 64 + 256 + 256",
    ),
    "deconv_sum": ("ConvTranspose 4x4/2, Relu", "equal geometry: the kernels add"),
    "deconv_nested": (
        "ConvTranspose 4x4/2, Relu",
        "equal strides and lengths: the 2x2 lies in the middle of the 4x4",
    ),
    "mobileone_pw": ("Conv 1x1, Relu", SUM),
    "deconv_output_padding": (
        "ConvTranspose 3x3/2, Relu",
        "equal strides and lengths: the 2x2 lies at the end of the 3x3",
    ),
    "deconv_depthwise": (
        "ConvTranspose 4x4/2 g8, Conv 1x1, Relu",
        SPLIT + ": a dense 4x4 has 1024 weights for 128 + 64; the BN's factor is in the kernel",
    ),
    "repmixer": (
        "Conv 3x3 g8",
        "a difference is a sum with a factor of -1; gamma is a factor per channel",
    ),
    "repcpe": ("Conv 7x7 g8, Relu", "x is the middle tap"),
    "fastvit_patch": (
        "Conv 7x7/2 g8, Gelu, Conv 1x1, Relu",
        SUM,
    ),
    "fastvit_ffn": (
        "Conv 7x7 g8, Conv 1x1, Gelu, Conv 1x1, Add",
        (
            "depthwise and pointwise stay apart, as merged they raise MACs; the layer scale is in "
            "the last 1x1"
        ),
    ),
    "mobileclip_text": (
        "Transpose, Conv 11 g8, Transpose",
        "a 1x11 over one row is a convolution of rank 1, so nothing is unsqueezed",
    ),
    "repvit": ("Conv 3x3 g8, Relu", "the outer BN scales all three"),
    "yolov10_repvggdw": ("Conv 7x7 g8, Sigmoid, Mul", SUM),
    "lcnetv2": ("Conv 5x5 g8, Relu", SUM),
    "lcnetv3_s21": (
        "Conv 3x3/2x1 g8, HardSwish, Conv 1x1, HardSwish, Mul, Add",
        "the affine behind the first hardswish is in the 1x1, that behind the last has no reader",
    ),
    "lcnetv3_s12": (
        "Conv 5x5/1x2 g8, HardSwish, Conv 1x1, HardSwish, Mul, Add",
        "the affine behind the first hardswish is in the 1x1, that behind the last has no reader",
    ),
    "lcnetv3_s2": (
        "Conv 3x3/2 g8, Conv 1x1, HardSwish, Mul, Add",
        (
            "no activation behind a layer of stride 2, but depthwise and pointwise stay apart: "
            "merged they are 576 weights for 72 + 64"
        ),
    ),
    "lab_1x1": (
        "Conv 3x3, Relu, Conv 1x1, Relu",
        "the 1x1 pads nothing and takes the affine",
    ),
    "lab_3x3": (
        "Conv 3x3, Relu, Conv 3x3, Add, Relu",
        (
            "the 3x3 takes the factor; the shift ends at its padding and stays an Add, of a "
            "constant "
            "before it or of a map behind it"
        ),
    ),
    "repghost": ("Conv 1x1, Relu, Conv 3x3 g8, Relu", SUM),
    "ghostnetv3": (
        (
            "Conv 1x1, Relu, Conv 3x3 g8, Relu, Concat, AveragePool, Conv 1x1, Conv 1x5 g16, "
            "Conv 5x1 g16, Sigmoid, Resize, Mul"
        ),
        "the gate's pool costs no weights and makes its 1x1 four times cheaper; strips stay",
    ),
    "repnext_small": (
        "Conv 3x3 g8, Relu",
        "the dilated 2x2 has its taps in the corners of the 3x3",
    ),
    "repnext_serial_in_7x7": (
        "Conv 7x7 g8, Relu",
        "1x7 then 7x1 is a 7x7 of rank one, free beside a 7x7: no bias stands between",
    ),
    "repnext_serial_alone": (
        "Conv 1x7 g8, Conv 7x1 g8, Conv 3x3 g8, Add, Relu",
        SPLIT + ": 49 taps for 7 + 7 + 9; the BN folds into both summands",
    ),
    "repnext_down": (
        "Conv 3x3/2 g8, Relu",
        "strides (1, 2) then (2, 1) are a stride of 2; an even dilated kernel lies on the grid",
    ),
    "replknet": (
        "Conv 1x1, Relu, Conv 13x13 g8, Relu, Conv 1x1, Add",
        "the BN before the unpadded 1x1 folds into it",
    ),
    "unireplknet_outer": (
        "Conv 9x9 g8, Relu",
        "each dilated kernel reaches no further than the large one; the outer BN scales all",
    ),
    "efficientvit": (
        "Conv 3x3 g8, Conv 1x1, Relu, Conv 1x1, Add",
        "x is the middle tap of the depthwise 3x3",
    ),
    "tinyvit": ("Conv 1x1, Relu, Conv 3x3 g16, Relu, Conv 1x1, Add", "only the BNs fold"),
    "nextvit_mlp": (
        "Conv 1x1, Relu, Conv 1x1, Add",
        "the BN before the unpadded 1x1 folds into it, though x has another reader",
    ),
    "lora": ("MatMul, Add", "x·W + 2·(x·A)·B is x·(W + 2·A·B)"),
    "lora_vector": ("Gemm", "x·W + 2·(x·A)·B is x·(W + 2·A·B)"),
    "lora_conv": ("Conv 3x3", "the serial branch is a 3x3, free beside the base"),
    "slab": (
        "MatMul, Add",
        "alpha·x + BN(x) is an affine map per channel in either layout, so the Transposes go",
    ),
    "levit_linear_bn": (
        "MatMul, Add, HardSwish",
        "the Reshapes keep the channels' axis, so the BN is a factor and a bias",
    ),
    "bn_linear": ("Gemm", "a BN before a linear layer is in its weights and bias"),
    "two_heads": ("Gemm", "the average of two affine maps is one"),
    "classifier": (
        "Conv 3x3, Relu, GlobalAveragePool, Flatten, Gemm",
        "behind the mean and Flatten the BN is a factor and a shift for each channel",
    ),
    "arcface": (
        "Flatten, Gemm",
        "the BN before Flatten scales and shifts runs of the linear layer's columns",
    ),
    "linear_expansion": ("Gemm, Relu", "8 to 32 to 8 is 8 to 8: 64 weights for 512"),
    "linear_bottleneck": ("Gemm, Gemm, Relu", SPLIT + ": 64 weights for 32"),
    "nextvit_tokens": (
        "Reshape, Conv 1, Transpose, Relu",
        (
            "flattening the map keeps its channels, so the BN is in the product, which "
            "stands before "
            "the Transpose as a 1x1"
        ),
    ),
    "nextvit_attention": (
        (
            "MatMul, Add, Transpose, AveragePool, Conv 1, MatMul, Softmax, Conv 1, "
            "Transpose, MatMul, "
            "MatMul, Add"
        ),
        (
            "the factor is in the queries' product, the BN in those of keys and values, "
            "which stand "
            "before the Transpose as a 1x1; a product of two data tensors is no affine map"
        ),
    ),
    "repmlp": (
        "Reshape, Conv 1x1 g4, Reshape, Relu",
        "at a fixed size a depthwise convolution is a product over the flattened map",
    ),
    "unireplknet": (
        "Conv 9x9 g8, Conv 1x1, Relu, ReduceL2, ReduceMean, Add, Div, Mul, Add, Mul, Conv 1x1, Add",
        (
            "GRN's bias, the BN and gamma are in the second product and its bias; between two "
            "Transposes a product is a 1x1, and GRN works on any axis"
        ),
    ),
}

FORMS_OF_KINDS: dict[str, str] = {
    # a Gemm takes its bias for nothing, and Reshapes move no data
    "levit_linear_bn.dynamo": "Reshape, Gemm, Reshape, HardSwish",
    "levit_linear_bn.dynamo-dyn": "Reshape, Gemm, Reshape, HardSwish",
    "repvgg_se.dynamo": "Conv 3x3, ReduceMean, Conv 1x1, Relu, Conv 1x1, Sigmoid, Mul, Relu",
    "arcface.dynamo": "Reshape, Gemm",
    "classifier.dynamo": "Conv 3x3, Relu, ReduceMean, Reshape, Gemm",
}
"""Forms of single kinds whose exporter writes something else around the convolutions."""


MISSING: dict[str, str] = {
    "repmlp": "at a fixed size a depthwise Conv is a grouped product over the flattened map",
}
"""What the package cannot do yet, by system or by file."""


def best(system: str, kind: str) -> dict[str, int]:
    """Return how often each operator stands in the best form of a system."""
    text = FORMS_OF_KINDS.get(f"{system}.{kind}", FORMS[system][0])
    operators = [part.strip() for part in text.split(",")]
    return {name: operators.count(name) for name in sorted(operators)}
