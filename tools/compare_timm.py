"""Fuse timm's networks and compare each with timm's own reparameterized form of the same weights.

    python tools/compare_timm.py --out FOLDER [--only GLOB] [--exporter ts|dynamo] [--size N]

`export` (tools/export_timm.py, which needs torch and timm) writes the files into FOLDER, and
`compare` reads them, which needs onnxfuse alone; without a step both are done. With two
environments, run each step with its own Python:

    torch-env/bin/python tools/compare_timm.py export --out FOLDER
    dev-env/bin/python tools/compare_timm.py compare --out FOLDER

For each network: nodes, Conv, BN and MACs of the export, of its fused form and of timm's form;
what the multisets of (operator, kernel, stride, groups) of the last two differ in; the relative
RMS of the difference between the outputs of the original and the fused model in onnxruntime, and
how many times the network's own float32 error that is; the time onnxfuse takes, and what of it is
planning; latency in onnxruntime as the median of ratios of runs taken in turn.

Verdicts, against timm's form where there is one:

    equal    the same multiset
    further  what onnxfuse makes of timm's form, so it did all that timm does, and more besides
    cheaper  otherwise another multiset, but no more nodes, Conv, BN, MACs or parameters
    dearer   more of one of them
    control  timm has no other form
    FAILED   not fused, not proved, not equal, or not finished in time
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

EXPORTERS = ("ts", "dynamo")
Signature = Counter[tuple[Any, ...]]
# The fused network's distance from the original, in float32 errors of the original: two orders of
# summation of the same numbers, each about one such error away from the exact result. A wrong
# border or scale shows at a hundred and more.
ALLOWED = 8.0
COUNTED = ("nodes", "conv", "batch_normalization", "macs", "parameters")


def signature(model: Any) -> Signature:
    """The nodes of a model by operator, kernel, stride and groups; constants are no nodes."""
    from onnx import helper

    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: Signature = Counter()
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = node.attribute[0]
            if value.name == "value":
                weights[node.output[0]] = tuple(value.t.dims)
            continue
        if node.op_type == "Identity" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
            continue
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in {"Conv", "ConvTranspose"}:
            kernel = weights.get(node.input[1], ())[2:] or tuple(settings.get("kernel_shape", ()))
            stride = tuple(settings.get("strides", [1] * len(kernel)))
            found[node.op_type, kernel, stride, settings.get("group", 1)] += 1
        elif node.op_type.endswith("Pool"):
            kernel = tuple(settings.get("kernel_shape", ()))
            found[node.op_type, kernel, tuple(settings.get("strides", ())), 1] += 1
        else:
            found[node.op_type,] += 1
    return found


def in_words(key: tuple[Any, ...]) -> str:
    """A key of a signature: Conv 3×3 /2 g48."""
    if len(key) == 1:
        return str(key[0])
    operator, kernel, stride, groups = key
    text = f"{operator} {'×'.join(map(str, kernel))}".strip()
    text += f" /{stride[0]}" if any(step != 1 for step in stride) else ""
    return text + (f" g{groups}" if groups != 1 else "")


def difference(mine: Signature, theirs: Signature) -> str:
    """What the first has more (+) and less (−) than the second."""
    counts = {key: mine[key] - theirs[key] for key in mine | theirs}
    parts = [f"{count:+d} {in_words(key)}" for key, count in counts.items() if count]
    return ", ".join(sorted(parts, key=lambda part: part.split(" ")[1])).replace("-", "−")


def fuse(source: Path, target: Path, timeout: float) -> dict[str, Any]:
    """The JSON report of `onnxfuse SOURCE TARGET`, with its time, or with why there is none."""
    command = [sys.executable, "-m", "onnxfuse", str(source), str(target), "--isolated"]
    target.unlink(missing_ok=True)
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            [*command, "--format", "json"], capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no result in {timeout:g} s"}
    seconds = round(time.perf_counter() - begin, 2)
    if done.returncode or not target.exists():
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        with contextlib.suppress(ValueError, KeyError):
            said = json.loads(done.stdout)["error"] or said
        return {"failed": f"exit {done.returncode}: {said[-600:]}", "seconds": seconds}
    report: dict[str, Any] = json.loads(done.stdout)
    return report | {"seconds": seconds}


def outputs(content: bytes, feeds: dict[str, Any]) -> list[Any]:
    """What a model computes in onnxruntime with optimisations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, feeds)
    return found


