"""Where weights go: each store keeps the shape, the order and the rounding of what is folded."""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxfuse.emit import Weight, plain
from onnxfuse.model import held, temporary
from onnxfuse.model import store as store_module
from onnxfuse.model.store import DataFile, Held, Memory, Store

SHAPES: list[tuple[tuple[int, ...], int | None]] = [
    ((), None), ((3,), None), ((1, 5, 1), None), ((4, 6), 0), ((4, 6), 1), ((5, 2, 3, 3), 0),
]  # fmt: skip


@pytest.fixture(params=["memory", "held", "file"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    monkeypatch.setattr(held, "LEAST", 8)
    made: dict[str, Store] = {
        "memory": Memory(), "held": Held(), "file": DataFile(tmp_path, "w", threshold=8),
    }  # fmt: skip
    yield made[request.param]
    if isinstance(made["file"], DataFile):
        made["file"].discard()


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_what_is_kept(
    store: Store, shape: tuple[int, ...], axis: int | None, turned: bool, kind: type
) -> None:
    count = int(np.prod(shape))
    value = np.linspace(-1, 1 / 3, count).reshape(shape[::-1] if turned else shape)
    value = value.T if turned else value
    weight = Weight(shape, plain(lambda: value), axis)
    store.place(weight, np.dtype(kind))
    assert store.keep(weight, np.dtype(kind))
    assert weight.stored is not None
    array = weight.stored.array
    assert array.shape == shape
    assert array.flags.c_contiguous
    assert array.dtype == kind
    assert np.array_equal(array, value.astype(kind))


def test_what_a_killed_run_leaves_of_a_data_file_is_known(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from onnxfuse.model.store import DataFile
made = DataFile(Path({str(tmp_path)!r}), "w")
made.add(b"data")
os.kill(os.getpid(), {{signal}})
"""
    for signal, count in ((15, 0), (9, 1)):
        made = [sys.executable, "-c", code.format(signal=signal)]
        assert subprocess.run(made, check=False).returncode == -signal
        assert len(list(tmp_path.iterdir())) == count
    assert temporary.left([tmp_path]) == list(tmp_path.iterdir())


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("at", [0, -1])
def test_what_is_not_finite_is_told(store: Store, placed: bool, at: int) -> None:
    value = np.zeros((4, 3))
    value.flat[at] = 1e300
    weight = Weight((4, 3), plain(lambda: value), 0)
    if placed:
        store.place(weight, np.dtype(np.float32))
    assert not store.keep(weight, np.dtype(np.float32))


def no_memory(*_: object) -> None:
    raise OSError(12, "Cannot allocate memory")


@pytest.mark.parametrize("pages", ["none", "too many", "some"])
def test_arrays_of_a_room_lie_apart(pages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "TAKEN", 4096)
    if pages == "none":  # as on systems that cannot be asked for them
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    if pages == "too many":
        monkeypatch.setattr(mmap, "mmap", no_memory)
    room = store_module.Room()
    shapes = [(), (0,), (5,), (3, 7), (2000,), (4, 1, 9), (500,), (1,)]
    arrays = [room.empty(shape, np.dtype(np.float32)) for shape in shapes]
    for number, array in enumerate(arrays):
        array[...] = number
    del room
    for number, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        assert array.shape == shape
        assert array.flags.writeable
        assert np.all(array == number)
        if pages == "some" and hasattr(mmap, "MADV_HUGEPAGE"):
            assert array.ctypes.data % 64 == 0
