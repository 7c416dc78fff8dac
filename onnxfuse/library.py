"""What Python programs call: fuse, plan and compare, with plain arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from onnxfuse.errors import InputError, OnnxfuseError
from onnxfuse.records import Equivalence, Report
from onnxfuse.version import POLICIES
from onnxfuse.watch import Watch

if TYPE_CHECKING:
    from concurrent.futures import Executor


def fuse(
    model: Any,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    verify: bool = True,
    approximate_borders: bool = False,
    keep_post_bn: bool = False,
    policy: str = "default",
    freeze_initializers: bool = False,
    assume_inference: bool = False,
    input_data: Mapping[str, Any] | str | PathLike[str] | None = None,
    seed: int | None = None,
    rtol: float | Mapping[str, float] | None = None,
    atol: float | Mapping[str, float] | None = None,
    save_repro: str | PathLike[str] | None = None,
) -> tuple[Any, Report]:
    """Fuse every linear region that can be fused exactly and more cheaply.

    ``model`` is a path, an ``onnx.ModelProto`` or a ``gs.Graph``, and is never changed. Returns
    the fused model (a ``gs.Graph`` for a ``gs.Graph``, else a ``ModelProto``) and the report.
    ``only`` and ``without`` are globs over node names; ``input_shapes`` gives the sizes of
    dynamic inputs for counting and for the whole-model run, which ``verify=False`` leaves out.
    The proofs of the regions always run. ``approximate_borders`` also takes merges that equal the
    original in the interior alone; the report says how far the border is off, and the model's
    metadata that it is approximate. ``keep_post_bn`` leaves each BatchNormalization that nothing
    linear reads, for quantisation recipes that calibrate it. The ``policy`` "latency" lets MACs and
    parameters of depthwise convolutions grow by half where the estimated time falls; by default
    nothing grows.

    Two switches change what the model means, and the report says what they did:
    ``freeze_initializers`` takes weights out of the graph's inputs, and ``assume_inference`` takes
    BatchNormalization and Dropout from training to inference mode.

    The whole model runs on seeded inputs, or on ``input_data`` alone: arrays by input name, or an
    .npz or .npy file. ``rtol`` and ``atol``, for all outputs or by output name, replace the bound
    that is derived for them: ``|a - b| <= atol + rtol·|a|`` for each element; they never loosen
    the proofs of the regions. Where a proof fails, the guilty region's nodes and inputs are written
    to the directory ``save_repro``, and the error says so.

    Raises `InputError` where the model cannot be used and `ProofError` where a fusion could not
    be proved.
    """
    from onnxfuse import fusing
    from onnxfuse.model import held

    source, back = _accepted(model)
    options = _options(
        only,
        without,
        input_shapes,
        verify=verify,
        approximate_borders=approximate_borders,
        keep_post_bn=keep_post_bn,
        policy=policy,
        freeze_initializers=freeze_initializers,
        assume_inference=assume_inference,
        input_data=_arrays(input_data),
        seed=_checked_seed(seed),
        rtol=_by_output(rtol),
        atol=_by_output(atol),
        save_repro=None if save_repro is None else fspath(save_repro),
    )
    result = fusing.fuse_model(source, options, Watch())
    return back(held.inlined(result.model)), result.report


def fuse_files(
    files: Iterable[tuple[str | PathLike[str], str | PathLike[str]]],
    *,
    executor: Executor | None = None,
    jobs: int = 0,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    verify: bool = True,
    approximate_borders: bool = False,
    keep_post_bn: bool = False,
    policy: str = "default",
    freeze_initializers: bool = False,
    assume_inference: bool = False,
    seed: int | None = None,
) -> list[Report | OnnxfuseError]:
    """Fuse many files at once: ``files`` are pairs of a path to read and one to write.

    Gives for each pair, in the order given, its report or the error that stopped it; one never
    stops the others. Models are read and written by the workers, so that only paths and reports
    travel, and workers on other machines must see the same files.

    Without an ``executor`` that is ``jobs`` processes, 0 being one for each processor; a script
    must call this below ``if __name__ == "__main__":``. Any ``concurrent.futures.Executor`` will
    do: threads, or a cluster's. The rest is as in `fuse`. A model that ends its process is a
    `WorkerError`; only with processes of our own is it certain that no other model suffers.

    Raises `InputError` where a pair writes what another reads or writes.
    """
    from onnxfuse import many

    if executor is not None and jobs:
        raise InputError("jobs is the number of our own processes; an executor has its own number")
    if not isinstance(jobs, int) or jobs < 0:
        raise InputError(f"jobs {jobs!r} is not a whole number from 0 on")
    options = _options(
        only,
        without,
        input_shapes,
        verify=verify,
        approximate_borders=approximate_borders,
        keep_post_bn=keep_post_bn,
        policy=policy,
        freeze_initializers=freeze_initializers,
        assume_inference=assume_inference,
        seed=_checked_seed(seed),
    )
    return many.fuse_files(files, options, executor, jobs)


def plan(
    model: Any,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    approximate_borders: bool = False,
    keep_post_bn: bool = False,
    policy: str = "default",
    freeze_initializers: bool = False,
    assume_inference: bool = False,
) -> Report:
    """What `fuse` would do to a model, and why not more; no kernel is read.

    One thing only shows when weights are computed: a fused weight that is not finite in the
    model's type. `fuse` leaves such a region alone; `plan` cannot know.
    """
    from onnxfuse import fusing

    source, _ = _accepted(model)
    options = _options(
        only,
        without,
        input_shapes,
        approximate_borders=approximate_borders,
        keep_post_bn=keep_post_bn,
        policy=policy,
        freeze_initializers=freeze_initializers,
        assume_inference=assume_inference,
    )
    return fusing.plan_model(source, options)


def compare(
    a: Any,
    b: Any,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    rtol: float | Mapping[str, float] | None = None,
    atol: float | Mapping[str, float] | None = None,
    input_data: Mapping[str, Any] | str | PathLike[str] | None = None,
    seed: int | None = None,
) -> Equivalence:
    """Whether two models with the same inputs compute the same, as onnxruntime runs them.

    What may differ is measured on ``a``: it runs again with rounding-sized noise, and every slice
    of ``b``'s outputs may differ by 6 times the response. ``rtol`` and ``atol``, for all outputs
    or by output name, bound each element instead: ``|a − b| <= atol + rtol·|a|``. Both run on
    seeded inputs, or on ``input_data`` alone: arrays by input name, or an .npz or .npy file.

    Raises `InputError` where a model cannot be used or the inputs differ.
    """
    from onnxfuse import fusing
    from onnxfuse.verify import equivalence

    left, right = (fusing.read(_accepted(model)[0]) for model in (a, b))
    bounds = [_by_output(bound) for bound in (rtol, atol)]
    tolerance = equivalence.Tolerance(*bounds) if any(bounds) else None
    shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    if input_data is not None and seed is not None:
        raise InputError("a seed draws inputs and input_data gives them; leave one out")
    data, drawn = _arrays(input_data), _checked_seed(seed)
    return equivalence.compare(left, right, shapes, tolerance, data=data, seed=drawn)


def _by_output(bound: float | Mapping[str, float] | None) -> Mapping[str, float]:
    """A bound by output name, "" being all outputs."""
    if bound is None:
        return {}
    return bound if isinstance(bound, Mapping) else {"": bound}


def _arrays(data: Mapping[str, Any] | str | PathLike[str] | None) -> Mapping[str, Any] | None:
    """Inputs by name, read from a file where that is named."""
    if data is None or isinstance(data, Mapping):
        return data
    from onnxfuse.verify import given

    return given.read(data)


def _checked_seed(seed: int | None) -> int | None:
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        raise InputError(f"seed {seed!r} is not a whole number from 0 on")
    return seed


def _options(
    only: Sequence[str],
    without: Sequence[str],
    input_shapes: Mapping[str, Sequence[int]] | None,
    **more: Any,
) -> Any:
    from onnxfuse.options import Options

    shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    if more["policy"] not in POLICIES:
        raise InputError(f"policy is one of {', '.join(POLICIES)}, not {more['policy']!r}")
    return Options(tuple(only), tuple(without), shapes, **more)


def _accepted(model: Any) -> tuple[Any, Any]:
    """The model in a form the pipeline reads, and how to give it back."""
    if type(model).__module__.startswith("onnx_graphsurgeon"):
        from onnxfuse.model import build

        if build.is_graph(model):
            return build.to_model(model), build.to_graph
    return model, lambda fused: fused
