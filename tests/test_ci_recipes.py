"""The action, the hook and the recipes of docs/ci.md, run as the CI systems run them.

Nothing is fetched: pip builds a copy of this tree and finds what it needs among the packages
installed here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from onnxfuse import config
from onnxfuse.budget import LIMITS
from onnxfuse.cli import arguments
from onnxfuse.outcome import Exit
from onnxfuse.version import FORMATS

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures" / "pytorch"
FUSIBLE = FIXTURES / "repvgg_s1_g1.ts.onnx"
FUSED = FIXTURES / "repvgg_s1_g1.deploy.onnx"
TREE = ("pyproject.toml", "README.md", "LICENSE", "action.yml", ".pre-commit-hooks.yaml")
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
TRAP = 'raise SystemExit("a module of the checkout was imported")'
INSTALL = 'pip install "onnxfuse @ git+https://github.com/OWNER/onnxfuse@v0"'


def offline(home: Path) -> dict[str, str]:
    """An environment where pip and Python find the packages installed here, save onnxfuse."""
    packages = home / "packages"
    packages.mkdir(parents=True)
    for folder in (Path(entry) for entry in sys.path if entry.endswith("-packages")):
        for found in folder.iterdir() if folder.is_dir() else ():
            own = "onnxfuse" in found.name or re.match(r"pip\b", found.name)
            if not own and not (packages / found.name).exists():
                (packages / found.name).symlink_to(found)
    foreign = ("PIP_", "PYTHON", "GIT_", "GITHUB_", "RUNNER_", "PRE_COMMIT", "VIRTUAL", "COV_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "HOME": str(home),
        "PYTHONPATH": str(packages),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads the value as that of build isolation itself
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }


def copied(target: Path) -> Path:
    """The files of this repository that an installation needs."""
    target.mkdir(parents=True)
    for name in TREE:
        shutil.copy(ROOT / name, target / name)
    unbuilt = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "onnxfuse", target / "onnxfuse", ignore=unbuilt)
    return target


def evaluated(text: str, contexts: Mapping[str, Any]) -> str:
    """A value with its plain references resolved; any other expression is too much for us."""

    def value(found: re.Match[str]) -> str:
        assert re.fullmatch(r"[a-z]+(\.[a-z-]+)+", found[1].strip()), found[0]
        held: Any = contexts
        for key in found[1].strip().split("."):
            held = held[key]
        return str(held)

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)


@dataclass
class Done:
    """What one use of the action left behind."""

    code: int = 0
    printed: str = ""
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)

    @property
    def annotations(self) -> list[str]:
        return [line for line in self.printed.splitlines() if line.startswith("::")]


@dataclass(frozen=True)
class Runner:
    """Does with a composite action what GitHub's runner does."""

    action: Path
    temp: Path
    env: Mapping[str, str]

    @property
    def installed(self) -> Path:
        return self.temp / "onnxfuse" / "bin"

    def use(self, workspace: Path, steps: list[dict[str, Any]], **given: str) -> Done:
        inputs = {name: spec.get("default", "") for name, spec in ACTION["inputs"].items()}
        given = {name.replace("_", "-"): value for name, value in given.items()}
        assert given.keys() <= inputs.keys()
        ran: dict[str, Any] = {step["id"]: {"outputs": {}} for step in STEPS if "id" in step}
        contexts = {"inputs": inputs | given, "steps": ran}
        done = Done()
        for step in steps:
            self._step(step, workspace, contexts, done)
            if done.code != 0:
                break
        for name, spec in ACTION["outputs"].items():
            try:
                done.outputs[name] = evaluated(spec["value"], contexts)
            except KeyError:
                done.outputs[name] = ""
        return done

    def _step(
        self, step: dict[str, Any], workspace: Path, contexts: dict[str, Any], done: Done
    ) -> None:
        assert step.keys() <= {"name", "id", "shell", "env", "working-directory", "run"}
        assert step["shell"] == "bash"
        script, output, summary = (self.temp / name for name in ("step.sh", "output", "summary"))
        script.write_text(evaluated(step["run"], contexts), encoding="utf-8")
        output.write_text("")
        summary.write_text("")
        env = {name: evaluated(value, contexts) for name, value in step.get("env", {}).items()}
        place = workspace / evaluated(step.get("working-directory", "."), contexts)
        ran = run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            place,
            dict(self.env)
            | {"GITHUB_ACTIONS": "true", "GITHUB_ACTION_PATH": str(self.action)}
            | {"GITHUB_WORKSPACE": str(workspace), "RUNNER_TEMP": str(self.temp)}
            | {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
            | env,
        )
        done.code, done.printed = ran.returncode, done.printed + ran.stdout
        done.summary += summary.read_text(encoding="utf-8")
        if "id" in step:
            found = dict(line.split("=", 1) for line in output.read_text().splitlines())
            contexts["steps"][step["id"]]["outputs"] = found


