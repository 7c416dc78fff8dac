"""Refusals: why a linear place is left alone. Values, never exceptions, never silence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Code(StrEnum):
    """Reason codes, one meaning each; `docs/design.md` lists them with what a user can do."""

    ACTIVATION = "activation-constant"
    BORDER_BIAS = "border-bias"
    BORDER_WINDOW = "border-window"
    BROADCAST = "broadcast"
    CEIL_MODE = "ceil-mode"
    CHANNELS = "channel-blocks"
    COST = "cost"
    DYNAMIC_WEIGHTS = "dynamic-weights"
    EXCLUDE_PAD = "exclude-pad"
    EXCLUDED = "excluded"
    GRAPH_OUTPUT = "graph-output"
    LENGTH = "length-mismatch"
    MALFORMED = "malformed"
    OVERFLOW = "overflow"
    OVERRIDABLE = "overridable-initializer"
    PARITY = "same-padding-parity"
    READER = "reader-outside"
    SHARED_KERNEL = "shared-kernel"
    SIZE = "size-limit"
    STRIDE = "stride-mismatch"
    TRAINING = "training-mode"
    UNKNOWN_SHAPE = "unknown-shape"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node was not fused: a code, the node it stands at, one sentence a user can act on."""

    code: Code
    text: str
    node: str = ""

    def at(self, node: str) -> Refusal:
        return replace(self, node=node)

    def __str__(self) -> str:
        return f"{self.node}: {self.text} [{self.code}]"
