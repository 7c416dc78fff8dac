"""What a user may choose. It knows no other room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose. ``only`` and ``without`` are globs over node names.

    ``approximate_borders`` takes merges that hold in the interior alone; ``keep_post_bn`` leaves
    each BatchNormalization that nothing linear reads; ``policy`` is one of the
    `POLICIES` of `onnxfuse.version`. ``freeze_initializers`` takes weights out of the inputs;
    ``assume_inference`` takes training-mode nodes to inference mode. ``ranges`` has the report say
    how far the channels of kernels lie apart, for which they are read once more. Up to ``workers``
    threads or processes share what takes long.

    The rest is for the run of the whole model: ``input_data`` are its only inputs by name ("" being
    the model's only one), ``seed`` draws others, ``rtol`` and ``atol`` judge outputs by name (""
    being all). Where a proof fails, what is guilty is written to the directory ``save_repro``.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int | None, ...]] | None = None
    verify: bool = True
    approximate_borders: bool = False
    keep_post_bn: bool = False
    policy: str = "default"
    freeze_initializers: bool = False
    assume_inference: bool = False
    ranges: bool = True
    workers: int = 1
    input_data: Mapping[str, Any] | None = None
    seed: int | None = None
    rtol: Mapping[str, float] = field(default_factory=dict)
    atol: Mapping[str, float] = field(default_factory=dict)
    save_repro: str | None = None

    @property
    def judged(self) -> bool:
        """Whether anything was asked of the run of the whole model."""
        return bool(self.input_data is not None or self.seed is not None or self.rtol or self.atol)

    def admits(self, label: str) -> bool:
        if any(fnmatchcase(label, pattern) for pattern in self.without):
            return False
        return not self.only or any(fnmatchcase(label, pattern) for pattern in self.only)
