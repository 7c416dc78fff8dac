"""Which files ``onnxfuse check`` means, several of them, and files that may not be read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxfuse.cli import main

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
FUSIBLE = FIXTURES / "repvgg_s1_g1.ts.onnx"
FUSED = FIXTURES / "repvgg_s1_g1.deploy.onnx"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def place(name: str, source: Path = FUSED) -> str:
    """A copy of a fixture in the working directory."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, name)
    return name


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

    def test_what_is_no_regular_file(self, capsys: pytest.CaptureFixture[str]) -> None:
        os.mkfifo("pipe.onnx")
        assert main(["check", "pipe.onnx", "/dev/null", str(FUSED)]) == 2
        captured = capsys.readouterr()
        assert "pipe.onnx is not a regular file" in captured.err
        assert "/dev/null is not a regular file" in captured.err
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

        def unproved(path: str, *rest: Any) -> Any:
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


UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may read everything"
)
class TestUnreadable:
    """Directories that may not be read or entered fail by name, and stop nothing else."""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        prefix = UNPRIVILEGED if os.geteuid() == 0 else []
        return subprocess.run(
            [*prefix, sys.executable, "-m", "onnxfuse", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=dict(os.environ) | {"PYTHONPATH": str(FIXTURES.parent.parent)},
        )

    @pytest.fixture(autouse=True)
    def tree(self) -> Iterator[None]:
        place("tree/fine.onnx")
        place("tree/closed/a.onnx")
        place("tree/listed/b.onnx")
        Path("tree/closed").chmod(0)
        Path("tree/listed").chmod(0o444)
        yield
        Path("tree/closed").chmod(0o755)
        Path("tree/listed").chmod(0o755)

    @pytest.mark.parametrize(
        ("names", "says"),
        [
            (["tree"], ["tree/closed cannot be read", "tree/listed/b.onnx cannot be read"]),
            (["tree/**/*.onnx"], ["tree/closed cannot be read"]),
            (["tree/closed", "tree/fine.onnx"], ["tree/closed cannot be read"]),
            (["tree/closed/*.onnx", "tree/fine.onnx"], ["tree/closed"]),
            (["tree/closed/a.onnx", "tree/fine.onnx"], ["tree/closed/a.onnx cannot be read"]),
            (["tree/closed/sub/", "tree/fine.onnx"], ["tree/closed/sub"]),
        ],
    )
    def test_check(self, names: list[str], says: list[str]) -> None:
        done = self.run("check", *names)
        assert done.returncode == 2
        assert "tree/fine.onnx: nothing left to fuse" in done.stdout
        for text in says:
            assert text in done.stderr
        assert "Permission denied" in done.stderr
        assert "internal" not in done.stderr
        assert "holds no .onnx file" not in done.stderr

    def test_a_budget(self) -> None:
        Path("pyproject.toml").write_text(
            '[[tool.onnxfuse.budget]]\npath = "tree"\nmax-nodes = 9\n'
        )
        done = self.run("check")
        assert done.returncode == 2
        assert "tree/closed cannot be read" in done.stderr
        assert self.run("check", "tree/fine.onnx").returncode == 0

    @pytest.mark.parametrize(
        "words", ["explain IN", "IN o.onnx", "verify IN IN", "tree/fine.onnx tree/closed/o.onnx",
                  "check tree/fine.onnx --config IN", "check tree/fine.onnx --baseline IN",
                  "check tree/fine.onnx --baseline IN --update-baseline",
                  "explain tree/fine.onnx --report tree/closed/r.html"],
    )  # fmt: skip
    def test_other_commands(self, words: str) -> None:
        done = self.run(*("tree/closed/a.onnx" if w == "IN" else w for w in words.split()))
        assert done.returncode == 2
        assert "Permission denied" in done.stderr or "not writable" in done.stderr
        assert done.stderr.count("\n") == 1
        assert "internal" not in done.stderr

    def test_a_configuration_above(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Path("pyproject.toml").write_text("[tool.onnxfuse]\nmax-nodes = 1\n")
        Path("pyproject.toml").chmod(0)
        done = self.run("check", "tree/fine.onnx")
        assert done.returncode == 2
        assert "pyproject.toml cannot be read" in done.stderr
        assert self.run("check", "tree/fine.onnx", "--isolated").returncode == 0
