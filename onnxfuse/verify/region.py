"""The proof of a region: its nodes against their replacement, in float64.

Both are run by the same NumPy evaluator, which shares nothing with the algebra. With unrounded
weights they may differ by summation order alone:

    |f − o| ≤ 2·γₙ·A,   γₙ = n·u / (1 − n·u),   u = 2⁻⁵³

where ``n`` counts the summed terms on the way and ``A`` is the region evaluated on absolute
values (Higham, Accuracy and Stability, §3.1). Weights are rounded once to the model's type,
which is checked entry by entry. Border behaviour depends on the size modulo the stride, above
the extents; so small sizes prove it for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from onnxfuse.algebra.form import Form, Source, usual_size
from onnxfuse.algebra.laws import Alias
from onnxfuse.errors import ProofError
from onnxfuse.evaluate import evaluate
from onnxfuse.evaluate.linear import LINEAR
from onnxfuse.evaluate.tensor import TENSOR, split_sizes
from onnxfuse.lift import View
from onnxfuse.model.graph import Node
from onnxfuse.realise import Replacement
from onnxfuse.records import RegionError

U = 2.0**-53
SEED = 20_240_601

Sizes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How values are kept: ``store`` rounds every node's output; ``compute`` is the type."""

    compute: Any
    store: Any


DOUBLE = Arithmetic(np.float64, np.float64)


def prove(replacement: Replacement, view: View, kind: Any, roundoff: float) -> RegionError:
    """Prove a replacement of type ``kind``; raises `ProofError` naming the region."""
    label = replacement.region.root.node.label
    _check_rounding(replacement, kind, roundoff, label)
    terms = _summed_terms(replacement)
    gamma = terms * U / (1 - terms * U)
    worst, limit = 0.0, 0.0
    tried: list[tuple[int, ...]] = []
    errors: list[tuple[float, float]] = []
    for sizes in _sizes(replacement, view):
        generator = np.random.default_rng(SEED)
        inputs = {n: generator.standard_normal(shape) for n, shape in sizes.items()}
        try:
            inputs = _with_derived(replacement, view, inputs)
            expected = run_original(replacement, view, inputs, DOUBLE)
            size = run_original(replacement, view, inputs, DOUBLE, magnitude=True)
        except ValueError:
            continue  # the original itself rejects this size
        if not expected.size:
            continue  # nothing to compare, and Conv gives no empty tensors
        try:
            actual = run_replacement(replacement, inputs, DOUBLE)
        except ValueError as error:
            raise ProofError(
                f"region {label!r}: the fused form fails at input shapes {sizes} ({error}); "
                f"please report this and leave the region out with --except {label!r}"
            ) from error
        allowed = 2 * gamma * size
        if replacement.region.cover is not None and replacement.region.cover.form.matched:
            allowed = allowed + 64 * roundoff * size
        if actual.shape != expected.shape:
            raise ProofError(
                f"region {label!r}: the fused form gives shape {list(actual.shape)} where the "
                f"original gives {list(expected.shape)}; please report this"
            )
        difference = np.abs(actual - expected)
        if not np.all(difference <= allowed):
            raise ProofError(
                f"region {label!r}: the fused form differs by {difference.max():.3g} at input "
                f"shapes {sizes}, where rounding allows {allowed.max():.3g}; please report this "
                f"and leave the region out with --except {label!r}"
            )
        worst = max(worst, float(difference.max(initial=0)))
        limit = max(limit, float(np.max(allowed, initial=0)))
        tried += sizes.values()
        errors.append(_measured(replacement, view, inputs, expected, kind))
    if not tried:
        raise ProofError(f"region {label!r}: no input size could be evaluated to prove it")
    original, fused = (
        float(np.sqrt(np.mean(np.square(column)))) for column in zip(*errors, strict=True)
    )
    return RegionError(worst, limit, original, fused, tuple(tried))


