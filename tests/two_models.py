"""Two models compared, in the words that the tests of it share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxfuse.errors import InputError
from onnxfuse.model import io
from onnxfuse.records import Difference, Equivalence
from onnxfuse.verify.equivalence import compare

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
X = "(float[2,8] x) => (float[] y)"
W = {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}


def loaded(of: onnx.ModelProto) -> io.Loaded:
    data = of.SerializeToString()
    return io.parse(data, "a test")


def verdict(a: onnx.ModelProto, b: onnx.ModelProto, *args: object, **more: object) -> Equivalence:
    return compare(loaded(a), loaded(b), *args, **more)


def one(found: Equivalence) -> Difference:
    (output,) = found.outputs
    return output


def differs(a: onnx.ModelProto, b: onnx.ModelProto, text: str, *args: object) -> Difference:
    """B differs from A, in one output and with this text; A does not differ from itself."""
    assert verdict(a, a, *args).status == "equal"
    found = verdict(a, b, *args)
    assert found.status == "different"
    output = one(found)
    assert not output.equal
    assert text in output.text
    return output


def refused(a: onnx.ModelProto, b: onnx.ModelProto, text: str, *args: object) -> None:
    with pytest.raises(InputError, match=text) as caught:
        verdict(a, b, *args)
    assert "\n" not in str(caught.value)
