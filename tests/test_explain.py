"""``onnxfuse explain``: each linear region as a tree, what it becomes, or why it stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxfuse
from onnxfuse import ranges
from onnxfuse.cli import main
from onnxfuse.records import Operator
from onnxfuse.refusal import ADVICE, Code
from onnxfuse.report import tree

FIXTURES = Path(__file__).parent.parent / "fixtures" / "pytorch"
DBB = str(FIXTURES / "dbb_k3_s1.ts.onnx")
SPLIT = str(FIXTURES / "bsconv_s.ts.onnx")


def explained(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """What explain prints at 80 columns."""
    assert main(["explain", *arguments]) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert all(len(line) <= 80 and line == line.rstrip() for line in printed.out.splitlines())
    return printed.err if code else printed.out


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_region_is_a_tree(capsys: pytest.CaptureFixture[str]) -> None:
    text = explained(capsys, DBB)
    assert text.startswith(
        "/0/Add_2 becomes Conv 3×3 8→8\n"
        "└── Add\n"
        "    ├── Conv 3×3 8→8 ∘ input\n"
        "    ├── Conv 1×1 8→8 ∘ input\n"
        "    ├── BN 8 channels ∘ AvgPool 3×3 ∘ 4 ScatterND ∘ Pad ∘ Conv 1×1 8→8 ∘ input\n"
        "    └── Conv 3×3 8→8 ∘ 4 ScatterND ∘ Pad ∘ Conv 1×1 8→8 ∘ input\n"
        "  = Conv3×3 + BN∘AvgPool3×3∘Pad∘Conv1×1 + Conv3×3∘Pad∘Conv1×1 + Conv1×1\n"
    )
    assert "nodes 20→1, Conv 5→1, MACs 194k→82.9k, parameters 2.31k→584" in text
    assert "estimated time" in text
    assert text.endswith("1 region would be fused.\n")


def test_a_place_that_stays_says_why_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    text = explained(capsys, SPLIT)
    assert "/0/0.2/branches.0/branches.0.0/Conv stays [cost]\n" in text
    assert "Conv 3×3 12→12 depthwise ∘ Conv 1×1 2→12" in text
    assert "= Conv3×3∘Conv1×1" in text
    assert "would take MACs\n  from 17,424 to 28,512" in text
    assert "what to do: nothing: it is cheaper as it stands" in text
    assert text.endswith("2 places stay unfused.\n")


class TestNode:
    """--node: what holds a node or tensor."""

    def test_a_node_inside_a_region(self, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("/0/Add", "/0/Add_output_0", "/0/branches.2/*"):
            assert explained(capsys, DBB, "--node", name).startswith("/0/Add_2 becomes")

    def test_a_nonlinear_node(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = explained(capsys, DBB, "--node", "/1/Relu")
        assert "Relu is not linear, so regions end here" in text

    def test_a_convolution_between_nonlinear_operators(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        model = onnx.parser.parse_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
            <float[2, 2, 1, 1] w = {1, 2, 3, 4}> {
              [a] c = Conv (x, w)
              [b] y = Relu (c)
            }""")
        onnx.save(model, tmp_path / "m.onnx")
        text = explained(capsys, str(tmp_path / "m.onnx"), "--node", "a")
        assert "nothing that is linear meets it" in text
        whole = explained(capsys, str(tmp_path / "m.onnx"))
        assert whole == "Nothing linear meets anything linear: there is nothing to fuse.\n"

    def test_a_constant(self, capsys: pytest.CaptureFixture[str]) -> None:
        constant = next(n for n in onnx.load(DBB).graph.node if n.op_type == "Constant")
        text = explained(capsys, DBB, "--node", constant.output[0])
        assert "its result is constant" in text

    def test_an_unknown_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        error = explained(capsys, DBB, "--node", "Add_2", code=2)
        assert "no node or tensor 'Add_2'; did you mean '/0/Add_2'?" in error


def test_every_code_has_advice_and_the_docs_give_the_same() -> None:
    design = (Path(__file__).parent.parent / "docs" / "design.md").read_text()
    for code in Code:
        (row,) = [line for line in design.splitlines() if line.startswith(f"| `{code}` |")]
        assert row.split(" | ")[-1].removesuffix(" |") == ADVICE[code], row


def test_a_tree_of_shared_tensors_is_small() -> None:
    """t + t, twenty times over, has a million paths and twenty lines."""
    drawn = [Operator(f"n{i}", "Add", "", (f"t{i}", f"t{i}"), (f"t{i + 1}",)) for i in range(20)]
    from rich.console import Console
    from rich.text import Text

    console = Console(width=200)
    with console.capture() as captured:
        console.print(tree.grown(drawn, "t20", Text("root")))
    assert len(captured.get().splitlines()) < 50


def test_a_long_region_is_cut_short() -> None:
    drawn = [Operator(f"n{i}", "Mul" if i % 2 else "Pad", "", (f"t{i}",), (f"t{i + 1}",))
             for i in range(300)]  # fmt: skip
    from rich.console import Console
    from rich.text import Text

    console = Console(width=200)
    with console.capture() as captured:
        console.print(tree.grown(drawn, "t300", Text("root")))
    assert "more …" in captured.get()
    assert len(captured.get()) < 1000


