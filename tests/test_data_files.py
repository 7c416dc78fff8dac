"""Models with data files: what is written where, in which order, and what is left alone."""

from __future__ import annotations

import json
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxfuse
from onnxfuse import emit, fusing, ranges, rounds
from onnxfuse.cli import main
from onnxfuse.evaluate import linear, parts
from onnxfuse.fusing import _worked
from onnxfuse.model import carry, io, saving, store, walk
from onnxfuse.model.draft import Draft
from onnxfuse.model.saving import Output, located
from onnxfuse.model.store import DataFile
from onnxfuse.options import Options
from onnxfuse.verify import run
from onnxfuse.watch import Watch

CHANNELS = 8
NEW = "o.onnxfuse.data"
Kept = dict[str, bytes]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model(layers: int = 3) -> ModelProto:
    """Layers of Conv, a scale and Relu, of which ``--only 'l0*'`` fuses one."""
    generator = np.random.default_rng(1)
    shapes = {"w": (CHANNELS, CHANNELS, 3, 3), "s": (1, CHANNELS, 1, 1)}
    nodes, tensors = [], []
    for at in range(layers):
        for name, shape in shapes.items():
            array = generator.standard_normal(shape).astype(np.float32)
            tensors.append(numpy_helper.from_array(array, f"{name}{at}"))
        nodes += [
            helper.make_node("Conv", [f"x{at}", f"w{at}"], [f"a{at}"], f"l{at}/c", pads=[1] * 4),
            helper.make_node("Mul", [f"a{at}", f"s{at}"], [f"b{at}"], f"l{at}/m"),
            helper.make_node("Relu", [f"b{at}"], [f"x{at + 1}"], f"r{at}"),
        ]
    shape = [1, CHANNELS, 5, 5]
    ends = [helper.make_tensor_value_info(n, 1, shape) for n in ("x0", f"x{layers}")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(name: str = "m", data: str = "m.data", held: ModelProto | None = None) -> None:
    """Write a model with a data file."""
    where = {"save_as_external_data": True, "location": data, "size_threshold": 16}
    Path(name).parent.mkdir(exist_ok=True)
    onnx.save(held or model(), f"{name}.onnx", **where)


def fuse(source: str, out: str, *options: str) -> int:
    return main([source, out, "-q", "--isolated", *options])


def files(folder: str = ".") -> Kept:
    return {str(p): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def places(path: str) -> dict[str, tuple[str, int, int]]:
    """Location, offset and length of the external initializers of a model file."""
    held = onnx.load(path, load_external_data=False)
    found = {}
    for location, tensor in located(held):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        found[tensor.name] = (location, int(entries["offset"]), int(entries["length"]))
    return found


def arrays(path: str) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def inline(source: ModelProto, *options: str) -> dict[str, np.ndarray]:
    """What the weights are where no data file is in play."""
    onnx.save(source, "inline.onnx")
    assert fuse("inline.onnx", "inline.fused.onnx", *options) == 0
    found = arrays("inline.fused.onnx")
    for path in Path().glob("inline*"):
        path.unlink()
    return found


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], strict=True)


