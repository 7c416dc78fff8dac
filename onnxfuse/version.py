"""The version of onnxfuse."""

__version__ = "0.1.0"
