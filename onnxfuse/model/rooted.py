"""Models as onnxruntime runs them where their weights lie in files, read from where they are.

It takes one folder for all data files and refuses what leads out of it, by a link too, while what
is new of a model may lie in another directory than the rest. So every file is named from the root
of the file system, and a run needs no copy of it. Weights of which a model is so full that it
could take in no node more are put into a file for the time of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from google.protobuf.message import Message

from onnxfuse.model import tensors, walk
from onnxfuse.model.store import DataFile

FULL = 1 << 30
"""Bytes of inline weights from which on they are put aside for a run."""
LEAST = 1 << 16
"""Weights of fewer bytes stay where they are."""


@contextmanager
def rooted(
    models: list[tuple[onnx.ModelProto, dict[str, Path]]], base: Path | None
) -> Iterator[tuple[list[onnx.ModelProto], str | None]]:
    """The models with their data files named from one folder, and that folder.

    Each comes with the places of files that are not where it says; what it says is relative to
    ``base``. The folder is ``None`` where no model has data files.
    """
    if not any(_is_full(model) or _has_files(model) for model, _ in models):
        yield [model for model, _ in models], None
        return
    with TemporaryDirectory(prefix="onnxfuse-") as scratch:
        folder = Path(scratch).resolve()
        aside = [DataFile(folder, f"weights-{at}", LEAST) for at in range(len(models))]
        try:
            yield (
                [
                    _rooted(model, places, base, held)
                    for (model, places), held in zip(models, aside, strict=True)
                ],
                folder.anchor,
            )
        finally:
            for held in aside:
                held.discard()


def _has_files(model: onnx.ModelProto) -> bool:
    return any(map(tensors.in_file, walk.stored(model)))


def _is_full(model: onnx.ModelProto) -> bool:
    inline = [
        tensor
        for tensor in model.graph.initializer
        if not tensors.in_file(tensor) and tensor.data_type in tensors.FLOATS
    ]
    return sum(map(tensors.length_of, inline)) > FULL


def _put_aside(model: onnx.ModelProto, copy: onnx.ModelProto, held: DataFile) -> None:
    """Copy a model field by field, its weights into a file: protobuf frees no part of a message."""
    _copy_fields(model, copy, "graph")
    _copy_fields(model.graph, copy.graph, "initializer")
    for tensor in model.graph.initializer:
        data = tensors.stored_bytes(tensor)
        if data is None or len(data) < LEAST:
            copy.graph.initializer.add().CopyFrom(tensor)
        else:
            made = copy.graph.initializer.add(name=tensor.name, dims=tensor.dims)
            made.data_type = tensor.data_type
            tensors.refer(made, "", held.add(data), len(data))


def _copy_fields(source: Message, target: Message, left: str) -> None:
    """Copy all fields that this version of the format knows, but for one."""
    for field, value in source.ListFields():
        if field.name == left:
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _rooted(
    model: onnx.ModelProto, places: dict[str, Path], base: Path | None, held: DataFile
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    if _is_full(model):
        _put_aside(model, copy, held)
        places = {**places, "": held.path}
    else:
        copy.CopyFrom(model)
    found: dict[str, str] = {}
    for tensor in filter(tensors.in_file, walk.stored(copy)):
        for entry in tensor.external_data:
            if entry.key == "location":
                if entry.value not in found:
                    place = places.get(entry.value) or tensors.external_path(tensor, base)
                    place = place.resolve()
                    found[entry.value] = place.relative_to(place.anchor).as_posix()
                entry.value = found[entry.value]
    return copy