def relative(expected: list[Any], actual: list[Any]) -> float:
    """The worst relative RMS difference of an output; infinite where it is not finite."""
    import numpy as np

    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        scale = float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))
        apart = float(np.sqrt(np.mean(np.square(a.astype(np.float64) - b))))
        ratio = apart / scale if scale else apart
        worst = max(worst, ratio) if np.isfinite(ratio) else float("inf")
    return worst


def feeds_for(model: Any) -> dict[str, Any]:
    """Seeded standard-normal inputs."""
    import numpy as np

    generator = np.random.default_rng(0)
    names = {tensor.name for tensor in model.graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in names
    }
    return {n: generator.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def verdict(row: dict[str, Any]) -> str:
    """How the fused model stands to timm's form."""
    if row["error"] > ALLOWED * max(row["noise"], 1e-7):
        return "FAILED: not equal"
    if row["again"]:
        return "FAILED: a second run fuses more"
    if "deploy" not in row:
        return "control"
    if not row["difference"]:
        return "equal"
    if not row["difference_fused"]:
        return "further"
    dearer = [n for n in COUNTED if row["after"][n] > row["deploy"][n]]
    return f"dearer ({', '.join(dearer)})" if dearer else "cheaper"


def compare(
    name: str, exporter: str, facts: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """One row: a network as one exporter wrote it, beside timm's form from the same exporter."""
    import onnx
    from bench_measure import latencies, ratio, session

    import onnxfuse

    source, target = (options.out / f"{name}.{exporter}{end}.onnx" for end in ("", ".fused"))
    theirs, beyond = (options.out / f"{name}.{exporter}-deploy{end}.onnx" for end in ("", ".fused"))
    row: dict[str, Any] = {"name": name, "exporter": exporter, "facts": facts}
    if not source.exists():
        return row | {
            "verdict": "FAILED: "
            + facts.get(f"{exporter}_failed", facts.get("failed", "no export"))
        }
    report = fuse(source, target, options.timeout)
    row |= {key: report.get(key) for key in ("before", "after", "seconds", "verification")}
    if "failed" in report:
        return row | {"verdict": "FAILED: " + report["failed"]}
    begin = time.process_time()  # of this process, so that others on the machine do not count
    onnxfuse.plan(source)
    row["plan_ms"] = round(1e3 * (time.process_time() - begin))
    row["again"] = len(onnxfuse.plan(target).regions)
    row["kept"] = Counter(r["reason"]["code"] for r in report["regions"] if r["reason"])

    models = [onnx.load(source), onnx.load(target)]
    feeds = feeds_for(models[0])
    row["error"] = relative(*(outputs(m.SerializeToString(), feeds) for m in models))
    row["noise"] = facts[f"{exporter}_rms"]
    ours = signature(models[1])
    if theirs.exists():
        deploy = fuse(theirs, beyond, options.timeout)
        if "failed" in deploy:
            return row | {"verdict": "FAILED: timm's form: " + deploy["failed"]}
        row["deploy"] = deploy["before"]
        models.append(onnx.load(theirs))
        row["difference"] = difference(ours, signature(models[2]))
        row["difference_fused"] = difference(ours, signature(onnx.load(beyond)))
    if options.rounds:
        times = latencies([session(m, options.threads) for m in models], feeds, options.rounds)
        row["to_original"] = ratio(times[1], times[0])
        if theirs.exists():
            row["to_deploy"] = ratio(times[1], times[2])
    return row | {"verdict": verdict(row)}


def short(number: float) -> str:
    """A count with three digits: 1.23M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line per row, and below it in what the multisets differ."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("network", "", "nodes", "Conv", "BN", "MACs", "params"):
        table.add_column(title, no_wrap=True)
    for title in ("verdict", "error", "×own", "seconds", "plan ms", "t/timm", "t/original"):
        table.add_column(title, justify="left" if title == "verdict" else "right")

    def counts(row: dict[str, Any], key: str) -> str:
        text = f"{short(row['before'][key])}→{short(row['after'][key])}"
        return f"{text} / {short(row['deploy'][key])}" if "deploy" in row else text

    def number(row: dict[str, Any], key: str, form: str) -> str:
        return form.format(row[key]) if row.get(key) is not None else ""

    for row in rows:
        known = row.get("after") is not None
        table.add_row(
            row["name"],
            row["exporter"],
            *(counts(row, key) if known else "" for key in COUNTED),
            row["verdict"][:60],
            number(row, "error", "{:.1e}"),
            f"{row['error'] / row['noise']:.1f}" if row.get("noise") else "",
            number(row, "seconds", "{:.1f}"),
            number(row, "plan_ms", "{}"),
            number(row, "to_deploy", "{:.2f}"),
            number(row, "to_original", "{:.2f}"),
        )
    console = Console(width=200, highlight=False)
    console.print("original→fused / timm's form; t: time of fused over that of the other")
    console.print(table)
    for row in rows:
        place = f"{row['name']} {row['exporter']}"
        if row.get("difference"):
            console.print(f"{place}: fused against timm's form: {row['difference']}", markup=False)
        if row.get("difference_fused"):
            text = f"{place}: fused against fused timm's form: {row['difference_fused']}"
            console.print(text, markup=False)
        if row["verdict"].startswith("FAILED"):
            console.print(f"{place}: {row['verdict']}", markup=False)
        if row["facts"].get("deploy_failed"):
            console.print(f"{place}: timm's form: {row['facts']['deploy_failed']}", markup=False)
        if row["facts"].get("deploy_error", 0) > 1e-5:
            text = f"{place}: timm's form is {row['facts']['deploy_error']:.1e} off in float64"
            console.print(text, markup=False)


def compare_all(options: argparse.Namespace) -> int:
    """Compare what lies in the folder; the exit code is 1 where something failed."""
    rows: list[dict[str, Any]] = []
    exporters = (options.exporter,) if options.exporter else EXPORTERS
    for path in sorted(options.out.glob("*.json")):
        name = path.stem
        if not any(fnmatch(name, glob) for glob in options.only or ["*"]):
            continue
        facts = json.loads(path.read_text())
        for exporter in exporters:
            if f"{exporter}_seconds" not in facts and "failed" not in facts:
                continue  # not asked for when it was exported
            rows.append(compare(name, exporter, facts, options))
            print(f"{name} {exporter}: {rows[-1]['verdict']}", file=sys.stderr, flush=True)
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(row["verdict"].startswith("FAILED") for row in rows))


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Compare fused networks of timm with its own.")
    parser.add_argument("step", nargs="?", choices=("export", "compare"), help="default: both")
    parser.add_argument("--out", type=Path, required=True, help="where the exports lie")
    parser.add_argument("--only", action="append", metavar="GLOB", help="networks (repeatable)")
    parser.add_argument("--exporter", choices=EXPORTERS, help="one exporter (default: both)")
    parser.add_argument("--size", type=int, help="of the input (default: the least that works)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one fusion")
    parser.add_argument("--rounds", type=int, default=30, help="of latency; 0 for none")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime, for latency")
    options = parser.parse_args(arguments)
    if options.step != "compare":
        import export_timm

        chosen = [f"--only={glob}" for glob in options.only or []]
        chosen += [f"--exporter={options.exporter}"] if options.exporter else []
        chosen += [f"--size={options.size}"] if options.size else []
        export_timm.main(["--out", str(options.out), *chosen])
    return 0 if options.step == "export" else compare_all(options)


if __name__ == "__main__":
    sys.exit(main())