def run(
    command: list[str], place: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """A command with stdout and stderr together, as a CI log shows them."""
    return subprocess.run(
        command,
        cwd=place,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A runner that has done the first step, in a checkout that is not imported from."""
    home = tmp_path_factory.mktemp("a runner")
    (home / "temp").mkdir()
    (home / "checkout").mkdir()
    (home / "checkout" / "logging.py").write_text(TRAP)
    found = Runner(copied(home / "_actions"), home / "temp", offline(home / "home"))
    done = found.use(home / "checkout", STEPS[:1], python=sys.executable)
    assert done.code == 0, done.printed
    assert [path.name for path in (home / "checkout").iterdir()] == ["logging.py"]
    return found


@pytest.fixture
def check(runner: Runner, tmp_path: Path) -> Any:
    """The action behind its installation, in a workspace with a fused and a fusible model."""
    (tmp_path / "models").mkdir()
    shutil.copy(FUSED, tmp_path / "models" / "fused.onnx")
    shutil.copy(FUSIBLE, tmp_path / "fusible.onnx")
    (tmp_path / "numpy.py").write_text(TRAP)
    return lambda **given: runner.use(tmp_path, STEPS[1:], **given)


def test_the_installation_is_a_copy_of_its_own(runner: Runner) -> None:
    code = "import onnxfuse; print(onnxfuse.__file__)"
    found = run([str(runner.installed / "python"), "-c", code], runner.temp, runner.env)
    assert Path(found.stdout.strip()).is_relative_to(runner.temp)


def test_no_input_is_written_into_a_script() -> None:
    assert all("${{" not in step["run"] for step in STEPS)


def test_a_fused_model_passes(check: Any) -> None:
    done = check(models="models/fused.onnx", max_bytes="12MB")
    assert (done.code, done.outputs) == (0, {"exit-code": "0"})
    assert done.annotations == []
    assert "`models/fused.onnx`" in done.summary


def test_a_fusible_model_fails(check: Any) -> None:
    done = check(models="fusible.onnx models/*.onnx")
    assert (done.code, done.outputs) == (1, {"exit-code": "1"})
    (line,) = done.annotations
    assert line.startswith("::error file=fusible.onnx,title=onnxfuse%3A region /0/Add_1::2 Conv")
    assert "| `fusible.onnx` | **finding** | 1 |" in done.summary
    assert "| `models/fused.onnx` | fine |" in done.summary


def test_a_missing_model_is_an_error(check: Any) -> None:
    done = check(models="models/fused.onnx nothing.onnx")
    assert (done.code, done.outputs) == (2, {"exit-code": "2"})
    (line,) = done.annotations
    assert line == "::error file=nothing.onnx,title=onnxfuse%3A model::nothing.onnx does not exist"


@pytest.mark.parametrize(
    ("limit", "value"),
    [("max_bytes", "1KB"), ("max_params", "10"), ("max_macs", "1K"), ("max_nodes", "1")],
)
def test_a_budget_that_is_exceeded_fails(limit: str, value: str, check: Any) -> None:
    done = check(models="models", **{limit: value})
    assert (done.code, done.outputs) == (1, {"exit-code": "1"})
    (line,) = done.annotations
    assert f"within --{limit.replace('_', '-')}::" in line
    assert "**exceeded**" in done.summary


HOSTILE = (
    "a.onnx; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    '"; touch pwned; "',
    "a\nb' $(touch pwned)",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_inputs_are_never_run(text: str, check: Any, runner: Runner, tmp_path: Path) -> None:
    assert check(models=text).code == 2
    assert check(models="models", args=text).code == 2
    given = {name.replace("-", "_"): text for name in ACTION["inputs"]}
    assert check(**given | {"working_directory": "."}).code == 2
    other = Runner(runner.action, tmp_path, runner.env)
    assert other.use(tmp_path, STEPS, python=text).code == 127
    assert not list(tmp_path.rglob("pwned*"))


def test_names_with_spaces_and_quotes_stand_on_lines(check: Any, tmp_path: Path) -> None:
    names = ["first stage.onnx", 'it\'s "new".onnx', "--report=x.onnx", "$HOME \\n.onnx"]
    for name in names:
        shutil.copy(FUSIBLE, tmp_path / name)
    done = check(models="\n  " + "\r\n\n".join(names) + "\n")
    assert done.code == 1
    found = [re.sub(r"^::error file=(.*?),.*", r"\1", line) for line in done.annotations]
    assert found == ["first stage.onnx", 'it\'s "new".onnx', "--report=x.onnx", "$HOME \\n.onnx"]
    assert check(models="first stage.onnx\n").code == 1
    assert check(models="first stage.onnx").code == 2


def test_other_arguments_are_read_as_a_shell_reads_them(check: Any) -> None:
    assert check(models="fusible.onnx", args="--except '/0/*' -v").code == 0
    assert check(models="fusible.onnx", args='--except "no such name"').code == 1
    done = check(models="models", args="--except '/0/*")
    assert (done.code, done.outputs) == (2, {"exit-code": "2"})
    assert "not closed" in done.annotations[0]


def test_without_models_the_configured_budgets_are_checked(check: Any, tmp_path: Path) -> None:
    budget = '[[tool.onnxfuse.budget]]\npath = "models/*.onnx"\nmax-bytes = "1KB"\n'
    (tmp_path / "sizes.toml").write_text(budget)
    done = check(config="sizes.toml")
    assert done.code == 1
    assert "file=models/fused.onnx" in done.annotations[0]
    assert check().code == 2
    assert check(config="../sizes.toml", working_directory="models").code == 1


def test_a_baseline_and_a_page(check: Any, tmp_path: Path) -> None:
    held = {"models": "models", "baseline": "sizes.json"}
    assert check(**held).code == 2
    assert check(**held, args="--update-baseline").code == 0
    shutil.copy(FUSIBLE, tmp_path / "models" / "fused.onnx")
    assert check(**held, args="--budget-only", max_growth="200%").code == 0
    done = check(**held, args="--budget-only", max_growth="2%", report="a page.html")
    assert done.code == 1
    assert "bytes within sizes.json + 2%25" in done.annotations[0]
    assert "<html" in (tmp_path / "a page.html").read_text(encoding="utf-8")


def blocks(heading: str, language: str) -> list[str]:
    """The fenced blocks of a language under a heading of the page."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(f"{heading}\n"))
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_workflows_of_the_page(check: Any, runner: Runner, tmp_path: Path) -> None:
    whole, names, plain = map(yaml.safe_load, blocks("GitHub Actions", "yaml"))
    checkout, step = whole["jobs"]["onnxfuse"]["steps"]
    assert checkout["uses"].startswith("actions/checkout@")
    assert step["uses"] == names[0]["uses"] == "OWNER/onnxfuse@v0"
    given = [{k.replace("-", "_"): v for k, v in s["with"].items()} for s in (step, names[0])]
    assert [check(**inputs).code for inputs in given] == [0, 2]
    for name in ("first", "second"):
        shutil.copy(FUSIBLE, tmp_path / "models" / f"{name} stage.onnx")
    assert check(**given[0]).code == 1
    assert check(**given[1]).code == 1
    assert plain[0] == {"run": INSTALL}
    assert run_lines(["bash", "-e"], [plain[1]["run"]], runner, tmp_path).returncode == 1


def run_lines(
    shell: list[str], lines: list[str], runner: Runner, place: Path
) -> subprocess.CompletedProcess[str]:
    """A script of a recipe, with the command on its path."""
    script = runner.temp / "script"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = f"{runner.installed}{os.pathsep}{runner.env['PATH']}"
    return run([*shell, str(script)], place, dict(runner.env) | {"PATH": path})


def gitlab(runner: Runner, place: Path) -> tuple[int, Path]:
    recipe, tolerant = blocks("GitLab CI", "yaml")
    (job,) = yaml.safe_load(recipe).values()
    assert yaml.safe_load(recipe + tolerant)["onnxfuse"]["allow_failure"] == {"exit_codes": 1}
    assert job["before_script"] == [INSTALL]
    assert job["artifacts"]["when"] == "always"
    ran = run_lines(["bash", "-eo", "pipefail"], job["script"], runner, place)
    assert all((place / path).is_file() for path in job["artifacts"]["paths"])
    return ran.returncode, place / job["artifacts"]["reports"]["junit"]


def jenkins(runner: Runner, place: Path) -> tuple[int, Path]:
    (recipe,) = blocks("Jenkins", "groovy")
    environment, install, *lines = re.findall(r"\bsh '([^'\\]*)'", recipe)
    assert len(re.findall(r"\bsh\b", recipe)) == 2 + len(lines)
    assert (environment, install) == ("python3 -m venv .venv", f".venv/bin/{INSTALL}")
    (place / ".venv").symlink_to(runner.installed.parent)
    (name,) = re.findall(r"post {\s*always {\s*junit '(.*)'", recipe)
    return run_lines(["sh", "-xe"], lines, runner, place).returncode, place / name


@pytest.mark.parametrize("system", [gitlab, jenkins])
@pytest.mark.parametrize(
    ("held", "code", "counts"),
    [
        ({"a.onnx": FUSED, "b.onnx": FUSED}, 0, (4, 0, 0)),
        ({"a.onnx": FUSED, "b.onnx": FUSIBLE}, 1, (4, 1, 0)),
        ({"a.onnx": FUSED, "b.onnx": None}, 2, (3, 0, 1)),
        ({}, 2, (1, 0, 1)),
    ],
)
def test_the_pipelines_of_the_page(
    system: Any,
    held: dict[str, Path | None],
    code: int,
    counts: tuple[int, int, int],
    runner: Runner,
    tmp_path: Path,
) -> None:
    (tmp_path / "models").mkdir()
    for name, source in held.items():
        data = b"no protobuf" if source is None else source.read_bytes()
        (tmp_path / "models" / name).write_bytes(data)
    found, report = system(runner, tmp_path)
    assert found == code
    root = ET.parse(report).getroot()
    assert tuple(int(root.attrib[key]) for key in ("tests", "failures", "errors")) == counts
    tags = ("testcase", "failure", "error")
    assert tuple(len(list(root.iter(tag))) for tag in tags) == counts
    assert sorted(suite.attrib["name"] for suite in root) == (
        [f"models/{name}" for name in held] or ["models/*.onnx"]
    )


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the hook of the page on models, with pre-commit's own client."""
    home = tmp_path_factory.mktemp("hooks")
    env = offline(home / "home") | {"PRE_COMMIT_HOME": str(home / "cache")}
    author = ["-c", "user.name=A. Nyone", "-c", "user.email=a@example.com"]

    def git(place: Path, *words: str) -> str:
        done = run(["git", *words], place, env)
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    source = copied(home / "onnxfuse")
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "a release"]):
        git(source, *words)
    (recipe,) = map(yaml.safe_load, blocks("pre-commit", "yaml"))
    (entry,) = recipe["repos"]
    assert (entry["repo"], entry["rev"]) == ("https://github.com/OWNER/onnxfuse", "TAG")
    entry |= {"repo": str(source), "rev": git(source, "rev-parse", "HEAD")}
    recipe["default_language_version"] = {"python": sys.executable}

    def hook(place: Path, models: Mapping[str, bytes]) -> tuple[int, str]:
        git(place, "init", "-q")
        (place / ".pre-commit-config.yaml").write_text(yaml.safe_dump(recipe))
        for name, data in models.items():
            (place / name).write_bytes(data)
        git(place, "add", "-A")
        words = [sys.executable, "-m", "pre_commit", "run", "--color=never"]
        done = run(words, place, env)
        return done.returncode, done.stdout

    return hook


