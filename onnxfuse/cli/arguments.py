"""The command line: one parser for each command."""

from __future__ import annotations

import argparse
import re

from onnxfuse.cli import writing
from onnxfuse.errors import OnnxfuseError
from onnxfuse.version import FORMATS, POLICIES, __version__

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes a while to load
    from collections.abc import Sequence
    from typing import NoReturn

DESCRIPTION = """\
Merge the linear branches of an exported ONNX model into single convolutions.

Blocks such as RepVGG, ACNet, Diverse Branch Block or MobileOne are trained with
branches (convolutions, batch normalisations, poolings, sums) that equal one
convolution at inference. onnxfuse finds them in the file, whatever framework
exported it, replaces them, and proves the result equal before it writes.
"""

CODES = """\
exit codes:
  0  fine (also when there was nothing to fuse)
  1  a finding: something can be fused, a budget is exceeded, models differ
  2  wrong usage, or an input that is missing or is not a usable model
  3  something could not be proved; no model was written
"""

EPILOG = f"""\
commands (each has its own --help):
  onnxfuse IN OUT        fuse IN, prove it, write OUT
  onnxfuse check IN...   fail where something can be fused, or is over budget
  onnxfuse explain IN    each linear region: what it becomes, or why it stays
  onnxfuse verify A B    are two models equivalent?
  onnxfuse systems       the blocks that are known to fuse, and to what

examples:
  onnxfuse model.onnx fused.onnx
  onnxfuse model.onnx fused.onnx --input-shape input:1,3,224,224
  onnxfuse model.onnx fused.onnx --except '/head/*' --report fused.html
  onnxfuse check 'models/*.onnx' --max-bytes 12MB

{CODES}"""


class UsageError(OnnxfuseError):
    """A command line that means nothing; ``form`` is the format that it asked for, if any."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser = parser
        self.command = parser.get_default("command")
        self.form: str | None = None

    def leave(self) -> NoReturn:
        """Print the usage and the error on stderr, and end the process with 2."""
        argparse.ArgumentParser.error(self.parser, str(self))


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong, so that it can be said in any format."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(self, message)


def fuse_parser() -> argparse.ArgumentParser:
    """``onnxfuse IN OUT``."""
    found = _parser("onnxfuse", DESCRIPTION, EPILOG)
    found.add_argument("input", metavar="IN", help="the model to read (.onnx)")
    found.add_argument("output", metavar="OUT", help="where to write the fused model; may be IN")
    _add_fusing(found)
    found.add_argument(
        "--no-verify",
        action="store_true",
        default=None,
        help="skip the run of the whole model in onnxruntime (regions are always proved)",
    )
    _add_run(found)
    _add_tolerance(found, "the original", "the derived one; regions are proved as ever")
    writing.add_options(found)
    _add_report(found)
    _add_common(found)
    found.add_argument("--version", action="version", version=f"onnxfuse {__version__}")
    found.set_defaults(command="fuse")
    return found


CHECK = """\
Fail where something can still be fused exactly, or a budget is exceeded.

Writes no model. Everything is planned, folded and proved as `onnxfuse IN OUT`
does it, short of the run of the whole model, so that what is found here is what
would be done.
"""

CHECK_EPILOG = f"""\
Sizes are 200, 5.1M (million), 12MB (million bytes) or 12MiB. Data files of a
model count with it. Limits may stand in pyproject.toml:

  [tool.onnxfuse]
  baseline = "sizes.json"
  max-growth = "2%"
  [[tool.onnxfuse.budget]]
  path = "models/*.onnx"
  max-bytes = "12MB"

