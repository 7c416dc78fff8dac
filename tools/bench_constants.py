"""Time the ways to write a bias behind zero padding, side by side in one run.

    python tools/bench_constants.py [--open]

The block is ``3×3(x) + 3×3(1×1(x) + b)``, padded by zeros, then Relu. Printed are medians over
interleaved runs in onnxruntime (one thread, its optimisations on), as ratios to the branch left
as it is: merged without its border (wrong, the lower limit), with a constant map, with a plane of
ones, with a channel of ones. With ``--open`` the sizes are open, and there is no map.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

SIZES = ((3, 16, 112), (3, 64, 112), (6, 16, 56), (8, 8, 56), (10, 10, 56), (16, 16, 56),
         (32, 32, 56), (64, 64, 56), (256, 256, 14))  # fmt: skip
"""Channels in and out, height and width."""
ROUNDS = 40
Arrays = dict[str, np.ndarray]


def conv(x: str, weight: str, out: str, *, bias: str = "", pad: int = 1) -> NodeProto:
    """A Conv node of stride 1."""
    return helper.make_node("Conv", [x, weight, bias] if bias else [x, weight], [out],
                            pads=[pad] * 4)  # fmt: skip


def ways(c: int, o: int, size: int) -> dict[str, tuple[list[NodeProto], Arrays]]:
    """Nodes that write ``s``, and their constants, by name of the way."""
    normal = np.random.default_rng(0).standard_normal
    main = conv("x", "w", "a", bias="b")
    base: Arrays = {"w": normal((o, c, 3, 3)), "b": normal(o)}
    add = helper.make_node
    plane = [
        add("Shape", ["x"], ["size"], start=2),
        add("Concat", ["ones", "size"], ["shape"], axis=0),
        add("Expand", ["one", "shape"], ["p"]),
        conv("p", "k", "q"),
    ]
    return {
        "branch": (
            [main, conv("x", "v", "t", pad=0), conv("t", "u", "q"), add("Add", ["a", "q"], ["s"])],
            {**base, "v": normal((o, c, 1, 1)), "u": normal((o, o, 3, 3))},
        ),
        "merged": ([conv("x", "w", "s", bias="b")], base),
        "map": ([main, add("Add", ["a", "m"], ["s"])], {**base, "m": normal((1, o, size, size))}),
        "plane": (
            [main, *plane, add("Add", ["a", "q"], ["s"])],
            {**base, "ones": np.ones(2, np.int64), "one": np.ones(()), "k": normal((o, 1, 3, 3))},
        ),
        "channel": (
            [add("Pad", ["x", "pads", "one"], ["p"]), conv("p", "k", "s", bias="b")],
            {
                "pads": np.array([0, 0, 0, 0, 0, 1, 0, 0]),
                "one": np.ones(()),
                "k": normal((o, c + 1, 3, 3)),
                "b": base["b"],
            },
        ),
    }


def runner(
    nodes: list[NodeProto], arrays: Arrays, shape: list[int], declared: list[int | str]
) -> Callable[[], None]:
    """A function that runs the way once at a shape; the file declares another."""
    stored = [
        numpy_helper.from_array(a if a.dtype == np.int64 else a.astype(np.float32), name)
        for name, a in arrays.items()
    ]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Relu", ["s"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, declared)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return lambda: session.run(None, {"x": x})


def main() -> int:
    """Print one row per size; the exit code is 0."""
    unsized = "--open" in sys.argv[1:]
    names = ["merged", *([] if unsized else ["map"]), "plane", "channel"]
    print(f"{'channels':>12} {'size':>5} {'branch':>10} " + " ".join(f"{n:>8}" for n in names))
    for c, o, size in SIZES:
        shape: list[int] = [1, c, size, size]
        declared: list[int | str] = ["N", c, "H", "W"] if unsized else [*shape]
        found = {
            name: runner(*way, shape, declared)
            for name, way in ways(c, o, size).items()
            if name in ("branch", *names)
        }
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(ROUNDS):
            for name, once in found.items():
                start = time.perf_counter()
                once()
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratios = " ".join(f"{medians[name] / medians['branch']:8.2f}" for name in names)
        print(f"{c:>5} → {o:<4} {size:>5} {medians['branch'] * 1e6:7.0f} µs {ratios}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
