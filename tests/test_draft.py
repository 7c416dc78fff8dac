"""The output is written while its model is proved, and has its name only when that is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from onnxfuse import fusing
from onnxfuse.cli import main
from onnxfuse.errors import InputError, ProofError
from onnxfuse.model import draft, io, temporary
from onnxfuse.model.draft import Draft
from onnxfuse.model.held import Serialised

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
WHOLE = FIXTURES / "repvgg_a0.ts.onnx"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def there() -> set[str]:
    return {place.name for place in Path().iterdir()}


def pieces(*data: bytes) -> Draft:
    """A draft of bytes that are no model, and are not read again."""
    return Draft(Path("o.onnx").resolve(), Serialised((b"".join(data),)), onnx.ModelProto())


@pytest.mark.parametrize("fails", [False, True])
def test_it_is_written_before_the_proofs_and_named_after(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = fusing._records
    seen: list[bool] = []

    def proved(*given: object) -> object:
        (place,) = (Path(name) for name in there() if name.endswith(temporary.SUFFIX))
        assert not Path("o.onnx").exists()
        seen.append(place.exists())
        if fails:
            raise ProofError("it differs")
        return honest(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(fusing, "_records", proved)
    assert main([str(WHOLE), "o.onnx", "-q"]) == (3 if fails else 0)
    assert seen == [True]
    assert there() == (set() if fails else {"o.onnx"})


def test_what_cannot_be_written_is_said_before_anything_is_proved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unable(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(temporary.os, "open", unable)
    monkeypatch.setattr(fusing, "_records", None)
    assert main([str(WHOLE), "o.onnx", "-q"]) == 2
    assert "o.onnx cannot be written: Permission denied" in capsys.readouterr().err


def test_an_error_of_the_thread_is_that_of_the_commit() -> None:
    written = pieces(b"first")
    written._writing.wait()
    for place in Path().iterdir():
        place.unlink()
    with pytest.raises(InputError, match=r"o\.onnx cannot be written: No such file"):
        written.commit()
    assert there() == set()


def test_what_comes_meanwhile_is_replaced_by_what_is_on_the_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    written = pieces(b"new")
    written._writing.wait()
    assert not synced
    Path("o.onnx").write_bytes(b"old")
    written.commit()
    assert len(synced) == 1
    again = pieces(b"newer")
    again._writing.wait()
    assert len(synced) == 2
    again.commit()
    assert len(synced) == 2
    assert Path("o.onnx").read_bytes() == b"newer"


@pytest.mark.parametrize("at", ["before", "after"])
def test_interrupted_as_it_is_named_the_output_and_its_data_are_whole(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Draft._name

    def interrupted(self: Draft) -> None:
        if at == "after":
            honest(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Draft, "_name", interrupted)
    Path("o.onnx").write_bytes(b"old")
    assert main([str(WHOLE), "o.onnx", "-q", "--no-verify", "--external-data", "o.data"]) == 130
    if at == "before":
        assert there() == {"o.onnx"}
        assert Path("o.onnx").read_bytes() == b"old"
    else:
        assert there() == {"o.onnx", "o.data"}
        onnx.load("o.onnx")


def test_an_end_of_the_run_is_heard_between_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "AT_ONCE", 1)
    going, heard = threading.Event(), threading.Event()

    class Pausing(threading.Event):
        """Lets one byte be written, and then waits for the end of the run."""

        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            if self.asked == 2:
                going.set()
                assert heard.wait(60)
            return super().is_set()

        def set(self) -> None:
            super().set()
            heard.set()

    monkeypatch.setattr(draft, "threading", SimpleNamespace(Event=Pausing))
    written = pieces(b"long")
    assert going.wait(60)
    (place,) = Path().iterdir()
    held = place.open("rb")
    written.discard()
    assert held.read() == b"l"
    held.close()
    assert there() == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_meanwhile_leaves_nothing(number: signal.Signals) -> None:
    code = """
import sys, time
from pathlib import Path
from onnxfuse import fusing
from onnxfuse.cli import main
def slow(*_):
    Path("ready").touch()
    time.sleep(60)
fusing._records = slow
sys.exit(main(sys.argv[1:]))
"""
    Path("o.onnx").write_bytes(b"old")
    process = subprocess.Popen([sys.executable, "-c", code, str(WHOLE), "o.onnx", "-q"])
    while not Path("ready").exists():
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(60) == (130 if number == signal.SIGINT else -number)
    assert there() == {"o.onnx", "ready"}
    assert Path("o.onnx").read_bytes() == b"old"


def test_a_model_in_which_nothing_changes_is_written_too() -> None:
    fused = FIXTURES / "repvgg_a0.deploy.onnx"
    assert main([str(fused), "o.onnx", "-q"]) == 0
    assert Path("o.onnx").read_bytes() == fused.read_bytes()
    assert Path("o.onnx").stat().st_mode & 0o777 == io.mode_of(Path("none"))
