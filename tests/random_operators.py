"""Random operators: each written in one of the forms that exporters give it.

A `Writer` holds the nodes, constants and tensors of a model that grows, and every choice comes
from its seed. What stands in which order is decided in `random_branches` and `random_graphs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

Ints = tuple[int, ...]
FAR = 2**63 - 1
DYNAMIC = [(), (), ("N",), ("N", "S0", "S1", "S2"), ("S0",), ("S0", "S1", "S2")]
"""Which of batch and lengths may be open."""


class Impossible(Exception):  # noqa: N818
    """The choice made does not fit the tensor at hand; choose again."""


@dataclass(frozen=True)
class Value:
    """A tensor ``(N, channels, *lengths)``, with its lengths at the nominal sizes."""

    name: str
    channels: int
    lengths: Ints


class Writer:
    """Writes operators in the form they have at one opset, constants in many forms."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        old = self.chance(0.1)
        self.opset = self.integer(9, 10) if old else self.integer(11, 21)
        kinds = [TensorProto.FLOAT] * 17 + [TensorProto.DOUBLE] + [TensorProto.FLOAT16] * 2
        self.kind = int(self.pick(kinds))
        self.dtype = helper.tensor_dtype_to_np_dtype(self.kind)
        self.rank = self.pick([1, 1, 2, 2, 2, 2, 2, 2, 2, 3])
        self.batch = self.integer(1, 3)
        self.dynamic: tuple[str, ...] = self.pick(DYNAMIC)
        self.plain_constants = self.chance(0.6)
        self.named = self.chance(0.9)
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.overridable: list[TensorProto] = []
        self.kernels: dict[Ints, list[str]] = {}
        self.values: list[Value] = []
        self.count = 0

    def open(self, axis: int) -> bool:
        """Whether the size of a tensor axis (0: batch, 2 …: lengths) may be open."""
        return ("N" if axis == 0 else f"S{axis - 2}") in self.dynamic

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def node(
        self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any
    ) -> list[str]:
        names = [self.fresh("t") for _ in range(outputs)]
        label = self.fresh(op.lower()) if self.named else ""
        self.nodes.append(helper.make_node(op, inputs, names, label, **attributes))
        return names

    def value(self, name: str, channels: int, lengths: Sequence[int]) -> Value:
        found = Value(name, channels, tuple(lengths))
        self.values.append(found)
        return found

    def same(self, x: Value, op: str, *others: str, **attributes: Any) -> Value:
        """A node whose output has the shape of ``x``."""
        (name,) = self.node(op, [x.name, *others], **attributes)
        return self.value(name, x.channels, x.lengths)

    def initializer(self, array: Any) -> str:
        name = self.fresh("c")
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, *values: int) -> str:
        array = np.array(values, np.int64)
        if self.chance(0.2):
            return self.node("Constant", [], value=numpy_helper.from_array(array))[0]
        return self.initializer(array)

    def constant(self, array: Any) -> str:
        """A floating-point constant in one of the forms that exporters give it."""
        array = np.asarray(array, self.dtype)
        form = self.rng.random() if not self.plain_constants else 0.0
        if form < 0.7:
            return self.initializer(array)
        if form < 0.8:
            return self.node("Constant", [], value=numpy_helper.from_array(array))[0]
        if form < 0.88:
            return self.node("Identity", [self.initializer(array)])[0]
        if form < 0.96:
            half = (array / 2).astype(self.dtype)
            return self.node("Add", [self.initializer(half), self.initializer(array - half)])[0]
        name = self.initializer(array)
        self.overridable.append(self.initializers.pop())
        return name

    def kernel(self, *shape: int) -> str:
        """A kernel, sometimes one that another operator uses already."""
        known = self.kernels.setdefault(shape, [])
        if known and self.chance(0.06):
            return self.pick(known)
        scale = 1 / np.sqrt(prod(shape[1:]))
        if self.kind == TensorProto.FLOAT16 and self.chance(0.05):
            scale *= 300
        array = self.rng.standard_normal(shape) * scale
        if self.chance(0.02):
            array *= 0
        known.append(self.constant(array))
        return known[-1]

    def vector(self, size: int) -> str:
        return self.constant(self.rng.standard_normal(size))

    def ones(self, value: int = 1) -> Ints:
        return (value,) * self.rank

    def lengths(self, x: Value, taps: Ints, dilations: Ints, strides: Ints, pads: Ints) -> Ints:
        """Output lengths of a window; raises `Impossible` where nothing is left."""
        found = []
        for i, size in enumerate(x.lengths):
            room = size + pads[i] + pads[i + self.rank] - dilations[i] * (taps[i] - 1) - 1
            if room < 0:
                raise Impossible
            found.append(room // strides[i] + 1)
        return tuple(found)

    def same_pads(self, x: Value, taps: Ints, dilations: Ints, strides: Ints) -> tuple[Ints, Ints]:
        """The pads of SAME_UPPER and SAME_LOWER at the nominal sizes."""
        totals = []
        for size, k, d, s in zip(x.lengths, taps, dilations, strides, strict=True):
            totals.append(max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0))
        small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        return small + large, large + small

    def window(
        self, x: Value, taps: Ints, dilations: Ints, strides: Ints, pads: Ints, auto: str = ""
    ) -> dict[str, Any]:
        """Attributes of a window: ``auto`` pads, or ``pads``, written as the same thing now."""
        found: dict[str, Any] = {"kernel_shape": taps}
        if any(s > 1 for s in strides) or self.chance(0.5):
            found["strides"] = strides
        wide = any(d > 1 for d in dilations)
        if wide:
            found["dilations"] = dilations
        upper, lower = self.same_pads(x, taps, dilations, strides)
        if auto:
            found["auto_pad"] = auto
        elif not any(pads) and self.chance(0.3):
            found["auto_pad"] = "VALID"
        elif pads == upper and not wide and self.chance(0.3):
            found["auto_pad"] = "SAME_UPPER"
        elif pads == lower and not wide and self.chance(0.3):
            found["auto_pad"] = "SAME_LOWER"
        elif any(pads):
            found["pads"] = pads
        return found

    def conv(
        self,
        x: Value,
        out: int,
        taps: Ints | None = None,
        dilations: Ints | None = None,
        strides: Ints | None = None,
        pads: Ints | None = None,
        groups: int | None = None,
        *,
        auto: str = "",
        bias: Any = None,
    ) -> Value:
        """A Conv; ``bias`` are its values, else it has one or not as it comes."""
        taps, dilations = taps or self.ones(), dilations or self.ones()
        strides, pads = strides or self.ones(), pads or (0,) * 2 * self.rank
        if auto:
            pads = self.same_pads(x, taps, dilations, strides)[auto == "SAME_LOWER"]
        if groups is None:
            common = gcd(x.channels, out)
            divisors = [g for g in range(1, 9) if common % g == 0]
            groups = 1 if self.chance(0.7) else self.pick(divisors)
        if x.channels % groups or out % groups:
            raise Impossible
        lengths = self.lengths(x, taps, dilations, strides, pads)
        inputs = [x.name, self.kernel(out, x.channels // groups, *taps)]
        if bias is not None:
            inputs.append(self.constant(bias))
        elif self.chance(0.6):
            inputs.append(self.vector(out) if self.chance(0.85) else self.constant(np.zeros(out)))
        attributes = self.window(x, taps, dilations, strides, pads, auto)
        if groups > 1:
            attributes["group"] = groups
        if self.chance(0.2):
            del attributes["kernel_shape"]
        return self.value(self.node("Conv", inputs, **attributes)[0], out, lengths)

    def pool(
        self,
        x: Value,
        taps: Ints,
        strides: Ints,
        pads: Ints,
        kind: str = "AveragePool",
        *,
        auto: str = "",
        counted: float = 0.6,
    ) -> Value:
        """A pool; an average counts its padding with the probability ``counted``."""
        dilations = self.ones()
        if auto:
            pads = self.same_pads(x, taps, dilations, strides)[auto == "SAME_LOWER"]
        lengths = list(self.lengths(x, taps, dilations, strides, pads))
        if any(p >= taps[i % self.rank] for i, p in enumerate(pads)):
            raise Impossible
        attributes = self.window(x, taps, dilations, strides, pads, auto)
        if self.chance(0.15) and self.opset >= 10 and "auto_pad" not in attributes:
            attributes["ceil_mode"] = 1
            for i, s in enumerate(strides):
                room = x.lengths[i] + pads[i] + pads[i + self.rank] - taps[i]
                lengths[i] = -(-room // s) + 1
                lengths[i] -= (lengths[i] - 1) * s >= x.lengths[i] + pads[i]
        if kind == "AveragePool" and self.chance(counted):
            attributes["count_include_pad"] = 1
        return self.value(self.node(kind, [x.name], **attributes)[0], x.channels, lengths)

    def normalised(self, x: Value) -> tuple[Value, Any]:
        """A BatchNormalization and its response to zero."""
        c, epsilon = x.channels, self.pick([1e-5, 1e-3])
        gamma, beta, mean = self.rng.standard_normal((3, c)).astype(self.dtype)
        variance = self.rng.uniform(0.5, 2, c).astype(self.dtype)
        names = [self.constant(a) for a in (gamma, beta, mean, variance)]
        attributes: dict[str, Any] = {"epsilon": epsilon}
        outputs = 1
        if self.opset >= 14 and self.chance(0.02):
            attributes["training_mode"], outputs = 1, 3
        name = self.node("BatchNormalization", [x.name, *names], outputs, **attributes)[0]
        zero = beta - mean * gamma / np.sqrt(variance + self.dtype.type(epsilon))
        return self.value(name, c, x.lengths), zero

    def shaped(self, op: str, name: str, axes: Sequence[int]) -> str:
        """Squeeze or Unsqueeze."""
        if self.opset < 13:
            return self.node(op, [name], axes=list(axes))[0]
        return self.node(op, [name, self.ints(*axes)])[0]

    def pad(self, x: Value, pads: Ints, mode: str = "constant", number: float = 0.0) -> Value:
        """Padding of the spatial axes; negative amounts crop."""
        lengths = [n + pads[i] + pads[i + self.rank] for i, n in enumerate(x.lengths)]
        if min(lengths) < 1 or (mode == "reflect" and max(pads) >= min(x.lengths)):
            raise Impossible
        full = [0, 0, *pads[: self.rank], 0, 0, *pads[self.rank :]]
        attributes: dict[str, Any] = {"mode": mode}
        if mode == "constant" and self.chance(0.5):
            attributes = {}
        if self.opset < 11:
            name = self.node("Pad", [x.name], pads=full, value=number, **attributes)[0]
            return self.value(name, x.channels, lengths)
        inputs = [x.name, self.ints(*full)]
        if self.opset >= 18 and self.chance(0.5):
            axes = [2 + i if self.chance(0.5) else i - self.rank for i in range(self.rank)]
            inputs = [x.name, self.ints(*pads), "", self.ints(*axes)]
        if number or self.chance(0.3):
            inputs = [*inputs[:2], self.constant(np.array(number)), *inputs[3:]]
        return self.value(self.node("Pad", inputs, **attributes)[0], x.channels, lengths)

    def slice(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """``x[start:stop:step]`` of a tensor axis, its bounds written in one of several ways."""
        shape = [self.batch, x.channels, *x.lengths]
        size = shape[axis]
        shape[axis] = len(range(start, stop, step))
        if not 0 <= start < stop <= size:
            raise Impossible
        end = self.pick([stop] if stop < size else [stop, FAR, FAR, FAR, size + 3])
        end = stop - size if stop < size and self.chance(0.6) else end
        begin = start - size if self.chance(0.1) else start
        if self.opset < 10:
            if step > 1:
                raise Impossible
            name = self.node("Slice", [x.name], axes=[axis], starts=[begin], ends=[end])[0]
        else:
            where = axis - len(shape) if self.opset >= 11 and self.chance(0.3) else axis
            inputs = [x.name, self.ints(begin), self.ints(end), self.ints(where)]
            inputs += [self.ints(step)] if step > 1 or self.chance(0.3) else []
            name = self.node("Slice", inputs)[0]
        return self.value(name, shape[1], shape[2:])

    def split(self, x: Value, sizes: Sequence[int]) -> list[Value]:
        """Split on the channels."""
        axis = -self.rank - 1 if self.opset >= 11 and self.chance(0.2) else 1
        inputs, attributes = [x.name], {}
        if self.opset >= 13:
            inputs.append(self.ints(*sizes))
        else:
            attributes["split"] = list(sizes)
        names = self.node("Split", inputs, len(sizes), axis=axis, **attributes)
        return [self.value(n, c, x.lengths) for n, c in zip(names, sizes, strict=True)]

    def clip(self, x: Value, low: float, high: float) -> Value:
        if self.opset < 11:
            return self.same(x, "Clip", min=low, max=high)
        bounds = [self.initializer(np.array(v, self.dtype)) for v in (low, high)]
        return self.same(x, "Clip", *bounds)

    def scalar(self, x: Value, op: str, number: float, first: bool = False) -> Value:
        name = self.initializer(np.array(number, self.dtype))
        if not first:
            return self.same(x, op, name)
        return self.value(self.node(op, [name, x.name])[0], x.channels, x.lengths)
