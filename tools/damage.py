"""Damage models and hold the command to its word: an exit code, one line, and no half of a file.

    python tools/damage.py --count 3000 --seed 0 [--only-seed N] [--jobs 2] [--keep DIR]

Takes fixtures and random models, damages each in one to three ways (`damage_kinds`), and runs
`fuse`, `check` or `explain` on the file in a process of its own. A run must end with 0 to 3, say at
most one line per error, raise nothing, take less than 20 s and 2 GB (6 GB where it runs the model),
and leave OUT as it was unless it ends with 0. Quantised, integer and custom models that nothing is
done to must come out byte for byte. Prints a seed for each run that does not, and exits with 1 if
there was one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

import damage_files as files  # noqa: E402
import damage_foreign  # noqa: E402
import damage_kinds as kinds  # noqa: E402
from random_graphs import make  # noqa: E402

SECONDS = 20.0
"""Of the processor; a machine may be busy otherwise."""
PATIENCE = 600.0
"""Seconds after which a process that says nothing is ended; on a busy machine they are few."""
MEMORY, RUNNING = 2 << 30, 6 << 30
"""Bytes a run may take; the second where the model itself is run, which takes what it takes."""
LIMIT = 16 << 30
"""Address space of a worker, so that a bomb harms nobody."""
SMALL = 40_000
"""Bytes of the largest fixture that is damaged."""
KEPT = b"what stood here before"
LINE = re.compile(r"onnxfuse: (error|note): \S")


@cache
def fixtures() -> list[Path]:
    """Small files, so that a run takes no second."""
    found = sorted((ROOT / "fixtures").glob("*/*.onnx"))
    return [path for path in found if path.stat().st_size < SMALL]


def source(rng: np.random.Generator) -> onnx.ModelProto:
    """An undamaged model."""
    if rng.random() < 0.5:
        return make(int(rng.integers(100_000)), 2).model
    return onnx.load(kinds.pick(rng, fixtures()))


def damaged(seed: int, folder: Path) -> tuple[bytes, list[str]]:
    """A damaged model with what was done to it; its data files are written into ``folder``."""
    rng = np.random.default_rng(seed)
    model = source(rng)
    names = [name for name, share in files.SHARES.items() for _ in range(share)]
    done = [str(kinds.pick(rng, names)) for _ in range(int(kinds.pick(rng, [1, 1, 1, 2, 3])))]
    if done[0] == "foreign":  # nothing is done to it, and nothing may be
        return damage_foreign.foreign(rng).SerializeToString(), ["foreign"]
    for name in done:
        if name in files.KINDS:
            model = files.KINDS[name](rng, model)
        elif name == "graft":
            model = files.grafted(rng, model, source(rng))
        elif name == "external":
            model = files.external(rng, model, folder)
    data = model.SerializeToString()
    if "raw" in done:
        data = files.raw(rng, data or b"x", source(rng).SerializeToString())
    if "unread" in done:
        data = files.unread(rng, data, model)
    return data, done


def arguments(seed: int, folder: Path, done: list[str]) -> list[str]:
    """The command for a seed: mostly one that fuses.

    A model that asks for much memory itself gets it where it is run, so it is not.
    """
    model, out = str(folder / "model.onnx"), str(folder / "out.onnx")
    form = ["text", "text", "json", "markdown", "junit", "github"][seed // 7 % 6]
    if seed % 5 == 3:
        return ["check", model, "--format", form, "--max-macs", "1M"]
    if seed % 5 == 4:
        return ["explain", model, "--format", form, "-v"]
    flags = [[], [], ["--no-verify"], ["--approximate-borders"], ["--keep-post-bn"]][seed // 5 % 5]
    if "bomb" in done:
        flags = ["--no-verify"]
    return [model, out, "--format", form, *flags]


def run(seed: int, folder: Path) -> tuple[list[str], str]:
    """What is wrong with the run of a seed; and what it came to."""
    from onnxfuse.cli import main

    try:
        data, done = damaged(seed, folder)
    except (MemoryError, ValueError, DecodeError) as error:  # too large or too deep
        return [], f"not made: {type(error).__name__}"
    model, out, heard = folder / "model.onnx", folder / "out.onnx", folder / "heard"
    model.write_bytes(data)
    out.unlink(missing_ok=True)
    if seed % 2:
        out.write_bytes(KEPT)
    before = sorted(folder.iterdir())
    words = arguments(seed, folder, done)
    _forget_peak()
    started = time.process_time()
    with heard.open("wb") as stream, Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(1), os.dup(2)
        os.dup2(nowhere.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        code: object
        try:
            code = main(words)
        except SystemExit as error:
            code = f"SystemExit({error.code})"
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"[:300]
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, was in zip((1, 2), kept, strict=True):
                os.dup2(was, fd)
                os.close(was)
    wrong = _wrong(code, heard.read_bytes().decode("utf-8", "replace"))
    seconds, peak = time.process_time() - started, _peak()
    if seconds > SECONDS:
        wrong.append(f"{seconds:.0f} s")
    whole = words[0] == str(model) and "--no-verify" not in words
    if peak > (RUNNING if whole else MEMORY):
        wrong.append(f"{peak >> 20} MiB")
    if len(words) and words[0] == str(model):
        wrong += _files(code, out, KEPT if seed % 2 else None)
        if done == ["foreign"] and (not out.exists() or out.read_bytes() != data):
            wrong.append("a model that nothing is to be done to is not copied as it is")
    heard.unlink()
    written = {out, out.with_suffix(".onnxfuse.data")} if code == 0 else {out}
    left = sorted(set(folder.iterdir()) - set(before) - written)
    if left:
        wrong.append(f"left behind: {[place.name for place in left]}")
    return wrong, f"{words[0] if words[0] in ('check', 'explain') else 'fuse'} {code}" + (
        f" ({'+'.join(done)})" if wrong else ""
    )


def _wrong(code: object, heard: str) -> list[str]:
    lines = heard.splitlines()
    wrong = [] if code in (0, 1, 2, 3) else [f"ended with {code}"]
    errors = [line for line in lines if line.startswith("onnxfuse: error: ")]
    wrong += [f"stderr: {line[:200]}" for line in lines if not LINE.match(line)][:3]
    wrong += [f"says: {line[:300]}" for line in lines if "internal error" in line]
    wrong += [f"says: {line[:300]}" for line in lines if "please report" in line][:1]
    if len(errors) != (1 if code in (2, 3) else 0):
        wrong.append(f"{len(errors)} errors at exit code {code}")
    wrong += [f"a line of {len(line)}" for line in lines if len(line) > 2000]
    return list(dict.fromkeys(wrong))


def _files(code: object, out: Path, kept: bytes | None) -> list[str]:
    held = out.read_bytes() if out.exists() else None
    if code != 0:
        return [] if held == kept else ["OUT was touched"]
    if held is None or held == KEPT:
        return ["no OUT at exit code 0"]
    try:
        onnx.ModelProto.FromString(held)
    except Exception as error:
        return [f"OUT does not parse: {error}"]
    return []


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak() -> int:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return int(text.split("VmHWM:")[1].split()[0]) << 10


def work(seeds: range, folder: Path, told: Connection) -> None:
    """A worker: one seed after the other, each announced before it is run."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", RuntimeWarning)
    warnings.simplefilter("always", UserWarning)
    from onnxfuse.cli import main  # noqa: F401 - the first seed shall not pay for it

    for seed in seeds:
        told.send((seed, None, ""))
        place = folder / "in"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        wrong, what = run(seed, place)
        told.send((seed, wrong, what))
    told.send((None, [], ""))