def _with_derived(
    replacement: Replacement, view: View, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs with those sources that are themselves computed inside the region."""
    known = dict(inputs)
    order = {step.tensor: step.position for step in replacement.region.interior}
    derived = [name for name in replacement.region.sources if name not in inputs]
    for name in sorted(derived, key=lambda n: order.get(n, 0)):
        known[name] = run_original(replacement, view, known, DOUBLE, target=name)
    return known


def _measured(
    replacement: Replacement, view: View, inputs: Mapping[str, Any], expected: Any, kind: Any
) -> tuple[float, float]:
    """Relative RMS errors of original and fused in the model's own arithmetic."""
    compute = np.float32 if np.dtype(kind).itemsize < 4 else kind
    arithmetic = Arithmetic(compute, kind)
    rounded = {name: _round(array, arithmetic) for name, array in inputs.items()}
    exact = {name: array.astype(np.float64) for name, array in rounded.items()}
    reference = run_original(replacement, view, exact, DOUBLE)
    scale = float(np.sqrt(np.mean(np.square(reference)))) or 1.0
    results = (
        run_original(replacement, view, rounded, arithmetic),
        run_replacement(replacement, rounded, arithmetic),
    )
    first, second = (
        float(np.sqrt(np.mean(np.square(r.astype(np.float64) - reference)))) / scale
        for r in results
    )
    return first, second


def _round(array: Any, arithmetic: Arithmetic) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array).astype(arithmetic.store).astype(arithmetic.compute)


def _check_rounding(replacement: Replacement, kind: Any, roundoff: float, label: str) -> None:
    tiny = float(_tiny(kind))
    for array in replacement.arrays.values():
        rounded = array.astype(kind).astype(np.float64)
        if not np.all(np.abs(rounded - array) <= roundoff * np.abs(array) + tiny / 2):
            raise ProofError(f"region {label!r}: a fused weight does not round to its own type")


def _tiny(kind: Any) -> float:
    """The smallest subnormal of a type."""
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[np.dtype(kind).itemsize]
    return float(np.array([1], bits).view(kind)[0])


def _summed_terms(replacement: Replacement) -> int:
    """Terms summed on the way to one output, of the original and of the replacement."""
    count = 64
    for step in replacement.region.interior:
        kernel = getattr(step.law, "kernel", None)
        count += prod(kernel.geometry.kernel_shape[1:]) if kernel is not None else 4
    return count + sum(prod(a.shape[1:]) for a in replacement.arrays.values())


def run_original(
    replacement: Replacement,
    view: View,
    inputs: Mapping[str, Any],
    arithmetic: Arithmetic,
    *,
    magnitude: bool = False,
    target: str | None = None,
) -> Any:
    """The root (or ``target``) by the nodes that stand in the file, from the region's sources.

    With ``magnitude``, every constant and operation is replaced by its absolute counterpart.
    """
    values: dict[str, Any] = {n: array for n, array in inputs.items() if n != target}
    if magnitude:
        values = {name: np.abs(array) for name, array in values.items()}
    root = target or replacement.root
    interior = {s.node.index for s in replacement.region.interior}
    aliases = {
        s.node.index: s.lifted.operands[0]
        for s in replacement.region.interior
        if isinstance(s.law, Alias)
    }
    stack = [root]
    while stack:
        name = stack[-1]
        if name in values:
            stack.pop()
            continue
        node = view.graph.producer.get(name)
        if view.constants.known(name):
            values[name] = _constant(view.constants.value(name), arithmetic, magnitude)
            continue
        if node is None or not (node.index in interior or node.op_type in _AUXILIARY):
            values[name] = UNKNOWN
            continue
        missing = [n for n in node.inputs if n and n not in values]
        if missing:
            stack += missing
            continue
        arrays = [values[n] if n else None for n in node.inputs]
        outputs = _known_outputs(node, view, arrays, magnitude and node.index in interior)
        if outputs[0] is UNKNOWN and node.index in aliases:  # what it ignores need not be known
            outputs = [values[aliases[node.index]]]
        for out, array in zip(node.outputs, outputs, strict=False):
            values[out] = array if array is UNKNOWN else _stored(array, arithmetic)
    if values[root] is UNKNOWN:
        raise ProofError(
            f"region {replacement.region.root.node.label!r}: tensor {root!r} depends on sizes that "
            "are not known; please report this"
        )
    return values[root]


