"""Random linear layers: Gemm and MatMul beside and behind each other, in runs and in heads.

Among runs of operators with the channels last stand matrices, factored ones and sums of both; a
head averages its input over space and ends in layers of rank 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from random_layouts import Islands, Last
from random_operators import Value


class Layers(Islands):
    """Linear layers of tensors whose channels stand last, and of matrices."""

    def l_steps(self) -> list[Callable[[Last], Last]]:
        return [self.l_linear] * 3 + [self.l_adapted, self.l_rescaled, self.l_rows, self.l_rows]

    def l_rows(self, x: Last) -> Last:
        """All positions as rows, some work on the rows, and the shape that was, or another."""
        rows = self.node("Reshape", [x.name, self.ints(-1, x.channels)])[0]
        width = x.channels
        if self.chance(0.3) and self.rank == 1:
            rows = self.node("Flatten", [x.name], axis=2)[0]
        for _ in range(self.integer(1, 2)):
            rows, width = self.pick([self.norm_of, self.scaled, self.dense])(rows, width)
        if width == x.channels and self.chance(0.4):
            (shape,) = self.node("Shape", [x.name])
        elif self.chance(0.5):
            (sizes,) = self.node("Shape", [x.name])
            parts = [
                self.node("Slice", [sizes, self.ints(at), self.ints(at + 1)])[0]
                for at in range(self.rank + 1)
            ]
            (shape,) = self.node("Concat", [*parts, self.ints(width)], axis=0)
        else:
            self.fixed(*range(2, self.rank + 2))
            shape = self.ints(-1, *x.lengths, width)
        return self.last(self.node("Reshape", [rows, shape])[0], width, x.lengths)

    def as_rows(self, x: Value) -> tuple[str, int] | None:
        """A tensor as rows of all its numbers, of channels first."""
        if any(self.open(axis) for axis in range(2, self.rank + 2)):
            return None
        width = x.channels * int(np.prod(x.lengths))
        if width > 200:
            return None
        if self.chance(0.5):
            return self.node("Flatten", [x.name])[0], width
        target = self.pick([(0, width), (-1, width), (0, -1)])
        return self.node("Reshape", [x.name, self.ints(*target)])[0], width

    def matrix(self, fan_in: int, fan_out: int) -> str:
        """``(in, out)``, mostly a stored kernel that the graph transposes."""
        name = self.kernel(fan_out, fan_in)
        if self.chance(0.9):
            return self.node("Transpose", [name], perm=[1, 0])[0]
        return self.constant(self.rng.standard_normal((1, fan_in, fan_out)))

    def l_matmul(self, x: Last, width: int) -> Last:
        (name,) = self.node("MatMul", [x.name, self.matrix(x.channels, width)])
        return self.last(name, width, x.lengths)

    def l_linear(self, x: Last) -> Last:
        """A layer with its bias, mostly."""
        y = self.l_matmul(x, self.pick([x.channels, x.channels, self.integer(1, 8)]))
        if self.chance(0.6):
            y = self.l_same(y, "Add", self.vector(y.channels))
        return y

    def l_adapted(self, x: Last) -> Last:
        """A layer and a low-rank one beside it (LoRA), or several layers summed."""
        width = self.integer(1, 8)
        total = self.l_matmul(x, width)
        for _ in range(self.integer(1, 2)):
            side = x
            if self.chance(0.7):
                side = self.l_matmul(x, self.integer(1, 3))
            side = self.l_matmul(side, width)
            if self.chance(0.5):
                side = self.l_same(side, "Mul", self.constant(np.array(self.pick([0.5, -2.0]))))
            total = self.l_same(total, self.pick(["Add", "Add", "Sub"]), side.name)
        return total

    def l_rescaled(self, x: Last) -> Last:
        """``α·x + BN(x)``, the BN between Transposes."""
        flat = self.pick([self.through_norm, self.l_constant])(x)
        scaled = self.l_same(x, "Mul", self.constant(self.rng.uniform(0.5, 2, ())))
        return self.l_same(scaled, "Add", flat.name)

    def through_norm(self, x: Last) -> Last:
        normal, _ = self.normalised(self.back(x))
        return self.forth(normal)

    def head(self, x: Value) -> str:
        """Layers of rank 0 behind the mean over all positions."""
        axes = list(range(2, self.rank + 2))
        flat = self.as_rows(x) if self.chance(0.4) else None
        if flat is not None:
            return self.dense(*flat)[0]
        if self.opset >= 18:
            (name,) = self.node("ReduceMean", [x.name, self.ints(*axes)], keepdims=0)
        else:
            (name,) = self.node("ReduceMean", [x.name], axes=axes, keepdims=0)
        width = x.channels
        beside: list[tuple[str, int]] = []
        for _ in range(self.integer(1, 5)):
            name, width = self.pick([self.dense] * 3 + [self.scaled, self.norm_of, self.twice])(
                name, width
            )
            fits = [other for other, size in beside if size == width]
            if fits and self.chance(0.3):
                name = self.node(self.pick(["Add", "Sub"]), [name, self.pick(fits)])[0]
            beside.append((name, width))
            if self.chance(0.15):
                name = self.node("Relu", [name])[0]
        return name

    def dense(self, name: str, width: int) -> tuple[str, int]:
        """A Gemm in one of its many ways, or a MatMul."""
        out = self.integer(1, 8)
        if self.chance(0.3):
            return self.node("MatMul", [name, self.matrix(width, out)])[0], out
        turned = self.chance(0.5)
        matrix = self.kernel(*((out, width) if turned else (width, out)))
        settings: dict[str, Any] = {"transB": 1} if turned else {}
        if self.chance(0.2):
            settings["alpha"] = self.pick([0.5, -1.5])
        inputs = [name, matrix]
        if self.opset < 11 or self.chance(0.7):
            shape = self.pick([(out,)] * 4 + [(1, out), (), (1,), (self.batch, out)])
            inputs.append(self.constant(self.rng.standard_normal(shape)))
            if self.chance(0.2):
                settings["beta"] = self.pick([2.0, -0.5])
        return self.node("Gemm", inputs, **settings)[0], out

    def scaled(self, name: str, width: int) -> tuple[str, int]:
        shape = self.pick([(width,), (1, width), (), (1,), (1, 1)])
        array = self.rng.uniform(0.5, 2, shape)
        op = self.pick(["Mul", "Add", "Sub", "Div"])
        return self.node(op, [name, self.constant(array)])[0], width

    def norm_of(self, name: str, width: int) -> tuple[str, int]:
        parameters = self.rng.standard_normal((3, width))
        names = [self.constant(array) for array in parameters]
        names.append(self.constant(self.rng.uniform(0.5, 2, width)))
        return self.node("BatchNormalization", [name, *names])[0], width

    def twice(self, name: str, width: int) -> tuple[str, int]:
        """Two layers of one tensor, averaged or joined."""
        out = self.integer(1, 6)
        parts = []
        for _ in range(2):
            kernel = self.kernel(out, width)
            bias = self.constant(self.rng.standard_normal(out))
            parts.append(self.node("Gemm", [name, kernel, bias], transB=1)[0])
        if self.chance(0.3):
            return self.node("Concat", parts, axis=1)[0], 2 * out
        (total,) = self.node("Add", parts)
        half = self.constant(np.array(2.0))
        return self.node("Div", [total, half])[0], out
