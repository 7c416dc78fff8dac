"""Weights beside their message: what is read, written and proved is what protobuf would give."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_text
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxfuse
from onnxfuse import fusing
from onnxfuse.cli import main
from onnxfuse.errors import InputError, ProofError
from onnxfuse.model import held, io, tensors, wire
from onnxfuse.options import Options
from onnxfuse.verify.session import CannotRunError, opened
from onnxfuse.watch import Watch

FIXTURES = Path(__file__).parents[1] / "fixtures" / "pytorch"
SMALL = 64
UNKNOWN = b"\xfa\x07\x03new"
"""A field that no version of the format knows."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold weights as small as those of the fixtures; integers may decide of shapes."""
    monkeypatch.setattr(held, "LEAST", SMALL)
    floats = {kind: size for kind, size in held._SIZES.items() if kind in tensors.FLOATS}
    monkeypatch.setattr(held, "_SIZES", floats)


def proto(data: bytes) -> ModelProto:
    model = ModelProto()
    model.ParseFromString(data)
    return model


def canonical(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


@st.composite
def stored(draw: st.DrawFn, name: str) -> bytes:
    """A serialised tensor, with more or less than a tensor has."""
    kind = draw(st.sampled_from([*held._SIZES, TensorProto.BOOL, TensorProto.INT4, 0]))
    dims = draw(st.lists(st.integers(0, 12), max_size=3))
    size = int(np.prod(dims, dtype=int)) * held._SIZES.get(kind, 1) + draw(
        st.sampled_from([0, 0, 1])
    )
    made = TensorProto(name=name, dims=dims, data_type=kind)
    if draw(st.booleans()):
        made.doc_string = "said"
    if draw(st.booleans()):
        made.metadata_props.add(key="k", value="v" * draw(st.integers(0, 200)))
    odd = draw(st.integers(0, 12))
    if odd == 0:
        made.data_location = TensorProto.DEFAULT
    elif odd == 1:
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value="weights")
    elif odd == 2:
        made.float_data.extend([1.0] * 30)
    elif odd == 3:
        made.segment.begin = 1
    raw = TensorProto(raw_data=draw(st.binary(min_size=size, max_size=size)))
    parts = [made.SerializeToString(), raw.SerializeToString()]
    if odd == 4:
        parts.append(raw.SerializeToString())
    if odd == 5:
        parts.append(UNKNOWN)
    if odd == 6:
        parts.reverse()
    return b"".join(parts)


@st.composite
def file(draw: st.DrawFn) -> bytes:
    """A serialised model; its graph may stand in it in parts, as protobuf allows."""
    frame = helper.make_model(helper.make_graph([], "g", [], []))
    frame.graph.node.extend([helper.make_node("Relu", ["x"], ["y"], doc_string="n" * 90)])
    found = [canonical(frame)]
    for _ in range(draw(st.integers(0, 2))):
        graph = b"".join(
            wire.head(5, len(tensor)) + tensor
            for tensor in (draw(stored(f"t{at}")) for at in range(draw(st.integers(0, 3))))
        )
        graph += draw(st.sampled_from([b"", UNKNOWN]))
        found.append(wire.head(7, len(graph)) + graph)
    return b"".join([*found, draw(st.sampled_from([b"", UNKNOWN]))])