UNKNOWN = object()
"""Stands for a value that depends on tensors outside the region, such as another tensor's size."""

_AUXILIARY = {*TENSOR, *LINEAR, "Shape", "Size"} - {"Conv", "BatchNormalization", "AveragePool"}


def _known_outputs(node: Node, view: View, arrays: list[Any], magnitude: bool) -> list[Any]:
    """A node's outputs; a constant expanded to an unknown size is left to broadcast."""
    if all(array is not UNKNOWN for array in arrays):
        return _evaluate(node, view, arrays, magnitude)
    shape = view.shape(node.outputs[0])
    if node.op_type == "Expand" and arrays[0] is not UNKNOWN and shape is not None:
        data = arrays[0]
        return [data.reshape((1,) * (len(shape) - data.ndim) + data.shape)]
    return [UNKNOWN] * len(node.outputs)


def _stored(array: Any, arithmetic: Arithmetic) -> Any:
    if array.dtype.kind != "f" or arithmetic.store == arithmetic.compute:
        return array
    return _round(array, arithmetic)


def _constant(array: Any, arithmetic: Arithmetic, magnitude: bool) -> Any:
    if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
        return np.asarray(array)
    wide = _round(array, arithmetic)
    return np.abs(wide) if magnitude else wide


def _evaluate(node: Node, view: View, arrays: list[Any], magnitude: bool) -> list[Any]:
    if node.op_type in ("Shape", "Size"):
        shape = np.array(np.shape(arrays[0]), np.int64)
        if node.op_type == "Size":
            return [np.array(shape.prod())]
        return [shape[slice(node.attributes.get("start", 0), node.attributes.get("end"))]]
    attributes = view.constants.attributes(node)
    counterpart = _MAGNITUDE.get(node.op_type, _same) if magnitude else _same
    return counterpart(node, attributes, arrays)


def _same(node: Node, attributes: Any, arrays: list[Any]) -> list[Any]:
    if node.op_type == "Split":
        return _split(node, arrays)
    return evaluate(node.op_type, attributes, arrays)


def _split(node: Node, arrays: list[Any]) -> list[Any]:
    axis = node.attributes.get("axis", 0)
    sizes = node.attributes.get("split")
    if sizes is None and len(arrays) > 1 and arrays[1] is not None:
        sizes = [int(v) for v in arrays[1]]
    if sizes is None:
        sizes = split_sizes(arrays[0].shape[axis], len(node.outputs))
    return list(np.split(arrays[0], np.cumsum(sizes)[:-1], axis=axis))


def _add(node: Node, attributes: Any, arrays: list[Any]) -> list[Any]:
    return [arrays[0] + arrays[1]]


def _positive_pad(node: Node, attributes: Any, arrays: list[Any]) -> list[Any]:
    return evaluate("Pad", {**attributes, "value": abs(attributes.get("value", 0.0))}, arrays)


def _batch_normalization(node: Node, attributes: Any, arrays: list[Any]) -> list[Any]:
    x, scale, bias, mean, variance = arrays[:5]
    return evaluate("BatchNormalization", attributes, [x, scale, bias, -mean, variance])


def _scatter(node: Node, attributes: Any, arrays: list[Any]) -> list[Any]:
    """Border constants count with their usual size at least: so far their match is accepted."""
    data, indices, updates = arrays
    widened = np.maximum(updates, np.asarray(usual_size(updates), updates.dtype))
    return evaluate("ScatterND", attributes, [data, indices, widened])


