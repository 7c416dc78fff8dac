"""onnxfuse: the branches of exported networks, merged into single convolutions.

    >>> import onnxfuse
    >>> model, report = onnxfuse.fuse("in.onnx")        # doctest: +SKIP
    >>> print(onnxfuse.plan("in.onnx"))                 # doctest: +SKIP

Importing this package is cheap; onnx is imported when a model is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxfuse.errors import InputError, OnnxfuseError, ProofError
from onnxfuse.records import Equivalence, Report
from onnxfuse.version import __version__

__all__ = [
    "Equivalence",
    "InputError",
    "OnnxfuseError",
    "ProofError",
    "Report",
    "__version__",
    "compare",
    "fuse",
    "plan",
]


def fuse(
    model: Any,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    verify: bool = True,
    approximate_borders: bool = False,
    keep_post_bn: bool = False,
) -> tuple[Any, Report]:
    """Fuse every linear region that can be fused exactly and more cheaply.

    ``model`` is a path, an ``onnx.ModelProto`` or a ``gs.Graph``, and is never changed. Returns
    the fused model (a ``gs.Graph`` for a ``gs.Graph``, else a ``ModelProto``) and the report.
    ``only`` and ``without`` are globs over node names; ``input_shapes`` gives the sizes of
    dynamic inputs for counting and for the whole-model run, which ``verify=False`` leaves out.
    The proofs of the regions always run. ``approximate_borders`` also takes merges that equal the
    original in the interior alone; the report says how far the border is off, and the model's
    metadata that it is approximate. ``keep_post_bn`` leaves each BatchNormalization that nothing
    linear reads, for quantisation recipes that calibrate it.

    Raises `InputError` where the model cannot be used and `ProofError` where a fusion could not
    be proved.
    """
    from onnxfuse import fusing

    source, back = _accepted(model)
    options = _options(only, without, input_shapes, verify, approximate_borders, keep_post_bn)
    result = fusing.fuse_model(source, options)
    return back(result.model), result.report


def plan(
    model: Any,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    approximate_borders: bool = False,
    keep_post_bn: bool = False,
) -> Report:
    """What `fuse` would do to a model, and why not more; no kernel is read.

    One thing only shows when weights are computed: a fused weight that is not finite in the
    model's type. `fuse` leaves such a region alone; `plan` cannot know.
    """
    from onnxfuse import fusing

    source, _ = _accepted(model)
    return fusing.plan_model(
        source, _options(only, without, input_shapes, True, approximate_borders, keep_post_bn)
    )


def compare(
    a: Any,
    b: Any,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    rtol: float | Mapping[str, float] | None = None,
    atol: float | Mapping[str, float] | None = None,
) -> Equivalence:
    """Whether two models with the same inputs compute the same, as onnxruntime runs them.

    What may differ is measured on ``a``: it runs again with rounding-sized noise, and every slice
    of ``b``'s outputs may differ by 6 times the response. ``rtol`` and ``atol``, for all outputs
    or by output name, bound each element instead: ``|a − b| <= atol + rtol·|a|``.

    Raises `InputError` where a model cannot be used or the inputs differ.
    """
    from onnxfuse import fusing
    from onnxfuse.verify import equivalence

    left, right = (fusing.read(_accepted(model)[0]) for model in (a, b))
    bounds = [_by_output(bound) for bound in (rtol, atol)]
    tolerance = equivalence.Tolerance(*bounds) if any(bounds) else None
    shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    return equivalence.compare(left, right, shapes, tolerance)


def _by_output(bound: float | Mapping[str, float] | None) -> Mapping[str, float]:
    """A bound by output name, "" being all outputs."""
    if bound is None:
        return {}
    return bound if isinstance(bound, Mapping) else {"": bound}


def _options(
    only: Sequence[str],
    without: Sequence[str],
    input_shapes: Mapping[str, Sequence[int]] | None,
    verify: bool,
    approximate_borders: bool,
    keep_post_bn: bool,
) -> Any:
    from onnxfuse.options import Options

    shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    return Options(tuple(only), tuple(without), shapes, verify, approximate_borders, keep_post_bn)


def _accepted(model: Any) -> tuple[Any, Any]:
    """The model in a form the pipeline reads, and how to give it back."""
    if type(model).__module__.startswith("onnx_graphsurgeon"):
        from onnxfuse.model import build

        if build.is_graph(model):
            return build.to_model(model), build.to_graph
    return model, lambda fused: fused