{CODES}"""


def check_parser() -> argparse.ArgumentParser:
    """``onnxfuse check IN...``."""
    found = _parser("onnxfuse check", CHECK, CHECK_EPILOG)
    found.add_argument(
        "inputs",
        metavar="IN",
        nargs="*",
        help="models, globs or directories; without any, the paths of the configured budgets",
    )
    budgets = found.add_argument_group("budgets")
    for name, what in (
        ("bytes", "file size, external data included"),
        ("params", "stored floating-point elements"),
        ("macs", "multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul"),
        ("nodes", "nodes, those of subgraphs and functions included"),
    ):
        budgets.add_argument(f"--max-{name}", metavar="SIZE", help=what)
    budgets.add_argument("--baseline", metavar="FILE", help="committed sizes to compare with")
    budgets.add_argument(
        "--max-growth",
        metavar="SHARE",
        help="growth over the baseline that is allowed, as in 2%% (default 0)",
    )
    budgets.add_argument(
        "--update-baseline", action="store_true", help="write the sizes found to the baseline"
    )
    half = found.add_mutually_exclusive_group()
    half.add_argument(
        "--no-fusible",
        action="store_true",
        default=None,
        help="demand only that there is no fusible region left; judge no budget",
    )
    half.add_argument(
        "--budget-only",
        action="store_true",
        default=None,
        help="judge only the budgets; look for nothing to fuse",
    )
    found.add_argument(
        "--jobs",
        metavar="N",
        help="models to work on at once, each in a process of its own; 0, the default, is one for "
        "each processor where there are at least 8 models or 8 MB of them, else 1",
    )
    _add_fusing(found)
    _add_report(found)
    _add_common(found)
    found.set_defaults(command="check", no_verify=True)
    return found


EXPLAIN = """\
Each linear region of a model: what it computes, what it becomes and at what
cost, or why it stays as it is and what can be done about that. Writes no model.
"""


def explain_parser() -> argparse.ArgumentParser:
    """``onnxfuse explain IN``."""
    found = _parser("onnxfuse explain", EXPLAIN, CODES)
    found.add_argument("input", metavar="IN", help="the model to read (.onnx)")
    found.add_argument(
        "--node",
        metavar="NAME",
        action="append",
        default=[],
        help="only what holds this node or tensor (a name or a glob; may be repeated)",
    )
    _add_fusing(found)
    _add_report(found)
    _add_common(found)
    found.set_defaults(command="explain", no_verify=True)
    return found


VERIFY = """\
Are two models equivalent? Both run in onnxruntime, without its optimisations,
on the same seeded inputs. Any two ONNX files with the same inputs can be
compared. How much outputs may differ is measured: A runs a second time with
rounding-sized noise on its tensors, and B may differ by 6 times the response.
"""


def verify_parser() -> argparse.ArgumentParser:
    """``onnxfuse verify A B``."""
    found = _parser("onnxfuse verify", VERIFY, CODES)
    found.add_argument("left", metavar="A", help="the model to trust")
    found.add_argument("right", metavar="B", help="the model to compare with it")
    _add_tolerance(found, "|A|", "the measured one")
    _add_run(found)
    _add_shapes(found)
    _add_common(found)
    found.set_defaults(command="verify")
    return found


def systems_parser() -> argparse.ArgumentParser:
    """``onnxfuse systems [NAME]``."""
    text = "The published blocks that are known to fuse, what they come to, from which exporters.\n"
    found = _parser("onnxfuse systems", text, CODES)
    found.add_argument("name", metavar="NAME", nargs="?", default="", help="only what holds this")
    found.add_argument(
        "--format", choices=("text", "json", "markdown"), default="text", help="what stdout holds"
    )
    found.set_defaults(command="systems", quiet=False, verbose=False)
    return found


PARSERS = {
    "check": check_parser,
    "explain": explain_parser,
    "verify": verify_parser,
    "systems": systems_parser,
}


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command and its options; leaves the process on ``--help``. Raises `UsageError`."""
    try:
        return _parsed(arguments)
    except UsageError as error:
        form = re.search(r"^--format[=\n](.*)$", "\n".join(arguments), re.MULTILINE)
        error.form = form[1] if form and form[1] in FORMATS else None
        raise


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    if arguments and arguments[0] in PARSERS:
        options = list(arguments[1:])
        if arguments[0] != "check":
            return PARSERS[arguments[0]]().parse_args(options)
        names: list[str] = []
        if "--" in options:
            names = options[options.index("--") + 1 :]
            options = options[: options.index("--")]
        # models may stand before and behind options
        chosen = check_parser().parse_intermixed_args(options)
        chosen.inputs += names
        return chosen
    return fuse_parser().parse_args(arguments)


def _parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return _Parser(
        name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_shapes(found: argparse.ArgumentParser) -> None:
    found.add_argument(
        "--input-shape",
        metavar="NAME:1,3,224,224",
        action="append",
        default=[],
        help="size of a dynamic input, for counting MACs and for the whole-model run "
        "(once for each input)",
    )


def _add_run(found: argparse.ArgumentParser) -> None:
    inputs = found.add_mutually_exclusive_group()
    inputs.add_argument(
        "--input-data",
        metavar="FILE.npz",
        help="run the whole model on these inputs alone: an .npz file that names an array for each "
        "input, or an .npy file where there is one",
    )
    inputs.add_argument("--seed", metavar="N", help="draw the inputs of that run with this seed")


def _add_tolerance(found: argparse.ArgumentParser, size: str, replaced: str) -> None:
    for name, meaning in (("rtol", f"times {size}"), ("atol", "outright")):
        found.add_argument(
            f"--{name}",
            metavar="[OUTPUT:]1e-4",
            action="append",
            default=[],
            help=f"difference allowed in each element, {meaning}, instead of {replaced}",
        )


def _add_fusing(found: argparse.ArgumentParser) -> None:
    _add_shapes(found)
    found.add_argument(
        "--only", metavar="GLOB", action="append", default=[], help="fuse only nodes of these names"
    )
    found.add_argument(
        "--except",
        metavar="GLOB",
        action="append",
        default=[],
        dest="without",
        help="leave nodes of these names alone",
    )
    found.add_argument(
        "--approximate-borders",
        action="store_true",
        default=None,
        help="also take merges that are exact in the interior alone, as published for DBB with "
        "zero padding; the error at the border is measured and the output is marked",
    )
    found.add_argument(
        "--keep-post-bn",
        action="store_true",
        default=None,
        help="leave each BatchNormalization that nothing linear reads, for quantisation recipes",
    )
    found.add_argument(
        "--policy",
        choices=POLICIES,
        help="latency lets MACs and parameters of depthwise convolutions grow by half where the "
        "estimated time falls; by default nothing grows",
    )
    found.add_argument(
        "--freeze-initializers",
        action="store_true",
        default=None,
        help="take weights that are also graph inputs out of the inputs, so that they can be "
        "fused; callers can no longer override them",
    )
    found.add_argument(
        "--assume-inference",
        action="store_true",
        default=None,
        help="take BatchNormalization and Dropout in training mode to inference mode",
    )


def _add_report(found: argparse.ArgumentParser) -> None:
    found.add_argument(
        "--report", metavar="FILE.html", help="also write a page that shows every region"
    )


def _add_common(found: argparse.ArgumentParser) -> None:
    found.add_argument("--format", choices=FORMATS, help="what stdout holds (default text)")
    found.add_argument(
        "--config", metavar="FILE", help="the configuration (default: the nearest pyproject.toml)"
    )
    found.add_argument("--isolated", action="store_true", help="read no configuration")
    volume = found.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="print errors and findings only")
    volume.add_argument(
        "-v", "--verbose", action="store_true", help="print expressions, all refusals and times"
    )