_MAGNITUDE: dict[str, Callable[[Node, Any, list[Any]], list[Any]]] = {
    "Sub": _add,
    "Neg": lambda node, attributes, arrays: [arrays[0]],
    "BatchNormalization": _batch_normalization,
    "Pad": _positive_pad,
    "ScatterND": _scatter,
}


def run_replacement(
    replacement: Replacement, inputs: Mapping[str, Any], arithmetic: Arithmetic
) -> Any:
    """The root tensor by the new nodes; weights are unrounded where ``arithmetic`` is double."""
    values: dict[str, Any] = {**inputs, **replacement.integers}
    for name, array in replacement.arrays.items():
        values[name] = _round(array, arithmetic)
    for node in replacement.nodes:
        arrays = [values[name] for name in node.inputs]
        output = evaluate(node.op_type, node.attributes, arrays)[0]
        values[node.output] = _stored(output, arithmetic)
    return values[replacement.root]


def _sizes(replacement: Replacement, view: View) -> Iterator[Sizes]:
    """The shapes of the region's free sources that prove it: see the module's text.

    Sources that the region itself computes from others follow from those.
    """
    region = replacement.region
    assert region.cover is not None
    form = region.cover.form
    inner = {step.tensor for step in region.interior}
    sources = _free_sources(replacement, view)
    fixed = any(step.lifted.fixed for step in region.interior)
    follows = len(inner.intersection(region.sources)) > 0 or sources.keys() != form.sources.keys()
    least = [_least(form, axis) for axis in range(form.rank)]
    shapes: dict[str, list[list[int]]] = {name: [] for name in sources}
    for axis in range(form.rank):
        strides = {term.kernel.geometry.axes[axis].stride for term in form.terms}
        step = max(strides)
        known = [s.lengths[axis] for s in sources.values() if s.lengths[axis] is not None]
        room = [(_int(size) - least[axis]) // step for size in known]
        movable = bool(room) and len(strides) == 1 and not fixed and not follows
        cut = max(min(room), 0) if movable else 0
        for name, source in sources.items():
            size = source.lengths[axis]
            if size is not None:
                shapes[name].append([size - step * cut])
            else:
                shapes[name].append([least[axis] + residue for residue in range(step)])
    batches = {n: ((view.shape(n) or (1,))[0] or 1) if fixed or follows else 1 for n in sources}
    rounds = max((len(options) for axes in shapes.values() for options in axes), default=1)
    for turn in range(rounds):
        yield {
            name: (batches[name], sources[name].channels, *(o[turn % len(o)] for o in axes))
            for name, axes in shapes.items()
        }
    if any(None in source.lengths for source in sources.values()):
        for size in range(1, min(max(least, default=1), 12)):
            yield {
                name: (batches[name], s.channels, *(size if n is None else n for n in s.lengths))
                for name, s in sources.items()
            }


def _free_sources(replacement: Replacement, view: View) -> dict[str, Source]:
    """The tensors a region starts from and does not compute, with what is known of them."""
    region = replacement.region
    assert region.cover is not None
    named = region.cover.form.sources
    inner = {step.tensor for step in region.interior}
    found: dict[str, Source] = {}
    for name in region.sources:
        shape = view.shape(name)
        if name in inner:
            continue
        if name in named:
            found[name] = named[name]
        elif shape is not None and len(shape) >= 2 and shape[1] is not None:
            found[name] = Source(name, shape[1], shape[2:])
    return found


def _least(form: Form, axis: int) -> int:
    """The least length at which every border is seen with an interior between them."""
    needed = 1
    for term in form.terms:
        window = term.kernel.geometry.axes[axis]
        pads = sum(abs(amount) for amount in window.pads)
        needed = max(needed, pads + 2 * (window.extent - 1) + 2 * window.stride + 1)
    return needed


def _int(size: int | None) -> int:
    assert size is not None
    return size
