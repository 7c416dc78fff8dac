"""Many files, each fused where an executor has room: only paths and reports travel."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onnxfuse import pool
from onnxfuse.errors import InputError, OnnxfuseError, WorkerError
from onnxfuse.options import Options
from onnxfuse.records import Report
from onnxfuse.watch import Watch

Name = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Pair:
    """Absolute paths: a worker may stand in another directory."""

    source: str
    target: str

    def __str__(self) -> str:
        return self.source


def fuse_files(
    files: Iterable[tuple[Name, Name]], options: Options, executor: Executor | None, jobs: int
) -> list[Report | OnnxfuseError]:
    """The reports of files, or what was wrong with them, in the order given.

    Raises `InputError` where what one pair writes is read or written by another, before any work.
    """
    pairs = [Pair(*(str(Path(name).absolute()) for name in pair)) for pair in files]
    _check_apart(pairs)
    work = partial(fused, options)
    if executor is not None:
        found = pool.in_executor(work, pairs, executor)
    else:
        found = pool.in_processes(work, pairs, jobs or pool.cores())
    return [_value(one) for one in found]


def fused(options: Options, pair: Pair) -> Report:
    """Fuse and write one file, in whatever process this is; the report.

    Raises `OnnxfuseError` alone, so that whatever went wrong can travel.
    """
    from onnxfuse.fusing import fuse_model
    from onnxfuse.model import io
    from onnxfuse.model.saving import Output

    source, target = pair.source, pair.target
    try:
        place = io.check_output(target)
        io.check_kept(source, place.parent, [target])
        given = io.load(source)
        with Output(place, given) as output:
            result = fuse_model(given, options, Watch(), output)
            output.commit(result.model, result.data)
    except OnnxfuseError:
        raise
    except MemoryError as error:
        raise InputError(f"not enough memory for {source}") from error
    except Exception as error:
        raise OnnxfuseError(f"{source}: {type(error).__name__}: {error}") from error
    return result.report


def _check_apart(pairs: Iterable[Pair]) -> None:
    """Refuse what would depend on which of two files is done first."""
    read = {os.path.realpath(pair.source): pair for pair in pairs}
    written: set[str] = set()
    for pair in pairs:
        place = os.path.realpath(pair.target)
        if place in written:
            raise InputError(f"{pair.target} would be written twice; name different outputs")
        if read.get(place, pair).source != pair.source:
            raise InputError(f"{pair.target} is the input of another pair; name another output")
        written.add(place)


def _value(found: Report | Exception) -> Report | OnnxfuseError:
    """A result as it is given back: an executor has errors of its own."""
    if isinstance(found, Report | OnnxfuseError):
        return found
    return WorkerError(f"the executor failed: {type(found).__name__}: {found}")
