"""``python -m onnxfuse``."""

from onnxfuse.cli import script

script()
