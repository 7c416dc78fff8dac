"""Noise on tensors is normal, of the size asked for, and gone where the switch is off."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from onnx_text import model

from onnxfuse.model.graph import Graph
from onnxfuse.verify.noise import disturbed
from onnxfuse.verify.session import opened

NAMES = {"float": TensorProto.FLOAT, "double": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}


def heard(array: np.ndarray, opset: int, seed: float, shift: float = 0.0) -> list[np.ndarray]:
    """An array with noise of a hundredth of it, and of ``shift`` more; quiet, then loud."""
    name = {"float32": "float", "float64": "double"}.get(str(array.dtype), str(array.dtype))
    built = model(f"({name}[] x) => ({name}[] y) {{ y = Identity(x) }}", opset=opset, ir=10)
    built.graph.input[0].type.tensor_type.ClearField("shape")
    kinds = dict.fromkeys("xy", NAMES[name])
    noisy = disturbed(built, Graph(built), {"y": 0.01}, kinds, [seed], {"y": shift})
    session = opened(noisy.model, None)
    return [session.run(["y"], {"x": array, noisy.switch: np.array(on)})[0] for on in (False, True)]


@pytest.mark.parametrize("opset", [8, 21, 22, 25])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_normal(opset: int, dtype: type) -> None:
    """Of 10⁵ numbers the mean is within 5/√10⁵ of a deviation, the fourth power's within 0.1."""
    quiet, loud = heard(np.ones((10, 100, 100), dtype), opset, 1.0)
    assert (quiet == 1).all()
    noise = (loud.ravel() - 1.0) / 0.01
    assert abs(noise.mean()) < 0.016
    assert abs(noise.std() - 1) < 0.016
    assert abs(np.mean(noise**4) - 3) < 0.1
    for lag in (1, 2, 3, 100, 10_000):
        assert abs(np.mean(noise[lag:] * noise[:-lag])) < 0.016
    assert 3.5 < np.abs(noise).max() < 7


@pytest.mark.parametrize("opset", [21, 22])
def test_other_seeds_and_shifts_are_other_noise(opset: int) -> None:
    ones = np.ones((4, 10_000), np.float32)
    first, again, other = (heard(ones, opset, seed)[1] for seed in (1.0, 1.0, 2.0))
    assert (first == again).all()
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.03
    shifted = heard(ones, opset, 1.0, 1.0)[1]
    assert abs((shifted - first).std() - 1) < 0.03
    assert abs(np.corrcoef((shifted - first).ravel(), first.ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("opset", [21, 22])
@pytest.mark.parametrize("shape", [(), (0,), (1, 0, 4), (3, 1)])
def test_any_shape(opset: int, shape: tuple[int, ...]) -> None:
    quiet, loud = heard(np.ones(shape, np.float16), opset, 1.0)
    assert quiet.shape == loud.shape == shape
