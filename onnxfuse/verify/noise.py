"""Noise on tensors of a model, as large as rounding.

The model has a switch for it, and with the switch off every tensor is the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from math import tau
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxfuse.model.graph import Graph
from onnxfuse.model.splice import fresh_names

SWITCH = "onnxfuse/disturb"
"""The graph input that turns the noise on, where the model has no tensor of that name."""
_SHIFTS = 2.0**20
"""Added to the seed of what shifts; onnxruntime reads the whole part of a seed only."""
_PRIME = 2**31 - 1
_STRIDE = 7**11
"""Less than the prime, and a power of a primitive root of it."""


@dataclass(frozen=True, slots=True)
class Disturbed:
    """A model with noise on some tensors where its boolean input ``switch`` is true."""

    model: onnx.ModelProto
    switch: str


def disturbed(
    model: onnx.ModelProto,
    graph: Graph,
    levels: Mapping[str, float],
    types: Mapping[str, int],
    seeds: Iterable[float] = repeat(1.0),
    shifts: Mapping[str, float] | None = None,
) -> Disturbed:
    """A copy of ``model`` whose tensors named in ``levels`` vary by that much of themselves.

    Those in ``shifts`` also vary by so much outright. ``graph`` is the model's index. Tensors of
    equal shape vary alike where ``seeds`` repeat.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    fresh, draw = fresh_names(graph), iter(seeds)
    noise = _Noise(fresh, fresh(SWITCH), graph.opset)
    nodes: list[onnx.NodeProto] = []
    read: dict[str, str] = {}
    for name in sorted(levels.keys() & {value.name for value in copy.graph.input}):
        read[name] = fresh(f"{name}/disturbed")
        nodes += noise.nodes(name, read[name], levels[name], types[name], next(draw), 0.0)
    for node in copy.graph.node:
        if any(name in read for name in node.input):
            node.input[:] = [read.get(name, name) for name in node.input]
        calm = {out: fresh(f"{out}/calm") for out in node.output if out in levels}
        if calm:
            node.output[:] = [calm.get(out, out) for out in node.output]
        nodes.append(node)
        for name, source in calm.items():
            shift = (shifts or {}).get(name, 0.0)
            nodes += noise.nodes(source, name, levels[name], types[name], next(draw), shift)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    copy.graph.input.append(helper.make_tensor_value_info(noise.switch, TensorProto.BOOL, []))
    return Disturbed(copy, noise.switch)


