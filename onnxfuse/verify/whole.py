"""The wiring check: original and fused model side by side in onnxruntime, unoptimised.

The regions are proved one by one; this run finds what joins them wrongly. The difference at each
output is judged against what rounding in those regions does to the original: the original is run
again with every region's inputs and output disturbed by a few units of roundoff (or by the
region's measured error, where that is larger), and the fused model may differ by ``FACTOR``
times that response. Tensors behind discontinuous operators are not compared; what enters those
operators is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from onnxfuse.errors import ProofError
from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.shapes import Shape
from onnxfuse.model.tensors import FLOATS, dtype_of
from onnxfuse.records import OutputError, Verification

FACTOR = 16.0
UNITS = 4.0
"""Disturbances are at least this many units of roundoff."""
# Operators with jumps; those that give integers or booleans (ArgMax, Greater …) need no entry.
DISCONTINUOUS = {
    "TopK", "Round", "Floor", "Ceil", "Sign", "Unique", "Hardmax", "Mod", "DynamicQuantizeLinear",
}  # fmt: skip
SIZES = ((1, 32), (2, 45))
"""Batch and other dynamic dimensions of the two runs where sizes are dynamic."""
SEED = 7
SWITCH = "onnxfuse/disturb"
"""The graph input that turns the noise on."""

ort.set_default_logger_severity(4)


@dataclass(frozen=True, slots=True)
class Subject:
    """The two models, the original's index, what was fused where, and its measured error."""

    original: onnx.ModelProto
    fused: onnx.ModelProto
    graph: Graph
    types: Mapping[str, int]
    regions: Mapping[str, tuple[tuple[str, ...], float]]
    base: str | None
    approximate: bool = False


def verify(
    subject: Subject, shapes: Mapping[str, Shape], progress: Callable[[str], None] = lambda _: None
) -> Verification:
    """Run both models; raises `ProofError` where they differ by more than rounding."""
    targets, hidden = _targets(subject)
    try:
        original = _session(_disturbable(subject, targets), subject.base)
    except CannotRunError as error:
        return Verification("not-run", notes=(f"onnxruntime cannot run this model: {error}",))
    try:
        fused = _session(_exposed(subject.fused, targets, subject.types), subject.base)
    except CannotRunError as error:
        raise ProofError(
            f"onnxruntime loads the original but not the fused model ({error}); please report this"
        ) from error
    entering = len(targets) > len(subject.graph.outputs) - len(hidden)
    what = "what enters it was compared" if entering else "it was not compared"
    notes = [f"{name!r} lies behind a discontinuous operator; {what}" for name in hidden]
    runs: list[str] = []
    worst: dict[str, OutputError] = {}
    for feeds in _feeds(subject, shapes):
        text = ", ".join(f"{n}:{'x'.join(map(str, a.shape))}" for n, a in feeds.items())
        progress(text)
        quiet, noisy = ({**feeds, SWITCH: np.array(on)} for on in (False, True))
        try:
            expected = original.run(targets, quiet)
        except Exception as error:
            notes.append(f"the original rejects {text}: {_line(error)}")
            continue
        try:
            actual = fused.run(targets, feeds)
        except Exception as error:
            raise ProofError(
                f"the fused model fails at {text} where the original runs: {_line(error)}"
            ) from error
        response = original.run(targets, noisy)
        repeated = original.run(targets, quiet)
        for found in _compare(subject, targets, expected, actual, response, repeated, text):
            if found.name not in worst or found.rms > worst[found.name].rms:
                worst[found.name] = found
        runs.append(text)
    if not runs:
        return Verification("not-run", notes=tuple(notes))
    status = "approximate" if subject.approximate else "passed"
    return Verification(status, tuple(runs), tuple(worst.values()), tuple(notes))


class CannotRunError(Exception):
    """onnxruntime does not load the original model."""


