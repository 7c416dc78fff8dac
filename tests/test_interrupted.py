"""A run that is stopped: OUT and its data are whole, and nothing is left that is not named."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from onnxfuse.cli import main
from onnxfuse.errors import InputError
from onnxfuse.model import io, temporary

ROOT = Path(__file__).parent.parent
FUSIBLE = ROOT / "fixtures" / "pytorch" / "repvgg_s1_g1.ts.onnx"
LINEAR = ROOT / "fixtures" / "pytorch" / "repvgg_a0.ts.onnx"  # its linear layer keeps its data
OLD = b"what stood here before"
SEEN = "was left by an interrupted run and may be deleted"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def started(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A fresh interpreter with the package; its output is not looked at."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


RUN = "import sys; from onnxfuse.cli import main; sys.exit(main(sys.argv[1:]))"

SLOW = """
import sys, time
from pathlib import Path
from onnxfuse.model import io
with io._replacing(Path(sys.argv[1])) as first:
    first.write_bytes(b"half")
    with io._replacing(Path(sys.argv[2])) as second:
        second.write_bytes(b"half")
        Path("ready").touch()
        time.sleep(60)
"""
"""Writes two files and never ends."""


def writing(*outputs: str) -> subprocess.Popen[bytes]:
    """A process in the middle of writing two files."""
    process = started(SLOW, *outputs)
    while not Path("ready").exists():
        assert process.poll() is None
        time.sleep(0.01)
    Path("ready").unlink()
    return process


def temporaries(folder: str = ".") -> list[Path]:
    return sorted(Path(folder).rglob(f".*{temporary.SUFFIX}"))


def with_data() -> tuple[bytes, bytes]:
    """A model with external data in ``in``; gives both as the command writes them to ``whole``."""
    Path("in/sub").mkdir(parents=True)
    where = {"save_as_external_data": True, "location": "sub/m.data", "size_threshold": 16}
    onnx.save(onnx.load(LINEAR), "in/m.onnx", **where)
    Path("whole").mkdir()
    assert main(["in/m.onnx", "whole/o.onnx", "-q", "--no-verify"]) == 0
    return Path("whole/o.onnx").read_bytes(), Path("whole/sub/m.data").read_bytes()


class TestKilled:
    """SIGKILL at any moment."""

    def test_the_old_or_the_new_is_whole(self) -> None:
        assert main([str(FUSIBLE), "whole.onnx", "-q"]) == 0
        new = Path("whole.onnx").read_bytes()
        began = time.monotonic()
        assert started(RUN, str(FUSIBLE), "whole.onnx").wait() == 0
        usual, met = time.monotonic() - began, set()
        for step in range(14):
            Path("out.onnx").write_bytes(OLD)
            process = started(RUN, str(FUSIBLE), "out.onnx")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(usual * (step + 1) / 11)
            process.kill()
            process.wait()
            held = Path("out.onnx").read_bytes()
            assert held in (OLD, new), f"after {step} steps of {usual / 11:.3f} s"
            met.add(held == new)
        assert False in met  # else nothing was interrupted

    @pytest.mark.parametrize("before", ["nothing", "an older output"])
    def test_at_every_call_that_changes_a_file(self, before: str) -> None:
        """Dies at the first call, then at the second and so on, until a run gets through."""
        new, data = with_data()
        call = 0
        while True:
            call += 1
            shutil.rmtree("out", ignore_errors=True)
            Path("out").mkdir()
            if before != "nothing":
                Path("out/o.onnx").write_bytes(OLD)
            arguments = ("in/m.onnx", "out/o.onnx", "--no-verify")
            code = started(DYING, str(call), *arguments).wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL
            held = Path("out/o.onnx").read_bytes() if Path("out/o.onnx").exists() else None
            assert held in (None if before == "nothing" else OLD, new), call
            if held == new:
                assert Path("out/sub/m.data").read_bytes() == data
        assert call > 8
        assert Path("out/o.onnx").read_bytes() == new
        assert Path("out/sub/m.data").read_bytes() == data
        assert temporaries("out") == []


DYING = """
import os, signal, sys
calls = int(sys.argv[1])
changes = {"os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate", "shutil.copyfile"}
out = os.path.abspath("out")
def audit(event, arguments):
    global calls
    if event not in changes and event != "open":
        return
    if not any(isinstance(a, str | os.PathLike) and os.path.abspath(a).startswith(out)
               for a in arguments):
        return
    calls -= 1
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
from onnxfuse.cli import main
import onnxfuse.fusing
sys.addaudithook(audit)
sys.exit(main(sys.argv[2:]))
"""
"""Runs the command and dies just before the given call on a file below ``out``."""


class TestLeft:
    """What killed runs leave is named, and nothing else is."""

    def test_it_is_named_and_kept(self, capsys: pytest.CaptureFixture[str]) -> None:
        process = writing("out.onnx", "other.onnx")
        process.kill()
        process.wait()
        orphans = temporaries()
        assert [place.name.rsplit(".", 3)[0] for place in orphans] == [".other.onnx", ".out.onnx"]
        assert main([str(FUSIBLE), "out.onnx"]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert lines == [f"onnxfuse: note: {place.resolve()} {SEEN}" for place in orphans]
        assert temporaries() == orphans
        assert main([str(FUSIBLE), "out.onnx", "-q"]) == 0
        assert capsys.readouterr().err == ""

    def test_also_where_the_run_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path(f".out.onnx.0{temporary.SUFFIX}").touch()
        assert main(["gone.onnx", "out.onnx"]) == 2
        assert SEEN in capsys.readouterr().err

    def test_beside_data_pages_and_baselines(self, capsys: pytest.CaptureFixture[str]) -> None:
        with_data()
        for name in ("whole/sub/.m.data.0", "p/.r.html.0", "b/.sizes.json.0"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(f"{name}{temporary.SUFFIX}").touch()
        capsys.readouterr()
        assert main(["in/m.onnx", "whole/o.onnx", "--no-verify", "--report", "p/r.html"]) == 0
        error = capsys.readouterr().err
        assert [name in error for name in ("m.data", "r.html", "sizes.json")] == [True, True, False]
        options = ["--baseline", "b/sizes.json", "--update-baseline", "--budget-only"]
        assert main(["check", str(FUSIBLE), *options, "--report", "p/r.html"]) == 0
        error = capsys.readouterr().err
        assert [name in error for name in ("m.data", "r.html", "b/.sizes")] == [False, True, True]
        assert main(["explain", str(FUSIBLE), "--report", "p/r.html"]) == 0
        assert "r.html" in capsys.readouterr().err

    def test_what_is_being_written_is_not(self, capsys: pytest.CaptureFixture[str]) -> None:
        process = writing("out.onnx", "other.onnx")
        try:
            assert main([str(FUSIBLE), "out.onnx"]) == 0
            assert SEEN not in capsys.readouterr().err
            assert len(temporaries()) == 2
        finally:
            process.kill()
            process.wait()

    def test_nor_what_somebody_else_made(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path(".out.onnx.abcdefgh.tmp").touch()
        Path(f"out{temporary.SUFFIX}").touch()
        Path(f".link{temporary.SUFFIX}").symlink_to("nowhere")
        os.mkfifo(f".pipe{temporary.SUFFIX}")
        with Path(f".held{temporary.SUFFIX}").open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert main([str(FUSIBLE), "out.onnx"]) == 0
        assert "held" not in capsys.readouterr().err


class TestEnded:
    """Failures and polite signals leave no temporary file."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_signal(self, number: signal.Signals) -> None:
        Path("out.onnx").write_bytes(OLD)
        process = writing("out.onnx", "other.onnx")
        process.send_signal(number)
        assert process.wait() == -number
        assert {place.name for place in Path().iterdir()} == {"out.onnx"}
        assert Path("out.onnx").read_bytes() == OLD

    def test_handlers_are_as_before(self) -> None:
        def own(number: int, frame: object) -> None: ...

        signals = (signal.SIGTERM, signal.SIGHUP)
        kept = [signal.signal(number, own) for number in signals]
        try:
            io.write(Path("a"), b"a")
            assert [signal.getsignal(number) for number in signals] == [own, own]
            with io._replacing(Path("a")):
                assert signal.getsignal(signal.SIGTERM) is own
        finally:
            for number, before in zip(signals, kept, strict=True):
                signal.signal(number, before)
        io.write(Path("a"), b"a")
        assert [signal.getsignal(number) for number in signals] == kept

    def test_a_full_disk(self, capfd: pytest.CaptureFixture[str]) -> None:
        """A limit on the size of files fails where a full disk does, in the middle of a write."""
        Path("out.onnx").write_bytes(OLD)
        with_data()
        before = sorted(Path().rglob("*"))
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999)); {RUN}"
        for source, out in ((str(FUSIBLE), "out.onnx"), ("in/m.onnx", "out.onnx")):
            assert started(code, source, out, "--no-verify").wait() == 2
            assert Path("out.onnx").read_bytes() == OLD
            assert [p for p in sorted(Path().rglob("*")) if p.is_file()] == [
                p for p in before if p.is_file()
            ]
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (999, limits[1]))
        try:
            with pytest.raises(InputError, match=r"out\.onnx cannot be written: File too large"):
                io.write(Path("out.onnx"), bytes(1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert temporaries() == []

    def test_a_directory_that_vanishes(self) -> None:
        with pytest.raises(InputError, match="cannot be written: No such file"):
            io.write(Path("gone/out.onnx"), b"")

    def test_a_name_as_long_as_names_may_be(self) -> None:
        for name in ("n" * 255, "ü" * 127):
            io.write(Path(name), OLD)
            assert Path(name).read_bytes() == OLD
