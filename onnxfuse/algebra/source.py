"""What a form is made of: tensors that stand in the graph, planes of ones, and other shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxfuse.algebra.geometry import Lengths
from onnxfuse.algebra.weights import Array


@dataclass(frozen=True, slots=True)
class Plane:
    """Ones over the positions of a map of the tensor ``of``.

    Per axis ``(stride, slack)`` give its length, ``(X + slack) // stride + 1``.
    """

    of: Source
    axes: tuple[tuple[int, int], ...]

    def lengths(self, x: Lengths) -> Lengths:
        """The plane's lengths where those of the tensor are ``x``."""
        return tuple(
            None if size is None else (size + slack) // stride + 1
            for size, (stride, slack) in zip(x, self.axes, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Reshaped:
    """The tensor of ``of`` in another shape, ``target`` (-1: what is left over).

    ``tensor`` is what the graph reshapes, of shape ``before``; ``like`` is what comes of it.
    ``flat`` says that it is flattened behind its first axis.
    """

    of: Source
    target: tuple[int, ...]
    tensor: str
    before: Lengths
    like: str
    flat: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor ``(N, channels, *lengths)`` that stands as it is in the graph.

    ``layout[i]`` is the base axis at tensor axis ``i``; empty where the tensor has N and C first.
    A linear layer has its channels last, so a source of linear layers names its channels' axis.

    A source is *known* if no data enters it: a ``plane`` of ones ``(1, 1, *lengths)``, which
    stands in no graph yet, or a constant ``(1, channels, *lengths)`` that ``load`` reads, which
    ``stands`` in the graph under its name or is a view of one that does.
    """

    name: str
    channels: int
    lengths: Lengths
    plane: Plane | None = None
    load: Callable[[], Array] | None = field(default=None, compare=False, repr=False)
    stands: bool = True
    layout: tuple[int, ...] = ()
    reshaped: Reshaped | None = None

    @classmethod
    def shaped(cls, name: str, shape: Lengths, axis: int) -> Source | None:
        """A tensor of a shape with its channels on ``axis``, if it is known how many they are."""
        channels = shape[axis]
        if channels is None:
            return None
        order = [0, axis, *(at for at in range(1, len(shape)) if at != axis)]
        layout = () if axis == 1 else tuple(order.index(at) for at in range(len(shape)))
        return cls(name, channels, tuple(shape[at] for at in order[2:]), layout=layout)

    @property
    def root(self) -> Source:
        """The tensor that stands in the graph."""
        return self if self.reshaped is None else self.reshaped.of

    @property
    def like(self) -> str:
        """A tensor of the graph that has these lengths."""
        return self.name if self.reshaped is None else self.reshaped.like

    @property
    def order(self) -> tuple[int, ...]:
        """The base axis at each tensor axis."""
        return self.layout or tuple(range(len(self.lengths) + 2))

    @property
    def channel_axis(self) -> int:
        """The tensor axis of the channels."""
        return self.order.index(1)

    def standing(self, base: Sequence[int]) -> tuple[int, ...]:
        """A shape ``(N, C, *spatial)`` as the tensor has it."""
        return tuple(base[axis] for axis in self.order)

    def lying(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """The spatial lengths in a shape of the tensor."""
        return tuple(shape[self.order.index(axis)] for axis in range(2, len(self.order)))

    @property
    def known(self) -> bool:
        return self.load is not None or self.plane is not None
