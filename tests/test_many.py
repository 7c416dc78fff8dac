"""Many files fused at once, over threads, processes and a cluster."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxfuse
from onnxfuse.model import carry, io

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
NAMES = ["repvgg_s1_g1.ts", "dbb_k3_s1.ts", "basic_block.ts", "acnet_k3_s2.ts", "bsconv_s.ts"]


@pytest.fixture
def pairs(tmp_path: Path) -> list[tuple[Path, Path]]:
    """Models that fuse or do not, and among them one that is broken and one missing."""
    (tmp_path / "out").mkdir()
    found = [(FIXTURES / f"{name}.onnx", tmp_path / "out" / f"{name}.onnx") for name in NAMES]
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nothing")
    found.insert(1, (bad, tmp_path / "out" / "bad.onnx"))
    found.insert(4, (tmp_path / "gone.onnx", tmp_path / "out" / "gone.onnx"))
    return found


@contextmanager
def _executor(kind: str) -> Iterator[Executor | None]:
    if kind == "default":
        yield None
    elif kind == "threads":
        with ThreadPoolExecutor(4) as threads:
            yield threads
    elif kind == "processes":
        with ProcessPoolExecutor(2, get_context("spawn")) as processes:
            yield processes
    else:
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client.get_executor(pure=False)


@pytest.mark.parametrize("kind", ["default", "threads", "processes", "dask"])
def test_files_are_those_of_one_after_the_other(
    kind: str, pairs: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    with _executor(kind) as executor:
        found = onnxfuse.fuse_files(pairs, executor=executor)
    assert len(found) == len(pairs)
    for (source, target), result in zip(pairs, found, strict=True):
        if source.parent == tmp_path:
            assert isinstance(result, onnxfuse.InputError)
            assert str(source) in str(result)
            assert not target.exists()
            continue
        model, report = onnxfuse.fuse(source)
        assert isinstance(result, onnxfuse.Report)
        assert result.to_dict() == report.to_dict()
        expected = model.SerializeToString(deterministic=True)
        assert target.read_bytes() == (expected if report.changed else source.read_bytes())
    assert len(list((tmp_path / "out").iterdir())) == len(NAMES)


def test_what_travels_holds_no_model(tmp_path: Path) -> None:
    """Weights of 4 MB, of which nothing comes back."""
    model = onnx.load(FIXTURES / "repvgg_s1_g1.ts.onnx")
    extra = onnx.numpy_helper.from_array(np.zeros(1_000_000, np.float32), "extra")
    model.graph.initializer.append(extra)
    onnx.save(model, tmp_path / "m.onnx")
    (report,) = onnxfuse.fuse_files([(tmp_path / "m.onnx", tmp_path / "o.onnx")], jobs=1)
    assert (tmp_path / "o.onnx").stat().st_size > 4_000_000
    assert len(pickle.dumps(report)) < 10_000


def test_options_are_those_of_fuse(tmp_path: Path) -> None:
    source, target = FIXTURES / "repvgg_s1_g1.ts.onnx", tmp_path / "o.onnx"
    (report,) = onnxfuse.fuse_files([(source, target)], jobs=1, without=["*"], verify=False)
    assert isinstance(report, onnxfuse.Report)
    assert [kept.code.value for kept in report.refusals] == ["excluded"] * 5


def test_paths_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(FIXTURES / "repvgg_s1_g1.ts.onnx", "m.onnx")
    with ThreadPoolExecutor(1) as one:
        one.submit(lambda: None).result()
        onnxfuse.fuse_files([("m.onnx", "m.onnx")], executor=one)
    assert len(onnx.load("m.onnx").graph.node) == 2


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ([("a", "o"), ("b", "o")], "o would be written twice"),
        ([("a", "b"), ("b", "c")], "b is the input of another pair"),
        ([("a", "link"), ("b", "o")], "link would be written twice"),
    ],
)
def test_what_depends_on_who_is_first_is_refused(
    named: list[tuple[str, str]], says: str, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "o")
    files = [(tmp_path / source, tmp_path / target) for source, target in named]
    if "link" in says:
        files.reverse()
    with pytest.raises(onnxfuse.InputError, match=says):
        onnxfuse.fuse_files(files)


def test_jobs_are_a_number_and_not_an_executors() -> None:
    with pytest.raises(onnxfuse.InputError, match="whole number"):
        onnxfuse.fuse_files([], jobs=-1)
    with ThreadPoolExecutor(1) as one, pytest.raises(onnxfuse.InputError, match="its own number"):
        onnxfuse.fuse_files([], executor=one, jobs=2)


def test_data_files_of_one_name_never_replace_each_other(tmp_path: Path) -> None:
    """Two models, each with a data file of its own called weights: one of them must fail."""
    for name, scale in (("a", 1.0), ("b", 2.0)):
        model = onnx.load(FIXTURES / "repvgg_a0.ts.onnx")
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype == np.float32:
                tensor.CopyFrom(onnx.numpy_helper.from_array(array * scale, tensor.name))
        (tmp_path / name).mkdir()
        onnx.save(
            model, tmp_path / name / "m.onnx", save_as_external_data=True, location="weights",
            size_threshold=16,
        )  # fmt: skip
    (tmp_path / "out").mkdir()
    pairs = [(tmp_path / n / "m.onnx", tmp_path / "out" / f"{n}.onnx") for n in "ab"]
    with ThreadPoolExecutor(2) as threads:
        found = onnxfuse.fuse_files(pairs, executor=threads)
    errors = [one for one in found if isinstance(one, Exception)]
    assert len(errors) == 1
    assert "weights" in str(errors[0])
    (good,) = (n for n, one in zip("ab", found, strict=True) if not isinstance(one, Exception))
    assert (tmp_path / "out" / "weights").read_bytes() == (tmp_path / good / "weights").read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{good}.onnx", f"{good}.onnxfuse.data", "weights",
    }  # fmt: skip


@pytest.mark.parametrize("ends", ["at once", "in between", "never"])
def test_data_is_copied_whole_however_far_the_system_copies(
    ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, new = tmp_path / "weights", tmp_path / "new"
    place.write_bytes(os.urandom(100_000))
    calls: list[int] = []
    real = getattr(os, "copy_file_range", None)

    def some(source: int, target: int, count: int) -> int:
        calls.append(count)
        if ends == "at once" or (ends == "in between" and len(calls) > 3):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(source, target, 1000) if ends == "in between" else real(source, target, count)

    if real is None and ends != "at once":
        pytest.skip("this system copies nothing by itself")
    monkeypatch.setattr(os, "copy_file_range", some, raising=False)
    carry._copied(place, new)
    assert new.read_bytes() == place.read_bytes()
    assert calls


def test_a_file_that_another_run_copied_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It appears between the look and the copy."""
    place, new = tmp_path / "weights", tmp_path / "new"
    place.write_bytes(b"mine")
    real = carry._fill

    def slow(source: Path, temporary: Path, *_: object) -> None:
        real(source, temporary)
        new.write_bytes(theirs)

    monkeypatch.setattr(carry, "_fill", slow)
    theirs = b"mine"
    carry._copied(place, new)
    new.unlink()
    theirs = b"else"
    with pytest.raises(onnxfuse.InputError, match="cannot be written"):
        carry._copied(place, new)
    assert new.read_bytes() == b"else"
    assert {path.name for path in tmp_path.iterdir()} == {"weights", "new"}


def test_threads_leave_the_umask_as_it_was(tmp_path: Path) -> None:
    """It can only be read by setting it."""
    before = os.umask(0o022)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: [io.mode_of(tmp_path / "no") for _ in range(3000)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert os.umask(0o022) == 0o022
    finally:
        sys.setswitchinterval(interval)
        os.umask(before)
