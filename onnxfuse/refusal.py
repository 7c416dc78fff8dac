"""Refusals: why a linear place is left alone. Values, never exceptions, never silence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Code(StrEnum):
    """Reason codes, one meaning each; `docs/design.md` lists them with what a user can do."""

    ALONE = "alone"
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
    NONLINEAR = "nonlinear"
    OVERFLOW = "overflow"
    OVERRIDABLE = "overridable-initializer"
    PARITY = "same-padding-parity"
    QUANTISED = "quantised"
    READER = "reader-outside"
    SHARED_KERNEL = "shared-kernel"
    SIZE = "size-limit"
    STRIDE = "stride-mismatch"
    TRAINING = "training-mode"
    UNKNOWN_SHAPE = "unknown-shape"
    UNSUPPORTED = "unsupported"


NOTHING = "nothing: the model computes what it says"
ADVICE = {
    Code.ALONE: NOTHING,
    Code.ACTIVATION: "nothing: taking the constant would hide the activation from runtimes",
    Code.BORDER_BIAS: "pad with one value, train without the bias, or try --approximate-borders",
    Code.BORDER_WINDOW: NOTHING,
    Code.BROADCAST: NOTHING,
    Code.CEIL_MODE: "export without ceil_mode, or at fixed sizes that its windows fit",
    Code.CHANNELS: NOTHING,
    Code.COST: "nothing: it is cheaper as it stands",
    Code.DYNAMIC_WEIGHTS: "nothing; where a function is what hides it, inline the function",
    Code.EXCLUDE_PAD: "train with count_include_pad, or try --approximate-borders",
    Code.EXCLUDED: "change --only, --except or --keep-post-bn",
    Code.GRAPH_OUTPUT: "remove the graph output if nobody needs it",
    Code.LENGTH: "export at fixed sizes",
    Code.MALFORMED: "report it to the exporter",
    Code.NONLINEAR: NOTHING,
    Code.OVERFLOW: "use a wider type",
    Code.OVERRIDABLE: "export without keep_initializers_as_inputs, or pass --freeze-initializers",
    Code.PARITY: "export at fixed sizes",
    Code.QUANTISED: "fuse the floating-point model, then quantise it",
    Code.READER: NOTHING,
    Code.SHARED_KERNEL: "nothing: the kernel is stored once for all its convolutions",
    Code.SIZE: "nothing; at a fixed size that is too large to prove, export a smaller batch",
    Code.STRIDE: NOTHING,
    Code.TRAINING: "export after .eval(), or pass --assume-inference",
    Code.UNKNOWN_SHAPE: "give all graph inputs their shapes; behind a custom operator, nothing",
    Code.UNSUPPORTED: "report it, with the model or its exporter",
}
"""What a user can do about each; `docs/design.md` says the same."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node was not fused: a code, the node it stands at, one sentence a user can act on.

    Where a merge was looked at and refused, ``expression`` is what it would have been and
    ``tensors`` are those it would have computed at once, in topological order.
    """

    code: Code
    text: str
    node: str = ""
    expression: str = ""
    tensors: tuple[str, ...] = ()

    def at(self, node: str) -> Refusal:
        return replace(self, node=node)

    def __str__(self) -> str:
        return f"{self.node}: {self.text} [{self.code}]"
