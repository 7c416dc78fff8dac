"""What the run of the whole model is given: both models, and where which regions stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from onnxfuse.model import io
from onnxfuse.model.rooted import rooted
from onnxfuse.model.saving import Output
from onnxfuse.model.shapes import Shape
from onnxfuse.options import Options
from onnxfuse.records import RegionReport, Verification
from onnxfuse.rounds import Rounds
from onnxfuse.scopes import Work
from onnxfuse.watch import Watch

WATCHED = 2**24
"""Elements of regions' results that are held in memory, some times over, to be compared."""


def verify_whole(
    loaded: io.Loaded,
    done: Work,
    proved: Sequence[Sequence[RegionReport]],
    options: Options,
    watch: Watch,
    output: Output | None,
) -> Verification:
    """Run both models; raises `ProofError` where they differ by more than rounding."""
    from onnxfuse.verify.nested import Body, fractions
    from onnxfuse.verify.subject import Subject
    from onnxfuse.verify.whole import verify

    graph, found, _ = done.main.original
    regions = _places(done.main, proved[0])
    bodies = [
        Body(key[0], key[1], _places(rounds, records), rounds.original[1].types, rounds.where)
        for (key, rounds), records in zip(done.inner.items(), proved[1:], strict=True)
        if records
    ]
    floats = fractions(rounds.original[1].types for rounds in done.all)
    places = {} if output is None else {output.data.location: output.data.path}
    approximate = any(record.approximate for records in proved for record in records)
    with rooted([(loaded.model, {}), (done.model, places)], loaded.base) as (models, base):
        original, fused = models
        subject = Subject(
            original,
            fused,
            graph,
            found.types,
            regions,
            base,
            approximate,
            bodies,
            floats,
            done.before.macs,
            _watched(regions, found.nominal),
        )
        return verify(subject, options, lambda text: watch.show(f"running {text}", 0, 0))


def _watched(regions: Iterable[str], shapes: Mapping[str, Shape]) -> list[str]:
    """The results of regions to look at in the run of the whole model, the small ones first."""
    sizes = {
        name: prod(size or 1 for size in shape)
        for name in regions
        if (shape := shapes.get(name)) is not None
    }
    found, room = [], WATCHED
    for name in sorted(sizes, key=lambda name: sizes[name]):
        room -= sizes[name]
        if room >= 0:
            found.append(name)
    return found


def _places(
    rounds: Rounds, records: Sequence[RegionReport]
) -> dict[str, tuple[tuple[str, ...], float, float]]:
    """The regions of one graph at its own tensors, with what they read and their error."""
    graph, origin = rounds.original[0], rounds.origin
    present = graph.producer.keys() | graph.inputs_set
    measured = {
        r.root: (max(r.error.rms_original, r.error.rms_fused), r.error.scale)
        for r in records
        if r.error is not None
    }
    regions = {
        origin.get(r.root, r.root): (
            tuple(present & {origin.get(name, name) for name in r.region.sources}),
            *measured[r.root],
        )
        for one in rounds.passes
        for r in one.replacements
        if origin.get(r.root, r.root) in present
    }
    for name in rounds.reordered:
        if origin.get(name, name) in present:
            regions.setdefault(origin.get(name, name), ((), 0.0, 0.0))
    return regions
