"""The benchmark: what it computes from samples, the models it makes, and the page it writes."""

from __future__ import annotations

import itertools
from pathlib import Path

import bench
import bench_big
import bench_latency
import bench_measure as m
import bench_models
import bench_planning
import numpy as np
import onnx
import pytest
from bench_measure import Ran, Ratio, Section, Target
from onnx import helper

import onnxfuse


def test_runs_are_taken_in_turn_and_each_is_first_as_often() -> None:
    seen: list[str] = []
    ticks = itertools.count()
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    samples = m.in_turn(calls, 3, lambda: float(next(ticks)))  # each call takes a second
    assert seen[:6] == ["a", "a", "b", "b", "c", "c"]  # one to warm up, one to measure its length
    assert seen[6:] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_sample_is_the_least_of_the_copies_in_a_round() -> None:
    took = {"a": [3.0, 1.0, 2.0], "b": [4.0, 6.0, 5.0]}  # seconds of a call of each copy
    now, seen = [0.0], []

    def call(name: str, n: int) -> None:
        seen.append((name, n))
        now[0] += took[name][n]

    copies = {name: [lambda n=n, name=name: call(name, n) for n in range(3)] for name in took}
    samples = m.least_in_turn(copies, 2, lambda: now[0])
    assert samples == {"a": [1.0, 1.0], "b": [4.0, 4.0]}
    once = [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert seen[12:18] == once  # after two calls of each to warm up and to measure its length
    assert sorted(seen[18:]) == sorted(once)


def test_a_ratio_is_that_of_neighbours() -> None:
    """The machine gets slower all the time, and the ratio does not mind."""
    found = m.of("x", [1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert found.values == (0.5, 0.5, 0.5)
    assert found.interval() == (0.5, 0.5)


def test_the_mean_is_geometric_and_its_interval_holds_it() -> None:
    generator = np.random.default_rng(0)
    ratios = [
        Ratio(str(n), tuple(size * np.exp(0.01 * generator.standard_normal(25))))
        for n, size in enumerate((0.5, 1.0, 2.0))
    ]
    middle, low, high = m.geometric(ratios)
    assert middle == pytest.approx(np.prod([one.median for one in ratios]) ** (1 / 3))
    assert low < middle < high
    assert 0.45 < low < 0.9  # another choice of three such systems
    assert 1.1 < high < 2.1
    alike = [Ratio("a", (1.01,) * 9), Ratio("b", (1.01,) * 9)]
    assert m.geometric(alike) == pytest.approx((1.01, 1.01, 1.01))


@pytest.mark.parametrize("shape", bench_planning.SHAPES)
def test_the_graphs_to_plan_are_valid_and_fuse(shape: str) -> None:
    model = bench_planning.model(shape, 1002)
    if shape != "unsorted":  # the format wants nodes in order; files do not always have them so
        onnx.checker.check_model(model)
    assert abs(len(model.graph.node) - 1002) <= 6
    assert onnxfuse.plan(model).regions


@pytest.mark.parametrize(("kind", "operator"), [("linear", "Gemm"), ("conv", "Conv")])
def test_the_big_models_are_valid_and_every_layer_fuses(
    tmp_path: Path, kind: str, operator: str
) -> None:
    place = tmp_path / "big.onnx"
    layers = bench_big.make(place, kind, 50_000, channels=32)
    assert layers > 1
    onnx.checker.check_model(str(place))
    assert (tmp_path / "weights.data").stat().st_size >= 50_000
    fused, report = onnxfuse.fuse(str(place))
    assert len(report.regions) == layers
    assert [node.op_type for node in fused.graph.node] == [operator, "Relu"] * layers
    assert len(onnxfuse.plan(str(place), only=["layer0/*"]).regions) == 1


def test_a_copy_runs_just_before_each_timed_run_and_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = tmp_path / "in", tmp_path / "out"
    home.mkdir()
    model = home / "big.onnx"
    model.touch()
    seen = []

    def timed(command: list[str]) -> Ran:
        seen.append(command[0])
        assert sorted(home.iterdir()) == [model]
        assert not list(away.iterdir())
        for folder in (home, away):  # as `cp` and onnxfuse do
            (folder / "left.over").touch()
        return Ran(float(len(seen)), 0.0)

    monkeypatch.setattr(bench_big, "timed", timed)
    monkeypatch.setattr(bench_big, "REST", 0.0)
    found = [bench_big.Row(name, "verified", [name]) for name in "ab"]
    bench_big.measure(found, model, away, 2)
    assert seen == ["cp", "cp", "a", "cp", "b", "cp", "b", "cp", "a"]
    assert [row.copies for row in found] == [[2.0, 8.0], [4.0, 6.0]]
    assert [[one.wall for one in row.ran] for row in found] == [[3.0, 9.0], [5.0, 7.0]]


def _rows(fused: str, seconds: list[float], mebibytes: int, failed: str = "") -> bench_big.Row:
    ran = [Ran(one, 1.0, failed, mebibytes << 20) for one in seconds]
    return bench_big.Row(fused, "verified", [], [1.0, 2.0, 6.0], ran)


def test_the_time_of_a_big_model_is_over_that_of_the_copy_before_it() -> None:
    row = _rows(bench_big.ONE, [1.5, 4.0, 6.0], 100)
    assert row.ratio().values == (1.5, 2.0, 1.0)
    assert row.cells()[2:] == ("2.00 s", "4.00 s (1.00)", "1.50× [1.00, 2.00]", "100 MiB")


@pytest.mark.parametrize(
    ("fused", "seconds", "mebibytes", "failed", "time", "memory"),
    [
        (bench_big.ONE, [1.4, 2.8, 9.6], 250, "", "met, not surely", "met"),
        (bench_big.ONE, [1.6, 3.2, 9.6], 251, "", "**missed**", "**missed**"),
        (bench_big.EVERY, [2.9, 5.8, 17.4], 600, "", "met", "met"),
        (bench_big.EVERY, [3.1, 5.0, 19.0], 601, "", "**missed**, not surely", "**missed**"),
        (bench_big.EVERY, [1.0, 2.0, 6.0], 1, "exit 3: no", "**missed**", "**missed**"),
        (bench_big.EVERY, [1.0, 2.0, 6.0], 0, "", "met", "not measured"),  # no /proc
    ],
)
def test_the_targets_of_a_big_model(
    fused: str, seconds: list[float], mebibytes: int, failed: str, time: str, memory: str
) -> None:
    found = bench_big.targets([_rows(fused, seconds, mebibytes, failed)])
    assert len(found) == 6
    verdicts = [one.verdict for one in found if f"{fused} fused" in one.what]
    assert verdicts == ["not measured", time, memory]
    others = [one.verdict for one in found if f"{fused} fused" not in one.what]
    assert others == ["not measured"] * 3


def test_the_memory_of_a_big_model_is_the_peak_of_all_runs() -> None:
    rows = [_rows(bench_big.ONE, [1.0, 2.0, 6.0], size) for size in (100, 200)]
    rows[0].verified = "--no-verify"
    *_, memory = bench_big.targets(rows)[:3]
    assert memory.measured == "200 MiB"


def test_a_big_model_that_finds_no_room_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = bench_big.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(bench_big.shutil, "disk_usage", lambda _: usage._replace(free=1 << 30))
    section = bench_big.section(tmp_path, quick=True)
    assert section.tables == []
    assert "10 GiB of free disk are needed" in section.notes[0]
    assert {one.verdict for one in section.targets} == {"not measured"}
    assert list(tmp_path.iterdir()) == []


def _conv(kernel: tuple[int, ...], **attributes: object) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.zeros(kernel, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)], "g",
        [value("x", 1, [1, 8, 9, 9])], [value("y", 1, None)], [weight],
    )  # fmt: skip
    return helper.make_model(graph)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (_conv((8, 8, 3, 3), pads=[1, 1, 1, 1]), ""),
        (_conv((8, 8, 3, 3)), "+1 Conv 8×8×3×3 pads 1,1,1,1"),
        (_conv((8, 4, 3, 3), pads=[1, 1, 1, 1], group=2), "groups 2"),
        (_conv((8, 8, 3, 3), pads=[1, 1, 1, 1], dilations=[2, 2]), "dilations 2,2"),
        (_conv((8, 8, 5, 5), pads=[1, 1, 1, 1]), "−1 Conv 8×8×5×5"),
        (_conv((8, 8, 3, 3), pads=[1, 1, 1, 1], strides=[1, 1]), ""),
    ],
)
def test_operators_are_the_same_only_in_every_respect(other: onnx.ModelProto, says: str) -> None:
    mine = bench_models.operators(_conv((8, 8, 3, 3), pads=[1, 1, 1, 1]))
    found = bench_models.difference(mine, bench_models.operators(other))
    assert says in found
    assert bool(says) == bool(found)