class TestKeepPostBn:
    """--keep-post-bn: what nothing linear reads stays for calibration."""

    def model(self, last: str) -> onnx.ModelProto:
        ones = {name: np.linspace(0.5, 1.5, 2, dtype=np.float32) for name in "sbmv"}
        weights = {"w": np.ones((2, 2, 1, 1), np.float32), "axis": np.array([2]), **ones}
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("BatchNormalization", ["c", *"sbmv"], ["n"], name="bn"),
            *{
                "Relu": [helper.make_node("Relu", ["n"], ["y"], name="relu")],
                "Identity": [
                    helper.make_node("Identity", ["n"], ["i"], name="id"),
                    helper.make_node("Relu", ["i"], ["y"], name="relu"),
                ],
                "Add": [helper.make_node("Add", ["n", "x"], ["y"], name="sum")],
                "Transpose": [
                    helper.make_node("Transpose", ["n"], ["i"], name="t", perm=[0, 2, 3, 1]),
                    helper.make_node("Relu", ["i"], ["y"], name="relu"),
                ],
                "Concat": [
                    helper.make_node("Concat", ["n", "x"], ["i"], name="cat", axis=1),
                    helper.make_node("Relu", ["i"], ["y"], name="relu"),
                ],
                "Split": [
                    helper.make_node("Split", ["n"], ["i", "j"], name="split", axis=1),
                    helper.make_node("Relu", ["i"], ["y"], name="relu"),
                    helper.make_node("Relu", ["j"], ["z"], name="relu2"),
                ],
                "Unsqueeze": [
                    helper.make_node("Unsqueeze", ["n", "axis"], ["i"], name="open"),
                    helper.make_node("Squeeze", ["i", "axis"], ["j"], name="close"),
                    helper.make_node("Relu", ["j"], ["y"], name="relu"),
                ],
                "Flatten": [
                    helper.make_node("Flatten", ["n"], ["i"], name="flat"),
                    helper.make_node("Relu", ["i"], ["y"], name="relu"),
                ],
                "Transpose Add": [
                    helper.make_node("Transpose", ["n"], ["i"], name="t", perm=[0, 2, 3, 1]),
                    helper.make_node("Transpose", ["x"], ["j"], name="u", perm=[0, 2, 3, 1]),
                    helper.make_node("Add", ["i", "j"], ["y"], name="sum"),
                ],
                "none": [],
            }[last],
        ]
        values = [helper.make_tensor_value_info("x", 1, [1, 2, 5, 5])]
        name = "n" if last == "none" else "y"
        out = [helper.make_tensor_value_info(name, 1, None)]
        graph = helper.make_graph(
            nodes, "g", values, out, [numpy_helper.from_array(a, n) for n, a in weights.items()]
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    @pytest.mark.parametrize(
        ("last", "kept"),
        [("Relu", True), ("Identity", True), ("none", True), ("Add", False), ("Transpose", True),
         ("Concat", True), ("Split", True), ("Unsqueeze", True), ("Flatten", True),
         ("Transpose Add", False)],
    )  # fmt: skip
    def test_it_keeps_what_nothing_linear_reads(self, last: str, kept: bool) -> None:
        fused, report = onnxfuse.fuse(self.model(last), keep_post_bn=True)
        left = [node.op_type for node in fused.graph.node].count("BatchNormalization")
        assert left == int(kept)
        assert ("excluded" in {r.code for r in report.refusals}) == kept
        folded, _ = onnxfuse.fuse(self.model(last))
        assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}

    def test_the_branches_before_it_still_merge(self, tmp_path: Path) -> None:
        """QARep: branches, their sum, and a BN behind it."""
        source = FIXTURES / "repvgg_s1_g1.ts.onnx"
        model = onnx.load(source)
        (relu,) = [node for node in model.graph.node if node.op_type == "Relu"]
        kinds = onnx.load(source).graph
        bn = next(node for node in kinds.node if node.op_type == "BatchNormalization")
        post = helper.make_node(
            "BatchNormalization", [relu.input[0], *bn.input[1:]], ["post"], name="post"
        )
        relu.input[0] = "post"
        model.graph.node.insert(list(model.graph.node).index(relu), post)
        onnx.save(model, tmp_path / "m.onnx")
        assert main([str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), "--keep-post-bn"]) == 0
        kept = [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node]
        assert kept == ["Conv", "BatchNormalization", "Relu"]


def test_the_range_of_channels_is_that_of_the_kernels() -> None:
    fused, report = onnxfuse.fuse(DBB)
    (after,) = report.regions[0].ranges_after
    kernel = numpy_helper.to_array(
        next(t for t in fused.graph.initializer if t.name == after.kernel)
    )
    peaks = np.abs(kernel).reshape(len(kernel), -1).max(axis=1)
    assert (after.least, after.largest) == pytest.approx((peaks.min(), peaks.max()), rel=1e-6)
    assert after.median == pytest.approx(float(np.median(peaks)), rel=1e-6)
    assert after.ratio == pytest.approx(peaks.max() / np.median(peaks), rel=1e-6)
    assert len(report.regions[0].ranges) == 5
    assert onnxfuse.plan(DBB).regions[0].ranges == ()


@pytest.mark.parametrize(
    ("flags", "read"),
    [((), False), (("-q",), False), (("-v",), True), (("--format", "json"), True)],
)
def test_ranges_are_looked_for_where_they_are_told(
    flags: tuple[str, ...], read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take one more look at every kernel of the model."""
    looked: list[str] = []
    real = ranges.spread

    def spread(name: str, *rest: Any) -> Any:
        looked.append(name)
        return real(name, *rest)

    monkeypatch.setattr(ranges, "spread", spread)
    assert main([str(DBB), str(tmp_path / "o.onnx"), "--no-verify", *flags]) == 0
    assert bool(looked) is read
