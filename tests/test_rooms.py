"""Which room may know which: import directions, and that importing the package is cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxfuse
from onnxfuse.refusal import Code

PACKAGE = Path(onnxfuse.__file__).parent
FIXTURES = PACKAGE.parent / "fixtures" / "pytorch"
NOTHING = str(FIXTURES / "basic_block.ts.onnx")
FUSIBLE = str(FIXTURES / "repvgg_s1_g1.ts.onnx")
HEAVY = {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "rich", "google", "jinja2"}


def modules() -> list[str]:
    """Every module as a path inside the package."""
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def imports(module: str, *, top_level: bool = False) -> Iterator[str]:
    """The dotted names a module imports, inside functions too unless ``top_level``."""
    tree = ast.parse((PACKAGE / module).read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_by(statement: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after ``statement``."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=PACKAGE.parent,
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import onnxfuse",
        "import onnxfuse.cli",
        "import onnxfuse.cli.check, onnxfuse.cli.explain, onnxfuse.cli.verify, onnxfuse.cli.fuse",
        "import onnxfuse.refusal, onnxfuse.records, onnxfuse.errors",
        "import onnxfuse.algebra.geometry",
        "import onnxfuse.planning.cost",
        "import onnxfuse.many",
    ],
)
def test_nothing_heavy_is_loaded_by(statement):
    assert not loaded_by(statement) & HEAVY


LATE = {"argparse", "dataclasses", "inspect", "pathlib", "re", "shutil", "typing"}
"""Modules of the standard library that take longer to load than the version takes to print."""


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["--version"], HEAVY | LATE),
        (["--help"], HEAVY | (LATE - {"argparse", "re", "shutil"})),  # which argparse loads
        (["check", "--help"], HEAVY | (LATE - {"argparse", "re", "shutil"})),
        ([NOTHING, "OUT"], {"onnxruntime", "onnx_graphsurgeon", "jinja2"}),
        (["check", NOTHING], {"onnxruntime", "onnx_graphsurgeon", "jinja2"}),
        (["explain", NOTHING], {"onnxruntime", "onnx_graphsurgeon", "jinja2"}),
        ([FUSIBLE, "OUT", "--no-verify"], {"onnxruntime", "jinja2"}),
        ([FUSIBLE, "OUT", "-q"], {"rich", "jinja2", "multiprocessing"}),  # which slows the end
        (["check", FUSIBLE], {"onnxruntime", "jinja2"}),
    ],
)
def test_a_command_loads_no_more_than_it_needs(arguments, unneeded, tmp_path):
    """``-S`` leaves the environment's own start-up files, which load some of this, out."""
    given = [str(tmp_path / "o.onnx") if a == "OUT" else a for a in arguments]
    code = (
        f"import sys; sys.path[:] = {[str(PACKAGE.parent), *sys.path]}\n"
        "from onnxfuse.cli import main\n"
        f"try: main({given})\n"
        "except SystemExit: pass\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout or "-q" in arguments
    assert not set(done.stderr.split()) & unneeded


def test_the_public_names_are_there():
    assert set(onnxfuse.__all__) <= set(dir(onnxfuse))
    for name in onnxfuse.__all__:
        assert getattr(onnxfuse, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = onnxfuse.nonsense


def test_the_algebra_and_the_evaluator_load_numpy_alone():
    assert loaded_by("import onnxfuse.algebra.laws, onnxfuse.evaluate") & HEAVY == {"numpy"}


@pytest.mark.parametrize(
    ("package", "only"),
    [
        ("onnx_graphsurgeon", {"model/build.py"}),
        ("onnxruntime", {"verify/session.py"}),
        (
            "rich",
            {
                "report/text.py",
                "report/tree.py",
                "report/listing.py",
                "report/systems.py",
                "cli/progress.py",
            },
        ),
        ("jinja2", {"report/page.py"}),
    ],
)
def test_a_heavy_package_has_one_door(package, only):
    found = {m for m in modules() if any(n.split(".")[0] == package for n in imports(m))}
    assert found <= only


FORBIDDEN = {
    "algebra/geometry.py": ["numpy", "onnx", "onnxfuse"],
    "algebra/padded.py": ["numpy", "onnx", "onnxfuse.model", "onnxfuse.planning"],
    "algebra/weights.py": ["onnx", "onnxfuse.model", "onnxfuse.planning", "onnxfuse.lift"],
    "algebra/": ["onnx", "onnxruntime", "onnxfuse.model", "onnxfuse.lift", "onnxfuse.planning",
                 "onnxfuse.realise", "onnxfuse.verify", "onnxfuse.evaluate", "onnxfuse.fusing"],
    "planning/": ["numpy", "onnx", "onnxruntime", "onnxfuse.verify", "onnxfuse.realise",
                  "onnxfuse.report", "onnxfuse.algebra.weights"],
    "evaluate/": ["onnx", "onnxruntime", "onnxfuse.algebra", "onnxfuse.model", "onnxfuse.lift",
                  "onnxfuse.planning", "onnxfuse.verify"],
    "lift/": ["onnx", "onnxruntime", "onnxfuse.planning", "onnxfuse.realise", "onnxfuse.verify"],
    "layout/": ["onnx", "onnxruntime", "onnxfuse.algebra", "onnxfuse.planning", "onnxfuse.verify",
                "onnxfuse.report"],
    "budget.py": ["numpy", "onnx", "onnxfuse.model", "onnxfuse.cli", "onnxfuse.report"],
    "config.py": ["numpy", "onnx", "onnxfuse.model", "onnxfuse.cli", "onnxfuse.report"],
    "outcome.py": ["numpy", "onnx", "onnxfuse.model", "onnxfuse.cli", "onnxfuse.report"],
    "options.py": ["numpy", "onnx", "onnxfuse"],
    "model/": ["onnxruntime", "onnxfuse.algebra", "onnxfuse.lift", "onnxfuse.planning",
               "onnxfuse.verify", "onnxfuse.report"],
    "emit.py": ["onnx", "onnxruntime", "onnxfuse.planning", "onnxfuse.model", "onnxfuse.lift"],
    "realise.py": ["onnx", "onnxruntime", "onnxfuse.verify", "onnxfuse.lift"],
    "pool.py": ["numpy", "onnx", "onnxfuse.model", "onnxfuse.fusing", "onnxfuse.cli"],
    "watch.py": ["numpy", "onnx", "onnxfuse"],
    "records.py": ["numpy", "onnx", "onnxfuse.algebra", "onnxfuse.model", "onnxfuse.planning"],
    "refusal.py": ["numpy", "onnx", "onnxfuse"],
    "report/": ["numpy", "onnx", "onnxruntime", "onnxfuse.algebra", "onnxfuse.model",
                "onnxfuse.lift", "onnxfuse.planning", "onnxfuse.verify"],
    "verify/": ["onnx_graphsurgeon", "onnxfuse.planning", "onnxfuse.report"],
}  # fmt: skip


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_know(room):
    members = [module for module in modules() if module == room or module.startswith(room)]
    assert members
    for module in members:
        for name in imports(module):
            for other in FORBIDDEN[room]:
                assert name != other, f"{module} imports {name}"
                assert not name.startswith(f"{other}."), f"{module} imports {name}"


def test_importing_the_command_imports_heavy_packages_late():
    for module in (m for m in modules() if m.startswith("cli/")):
        top = {name.split(".")[0] for name in imports(module, top_level=True)}
        assert not top & HEAVY, module


def test_every_module_says_what_it_knows():
    for module in modules():
        assert ast.get_docstring(ast.parse((PACKAGE / module).read_text())), module


def test_every_code_is_given_somewhere_and_explained():
    sources = "".join((PACKAGE / m).read_text() for m in modules() if m != "refusal.py")
    given = {Code[name] for name in re.findall(r"Code\.([A-Z_]+)", sources)}
    design = (PACKAGE.parent / "docs" / "design.md").read_text()
    explained = {Code(text) for text in re.findall(r"^\| `([a-z-]+)` \|", design, re.MULTILINE)}
    assert given == set(Code)
    assert explained == set(Code)
