"""How Hypothesis runs: no deadlines (machines differ), and failures print how to repeat them."""

from hypothesis import settings

settings.register_profile("onnxfuse", deadline=None, print_blob=True)
settings.load_profile("onnxfuse")