def _session(model: onnx.ModelProto, base: str | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if base is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", base
        )
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise CannotRunError(_line(error)) from error


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _targets(subject: Subject) -> tuple[list[str], list[str]]:
    """Tensors to compare, and the outputs that are not because they depend on a choice."""
    graph = subject.graph
    produced = {out for node in subject.fused.graph.node for out in node.output}
    data = set(graph.inputs)  # what depends on values, not on shapes alone
    tainted: set[str] = set()
    entering: dict[str, None] = {}
    for node in graph.order:
        read = [name for name in node.inputs if name in data]
        if not read or node.op_type in ("Shape", "Size"):
            continue
        data.update(node.outputs)
        if any(name in tainted for name in read):
            tainted.update(node.outputs)
        elif _discontinuous(node, read, subject.types):
            tainted.update(node.outputs)
            entering.update(dict.fromkeys(n for n in read if n in produced))
    floats = [n for n in graph.outputs if n not in tainted]
    hidden = [n for n in graph.outputs if n in tainted]
    if hidden:
        floats += [
            n
            for n in entering
            if n not in floats and subject.types.get(n, 0) in FLOATS and n in produced
        ]
    return floats or list(graph.outputs), hidden


def _discontinuous(node: Node, read: Sequence[str], types: Mapping[str, int]) -> bool:
    """Whether a small change of what a node reads can change its result by a jump."""
    if not any(types.get(name, 0) in FLOATS for name in read):
        return False
    if any(out and types.get(out, 0) not in FLOATS for out in node.outputs[:1]):
        return True
    return node.op_type in DISCONTINUOUS


def _exposed(
    model: onnx.ModelProto, targets: Sequence[str], types: Mapping[str, int]
) -> onnx.ModelProto:
    """The model with every target among its outputs."""
    present = {value.name for value in model.graph.output}
    missing = [name for name in targets if name not in present]
    if not missing:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, types[name], None) for name in missing
    )
    return copy


