"""What is asked of every committed export: the plan said what was done, and nothing is left."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

import onnxfuse


def assert_settled(original: Path, fused: ModelProto, report: onnxfuse.Report) -> None:
    """The plan of the original agrees with its report, and a second run changes no byte."""
    planned = onnxfuse.plan(original)
    assert [(r.root, r.nodes, r.became, r.before, r.after) for r in planned.regions] == [
        (r.root, r.nodes, r.became, r.before, r.after) for r in report.regions
    ]
    assert planned.refusals == report.refusals
    for count in ("nodes", "conv", "batch_normalization", "macs"):
        assert getattr(planned.after, count) == getattr(report.after, count)
    again, second = onnxfuse.fuse(fused, verify=False)
    assert not second.changed
    assert again.SerializeToString() == fused.SerializeToString()
