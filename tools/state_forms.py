"""State the form that each exported fixture is fused to: `forms.json` beside the manifest.

    python tools/state_forms.py            writes the files anew
    python tools/state_forms.py --check    prints what changed and fails if anything did

A form is the fused graph's operators: a convolution with its kernel, stride and groups, anything
else by name. `tests/test_exports.py` holds every fixture to its form.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

import onnxfuse

ROOT = Path(__file__).resolve().parent.parent / "fixtures"
FRAMEWORKS = ("keras", "paddle")


def operator(node: onnx.NodeProto) -> str:
    """An operator in words: ``Conv 3x3/2 g8``, ``Add``."""
    if node.op_type != "Conv":
        return str(node.op_type)
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    text = "Conv " + "x".join(map(str, settings["kernel_shape"]))
    strides = settings.get("strides", [1])
    if max(strides) > 1:
        text += "/" + (str(strides[0]) if len(set(strides)) == 1 else "x".join(map(str, strides)))
    if max(settings.get("dilations", [1])) > 1:
        text += f" d{max(settings['dilations'])}"
    groups = settings.get("group", 1)
    return text if groups == 1 else f"{text} g{groups}"


def form_of(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator stands in a graph, constants left out."""
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    return dict(sorted(Counter(map(operator, nodes)).items()))


def state(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """The form of one fixture under the default policy."""
    fused, report = onnxfuse.fuse(path)
    return {
        "channels": entry["channels"],
        "policy": "default",
        "form": form_of(fused),
        "constants": sorted(region.constant for region in report.regions if region.constant),
    }


def forms(framework: str) -> dict[str, Any]:
    """The forms of all fixtures of one framework."""
    folder = ROOT / framework
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return {name: state(folder / name, entry) for name, entry in files.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 1 where ``--check`` finds a change."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    changed = 0
    for framework in FRAMEWORKS:
        place = ROOT / framework / "forms.json"
        before = json.loads(place.read_text()) if place.exists() else {}
        after = forms(framework)
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                changed += 1
                print(f"{framework}/{name}: {before.get(name)} -> {after.get(name)}")
        if not options.check:
            place.write_text(json.dumps(after, indent=1) + "\n")
    print(f"{changed} form(s) changed")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