def _fused(**attributes: object) -> onnx.ModelProto:
    model = _conv((8, 8, 3, 3), pads=[1, 1, 1, 1], **attributes)
    model.graph.node[0].op_type, model.graph.node[0].domain = "FusedConv", "com.microsoft"
    return model


def test_operators_of_onnxruntime_are_told_apart() -> None:
    relu = bench_models.operators(_fused(activation="Relu"))
    assert list(relu) == ["com.microsoft FusedConv 8×8×3×3 pads 1,1,1,1 activation Relu"]
    clip = [
        bench_models.operators(_fused(activation="Clip", activation_params=[0.0, high]))
        for high in (6.0, 1.0)
    ]
    assert clip[0] != clip[1]
    assert relu not in clip
    assert relu != bench_models.operators(_fused())
    model = _fused(activation="Relu")
    model.graph.node[0].input.extend(["", "x"])
    assert relu != bench_models.operators(model)
    model = _fused(activation="Relu")
    model.graph.node[0].domain = "com.microsoft.nchwc"
    assert relu != bench_models.operators(model)


def test_what_is_run_may_be_the_same_where_the_files_are_not(tmp_path: Path) -> None:
    plain, fused, bare = (tmp_path / f"{name}.onnx" for name in ("plain", "fused", "bare"))
    model = _conv((8, 8, 3, 3), pads=[1, 1, 1, 1])
    model.ir_version = 8
    model.opset_import[0].version = 17
    onnx.save(model, bare)
    model.graph.node[0].output[0] = "t"
    model.graph.node.append(helper.make_node("Relu", ["t"], ["y"]))
    onnx.save(model, plain)
    assert not bench_models.rewritten("onnxruntime", plain, fused, 60).failed
    mine, theirs = (bench_models.operators(onnx.load(path)) for path in (plain, fused))
    assert mine != theirs
    assert bench_models.ran(plain, 1) == bench_models.ran(fused, 1)
    assert bench_models.ran(plain, 1) != bench_models.ran(bare, 1)


