"""The version of onnxfuse, and what its stdout may hold: what its command line alone can say."""

__version__ = "0.1.0"
FORMATS = ("text", "json", "markdown", "github", "junit")
POLICIES = ("default", "latency")
"""What may grow for the sake of time: nothing; MACs and parameters of depthwise maps, by half."""
