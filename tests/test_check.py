"""``onnxfuse check``: what is left to fuse, budgets, and baselines."""

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


def test_what_a_subgraph_holds_counts(
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
    for alone in ([], ["--budget-only"]):
        assert main(["check", "if.onnx", "--max-macs", "128", *alone]) == 0
        assert main(["check", "if.onnx", "--max-macs", "127", *alone]) == 1
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, "if.onnx")
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


@pytest.mark.parametrize("switch", ["--freeze-initializers", "--assume-inference"])
def test_a_count_alone_takes_no_switch(switch: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Budgets are held against the given model, so a switch would do nothing and say nothing."""
    assert main(["check", str(FUSED), "--budget-only", "--max-nodes", "5", switch]) == 2
    assert f"so {switch} would change nothing" in capsys.readouterr().err
    Path("pyproject.toml").write_text(f"[tool.onnxfuse]\n{switch[2:]} = true\n")
    assert main(["check", str(FUSED), "--budget-only", "--max-nodes", "5"]) == 0


class TestPatterns:
    """--only and --except that match nothing are said to."""

    @pytest.mark.parametrize("command", ["check", "explain", "fuse"])
    @pytest.mark.parametrize(
        ("option", "pattern", "noted"),
        [("--except", "/hed/*", True), ("--only", "/hed/*", True), ("--except", "/0/*", False),
         ("--only", "/0/*", False)],
    )  # fmt: skip
    def test_on_the_command_line(
        self, command: str, option: str, pattern: str, noted: bool,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        start = [str(FUSIBLE), "o.onnx"] if command == "fuse" else [command, str(FUSIBLE)]
        main([*start, option, pattern])
        says = f"onnxfuse: note: {option} '{pattern}' matches no node that could be fused"
        assert (says in capsys.readouterr().err) == noted

    def test_one_of_several_models_is_enough(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["check", str(FUSED), str(FUSIBLE), "--except", "/0/Add*"])
        assert capsys.readouterr().err == ""
        main(["check", str(FUSIBLE), "gone.onnx", "--except", "/hed/*"])
        assert "matches no node" not in capsys.readouterr().err
        main(["check", str(FUSIBLE), "--except", "/hed/*", "--budget-only"])
        assert "matches no node" not in capsys.readouterr().err

    def test_in_the_configuration(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("pyproject.toml").write_text('[tool.onnxfuse]\nexcept = ["/hed/*"]\n')
        main(["check", str(FUSIBLE)])
        assert "except '/hed/*' in pyproject.toml matches no node" in capsys.readouterr().err


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
            '{"schema_version": 1, "models": {"m.onnx": {}}}',
            '{"schema_version": 1, "models": {"m.onnx": {"nodes": 2, "bytes": 1}}}',
            "{}",
            "",
            "[" * 100_000,
        ],
    )
    def test_a_damaged_one_is_unusable(self, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        place("m.onnx")
        Path("sizes.json").write_text(text)
        for more in ([], ["--update-baseline"]):
            assert self.write(*more) == 2
            error = capsys.readouterr().err
            assert "sizes.json is not" in error
            assert "delete it, then write it anew with --update-baseline" in error
            assert error.count("\n") == 1
        assert Path("sizes.json").read_text() == text

    def test_it_may_be_a_link(self) -> None:
        Path("store").mkdir()
        Path("sizes.json").symlink_to("store/sizes.json")
        for name in ("m.onnx", "b.onnx"):
            place(name)
        assert main(["check", "*.onnx", "--baseline", "sizes.json", "--update-baseline"]) == 0
        assert self.write("--update-baseline") == 0
        assert list(json.loads(Path("store/sizes.json").read_text())["models"]) == [
            "../b.onnx",
            "../m.onnx",
        ]
        assert Path("sizes.json").is_symlink()

    def test_a_byte_order_mark(self) -> None:
        place("m.onnx")
        self.write("--update-baseline")
        Path("sizes.json").write_bytes(b"\xef\xbb\xbf" + Path("sizes.json").read_bytes())
        assert self.write() == 0

    def test_an_update_says_what_it_did(self, capsys: pytest.CaptureFixture[str]) -> None:
        place("m.onnx")
        assert self.write("--update-baseline") == 0
        captured = capsys.readouterr()
        assert "m.onnx: its sizes are in sizes.json now" in captured.out
        assert "no budget" not in captured.out

    def test_growth_without_one_is_noted(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("pyproject.toml").write_text('[tool.onnxfuse]\nmax-growth = "2%"\n')
        place("m.onnx")
        assert main(["check", "m.onnx"]) == 0
        assert "note: max-growth in pyproject.toml has no baseline" in capsys.readouterr().err
        assert main(["check", "m.onnx", "--no-fusible"]) == 0
        assert self.write("--update-baseline") == 0
        assert "has no baseline" not in capsys.readouterr().err

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
     ("12%", "max-bytes"), ("31.9", "max-nodes"), (1.5, "max-nodes"), ("5.5B", "max-bytes"),
     ("\u0661\u0662", "max-nodes"), ("9" * 30, "max-nodes"), (10**30, "max-nodes")],
)  # fmt: skip
def test_what_is_no_size(text: object, option: str) -> None:
    with pytest.raises(InputError, match=option):
        amount(text, option)


@pytest.mark.parametrize(
    "text",
    ["2", "2.5", "-1%", "nan%", "inf%", "", "%", "2 percent", "1e999999%", "1e9%", "1_0%",
     "\u0662%", "9" * 20 + "%"],
)  # fmt: skip
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(InputError, match="2%"):
        growth(text)
