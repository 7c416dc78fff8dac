"""One result of two models: what counts as equal, what differs, what proves nothing."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx_text import model
from two_models import W, X, differs, one, refused, verdict

from onnxfuse.verify import slices
from onnxfuse.verify.equivalence import Tolerance
from onnxfuse.verify.judge import Answers, Bounds, Finding, judge

# Integers, booleans, text


def test_integers_are_compared_exactly() -> None:
    a = model("(float[2,8] x) => (int64[] y) { m = MatMul(x, w) y = ArgMax(m) }", **W)
    b = model("(float[2,8] x) => (int64[] y) { m = MatMul(x, w) y = ArgMin(m) }", **W)
    found = differs(a, b, "elements differ; rounding changes 0 in A")
    assert found.allowed == 0
    assert 0 < found.rms <= 1
    assert found.largest >= 1


def test_integers_that_rounding_changes_may_differ_as_often() -> None:
    """A number of 10⁵ has seven bits behind the point: rounding decides a few Floors in 4,096."""
    graph = "(float[4096] x) => (int32[] y)"
    a = model(
        f"{graph} {{ s = Mul(x, k) a = Add(s, z) f = Floor(a) y = Cast<to = 6>(f) }}",
        k=np.float32(1e5), z=np.float32(0),
    )  # fmt: skip
    b = model(f"{graph} {{ s = Div(x, k) f = Floor(s) y = Cast<to = 6>(f) }}", k=np.float32(1e-5))
    found = one(verdict(a, b))
    assert found.equal
    assert 0 < found.rms <= found.allowed < 1
    assert "rounding changes" in found.text


def test_booleans_and_text() -> None:
    less = model("(float[2,8] x) => (bool[] y) { y = Less(x, k) }", k=np.float32(0))
    more = model("(float[2,8] x) => (bool[] y) { y = Greater(x, k) }", k=np.float32(0))
    differs(less, more, "16 of 16 elements differ")
    same = model("(string[3] x) => (string[] y) { y = Identity(x) }")
    fixed = model("(string[3] x) => (string[] y) { y = Where(c, x, x) }", c=np.array(True))
    assert verdict(same, fixed).status == "equal"
    other = model("(string[3] x) => (string[] y) { y = Where(c, x, k) }", c=np.array(False),
                  k=np.array(["a", "b", "c"], object))  # fmt: skip
    differs(same, other, "3 of 3 elements differ")


# Tolerances that are given


def test_a_tolerance_is_for_every_element() -> None:
    a = model(f"{X} {{ y = Mul(x, k) }}", k=np.float32(1))
    b = model(f"{X} {{ y = Mul(x, k) }}", k=np.float32(1.001))
    tight, loose = Tolerance({"": 0.9e-3}, {}), Tolerance({"": 1.1e-3}, {})
    found = differs(a, b, "16 of 16 elements beyond 0 + 0.0009·|A|", None, tight)
    assert found.allowed == 0
    assert found.rms == pytest.approx(1e-3, rel=1e-3)
    assert verdict(a, b, None, loose).status == "equal"
    assert verdict(a, b, None, Tolerance({"": 0.9e-3}, {"": 1e-3})).status == "equal"


def test_a_tolerance_may_be_of_one_output() -> None:
    text = "(float[2,8] x) => (float[] y, float[] z) {{ y = Mul(x, {}) z = Mul(x, {}) }}"
    data = {"k": np.float32(1), "v": np.float32(1.01)}
    a, b = model(text.format("k", "k"), **data), model(text.format("v", "v"), **data)
    found = verdict(a, b, None, Tolerance({"y": 0.1}, {}))
    assert {output.name: output.equal for output in found.outputs} == {"y": True, "z": False}
    refused(a, b, "no output 'q'; their outputs are 'y', 'z'", None, Tolerance({}, {"q": 1.0}))


def test_a_tolerance_holds_for_integers_and_not_for_booleans() -> None:
    text = "(int32[2,8] x) => (int32[] y) { y = Add(x, k) }"
    a, b = (model(text, k=np.int32(k)) for k in (0, 2))
    differs(a, b, "16 of 16 elements beyond", None, Tolerance({}, {"": 1.0}))
    assert verdict(a, b, None, Tolerance({}, {"": 2.0})).status == "equal"
    text = "(int32[2,8] x) => (bool[] y) {{ y = {}(x, k) }}"
    less, more = (model(text.format(op), k=np.int32(2)) for op in ("Less", "Greater"))
    differs(less, more, "elements differ", None, Tolerance({}, {"": 2.0}))


def test_a_missing_number_is_never_within_a_tolerance() -> None:
    a = model(f"{X} {{ a = Abs(x) y = Sqrt(a) }}")
    differs(a, model(f"{X} {{ y = Sqrt(x) }}"), "is NaN where A is finite", None,
            Tolerance({}, {"": 1e9}))  # fmt: skip


# Values that are not finite


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        (1.0, np.nan, "is NaN where A is finite (16 of 16 elements)"),
        (np.nan, 1.0, "is finite where A is NaN"),
        (np.nan, np.inf, "is +inf where A is NaN"),
        (np.inf, -np.inf, "is -inf where A is +inf"),
    ],
)
def test_what_is_not_finite_differs(left: float, right: float, text: str) -> None:
    def build(value: float, rest: str) -> onnx.ModelProto:
        of = f"(float[2,8] x) => (float[] y) {{ o = Div(x, x) z = Mul(o, k) {rest} }}"
        return model(of, k=np.float32(value))

    alone, joined = "y = Identity(z)", "y = Concat<axis = 0>(z, x)"
    found = verdict(build(left, alone), build(right, alone))
    assert found.status == "different"
    assert text in one(found).text
    differs(build(left, joined), build(right, joined), text.partition(" (")[0])


def test_nothing_but_infinities_proves_nothing() -> None:
    of = model(f"{X} {{ z = Sub(x, x) o = Exp(z) y = Div(o, z) }}")
    found = verdict(of, of)
    assert found.status == "not-run"
    assert "no finite element" in found.notes[0]


def test_nothing_but_nan_proves_nothing() -> None:
    nan = model(f"{X} {{ z = Sub(x, x) y = Div(z, z) }}")
    found = verdict(nan, nan)
    assert found.status == "not-run"
    assert any("'y' proves nothing: it is NaN everywhere" in note for note in found.notes)
    text = "(float[2,8] x) => (float[] y, float[] v) { z = Sub(x, x) y = Div(z, z) v = Exp(x) }"
    found = verdict(model(text), model(text))
    assert found.status == "equal"
    assert any("proves nothing" in note for note in found.notes)


def test_what_overflows_by_rounding_alone_is_not_compared() -> None:
    """65,504 is float16's largest number: half the noise makes it infinite, in A as in B."""
    graph = "(float16[64] x) => (float16[] y)"
    a = model(f"{graph} {{ z = Sub(x, x) y = Add(z, k) }}", k=np.float16(65504))
    b = model(f"{graph} {{ z = Sub(x, x) y = Add(z, k) }}", k=np.float16(np.inf))
    found = verdict(a, b)
    assert not one(found).equal  # those that noise leaves finite
    assert one(found).text.startswith("is +inf where A is finite")
    assert "(64 of" not in one(found).text


