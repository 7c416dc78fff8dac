"""Random models, fused and checked: `tools/fuzz.py` does the same to more and larger ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import pytest
from checking import examine
from comparing import Rejected, differing, feeds_of, runner
from onnx import ModelProto, numpy_helper
from random_graphs import Sample, make

GRAPHS = 1_000
CHUNK = 100
NODES = 36
"""The largest models here; to see a failing one, `tools/fuzz.py --blocks 1 --only-seed N`."""


def small(first: int) -> Iterator[tuple[int, Sample]]:
    """Seeds from ``first`` on whose models are small, with the models."""
    for seed in count(first):
        sample = make(seed, blocks=1)
        if len(sample.model.graph.node) <= NODES:
            yield seed, sample


@pytest.mark.parametrize("chunk", range(GRAPHS // CHUNK))
def test_what_must_hold_of_every_fused_model(chunk: int) -> None:
    outcomes = [
        examine(sample.model, sample.nominal, seed, full=False)
        for seed, sample in islice(small(10 * CHUNK * chunk), CHUNK)
    ]
    failures = [
        f"seed {outcome.seed}: [{finding.kind}] {finding.text}"
        for outcome in outcomes
        for finding in outcome.findings
    ]
    assert not failures, "\n".join(failures)
    fused = sum(outcome.report is not None and outcome.report.changed for outcome in outcomes)
    assert fused >= CHUNK / 3, "too few models fuse for this test to show anything"
    assert sum(outcome.runs for outcome in outcomes) >= CHUNK / 3


def test_a_seed_always_makes_the_same_model() -> None:
    first, second = (make(7).model.SerializeToString() for _ in range(2))
    assert first == second
    assert make(8).model.SerializeToString() != first


def test_a_wrong_weight_is_found() -> None:
    noticed = tried = 0
    for seed, sample in islice(small(0), 40):
        changed = _spoiled(sample.model)
        try:
            feeds = next(feeds_of(sample.model, sample.nominal, seed))
            expected = runner(sample.model)(feeds)
        except Rejected:
            continue
        if changed is None:
            continue
        tried += 1
        noticed += differing(sample.model, feeds, expected, runner(changed)(feeds)) is not None
    assert tried > 20
    assert noticed >= 0.8 * tried


def _spoiled(model: ModelProto) -> ModelProto | None:
    """The model with every stored Conv kernel ten per cent too large."""
    copy = ModelProto()
    copy.CopyFrom(model)
    kernels = {node.input[1] for node in copy.graph.node if node.op_type == "Conv"}
    stored = [tensor for tensor in copy.graph.initializer if tensor.name in kernels]
    for tensor in stored:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((array * 1.1).astype(array.dtype), tensor.name))
    return copy if stored else None
