"""Work that is shared among forked processes gives what one process would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxfuse import cli, forked, threaded
from onnxfuse.cli import main
from onnxfuse.errors import ProofError
from onnxfuse.verify import region

FIXTURES = Path(__file__).parents[1] / "fixtures" / "pytorch"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "LEAST", 1)


def each(work: Callable[[int], Any], count: int = 3, items: int = 7) -> list[Any]:
    return forked.each(work, range(items), [1] * items, count, lambda done, total: None)


def children() -> set[str]:
    """Those of the test run itself, which other tests may have left some of."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
def test_results_are_in_order_and_from_so_many_processes(count: int) -> None:
    found = each(lambda item: (item * item, os.getpid()), count)
    assert [square for square, _ in found] == [item * item for item in range(7)]
    assert len({process for _, process in found}) == min(max(count, 1), 7)
    assert os.getpid() in {process for _, process in found}


def test_nothing_is_no_work() -> None:
    assert each(lambda item: item, items=0) == []


def test_small_work_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least not among processes; see `test_threaded`."""
    monkeypatch.setattr(forked, "LEAST", 4)
    assert len(set(each(lambda _: os.getpid(), 3, 7))) == 1
    assert len(set(each(lambda _: os.getpid(), 3, 8))) == 2


@pytest.mark.parametrize("failing", [{0}, {3}, {6}, {5, 1}, set(range(7))])
def test_the_first_error_is_raised(failing: set[int]) -> None:
    def work(item: int) -> int:
        if item in failing:
            raise ProofError(f"item {item}", "root", {"x": (1, 2)}, "body")
        return item

    with pytest.raises(ProofError, match=f"item {min(failing)}") as caught:
        each(work)
    error = caught.value
    assert (error.root, error.sizes, error.scope) == ("root", {"x": (1, 2)}, "body")


class UnsendableError(Exception):
    """An error that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError


def test_what_cannot_be_sent_is_done_here(capfd: pytest.CaptureFixture[str]) -> None:
    here = os.getpid()

    def work(item: int) -> int:
        if item == 6:
            raise UnsendableError
        return os.getpid()

    with pytest.raises(UnsendableError):
        each(work)
    assert set(each(lambda item: here if os.getpid() == here else lambda: None)) == {here}
    assert capfd.readouterr().err == ""


class UnreadableError(Exception):
    """An error that is pickled, and does not come out of it."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


def test_what_cannot_be_received_is_done_here() -> None:
    def work(item: int) -> int:
        if item == 6:
            raise UnreadableError(1, 2)
        return item

    with pytest.raises(UnreadableError, match="3"):
        each(work)


def test_a_process_that_dies_is_replaced_by_this_one() -> None:
    here = os.getpid()

    def work(item: int) -> int:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert each(work) == list(range(7))


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(11, "Resource temporarily unavailable"),
        AssertionError("daemonic processes are not allowed to have children"),
    ],
)
def test_where_none_can_be_forked(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise error

    monkeypatch.setattr(os, "fork", full)
    assert set(each(lambda _: os.getpid())) == {os.getpid()}


def test_an_interrupt_ends_all_of_them() -> None:
    here = os.getpid()

    def work(item: int) -> None:
        if os.getpid() == here:
            raise KeyboardInterrupt
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        each(work)
    assert time.monotonic() - began < 30


def test_none_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    """Not even for as long as one thing takes."""
    code = f"""
import os, time
from pathlib import Path
from onnxfuse import forked
forked.LEAST = 1
here = os.getpid()
def work(item):
    if os.getpid() == here:
        while not list(Path(r'{tmp_path}').iterdir()):
            time.sleep(0.01)
        os.kill(here, 9)
    Path(r'{tmp_path}', str(os.getpid())).touch()
    time.sleep(60)
forked.each(work, range(200), [1] * 200, 2, print)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (child,) = (path.name for path in tmp_path.iterdir())
    for _ in range(300):
        if not Path("/proc", child).exists():
            break
        time.sleep(0.1)
    assert not Path("/proc", child).exists()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that each call of `forked.each` may use."""
    found: list[int] = []
    real = forked.each

    def each(work: Any, items: Any, sizes: Any, count: int, show: Any) -> Any:
        found.append(count)
        return real(work, items, sizes, count, show)

    monkeypatch.setattr(forked, "each", each)
    monkeypatch.setattr(threaded, "workers", lambda: 3)
    return found


class TestTheProgram:
    @pytest.mark.parametrize("given", ["inline", "external"])
    @pytest.mark.parametrize("name", ["repvgg_a0.ts", "dbb_k3_s1.ts"])
    def test_it_writes_the_same_bytes(
        self,
        name: str,
        given: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        seen: list[int],
    ) -> None:
        model = onnx.load(FIXTURES / f"{name}.onnx")
        where = {"save_as_external_data": True, "location": "w", "size_threshold": 16}
        onnx.save(model, tmp_path / "m.onnx", **(where if given == "external" else {}))
        written = []
        for workers in (3, 1):
            monkeypatch.setattr(threaded, "workers", lambda count=workers: count)
            target = tmp_path / "o.onnx"
            more = ["--external-data-threshold", "16"] if given == "external" else []
            assert main([str(tmp_path / "m.onnx"), str(target), "-q", *more]) == 0
            files = [path for path in sorted(tmp_path.glob("o.*")) if path.is_file()]
            written.append([path.read_bytes() for path in files])
            for path in files:
                path.unlink()
        assert written[0] == written[1]
        assert len(written[0]) == (2 if given == "external" else 1)
        assert {1, 3} == set(seen)

    def test_a_proof_that_fails_elsewhere_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real, here = region.prove, os.getpid()

        def fails(replacement: Any, *rest: Any) -> Any:
            if os.getpid() != here:
                raise ProofError("not equal there", replacement.root)
            return real(replacement, *rest)

        monkeypatch.setattr(region, "prove", fails)
        monkeypatch.setattr(threaded, "workers", lambda: 2)
        source, target = str(FIXTURES / "repvgg_a0.ts.onnx"), tmp_path / "o.onnx"
        repro = tmp_path / "repro"
        assert main([source, str(target), "--save-repro", str(repro)]) == 3
        assert "not equal there" in capsys.readouterr().err
        assert list(repro.glob("*.onnx"))
        assert not target.exists()

    def test_only_one_model_at_a_time_is_shared(self, seen: list[int], tmp_path: Path) -> None:
        source = str(FIXTURES / "repvgg_s2_g1.ts.onnx")
        assert main(["check", source]) == 1
        assert set(seen) == {1}
        seen.clear()
        assert main(["explain", source]) == 0
        assert set(seen) == {3}


def test_libraries_take_one_thread_where_processes_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "")  # so that it is undone
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    monkeypatch.setattr(cli, "main", lambda: 0)
    monkeypatch.setattr(os, "_exit", lambda code: None)
    with pytest.raises(SystemExit):
        cli.script()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