# What would be equal whatever B computes

DEAD = [
    ("float", "n = Neg(e) y = Relu(n)", "it is 0.0 everywhere in A"),
    ("float", "b = Add(e, k) y = Sigmoid(b)", "it is 1.0 everywhere in A"),
    ("float", "y = Clip(e, z, o)", "it is 1.0 everywhere in A"),
    ("bool", "y = Less(e, o)", "it is False everywhere in A"),
    ("int64", "g = Less(e, o) y = NonZero(g)", "it has no elements"),
    ("float", "y = Slice(e, i, i, i)", "it has no elements"),
    ("float", "b = Log(z) y = Add(e, b)", "it has no finite element"),
]


@pytest.mark.parametrize(("kind", "text", "reason"), DEAD)
def test_what_no_input_changes_proves_nothing(kind: str, text: str, reason: str) -> None:
    data = {"k": np.float32(60), "o": np.float32(1), "z": np.float32(0), "i": np.zeros(1, np.int64)}
    used = {name: value for name, value in data.items() if f"{name}" in re.findall(r"\w+", text)}
    graph = f"(float[2,8] x) => ({kind}[] y) {{{{ a = Abs(x) e = {{}}(a) {text} }}}}"
    a, b = (model(graph.format(op), **used) for op in ("Exp", "Cosh"))
    for other in (a, b):
        found = verdict(a, other)
        assert found.status == "not-run"
        assert f"output 'y' proves nothing: {reason}" in found.notes[0]
        assert found.notes[0].endswith("; pass --rtol to accept that")
    assert verdict(a, b, None, Tolerance({"": 0.0}, {})).status == "equal"


def test_dead_outputs_are_noted_beside_live_ones() -> None:
    text = (
        "(float[2,8] x) => (float[] y, float[] v) {{ a = {}(x) b = Neg(a) y = Relu(b) v = Neg(x) }}"
    )
    found = verdict(model(text.format("Abs")), model(text.format("Exp")))
    assert found.status == "equal"
    assert "output 'y' proves nothing" in found.notes[0]


