"""The region that a failed proof names, written as a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bodies import K3, WEIGHTS, called
from onnx import numpy_helper
from onnx_text import bn, model

import onnxfuse
from onnxfuse import realise
from onnxfuse.cli import main
from onnxfuse.model import tensors
from onnxfuse.realise import Replacement
from onnxfuse.records import RegionError
from onnxfuse.verify import region

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
REPVGG = str(FIXTURES / "repvgg_s1_g1.ts.onnx")
OPEN = str(FIXTURES / "repvgg_s1_g1.dynamo-dyn.onnx")


def fails(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command; it must fail with ``code`` and one clear line on stderr."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("onnxfuse: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused weights are written one per cent too large, behind the back of the regions' proof."""
    honest = tensors.make
    monkeypatch.setattr(tensors, "make", lambda n, a, t: honest(n, np.asarray(a) * 1.01, t))


def replay(place: Path) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """The one repro in a directory, run on its inputs."""
    (path,) = place.glob("*.onnx")
    (held,) = place.glob("*.npz")
    made = onnx.load(path)
    onnx.checker.check_model(made)
    arrays = dict(np.load(held))
    run = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, arrays)
    return made, run


def looped() -> onnx.ModelProto:
    """Two branches that each hold a region whose result is called ``s``."""
    return model(
        f"""(float[1,4,8,8] x, bool choose) => (float[] u) {{
            u = If (choose) <
                then_branch = g1 () => (float[] s) {{ c = Conv{K3}(x, w) {bn("s", "c", "n")} }},
                else_branch = g2 () => (float[] s) {{ c = Abs(x) d = Conv{K3}(c, v)
                    {bn("s", "d", "m")} }}> }}""",
        **WEIGHTS,
    )


class TestBodies:
    """A region below the main graph is named with the body that it stands in."""

    def test_where_a_region_is_not_proved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = region.prove

        def prove(replacement: Replacement, *rest: Any) -> RegionError:
            if replacement.region.interior[0].tensor == "d":
                raise onnxfuse.ProofError("region 's': it differs", replacement.root)
            return honest(replacement, *rest)

        monkeypatch.setattr(region, "prove", prove)
        with pytest.raises(onnxfuse.ProofError) as failed:
            onnxfuse.fuse(looped(), save_repro=tmp_path)
        assert str(failed.value).startswith("in the else_branch of If 'u': region 's': it differs")
        made, _ = replay(tmp_path)
        assert [node.output[0] for node in made.graph.node] == ["d", "s"]  # not the then branch's

    def test_where_the_whole_model_differs(self, wrong: None) -> None:
        with pytest.raises(onnxfuse.ProofError) as failed:
            onnxfuse.fuse(looped())
        assert "output 'u' differs by" in str(failed.value)
        assert "it depends on the regions at 's' in the then_branch of If 'u', " in str(
            failed.value
        )
        assert failed.value.scope == "then_branch of If 'u'"

    def test_where_a_function_does(self, wrong: None) -> None:
        with pytest.raises(onnxfuse.ProofError) as failed:
            onnxfuse.fuse(called(f"c = Conv{K3}(h, w) {bn('b', 'c', 'n')} r = Relu(b)"))
        assert "it depends on the regions at 'b' in the function 'Block'" in str(failed.value)


class TestRepro:
    def test_a_region_that_is_not_proved_is_written(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = realise.weights.embed
        monkeypatch.setattr(realise.weights, "embed", lambda *a: honest(*a) * (1 + 1e-9))
        place = tmp_path / "deep" / "repro"
        command = [REPVGG, str(tmp_path / "o.onnx"), "--save-repro", str(place)]
        error = fails(command, 3, capsys)
        assert "'/0/Add_1'" in error
        assert str(place / "0_Add_1.onnx") in error
        assert not (tmp_path / "o.onnx").exists()
        made, (result,) = replay(place)
        assert np.isfinite(result).all()
        assert len(made.graph.node) == len(onnx.load(REPVGG).graph.node) - 1  # all but the Relu
        fails(command, 3, capsys)
        assert (place / "0_Add_1-2.onnx").exists()  # the first one stays

    def test_so_is_one_that_the_whole_run_names(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: None
    ) -> None:
        place = tmp_path / "repro"
        command = [REPVGG, str(tmp_path / "o.onnx"), "--save-repro", str(place)]
        error = fails(command, 3, capsys)
        assert "differs by" in error
        assert str(place) in error
        replay(place)

    @pytest.mark.parametrize(
        "name",
        [
            "dbb_k3_s1.ts",
            "acnet_k3_s2.ts-dyn",
            "repvgg_s2_g2.dynamo-dyn",
            "dbb_stack7.ts",
            "repvgg_a0.ts",
            "dbb_k3_s2.ts",
        ],
    )
    def test_it_runs_for_other_blocks(self, name: str, tmp_path: Path, wrong: None) -> None:
        with pytest.raises(onnxfuse.ProofError, match="the region's nodes are in"):
            onnxfuse.fuse(FIXTURES / f"{name}.onnx", save_repro=tmp_path / "r")
        replay(tmp_path / "r")

    def test_nothing_is_written_on_success(self, tmp_path: Path) -> None:
        onnxfuse.fuse(REPVGG, save_repro=tmp_path / "repro")
        assert not (tmp_path / "repro").exists()

    def test_a_place_that_is_no_directory_is_refused_first(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("precious")
        command = [REPVGG, str(tmp_path / "o.onnx"), "--save-repro"]
        for place in (str(tmp_path / "file"), ""):
            assert "is no directory" in fails([*command, place], 2, capsys)
        assert (tmp_path / "file").read_text() == "precious"

    def test_an_error_there_never_hides_the_proofs(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: None
    ) -> None:
        (tmp_path / "file").write_text("")
        command = [REPVGG, str(tmp_path / "o.onnx"), "--save-repro", str(tmp_path / "file" / "r")]
        error = fails(command, 3, capsys)
        assert "differs by" in error
        assert "no repro could be written" in error

    def test_it_computes_what_the_model_does(self, tmp_path: Path, wrong: None) -> None:
        with pytest.raises(onnxfuse.ProofError):
            onnxfuse.fuse(OPEN, save_repro=tmp_path)
        repro, (result,) = replay(tmp_path)
        whole, root = onnx.load(OPEN), repro.graph.output[0].name
        whole.graph.output.append(onnx.ValueInfoProto(name=root))
        run = onnxruntime.InferenceSession(
            whole.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        arrays = dict(np.load(next(tmp_path.glob("*.npz"))))
        assert np.allclose(run.run([root], arrays)[0], result, rtol=1e-5, atol=1e-5)

    def test_weights_keep_their_values(self, tmp_path: Path, wrong: None) -> None:
        original = {t.name: numpy_helper.to_array(t) for t in onnx.load(REPVGG).graph.initializer}
        with pytest.raises(onnxfuse.ProofError):
            onnxfuse.fuse(REPVGG, save_repro=str(tmp_path / "r"))
        made, _ = replay(tmp_path / "r")
        held = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
        assert held
        for name, array in held.items():
            assert np.array_equal(array, original[name])