def test_the_hook(hooks: Any, tmp_path: Path) -> None:
    name = "a model.onnx"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for data, code, text in (
        (FUSED.read_bytes(), 0, "Passed"),
        (FUSIBLE.read_bytes(), 1, "/0/Add_1: 2 Conv, BN, 2 Add → Conv 3×3"),
        (pointer, 2, "run `git lfs pull` first"),
    ):
        done, printed = hooks(tmp_path, {name: data, "notes.txt": b"no model"})
        assert done == min(code, 1), printed
        assert text in printed
        assert f"- exit code: {code}" in printed or code == 0
    (tmp_path / name).unlink()
    assert "no files to check" in hooks(tmp_path, {})[1]


def table(head: str) -> list[list[str]]:
    """The cells of the rows below a table's head, as code spans in the first cell."""
    rows = PAGE.split(f"| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in rows]


def test_the_tables_of_the_page_are_complete() -> None:
    assert [key for row in table("key of `[tool.onnxfuse]`") for key in row] == list(config.KEYS)
    keys = [key for row in table("key of `[[tool.onnxfuse.budget]]`") for key in row]
    assert keys == ["path", *LIMITS]
    assert [key for row in table("input") for key in row] == list(ACTION["inputs"])
    assert [key for row in table("`--format`") for key in row] == list(FORMATS)
    codes = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)
    assert [int(code) for code in codes] == sorted(Exit)


