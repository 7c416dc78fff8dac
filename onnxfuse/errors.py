"""The errors a user may meet, each with what, where and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping


class OnnxfuseError(Exception):
    """Base of every error that onnxfuse raises on purpose."""


class InputError(OnnxfuseError):
    """The model, a path or an option cannot be used as given."""


class ProofError(OnnxfuseError):
    """A fusion could not be proved equal; nothing was written.

    ``root`` is the tensor that the guilty region computes, empty where none is known, and
    ``sizes`` are the shapes of its inputs at which it fails.
    """

    def __init__(
        self, message: str, root: str = "", sizes: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        super().__init__(message)
        self.root = root
        self.sizes = dict(sizes or {})
