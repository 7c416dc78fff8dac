"""The blocks that are known to fuse, from which exporters, and to what: `onnxfuse/systems.json`.

    python tools/list_systems.py            # write the table and docs/systems.md again
    python tools/list_systems.py --check    # fail if they differ from what the fixtures state

Every row is made of fixtures, each held to its form by a test: those of `fixtures/pytorch` by their
hand-merged deploy form (`tests/test_systems.py`), the others by the form they state
(`tests/test_field.py`, `tests/test_exports.py`). Nothing is fused here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import onnx
from forms_field import FORMS, FORMS_OF_KINDS, MISSING

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
TABLE = ROOT / "onnxfuse" / "systems.json"
PAGE = ROOT / "docs" / "systems.md"

# Block, paper (arXiv) or origin, and the fixtures that hold it, as FOLDER/SYSTEM globs.
BLOCKS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("RepVGG", "2101.03697", ("*/repvgg_*", "*/basic_block")),
    ("ACNet", "1908.03930", ("*/acnet_*",)),
    ("Diverse Branch Block", "2103.13425", ("*/dbb_*",)),
    ("BSConv", "2003.13549", ("*/bsconv_*",)),
    ("MobileOne", "2206.04040", ("*/mobileone_*",)),
    ("RepLKNet", "2203.06717", ("*/replk_*", "*/replknet")),
    ("SLaK", "2207.03620", ("field/slak",)),
    ("UniRepLKNet", "2311.15599", ("*/unirep*",)),
    ("FastViT", "2303.14189", ("field/repmixer", "field/repcpe", "field/fastvit_*")),
    ("MobileCLIP", "2311.17049", ("field/mobileclip_*",)),
    ("RepViT", "2307.09283", ("field/repvit", "field/two_heads")),
    ("YOLOv6 QARepVGG", "2212.01593", ("field/qarep*",)),
    ("YOLOv7 RepConv", "2207.02696", ("field/yolov7_*",)),
    ("YOLOv9 RepConvN", "2402.13616", ("field/yolov9_*",)),
    ("YOLOv10 RepVGGDW", "2405.14458", ("field/yolov10_*",)),
    ("YOLO-NAS", "Deci", ("field/yolonas",)),
    ("RepOptimizer", "2205.15242", ("field/linear_add",)),
    ("PP-YOLOE", "2203.16250", ("*/ppyoloe",)),
    ("PP-LCNetV2 and V3", "PaddlePaddle", ("*/lcnet*",)),
    ("HGNetV2", "PaddlePaddle", ("*/lab_*", "paddle/hgnetv2_*")),
    ("RepGhost", "2211.06088", ("field/repghost",)),
    ("GhostNetV3", "2404.11202", ("field/ghostnetv3",)),
    ("RepMLP", "2105.01883", ("field/repmlp",)),
    ("RepNeXt", "2406.16004", ("field/repnext_*",)),
    ("VanillaNet", "2305.12972", ("field/vanillanet_*",)),
    ("ECBSR", "ACM MM 2021", ("field/ecbsr*",)),
    ("OREPA", "2204.00826", ("field/orepa",)),
    ("SPAN", "2311.12770", ("field/span",)),
    ("SLAB", "2405.11582", ("field/slab",)),
    ("LeViT, TinyViT, EfficientViT", "2104.01136",
     ("field/levit_*", "field/tinyvit", "field/efficientvit", "field/bn_linear",
      "field/classifier")),
    ("NextViT", "2207.05501", ("field/nextvit_*",)),
    ("TextNet (FAST)", "2111.02394", ("field/textnet*",)),
    ("ArcFace head", "1801.07698", ("field/arcface",)),
    ("Low-rank adapters", "2106.09685", ("field/lora*",)),
    ("Transposed convolutions", "", ("field/deconv_*",)),
    ("Residual sums of convolutions", "", ("*/residual*",)),
    ("Joined and split convolutions", "",
     ("field/concat_*", "field/split_concat", "field/chunk_conv", "field/some_pay")),
    ("Serial layers", "",
     ("pytorch/two_conv3x3", "field/expansion", "field/bottleneck", "field/linear_expansion",
      "field/linear_bottleneck", "*/mobilenet_block", "*/bn_first")),
    ("Pads before convolutions", "", ("*/zero_pad*", "*/zeropad*", "*/pad2d_*", "*/pad8_*")),
    ("SAME padding and even kernels", "", ("*/same_*", "keras/even_*")),
)  # fmt: skip

EXPORTERS = {
    "pytorch": {"ts": "TorchScript", "preserve": "TorchScript", "dynamo": "dynamo"},
    "field": {"ts": "TorchScript", "preserve": "TorchScript", "dynamo": "dynamo"},
    "keras": {
        "tf2onnx": "tf2onnx", "tfkeras": "tf_keras", "export": "Keras (TensorFlow)",
        "torch": "Keras (torch)",
    },
    "paddle": dict.fromkeys(("default", "raw", "op7", "op11", "op16"), "Paddle"),
}  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """The table: a row for each block, its fixtures by exporter, the forms they come to."""
    held = {folder: _manifest(folder) for folder in EXPORTERS}
    return [_row(name, paper, globs, held) for name, paper, globs in BLOCKS]


def unlisted() -> list[str]:
    """Systems that are in no row."""
    held = {folder: _manifest(folder) for folder in EXPORTERS}
    systems = {f"{folder}/{file.split('.')[0]}" for folder, files in held.items() for file in files}
    globs = [glob for _, _, found in BLOCKS for glob in found]
    return sorted(s for s in systems if not any(fnmatchcase(s, glob) for glob in globs))


def _manifest(folder: str) -> dict[str, Any]:
    files = json.loads((FIXTURES / folder / "manifest.json").read_text())["files"]
    return {name: entry for name, entry in files.items() if entry.get("committed", True)}


def _row(
    name: str, paper: str, globs: tuple[str, ...], held: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    systems: dict[str, dict[str, Any]] = {}
    for folder, files in held.items():
        for file, entry in files.items():
            system, kind, _ = file.split(".")
            key = f"{folder}/{system}"
            if kind == "deploy" or not any(fnmatchcase(key, glob) for glob in globs):
                continue
            found = systems.setdefault(key, {"exporters": set(), "open": False, "forms": {}})
            found["exporters"].add(_exporter(folder, kind))
            found["open"] |= bool(entry.get("dynamic"))
            found["forms"].setdefault(_form(folder, system, kind), []).append(kind)
    return {
        "block": name,
        "origin": paper,
        "exporters": sorted({e for found in systems.values() for e in found["exporters"]}),
        "open_sizes": any(found["open"] for found in systems.values()),
        "systems": {
            key: {
                "exporters": sorted(found["exporters"]),
                "becomes": {form: sorted(kinds) for form, kinds in sorted(found["forms"].items())},
                **_why(key),
            }
            for key, found in sorted(systems.items())
        },
    }


def _exporter(folder: str, kind: str) -> str:
    names = EXPORTERS[folder]
    best = max((k for k in names if kind == k or kind.startswith(f"{k}-")), key=len)
    return names[best]


def _why(key: str) -> dict[str, str]:
    folder, system = key.split("/")
    if folder != "field":
        return {}
    found = {"why": FORMS[system][1]}
    return found | ({"missing": MISSING[system]} if system in MISSING else {})


def _form(folder: str, system: str, kind: str) -> str:
    """What an export comes to, as its test states it: convolutions first, the rest unsaid."""
    if folder == "field":
        return FORMS_OF_KINDS.get(f"{system}.{kind}", FORMS[system][0])
    if folder == "pytorch":
        return _deployed(system)
    stated = json.loads((FIXTURES / folder / "forms.json").read_text())
    return _listed(Counter(stated[f"{system}.{kind}.onnx"]["form"]))


def _deployed(system: str) -> str:
    """The operators of the hand-merged form, where the fused one is to equal it."""
    graph = onnx.load(FIXTURES / "pytorch" / f"{system}.deploy.onnx").graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    names = Counter(
        _named(node, shapes) for node in graph.node if node.op_type not in ("Identity", "Constant")
    )
    return _listed(names)


def _named(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> str:
    if node.op_type != "Conv" or node.input[1] not in shapes:
        return node.op_type
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    text = "Conv " + "x".join(map(str, shapes[node.input[1]][2:]))
    strides = settings.get("strides", [1])
    if max(strides) > 1:
        text += "/" + ("x".join(map(str, strides)) if len(set(strides)) > 1 else str(strides[0]))
    return text + (f" g{settings['group']}" if settings.get("group", 1) > 1 else "")


def _listed(names: Counter[str]) -> str:
    kerneled = sorted(n for n in names if n.startswith(("Conv", "Gemm", "MatMul")))
    rest = sorted(n for n in names if n not in kerneled)
    return ", ".join(f"{names[n]} {n}" if names[n] > 1 else n for n in (*kerneled, *rest))


def main() -> int:
    """Write the table and its page, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from onnxfuse.report.systems import page

    found = rows()
    texts = {TABLE: json.dumps(found, indent=1, ensure_ascii=False) + "\n", PAGE: page(found)}
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if options.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} differs; run python tools/list_systems.py")
        return 1 if stale else 0
    for path, text in texts.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
