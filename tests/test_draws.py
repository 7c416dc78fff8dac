"""Integers that two models are given: indices, pixels, sizes, and what is said of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_text import model
from two_models import one, verdict

from onnxfuse.verify.draws import Ranges, rungs
from onnxfuse.verify.session import FEW, feeds

TABLE = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
IDS = "(int64[1,64] x) => (float[] y)"


def tried(of: onnx.ModelProto) -> list[Ranges]:
    return rungs([of, of], list(of.graph.input))


def test_a_table_is_read_to_its_last_row() -> None:
    other = TABLE.copy()
    other[90:] = 0
    a, b = (model(f"{IDS} {{ c = Cast<to = 6>(x) y = Gather(e, c) }}", e=e) for e in (TABLE, other))
    assert tried(a) == [{"x": range(100)}, {"x": range(4)}]
    assert verdict(a, b).status == "different"
    found = verdict(a, a)
    assert found.status == "equal"
    assert found.runs == ("x:1x64",)
    assert found.notes == ("integers were drawn from 0 to 99 for 'x', then 0 to 3 for 'x'",)


def test_tables_may_lie_along_another_axis_and_be_short() -> None:
    of = model(f"{IDS} {{ y = Gather<axis = 1>(e, x) }}", e=TABLE[:, :2])
    assert tried(of) == [{"x": range(2)}]
    assert verdict(of, of).status == "equal"


def test_the_shorter_of_two_tables_bounds_an_index() -> None:
    text = f"{IDS} {{ a = Gather(e, x) r = Identity(x) b = Gather(f, r) y = Add(a, b) }}"
    of = model(text, e=TABLE, f=TABLE[:50])
    assert tried(of)[0] == {"x": range(50)}


def test_pixels_are_bytes() -> None:
    text = "({}[1,3,8,8] x) => (float[] y) {{ f = Cast<to = 1>(x) y = Clip(f, l, h) }}"
    a, b = (model(text.format("uint8"), l=np.float32(0), h=np.float32(high)) for high in (255, 10))
    assert tried(a) == [{"x": range(256)}, {"x": range(4)}]
    assert tried(model(text.format("int8"), l=np.float32(0), h=np.float32(9)))[0] == {
        "x": range(-128, 128)
    }
    found = verdict(a, b)
    assert found.status == "different"
    assert one(found).largest > 200
    assert verdict(a, a).status == "equal"


def test_indices_of_unknown_tables_are_guessed() -> None:
    """A table of 300 rows that no one sees through: 1,000 is too much, and 100 is not."""
    table = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    text = f"{IDS} {{{{ u = Unsqueeze(x, k) y = GatherND(e, u) }}}}"
    other = table.copy()
    other[50:] = 0
    a, b = (model(text.format(), e=e, k=np.array([2], np.int64)) for e in (table, other))
    assert [step["x"].stop for step in tried(a)] == [1000, 100, 4]
    assert verdict(a, b).status == "different"
    notes = verdict(a, a).notes
    assert [note[:40] for note in notes] == [
        "with 0 to 999 for 'x' A rejects x:1x64: ", "with 0 to 999 for 'x' B rejects x:1x64: ",
        "integers were drawn from 0 to 99 for 'x'",
    ]  # fmt: skip


def test_small_integers_are_what_is_left() -> None:
    text = f"{IDS} {{ u = Unsqueeze(x, k) y = GatherND(e, u) }}"
    of = model(text, e=TABLE[:4], k=np.array([2], np.int64))
    found = verdict(of, of)
    assert found.status == "equal"
    assert found.notes[-1] == "integers were drawn from 0 to 3 for 'x'"


@pytest.mark.parametrize(
    "text",
    [
        "y = Expand(k, x)",
        "a = Mul(x, two) b = Cast<to = 7>(a) y = Expand(k, b)",
        "y = ConstantOfShape(x)",
        "y = Tile(k, x)",
    ],
)
def test_sizes_stay_small(text: str) -> None:
    used = {"k": np.ones((1, 1), np.float32)} if "k" in text else {}
    used |= {"two": np.array(2, np.int64)} if "two" in text else {}
    of = model(f"(int64[2] x) => (float[] y) {{ {text} }}", **used)
    assert tried(of) == [{"x": FEW}]


def test_masks_go_with_the_indices_they_stand_beside() -> None:
    text = "(int64[1,64] x, int64[1,64] m) => (float[] y) { a = Gather(e, x) y = Gather(f, m) }"
    of = model(text, e=TABLE, f=TABLE[:2])
    assert tried(of) == [{"x": range(100), "m": range(2)}, {"x": range(4), "m": range(2)}]


def test_what_one_model_rejects_at_known_indices_differs() -> None:
    a, b = (model(f"{IDS} {{ y = Gather(e, x) }}", e=e) for e in (TABLE, TABLE[:50]))
    assert tried(a)[0] == {"x": range(100)}
    found = verdict(a, b)  # the shorter table is the bound of both
    assert found.status == "equal"
    assert "0 to 49" in found.notes[0]


def test_without_integers_one_set_of_inputs_is_tried() -> None:
    of = model("(float[4] x) => (float[] y) { y = Exp(x) }")
    assert tried(of) == [{}]
    assert verdict(of, of).notes == ()


def test_feeds_are_what_they_were_where_nothing_is_asked() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.INT64, [64])
    (first,), (second,) = feeds([x], {}), feeds([x], {}, {"x": FEW})
    assert np.array_equal(first["x"], second["x"])
    assert set(first["x"]) == {0, 1, 2, 3}
    (other,) = feeds([x], {}, seed=8)
    assert not np.array_equal(first["x"], other["x"])


def test_bfloat16_is_explained() -> None:
    of = model("(float[4] x) => (bfloat16[] y) { y = Cast<to = 16>(x) }", opset=19)
    found = verdict(of, of)
    assert found.status == "not-run"
    assert found.notes[0].endswith("no bfloat16 with Python; cast to float32 in both models")