def _beside(name: str, ratio: float, runs: str) -> bench_latency.System:
    one = bench_latency.System(name, {})
    for threads in bench_latency.THREADS:
        one.peers[threads] = Ratio(name, (ratio,) * 5, "onnxsim")
        one.runs[threads] = runs
    return one


def test_a_slower_output_counts_only_where_other_operators_run() -> None:
    noise = _beside("noise", 1.02, "")
    faster = _beside("faster", 0.3, "−1 Add")
    slower = _beside("slower", 1.01, "+1 Conv")
    section = bench_latency.peers_section([noise, faster])
    targets = [one for one in section.targets if "none above 1" in one.what]
    assert [one.verdict for one in targets] == ["met", "met"]
    assert targets[0].measured == "0 of 1, 1 run the same; largest 0.300 (faster)"
    ((_, rows),) = section.tables
    assert rows[0][2] == "1.020 [1.02, 1.02] (onnxsim, runs the same)"
    assert rows[1][2] == "0.300 [0.30, 0.30] (onnxsim)"
    section = bench_latency.peers_section([noise, faster, slower])
    targets = [one for one in section.targets if "none above 1" in one.what]
    assert [one.verdict for one in targets] == ["**missed**", "**missed**"]
    assert targets[0].measured == "1 of 2, 1 run the same; largest 1.010 (slower)"
    assert "+1 Conv" in section.notes[0]
    section = bench_latency.peers_section([noise])
    targets = [one for one in section.targets if "none above 1" in one.what]
    assert targets[0].measured == "0 of 0, 1 run the same"


@pytest.mark.parametrize(
    ("size", "apart", "says"),
    [(0.9, 1.0, "met"), (1.2, 1.0, "**missed**"), (0.99, 1.3, "met, not surely"),
     (1.06, 1.3, "**missed**, not surely")],
)  # fmt: skip
def test_what_another_choice_would_decide_otherwise_is_not_sure(
    size: float, apart: float, says: str
) -> None:
    ratios = [Ratio(str(n), (size * apart**n,) * 9) for n in (-1, 0, 1)]
    assert m.mean("x", 1.02, ratios).verdict == says


def test_the_page_shows_what_was_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "machine", lambda: "Machine: one")
    section = Section(
        "Part",
        "Words.",
        [(("a", "b"), [("1 | 2", "3")])],
        [Target("fast", "≤ 1", "2", False), Target("small", "≤ 1", "0.5", True)],
        ["a note"],
    )
    text = bench.page({"part": bench.Part("yesterday, in 1 min", [section])})
    assert "| fast | ≤ 1 | 2 | **missed** |" in text
    assert "| small | ≤ 1 | 0.5 | met |" in text
    assert "| 1 \\| 2 | 3 |" in text
    assert "- a note" in text
    assert "Measured yesterday, in 1 min." in text
    assert "not measured" in text
