"""The errors a user may meet, each with what, where and how to mend it."""

from __future__ import annotations


class OnnxfuseError(Exception):
    """Base of every error that onnxfuse raises on purpose."""


class InputError(OnnxfuseError):
    """The model, a path or an option cannot be used as given."""


class ProofError(OnnxfuseError):
    """A fusion could not be proved equal; nothing was written."""