def test_an_output_that_another_input_changes_is_alive() -> None:
    a = model("(float[4] x) => (int64[] y) { y = ArgMax<keepdims = 0>(x) }")
    assert verdict(a, a).status == "equal"
    b = model("(float[4] x) => (int64[] y) { n = Neg(x) y = ArgMax<keepdims = 0>(n) }")
    assert verdict(a, b).status == "different"


def test_what_does_not_follow_from_the_input_may_be_constant() -> None:
    a = model("(float[2,8] x) => (float[] y) { y = Identity(k) }", k=np.ones(4, np.float32))
    b = model("(float[2,8] x) => (float[] y) { y = Identity(k) }", k=np.zeros(4, np.float32))
    assert verdict(a, a).status == "equal"
    assert verdict(a, b).status == "different"


# Single results


def judged(a: object, b: object, again: object = None, *noisy: object) -> Finding:
    found = judge("y", Answers(a, b, a if again is None else again, noisy), None)
    assert found is not None
    return found


ONES = np.ones(4, np.float32)
SQUARE = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)


def test_some_roundoffs_are_always_allowed() -> None:
    assert judged(ONES, ONES * np.float32(1 + 2**-20)).difference.equal  # 16 of them
    assert not judged(ONES, ONES * np.float32(1 + 2**-19)).difference.equal


def test_below_the_normal_numbers_roundoff_does_not_shrink() -> None:
    small = np.full(4, 2**-17, np.float16)  # 128 of the least steps
    step = np.float16(2**-24)
    assert judged(small, small + 11 * step).difference.equal
    assert not judged(small, small + 14 * step).difference.equal


def test_four_times_what_changes_from_run_to_run_is_allowed() -> None:
    for b, equal in ((1.03, True), (1.05, False)):
        found = judged(ONES, ONES * np.float32(b), ONES * np.float32(1.01))
        assert found.difference.equal is equal
    a, again = np.arange(100), np.arange(100)
    again[0] = 7
    assert judged(a, np.where(a < 4, 9, a), again).difference.equal
    assert not judged(a, np.where(a < 5, 9, a), again).difference.equal


def test_six_times_what_noise_changes_is_allowed() -> None:
    for b, equal in ((1.05, True), (1.07, False)):
        found = judged(ONES, ONES * np.float32(b), ONES, ONES, ONES * np.float32(1.01))
        assert found.difference.equal is equal


def test_large_integers_differ_by_one() -> None:
    a = np.array([2**60], np.int64)
    found = judge("y", Answers(a, a + 1, a), Bounds(0.0, 0.0))
    assert found is not None
    assert not found.difference.equal


def test_what_rounding_alone_decides_proves_nothing() -> None:
    nan = np.full(4, np.nan, np.float32)
    for found, text in (
        (judged(ONES, ONES[:3], ONES[:2]), "its shape"),
        (judged([ONES], [ONES] * 3, [ONES] * 2), "how many tensors"),
        (judged(ONES, nan, ONES, nan), "which elements are finite"),
        (judged(ONES, 3 * ONES, 2 * ONES), "from run to run"),
    ):
        assert found.difference.equal
        assert text in found.vain


def test_what_proves_nothing_does_not_stand_for_what_does() -> None:
    vain = judged(ONES, 3 * ONES, 2 * ONES)
    assert max(judged(ONES, ONES), vain, key=lambda one: one.rank) is not vain


def test_outputs_that_hold_nothing_are_equal() -> None:
    assert judge("y", Answers(None, None, None), None) is not None
    assert "holds 1 tensors in B, 0 in A" in judged(None, ONES).difference.text


# Slices


