"""Fuse random models and check everything that must hold of the result.

    python tools/fuzz.py --graphs 20000 --seed 0 [--only-seed N] [--blocks B] [--keep-going]
                         [--approximate]

Prints how often which operators and refusals were met, every failure with its seed and the
smallest model found that still fails, and exits with 1 if there was one.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort
from onnx import ModelProto

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from checking import Finding, Outcome, examine, examine_approximate
from comparing import Rejected
from fuzz_shrink import listing, shrink
from random_graphs import Sample, make


def worst(outcome: Outcome) -> Finding:
    """The gravest failure of a seed."""
    return min(outcome.findings, key=lambda finding: finding.severity)


def checked(model: ModelProto, nominal: Mapping[str, int], seed: int, approximate: bool) -> Outcome:
    """What comes of a model."""
    if approximate:
        return examine_approximate(model, nominal, seed)
    return examine(model, nominal, seed, full=True)


def describe(outcome: Outcome, sample: Sample, approximate: bool) -> str:
    """The failures of a seed, the worst one with the smallest model found that shows it."""
    first = worst(outcome)

    def fails(model: ModelProto) -> bool:
        try:
            found = checked(model, sample.nominal, outcome.seed, approximate)
        except Rejected:  # it runs, but cannot be judged
            return False
        return any(finding.kind == first.kind for finding in found.findings)

    lines = [f"seed {outcome.seed}: {finding.text}" for finding in outcome.findings]
    return "\n".join([*lines, "    " + listing(shrink(sample.model, sample.nominal, fails))])


def main() -> int:
    """Fuzz a range of seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--graphs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only-seed", type=int, help="check one seed")
    parser.add_argument("--blocks", type=int, default=3, help="blocks one behind the other")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a failure")
    parser.add_argument("--approximate", action="store_true", help="with approximate borders")
    options = parser.parse_args()
    warnings.simplefilter("error")
    ort.set_default_logger_severity(4)
    seeds = range(options.seed, options.seed + options.graphs)
    if options.only_seed is not None:
        seeds = range(options.only_seed, options.only_seed + 1)
    kinds: Counter[str] = Counter()
    totals, operators, codes, broken = Counter[str](), Counter[str](), Counter[str](), []
    began = time.monotonic()
    for seed in seeds:
        sample = make(seed, options.blocks)
        outcome = checked(sample.model, sample.nominal, seed, options.approximate)
        tally(outcome, totals, operators, codes)
        if outcome.findings:
            broken.append(seed)
            kind = worst(outcome).kind
            kinds[kind] += 1
            if kinds[kind] <= 2:
                print(f"[{kind}]\n{describe(outcome, sample, options.approximate)}\n", flush=True)
            if not options.keep_going:
                break
    print(f"seeds {seeds.start} to {seeds.stop - 1}, {time.monotonic() - began:.0f} s")
    for title, counter in (
        ("models", totals),
        ("operators in fused regions", operators),
        ("refusals", codes),
        ("failures", kinds),
    ):
        text = ", ".join(f"{name} {count}" for name, count in counter.most_common())
        print(f"{title}: {text or 'none'}")
    if broken:
        print("failing seeds:", " ".join(map(str, broken)))
    return 1 if broken else 0


def tally(
    outcome: Outcome, totals: Counter[str], operators: Counter[str], codes: Counter[str]
) -> None:
    """Count what one seed met."""
    totals["made"] += 1
    totals["invalid"] += not outcome.valid
    totals["runs compared"] += outcome.runs
    totals["runs with empty tensors left out"] += outcome.empty
    if outcome.report is None:
        return
    totals["fused"] += outcome.report.changed
    codes.update(str(refusal.code) for refusal in outcome.report.refusals)
    for region in outcome.report.regions:
        totals["regions"] += 1
        totals["merges of several Conv"] += region.before.conv > region.after.conv > 0
        for part in region.was.split(", "):
            count, _, name = part.rpartition(" ")
            operators[name] += int(count or 1)


if __name__ == "__main__":
    sys.exit(main())
