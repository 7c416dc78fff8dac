"""The search: plans that single steps do not reach, and rounds that come to an end."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_text import fuse, model, ops

import onnxfuse
from onnxfuse.planning.state import Move, State


@pytest.mark.parametrize("op", ["Mul", "Conv"])
def test_a_first_axis_of_unknown_length_costs_the_same_before_and_after(op: str) -> None:
    """Priced as 1 in one place and 32 in another, planning never came to an end."""
    rest = {
        "Mul": "t = Transpose<perm = [0,2,1,3]>(r) m = Mul(t, s)",
        "Conv": "t = Slice(r, one, far, two) m = Conv(t, w)",
    }[op]
    tensors = {
        "Mul": {"s": np.float32(0.5)},
        "Conv": {
            "w": (8, 5, 1, 1),
            "one": np.array([1], np.int64),
            "far": np.array([99], np.int64),
            "two": np.array([2], np.int64),
        },
    }[op]
    built = model(
        f"(float[4,5,4,6] x, bool[4] c) => (float[] y) "
        f"{{ r = Compress<axis = 0>(x, c) {rest} y = Relu(m) }}",
        **tensors,
    )
    fused, report = onnxfuse.fuse(built, verify=False)
    assert ops(fused) == ops(built)
    assert not report.changed


@pytest.mark.parametrize("channels", [(8, 8), (24, 6), (16, 32)])
def test_the_terms_of_a_sum_are_opened_together(channels: tuple[int, int]) -> None:
    """Opening one term of a sum never pays; a GhostNetV3 block wants both at once."""
    c, o = channels
    built = model(
        f"""(float[1,{c},24,24] x) => (float[] y) {{
            a = Conv<strides = [2,2], group = {c}>(x, w1, b1)
            b = Conv<strides = [2,2], pads = [1,1,1,1], group = {c}>(x, w3, b3)
            s = Add(a, b) p = Conv(s, v, bv) q = Conv<group = {o}>(p, u, bu)
            j = Concat<axis = 1>(p, q) y = Relu(j) }}""",
        w1=(c, 1, 1, 1), w3=(c, 1, 3, 3), v=(o, c, 1, 1), u=(o, 1, 1, 1),
        b1=(c,), b3=(c,), bv=(o,), bu=(o,),
    )  # fmt: skip
    fused, _ = fuse(built)
    assert ops(fused) == ["Conv", "Conv", "Conv", "Concat", "Relu"]


def test_a_dense_block_is_planned_as_it_stands() -> None:
    """Each layer reads all before it; what was expanded once is remembered by its cuts."""
    lines, names = ["c0 = Relu(x)"], ["c0"]
    for i in range(1, 12):
        lines.append(f"j{i} = Concat<axis = 1>({', '.join(names)})")
        lines.append(f"n{i} = Mul(j{i}, k) r{i} = Relu(n{i}) c{i} = Conv(r{i}, w{i})")
        names.append(f"c{i}")
    weights = {f"w{i}": (4, 4 * i, 1, 1) for i in range(1, 12)}
    built = model(
        f"(float[1,4,5,5] x) => (float[] y) {{ {' '.join(lines)} y = Relu(c11) }}",
        k=np.float32(2), **weights,
    )  # fmt: skip
    _, report = onnxfuse.fuse(built)
    assert report.after.macs <= report.before.macs


def test_a_search_that_tries_very_much_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = ["a0 = Conv<pads = [1,1,1,1]>(x, w0)"]
    for i in range(1, 6):
        nodes += [
            f"b{i} = Conv<pads = [1,1,1,1]>(a{i - 1}, w{i})",
            f"a{i} = Add(b{i}, a0)",
        ]
    text = f"(float[1,4,9,9] x) => (float[] y) {{ {' '.join(nodes)} y = Relu(a5) }}"
    built = model(text, **{f"w{i}": (4, 4, 3, 3) for i in range(6)})
    _, codes = fuse(built)
    assert "size-limit" not in codes
    monkeypatch.setattr("onnxfuse.planning.search.MAX_EFFORT", 1)
    _, report = onnxfuse.fuse(built)
    assert "the search ended" in str(report)


def test_concatenated_layers_open_only_what_may_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen layers, each over all before it: what is only joined is tried where one reads it."""
    dropped: set[str] = set()
    make = State.make

    def watched(self: State, move: Move) -> object:
        dropped.update(move.drop)
        return make(self, move)

    monkeypatch.setattr(State, "make", watched)
    nodes, names = [], ["x"]
    for i in range(16):
        joined = f"j{i} = Concat<axis = 1>({', '.join(names)})"
        nodes += [joined, f"r{i} = Relu(j{i})", f"c{i} = Conv(r{i}, w{i})"]
        names.append(f"c{i}")
    text = f"(float[1,4,5,5] x) => (float[] y) {{ {' '.join(nodes)} y = Relu(c15) }}"
    built = model(text, **{f"w{i}": (2, 4 + 2 * i, 1, 1) for i in range(16)})
    fused, codes = fuse(built)
    assert fused == built
    assert "size-limit" not in codes
    assert "c14" in dropped  # which one alone reads
    assert not dropped & {f"c{i}" for i in range(14)}


