"""How far the borders of a region reach: from which length on all of its rows have been seen.

Along one axis, an output of a region is a row: what it reads, and how much of each. A row whose
window lies inside every tensor on the way is the one before, moved by the stride; near the begin
and near the end stand others. Let ``E`` be the extent of the whole window in positions of the
source, ``J`` the stride, and ``B`` and ``A`` the paddings and crops on the way, summed along the
worst path. Then the rows below ``B / J`` alone see the begin, and end before ``B + E``; the same
holds from the end. So at a length of

    B + E + A + 2J - 1

there are two rows between that see neither border, one the other moved by ``J``; no row sees both;
and every longer source of the same residue by the stride only repeats what is between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxfuse.algebra.geometry import Axis
from onnxfuse.algebra.joining import Concat, Select
from onnxfuse.algebra.laws import Alias, Convolve, Law, Linear, Scale, Sum
from onnxfuse.algebra.padding import Fill, Frame, Pad
from onnxfuse.model.graph import Node

_STILL = (Alias, Concat, Linear, Scale, Select, Sum)
"""Laws that read each position where it stands."""


class Step(Protocol):
    """A law, the node it was lifted from, and where that stands in the order of the graph."""

    @property
    def node(self) -> Node: ...
    @property
    def law(self) -> Law: ...
    @property
    def position(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Reach:
    """The window of a tensor on one axis of the sources; pads and crops of begin and end."""

    jump: int = 1
    extent: int = 1
    pads: tuple[int, int] = (0, 0)
    crops: tuple[int, int] = (0, 0)

    def joined(self, other: Reach) -> Reach:
        """The worst of both."""
        return Reach(
            max(self.jump, other.jump),
            max(self.extent, other.extent),
            _larger(self.pads, other.pads),
            _larger(self.crops, other.crops),
        )

    def behind(self, extent: int, stride: int, amounts: tuple[int, int]) -> Reach:
        """After a window of ``extent`` that pads by ``amounts``, or crops where they are less."""
        begin, end = amounts
        return Reach(
            self.jump * stride,
            self.extent + self.jump * (extent - 1),
            self._more(self.pads, max(begin, 0), max(end, 0)),
            self._more(self.crops, max(-begin, 0), max(-end, 0)),
        )

    def _more(self, sums: tuple[int, int], begin: int, end: int) -> tuple[int, int]:
        return sums[0] + self.jump * begin, sums[1] + self.jump * end

    @property
    def least(self) -> int:
        """The least length that shows every row."""
        return sum(self.pads) + sum(self.crops) + self.extent + 2 * self.jump - 1


def _larger(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    return max(left[0], right[0]), max(left[1], right[1])


def reach(steps: Sequence[Step], root: str, axis: int, windows: Sequence[Axis]) -> Reach | None:
    """The reach of the tensor ``root`` of some steps, and of the ``windows`` that replace them.

    ``None`` where a step moves positions in a way that is not told by a window.
    """
    known: dict[str, Reach] = {}
    for step in sorted(steps, key=lambda step: step.position):
        found = Reach()
        for name in step.node.inputs:
            found = found.joined(known.get(name, Reach()))
        after = _after(step, axis, found)
        if after is None:
            return None
        for name in step.node.outputs:
            known[name] = after
    found = known.get(root, Reach())
    for window in windows:
        if window.moves or window.up > 1:
            return None
        found = found.joined(Reach().behind(window.extent, window.stride, window.pads))
    return found


def _after(step: Step, axis: int, before: Reach) -> Reach | None:
    law = step.law
    if isinstance(law, _STILL):
        return before
    if isinstance(law, Convolve):
        if len(law.kernel.geometry.axes) <= axis:
            return None
        window = law.kernel.geometry.axes[axis]
        if window.moves or window.up > 1:
            return None
        return before.behind(window.extent, window.stride, window.pads)
    if isinstance(law, Pad):  # its axes may stand in another order: the worst of them
        for amounts in zip(law.begins, law.ends, strict=True):
            before = before.joined(before.behind(1, 1, amounts))
        return before
    if isinstance(law, Fill):
        return before.behind(1, 1, (law.width, law.width))
    if isinstance(law, Frame):
        widths = tuple(0 if strip is None else strip.width for strip in (law.begin, law.end))
        return before.behind(1, 1, (widths[0], widths[1]))
    return None
