"""``onnxfuse check --jobs``: the same output as one after the other, whatever a model does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_pool import HEARING, _group, posix

from onnxfuse.cli import check, main
from onnxfuse.options import Options

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures" / "pytorch"
FUSIBLE = FIXTURES / "repvgg_s1_g1.ts.onnx"
FUSED = FIXTURES / "repvgg_s1_g1.deploy.onnx"


@pytest.fixture(autouse=True)
def _zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of models, some of them broken, and a baseline that lacks one."""
    monkeypatch.chdir(tmp_path)
    Path("zoo").mkdir()
    for name, source in (("a", FUSIBLE), ("b", FUSED), ("d", FIXTURES / "dbb_k3_s1.ts.onnx")):
        shutil.copy(source, f"zoo/{name}.onnx")
    Path("zoo/c.onnx").write_bytes(b"nothing")
    main(["check", "zoo/a.onnx", "zoo/b.onnx", "--baseline", "sizes.json", "--update-baseline"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["zoo"],
        ["zoo", "--format", "json"],
        ["zoo", "--format", "junit", "--max-nodes", "3"],
        ["zoo", "gone.onnx", "--baseline", "sizes.json", "--max-growth", "1%"],
        ["zoo/a.onnx", "zoo/b.onnx", "--budget-only", "--max-macs", "1k"],
        ["zoo/a.onnx", "zoo/d.onnx", "--only", "/0/*", "--except", "nothing*"],
    ],
)
def test_output_and_code_are_those_of_one_after_the_other(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    code = main(["check", *arguments, "--jobs", "1"])
    alone = capsys.readouterr()
    assert main(["check", *arguments, "--jobs", "2"]) == code
    together = capsys.readouterr()
    assert together.out == alone.out
    assert together.err == alone.err
    assert code


def test_few_small_models_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxfuse import pool

    started: list[int] = []

    def counted(work: Any, items: Any, jobs: int, show: Any) -> list[Any]:
        started.append(jobs)
        return [work(item) for item in items]

    monkeypatch.setattr(pool, "in_processes", counted)
    monkeypatch.setattr(pool, "cores", lambda: 3)
    main(["check", "zoo"])
    assert started == []
    for number in range(4):
        shutil.copy(FUSED, f"zoo/{number}.onnx")
    main(["check", "zoo"])
    assert started == [3]
    main(["check", "zoo", "--jobs", "20"])
    assert started == [3, 8]


def _killing(options: Options, path: str, *, fusible: bool) -> check.Measured:
    """What a model that takes all memory does."""
    if path.endswith("d.onnx"):
        os.kill(os.getpid(), signal.SIGKILL)
    return check.measured(options, path, fusible=fusible)


def test_a_model_that_kills_its_worker_is_named_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    monkeypatch.setattr("onnxfuse.cli.check.measured", _killing)
    assert main(["check", "zoo/a.onnx", "zoo/b.onnx", "zoo/d.onnx", "--jobs", "2"]) == 3
    printed = capsys.readouterr()
    assert printed.err.startswith("onnxfuse: error: the process that worked on zoo/d.onnx ended")
    assert printed.err.count("\n") == 1
    assert "3 models: 1 fine, 1 with regions to fuse, 1 that could not be judged" in printed.out


@pytest.mark.parametrize("stage", ["__init__", "submit"])
def test_where_no_process_can_start_models_are_checked_in_this_one(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxfuse import pool

    def refused(*_: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(pool.ProcessPoolExecutor, stage, refused)
    if stage == "submit":
        monkeypatch.setattr(check, "MANY", 2)
    else:
        monkeypatch.setattr(check, "MUCH", 1)
    monkeypatch.setattr(pool, "cores", lambda: 2)
    capsys.readouterr()
    assert main(["check", "zoo", "--jobs", "1"]) == 2
    alone = capsys.readouterr()
    assert main(["check", "zoo"]) == 2
    assert capsys.readouterr() == alone
    assert main(["check", "zoo", "--jobs", "2"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("onnxfuse: error: no worker process can start: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("jobs", ["-1", "two", "1.5", ""])
def test_a_number_of_jobs_that_is_none(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "zoo", f"--jobs={jobs}"]) == 2
    assert f"--jobs '{jobs}' is not a whole number" in capsys.readouterr().err


@posix
def test_ctrl_c_ends_all_of_it_with_one_line() -> None:
    names = [shutil.copy(FUSED, f"zoo/n{number}.onnx") for number in range(400)]
    code = f"{HEARING}import sys; from onnxfuse.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "check", *names, "--jobs", "2"],
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    until = time.monotonic() + 60
    while len(_group(process.pid)) < 4:  # the command, its resource tracker, two workers
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "onnxfuse: error: interrupted; no file is half written\n"
    until = time.monotonic() + 30
    while _group(process.pid):
        assert time.monotonic() < until
        time.sleep(0.02)
