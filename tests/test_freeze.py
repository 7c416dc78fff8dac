"""The switches that change what a model means: overridable weights, and training modes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxfuse
from onnxfuse.cli import main

FREEZE, INFERENCE = "--freeze-initializers", "--assume-inference"
RANDOM = np.random.default_rng(3)


def f32(*shape: int) -> np.ndarray:
    return RANDOM.random(shape, np.float32) + np.float32(0.5)


def value(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    inputs: tuple[str, ...] = (),
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
    ir: int = 8,
) -> onnx.ModelProto:
    """A model from x (1×4×6×6); ``inputs`` are the weights that are also inputs."""
    given = [value(name, *weights[name].shape) for name in inputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", 1, 4, 6, 6), *given],
        [value(name, *((4,) if name == "mean" else (1, 4, 6, 6))) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = ir
    return made


def branches(ir: int = 8) -> onnx.ModelProto:
    """Two convolutions that are summed, their kernels being inputs too."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="left", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "v"], ["b"], name="right"),
        helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    weights = {"w": f32(4, 4, 3, 3), "v": f32(4, 4, 1, 1)}
    return model(nodes, weights, inputs=("w", "v"), ir=ir)


BN = ("g", "b", "m", "s")
STATISTICS = {name: f32(4) for name in BN}


def norm(
    *extra: str, training: bool = True, outputs: tuple[str, ...] = ("y",), opset: int = 17
) -> onnx.ModelProto:
    """A convolution with a BatchNormalization behind it that gives ``extra`` outputs."""
    more = {"training_mode": 1} if training and opset >= 14 else {}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("BatchNormalization", ["a", *BN], ["y", *extra], name="bn", **more),
    ]
    return model(nodes, {"w": f32(4, 4, 1, 1), **STATISTICS}, outputs=outputs, opset=opset)


def dropout(*, literal: bool = False, constant: bool = True) -> onnx.ModelProto:
    """A Dropout in training mode between two convolutions."""
    mode = numpy_helper.from_array(np.array(True), "mode")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Dropout", ["a", "ratio", "mode"], ["d"], name="drop"),
        helper.make_node("Conv", ["d", "v"], ["y"], name="second"),
    ]
    if literal:
        nodes.insert(0, helper.make_node("Constant", [], ["mode"], name="flag", value=mode))
    weights = {"w": f32(4, 4, 1, 1), "v": f32(4, 4, 1, 1), "ratio": np.array(0.5, np.float32)}
    made = model(nodes, weights)
    if not literal and constant:
        made.graph.initializer.append(mode)
    elif not literal:
        made.graph.input.append(value("mode", kind=TensorProto.BOOL))
    return made


def kinds(of: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in of.graph.node]


def told(of: onnx.ModelProto) -> str:
    """What the metadata says."""
    return next((entry.value for entry in of.metadata_props if entry.key == "onnxfuse"), "")


def save(of: onnx.ModelProto, place: Path, name: str = "in.onnx") -> str:
    (place / name).write_bytes(of.SerializeToString())
    return str(place / name)


