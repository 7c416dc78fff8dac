"""The same work on many things: order, errors as values, workers that die, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from onnxfuse import pool
from onnxfuse.errors import InputError, ProofError, WorkerError
from onnxfuse.model import io

TESTS = Path(__file__).parent
HEARING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""Python does not hear Ctrl-C where it was started in a shell's background."""
posix = pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")


def squared(number: int) -> int:
    """Slowest first, so that results come in another order than they are asked for."""
    time.sleep(0.2 / (number + 1))
    if number == 3:
        raise InputError("three cannot be used")
    if number == 4:
        raise ProofError("four is not equal", "root", {"x": (1, 2)})
    return number * number


def deadly(number: int) -> int:
    """Kills the process that works on 1 or 4."""
    if number in (1, 4):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number * number


def writing(name: str) -> None:
    """Stands in the middle of writing a file, for a long time."""
    with io._replacing(Path(name)) as temporary:
        temporary.write_bytes(b"half")
        Path(f"{name}.started").touch()
        time.sleep(60)


@pytest.mark.parametrize("kind", ["processes", "threads", "executor"])
def test_results_keep_their_order_and_errors_are_values(kind: str) -> None:
    items = list(range(6))
    if kind == "processes":
        found = pool.in_processes(squared, items, 2)
    elif kind == "threads":
        with ThreadPoolExecutor(3) as threads:
            found = pool.in_executor(squared, items, threads)
    else:
        with ProcessPoolExecutor(2, get_context("spawn")) as processes:
            found = pool.in_executor(squared, items, processes)
    assert found[:3] + found[5:] == [0, 1, 4, 25]
    assert isinstance(found[3], InputError)
    assert isinstance(found[4], ProofError)
    assert (str(found[4]), found[4].root, found[4].sizes) == (
        "four is not equal", "root", {"x": (1, 2)},
    )  # fmt: skip


def test_nothing_at_all() -> None:
    assert pool.in_processes(squared, [], 2) == []


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    pool.in_processes(squared, [0, 1, 2], 2, lambda _, done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_worker_that_dies_is_named_and_stops_nobody() -> None:
    found = pool.in_processes(deadly, list(range(7)), 3)
    assert [n for n, result in enumerate(found) if isinstance(result, WorkerError)] == [1, 4]
    assert "worked on 4 ended abruptly" in str(found[4])
    assert [found[n] for n in (0, 2, 3, 5, 6)] == [0, 4, 9, 25, 36]


def test_a_foreign_pool_that_breaks_gives_errors_for_what_it_lost() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        found = pool.in_executor(deadly, [0, 1, 2], processes)
    assert found[0] == 0
    assert isinstance(found[1], WorkerError)
    assert isinstance(found[2], WorkerError)


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from onnxfuse import pool\npool.in_processes(abs, [1], 1)\n")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)}, timeout=120,
    )  # fmt: skip
    assert "WorkerError: no worker process can start; in a script" in done.stderr
    assert '`if __name__ == "__main__":`' in done.stderr


def _group(number: int) -> set[int]:
    """The processes of a group that still run."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[2]) == number:
            found.add(int(stat.parent.name))
    return found


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_call_ends_the_workers_and_leaves_no_file(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Ctrl-C reaches the whole group; the other two, the calling process alone."""
    names = [str(tmp_path / name) for name in "ab"]
    code = (
        f"{HEARING}import sys; sys.path[:0] = {[str(TESTS), str(TESTS.parent)]}\n"
        "import test_pool\n"
        "from onnxfuse import pool\n"
        f"pool.in_processes(test_pool.writing, {names}, 2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 60
        while not all(Path(f"{name}.started").exists() for name in names):
            assert time.monotonic() < until
            time.sleep(0.02)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=30)
        until = time.monotonic() + 30
        while _group(process.pid):
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        for left in _group(process.pid):
            os.kill(left, signal.SIGKILL)
    assert {path.name for path in tmp_path.iterdir()} == {"a.started", "b.started"}
    assert said.count("Traceback") == (1 if number == signal.SIGINT else 0)  # the caller's own
