"""Work that is shared among threads gives what one thread would."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxfuse import threaded
from onnxfuse.cli import main
from onnxfuse.errors import ProofError
from onnxfuse.verify import region

FIXTURES = Path(__file__).parents[1] / "fixtures" / "pytorch"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threaded, "LEAST", 1)


def each(work: Callable[[int], Any], count: int = 3, items: int = 7) -> list[Any]:
    return threaded.each(work, range(items), [1] * items, count, lambda done, total: None)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
def test_results_are_in_order_and_from_so_many_threads(count: int) -> None:
    expected = min(max(count, 1), 7)
    together = threading.Barrier(expected)

    def work(item: int) -> tuple[int, int]:
        if item < expected:  # the first of each share
            together.wait(60)
        return item * item, threading.get_ident()

    found = each(work, count)
    assert [square for square, _ in found] == [item * item for item in range(7)]
    assert len({thread for _, thread in found}) == expected
    assert threading.get_ident() in {thread for _, thread in found}


def test_nothing_is_no_work() -> None:
    assert each(lambda item: item, items=0) == []


def test_small_work_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threaded, "LEAST", 4)
    here = threading.get_ident()
    assert {thread == here for thread in each(lambda _: threading.get_ident(), 3, 7)} == {True}
    assert {thread == here for thread in each(lambda _: threading.get_ident(), 3, 8)} == {
        True,
        False,
    }


def test_shares_weigh_alike() -> None:
    shares = threaded.shared([8, 1, 1, 1, 5, 4], 2)
    assert sorted(index for share in shares for index in share) == list(range(6))
    assert all(share == sorted(share) for share in shares)
    assert [sum([8, 1, 1, 1, 5, 4][i] for i in share) for share in shares] == [10, 10]


@pytest.mark.parametrize("failing", [{0}, {3}, {6}, {5, 1}, set(range(7))])
def test_the_first_error_is_raised(failing: set[int]) -> None:
    def work(item: int) -> int:
        if item in failing:
            raise ProofError(f"item {item}")
        return item

    with pytest.raises(ProofError, match=f"item {min(failing)}"):
        each(work)


def test_an_interrupt_ends_all_of_them() -> None:
    here = threading.get_ident()
    begun, doing = threading.Event(), []

    def work(item: int) -> None:
        if threading.get_ident() == here:
            assert begun.wait(60)
            raise KeyboardInterrupt
        doing.append(item)
        begun.set()
        time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt):
        each(work, 2, 200)
    count = len(doing)
    assert count < 50
    time.sleep(0.5)
    assert len(doing) == count


def test_workers_are_as_many_as_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    assert threaded.workers() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, expected in ((None, 1), (3, 3), (99, threaded.MOST)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert threaded.workers() == expected


class TestTheProgram:
    """A model as it is, whose weights stay in memory."""

    @pytest.mark.parametrize("name", ["repvgg_a0.ts", "repvgg_a0.preserve", "dbb_k3_s1.ts"])
    def test_it_writes_and_says_the_same(
        self,
        name: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        source, target = str(FIXTURES / f"{name}.onnx"), tmp_path / "o.onnx"
        counts: list[int] = []
        real = threaded.each

        def each(work: Any, items: Any, sizes: Any, count: int, show: Any) -> Any:
            counts.append(count)
            return real(work, items, sizes, count, show)

        monkeypatch.setattr(threaded, "each", each)
        found = []
        for workers in (4, 1):
            monkeypatch.setattr(threaded, "workers", lambda count=workers: count)
            assert main([source, str(target), "--no-verify", "--format", "markdown"]) == 0
            found.append((target.read_bytes(), capsys.readouterr().out))
        assert found[0] == found[1]
        assert set(counts) == {4, 1}

    def test_what_overflows_warns_of_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        model = onnx.load(FIXTURES / "repvgg_a0.ts.onnx")
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 4 and tensor.dims[0] > 8:
                tensor.raw_data = b"\xff\xff\x7f\x7f" * (len(tensor.raw_data) // 4)  # the largest
        source = tmp_path / "in.onnx"
        source.write_bytes(model.SerializeToString())
        monkeypatch.setattr(threaded, "workers", lambda: 3)
        assert main([str(source), str(tmp_path / "o.onnx"), "--no-verify", "-q"]) == 0
        assert capfd.readouterr().err == ""
        assert main([str(source), str(tmp_path / "o.onnx"), "--no-verify", "-v"]) == 0
        assert "[overflow]" in capfd.readouterr().out

    def test_a_proof_that_fails_in_any_of_them_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real, here = region.prove, threading.get_ident()

        def fails(replacement: Any, *rest: Any) -> Any:
            if threading.get_ident() != here:
                raise ProofError("not equal there", replacement.root)
            return real(replacement, *rest)

        monkeypatch.setattr(region, "prove", fails)
        monkeypatch.setattr(threaded, "workers", lambda: 2)
        assert main([str(FIXTURES / "repvgg_a0.ts.onnx"), str(tmp_path / "o.onnx")]) == 3
        assert "not equal there" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