class TestFreezing:
    def test_weights_are_taken_out_of_the_inputs(self) -> None:
        given = branches()
        data = given.SerializeToString()
        fused, report = onnxfuse.fuse(given, freeze_initializers=True)
        assert kinds(fused) == ["Conv"]
        assert [v.name for v in fused.graph.input] == ["x"]
        assert report.frozen == ("w", "v")
        assert "'w', 'v'" in report.notes[0]
        assert "initializers frozen: w, v" in told(fused)
        assert report.verification is not None
        assert report.verification.status == "passed"
        assert given.SerializeToString() == data

    def test_without_the_switch_they_stay_and_a_note_names_it(self) -> None:
        given = branches()
        fused, report = onnxfuse.fuse(given)
        assert len(fused.graph.input) == 3
        assert (report.frozen, report.overridable) == ((), 2)
        (note,) = report.notes
        assert "2 weights are also graph inputs" in note
        assert FREEZE in note

    def test_nothing_is_noted_where_nothing_is_refused_for_it(self) -> None:
        made = model([helper.make_node("Relu", ["x"], ["y"])], {"w": f32(1)}, inputs=("w",))
        assert onnxfuse.plan(made).notes == ()

    def test_what_is_frozen_is_written_even_where_nothing_fuses(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
        source = save(model(nodes, {"w": f32(4, 4, 1, 1)}, inputs=("w",)), tmp_path)
        out = tmp_path / "out.onnx"
        assert main([source, str(out), FREEZE]) == 0
        captured = capsys.readouterr()
        assert "but for what the switches changed" in captured.out
        assert captured.err.startswith("onnxfuse: note: --freeze-initializers took 1 weight out")
        assert captured.err.count("\n") == 1
        written = onnx.load(out)
        assert [v.name for v in written.graph.input] == ["x"]
        onnx.checker.check_model(written)
        again = tmp_path / "again.onnx"
        assert main([str(out), str(again), FREEZE]) == 0
        assert again.read_bytes() == out.read_bytes()
        assert "byte for byte" in capsys.readouterr().out

    def test_json_holds_every_name(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = save(branches(), tmp_path)
        assert main([source, str(tmp_path / "o.onnx"), FREEZE, "--format", "json"]) == 0
        held = json.loads(capsys.readouterr().out)
        assert held["frozen"] == ["w", "v"]
        assert held["changed"] is True
        assert held["notes"][0].startswith(FREEZE)

    def test_an_old_version_that_demands_them_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, out = save(branches(ir=3), tmp_path), tmp_path / "o.onnx"
        assert main([source, str(out), FREEZE]) == 2
        error = capsys.readouterr().err
        assert "IR version 3" in error
        assert "never raised" in error
        assert error.count("\n") == 1
        assert not out.exists()
        (note,) = onnxfuse.plan(branches(ir=3)).notes
        assert FREEZE not in note

    def test_only_the_main_graph_is_meant(self) -> None:
        inner = helper.make_graph(
            [helper.make_node("Add", ["x", "k"], ["t"])],
            "inner",
            [],
            [value("t", 1, 4, 6, 6)],
            [numpy_helper.from_array(f32(1), "k")],
        )
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
        made = model(nodes, {"c": np.array(True)}, inputs=())
        before = made.SerializeToString()
        fused, report = onnxfuse.fuse(made, freeze_initializers=True)
        assert report.frozen == ()
        assert fused.SerializeToString() == before


class TestInference:
    @pytest.mark.parametrize(
        ("given", "text"),
        [
            (norm(), "training_mode"),
            (norm("mean", "var"), "unused outputs"),
            (norm("mean", "var", "saved", "too", opset=9), "an old operator set"),
        ],
    )
    def test_batch_normalization_is_taken_by_its_running_statistics(
        self, given: onnx.ModelProto, text: str
    ) -> None:
        assert kinds(onnxfuse.fuse(given)[0]) == kinds(given), text
        fused, report = onnxfuse.fuse(given, assume_inference=True)
        assert kinds(fused) == ["Conv"]
        assert report.inference == ("bn",)
        assert "taken to inference mode: bn" in told(fused)
        assert report.verification is not None
        assert report.verification.status == "passed"
        assert any(INFERENCE in note for note in report.verification.notes)
        assert onnxfuse.plan(given, assume_inference=True).after.nodes == 1

    def test_what_does_not_fuse_is_in_inference_mode_too(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = norm("mean", "var")
        made.graph.node[0].op_type = "Relu"
        del made.graph.node[0].input[1:]
        made.graph.value_info.append(value("mean", 4))
        out = tmp_path / "o.onnx"
        assert main([save(made, tmp_path), str(out), INFERENCE]) == 0
        assert "1 node from training to inference mode: 'bn'" in capsys.readouterr().err
        written = onnx.load(out)
        onnx.checker.check_model(written, full_check=True)
        assert list(written.graph.node[1].output) == ["y"]
        assert not [a for a in written.graph.node[1].attribute if a.name == "training_mode"]
        assert not [v for v in written.graph.value_info if v.name == "mean"]

    def test_one_that_gives_out_its_statistics_stays(self) -> None:
        given = norm("mean", "var", outputs=("y", "mean"))
        fused, report = onnxfuse.fuse(given, assume_inference=True)
        assert fused.SerializeToString() == given.SerializeToString()
        assert report.inference == ()
        (note,) = report.notes
        assert "leaves 'bn' in training mode: its output 'mean'" in note
        assert [kept.code.value for kept in report.refusals] == ["training-mode"]

    def test_an_inference_model_stays_byte_for_byte(self) -> None:
        for opset in (7, 9, 14, 17):
            made = norm(training=False, opset=opset)
            _, report = onnxfuse.fuse(made, assume_inference=True)
            assert report.inference == report.notes == ()
            assert len(report.regions) == 1

    @pytest.mark.parametrize("literal", [True, False])
    def test_dropout_is_passed(self, literal: bool) -> None:
        given = dropout(literal=literal)
        assert "Dropout" in kinds(onnxfuse.fuse(given)[0])
        fused, report = onnxfuse.fuse(given, assume_inference=True)
        assert kinds(fused) == ["Conv"]
        assert report.inference == ("drop",)
        assert report.before.nodes == len(given.graph.node)

    def test_a_dropout_that_stays_has_no_flag(self) -> None:
        given = dropout(literal=True)
        for node in given.graph.node:
            if node.op_type == "Conv":
                node.op_type = "Relu"
                del node.input[1:]
        fused, _ = onnxfuse.fuse(given, assume_inference=True)
        assert kinds(fused) == ["Relu", "Dropout", "Relu"]
        assert list(fused.graph.node[1].input) == ["a", "ratio"]
        onnx.checker.check_model(fused, full_check=True)

    def test_a_flag_that_others_read_stays(self) -> None:
        given = dropout()
        given.graph.node.append(helper.make_node("Not", ["mode"], ["z"]))
        given.graph.output.append(value("z", kind=TensorProto.BOOL))
        fused, _ = onnxfuse.fuse(given, assume_inference=True)
        assert "mode" in {tensor.name for tensor in fused.graph.initializer}

    def test_a_flag_from_outside_stays_with_its_node(self) -> None:
        given = dropout(constant=False)
        fused, report = onnxfuse.fuse(given, assume_inference=True)
        assert fused.SerializeToString() == given.SerializeToString()
        assert "its training_mode 'mode' is no constant" in report.notes[0]

    def test_both_switches_together(self) -> None:
        given = norm()
        given.graph.input.extend(value(name, 4) for name in BN)
        fused, report = onnxfuse.fuse(given, freeze_initializers=True, assume_inference=True)
        assert kinds(fused) == ["Conv"]
        assert report.frozen == BN
        assert report.inference == ("bn",)
        assert "; taken to inference mode: bn" in told(fused)

    def test_nodes_of_nested_graphs_are_taken_too(self) -> None:
        inner = norm("mean", "var").graph
        del inner.input[:]
        inner.output[0].CopyFrom(value("y", 1, 4, 6, 6))
        other = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["t"])], "o", [], [value("t", 1, 4, 6, 6)]
        )
        nodes = [helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=other)]
        made = model(nodes, {"c": np.array(True)}, outputs=("z",))
        fused, report = onnxfuse.fuse(made, assume_inference=True)
        assert report.inference == ("bn",)
        held = next(a for a in fused.graph.node[0].attribute if a.name == "then_branch").g
        assert [list(n.output) for n in held.node][-1] == ["y"]

    def test_names_mean_something_else_in_another_scope(self) -> None:
        """One branch trains, the other does not; a function's constant is nobody else's."""

        def branch(mode: bool, name: str) -> onnx.GraphProto:
            flag = numpy_helper.from_array(np.array(mode), "mode")
            nodes = [
                helper.make_node("Constant", [], ["mode"], value=flag),
                helper.make_node("Dropout", ["x", "", "mode"], ["t"], name=name),
            ]
            return helper.make_graph(nodes, name, [], [value("t", 1, 4, 6, 6)])

        split = {"then_branch": branch(True, "one"), "else_branch": branch(False, "two")}
        made = model([helper.make_node("If", ["c"], ["y"], **split)], {"c": np.array(True)})
        fused, report = onnxfuse.fuse(made, assume_inference=True)
        assert report.inference == ("one",)
        onnx.checker.check_model(fused, full_check=True)
        given = dropout(constant=False)
        body = branch(True, "inner").node
        opset = helper.make_opsetid("", 17)
        given.functions.append(helper.make_function("own", "F", ["x"], ["t"], body, [opset]))
        _, report = onnxfuse.fuse(given, assume_inference=True)
        assert report.inference == ()
        assert len(report.notes) == 2

    def test_a_node_of_a_function_stays_and_is_named(self) -> None:
        body = helper.make_node(
            "BatchNormalization", ["t", *BN], ["u", "mean", "var"], name="inner", training_mode=1
        )
        opset = helper.make_opsetid("", 17)
        made = model([helper.make_node("F", ["x", *BN], ["y"], domain="own")], STATISTICS)
        made.functions.append(helper.make_function("own", "F", ["t", *BN], ["u"], [body], [opset]))
        made.opset_import.append(helper.make_opsetid("own", 1))
        fused, report = onnxfuse.fuse(made, assume_inference=True)
        assert fused.SerializeToString() == made.SerializeToString()
        assert "'inner' in training mode: it stands in a function" in report.notes[0]

    def test_a_model_that_was_not_run_is_not_said_to_be_compared(self) -> None:
        _, report = onnxfuse.fuse(norm(), assume_inference=True, verify=False)
        assert report.verification is not None
        assert report.verification.notes == ("--no-verify was given",)


