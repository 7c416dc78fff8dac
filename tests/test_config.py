"""Configuration: where it is found, what it may say, and that the command line wins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from onnxfuse import config
from onnxfuse.cli import main

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
FUSIBLE = str(FIXTURES / "repvgg_s1_g1.ts.onnx")
FUSED = str(FIXTURES / "repvgg_s1_g1.deploy.onnx")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "pyproject.toml") -> None:
    Path(name).write_text(text)


def test_budgets_by_path_are_judged_without_naming_a_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("models").mkdir()
    shutil.copy(FUSED, "models/a.onnx")
    shutil.copy(FIXTURES / "dbb_k3_s1.deploy.onnx", "models/b.onnx")
    write("""
        [[tool.onnxfuse.budget]]
        path = "models/*.onnx"
        max-bytes = "12MB"
        [[tool.onnxfuse.budget]]
        path = "models/a.onnx"
        max-nodes = 1
    """)
    assert main(["check"]) == 1
    out = capsys.readouterr().out
    assert "models/a.onnx: 1 budget exceeded" in out
    assert "nodes 2 > 1 (max-nodes of models/a.onnx)" in out
    assert "models/b.onnx: nothing left to fuse, within budget" in out
    monkeypatch.chdir("models")  # found from below, and its paths stay its own
    assert main(["check"]) == 1
    assert "a.onnx: 1 budget exceeded" in capsys.readouterr().out
    assert main(["check", "b.onnx"]) == 0


def test_a_budget_whose_glob_matches_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    write('[[tool.onnxfuse.budget]]\npath = "models/*.onnx"\nmax-nodes = 9\n')
    assert main(["check"]) == 2
    assert "no file matches models/*.onnx" in capsys.readouterr().err


def test_a_budget_that_means_no_file_fails_whatever_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(FUSED, "m.onnx")
    shutil.copy(FUSED, "other.onnx")
    write("""
        [[tool.onnxfuse.budget]]
        path = "other.onnx"
        max-nodes = 1
        [[tool.onnxfuse.budget]]
        path = "modles/*.onnx"
        max-nodes = 1
    """)
    assert main(["check", "m.onnx"]) == 2
    captured = capsys.readouterr()
    assert "no file matches modles/*.onnx" in captured.err
    assert "m.onnx: nothing left to fuse" in captured.out
    assert "1 fine" in captured.out
    assert captured.err.count("\n") == 1


def test_a_budget_may_name_an_absolute_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(FUSED, "m.onnx")
    for path in (f"{tmp_path}/*.onnx", f"{tmp_path}/m.onnx", str(tmp_path)):
        write(f'[[tool.onnxfuse.budget]]\npath = "{path}"\nmax-nodes = 1\n')
        for names in ([], ["m.onnx"]):
            assert main(["check", *names]) == 1
            assert "m.onnx: 1 budget exceeded" in capsys.readouterr().out


def test_a_configuration_may_lie_where_names_look_like_globs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("a[1]*").mkdir()
    monkeypatch.chdir("a[1]*")
    write('[[tool.onnxfuse.budget]]\npath = "*.onnx"\nmax-nodes = 1\n')
    shutil.copy(FUSED, "m.onnx")
    assert main(["check"]) == 1
    assert main(["check", "m.onnx"]) == 1


def test_a_byte_order_mark() -> None:
    Path("pyproject.toml").write_bytes(b"\xef\xbb\xbf[tool.onnxfuse]\nmax-nodes = 1\n")
    assert main(["check", FUSED]) == 1


def test_the_command_line_wins() -> None:
    write("[tool.onnxfuse]\nmax-nodes = 1\n")
    assert main(["check", FUSED]) == 1
    assert main(["check", FUSED, "--max-nodes", "9"]) == 0
    assert main(["check", FUSED, "--isolated"]) == 0
    write('[[tool.onnxfuse.budget]]\npath = "*.onnx"\nmax-nodes = 1\nmax-bytes = 1\n')
    shutil.copy(FUSED, "m.onnx")
    assert main(["check", "m.onnx", "--max-nodes", "9", "--max-bytes", "1MB"]) == 0
    assert main(["check", "m.onnx", "--max-nodes", "9"]) == 1


def test_a_general_limit_and_one_by_path_both_hold(capsys: pytest.CaptureFixture[str]) -> None:
    text = '[tool.onnxfuse]\n{}[[tool.onnxfuse.budget]]\npath = "m.onnx"\nmax-bytes = {}\n'
    shutil.copy(FUSED, "m.onnx")
    for general, own, code in (("1GB", "1KB", 1), ("1KB", "1GB", 1), ("1GB", "1GB", 0)):
        write(text.format(f'max-bytes = "{general}"\n', f'"{own}"'))
        assert main(["check", "m.onnx"]) == code
    out = "".join(capsys.readouterr().out.split())  # a long path is wrapped
    assert "pyproject.toml)" in out


def test_every_command_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    write('[tool.onnxfuse]\nformat = "json"\nexcept = "/0/*"\nverify = false\n')
    assert main(["explain", FUSIBLE]) == 0
    assert '"code": "excluded"' in capsys.readouterr().out
    assert main([FUSIBLE, "o.onnx"]) == 0
    assert Path("o.onnx").read_bytes() == Path(FUSIBLE).read_bytes()
    assert main([FUSIBLE, "o.onnx", "--except", "nothing", "--format", "text"]) == 0
    assert Path("o.onnx").read_bytes() != Path(FUSIBLE).read_bytes()
    assert "onnxruntime" not in capsys.readouterr().out  # verify = false


def test_a_file_of_its_own_needs_no_table() -> None:
    write("max-nodes = 1\n", "onnxfuse.toml")
    assert main(["check", FUSED, "--config", "onnxfuse.toml"]) == 1
    write("[tool.onnxfuse]\nmax-nodes = 1\n", "other.toml")
    assert main(["check", FUSED, "--config", "other.toml"]) == 1


def test_a_pyproject_without_the_table_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    write("[tool.onnxfuse]\nmax-nodes = 1\n")
    Path("inner").mkdir()
    monkeypatch.chdir("inner")
    write("[tool.other]\nx = 1\n")
    assert main(["check", FUSED]) == 1


def test_a_baseline_is_relative_to_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[tool.onnxfuse]\nbaseline = "sizes.json"\nmax-growth = "5%"\n')
    shutil.copy(FUSED, "m.onnx")
    Path("inner").mkdir()
    monkeypatch.chdir("inner")
    assert main(["check", "../m.onnx", "--update-baseline"]) == 0
    assert Path("../sizes.json").is_file()
    assert main(["check", "../m.onnx"]) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tool.onnxfuse]\nmax-byte = 1", "has no key 'max-byte'; did you mean 'max-bytes'?"),
        ("[tool.onnxfuse]\nbudgets = 1", "did you mean 'budget'?"),
        ("[tool.onnxfuse]\nzzz = 1", "it takes only, except"),
        ('[tool.onnxfuse]\nmax-nodes = "many"', "max-nodes: 'many' is not a size"),
        ("[tool.onnxfuse]\nverify = 1", "verify is true or false"),
        ("[tool.onnxfuse]\nonly = [1]", "only is a list of texts"),
        ('[tool.onnxfuse]\nformat = "xml"', "format is one of text, json"),
        ('[tool.onnxfuse]\nmax-growth = "2"', "write it as 2%"),
        ("[tool.onnxfuse]\nbaseline = 3", "baseline is a text"),
        ("[tool.onnxfuse]\nbudget = 3", "[[tool.onnxfuse.budget]]"),
        ("[[tool.onnxfuse.budget]]\nmax-nodes = 3", "a budget needs a path"),
        ('[[tool.onnxfuse.budget]]\npath = "x"', "sets no limit"),
        ('[[tool.onnxfuse.budget]]\npath = "x"\nmax-node = 3', "did you mean 'max-nodes'?"),
        ("[tool]\nonnxfuse = 3", "is not a table"),
        ("[tool.onnxfuse]\nno-fusible = true\nbudget-only = true", "judge nothing"),
        ("[tool.onnxfuse]\nmax-nodes = 1.5", "max-nodes: 1.5 is not a size"),
        ("[tool.onnxfuse]\nmax-nodes = " + "[" * 100_000, "is not TOML"),
        ("[tool.onnxfuse", "is not TOML"),
    ],
)
def test_what_it_cannot_mean_is_refused(
    text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(text)
    assert main(["check", FUSED]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "pyproject.toml" in error


@pytest.mark.parametrize("name", ["gone.toml", "pyproject.toml"])
def test_a_named_one_must_hold_something(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("[project]\nname = 'x'\n")
    assert main(["check", FUSED, "--config", name]) == 2
    assert name in capsys.readouterr().err


def test_every_key_is_an_option_of_the_command() -> None:
    from onnxfuse.cli.arguments import check_parser, fuse_parser

    options = {
        option.removeprefix("--")
        for parser in (check_parser(), fuse_parser())
        for action in parser._actions
        for option in action.option_strings
    }
    assert {key for key in config.KEYS if key != "verify"} <= options
