"""Fuse random models and check everything that must hold of the result.

    python tools/fuzz.py --graphs 20000 --seed 0 [--only-seed N] [--blocks B] [--keep-going]
                         [--approximate] [--light] [--nodes N] [--jobs N]

Prints how often which operators, laws and refusals were met, every failure with its seed and the
smallest model found that still fails, and exits with 1 if there was one. A run of `LONG` graphs or
more also fails where a law was accepted fewer than `LEAST` times.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import onnxruntime as ort
from onnx import ModelProto

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from checking import Finding, Outcome, examine, examine_approximate
from comparing import Rejected
from fuzz_shrink import listing, shrink
from fuzz_tally import Tally
from random_graphs import Sample, make

LONG = 100_000
LEAST = 1_000
CHUNK = 100
"""Seeds that a process takes at a time."""


def worst(outcome: Outcome) -> Finding:
    """The gravest failure of a seed."""
    return min(outcome.findings, key=lambda finding: finding.severity)


def checked(
    model: ModelProto, nominal: Mapping[str, int], seed: int, options: argparse.Namespace
) -> Outcome:
    """What comes of a model."""
    if options.approximate:
        return examine_approximate(model, nominal, seed)
    return examine(model, nominal, seed, full=not options.light)


def describe(outcome: Outcome, sample: Sample, options: argparse.Namespace) -> str:
    """The failures of a seed, the worst one with the smallest model found that shows it."""
    first = worst(outcome)

    def fails(model: ModelProto) -> bool:
        try:
            found = checked(model, sample.nominal, outcome.seed, options)
        except Rejected:  # it runs, but cannot be judged
            return False
        return any(finding.kind == first.kind for finding in found.findings)

    lines = [f"seed {outcome.seed}: {finding.text}" for finding in outcome.findings]
    return "\n".join([*lines, "    " + listing(shrink(sample.model, sample.nominal, fails))])


def part(options: argparse.Namespace, seeds: range) -> Tally:
    """What some seeds come to; the first failures of each kind are made smaller."""
    warnings.simplefilter("error")
    ort.set_default_logger_severity(4)
    tally = Tally()
    for seed in seeds:
        sample = make(seed, options.blocks)
        if options.nodes and len(sample.model.graph.node) > options.nodes:
            tally.totals["larger, left out"] += 1
            continue
        with tally.watching():
            outcome = checked(sample.model, sample.nominal, seed, options)
        tally.count(outcome)
        if outcome.findings:
            kind = worst(outcome).kind
            tally.broken.append(seed)
            tally.failures[kind] += 1
            if tally.failures[kind] <= 2:
                tally.texts.append((kind, describe(outcome, sample, options)))
            if not options.keep_going:
                break
    return tally


def parts(options: argparse.Namespace, seeds: range) -> Iterator[Tally]:
    """The tallies of consecutive seeds, by as many processes as were asked for."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if options.jobs == 1:
        yield from map(partial(part, options), chunks)
        return
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        try:
            yield from pool.map(partial(part, options), chunks)
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> int:
    """Fuzz a range of seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--graphs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only-seed", type=int, help="check one seed")
    parser.add_argument("--blocks", type=int, default=3, help="blocks one behind the other")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a failure")
    parser.add_argument("--approximate", action="store_true", help="with approximate borders")
    parser.add_argument(
        "--light", action="store_true", help="plan and fuse a second time for some seeds only"
    )
    parser.add_argument("--nodes", type=int, default=0, help="leave out models of more nodes")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.graphs)
    if options.only_seed is not None:
        seeds = range(options.only_seed, options.only_seed + 1)
    total, shown = Tally(), Counter[str]()
    began = said = time.monotonic()
    for found in parts(options, seeds):
        total.add(found)
        for kind, text in found.texts:
            shown[kind] += 1
            if shown[kind] <= 2:
                print(f"[{kind}]\n{text}\n", flush=True)
        if total.broken and not options.keep_going:
            break
        if time.monotonic() - said > 60:
            said = time.monotonic()
            done = sum(total.totals[name] for name in ("made", "larger, left out"))
            print(f"{done} of {len(seeds)} seeds, {said - began:.0f} s", flush=True)
    print(f"seeds {seeds.start} to {seeds.stop - 1}, {time.monotonic() - began:.0f} s")
    print("\n".join(total.lines()))
    rare = total.rare(LEAST) if total.totals["made"] >= LONG else []
    if rare:
        print(f"accepted less than {LEAST} times: {', '.join(rare)}")
    return 1 if total.broken or rare else 0


if __name__ == "__main__":
    sys.exit(main())