@dataclass(frozen=True, slots=True)
class _Noise:
    """``target = source · N(1, level) + N(0, shift)`` where the switch is on; infinities stay.

    Operator sets before 9 have no Where, and onnxruntime has none for bfloat16; there the factor
    is raised to the power of the switch. From 22 on onnxruntime has no operator that draws.
    """

    fresh: Callable[[str], str]
    switch: str
    opset: int

    def nodes(
        self, source: str, target: str, level: float, kind: int, seed: float, shift: float
    ) -> Iterator[onnx.NodeProto]:
        wide, product = (self.fresh(f"{target}/{part}") for part in ("wide", "product"))
        width = TensorProto.DOUBLE if kind == TensorProto.DOUBLE else TensorProto.FLOAT
        yield helper.make_node("Cast", [source], [wide], to=width)
        factor = yield from self._drawn(wide, f"{target}/factor", width, (1.0, level), seed)
        if self.opset < 9 or kind == TensorProto.BFLOAT16:
            power, heard = self.fresh(f"{target}/power"), self.fresh(f"{target}/heard")
            yield helper.make_node("Cast", [self.switch], [power], to=width)
            yield helper.make_node("Pow", [factor, power], [heard])
            yield helper.make_node("Mul", [wide, heard], [product])
            if shift:
                product = yield from self._shifted(product, target, shift, width, seed, power)
            yield helper.make_node("Cast", [product], [target], to=kind)
            return
        narrow = self.fresh(f"{target}/narrow")
        yield helper.make_node("Mul", [wide, factor], [product])
        if shift:
            product = yield from self._shifted(product, target, shift, width, seed, "")
        yield helper.make_node("Cast", [product], [narrow], to=kind)
        yield helper.make_node("Where", [self.switch, narrow, source], [target])

    def _shifted(
        self, source: str, target: str, shift: float, width: int, seed: float, power: str
    ) -> Generator[onnx.NodeProto, None, str]:
        """``source`` plus noise of size ``shift``, times ``power`` where that is given.

        onnxruntime ends the process where the size is not a positive float32.
        """
        if not np.finfo(np.float32).tiny <= shift <= np.finfo(np.float32).max:
            return source
        total = self.fresh(f"{target}/shifted")
        noise = yield from self._drawn(
            source, f"{target}/shift", width, (0.0, shift), seed + _SHIFTS
        )
        if power:
            heard = self.fresh(f"{target}/heard_shift")
            yield helper.make_node("Mul", [noise, power], [heard])
            noise = heard
        yield helper.make_node("Add", [source, noise], [total])
        return total

    def _drawn(
        self, like: str, name: str, width: int, normal: tuple[float, float], seed: float
    ) -> Generator[onnx.NodeProto, None, str]:
        """A tensor as large as ``like`` of normal noise with a mean and a deviation."""
        mean, scale = normal
        if self.opset < 22:
            drawn = self.fresh(name)
            yield helper.make_node(
                "RandomNormalLike", [like], [drawn], dtype=width, mean=mean, scale=scale, seed=seed
            )
            return drawn
        return (yield from self._counted(like, name, width, normal, seed))

    def _counted(
        self, like: str, name: str, width: int, normal: tuple[float, float], seed: float
    ) -> Generator[onnx.NodeProto, None, str]:
        """The same from the number of each element, ``h = i·stride + seed`` modulo a prime.

        Its square and its cube are taken for random, and Box and Muller's √(−2·ln u)·cos(2π·v)
        makes normal noise of these two.
        """

        def made(kind: str, *inputs: str, **attributes: Any) -> str:
            out = self.fresh(f"{name}/{kind}")
            nodes.append(helper.make_node(kind, inputs, [out], **attributes))
            return out

        def number(value: float) -> str:
            whole = isinstance(value, int)
            dtype = TensorProto.INT64 if whole else TensorProto.DOUBLE
            return made("Constant", value=helper.make_tensor("", dtype, [], [value]))

        def modulo(value: str) -> str:
            return made("Mod", value, prime)

        def fraction(value: str) -> str:
            """From 1/p up to 1."""
            wide = made("Cast", made("Add", value, one), to=TensorProto.DOUBLE)
            return made("Div", wide, number(float(_PRIME)))

        nodes: list[onnx.NodeProto] = []
        one, prime = number(1), number(_PRIME)
        index = made("Range", number(0), made("Size", like), one)
        start = number(int(seed) * _STRIDE % _PRIME)
        first = modulo(made("Add", made("Mul", index, number(_STRIDE)), start))
        second = modulo(made("Mul", first, first))
        third = modulo(made("Mul", first, second))
        length = made("Sqrt", made("Mul", number(-2.0), made("Log", fraction(second))))
        turned = made("Cos", made("Mul", number(tau), fraction(third)))
        flat = made("Mul", made("Mul", length, turned), number(normal[1]))
        flat = made("Add", flat, number(normal[0]))
        drawn = made("Reshape", flat, made("Shape", like), allowzero=1)
        out = made("Cast", drawn, to=width)
        yield from nodes
        return out


def noise(
    fresh: Callable[[str], str],
    switch: str,
    source: str,
    target: str,
    level: float,
    kind: int,
    shift: float,
    opset: int,
) -> list[onnx.NodeProto]:
    """The nodes that make ``target`` of ``source`` with noise of ``level`` where a switch is on."""
    return list(_Noise(fresh, switch, opset).nodes(source, target, level, kind, 1.0, shift))