class TestLikeProtobuf:
    @settings(max_examples=300, deadline=None)
    @given(data=file())
    def test_what_is_read_and_written(self, data: bytes) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(held, "LEAST", SMALL)
            model, hold = held.parse(data)
            whole = proto(data)
            assert canonical(held.inlined(model)) == canonical(whole)
            assert held.serialised(model).joined() == canonical(whole)
            assert held.serialised(model).size == len(canonical(whole))
            assert held.is_same(canonical(whole), model)
            assert held.is_same(canonical(whole), whole)
            sizes = [t.ByteSize() for t in whole.graph.initializer]
            kept = [t.ByteSize() for t in model.graph.initializer]
            assert sum(sizes) - hold.size >= sum(kept) - 150 * len(kept)

    @settings(max_examples=300, deadline=None)
    @given(data=file(), at=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
    def test_what_is_damaged(self, data: bytes, at: float, byte: int, cut: bool) -> None:
        place = int(at * (len(data) - 1))
        data = data[:place] if cut else data[:place] + bytes([byte]) + data[place + 1 :]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(held, "LEAST", SMALL)
            try:
                whole = canonical(proto(data))
            except DecodeError:
                with pytest.raises(DecodeError):
                    held.parse(data)
                return
            model, _hold = held.parse(data)
            assert canonical(held.inlined(model)) == whole
            assert held.serialised(model).joined() == whole

    @settings(max_examples=300, deadline=None)
    @given(data=file(), at=st.floats(0, 1), byte=st.integers(0, 255))
    def test_what_differs_is_not_the_same(self, data: bytes, at: float, byte: int) -> None:
        place = int(at * (len(data) - 1))
        other = data[:place] + bytes([byte]) + data[place + 1 :]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(held, "LEAST", SMALL)
            model, _hold = held.parse(data)
            try:
                same = canonical(proto(other)) == canonical(proto(data))
            except DecodeError:
                with pytest.raises(DecodeError):
                    held.is_same(other, model)
                return
            assert held.is_same(other, model) == same

    def test_what_protobuf_keeps_of_damage(self) -> None:
        """A group, which no version of the format has, in a model whose weights are held."""
        weight = np.ones((4, 1 << 14), np.float32)
        built = onnx_text.model("(float[1,4] x) => (float[] y) { y = MatMul(x, w) }", w=weight)
        data = canonical(built) + b"\xfb\x07\xfc\x07"
        model = held.parse(canonical(built))[0]
        model.MergeFromString(b"\xfb\x07\xfc\x07")
        with pytest.raises(InputError, match="not there"):
            held.serialised(model)
        model, _hold = held.parse(data)
        assert held.serialised(model).joined() == canonical(proto(data))

    def test_plain_weights_are_held(self) -> None:
        """Else all of the above would hold of a module that does nothing."""
        weight = np.arange(16 * 1024, dtype=np.float32).reshape(4, -1)
        built = onnx_text.model("(float[1,4] x) => (float[] y) { y = MatMul(x, w) }", w=weight)
        model, hold = held.parse(canonical(built))
        (tensor,) = model.graph.initializer
        assert hold.size == weight.nbytes
        assert not tensor.raw_data
        assert np.array_equal(tensors.read(tensor, None), weight)


@pytest.mark.usefixtures("small")
class TestFusing:
    @pytest.mark.parametrize("name", ["repvgg_a0.ts", "dbb_k3_s1.ts", "mobileone_dw.dynamo"])
    @pytest.mark.parametrize("verify", [True, False])
    def test_files_are_the_same_bytes(
        self, name: str, verify: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        more = [] if verify else ["--no-verify"]
        source = FIXTURES / f"{name}.onnx"
        assert io.load(source).holds.size
        outputs = [tmp_path / "held.onnx", tmp_path / "inline.onnx"]
        for output in outputs:
            assert main([str(source), str(output), "-q", *more]) == 0
            monkeypatch.setattr(held, "LEAST", 1 << 40)
        first, second = (output.read_bytes() for output in outputs)
        assert first == second

    def test_what_is_given_back_holds_its_weights(self) -> None:
        given = onnx.load(FIXTURES / "repvgg_a0.ts.onnx")
        fused, report = onnxfuse.fuse(given)
        assert report.changed
        assert not any(held.is_held(tensor) for tensor in fused.graph.initializer)
        again, report = onnxfuse.fuse(fused)
        assert not report.changed
        assert canonical(again) == canonical(fused)

    @pytest.mark.parametrize("what", ["--external-data=w.data", "--freeze-initializers"])
    def test_other_ways_of_writing(
        self, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = str(FIXTURES / "repvgg_a0.ts.onnx")
        found = []
        for folder in ("held", "inline"):
            (tmp_path / folder).mkdir()
            assert main([source, str(tmp_path / folder / "o.onnx"), what, "-q"]) == 0
            model = onnx.load(tmp_path / folder / "o.onnx")
            found.append({t.name: numpy_helper.to_array(t) for t in model.graph.initializer})
            monkeypatch.setattr(held, "LEAST", 1 << 40)
        assert found[0].keys() == found[1].keys()
        assert all(np.array_equal(array, found[1][name]) for name, array in found[0].items())

    def test_weights_that_are_written_wrongly_are_found(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = held.Hold.add

        def wrong(self: held.Hold, part: Any) -> int:
            return honest(self, part * 1.01 if isinstance(part, np.ndarray) else part)

        monkeypatch.setattr(held.Hold, "add", wrong)
        with pytest.raises(ProofError, match="differs by"):
            onnxfuse.fuse(FIXTURES / "repvgg_s2_g1.ts.onnx")

    @pytest.mark.parametrize("how", ["swapped", "cut", "changed", "none"])
    def test_a_file_that_is_put_together_wrongly_is_not_kept(
        self,
        how: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        honest = held.serialised

        def wrong(model: ModelProto) -> held.Serialised:
            pieces = list(honest(model).pieces)
            at = [i for i, piece in enumerate(pieces) if isinstance(piece, memoryview)]
            if how == "swapped":
                one, other = next(
                    pair for pair in combinations(at, 2) if len({len(pieces[i]) for i in pair}) == 1
                )
                pieces[one], pieces[other] = pieces[other], pieces[one]
            elif how == "cut":
                pieces[at[0]] = pieces[at[0]][:-1]
            elif how == "changed":
                pieces[at[0]] = bytes(len(pieces[at[0]]))
            return held.Serialised(pieces)

        monkeypatch.setattr(held, "serialised", wrong)
        target = tmp_path / "o.onnx"
        target.write_bytes(b"old")
        code = main([str(FIXTURES / "repvgg_a0.ts.onnx"), str(target), "-q"])
        assert code == (0 if how == "none" else 3)
        if code:
            assert "is not the model that was proved" in capsys.readouterr().err
            assert target.read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["o.onnx"]

    def test_they_live_as_long_as_the_result(self) -> None:
        result = fusing.fuse_model(FIXTURES / "repvgg_a0.ts.onnx", Options(), Watch())
        data = result.data.joined()
        assert canonical(held.inlined(result.model)) == data

    def test_what_nobody_holds_is_said(self) -> None:
        model = held.parse((FIXTURES / "repvgg_a0.ts.onnx").read_bytes())[0]
        with pytest.raises(InputError, match="refers to data that is not there"):
            held.inlined(model)
        with pytest.raises(InputError, match="refers to data that is not there"):
            held.serialised(model)


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "INT64"])
@pytest.mark.parametrize("shift", range(8))
def test_onnxruntime_reads_them_where_they_are(kind: str, shift: int) -> None:
    """At any byte: a file keeps no weight where its numbers would lie aligned."""
    stored = np.arange(-(1 << 14), 1 << 14).reshape(4, -1) % 100
    weight = tensors.make("w", stored, getattr(TensorProto, kind))
    built = onnx_text.model("(float[1] x) => (float[] y) { f = Cast<to = 1>(w) y = Mul(x, f) }")
    built.graph.initializer.append(weight)
    built.doc_string = "d" * shift
    model, _hold = held.parse(canonical(built))
    assert held.is_held(model.graph.initializer[0])
    (found,) = opened(model, None).run(None, {"x": np.ones(1, np.float32)})
    assert np.array_equal(found, stored)


@pytest.mark.parametrize(
    "text",
    [
        "y = Relu(x)",  # nothing reads w
        "u = Unsqueeze<axes = [0]>(w) r = Relu(x) y = Expand(r, w)",
    ],
)
def test_what_onnxruntime_takes_only_whole(text: str) -> None:
    """Weights that it drops, and integers that it computes with while it loads."""
    built = onnx_text.model(
        f"(float[1] x) => (float[] y) {{ {text} }}", opset=11, w=np.ones(1 << 11, np.int64)
    )
    model, _hold = held.parse(canonical(built))
    assert held.is_held(model.graph.initializer[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "serialised", None)
        with pytest.raises(CannotRunError):
            opened(model, None)
    assert opened(model, None).get_outputs()


def test_an_unread_weight_does_not_keep_the_model_from_running() -> None:
    built = onnx_text.model(
        """(float[1,4,8,8] x) => (float[] y) { d = Conv(x, w) y = Mul(d, s) }""",
        w=np.ones((4, 4, 1, 1), np.float32), s=np.float32(2), u=np.ones(1 << 14, np.float32),
    )  # fmt: skip
    _, report = onnxfuse.fuse(built)
    assert report.changed
    assert report.verification is not None
    assert report.verification.status == "passed"


def test_a_text_that_begins_like_a_reference_is_a_text() -> None:
    model = io.load(FIXTURES / "repvgg_a0.ts.onnx").model
    model.graph.initializer[0].doc_string = "\0onnxfuse:"
    assert held.serialised(model).joined() == canonical(model)


def test_a_place_that_is_no_text_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = onnx_text.model("(float[1,4] x) => (float[] y) { y = MatMul(x, w) }", w=np.eye(4))
    (tensor,) = built.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    path = tmp_path / "m.onnx"
    path.write_bytes(canonical(built).replace(b"weights", b"weigh\xff\xfe"))
    assert main([str(path), str(tmp_path / "o.onnx")]) == 2
    assert "is missing" in capsys.readouterr().err