def test_a_block_of_dense_layers_with_norms_is_looked_at_once_or_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DenseNet's: a BatchNormalization over all before it, a Relu, and a convolution."""
    from onnxfuse.planning import region

    def looked(layers: int) -> int:
        """The tensors that all expansions went over."""
        nodes, names = [], ["x"]
        for i in range(layers):
            nodes += [f"j{i} = Concat<axis = 1>({', '.join(names)})", f"n{i} = Mul(j{i}, k)",
                      f"r{i} = Relu(n{i})", f"c{i} = Conv(r{i}, w{i})"]  # fmt: skip
            names.append(f"c{i}")
        text = f"(float[1,4,5,5] x) => (float[] y) {{ {' '.join(nodes)} y = Relu(c{layers - 1}) }}"
        weights = {f"w{i}": (2, 4 + 2 * i, 1, 1) for i in range(layers)}
        seen = 0
        expressed = region._expressed

        def counted(root: object, inside: dict[str, object], *rest: object) -> object:
            nonlocal seen
            seen += sum(len(step.lifted.operands) for step in inside.values())
            return expressed(root, inside, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(region, "_expressed", counted)
            onnxfuse.plan(model(text, k=np.float32(2), **weights))
        return seen

    assert looked(48) < 5 * looked(24)  # their operands are four times as many


def test_many_parts_of_one_tensor_still_meet() -> None:
    """Twelve of a Split, each convolved, are groups of one convolution."""
    parts = ", ".join(f"p{i}" for i in range(12))
    nodes = [f"{parts} = Split<axis = 1>(x, twos)"]
    nodes += [f"c{i} = Conv<pads = [1,1,1,1]>(p{i}, w{i})" for i in range(12)]
    nodes += [f"j = Concat<axis = 1>({', '.join(f'c{i}' for i in range(12))})", "y = Relu(j)"]
    text = f"(float[1,24,8,8] x) => (float[] y) {{ {' '.join(nodes)} }}"
    built = model(text, twos=np.full(12, 2), **{f"w{i}": (2, 2, 3, 3) for i in range(12)})
    fused, _ = fuse(built)
    assert ops(fused) == ["Conv", "Relu"]


def test_a_join_that_several_joins_read_is_written_in_each() -> None:
    """A join in a join is one, and costs a copy less, though nothing meets in it."""
    text = """(float[1,4,5,5] x) => (float[] y, float[] z) { a = Relu(x) b = Sigmoid(x) c = Tanh(x)
        j = Concat<axis = 1>(a, b) y = Concat<axis = 1>(j, c) z = Concat<axis = 1>(c, j) }"""
    fused, _ = fuse(model(text))
    assert ops(fused) == ["Relu", "Sigmoid", "Tanh", "Concat", "Concat"]
    assert [len(node.input) for node in fused.graph.node[3:]] == [3, 3]


def test_a_part_of_a_join_meets_what_is_joined_beside_it() -> None:
    """`t` has another reader and is made of `x`, which is joined too, and half of it read."""
    text = """(float[1,4,12,12] x) => (float[] y, float[] z) { a = Conv(x, e) r = Relu(a)
        t = Conv(x, v) j = Concat<axis = 1>(x, r, x, t, x) s, u = Split<axis = 1>(j, tens)
        c = Conv(s, p, b) y = Conv(c, g) m = Mul(t, k) z = Conv(m, w) }"""
    built = model(
        text, e=(4, 4, 1, 1), v=(4, 4, 1, 1), tens=np.array([10, 10]), p=(2, 10, 1, 1), b=(2,),
        g=(4, 2, 1, 1), k=(1, 4, 1, 1), w=(4, 4, 1, 1),
    )  # fmt: skip
    fused, _ = fuse(built)
    assert "Mul" not in ops(fused)
    (last,) = (node for node in fused.graph.node if "z" in node.output)
    assert last.input[0] == "x"


def test_what_no_law_gives_a_form_is_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long chain of tensors without a known rank was walked anew from each of them."""
    from onnxfuse.planning import forward

    steps = 0
    step = forward.Forward.step

    def counted(self: forward.Forward, *given: object) -> object:
        nonlocal steps
        steps += 1
        return step(self, *given)

    monkeypatch.setattr(forward.Forward, "step", counted)
    nodes = "".join(f"a{i + 1} = Neg(a{i}) " for i in range(200))
    built = model(f"(float a0) => (float y) {{ {nodes} y = Abs(a200) }}")
    onnxfuse.plan(built)
    assert steps <= 10 * 200


@pytest.mark.parametrize("k", [5, 7])
def test_a_wide_pool_behind_a_wide_map_is_free_in_a_sum(k: int) -> None:
    pads = [k // 2] * 4
    text = f"""(float[1,64,16,16] x) => (float[] y) {{
        a = Conv<pads = {pads}>(x, w) b = Conv(x, v)
        c = AveragePool<kernel_shape = [{k},{k}], pads = {pads}, count_include_pad = 1>(b)
        d = Add(a, c) y = Relu(d) }}"""
    built = model(text, w=(64, 64, k, k), v=(64, 64, 1, 1))
    fused, _ = onnxfuse.fuse(built)
    assert ops(fused) == ["Conv", "Relu"]
