"""The errors a user may meet, each with what, where and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class OnnxfuseError(Exception):
    """Base of every error that onnxfuse raises on purpose."""


class InputError(OnnxfuseError):
    """The model, a path or an option cannot be used as given."""


class WorkerError(OnnxfuseError):
    """What was to be done in another process was not: it died, or none could be started."""


class ProofError(OnnxfuseError):
    """A fusion could not be proved equal; nothing was written.

    ``root`` is the tensor that the guilty region computes, empty where none is known, ``scope`` the
    body that it stands in, empty in the main graph, and ``sizes`` are the shapes of its inputs at
    which it fails.
    """

    def __init__(
        self,
        message: str,
        root: str = "",
        sizes: Mapping[str, tuple[int, ...]] | None = None,
        scope: str = "",
    ) -> None:
        super().__init__(message)
        self.root = root
        self.sizes = dict(sizes or {})
        self.scope = scope


@contextmanager
def within(scope: str) -> Iterator[None]:
    """Let a `ProofError` say in which body the region is, where that is not the main graph."""
    try:
        yield
    except ProofError as error:
        if scope:
            error.args = (f"in the {scope}: {error}",)
            error.scope = scope
        raise
