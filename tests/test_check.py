"""``onnxfuse check``: what is left to fuse, budgets, baselines, and which files are meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

import onnxfuse
from onnxfuse.budget import amount, growth
from onnxfuse.cli import main
from onnxfuse.errors import InputError

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
FUSIBLE = FIXTURES / "repvgg_s1_g1.ts.onnx"
FUSED = FIXTURES / "repvgg_s1_g1.deploy.onnx"
OPEN = FIXTURES / "repvgg_s1_g1.dynamo-dyn.onnx"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def place(name: str, source: Path = FUSED) -> str:
    """A copy of a fixture in the working directory."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, name)
    return name


def test_a_fusible_model_is_a_finding_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = FUSIBLE.read_bytes()
    assert main(["check", str(FUSIBLE)]) == 1
    captured = capsys.readouterr()
    assert "/0/Add_1: 2 Conv, BN, 2 Add → Conv 3×3" in captured.out
    assert captured.err == ""
    assert FUSIBLE.read_bytes() == before
    assert list(Path().iterdir()) == []


def test_a_fused_model_is_fine() -> None:
    onnx.save(onnxfuse.fuse(FUSIBLE)[0], "fused.onnx")
    assert main(["check", "fused.onnx"]) == 0


def test_check_and_fuse_never_disagree_on_an_overflow() -> None:
    """A weight that would not be finite shows only when it is folded: check folds too."""
    model = onnx.load(FUSIBLE)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor) * 0 + 3e38
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype("float32"), tensor.name))
    onnx.save(model, "m.onnx")
    fused, _ = onnxfuse.fuse("m.onnx", verify=False)
    left = main(["check", "m.onnx", "-q"])
    assert left == (1 if fused != model else 0)
    assert "overflow" in {r.code for r in onnxfuse.fuse("m.onnx", verify=False)[1].refusals}


@pytest.mark.parametrize(
    ("option", "fits", "exceeds"),
    [("--max-bytes", "1MB", "1KiB"), ("--max-params", "584", "0.5k"),
     ("--max-macs", "82944", "82.9k"), ("--max-nodes", "2", "1")],
)  # fmt: skip
def test_budgets(option: str, fits: str, exceeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(FUSED), option, fits]) == 0
    assert main(["check", str(FUSED), option, exceeds]) == 1
    assert f" ({option})" in capsys.readouterr().out


