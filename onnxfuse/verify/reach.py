"""How far the borders of a region reach: from which length on all of its rows have been seen.

Along one axis, an output ``o`` of a region is a row: what it reads, and how much of each. Let ``J``
be the stride. Of a tensor ``T`` on the way it reads, counted in positions of the source, those from
``J·o + lo`` to ``J·o + hi``, where ``lo`` and ``hi`` follow from the windows behind ``T``. Where
that lies inside ``T`` for every ``T``, the row is the one before, moved by ``J``. So with

    before = max(-lo)    and    after = max(hi - the last position of T)

at a source of length ``X = 0``, the rows ``before <= J·o <= X - after`` see no border. At a length

    before + after + J - 1

there is one of them. Of the rows in front of it none sees the end, and of those behind it none the
beginning; so every longer source of the same residue by the stride only repeats that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from onnxfuse.algebra.geometry import Axis
from onnxfuse.algebra.joining import Concat, Select
from onnxfuse.algebra.laws import Alias, Convolve, Law, Linear, Scale, Sum
from onnxfuse.algebra.padding import Fill, Frame, Pad
from onnxfuse.lift.common import Lifted

_STILL = (Alias, Concat, Linear, Scale, Select, Sum)
"""Laws that read each position where it stands."""


class Step(Protocol):
    """A law, what it was lifted from, and where that stands in the order of the graph."""

    @property
    def lifted(self) -> Lifted: ...
    @property
    def law(self) -> Law: ...
    @property
    def position(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Reach:
    """What a tensor sees of the borders of all that it comes from, itself included.

    ``slack`` is that of `Axis`: its last position is ``X + slack`` in positions of the source, or
    up to ``jump - 1`` before that.
    """

    jump: int = 1
    before: int = 0
    after: int = 1
    slack: int = -1

    def joined(self, other: Reach) -> Reach:
        """The worst of both."""
        return Reach(
            max(self.jump, other.jump),
            max(self.before, other.before),
            max(self.after, other.after),
            min(self.slack, other.slack),
        )

    def behind(self, window: Axis) -> Reach:
        """After a window."""
        jump = self.jump * window.stride
        slack = self.slack + self.jump * (1 + window.slack)
        return Reach(
            jump,
            max(self.before - self.jump * window.start, 0),
            max(self.after + self.jump * (window.start + window.extent - 1), jump - 1 - slack),
            slack,
        )

    def framed(self, width: int) -> Reach:
        """Where the outermost positions at both ends are another thing than those between."""
        edge = self.jump * width
        after = self.jump - 1 - self.slack + edge
        return replace(self, before=max(self.before, edge), after=max(self.after, after))

    @property
    def least(self) -> int:
        """The least length that shows every row, and two of them at least.

        One output alone would be the same for any stride.
        """
        return max(self.before + self.after + self.jump - 1, self.jump + 1)


def reach(
    steps: Sequence[Step], root: str, axis: int, windows: Sequence[tuple[str, Axis]]
) -> Reach | None:
    """The reach of the tensor ``root`` of some steps, and of the windows that replace them.

    Each of the ``windows`` comes with the tensor that it reads. ``None`` where a step moves
    positions in a way that is not told by a window.
    """
    known: dict[str, Reach] = {}
    for step in sorted(steps, key=lambda step: step.position):
        read = [known.get(name, Reach()) for name in step.lifted.operands]
        found = read[0]
        for other in read[1:]:
            found = found.joined(other)
        after = _after(step.law, axis, found)
        if after is None:
            return None
        for name in step.lifted.node.outputs:
            known[name] = after
    found = known.get(root, Reach())
    for name, window in windows:
        if window.moves or window.up > 1:
            return None
        found = found.joined(known.get(name, Reach()).behind(window))
    return found


def _after(law: Law, axis: int, before: Reach) -> Reach | None:
    if isinstance(law, _STILL):
        return before
    if isinstance(law, Convolve):
        if len(law.kernel.geometry.axes) <= axis:
            return None
        window = law.kernel.geometry.axes[axis]
        return None if window.moves or window.up > 1 else before.behind(window)
    if isinstance(law, Pad):  # whichever of its axes this is: the layout may be another
        found = before
        for begin, end in zip(law.begins, law.ends, strict=True):
            found = found.joined(before.behind(Axis.window(1, begin=begin, end=end)))
        return found
    if isinstance(law, Fill):
        return before.framed(law.width)
    if isinstance(law, Frame):
        begin, end = (0 if strip is None else strip.width for strip in (law.begin, law.end))
        return before.joined(before.behind(Axis.window(1, begin=begin, end=end)))
    return None
