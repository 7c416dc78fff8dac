"""A model of several GiB with external data: time against copying its files, and memory.

    python tools/bench_big.py                  3 GiB, two interleaved runs of each
    python tools/bench_big.py --gib 1 --runs 1 --layers conv

Weights are drawn at random and lie in one data file; each layer is a linear map, a scale and a
shift, which fuse, and a Relu. The output goes to a directory of its own. Printed are medians of
wall times, their ratio to `cp` of the files in the same run, and the peak of anonymous memory
(RssAnon: mapped files do not count), sampled while the process runs.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

CHANNELS = {"linear": 8192, "conv": 2048}
BLOCK = 1 << 24


def layer(kind: str, number: int) -> tuple[list[onnx.NodeProto], dict[str, tuple[int, ...]]]:
    """A Gemm or a Conv, what folds into it, and a Relu; and the shapes of the weights."""
    channels, name = CHANNELS[kind], f"layer{number}"
    read = f"x{number}"
    spatial = (1, 1) if kind == "conv" else ()
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}/weight": (channels, channels, *((3, 3) if kind == "conv" else ())),
        f"{name}/scale": (1, channels, *spatial),
        f"{name}/shift": (1, channels, *spatial),
    }
    attributes = {"pads": [1, 1, 1, 1]} if kind == "conv" else {"transB": 1}
    operator = "Conv" if kind == "conv" else "Gemm"
    weight, scale, shift = shapes
    nodes = [
        helper.make_node(operator, [read, weight], [f"{name}/a"], f"{name}/map", **attributes),
        helper.make_node("Mul", [f"{name}/a", scale], [f"{name}/b"], f"{name}/Mul"),
        helper.make_node("Add", [f"{name}/b", shift], [f"{name}/c"], f"{name}/Add"),
        helper.make_node("Relu", [f"{name}/c"], [f"x{number + 1}"], f"{name}/Relu"),
    ]
    return nodes, shapes


def make(place: Path, kind: str, size: int) -> int:
    """Write a model of about ``size`` bytes; gives the number of layers."""
    generator = np.random.default_rng(1)
    nodes: list[onnx.NodeProto] = []
    tensors: list[TensorProto] = []
    total = number = 0
    with (place.parent / "weights.data").open("wb") as stream:
        while total < size:
            more, shapes = layer(kind, number)
            nodes += more
            for name, shape in shapes.items():
                offset = -(-stream.tell() // 4096) * 4096
                stream.seek(offset)
                count = int(np.prod(shape))
                for first in range(0, count, BLOCK):
                    part = generator.standard_normal(min(BLOCK, count - first), np.float32)
                    part *= 0.02
                    stream.write(part.tobytes())
                tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
                tensor.data_location = TensorProto.EXTERNAL
                where = {"location": "weights.data", "offset": offset, "length": 4 * count}
                for key, value in where.items():
                    tensor.external_data.add(key=key, value=str(value))
                tensors.append(tensor)
                total += 4 * count
            number += 1
    shape = [1, CHANNELS[kind], *((8, 8) if kind == "conv" else ())]
    first = helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)
    last = helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "big", [first], [last], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    place.write_bytes(model.SerializeToString())
    return number


def timed(command: list[str]) -> tuple[float, float, int]:
    """Wall and processor seconds of a process, and the peak of its anonymous memory in bytes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(process.stderr.read().decode() if process.stderr else "failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, peak


def anonymous(pid: int) -> int:
    """The anonymous memory of a process in bytes; 0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def commands(model: Path, out: Path, away: Path) -> Iterator[tuple[str, list[str]]]:
    """What is timed, by what it is called."""
    yield "cp", ["cp", str(model), str(model.parent / "weights.data"), str(away)]
    fuse = [sys.executable, "-m", "onnxfuse", str(model), str(out / "out.onnx"), "-q", "--isolated"]
    one = ["--only", "layer0/*"]
    yield "one region, --no-verify", [*fuse, *one, "--no-verify"]
    yield "one region", [*fuse, *one]
    yield "every region, --no-verify", [*fuse, "--no-verify"]
    yield "every region", fuse


def main() -> None:
    """Make the model, run everything in turn, print medians."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--gib", type=float, default=3.0, help="size of the weights")
    arguments.add_argument("--runs", type=int, default=2, help="interleaved runs of each")
    arguments.add_argument("--layers", choices=("linear", "conv"), default="linear")
    arguments.add_argument("--same", action="store_true", help="write beside the model")
    arguments.add_argument("--only", default="", help="time only what holds these words")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnxfuse-bench-") as folder:
        home = Path(folder) / "in"
        home.mkdir()
        layers = make(home / "big.onnx", chosen.layers, int(chosen.gib * 2**30))
        size = sum(path.stat().st_size for path in home.iterdir())
        print(f"{size / 2**30:.2f} GiB in {layers} {chosen.layers} layers, {chosen.runs} runs each")
        found: dict[str, list[tuple[float, float, int]]] = {}
        for _ in range(chosen.runs):
            away = Path(folder) / "out"
            out = home if chosen.same else away
            for name, command in commands(home / "big.onnx", out, away):
                if name != "cp" and chosen.only not in name:
                    continue
                away.mkdir()
                found.setdefault(name, []).append(timed(command))
                shutil.rmtree(away)
                for path in home.glob("out*"):
                    path.unlink()
        copying = statistics.median(seconds for seconds, *_ in found["cp"])
        for name, runs in found.items():
            seconds = statistics.median(s for s, *_ in runs)
            busy = statistics.median(b for _, b, _ in runs)
            peak = max(memory for *_, memory in runs) / 2**20
            times = f"{seconds:6.2f} s ({busy:5.2f} s of processors)"
            print(f"{name:28} {times}  {seconds / copying:5.2f} × cp  {peak:6.0f} MiB")


if __name__ == "__main__":
    main()