def test_every_option_of_the_page_and_the_action_exists() -> None:
    known = {text for action in arguments.check_parser()._actions for text in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE)) <= known
    assert {f"--{name}" for name in LIMITS} <= known
    others = {"models", "args", "working-directory", "python"}
    assert {f"--{name}" for name in ACTION["inputs"].keys() - others} <= known


def test_the_configuration_of_the_page(tmp_path: Path) -> None:
    (text,) = blocks("Configuration", "toml")
    own = text.replace("[tool.onnxfuse]\n", "").replace("tool.onnxfuse.", "")
    for name, held in (("pyproject.toml", text), ("other.toml", text), ("own.toml", own)):
        (tmp_path / name).write_text(held)
        found = config.load(tmp_path / name)
        (rule,) = found.rules
        assert [limit.metric for limit in rule.limits] == ["bytes", "macs"]
        assert found.values.keys() == {*tomllib.loads(text)["tool"]["onnxfuse"]} - {"budget"}


def test_the_baseline_of_the_page(check: Any, runner: Runner, tmp_path: Path) -> None:
    write, judge = blocks("A baseline", "sh")
    assert run_lines(["sh"], [judge], runner, tmp_path).returncode == 2
    assert run_lines(["sh"], [write], runner, tmp_path).returncode == 0
    assert run_lines(["sh"], [judge], runner, tmp_path).returncode == 0
    shutil.copy(FUSIBLE, tmp_path / "models" / "fused.onnx")
    assert run_lines(["sh"], [judge], runner, tmp_path).returncode == 1


def test_the_program_of_the_page(check: Any, runner: Runner, tmp_path: Path) -> None:
    (program,) = blocks("JSON", "python")
    done = run_lines([sys.executable], [program], runner, tmp_path)
    line = f"models/fused.onnx fine 0 {FUSED.stat().st_size}\n"
    assert (done.returncode, done.stdout) == (0, line)
