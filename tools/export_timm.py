"""Export timm's networks with random weights, each beside timm's own reparameterized form.

    python tools/export_timm.py --out FOLDER [--only GLOB] [--exporter ts] [--size N]

`compare_timm.py` calls this; `requirements-timm.txt` says what it needs. timm imports torchvision,
Pillow, yaml, huggingface_hub and safetensors for data and for pretrained weights. Neither is used
here, so what is missing is stood in for by empty modules (`stand_in`): torchvision has no build
for CPUs on PyPI.

For each network and exporter two files, `NAME.ts.onnx` and `NAME.ts-deploy.onnx` (timm's form,
merged in float64; none for a network that has none), and for each network `NAME.json`, which says
how far they are from float64 and what failed.
"""

from __future__ import annotations

import argparse
import copy
import enum
import fnmatch
import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import math
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEED = 2026
UNUSED = ("torchvision", "PIL", "yaml", "huggingface_hub", "safetensors")
EXPORTERS = ("ts", "dynamo")

# Networks and the least size of input they take here. 96 is small and divides by 32; the others
# fix their size when they are built or their last stage would be empty.
NETWORKS: dict[str, int] = {
    # networks with a reparameterized form in timm
    "repvgg_a0": 96,
    "mobileone_s0": 96,
    "mobileone_s4": 96,
    "fastvit_t8": 96,
    "fastvit_sa12": 96,
    "fastvit_mci0": 96,
    "repvit_m0_9": 96,
    "repvit_m1": 96,
    "ghostnetv3_050": 96,
    "repghostnet_050": 96,
    "lcnetv2_small": 96,
    "tiny_vit_5m_224": 96,
    "efficientvit_m0": 224,
    "levit_128s": 224,
    "levit_conv_128s": 224,
    "nextvit_small": 96,
    "efficientvim_m1": 128,
    "iformer_t": 128,
    "shvit_s1": 128,
    # controls: nothing to merge but what follows a convolution
    "resnet18": 96,
    "resnetv2_18d": 96,
    "vit_tiny_patch16_224": 96,
    "convnext_atto": 96,
    "convnext_atto_ols": 96,
    "edgenext_xx_small": 96,
    "mobilenetv4_conv_small": 96,
    "mobilenetv4_conv_blur_medium": 96,
    "mobilenetv4_hybrid_medium": 96,
    "hgnetv2_b0": 96,
    "lcnet_050": 96,
    "ghostnet_050": 96,
    "ghostnetv2_100": 96,
    "inception_next_atto": 96,
    "poolformer_s12": 96,
    "poolformerv2_s12": 96,
    "starnet_s1": 96,
    "efficientvit_b0": 96,
    "efficientvit_l1": 96,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "swiftformer_xs": 96,
    "fasternet_t0": 96,
    "mobilevit_xxs": 96,
    "mobilevitv2_050": 96,
    "mambaout_femto": 96,
    "res2net50_26w_4s": 96,
    "skresnet18": 96,
    "dla34": 96,
    "densenet121": 96,
    "inception_v3": 128,
    "rdnet_tiny": 96,
    "csatv2": 512,
}


