"""The evaluator against onnxruntime, operator by operator.

Sums are taken over integer-valued float32, elementwise operators over any: both are then rounded
correctly or not at all, and equality is asked for. Exp and Pow may differ by two units in the
last place, the accuracy that mathematical libraries promise.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_text import integers, session

from onnxfuse.evaluate import OPERATORS, evaluate
from onnxfuse.evaluate.tensor import bounded, slice_of, split_sizes


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


X = integers("x", 2, 4, 7, 6)
W = integers("w", 6, 2, 3, 2)
SIGNED = np.array([[-7, 7, -8, 0], [5, -5, 1, -1]], np.int64)


class Case(NamedTuple):
    op: str
    inputs: list[np.ndarray | None]
    attributes: dict[str, object] = {}  # noqa: RUF012  # read, never written
    opset: int = 17
    ulps: int = 0


BN = [integers(k, 4) for k in "sbm"] + [np.array([1, 4, 0.25, 16], np.float32)]
UPPER = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
LOWER = {"auto_pad": "SAME_LOWER", "strides": [2, 3]}
PADDED = {"kernel_shape": [2, 2], "pads": [1, 0, 1, 1]}
CASES = [
    Case("Conv", [X, W], {"group": 2}),
    Case("Conv", [X, W, integers("b", 6)], {"group": 2, "pads": [2, 0, 1, 3], "strides": [2, 1]}),
    Case("Conv", [X, integers("w", 3, 4, 2, 3)], {"dilations": [3, 2], "strides": [1, 3]}),
    Case("Conv", [X, integers("w", 4, 1, 3, 3)], {**UPPER, "group": 4}),
    Case("Conv", [X, integers("w", 4, 1, 2, 2)], {**LOWER, "group": 4}),
    Case("Conv", [X, integers("w", 4, 4, 2, 2)], {"auto_pad": "VALID", "dilations": [2, 2]}),
    Case("Conv", [integers("x", 1, 2, 9), integers("w", 3, 2, 4)], {"pads": [0, 3]}),
    Case("Conv", [integers("x", 1, 2, 4, 5, 3), integers("w", 4, 1, 2, 3, 1)], {"group": 2}),
    Case("BatchNormalization", [X, *BN], {"epsilon": 0.0}),
    Case("ConvTranspose", [X, integers("w", 4, 3, 3, 2)],
         {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2], "group": 2}),
    Case("ConvTranspose", [X, integers("w", 4, 1, 2, 3), integers("b", 4)],
         {"strides": [3, 1], "dilations": [2, 2], "group": 4}),
    Case("ConvTranspose", [integers("x", 1, 2, 9), integers("w", 2, 3, 4)], {"strides": [2]}),
    Case("Gemm", [integers("a", 3, 4), integers("b", 4, 5)]),
    Case("Gemm", [integers("a", 4, 3), integers("b", 5, 4), integers("c", 5)],
         {"transA": 1, "transB": 1, "alpha": 2.0, "beta": -3.0}),
    Case("Gemm", [integers("a", 3, 4), integers("b", 4, 5), integers("c", 3, 1)]),
    Case("LeakyRelu", [X], {"alpha": 0.5}),
    Case("LeakyRelu", [X], ulps=1),
    Case("PRelu", [X, integers("s", 4, 1, 1)]),
    Case("AveragePool", [X], {"kernel_shape": [2, 4], "strides": [2, 1]}),
    Case("AveragePool", [X], PADDED),
    Case("AveragePool", [X], {**PADDED, "count_include_pad": 1}),
    Case("AveragePool", [X], {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("AveragePool", [X], {"kernel_shape": [2, 2], "dilations": [2, 3]}, 19),
    Case("AveragePool", [X], {**UPPER, "kernel_shape": [2, 2]}),
    Case("Pad", [X, i64(0, 1, 2, 0, 1, 0, 0, 3)]),
    Case("Pad", [X, i64(0, 0, -2, 1, 0, 0, 1, -3), number(7)]),
    Case("Pad", [X, i64(1, -1, 2, 1), number(2), i64(-1, 1)], opset=18),
    Case("Pad", [X], {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 3.0}, 10),
    Case("Split", [X, i64(7)], {"axis": 2}),
    Case("ScatterElements", [X, np.full((2, 4, 2, 6), -1) + i64(0, 1).reshape(2, 1),
                             integers("u", 2, 4, 2, 6)], {"axis": 2}),
    Case("ScatterND", [X, i64(*range(2), 1, 3).reshape(2, 2), integers("u", 2, 7, 6)]),
    Case("Add", [normal(2, 3, 4), normal(4)]),
    Case("Sub", [normal(2, 3, 1), normal(3, 4)]),
    Case("Mul", [normal(2, 3), number(0.3)]),
    Case("Div", [normal(2, 3), normal(3)]),
    Case("Div", [SIGNED, i64(2, -2, 3, -7)]),
    Case("Div", [SIGNED.astype(np.int32), np.array(-3, np.int32)]),
    Case("Neg", [normal(3, 4)]),
    Case("Sum", [normal(3, 4), normal(4), normal(3, 1)]),
    Case("Identity", [X]),
    Case("Dropout", [X, number(0.3)]),
    Case("Reshape", [X, i64(0, -1, 6)]),
    Case("Reshape", [np.zeros((0, 3), np.float32), i64(3, 0)], {"allowzero": 1}),
    Case("Unsqueeze", [X, i64(0, -1)]),
    Case("Unsqueeze", [X], {"axes": [0, 5]}, 11),
    Case("Squeeze", [X[:1, :, :, :1], i64(0, -1)]),
    Case("Squeeze", [X[:1, :, :, :1]]),
    Case("Squeeze", [X[:1]], {"axes": [0]}, 11),
    Case("Flatten", [X], {"axis": 2}),
    Case("Flatten", [X], {"axis": -1}),
    Case("Flatten", [X], {"axis": 0}),
    Case("Transpose", [X], {"perm": [2, 0, 3, 1]}),
    Case("Transpose", [X]),
    Case("Cast", [np.array([1.7, -1.7, 0, 300], np.float32)], {"to": TensorProto.INT64}),
    Case("Cast", [SIGNED], {"to": TensorProto.FLOAT16}),
    Case("Cast", [SIGNED], {"to": TensorProto.BOOL}),
    Case("Concat", [X, X + 1, X], {"axis": -2}),
    Case("Slice", [X, i64(1, -3), i64(2**62, -1), i64(2, -1)]),
    Case("Slice", [X, i64(-1, 4), i64(-(2**62), 0), i64(2, 3), i64(-2, -1)]),
    Case("Slice", [X], {"starts": [0, 1], "ends": [1, 3], "axes": [0, 1]}, 9),
    Case("Gather", [X, np.array([[0, -1], [2, 1]], np.int64)], {"axis": 2}),
    Case("Gather", [X, np.array(1, np.int64)], {"axis": -1}),
    Case("ConstantOfShape", [i64(2, 3)], {"value": np.array([7], np.int64)}),
    Case("ConstantOfShape", [i64(2, 0)]),
    Case("Range", [np.array(2, np.int64), np.array(9, np.int64), np.array(3, np.int64)]),
    Case("Range", [np.array(5, np.int64), np.array(-4, np.int64), np.array(-2, np.int64)]),
    Case("Range", [number(0), number(1), number(0.25)]),
    Case("Expand", [integers("e", 3, 1), i64(2, 1, 4)]),
    Case("Tile", [integers("e", 3, 1), i64(2, 3)]),
    Case("Where", [SIGNED > 0, SIGNED, np.array(9, np.int64)]),
    Case("Abs", [normal(3, 3)]),
    Case("Sqrt", [np.abs(normal(3, 3))]),
    Case("Reciprocal", [normal(3, 3)]),
    Case("Pow", [np.abs(normal(3, 3)), number(0.5)], ulps=2),
    Case("Pow", [normal(3, 3), number(2)], ulps=2),
    Case("Exp", [normal(3, 3)], ulps=2),
    Case("Min", [normal(3, 4), normal(4), normal(3, 1)]),
    Case("Max", [normal(3, 4), normal(4)]),
    Case("Floor", [normal(3, 4) * 4]),
    Case("Ceil", [normal(3, 4) * 4]),
    Case("ReduceSum", [X, i64(-1, 1)], {"keepdims": 0}),
    Case("ReduceSum", [X], {"noop_with_empty_axes": 1}),
    Case("ReduceSum", [X], {"axes": [1]}, 11),
    Case("ReduceProd", [SIGNED], {"axes": [0]}),
    Case("ReduceMean", [X[:, :, :4]], {"axes": [1, 2]}),
    Case("Einsum", [X, integers("e", 4, 3)], {"equation": "ncij,cd->ndij"}),
    Case("MatMul", [X, integers("e", 6, 5)]),
    Case("And", [SIGNED > 0, SIGNED < 6]),
    Case("Or", [SIGNED > 0, SIGNED == -7]),
    Case("Not", [SIGNED > 0]),
    *(Case(op, [SIGNED, np.array(1, np.int64)])
      for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
]  # fmt: skip
IDS = [f"{case.op}-{index}" for index, case in enumerate(CASES)]


def single(case: Case) -> onnx.ModelProto:
    """A model of one node."""
    names = ["" if array is None else f"x{i}" for i, array in enumerate(case.inputs)]
    attributes = {
        key: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for key, value in case.attributes.items()
    }
    node = helper.make_node(case.op, names, ["y"], **attributes)
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, case.inputs, strict=True)
        if n
    ]
    output = onnx.ValueInfoProto(name="y")
    graph = helper.make_graph([node], "g", values, [output])
    opsets = [helper.make_opsetid("", case.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def given_inputs(case: Case) -> dict[str, np.ndarray]:
    return {f"x{i}": array for i, array in enumerate(case.inputs) if array is not None}


def ours(case: Case) -> np.ndarray:
    attributes = dict(case.attributes)
    if case.op == "Cast":
        attributes["to"] = helper.tensor_dtype_to_np_dtype(attributes["to"])
    return evaluate(case.op, attributes, case.inputs)[0]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_operator(case):
    (expected,) = session(single(case)).run(["y"], given_inputs(case))
    found = ours(case)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if case.ulps:
        np.testing.assert_array_max_ulp(found, expected, case.ulps)
    else:
        np.testing.assert_array_equal(found, expected)


def test_every_operator_has_a_case():
    assert {case.op for case in CASES} == set(OPERATORS)


@pytest.mark.parametrize(("size", "step"), [*itertools.product((1, 2, 5), (1, 2, 3, -1, -2))])
def test_slices_are_clamped_as_onnx_clamps_them(size, step):
    """Every start and end around the borders, against onnxruntime."""
    x = np.arange(size, dtype=np.float32)
    bounds = list(range(-size - 2, size + 3))
    case = Case("Slice", [x, i64(0), i64(0), i64(0), i64(step)])
    runtime = session(single(case))
    for start, end in itertools.product(bounds, bounds):
        feeds = {**given_inputs(case), "x1": i64(start), "x2": i64(end)}
        (expected,) = runtime.run(["y"], feeds)
        np.testing.assert_array_equal(
            x[slice_of(start, end, step, size)], expected, f"{start}:{end}:{step} of {size}"
        )


@given(st.integers(1, 2), st.integers(1, 3), st.data())
@settings(max_examples=40)
def test_conv_of_any_attributes(rank, groups, data):
    """The reference evaluator as a second witness, at random windows."""
    draw = data.draw
    taps = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilations = [draw(st.integers(1, 2)) for _ in range(rank)]
    pads = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    size = [draw(st.integers(6, 9)) for _ in range(rank)]
    attributes = {
        "group": groups, "dilations": dilations, "pads": pads, "kernel_shape": taps,
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)],
    }  # fmt: skip
    x, w = integers("x", 1, 2 * groups, *size), integers("w", 2 * groups, 2, *taps)
    case = Case("Conv", [x, w, integers("b", 2 * groups)], attributes)
    (expected,) = ReferenceEvaluator(single(case)).run(None, given_inputs(case))
    np.testing.assert_array_equal(ours(case), expected)


REJECTED = [
    (Case("Conv", [X, integers("w", 1, 4, 9, 9)]), "larger than its input"),
    (Case("BatchNormalization", [X, *BN], {"training_mode": 1}), "depends on the batch"),
    (Case("Dropout", [X, number(0.5), np.array(True)]), "random"),
    (Case("Pad", [X, i64(0, 0, 1, 1, 0, 0, 1, 1)], {"mode": "reflect"}), "only constant"),
    (Case("AveragePool", [X], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
     "overhang"),
    (Case("ScatterND", [X, i64(0).reshape(1, 1), X[:1]], {"reduction": "add"}), "reduction"),
    (Case("ScatterElements", [X, i64(0).reshape(1, 1, 1, 1), X[:1, :1, :1, :1]],
          {"reduction": "add"}), "reduction"),
    (Case("Div", [SIGNED, i64(0)]), "by zero"),
    (Case("Slice", [X, i64(0), i64(1), i64(0), i64(0)]), "step 0"),
    (Case("ConstantOfShape", [i64(2**40)]), "too large"),
    (Case("Expand", [number(1), i64(2**20, 2**20)]), "too large"),
    (Case("Tile", [number(1).reshape(1), i64(2**40)]), "too large"),
    (Case("Range", [np.array(0), np.array(2**40), np.array(1)]), "too large"),
    (Case("Add", [np.zeros((2**20, 1), np.int8), np.zeros((1, 2**20), np.int8)]), "too large"),
    (Case("Sum", [np.zeros((2**20, 1), np.int8), np.zeros((1, 2**20), np.int8)]), "too large"),
    (Case("Where", [np.zeros((2**20, 1), bool), SIGNED[:1, :1], np.zeros((1, 2**20), np.int64)]),
     "too large"),
    (Case("MatMul", [np.zeros((2**20, 1), np.int8), np.zeros((1, 2**20), np.int8)]), "too large"),
    (Case("Einsum", [np.zeros(2**20, np.int8)] * 2, {"equation": "i,j->ij"}), "too large"),
    (Case("Gather", [np.zeros((1, 2**20), np.int8), np.zeros(2**20, np.int64)]), "too large"),
    (Case("Pad", [number(1).reshape(1), i64(2**40, 0)]), "too large"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "reason"), REJECTED, ids=[case.op for case, _ in REJECTED])
def test_what_is_not_computed_is_a_value_error(case, reason):
    with pytest.raises(ValueError, match=reason):
        ours(case)


def test_split_sizes_are_even_but_for_the_last():
    assert split_sizes(7, 3) == [3, 3, 1]
    assert split_sizes(6, 3) == [2, 2, 2]


def test_sizes_are_bounded():
    assert bounded([2, 3]) == [2, 3]
    with pytest.raises(ValueError, match="too large"):
        bounded([2**13, 2**14])


def test_split_gives_every_part():
    graph = helper.make_graph(
        [helper.make_node("Split", ["x", "sizes"], ["a", "b", "c"], axis=2)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "abc"],
        [numpy_helper.from_array(i64(3, 3, 1), "sizes")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    expected = session(made).run(None, {"x": X})
    for attributes in ({"axis": 2}, {"axis": 2, "num_outputs": 3}):
        sizes = [i64(3, 3, 1)] if len(attributes) == 1 else []
        for part, other in zip(evaluate("Split", attributes, [X, *sizes]), expected, strict=True):
            np.testing.assert_array_equal(part, other)
    with pytest.raises(ValueError, match="do not add up"):
        evaluate("Split", {"axis": 2}, [X, i64(3, 3)])


def test_an_axis_that_the_input_lacks_is_rejected() -> None:
    with pytest.raises(ValueError, match="Slice"):
        evaluate("Slice", {}, [np.zeros((2, 3)), np.array([0]), np.array([1]), np.array([4])])
