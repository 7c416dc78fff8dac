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
from onnx import TensorProto, helper

from onnxfuse.errors import ProofError
from onnxfuse.model.graph import Graph, Node
from onnxfuse.model.shapes import Shape
from onnxfuse.model.tensors import FLOATS
from onnxfuse.records import OutputError, Verification
from onnxfuse.verify.session import (
    FACTOR,
    UNITS,
    CannotRunError,
    Disturbed,
    disturbed,
    feeds,
    line,
    rms,
    written,
)
from onnxfuse.verify.session import opened as _session

# Operators with jumps; those that give integers or booleans (ArgMax, Greater …) need no entry.
DISCONTINUOUS = {
    "TopK", "Round", "Floor", "Ceil", "Sign", "Unique", "Hardmax", "Mod", "DynamicQuantizeLinear",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """The two models, the original's index, what was fused where, and its measured error."""

    original: onnx.ModelProto
    fused: onnx.ModelProto
    graph: Graph
    types: Mapping[str, int]
    regions: Mapping[str, tuple[tuple[str, ...], float, float]]
    base: str | None
    approximate: bool = False


def verify(
    subject: Subject, shapes: Mapping[str, Shape], progress: Callable[[str], None] = lambda _: None
) -> Verification:
    """Run both models; raises `ProofError` where they differ by more than rounding."""
    targets, hidden = _targets(subject)
    try:
        noisy = _disturbable(subject, targets)
        original = _session(noisy.model, subject.base)
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
    for feed in feeds(_values(subject), shapes):
        text = written(feed)
        progress(text)
        quiet, loud = ({**feed, noisy.switch: np.array(on)} for on in (False, True))
        try:
            expected = original.run(targets, quiet)
        except Exception as error:
            notes.append(f"the original rejects {text}: {line(error)}")
            continue
        try:
            actual = fused.run(targets, feed)
        except Exception as error:
            raise ProofError(
                f"the fused model fails at {text} where the original runs: {line(error)}"
            ) from error
        response = original.run(targets, loud)
        repeated = original.run(targets, quiet)
        for found in _compare(subject, targets, expected, actual, response, repeated, text):
            if found.name not in worst or found.rms > worst[found.name].rms:
                worst[found.name] = found
        runs.append(text)
    if not runs:
        return Verification("not-run", notes=tuple(notes))
    status = "approximate" if subject.approximate else "passed"
    return Verification(status, tuple(runs), tuple(worst.values()), tuple(notes))


def _values(subject: Subject) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give."""
    stored = subject.graph.initializers
    return [value for value in subject.graph.model.graph.input if value.name not in stored]


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


def _disturbable(subject: Subject, targets: Sequence[str]) -> Disturbed:
    """The original with rounding-sized noise on each region's inputs and output.

    An output also varies by the region's error outright: where its terms cancel, it is smaller
    than what rounding them makes of it.
    """
    levels: dict[str, float] = {}
    shifts: dict[str, float] = {}
    for root, (sources, measured, scale) in subject.regions.items():
        shifts[root] = measured * scale
        level = max(measured, UNITS * FLOATS[subject.types[root]])
        for name in (root, *sources):
            levels[name] = max(level, levels.get(name, 0.0))
    exposed = _exposed(subject.original, targets, subject.types)
    return disturbed(exposed, subject.graph, levels, subject.types, shifts=shifts)


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
        scale = rms(reference) or 1.0
        floor = UNITS * FLOATS[subject.types.get(name, TensorProto.FLOAT)]
        allowed = FACTOR * max(rms(heard - reference) / scale, floor)
        allowed += 4 * rms(chance - reference) / scale
        error = rms(fused - reference) / scale
        if not error <= allowed and not subject.approximate:
            raise ProofError(
                f"output {name!r} differs by {error:.3g} (relative RMS) at {text}, where rounding "
                f"explains {allowed:.3g}; {_guess(subject, name)}"
            )
        yield OutputError(name, float(error), float(allowed))


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