class TestCommands:
    def test_markdown_says_what_was_done(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = save(branches(), tmp_path)
        assert main([source, str(tmp_path / "o.onnx"), FREEZE, "--format", "markdown"]) == 0
        assert "Note: " in capsys.readouterr().out

    def test_check_and_explain_take_them(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = save(branches(), tmp_path)
        assert main(["check", source]) == 0
        assert "2 weights are also graph inputs" in capsys.readouterr().err
        assert main(["check", source, FREEZE]) == 1
        assert main(["explain", source, FREEZE]) == 0
        captured = capsys.readouterr()
        assert "becomes Conv 3×3" in captured.out
        assert main(["check", save(norm(), tmp_path, "bn.onnx"), INFERENCE]) == 1

    def test_each_note_names_its_model_among_several(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = [save(branches(), tmp_path, name) for name in ("a.onnx", "b.onnx")]
        assert main(["check", *names]) == 0
        err = capsys.readouterr().err
        assert all(f"note: {name}: 2 weights" in err for name in names)

    def test_a_configuration_may_say_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        source = save(branches(), tmp_path)
        Path("pyproject.toml").write_text("[tool.onnxfuse]\nfreeze-initializers = true\n")
        assert main(["check", source]) == 1
        assert main(["check", source, "--isolated"]) == 0
        Path("pyproject.toml").write_text("[tool.onnxfuse]\nassume-inference = true\n")
        assert main(["check", save(norm(), tmp_path, "bn.onnx")]) == 1

    def test_notes_of_another_run_stay_in_the_metadata(self) -> None:
        given = branches()
        given.metadata_props.add(key="onnxfuse", value="0.0.1: something")
        fused, _ = onnxfuse.fuse(given, freeze_initializers=True)
        assert told(fused).startswith("0.0.1: something; ")