def test_large_entries_do_not_speak_for_small_ones() -> None:
    a = np.ones((1, 5, 16), np.float32)
    a[:, :4] = 640
    b = a.copy()
    b[:, 4] = 1.001
    found = judged(a, b).difference
    assert not found.equal
    assert "at index 4 of axis 1, rounding explains 1.43e-06" in found.text
    assert found.rms == pytest.approx(1e-3, rel=1e-2)
    assert found.allowed == pytest.approx(24 * 2.0**-24, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_many_entries_do_not_speak_for_one(dtype: type) -> None:
    a = np.random.default_rng(0).standard_normal((1, 16, 64, 64)).astype(dtype)
    b = a.copy()
    b[0, 3, 5, 7] += dtype(0.3)
    found = judged(a, b).difference
    assert not found.equal
    assert found.text.startswith("differs by ")
    assert found.text.partition("at index ")[2].startswith(("3 of", "5 of", "7 of"))


def test_the_nearest_slice_is_named_where_all_are_equal() -> None:
    a = np.ones((2, 4), np.float32)
    b = a.copy()
    b[1, 2] += 2**-21
    found = judged(a, b).difference
    assert found.equal
    assert found.text.startswith("nearest to its bound ")
    assert not judged(a, a).difference.text


def test_noise_explains_the_slice_it_changes() -> None:
    a = np.ones((2, 4), np.float32)
    left, right = a.copy(), a.copy()
    left[0] += 0.01
    right[1] += 0.01
    assert judged(a, left, a, left).difference.equal
    assert not judged(a, right, a, left).difference.equal


def test_zeros_have_the_scale_of_the_whole() -> None:
    a = np.zeros((2, 4), np.float16)
    a[0] = 512
    for off, equal in ((0.0004, True), (0.01, False)):
        b = a.copy()
        b[1, 0] = off
        assert judged(a, b).difference.equal is equal
    for off, equal in ((1e-7, True), (1e-3, False)):
        assert judged(0 * ONES, 0 * ONES + np.float32(off)).difference.equal is equal


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    generator = np.random.default_rng(0)
    a = generator.standard_normal((2, 3, 11)).astype(np.float32)
    b, noisy = (a * (1 + level * generator.standard_normal(a.shape)) for level in (1e-6, 1e-6))
    args = a, b.astype(np.float32), a, noisy.astype(np.float32)
    whole = judged(*args).difference
    monkeypatch.setattr(slices, "BLOCK", block)
    found = judged(*args).difference
    assert (found.equal, found.text, found.largest) == (whole.equal, whole.text, whole.largest)
    assert found.rms == pytest.approx(whole.rms)


def test_scalars_and_large_doubles_are_compared() -> None:
    one_, huge = np.array(1.0, np.float32), np.full(4, 1e300)
    assert judged(one_, one_).difference.equal
    assert not judged(one_, one_ * 2).difference.equal
    assert judged(huge, huge * (1 + 1e-15)).difference.equal
    assert not judged(huge, huge * 1.01).difference.equal
    assert not judged(huge / 1e300, huge).difference.equal


# What is explained by too much


@pytest.mark.parametrize(("dtype", "level"), [(np.float32, 0.01), (np.float16, 0.04)])
def test_what_is_explained_by_a_large_response_proves_nothing(dtype: type, level: float) -> None:
    a, noisy = np.ones(64, dtype), np.full(64, 1 + level, dtype)
    found = judged(a, noisy, a, noisy)
    assert found.difference.equal
    assert "pass a tolerance (--rtol) instead" in found.vain
    assert not judged(a, a, a, noisy).vain
    few = (a * dtype(1 + 2 * np.finfo(dtype).eps)).astype(dtype)
    assert not judged(a, few, a, noisy).vain  # a few roundoffs need no explanation


# Integers that rounding changes


def test_what_noise_changes_explains_those_elements() -> None:
    a = np.zeros(1000, np.uint8)
    noisy, same, far, other = (a.copy() for _ in range(4))
    noisy[:2], same[:2], far[:2], other[2:4] = 1, 1, 9, 1
    assert judged(a, same, a, noisy).difference.equal
    assert not judged(a, far, a, noisy).difference.equal
    assert not judged(a, other, a, noisy).difference.equal
    assert judged(a, other, a, noisy, other).difference.equal


def test_where_noise_changes_most_elements_nothing_is_proved() -> None:
    a = np.arange(1000)
    assert "pass a tolerance" in judged(a, a[::-1], a, a[::-1]).vain


def test_few_elements_are_near_and_many_are_not() -> None:
    a = np.zeros(1000, np.uint8)
    one_, many = a.copy(), a.copy()
    one_[0], many[:100] = 1, 1
    assert judged(a, one_).near
    assert not judged(a, many).near


def test_one_step_of_a_quantized_output_is_drawn_for() -> None:
    """0.5 is the border of two steps: rounding decides, at one element of 4,096."""
    graph = "(float[64,64] x) => (uint8[] y)"
    rest = "y = QuantizeLinear(b, s, q) }"
    data = {"s": np.float32(0.02), "q": np.uint8(128), "k": np.float32(3)}
    a = model(f"{graph} {{ m = MatMul(x, w) b = Mul(m, k) {rest}", **data, w=SQUARE)
    b = model(f"{graph} {{ b = MatMul(x, w) {rest}".replace("MatMul(x, w)", "MatMul(x, v)"),
              s=data["s"], q=data["q"], v=SQUARE * np.float32(3))  # fmt: skip
    found = verdict(a, b)
    assert found.status == "equal"
    off = model(f"{graph} {{ b = MatMul(x, v) {rest}", s=data["s"], q=data["q"],
                v=SQUARE * np.float32(3.03))  # fmt: skip
    assert verdict(a, off).status == "different"
