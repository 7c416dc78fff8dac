"""How long `onnxfuse --version` takes beside Python that imports argparse."""

from __future__ import annotations

import compileall
import shutil
import sys
import tempfile
import venv
from pathlib import Path

from bench_measure import Section, Target, of, run

PACKAGE = Path(__file__).resolve().parent.parent / "onnxfuse"
SCRIPT = "#!{python}\nimport sys\nfrom onnxfuse.cli import main\nsys.exit(main())\n"


def measured(rounds: int) -> Section:
    """Both programs in turn, from an environment that holds onnxfuse alone.

    An environment of its own, since an editable install loads a finder each time Python starts.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home, with_pip=False, symlinks=True)
        python = home / "bin" / "python"
        site = next(home.glob("lib/python*/site-packages"))
        shutil.copytree(PACKAGE, site / "onnxfuse", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(site, quiet=1)
        script = home / "bin" / "onnxfuse"
        script.write_text(SCRIPT.format(python=python))
        script.chmod(0o755)
        ours, theirs = [], []
        for turn in range(rounds + 1):
            pair = (
                run([str(script), "--version"], 60),
                run([str(python), "-c", "import argparse"], 60),
            )
            if turn:  # the first reads files that no later one has to
                ours.append(pair[0].wall)
                theirs.append(pair[1].wall)
    found = of("start-up", ours, theirs)
    low, high = found.interval()
    text = f"{found.median:.2f} [{low:.2f}, {high:.2f}]"
    row = (f"{1e3 * sorted(ours)[len(ours) // 2]:.0f} ms",
           f"{1e3 * sorted(theirs)[len(theirs) // 2]:.0f} ms", text)  # fmt: skip
    return Section(
        "Start-up",
        f"Whole processes, {rounds} of each in turn, by the clock, in a new environment of Python "
        f"{sys.version.split()[0]}.",
        [(("`onnxfuse --version`", '`python -c "import argparse"`', "ratio"), [row])],
        [Target('`onnxfuse --version` ÷ `python -c "import argparse"`', "≤ 1.5", text,
                found.median <= 1.5)],
    )  # fmt: skip