def _disturbable(subject: Subject, targets: Sequence[str]) -> onnx.ModelProto:
    """The original with a switch: rounding-sized noise on each region's inputs and output.

    With the switch off every tensor is the original's, bit for bit.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(_exposed(subject.original, targets, subject.types))
    old = subject.graph.opset < 9
    levels: dict[str, float] = {}
    for root, (sources, measured) in subject.regions.items():
        level = max(measured, UNITS * FLOATS[subject.types[root]])
        for name in (root, *sources):
            levels[name] = max(level, levels.get(name, 0.0))
    inputs = {value.name for value in copy.graph.input}
    nodes: list[onnx.NodeProto] = []
    for name in sorted(levels.keys() & inputs):
        nodes += _noise(name, f"{name}/disturbed", levels[name], subject.types[name], old=old)
    for node in copy.graph.node:
        node.input[:] = [f"{n}/disturbed" if n in levels and n in inputs else n for n in node.input]
        made = [out for out in node.output if out in levels]
        node.output[:] = [f"{out}/calm" if out in levels else out for out in node.output]
        nodes.append(node)
        for name in made:
            nodes += _noise(f"{name}/calm", name, levels[name], subject.types[name], old=old)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    copy.graph.input.append(helper.make_tensor_value_info(SWITCH, TensorProto.BOOL, []))
    return copy


def _noise(
    source: str, target: str, level: float, kind: int, *, old: bool
) -> Iterator[onnx.NodeProto]:
    """``target = source · (1 + level · N(0, 1))`` where the switch is on.

    ``old`` operator sets have no Where, and onnxruntime has none for bfloat16; there the noise is
    multiplied by the switch.
    """
    normal, product, total = (f"{target}/{part}" for part in ("normal", "product", "sum"))
    wide = f"{target}/wide"
    yield helper.make_node("Cast", [source], [wide], to=TensorProto.FLOAT)
    yield helper.make_node(
        "RandomNormalLike", [wide], [normal], dtype=TensorProto.FLOAT, scale=level, seed=1.0
    )
    yield helper.make_node("Mul", [wide, normal], [product])
    if old or kind == TensorProto.BFLOAT16:
        switch, heard = f"{target}/switch", f"{target}/heard"
        yield helper.make_node("Cast", [SWITCH], [switch], to=TensorProto.FLOAT)
        yield helper.make_node("Mul", [product, switch], [heard])
        yield helper.make_node("Add", [wide, heard], [total])
        yield helper.make_node("Cast", [total], [target], to=kind)
        return
    yield helper.make_node("Add", [wide, product], [total])
    yield helper.make_node("Cast", [total], [f"{total}/narrow"], to=kind)
    yield helper.make_node("Where", [SWITCH, f"{total}/narrow", source], [target])


def _feeds(subject: Subject, shapes: Mapping[str, Shape]) -> Iterator[dict[str, Any]]:
    """Seeded inputs: at two sizes where dimensions are dynamic and no shape was given."""
    values = [
        value
        for value in subject.graph.model.graph.input
        if value.name not in subject.graph.initializers
    ]
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for batch, size in SIZES:
        generator = np.random.default_rng(SEED)
        feeds = {}
        for value in values:
            shape = _shape(value, shapes.get(value.name), batch, size)
            feeds[value.name] = _random(generator, shape, value.type.tensor_type.elem_type)
        key = tuple(array.shape for array in feeds.values())
        if key not in seen:
            seen.add(key)
            yield feeds


def _shape(
    value: onnx.ValueInfoProto, given: Shape | None, batch: int, size: int
) -> tuple[int, ...]:
    if given is not None:
        return tuple(int(n or 1) for n in given)
    dims = value.type.tensor_type.shape.dim
    return tuple(
        dim.dim_value if dim.dim_value > 0 else (batch if axis == 0 else size)
        for axis, dim in enumerate(dims)
    )


def _random(generator: np.random.Generator, shape: tuple[int, ...], kind: int) -> Any:
    dtype = dtype_of(kind)
    if dtype.kind in "iu":
        return generator.integers(0, 4, shape).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def _compare(
    subject: Subject,
    targets: Sequence[str],
    expected: Sequence[Any],
    actual: Sequence[Any],
    response: Sequence[Any],
    repeated: Sequence[Any],
    text: str,
) -> Iterator[OutputError]:
    for name, o, f, noisy, again in zip(targets, expected, actual, response, repeated, strict=True):
        if o.shape != f.shape or o.dtype != f.dtype:
            raise ProofError(
                f"output {name!r} has shape {list(f.shape)} at {text}, the original's is "
                f"{list(o.shape)}"
            )
        if o.dtype.kind not in "fV" or not o.size:
            continue
        wide = [array.astype(np.float64) for array in (o, f, noisy, again)]
        calm = np.isfinite(wide[0]) & np.isfinite(wide[2])  # where the type does not overflow
        if not np.isfinite(wide[1][calm]).all():
            raise ProofError(
                f"output {name!r} is not finite at {text} where the original is; "
                f"{_guess(subject, name)}"
            )
        reference, fused, heard, chance = (array[calm] for array in wide)
        scale = _rms(reference) or 1.0
        floor = UNITS * FLOATS[subject.types.get(name, TensorProto.FLOAT)]
        allowed = FACTOR * max(_rms(heard - reference) / scale, floor)
        allowed += 4 * _rms(chance - reference) / scale
        error = _rms(fused - reference) / scale
        if not error <= allowed and not subject.approximate:
            raise ProofError(
                f"output {name!r} differs by {error:.3g} (relative RMS) at {text}, where rounding "
                f"explains {allowed:.3g}; {_guess(subject, name)}"
            )
        yield OutputError(name, float(error), float(allowed))


def _rms(array: Any) -> float:
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0


def _guess(subject: Subject, name: str) -> str:
    """The regions that a differing tensor depends on, nearest first."""
    found: list[str] = []
    seen, stack = {name}, [name]
    while stack and len(found) < 3:
        current = stack.pop(0)
        producer = subject.graph.producer.get(current)
        if current in subject.regions and producer is not None:
            found.append(producer.label)
        for other in producer.inputs if producer is not None else ():
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return (
        "it depends on the regions at " + ", ".join(map(repr, found))
        if found
        else ("no fused region leads to it")
    )