class Nothing(type):
    """The type of a stand-in class, which has every attribute: itself."""

    def __getattr__(cls, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class StandIn(types.ModuleType):
    """A module in which every name is a class without content."""

    __version__ = "0"
    InterpolationMode = enum.Enum(  # timm looks one up by its value when it is imported
        "InterpolationMode",
        {
            mode.upper(): mode
            for mode in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
        },
    )

    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(name, (), {})


class StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `StandIn` modules for the given packages and all that lies in them."""

    def __init__(self, packages: list[str]) -> None:
        self.packages = packages

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stand_in() -> None:
    """Let timm be imported without the packages of `UNUSED` that are not installed."""
    missing = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    sys.meta_path.insert(0, StandInFinder(missing))


stand_in()
import timm  # noqa: E402
import torch  # noqa: E402
from export_pytorch import export_dynamo, export_torchscript  # noqa: E402
from timm.utils.model import reparameterize_model  # noqa: E402
from torch import Tensor, nn  # noqa: E402


def build(name: str, size: int) -> nn.Module:
    """Return the network with seeded random weights, in evaluation mode."""
    torch.manual_seed(SEED)
    model: nn.Module
    try:
        model = timm.create_model(name, exportable=True, img_size=size)
    except TypeError:  # a network for any size takes no img_size
        model = timm.create_model(name, exportable=True)
    return model.eval()


@torch.no_grad()
def fill(model: nn.Module, x: Tensor) -> None:
    """Give every parameter and statistic a trained look, in place.

    An untrained network is too regular: BN is the identity, biases are zero, and scales of layers
    are 1e-5 or 1, so that a lost branch would not show. Weights get variance 1/fan_in, which
    batch normalisation makes up for; the statistics of BN are those of `x`, moved at random, so
    that activations neither vanish nor explode however deep the network is.
    """
    rng = torch.Generator().manual_seed(SEED)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.std() > 0 and parameter.numel() > parameter.shape[0]:
            fan_in = math.prod(parameter.shape[1:])
            parameter.normal_(0, math.sqrt(1 / fan_in), generator=rng)
        elif bool((parameter == 0).all()):
            parameter.normal_(0, 0.2, generator=rng)
        elif parameter.std(unbiased=False) == 0:  # gains, scales of layers, temperatures
            parameter.uniform_(0.5, 1.5, generator=rng)
    for norm in norms:
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5, generator=rng)
            norm.bias.normal_(0, 0.3, generator=rng)
        norm.momentum = 1.0
        norm.train()
    model(x)
    model.eval()
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # A channel that is dead here must not be amplified where it wakes up.
        variance = norm.running_var.clamp(min=0.1 * float(norm.running_var.mean()))
        shift = torch.empty_like(variance).normal_(0, 0.1, generator=rng)
        norm.running_mean += shift * variance.sqrt()
        norm.running_var.copy_(
            variance * torch.empty_like(variance).uniform_(0.7, 1.4, generator=rng)
        )


def relative(expected: Tensor, actual: Tensor) -> float:
    """RMS of the difference over RMS of the expected."""
    difference = (expected.double() - actual.double()).square().mean().sqrt()
    return float(difference / expected.double().square().mean().sqrt())


def reparameterized(model: nn.Module) -> nn.Module | None:
    """The model in timm's form, merged in float64; None where that changes no module.

    Some of its merges make layers in float32, whatever the model's type, and round them to that.
    """
    merged: nn.Module = reparameterize_model(copy.deepcopy(model).double()).eval().double()
    before = {name: type(module) for name, module in model.named_modules()}
    after = {name: type(module) for name, module in merged.named_modules()}
    return merged if before != after else None


def in_a_line(failure: Exception) -> str:
    """What went wrong, without the pages that exporters add."""
    return f"{type(failure).__name__}: {next(iter(str(failure).splitlines()), '')[:200]}"


@torch.no_grad()
def exports(name: str, size: int, exporters: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield (file suffix, bytes) and (fact, value) for one network."""
    x = torch.randn((4, 3, size, size), generator=torch.Generator().manual_seed(SEED))
    model = build(name, size)
    fill(model, x)
    x = x[:1]
    expected = copy.deepcopy(model).double()(x.double())
    yield "size", size
    yield "scale", float(expected.square().mean().sqrt())
    subjects = {"": model}
    try:
        merged = reparameterized(model)
        if merged is not None:
            yield "deploy_error", relative(expected, merged(x.double()))
            subjects["-deploy"] = merged.float()
    except Exception as failure:  # timm's own merge fails
        yield "deploy_failed", in_a_line(failure)
    for exporter in exporters:
        for form, subject in subjects.items():
            kind = f"{exporter}{form}"
            begin = time.perf_counter()
            try:
                yield f"{kind}_rms", relative(expected, subject(x))
                if exporter == "dynamo":
                    yield kind, export_dynamo(subject, x, None)
                else:
                    yield kind, export_torchscript(subject, x, None, preserve=False)
            except Exception as failure:  # a failing exporter is a finding
                yield f"{kind}_failed", in_a_line(failure)
            yield f"{kind}_seconds", round(time.perf_counter() - begin, 1)


def run(name: str, size: int, exporters: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Export one network into `out`; return the facts, which are added to those there."""
    place = out / f"{name}.json"
    facts: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    redone = (*exporters, "deploy", "failed")
    same = facts.get("size") == size
    facts = {key: value for key, value in facts.items() if same and not key.startswith(redone)}
    facts |= {"timm": timm.__version__, "torch": torch.__version__}
    try:
        for key, value in exports(name, size, exporters):
            if isinstance(value, bytes):
                (out / f"{name}.{key}.onnx").write_bytes(value)
            else:
                facts[key] = value
    except Exception as failure:  # so is a network that cannot be built or run
        facts["failed"] = in_a_line(failure)
    place.write_text(json.dumps(facts, indent=1))
    return facts


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 0."""
    parser = argparse.ArgumentParser(description="Export timm's networks to ONNX.")
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument("--only", action="append", metavar="GLOB", help="networks (repeatable)")
    parser.add_argument("--exporter", choices=EXPORTERS, help="one exporter (default: both)")
    parser.add_argument("--size", type=int, help="of the input (default: the least that works)")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    exporters = (options.exporter,) if options.exporter else EXPORTERS
    wanted = options.only or ["*"]
    chosen = {n: s for n, s in NETWORKS.items() if any(fnmatch.fnmatch(n, g) for g in wanted)}
    # A name that is not in the table but that timm knows is exported as well.
    chosen |= {n: 96 for n in wanted if n not in NETWORKS and n in timm.list_models()}
    for name, size in chosen.items():
        facts = run(name, options.size or size, exporters, options.out)
        print(name, json.dumps(facts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
