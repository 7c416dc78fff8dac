"""Random ONNX models with linear branches, from a seed.

`make` gives a small model made to fuse: parallel branches over one tensor, joined by Add, Sum,
Sub or Concat, between nonlinear operators. About every precondition that fusing must check is
broken now and then: sizes that agree by coincidence, constants along the wrong axis, padding
with the wrong value, tensors with other readers. Some models are not valid at every size, and a
few at none; whoever runs them sorts those out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import ModelProto, helper
from random_branches import Brancher
from random_layouts import Last
from random_operators import Impossible, Ints, Value


@dataclass(frozen=True)
class Sample:
    """A model and the nominal sizes of its dynamic dimensions."""

    model: ModelProto
    nominal: dict[str, int]


class Maker(Brancher):
    """Builds blocks of parallel branches and what stands between them.

    A model that is ``inland`` has most of its channels last.
    """

    inland = False

    def loose(self, x: Value) -> Value:
        """One operator that changes the lengths as it likes."""
        axis = self.integer(0, self.rank - 1)
        kind = self.integer(0, 4)
        if kind == 0:
            return self.pool(
                x,
                self.taps(),
                self.ones(self.integer(1, 3)),
                tuple(self.integer(0, 1) for _ in range(2 * self.rank)),
            )
        if kind == 1:
            stop = x.lengths[axis] - self.integer(0, 1)
            return self.slice(x, axis + 2, self.integer(0, 1), stop, self.pick([1, 1, 2]))
        if kind == 2:
            low = 0 if self.opset < 11 else -1
            return self.pad(x, tuple(self.integer(low, 2) for _ in range(2 * self.rank)))
        if kind == 3:
            return self.plain(x, self.grid(x))
        (name,) = self.node("Concat", [x.name, x.name], axis=axis + 2)
        lengths = [n * 2 if i == axis else n for i, n in enumerate(x.lengths)]
        return self.value(name, x.channels, lengths)

    def block(self, x: Value) -> Value:
        """Parallel branches over one tensor, joined; or a chain."""
        grid = self.grid(x)
        parts = [self.branch(x, grid) for _ in range(self.pick([1, 2, 2, 3, 3, 4]))]
        join = self.concat if len(parts) > 1 and self.chance(0.12) else self.joined
        found = join(parts)
        earlier = [
            v
            for v in self.values
            if v.channels == found.channels and v.lengths == found.lengths and v is not found
        ]
        if earlier and self.chance(0.1):
            found = self.joined([found, self.pick(earlier)])
        return self.decorated(found, 0.4)

    def raised(self, x: Value) -> Value:
        """Transposed convolutions of one tensor, summed, with affines and 1×1 around them."""
        strides = tuple(self.integer(1, 3) for _ in range(self.rank))
        more = tuple(self.integer(0, s - 1) if self.chance(0.2) else 0 for s in strides)
        trim = tuple(self.integer(0, 2) for _ in range(2 * self.rank))
        out = self.integer(1, 6)
        if self.chance(0.4):
            x = self.decoration(x)
        parts = [self.spread(x, out, strides, more, trim) for _ in range(self.pick([1, 1, 2, 3]))]
        total = parts[0]
        for part in parts[1:]:
            total = self.same(total, "Add", part.name)
        return self.decorated(total, 0.8)

    def spread(self, x: Value, out: int, strides: Ints, more: Ints, trim: Ints) -> Value:
        """One of them; of a sum all have the same lengths and mostly one grid."""
        groups = x.channels if out == x.channels and self.chance(0.3) else 1
        taps, pads = [], [0] * (2 * self.rank)
        lengths = []
        for axis in range(self.rank):
            begin, end = trim[axis], trim[axis + self.rank]
            grown = self.integer(0, 2)  # a wider window trimmed as much gives the same lengths
            k = strides[axis] + begin + end + grown
            pads[axis] = begin + (grown if self.chance(0.3) else grown // 2)
            pads[axis + self.rank] = begin + end + grown - pads[axis]
            taps.append(k)
            full = strides[axis] * (x.lengths[axis] - 1) + k + more[axis]
            lengths.append(full - pads[axis] - pads[axis + self.rank])
        if min(pads) < 0 or min(lengths) < 1:
            raise Impossible
        attributes = {"strides": strides, "pads": pads, "group": groups, "output_padding": more}
        inputs = [x.name, self.kernel(x.channels, out // groups, *taps)]
        if self.chance(0.4):
            inputs.append(self.vector(out))
        made = self.value(self.node("ConvTranspose", inputs, **attributes)[0], out, lengths)
        return self.normalised(made)[0] if self.chance(0.4) else made

    def stages(self, x: Value, blocks: int) -> Value:
        for _ in range(min(self.pick([1, 2, 2, 3]), blocks)):
            before = x
            steps = [self.block] * 5 + ([self.loose] if self.chance(0.3) else [])
            steps += [self.raised] if self.chance(0.4) else []
            steps = [self.sea] if self.inland and self.chance(0.8) else steps
            try:
                x = self.pick(steps)(x)
                x = self.nonlinear(x) if self.chance(0.6) else x
            except Impossible:
                x = before
            if prod(x.lengths) * x.channels > 3000:
                break
        return x

    def sea(self, x: Value) -> Value:
        """An island, in which a few operators take the channels first."""

        def convolve(y: Value) -> Value:
            kind = self.rng.random()
            if kind < 0.6:
                return self.branch(y, self.grid(y))
            return self.decoration(y) if kind < 0.8 else self.block(y)

        return self.island(x, convolve)

    def conditional(self, x: Value) -> None:
        """An If whose branches read ``x`` from the outer scope."""
        graphs = []
        for branch in ("then", "else"):
            out = helper.make_tensor_value_info(f"{branch}_out", self.kind, None)
            op = helper.make_node("Relu" if branch == "then" else "Abs", [x.name], [out.name])
            graphs.append(helper.make_graph([op], branch, [], [out]))
        flag = self.initializer(np.array(self.chance(0.5)))
        made = self.node("If", [flag], then_branch=graphs[0], else_branch=graphs[1])
        self.value(made[0], x.channels, x.lengths)

    def sample(self, blocks: int) -> Sample:
        """The whole model, at most ``blocks`` blocks between its inputs and outputs."""
        high = {1: 13, 2: 11, 3: 6}[self.rank]
        lengths = [self.integer(3, high) for _ in range(self.rank)]
        channels = self.pick([1, 2, 3, 4, 4, 6, 8])
        self.inland = self.chance(0.3)
        if self.inland and self.chance(0.5):
            source = self.last("x", channels, lengths)
            x = self.back(source)
        else:
            source = x = self.value("x", channels, lengths)
        sources: list[Value | Last] = [source]
        last = self.stages(x, blocks)
        if self.chance(0.12):
            y = self.value("y", last.channels, last.lengths)
            sources.append(y)
            last = self.stages(self.joined([last, y]), blocks)
        inner = [v for v in self.values if v.name != last.name and v not in sources]
        lasts = [v for v in self.lasts if v not in sources]
        outputs: list[Value | Last] = [last] if last.name != "x" else [self.same(x, "Relu")]
        if inner and self.chance(0.2):
            outputs += {v.name: v for v in (self.pick(inner) for _ in range(2))}.values()
        if inner and self.chance(0.05):
            self.conditional(self.pick(inner))
            outputs.append(self.values[-1])
        if inner and self.chance(0.1):
            outputs.append(self.same(self.pick(inner), "Relu"))
        if lasts and self.chance(0.4):
            outputs.append(self.pick(lasts))
        if self.chance(0.25):
            outputs.append(Last(self.head(self.pick([last, *inner])), 0, ()))
        return self.model(sources, outputs)

    def model(self, sources: list[Value | Last], outputs: list[Value | Last]) -> Sample:
        nominal: dict[str, int] = {}
        tied = self.chance(0.1) and len(set(sources[0].lengths)) == 1
        infos = []
        for value in sources:
            dims: list[int | str] = []
            for i, size in enumerate((self.batch, value.channels, *value.lengths)):
                name = "N" if i == 0 else f"S{0 if tied else i - 2}"
                if i == 1 or name not in self.dynamic:
                    dims.append(size)
                    continue
                name = name if value is sources[0] or i == 0 else f"{name}_{value.name}"
                nominal[name] = size
                dims.append(name)
            if isinstance(value, Last):
                dims.append(dims.pop(1))
            infos.append(helper.make_tensor_value_info(value.name, self.kind, dims))
        free = self.overridable
        infos += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in free]
        outs = [
            helper.make_tensor_value_info(v.name, self.kind, None)
            for v in {v.name: v for v in outputs}.values()
        ]
        graph = helper.make_graph(self.nodes, "random", infos, outs, [*self.initializers, *free])
        opsets = [helper.make_opsetid("", self.opset)]
        return Sample(helper.make_model(graph, opset_imports=opsets, ir_version=8), nominal)


def make(seed: int, blocks: int = 3) -> Sample:
    """The model of a seed, with at most ``blocks`` blocks one behind the other."""
    return Maker(seed).sample(blocks)