class TestNewWeights:
    """Fused weights go to a new file; the others stay where they are."""

    @pytest.mark.parametrize("options", [(), ("--no-verify",), ("--only", "l0*")])
    def test_they_are_those_of_a_model_without_data_files(self, options: tuple[str, ...]) -> None:
        expected = inline(model(), *options)
        external()
        before = files()
        assert fuse("m.onnx", "o.onnx", *options) == 0
        assert_same(arrays("o.onnx"), expected)
        assert {n: d for n, d in files().items() if n in before} == before
        assert set(files()) - set(before) == {"o.onnx", NEW}

    def test_what_is_not_fused_keeps_its_reference(self) -> None:
        external()
        before = places("m.onnx")
        assert fuse("m.onnx", "o.onnx", "--only", "l0*") == 0
        after = places("o.onnx")
        kept = {name: place for name, place in after.items() if place[0] == "m.data"}
        assert kept == {n: place for n, place in before.items() if n not in ("w0", "s0")}
        assert [name for name, place in after.items() if place[0] == NEW] == ["l0/m_fused_weight"]

    def test_in_another_directory_the_data_comes_along(self) -> None:
        external("in/m")
        Path("out").mkdir()
        before = files()
        assert fuse("in/m.onnx", "out/o.onnx", "--only", "l0*") == 0
        assert Path("out/m.data").read_bytes() == before["in/m.data"]
        assert set(files("out")) == {"out/o.onnx", "out/m.data", f"out/{NEW}"}
        expected = inline(model(), "--only", "l0*")
        assert_same(arrays("out/o.onnx"), expected)

    def test_data_that_nothing_needs_stays_behind(self) -> None:
        external("in/m")
        Path("out").mkdir()
        assert fuse("in/m.onnx", "out/o.onnx") == 0
        assert set(files("out")) == {"out/o.onnx", f"out/{NEW}"}

    def test_they_are_aligned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "MAPPED", 4 * CHANNELS * CHANNELS * 9)
        held = model()
        bias = numpy_helper.from_array(np.ones((1, CHANNELS, 1, 1), np.float32), "shift")
        held.graph.initializer.append(bias)
        held.graph.node[1].output[0] = "unshifted"
        held.graph.node.insert(2, helper.make_node("Add", ["unshifted", "shift"], ["b0"], "l0/a"))
        external(held=held)
        assert fuse("m.onnx", "o.onnx", "--external-data-threshold", "16") == 0
        found = {name: place for name, place in places("o.onnx").items() if place[0] == NEW}
        assert len(found) == 4
        for name, (_, offset, _) in found.items():
            assert offset % (64 if "bias" in name else 4096) == 0, name

    def test_small_ones_stay_in_the_model(self) -> None:
        external()
        assert fuse("m.onnx", "o.onnx", "--external-data-threshold", "100KiB") == 0
        assert places("o.onnx") == {}
        assert set(files()) == {"m.onnx", "m.data", "o.onnx"}

    def test_a_second_run_changes_nothing(self) -> None:
        external()
        assert fuse("m.onnx", "o.onnx") == 0
        before = files()
        assert fuse("o.onnx", "p.onnx") == 0
        assert Path("p.onnx").read_bytes() == before["o.onnx"]
        assert set(files()) == {*before, "p.onnx"}

    def test_a_weight_that_is_fused_twice_leaves_nothing_behind(self) -> None:
        """Stacked tiles open a second round: what the first wrote is not in the file."""
        external("in/m", held=onnx.load(FIXTURE))
        Path("out").mkdir()
        assert fuse("in/m.onnx", "out/o.onnx", "--external-data-threshold", "16") == 0
        found = [place for place in places("out/o.onnx").values() if place[0] == NEW]
        assert found
        held = sum(length for _, _, length in found)
        assert Path("out", NEW).stat().st_size <= held + 4096 + 64 * len(found)

    @pytest.mark.parametrize("ir_version", [3, 8])
    def test_constants_in_nodes_stay_in_the_model(self, ir_version: int) -> None:
        held = model()
        held.ir_version = ir_version
        if ir_version == 3:
            for tensor in held.graph.initializer[1:]:
                value = helper.make_tensor_value_info(tensor.name, 1, tensor.dims)
                held.graph.input.append(value)
            for tensor in list(held.graph.initializer[2:]):
                node = helper.make_node("Constant", [], [tensor.name], value=tensor)
                held.graph.node.insert(0, node)
                held.graph.initializer.remove(tensor)
            del held.graph.input[2:]
        external(held=held)
        assert fuse("m.onnx", "o.onnx", "--external-data-threshold", "16") == 0
        fused = onnx.load("o.onnx", load_external_data=False)
        nodes = [a.t for node in fused.graph.node for a in node.attribute if a.name == "value"]
        assert all(tensor.data_location != TensorProto.EXTERNAL for tensor in nodes)

    @pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE"])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_of_every_type_by_rows_and_by_columns(self, kind: str, transposed: bool) -> None:
        held = converted(model(1), getattr(TensorProto, kind), transposed=transposed)
        expected = inline(held, "--no-verify")
        external(held=held)
        options = ("--no-verify", "--external-data-threshold", "16")
        assert fuse("m.onnx", "o.onnx", *options) == 0
        assert any(place[0] == NEW for place in places("o.onnx").values())
        assert_same(arrays("o.onnx"), expected)

    @pytest.mark.parametrize("transposed", [False, True])
    def test_in_pieces(self, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        held = converted(model(), TensorProto.FLOAT, transposed=transposed)
        expected = inline(held)
        external(held=held)
        for room, name in ((emit, "LARGE"), (emit, "PIECE"), (parts, "LARGE"), (parts, "PIECE"),
                           (linear, "PIECE"), (ranges, "PIECE"), (run, "LARGE")):  # fmt: skip
            monkeypatch.setattr(room, name, 100)
        monkeypatch.setattr(rounds, "KEPT", 0)
        assert fuse("m.onnx", "o.onnx") == 0
        assert_same(arrays("o.onnx"), expected)

    def test_what_was_not_written_as_folded_is_not_proved(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real = DataFile._append

        def wrong(self: DataFile, offset: int, start: int, stop: int, part: np.ndarray) -> bool:
            part.flat[7] = np.nextafter(part.flat[7], 9)
            return real(self, offset, start, stop, part)

        monkeypatch.setattr(DataFile, "_append", wrong)
        external()
        before = files()
        assert fuse("m.onnx", "o.onnx") == 3
        assert "does not round to its own type" in capsys.readouterr().err
        assert files() == before


def converted(held: ModelProto, kind: int, *, transposed: bool) -> ModelProto:
    """The model in another type, its Convs being transposed ones."""
    for tensor in held.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*held.graph.input, *held.graph.output):
        value.type.tensor_type.elem_type = kind
    for node in held.graph.node:
        if transposed and node.op_type == "Conv":
            node.op_type = "ConvTranspose"
    return held


FIXTURE = Path(__file__).parent.parent / "fixtures" / "pytorch" / "repvgg_a0.ts.onnx"


class TestOverwriting:
    """The rename of the model file is the commit; what it replaces is whole until then."""

    def test_in_its_own_place(self) -> None:
        expected = inline(model())
        external("o", "o.data")
        data = Path("o.data").read_bytes()
        assert fuse("o.onnx", "o.onnx") == 0
        assert_same(arrays("o.onnx"), expected)
        assert set(files()) == {"o.onnx", NEW, "o.data"}
        assert Path("o.data").read_bytes() == data

    def test_data_of_the_replaced_output_goes(self) -> None:
        external()
        for name in (NEW, "o.onnxfuse-2.data", NEW):
            assert fuse("m.onnx", "o.onnx", "--only", "l0*") == 0
            assert set(files()) == {"m.onnx", "m.data", "o.onnx", name}

    def test_data_that_another_model_names_stays(self) -> None:
        external()
        assert fuse("m.onnx", "o.onnx") == 0
        shutil.copy("o.onnx", "copy.onnx")
        assert fuse("m.onnx", "o.onnx") == 0
        assert_same(arrays("copy.onnx"), arrays("o.onnx"))

    def test_data_of_the_given_model_stays(self) -> None:
        external()
        assert fuse("m.onnx", "o.onnx", "--only", "l0*") == 0
        Path("deep").mkdir()
        shutil.copy("o.onnx", "other")
        assert fuse("other", "o.onnx") == 0
        assert {NEW, "o.onnxfuse-2.data"} <= set(files())

    @pytest.mark.parametrize("name", [NEW, "o.data"])
    def test_files_of_others_stay(self, name: str) -> None:
        """A name alone proves nothing: what onnxfuse made begins with its mark."""
        external("o", name)
        held = Path(name).read_bytes()
        external()
        assert fuse("m.onnx", "o.onnx") == 0
        assert Path(name).read_bytes() == held

    def test_a_name_that_the_model_uses_in_another_directory_is_not_taken(self) -> None:
        external("in/o", NEW)
        Path("out").mkdir()
        assert fuse("in/o.onnx", "out/o.onnx", "--only", "l0*") == 0
        assert set(files("out")) == {"out/o.onnx", f"out/{NEW}", "out/o.onnxfuse-2.data"}
        assert_same(arrays("out/o.onnx"), inline(model(), "--only", "l0*"))

    @pytest.mark.parametrize(
        "step", [(carry.Carry, "finish"), (Draft, "_write"), (Draft, "commit")]
    )
    @pytest.mark.parametrize("away", ["", "out/"])
    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
    def test_what_stops_it_leaves_the_old_ones_whole(
        self,
        step: tuple[object, str],
        away: str,
        error: type[BaseException],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        external()
        Path("out").mkdir()
        assert fuse("m.onnx", f"{away}o.onnx", "--only", "l0*") == 0
        before = files()

        def stop(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(*step, stop)
        assert fuse("m.onnx", f"{away}o.onnx") != 0
        assert files() == before

    def test_killed_at_the_commit_the_old_ones_are_whole(self) -> None:
        external()
        assert fuse("m.onnx", "o.onnx", "--only", "l0*") == 0
        before = files()
        child = os.fork()
        if not child:
            Draft.commit = lambda *_: os._exit(9)  # type: ignore[assignment]
            fuse("m.onnx", "o.onnx")
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert {name: data for name, data in files().items() if name in before} == before


@pytest.mark.usefixtures("ahead")
class TestAhead:
    """Large data files are copied while the model is fused and proved."""

    @pytest.fixture
    def ahead(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(carry, "AT_ONCE", 1)
        external("in/m")
        Path("out").mkdir()

    def test_it_is_whole_beside_the_output(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr(carry, "_copied", never)
        assert fuse("in/m.onnx", "out/o.onnx", "--only", "l0*") == 0
        assert set(files("out")) == {"out/o.onnx", f"out/{NEW}", "out/m.data"}
        assert Path("out/m.data").read_bytes() == Path("in/m.data").read_bytes()
        assert Path("out/m.data").stat().st_mode == Path("out/o.onnx").stat().st_mode

    def test_nothing_is_copied_that_the_plan_leaves_unused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun: list[object] = []
        monkeypatch.setattr(carry.Carry, "begin", lambda _, given: begun.append(given))
        assert fuse("in/m.onnx", "out/o.onnx") == 0
        assert begun == [{}]
        assert set(files("out")) == {"out/o.onnx", f"out/{NEW}"}

    def test_what_is_unused_in_the_end_gets_no_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A plan may leave what a later one takes."""
        monkeypatch.setattr(fusing, "dropped", lambda _: set())
        assert fuse("in/m.onnx", "out/o.onnx") == 0
        assert set(files("out")) == {"out/o.onnx", f"out/{NEW}"}

    @pytest.mark.parametrize(
        "error", [OSError(28, "No space left on device"), MemoryError(), KeyboardInterrupt()]
    )
    def test_a_run_that_fails_leaves_nothing(
        self, error: BaseException, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = not isinstance(error, KeyboardInterrupt)
        real = carry._fill

        def stop(*given: Any) -> None:
            if full:
                real(*given)
            raise error

        monkeypatch.setattr(*((carry, "_fill") if full else (fusing, "verify_whole")), stop)
        assert fuse("in/m.onnx", "out/o.onnx", "--only", "l0*") == (2 if full else 130)
        assert files("out") == {}
        assert not any(thread.daemon for thread in threading.enumerate())

    def test_half_a_copy_gets_no_name(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(carry, "_fill", lambda _, copy, *more: copy.write_bytes(b"half"))
        assert fuse("in/m.onnx", "out/o.onnx", "--only", "l0*") == 2
        assert "changed while it was copied" in capsys.readouterr().err
        assert files("out") == {}

    def test_interrupted_twice_it_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = threading.Thread.join

        def join(thread: threading.Thread, *given: Any) -> None:
            real(thread, *given)
            if thread.daemon and given == ():
                raise KeyboardInterrupt

        monkeypatch.setattr(threading.Thread, "join", join)
        carrying = carry.Carry(Path("in"), Path("out"))
        carrying.begin({"m.data": Path("in/m.data")})
        with pytest.raises(KeyboardInterrupt):
            carrying.discard()
        assert files("out") == {}

    def test_what_stands_in_the_way_of_an_unused_file_stays(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fusing, "dropped", lambda _: set())
        Path("out/m.data").write_bytes(b"else")
        assert fuse("in/m.onnx", "out/o.onnx") == 0
        assert Path("out/m.data").read_bytes() == b"else"
        assert fuse("in/m.onnx", "out/p.onnx", "--only", "l0*") == 2

    @pytest.mark.parametrize("reads", [False, True])
    def test_the_end_of_a_run_is_heard_while_it_is_copied(
        self, reads: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        real = os.copy_file_range
        monkeypatch.setattr(carry, "BLOCK", 1)

        def slow(source: int, target: int, count: int) -> int:
            calls.append(count)
            failed.wait(10)
            if reads:
                raise OSError(18, "Invalid cross-device link")
            return real(source, target, count)

        def fail(*_: object) -> None:
            failed.set()
            raise onnxfuse.ProofError("not equal")

        failed = threading.Event()
        monkeypatch.setattr(os, "copy_file_range", slow)
        monkeypatch.setattr(fusing, "verify_whole", fail)
        assert fuse("in/m.onnx", "out/o.onnx", "--only", "l0*") == 3
        assert len(calls) < 10  # of some thousands
        assert files("out") == {}

    @pytest.mark.parametrize("theirs", ["same", "other"])
    def test_a_file_that_comes_into_being_meanwhile(
        self, theirs: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = Path("in/m.data").read_bytes() if theirs == "same" else b"else"
        real = fusing.verify_whole

        def meanwhile(*given: Any) -> Any:
            Path("out/m.data").write_bytes(held)
            return real(*given)

        monkeypatch.setattr(fusing, "verify_whole", meanwhile)
        code = fuse("in/m.onnx", "out/o.onnx", "--only", "l0*")
        assert code == (0 if theirs == "same" else 2)
        assert Path("out/m.data").read_bytes() == held
        assert not [name for name in files("out") if name.startswith("out/.")]


class TestAsked:
    """--external-data names the file, for all weights that are not too small."""

    @pytest.mark.parametrize("given", ["inline", "external", "in/external"])
    def test_one_file_holds_all(self, given: str) -> None:
        expected = inline(model(), "--only", "l0*")
        if given == "inline":
            onnx.save(model(), "inline.onnx")
        else:
            external(given, "e.data")
        options = ("--external-data", "w.bin", "--external-data-threshold", "16")
        assert fuse(f"{given}.onnx", "o.onnx", "--only", "l0*", *options) == 0
        assert {location for location, *_ in places("o.onnx").values()} == {"w.bin"}
        assert places("o.onnx").keys() == expected.keys()
        assert_same(arrays("o.onnx"), expected)
        assert not Path("e.data").exists() or given == "external"

    def test_also_where_nothing_fuses(self) -> None:
        onnx.save(model(), "m.onnx")
        expected = arrays("m.onnx")
        assert fuse("m.onnx", "o.onnx", "--except", "*", "--external-data", "w.bin") == 0
        assert {location for location, *_ in places("o.onnx").values()} == {"w.bin"}
        assert_same(arrays("o.onnx"), expected)

    def test_what_is_said_of_a_tensor_stays(self) -> None:
        held = model()
        held.graph.initializer[2].doc_string = "of the second layer"
        held.graph.initializer[4].ClearField("raw_data")
        held.graph.initializer[4].float_data.extend(range(CHANNELS * CHANNELS * 9))
        onnx.save(held, "m.onnx")
        assert fuse("m.onnx", "o.onnx", "--only", "l0*", "--external-data", "w.bin") == 0
        found = {t.name: t for t in onnx.load("o.onnx").graph.initializer}
        assert found["w1"].doc_string == "of the second layer"
        assert_same({"w2": arrays("m.onnx")["w2"]}, {"w2": arrays("o.onnx")["w2"]})

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("../w.bin", "is no plain file name"),
            ("/tmp/w.bin", "is no plain file name"),
            ("d/w.bin", "is no plain file name"),
            ("..", "is no plain file name"),
            ("", "is no plain file name"),
            ("o.onnx", "is a file of this run"),
            ("m.onnx", "is a file of this run"),
            ("there.bin", "exists"),
            ("link.bin", "exists"),
            ("m.data", "exists"),
        ],
    )
    def test_a_name_that_cannot_be(
        self, name: str, says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        external()
        Path("there.bin").write_bytes(b"somebody's")
        Path("link.bin").symlink_to("nowhere")
        before = files()
        assert fuse("m.onnx", "o.onnx", "--external-data", name) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
        assert files() == before

    def test_nor_one_that_the_model_uses(self, capsys: pytest.CaptureFixture[str]) -> None:
        external("in/m")
        assert fuse("in/m.onnx", "o.onnx", "--external-data", "m.data") == 2
        assert "is a data file of the model" in capsys.readouterr().err

    def test_a_threshold_that_is_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        external()
        assert fuse("m.onnx", "o.onnx", "--external-data-threshold", "much") == 2
        assert "external-data-threshold: 'much' is not a size" in capsys.readouterr().err

    def test_a_configuration_may_ask(self) -> None:
        onnx.save(model(), "m.onnx")
        Path("pyproject.toml").write_text(
            '[tool.onnxfuse]\nexternal-data = "w.bin"\nexternal-data-threshold = "1KiB"\n'
        )
        assert main(["m.onnx", "o.onnx", "-q"]) == 0
        assert Path("w.bin").is_file()

    def test_where_the_weights_are_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        external()
        assert main(["m.onnx", "o.onnx", "--isolated"]) == 0
        assert f"weights are kept in {NEW}, beside o.onnx" in capsys.readouterr().err

    def test_the_report_counts_the_data(self, capsys: pytest.CaptureFixture[str]) -> None:
        external("in/m")
        assert main(["in/m.onnx", "o.onnx", "--isolated", "--format", "json"]) == 0
        counted = json.loads(capsys.readouterr().out)["after"]["bytes"]
        assert counted == Path("o.onnx").stat().st_size + Path(NEW).stat().st_size


class TestLookedAt:
    """What is only looked at is proved and counted without being kept."""

    @pytest.mark.parametrize("command", ["check", "explain"])
    def test_sizes_and_ranges_are_those_of_what_would_be_written(
        self, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        external("in/m")
        settings = ("--isolated", "--format", "json", "-q")
        assert main(["in/m.onnx", "out.onnx", *settings]) == 0
        written = json.loads(capsys.readouterr().out)
        for room in (emit, ranges):
            monkeypatch.setattr(room, "LARGE", 100)
            monkeypatch.setattr(room, "PIECE", 100)
        before = files()
        assert main([command, "in/m.onnx", *settings]) == (command == "check")
        seen = json.loads(capsys.readouterr().out)
        seen = seen["files"][0] if command == "check" else seen
        assert files() == before
        for left, right in zip(seen["regions"], written["regions"], strict=True):
            for end in ("before", "after"):
                a, b = left["ranges"][end][0], right["ranges"][end][0]
                assert [a[n] for n in ("least", "median", "largest")] == pytest.approx(
                    [b[n] for n in ("least", "median", "largest")], rel=1e-6
                )
        named = len("out.onnxfuse.data") - len("onnxfuse.data")
        gap = written["after"]["bytes"] - seen["after"]["bytes"]
        assert 3 * named <= gap <= 3 * named + 3 * 4096

    def test_no_large_weight_is_kept(self) -> None:
        external()
        held = store.Nowhere(16)
        _worked(io.load("m.onnx"), Options(), Watch(), dry=False, store=held)
        assert held.size == 3 * 4 * CHANNELS * CHANNELS * 9


class TestTooLarge:
    """A model that one file cannot hold gets a data file by itself."""

    def test_it_says_so(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        expected = inline(model(), "--only", "l0*")
        onnx.save(model(), "m.onnx")
        monkeypatch.setattr(saving, "LIMIT", 4000)
        assert main(["m.onnx", "o.onnx", "--only", "l0*", "--isolated"]) == 0
        assert "larger than the 2 GiB" in capsys.readouterr().err
        assert_same(arrays("o.onnx"), expected)
        assert Path("o.onnx").stat().st_size < 4000
        assert Path(NEW).is_file()

    def test_what_protobuf_refuses_is_no_crash(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        onnx.save(model(), "m.onnx")
        monkeypatch.setattr(io, "serialised", lambda _: None)
        assert fuse("m.onnx", "o.onnx", "--no-verify") == 2
        assert "larger than the 2 GiB that one file can hold" in capsys.readouterr().err
        assert set(files()) == {"m.onnx"}

    def test_a_full_model_is_run_from_a_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from onnxfuse.model import rooted

        monkeypatch.setattr(rooted, "FULL", 1000)
        monkeypatch.setattr(rooted, "LEAST", 1)
        held = model()
        held.graph.value_info.append(helper.make_tensor_value_info("a0", 1, None))
        held.metadata_props.add(key="k", value="v")
        onnx.save(held, "m.onnx")
        with rooted.rooted([(held, {})], None) as ((light,), folder):
            assert folder == "/"
            assert all(t.data_location == TensorProto.EXTERNAL for t in light.graph.initializer)
            assert light.ByteSize() < held.ByteSize() / 2
            del light.graph.initializer[:], held.graph.initializer[:]
            assert light == held
        _, report = onnxfuse.fuse("m.onnx")
        assert report.verification is not None
        assert report.verification.status == "passed"


@contextmanager
def cramped() -> Iterator[None]:
    """No file may grow beyond 2 KiB, that of the tests' own output neither."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestNoRoom:
    """Where data cannot be written there is one line, exit code 2, and nothing new."""

    @pytest.mark.parametrize("options", [(), ("--external-data", "w.bin")])
    def test_a_full_disk(
        self,
        options: tuple[str, ...],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        external()
        assert fuse("m.onnx", "o.onnx", "--only", "l0*") == 0
        before = files()
        with cramped():
            assert fuse("m.onnx", "o.onnx", *options) == 2
        error = capsys.readouterr().err
        assert "cannot be written: File too large" in error
        assert error.count("\n") == 1
        assert files() == before

    def test_where_data_is_carried(self, capsys: pytest.CaptureFixture[str]) -> None:
        external("in/m")
        Path("out").mkdir()
        before = files()
        options = ("--only", "l0*", "--external-data-threshold", "100KiB")
        with cramped():
            assert fuse("in/m.onnx", "out/o.onnx", *options) == 2
        assert "cannot be written: File too large" in capsys.readouterr().err
        assert files() == before


def test_a_data_file_that_shrinks_meanwhile_is_noticed() -> None:
    external()
    loaded = io.load("m.onnx")
    with Output(Path("o.onnx").resolve(), loaded, "w.bin") as output:
        Path("m.data").write_bytes(b"")
        with pytest.raises(onnxfuse.InputError, match="became shorter"):
            output.settled(loaded.model)
    assert set(files()) == {"m.onnx", "m.data"}


def test_nested_tensors_keep_their_data_where_it_is() -> None:
    """onnxruntime and onnx read data files of nested graphs, but not everybody does."""
    held = model(1)
    body = helper.make_graph(
        [helper.make_node("Add", ["x1", "k"], ["z"])],
        "body",
        [],
        [helper.make_tensor_value_info("z", 1, None)],
        [numpy_helper.from_array(np.ones((1, CHANNELS, 5, 5), np.float32), "k")],
    )
    held.graph.node.append(
        helper.make_node("If", ["on"], ["y"], then_branch=body, else_branch=body)
    )
    held.graph.input.append(helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    held.graph.output[0].name = "y"
    onnx.save(held, "m.onnx")
    assert fuse("m.onnx", "o.onnx", "--external-data", "w.bin") == 0
    fused = onnx.load("o.onnx", load_external_data=False)
    nested = [tensor for graph in walk.nested(fused) for tensor in graph.initializer]
    assert len(nested) == 2
    assert all(tensor.raw_data for tensor in nested)
