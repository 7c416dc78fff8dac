"""Damaged files: an exit code, one line, no half of a file; `tools/damage.py` runs thousands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import damaged
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_text import bn, model, norm

import onnxfuse
from onnxfuse.cli import main

ROOT = Path(__file__).parent.parent
KEPT = b"what stood here before"


def test_a_sample_of_damaged_files_ends_as_it_should() -> None:
    """In a process of its own, for some runtimes crash where others fail."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "damage.py"), "--count", "300", "--seed", "20000"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def based() -> ModelProto:
    return model(
        f"""(float[1,4,8,8] x) => (float[] y) {{
            a = Conv(x, w, v) {bn("s", "a", "n")} y = Relu(s) }}""",
        w=(4, 4, 3, 3), v=(4,), **norm("n", 4),
    )  # fmt: skip


def ends(
    built: ModelProto, code: int, folder: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> str:
    """Fuse a file over another one; what is said on stderr."""
    given, out = folder / "in.onnx", folder / "out.onnx"
    given.write_bytes(built.SerializeToString())
    out.write_bytes(KEPT)
    assert main([str(given), str(out), *flags]) == code
    said = capsys.readouterr().err
    assert (out.read_bytes() == KEPT) == (code != 0)
    assert said.count("\n") == (code != 0)
    assert "internal" not in said
    assert len(said) < 2000
    return said


def placed(of: ModelProto, location: str) -> None:
    """The kernel in a file at ``location``."""
    tensor = next(t for t in of.graph.initializer if t.name == "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location


@pytest.mark.parametrize(
    ("location", "said"),
    [("a\0b", "is no path"), ("../w.bin", "outside"), ("/etc/hostname", "outside"), ("", "outside"),
     ("gone.bin", "missing"), (".", "missing"), ("x" * 5000, "cannot be read"),
     ("../" + "x" * 5000, "outside"), ("loop.bin", "")],
)  # fmt: skip
def test_places_of_data_that_no_file_can_have(
    location: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop.bin").symlink_to(tmp_path / "loop.bin")
    built = based()
    placed(built, location)
    assert said in ends(built, 2, tmp_path, capsys)


@pytest.mark.parametrize(
    ("offset", "length"),
    [("-4", "576"), ("abc", "576"), ("1e3", "576"), ("9" * 30, "1"), ("4", "")],
)
def test_offsets_that_lead_nowhere(
    offset: str, length: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = based()
    placed(built, "w.bin")
    (tmp_path / "w.bin").write_bytes(bytes(576))
    tensor = next(t for t in built.graph.initializer if t.name == "w")
    for key, text in (("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    ends(built, 2, tmp_path, capsys)


@pytest.mark.parametrize(
    ("offset", "length", "said"),
    [("0", "500", "should hold 576 bytes but is given 500"), ("4", "576", "too short"),
     ("9999999", "", "too short"), ("-4", "", "no usable offset")],
)  # fmt: skip
def test_data_of_a_tensor_that_no_region_reads_is_looked_at_too(
    offset: str, length: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = model(
        """(float[1,4,8,8] x) => (float[] y) {
            a = Conv(x, u) b = Conv(x, v) s = Add(a, b) r = Relu(s) y = Conv(r, w) }""",
        u=(4, 4, 1, 1), v=(4, 4, 1, 1), w=(4, 4, 3, 3),
    )  # fmt: skip
    placed(built, "w.bin")
    (tmp_path / "w.bin").write_bytes(bytes(576))
    tensor = next(t for t in built.graph.initializer if t.name == "w")
    for key, text in (("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    assert said in ends(built, 2, tmp_path, capsys)
    assert said in ends(built, 2, tmp_path, capsys, "--except", "*")


def far(of: ModelProto) -> None:
    """A Range that would count for hours: onnx's inference wrote all its numbers down."""
    for name, number in (("from", 0), ("to", 2**40), ("step", 1)):
        of.graph.initializer.append(numpy_helper.from_array(np.array(number), name))
    of.graph.node.insert(0, helper.make_node("Range", ["from", "to", "step"], ["numbers"]))
    of.graph.node.append(helper.make_node("ReduceMax", ["numbers"], ["most"], keepdims=0))


def far_and_odd(of: ModelProto) -> None:
    """The same with steps that lead nowhere."""
    far(of)
    of.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array(0), "step"))


def cast(of: ModelProto) -> None:
    """A constant of a type that onnx does not know."""
    of.graph.node.insert(0, helper.make_node("Cast", ["v"], ["odd"], to=2**62))
    of.graph.node.append(helper.make_node("Expand", ["x", "odd"], ["more"]))


def kernel(of: ModelProto) -> None:
    """A kernel of integers: its bytes are read as numbers of another kind."""
    next(t for t in of.graph.initializer if t.name == "w").data_type = TensorProto.INT32


def bias(of: ModelProto) -> None:
    tensor = next(t for t in of.graph.initializer if t.name == "v")
    tensor.CopyFrom(numpy_helper.from_array(np.ones(1000, np.float32), "v"))


def turned(of: ModelProto) -> None:
    """A Transpose by what is no permutation."""
    of.graph.node.append(helper.make_node("Transpose", ["s"], ["t"], perm=[0, 1, 1, 3]))


def mistyped(of: ModelProto) -> None:
    """Two Transposes that meet, where an output's type hides the shape behind the second."""
    del of.graph.node[2:]
    for source, made, perm in (("s", "t", [0, 2, 3, 1]), ("t", "y", [0, 3, 1, 2])):
        of.graph.node.append(helper.make_node("Transpose", [source], [made], perm=perm))
    of.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64


@pytest.mark.parametrize("harm", [far, far_and_odd, cast, kernel, bias, turned, mistyped])
def test_what_an_operator_cannot_be_stays_or_is_an_error(
    harm: Callable[[ModelProto], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is refused, or what can be fused around the place is."""
    built = based()
    harm(built)
    given, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    given.write_bytes(built.SerializeToString())
    code = main([str(given), str(out), "--no-verify"])
    said = capsys.readouterr().err
    assert code in (0, 2)
    assert out.exists() == (code == 0)
    assert said.count("\n") == (code != 0)
    if code == 0 and harm in (kernel, bias):
        assert out.read_bytes() == given.read_bytes()


def test_a_long_range_is_of_unknown_length_and_a_short_one_is_not() -> None:
    for stop, known in ((2**40, False), (100, True)):
        built = based()
        far(built)
        built.graph.initializer[-2].CopyFrom(numpy_helper.from_array(np.array(stop), "to"))
        built.graph.node.append(helper.make_node("Shape", ["numbers"], ["count"]))
        from onnxfuse.model.graph import Graph
        from onnxfuse.model.shapes import infer

        found = infer(Graph(built), {})
        assert found.certain["numbers"] == ((stop,) if known else (None,))
        assert found.types["numbers"] == TensorProto.INT64


def test_damage_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(6):
        assert damaged(seed, tmp_path / "in") == damaged(seed, tmp_path / "in")


def test_fusing_beside_a_damaged_operator_still_works() -> None:
    built = based()
    cast(built)
    fused, report = onnxfuse.fuse(built, verify=False)
    assert report.changed
    assert [n.op_type for n in fused.graph.node] == ["Cast", "Conv", "Relu", "Expand"]


def wide(of: ModelProto) -> None:
    """A dilation that no proof can follow."""
    of.graph.node[0].attribute.append(helper.make_attribute("dilations", [1, 5000]))
    of.graph.node[0].attribute.append(helper.make_attribute("pads", [1, 4096, 1, 4096]))
    of.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 2000


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (kernel, "malformed", "the type of 'w' is not that of its result"),
        (bias, "malformed", "its bias does not fit 4 channels"),
        (wide, "size-limit", "its window reaches over 4096 positions"),
    ],
)
def test_a_place_that_contradicts_itself_says_how(
    harm: Callable[[ModelProto], None], code: str, words: str
) -> None:
    built = based()
    harm(built)
    report = onnxfuse.plan(built)
    assert [(r.code, words in r.text) for r in report.refusals if r.code == code] == [(code, True)]


def test_a_model_that_loads_and_never_runs_is_not_the_fused_models_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Merging shows onnxruntime the sizes that do not fit, which it met at run time before."""
    built = model(
        """(float[1,4,8,8] x, float[1,4,5,5] z) => (float[] y) {
            a = Conv(x, w) f = Reshape(a, flat) m = Mul(f, k)
            s = Shape(x) t = Slice(s, from, to) r = Concat<axis = 0>(t, rest)
            b = Reshape(m, r) c = Conv(b, w) y = Add(c, z) }""",
        w=(4, 4, 1, 1), k=(1, 1, 1), flat=np.array([1, 4, 64]), rest=np.array([4, 8, 8]),
        **{"from": np.array([0]), "to": np.array([1])},
    )  # fmt: skip
    given, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    given.write_bytes(built.SerializeToString())
    assert main([str(given), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "the original rejects x:1x4x8x8, z:1x4x5x5" in printed.replace("\n", " ")


HOLES = {
    "Split": "s, = Split<axis = 1>(a) y = Relu(s)",
    "Sum": 'y = Sum(a, "")',
    "Loop": """"", y = Loop(n, c, a) <body = b (int64 k, bool o, float[] v)
        => (bool p, float[] u, float[] t) { p = Identity(o) u = Add(v, v) t = Identity(v) }>""",
    "BatchNormalization": 'y, "", "" = BatchNormalization<training_mode = 1>(a, v, v, v, v)',
    "If": """"" = If(c) <then_branch = t () => (float[] p) { p = Identity(a) },
        else_branch = e () => (float[] q) { r, = Split<axis = 1>(a) q = Relu(r) }> y = Relu(a)""",
}
"""What ends onnxruntime's process where a name is empty."""


@pytest.mark.parametrize("kind", HOLES)
def test_what_would_end_the_process_is_not_run(kind: str, tmp_path: Path) -> None:
    text = HOLES[kind].replace("s, =", 's, "" =').replace("r, =", 'r, "" =')
    built = model(
        f"(float[1,4,8,8] x) => (float[] y) {{ d = Conv(x, w) a = Conv(d, w) {text} }}",
        w=(4, 4, 1, 1), v=(4,), n=np.array(2), c=np.array(True),
    )  # fmt: skip
    given, out = str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx")
    Path(given).write_bytes(built.SerializeToString())
    for words, code in (((given, out), 0), (("verify", given, given), 3)):
        done = subprocess.run(
            [sys.executable, "-m", "onnxfuse", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        said = " ".join((done.stdout + done.stderr).split())
        assert "leaves out an" in said
        assert "which would end the process" in said


def test_what_may_be_left_out_is() -> None:
    built = model(
        """(float[1,4,8,8] x) => (float[] y) { d = Conv(x, w) a = Conv(d, w)
            y = Clip(a, "", most) }""",
        w=(4, 4, 1, 1), most=np.float32(1),
    )  # fmt: skip
    _, report = onnxfuse.fuse(built)
    assert report.verification is not None
    assert report.verification.status == "passed"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a = AveragePool<kernel_shape = [1,1]>(e)", "its input has no channels"),
        ("a = ScatterND(x, one, ones)", "its indices do not fit its input"),
        ("a = ScatterND(x, deep, ones)", "its indices do not fit its input"),
        ("a = ScatterND(x, rows, ones)", "its updates do not fit its indices"),
        ("a = ScatterND(x, rows, short)", "its updates do not fit its indices"),
        ("a = ScatterND(x, halves, ones)", "its indices are no integers"),
        ("a = ScatterElements(x, one, ones)", "its indices do not fit its input"),
    ],
)
def test_sizes_that_do_not_fit_are_malformed(line: str, words: str) -> None:
    stored = {
        "one": np.array(0), "deep": np.zeros((1, 5), np.int64), "ones": np.ones(3, np.float32),
        "rows": np.array([[0]]), "short": np.zeros((1, 4, 8, 7), np.float32),
        "halves": np.full((1, 1), 0.5, np.float32),
    }  # fmt: skip
    built = model(
        f"(float[1,4,8,8] x, float[1,0,8,8] e) => (float[] a) {{ {line} }}",
        **{name: value for name, value in stored.items() if name in line},
    )
    (refusal,) = onnxfuse.plan(built).refusals
    assert refusal.code == "malformed"
    assert refusal.text == words


@pytest.mark.parametrize("axis", [1 << 40, -(1 << 40), 1 << 62])
def test_an_axis_that_no_tensor_has(axis: int) -> None:
    built = model(
        """(float[1,4,8,8] x) => (float[] y) { u = Unsqueeze(w, far) d = Conv(x, k)
            y = Add(d, u) }""",
        w=np.ones(4, np.float32), k=np.ones((4, 4, 1, 1), np.float32), far=np.array([axis]),
    )  # fmt: skip
    _, report = onnxfuse.fuse(built)
    assert not report.changed


def test_numbers_out_of_range_are_judged_in_silence() -> None:
    """NumPy would say on stderr what the tests' settings make an error."""
    built = model(
        """(double[1,4,8,8] x) => (double[] y) {
            d = Conv(x, w) y = BatchNormalization(d, s, s, s, s) }""",
        w=np.full((4, 4, 1, 1), 1e200), s=np.ones(4),
    )  # fmt: skip
    _, report = onnxfuse.fuse(built)
    assert report.changed


def test_two_versions_of_the_operators_are_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Onnx takes the last version for the model's, and others the first."""
    built = based()
    built.opset_import.append(helper.make_opsetid("ai.onnx", 12))
    assert "imports both version 12 and 17" in ends(built, 2, tmp_path, capsys)
    built.opset_import[-1].version = 17
    _, report = onnxfuse.fuse(built, verify=False)
    assert report.changed


def test_an_axis_that_no_tensor_has_leaves_a_strip_unknown() -> None:
    built = model(
        """(float[N,4,8,8] x) => (float[] y) { a = Conv(x, w) s = Shape(a) n = Gather(s, zero)
            u = Unsqueeze(n, axes) all = Concat<axis = 0>(u, rest) strip = Expand(one, all)
            b = Concat<axis = 2>(a, strip) y = Conv(b, w) }""",
        w=(4, 4, 1, 1), zero=np.array(0), axes=np.array([2**40]), rest=np.array([4, 1, 8]),
        one=np.ones((1, 1, 1, 1), np.float32),
    )  # fmt: skip
    assert onnxfuse.plan(built).refusals


def test_a_huge_axis_beside_open_ones_is_shortened_for_the_proof() -> None:
    built = model(
        "(float[N,4,S,65537] x) => (float[] y) { a = Conv<pads = [1,1,1,1]>(x, w) y = Conv(a, v) }",
        w=(4, 4, 3, 3), v=(4, 4, 1, 1),
    )  # fmt: skip
    _, report = onnxfuse.fuse(built, verify=False)
    (region,) = report.regions
    assert region.error is not None
    assert [shape[2] for shape in region.error.sizes] == [3, 1, 2]
    assert max(shape[3] for shape in region.error.sizes) < 20


def test_results_that_float32_cannot_hold_are_compared_in_float64() -> None:
    """Sums of absolute values are made in float32 where kernels are not small."""
    tiny = np.random.default_rng(1).standard_normal((300, 300, 1, 1)).astype(np.float32) * 1e-30
    built = model("(float[1,300,4,4] x) => (float[] y) { a = Conv(x, w) y = Conv(a, w) }", w=tiny)
    _, report = onnxfuse.fuse(built, verify=False)
    (region,) = report.regions
    assert region.error is not None
    assert 0 < region.error.bound < 1e-50


def test_a_branch_that_float32_cannot_hold_is_not_lost() -> None:
    """One is far below the other on its way, and above it in the end."""
    draw = np.random.default_rng(2)
    a, b, c = (
        draw.standard_normal((128, 128, k, k)) * size
        for k, size in ((3, 1e-17), (1, 1e-50), (3, 1e36))
    )
    built = model(
        """(double[1,128,8,8] x) => (double[] y) { p = Conv<pads = [1,1,1,1]>(x, a) q = Conv(x, b)
            r = Conv<pads = [1,1,1,1]>(q, c) y = Add(p, r) }""",
        a=a, b=b, c=c,
    )  # fmt: skip
    _, report = onnxfuse.fuse(built, verify=False)
    assert len(report.regions) == 1


@pytest.mark.parametrize("fan_in", [3 << 20, (1 << 23) - 34])
def test_more_terms_than_float32_tells_apart(fan_in: int) -> None:
    """Its error would be as large as the sum, or without a sign; weights count on both sides."""
    draw = np.random.default_rng(3)
    built = model(
        f"(float[1,{fan_in}] x) => (float[] y) {{ a = Gemm<transB = 1>(x, w) y = Mul(a, s) }}",
        w=draw.standard_normal((2, fan_in)).astype(np.float32), s=np.float32([2, 3]),
    )  # fmt: skip
    _, report = onnxfuse.fuse(built, verify=False)
    assert len(report.regions) == 1


def test_an_input_that_nobody_could_mean_is_not_drawn() -> None:
    built = model(
        "(float[1,4,8,2097153] x) => (float[] y) { a = Conv(x, w) y = Conv(a, w) }", w=(4, 4, 1, 1)
    )
    _, report = onnxfuse.fuse(built)
    assert report.changed
    assert report.verification is not None
    assert report.verification.notes == ("input 'x' is too large to draw",)


def test_integers_that_another_layout_adds_up_get_no_noise() -> None:
    built = model(
        """(float[1,4,8,8] x) => (float[] y) { a = Conv(x, w) t = Transpose<perm = [0,2,3,1]>(a)
            c = Cast<to = 6>(t) r = ReduceMean<axes = [1,2], keepdims = 1>(c) s = Add(c, r)
            d = Cast<to = 1>(s) u = Transpose<perm = [0,3,1,2]>(d) y = Conv(u, w) }""",
        w=(4, 4, 3, 3),
    )  # fmt: skip
    fused, report = onnxfuse.fuse(built)
    assert "Transpose" not in [node.op_type for node in fused.graph.node]
    assert report.verification is not None
    assert report.verification.status == "passed"
