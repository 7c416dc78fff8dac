"""onnxfuse: the branches of exported networks, merged into single convolutions.

    >>> import onnxfuse
    >>> model, report = onnxfuse.fuse("in.onnx")        # doctest: +SKIP
    >>> print(onnxfuse.plan("in.onnx"))                 # doctest: +SKIP

Importing this package loads nothing; what it offers is imported when it is asked for, and onnx when
a model is read.
"""

from __future__ import annotations

from onnxfuse.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes a while to load
    from typing import Any

    from onnxfuse.errors import InputError, OnnxfuseError, ProofError, WorkerError
    from onnxfuse.library import compare, fuse, fuse_files, plan
    from onnxfuse.records import Equivalence, Report

__all__ = [
    "Equivalence",
    "InputError",
    "OnnxfuseError",
    "ProofError",
    "Report",
    "WorkerError",
    "__version__",
    "compare",
    "fuse",
    "fuse_files",
    "plan",
]

_ROOMS = {
    "Equivalence": "records",
    "InputError": "errors",
    "OnnxfuseError": "errors",
    "ProofError": "errors",
    "Report": "records",
    "WorkerError": "errors",
    "compare": "library",
    "fuse": "library",
    "fuse_files": "library",
    "plan": "library",
}


def __getattr__(name: str) -> Any:
    """What this package offers, from the module where it stands."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = found  # asked for once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