def test_external_data_counts() -> None:
    model = onnx.load(FUSED)
    onnx.save(model, "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    together = Path("m.onnx").stat().st_size + Path("m.data").stat().st_size
    assert main(["check", "m.onnx", "--max-bytes", str(together)]) == 0
    assert main(["check", "m.onnx", "--max-bytes", str(together - 1)]) == 1


def test_what_a_subgraph_holds_counts_and_its_macs_are_not_guessed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 2, 4, 4] x, bool c) => (float[1, 2, 4, 4] y)
        <float[2, 2, 1, 1] w = {1, 2, 3, 4}> {
          y = If (c) <
            then_branch = a () => (float[1, 2, 4, 4] p) { p = Conv (x, w) },
            else_branch = b () => (float[1, 2, 4, 4] q)
              <float[2, 2, 1, 1] v = {1, 2, 3, 4}> { q = Conv (x, v) }
          >
        }""")
    onnx.save(model, "if.onnx")
    assert main(["check", "if.onnx", "--max-nodes", "3", "--max-params", "8"]) == 0
    assert main(["check", "if.onnx", "--max-nodes", "2"]) == 1
    assert main(["check", "if.onnx", "--max-params", "7"]) == 1
    capsys.readouterr()
    assert main(["check", "if.onnx", "--max-macs", "1G"]) == 2
    assert "MACs of 2 operators cannot be counted" in capsys.readouterr().err


def test_open_sizes_are_counted_where_they_are_given() -> None:
    small = ["--input-shape", "x:1,8,4,4"]
    name = onnx.load(OPEN).graph.input[0].name
    small[1] = f"{name}:1,8,4,4"
    assert main(["check", str(OPEN), "--budget-only", "--max-macs", "20k", *small]) == 0
    assert main(["check", str(OPEN), "--budget-only", "--max-macs", "20k"]) == 1


def test_either_half_alone() -> None:
    assert main(["check", str(FUSIBLE), "--budget-only", "--max-nodes", "100"]) == 0
    assert main(["check", str(FUSIBLE), "--budget-only", "--max-nodes", "1"]) == 1
    Path("pyproject.toml").write_text("[tool.onnxfuse]\nmax-nodes = 1\n")
    assert main(["check", str(FUSED), "--no-fusible"]) == 0
    assert main(["check", str(FUSIBLE), "--no-fusible"]) == 1
    assert main(["check", str(FUSED)]) == 1


def test_no_fusible_with_a_budget_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(FUSED), "--no-fusible", "--max-nodes", "5"]) == 2
    assert "--budget-only" in capsys.readouterr().err


class TestFiles:
    """Names, globs, directories; several files."""

    def test_globs_directories_and_duplicates(self, capsys: pytest.CaptureFixture[str]) -> None:
        place("models/a.onnx")
        place("models/deep/b.onnx")
        place("models/c[1].onnx")
        assert main(["check", "models", "models/**/*.onnx", "./models/a.onnx"]) == 0
        out = capsys.readouterr().out
        assert out.count("models/a.onnx:") == 1
        assert "models/deep/b.onnx:" in out
        assert main(["check", "models/c[1].onnx"]) == 0
        assert out.splitlines()[-1].startswith("3 models: 3 fine")

    @pytest.mark.parametrize(
        ("name", "says"),
        [("*.nope", "no file matches *.nope"), ("gone.onnx", "gone.onnx does not exist"),
         ("empty", "the directory empty holds no .onnx file")],
    )  # fmt: skip
    def test_what_stands_for_no_file_fails(
        self, name: str, says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("empty").mkdir()
        assert main(["check", name, str(FUSED)]) == 2
        captured = capsys.readouterr()
        assert says in captured.err
        assert "1 fine" in captured.out

    def test_names_that_look_like_options(self) -> None:
        place("-x.onnx")
        assert main(["check", "--", "-x.onnx"]) == 0
        assert main(["check", str(FUSED), "--max-nodes", "9", "--", "-x.onnx"]) == 0

    def test_an_empty_name_is_not_everything(self, capsys: pytest.CaptureFixture[str]) -> None:
        place("a.onnx")
        assert main(["check", ""]) == 2
        assert "an empty name stands for no model" in capsys.readouterr().err

    def test_no_model_at_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["check"]) == 2
        assert "no model is named" in capsys.readouterr().err

    def test_unusable_outranks_unproved_outranks_a_finding(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("broken.onnx").write_bytes(b"not a model")
        other = place("other.onnx", FIXTURES / "dbb_k3_s1.ts.onnx")
        from onnxfuse import fusing
        from onnxfuse.errors import ProofError

        real = fusing.explain_model

        def unproved(path, *rest):  # type: ignore[no-untyped-def]
            if path == other:
                raise ProofError("it differs")
            return real(path, *rest)

        monkeypatch.setattr(fusing, "explain_model", unproved)
        assert main(["check", str(FUSIBLE), other]) == 3
        assert main(["check", str(FUSIBLE), other, "broken.onnx"]) == 2
        assert main(["check", "broken.onnx", str(FUSIBLE), "-q"]) == 2
        captured = capsys.readouterr()
        assert captured.out.count("1 region can be fused") == 3
        assert "other.onnx: it differs" in captured.err
        assert "Traceback" not in captured.err


class TestBaseline:
    """Growth against committed sizes."""

    def write(self, *more: str) -> int:
        return main(["check", "m.onnx", "--budget-only", "--baseline", "sizes.json", *more])

    def test_it_is_written_compared_and_updated(self, capsys: pytest.CaptureFixture[str]) -> None:
        place("m.onnx")
        assert self.write() == 2
        assert "--update-baseline" in capsys.readouterr().err
        assert self.write("--update-baseline") == 0
        held = json.loads(Path("sizes.json").read_text())
        assert held["models"]["m.onnx"]["nodes"] == 2
        assert self.write() == 0
        place("m.onnx", FUSIBLE)
        assert self.write() == 1
        assert self.write("--max-growth", "2%") == 1
        assert self.write("--max-growth", "1000%") == 0
        assert self.write("--update-baseline") == 0
        assert self.write() == 0

    def test_growth_is_judged_to_the_unit(self) -> None:
        place("m.onnx")
        size = Path("m.onnx").stat().st_size
        counts = {"bytes": size - 20, "parameters": 584, "macs": None, "nodes": 2}
        held = {"schema_version": 1, "models": {"m.onnx": counts}}
        Path("sizes.json").write_text(json.dumps(held))
        share = 20 / (size - 20) * 100
        assert self.write("--max-growth", f"{share + 0.001:.4f}%") == 0
        assert self.write("--max-growth", f"{share - 0.1:.4f}%") == 1

    def test_a_model_it_does_not_know_cannot_be_judged(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place("m.onnx")
        self.write("--update-baseline")
        place("new.onnx")
        code = main(["check", "*.onnx", "--budget-only", "--baseline", "sizes.json"])
        assert code == 2
        assert "new.onnx is not in the baseline" in capsys.readouterr().err

    def test_models_that_are_gone_leave_it_and_others_stay(self) -> None:
        for name in ("m.onnx", "b.onnx", "c.onnx"):
            place(name)
        main(["check", "*.onnx", "--baseline", "sizes.json", "--update-baseline"])
        Path("b.onnx").unlink()
        self.write("--update-baseline")
        assert list(json.loads(Path("sizes.json").read_text())["models"]) == ["c.onnx", "m.onnx"]

    def test_paths_are_relative_to_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place("deep/m.onnx")
        assert main(["check", "deep/m.onnx", "--baseline", "sizes.json", "--update-baseline"]) == 0
        monkeypatch.chdir("deep")
        assert main(["check", "m.onnx", "--baseline", "../sizes.json"]) == 0

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "[]",
            '{"schema_version": 2}',
            '{"schema_version": 1, "models": {"a": {"bytes": "x"}}}',
        ],
    )
    def test_a_damaged_one_is_unusable(self, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        place("m.onnx")
        Path("sizes.json").write_text(text)
        assert self.write() == 2
        assert "sizes.json" in capsys.readouterr().err

    @pytest.mark.parametrize("options", [["--max-growth", "2%"], ["--update-baseline"]])
    def test_its_options_need_it(self, options: list[str]) -> None:
        assert main(["check", str(FUSED), *options]) == 2


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [("200", "max-nodes", 200), ("5.1M", "max-params", 5_100_000), ("300 M", "max-macs", 3 * 10**8),
     ("12MB", "max-bytes", 12_000_000), ("12MiB", "max-bytes", 12 << 20), ("1k", "max-nodes", 1000),
     ("0.3K", "max-nodes", 300), ("1_000", "max-nodes", 1000), (7, "max-nodes", 7)],
)  # fmt: skip
def test_sizes(text: object, option: str, value: int) -> None:
    assert amount(text, option) == value


@pytest.mark.parametrize(
    ("text", "option"),
    [("", "max-nodes"), ("-1", "max-nodes"), (-1, "max-nodes"), ("5.1.1M", "max-params"),
     ("12MB", "max-nodes"), ("many", "max-bytes"), ("1e6", "max-macs"), (True, "max-nodes"),
     ("12%", "max-bytes")],
)  # fmt: skip
def test_what_is_no_size(text: object, option: str) -> None:
    with pytest.raises(InputError, match=option):
        amount(text, option)


@pytest.mark.parametrize("text", ["2", "2.5", "-1%", "nan%", "inf%", "", "%", "2 percent"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(InputError, match="2%"):
        growth(text)
