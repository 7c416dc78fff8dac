"""Reading and writing model files; an output is whole or untouched."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnxfuse import files
from onnxfuse.background import Background
from onnxfuse.errors import InputError
from onnxfuse.model import held, temporary, tensors, walk
from onnxfuse.model.held import Hold, Serialised

_UMASK = threading.Lock()
"""It can only be read by setting it; two threads that did so at once would leave it at 0."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A parsed model, the bytes it came from, and where its external data lies.

    What it ``holds`` are the weights in these bytes that the parsed model refers to.
    """

    model: onnx.ModelProto
    data: bytes
    path: Path | None
    holds: Hold

    @property
    def base(self) -> Path | None:
        return None if self.path is None else self.path.parent


def load(path: str | os.PathLike[str], reading: Background[bytes] | None = None) -> Loaded:
    """Parse a model file; external data stays where it is. Raises `InputError`.

    ``reading`` is what reads the file already, if anything does.
    """
    place = Path(path)
    data = files.read(place) if reading is None else reading.result()
    return parse(data, str(place), place)


def base_of(path: str | os.PathLike[str]) -> Path:
    """The directory that a model file's external data is relative to."""
    return Path(path).parent


def parse(data: bytes, what: str, path: Path | None = None) -> Loaded:
    """The model that ``data`` holds; ``what`` names it in an error. Raises `InputError`."""
    if not data:
        raise InputError(f"{what} is empty")
    if data.startswith(b"version https://git-lfs"):
        raise InputError(f"{what} is a Git LFS pointer; run `git lfs pull` first")
    try:
        model, holds = held.parse(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} is not an ONNX model (its protobuf does not parse)") from error
    if not model.HasField("graph") or not (model.ir_version or model.opset_import):
        raise InputError(f"{what} is not an ONNX model (it holds no graph)")
    return Loaded(model, data, path, holds)


def serialise(model: onnx.ModelProto) -> Serialised:
    """The model's bytes, the same for the same model every time. Raises `InputError`."""
    data = serialised(model)
    if data is None:
        raise InputError(
            "the model is larger than the 2 GiB that one file can hold, even with its weights kept "
            "beside it; the rest stands in nested graphs or attributes"
        )
    return data


def size_of(model: onnx.ModelProto) -> int:
    """The bytes of a model, those of its weights alone where no file could hold it."""
    data = serialised(model)
    if data is not None:
        return data.size
    return sum(len(tensor.raw_data) for tensor in walk.stored(model))


def serialised(model: onnx.ModelProto) -> Serialised | None:
    """The model's bytes; ``None`` where they are more than protobuf can hold."""
    try:
        return held.serialised(model)
    except (EncodeError, ValueError, RuntimeError):
        return None


def check_output(path: str | os.PathLike[str]) -> Path:
    """The place an output will be written to. Raises `InputError` where that cannot work."""
    if _is_device(Path(path)):
        raise InputError(f"{path} is not a regular file and would be replaced; name another")
    place = Path(os.path.realpath(path))
    try:
        if place.is_dir():
            raise InputError(f"{place} is a directory; name a file to write")
        if place.exists() and not place.is_file():
            raise InputError(f"{place} is not a regular file and would be replaced; name another")
        if not place.parent.is_dir():
            raise InputError(f"the directory {place.parent} does not exist; create it first")
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror}") from error
    if not os.access(place.parent, os.W_OK):
        raise InputError(f"the directory {place.parent} is not writable")
    return place


def _is_device(path: Path) -> bool:
    """Whether a path leads through /dev or /proc, whatever file that may stand for just now."""
    for _ in range(40):
        place = Path(os.path.realpath(path.parent)) / path.name  # a link itself must stay
        if place.is_relative_to("/proc"):
            return True
        if place.is_relative_to("/dev") and not place.is_relative_to("/dev/shm"):  # noqa: S108
            return True
        try:
            path = place.parent / place.readlink()
        except OSError:
            break
    return False


def write(path: Path, data: bytes) -> None:
    """Write a whole file or none: a temporary file beside it, then a rename.

    What replaces another file is on the disk before it does.
    """
    with _replacing(path) as place:
        with place.open("r+b") as stream:
            stream.write(data)
        if path.exists():
            sync(place)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    with written(path), temporary.beside(path) as place:
        yield place
        name(place, path)


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Tell a user which file it is that cannot be written within. Raises `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def sync(place: Path) -> None:
    """Wait until what a file holds is on the disk."""
    with place.open("r+b") as stream:
        os.fsync(stream.fileno())


def name(place: Path, path: Path) -> None:
    """Give a temporary file the name ``path``, and the permissions of what it replaces."""
    place.chmod(mode_of(path))
    place.replace(path)


def mode_of(path: Path) -> int:
    """The permissions of the file that is replaced, or those a new file would get."""
    if path.exists():
        return path.stat().st_mode & 0o7777
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return 0o666 & ~mask


def check_kept(source: str | os.PathLike[str], target: Path, outputs: Iterable[str]) -> list[Path]:
    """Refuse to write over a data file of the model ``source``, or over where one is carried to.

    ``target`` is the directory of the new model. Gives the places that data is carried to.
    """
    kept = _kept(Path(source)).items()
    for output in outputs:
        for location, place in kept:
            if _is_same_place(Path(output), place):
                raise InputError(f"{output} is a data file of {source}; name another file")
            if _is_same_place(Path(output), target / location):
                raise InputError(
                    f"{output} is where the data file {place.name} of {source} is copied to; "
                    "name another file"
                )
    return [target / location for location, _ in kept]


def _kept(source: Path) -> dict[str, Path]:
    """The data files of a model; none of one that cannot be used, which is said elsewhere."""
    with contextlib.suppress(InputError), files.mapped(source) as data:
        outline = held.outline(data)
        if b"location" in outline:  # as external data says; parsing takes longer
            return data_files(parse(outline, str(source)).model, source.parent)
    return {}


def _is_same_place(left: Path, right: Path) -> bool:
    if os.path.realpath(left) == os.path.realpath(right):
        return True
    try:
        return left.samefile(right)
    except OSError:
        return False


def data_files(
    model: onnx.ModelProto, base: Path | None, own: str = "", dropped: Container[str] = ()
) -> dict[str, Path]:
    """The external data files of a model by location, but for ``own``. Raises `InputError`.

    Tensors that are ``dropped`` do not count.
    """
    found: dict[str, Path] = {}
    for tensor in walk.stored(model):
        if tensors.in_file(tensor) and tensor.name not in dropped:
            location = held.entries(tensor).get("location", "")
            if location not in found and (not own or location != own):
                found[location] = place = tensors.external_path(tensor, base)
                try:
                    missing = not place.is_file()
                except OSError as error:
                    raise InputError(
                        f"the data file {_shown(place)} cannot be read: {error.strerror}"
                    ) from error
                if missing:
                    raise InputError(f"the data file {_shown(place)} is missing")
    return found


def check_data(model: onnx.ModelProto, base: Path | None) -> None:
    """Refuse a model whose data files do not hold what its tensors say; nothing is read."""
    places = data_files(model, base)
    if not places:
        return
    sizes = {location: place.stat().st_size for location, place in places.items()}
    for tensor in walk.stored(model):
        if tensors.in_file(tensor):
            location = held.entries(tensor).get("location", "")
            tensors.check_external(tensor, _shown(places[location]), sizes[location])


def _shown(place: Path) -> str:
    """A path as an error says it: a file may name one of any length."""
    text = str(place)
    return text if len(text) <= 2 * tensors.SHOWN else f"{text[: 2 * tensors.SHOWN]}…"