class Job:
    """A range of seeds in a process that is started again where a seed ends it."""

    def __init__(self, seeds: range, folder: Path) -> None:
        self.seeds, self.folder = seeds, folder
        self.current = seeds.start
        self.over = not seeds
        if not self.over:
            self.start(seeds)

    def start(self, seeds: range) -> None:
        self.told, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=work, args=(seeds, self.folder, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.since = time.monotonic() + 30  # the interpreter starts first

    def step(self) -> tuple[int, list[str], str] | None:
        """The next result, if there is one."""
        fate = ""
        try:
            if self.told.poll(0.05):
                seed, wrong, what = self.told.recv()
                self.since = time.monotonic()
                if seed is None:
                    self.over = True
                    self.process.join()
                    return None
                self.current = seed
                return None if wrong is None else (seed, wrong, what)
            if time.monotonic() - self.since > PATIENCE:
                fate = f"no end after {PATIENCE:.0f} s"
        except EOFError:
            self.process.join()
            fate = f"the process died with {self.process.exitcode}"
        if not fate:
            return None
        self.process.kill()
        self.process.join()
        rest = range(self.current + self.seeds.step, self.seeds.stop, self.seeds.step)
        self.over = not rest
        if rest:
            self.start(rest)
        return self.current, [fate], "died"


def main() -> int:
    """Damage and run a range of seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only-seed", type=int, help="run one seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", help="a folder for the files of --only-seed")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.count)
    if options.only_seed is not None:
        seeds = range(options.only_seed, options.only_seed + 1)
    began, totals, broken = time.monotonic(), Counter[str](), dict[int, list[str]]()
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            Job(seeds[start :: options.jobs], Path(folder) / str(start))
            for start in range(min(options.jobs, len(seeds)))
        ]
        while jobs:
            for job in jobs:
                result = job.step()
                if result is None:
                    continue
                seed, wrong, what = result
                totals[what.split(" (")[0]] += 1
                if wrong:
                    broken[seed] = wrong
                    print(
                        f"seed {seed}: {what}: {json.dumps(wrong, ensure_ascii=False)}", flush=True
                    )
            jobs = [job for job in jobs if not job.over]
        if options.keep:
            shutil.copytree(Path(folder) / "0", options.keep, dirs_exist_ok=True, symlinks=True)
    print(f"seeds {seeds.start} to {seeds.stop - 1}, {time.monotonic() - began:.0f} s")
    print(", ".join(f"{what}: {count}" for what, count in sorted(totals.items())))
    if broken:
        print("failing seeds:", " ".join(map(str, sorted(broken))))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
