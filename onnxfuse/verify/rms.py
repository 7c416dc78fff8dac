"""The root mean square of what may be very large or very small."""

from __future__ import annotations

from typing import Any

import numpy as np

_SQUARED = 1e150
"""Numbers beyond this, or below its inverse, have squares that float64 does not hold."""


def rms(array: Any) -> float:
    """The root of the mean square, in float64; zero of nothing."""
    if not array.size:
        return 0.0
    found = float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
    if 1 / _SQUARED < found < _SQUARED:
        return found
    peak = float(np.abs(array).max())
    if not 0 < peak < np.inf:
        return peak
    return peak * float(np.sqrt(np.mean(np.square(array / peak, dtype=np.float64))))
