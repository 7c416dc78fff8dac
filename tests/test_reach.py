"""From the least length on that a proof uses, longer sources only repeat what is between."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_text import model, session

from onnxfuse.algebra.geometry import Axis
from onnxfuse.fusing import _worked
from onnxfuse.options import Options
from onnxfuse.verify.reach import Reach, reach
from onnxfuse.watch import Watch


class Lines:
    """Random nodes along one axis, of integers, so that every sum is exact."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.stored: dict[str, np.ndarray] = {}

    def _name(self) -> str:
        return f"t{len(self.lines)}"

    def _add(self, text: str) -> str:
        name = self._name()
        self.lines.append(f"{name} = {text}")
        return name

    def _store(self, array: np.ndarray) -> str:
        name = f"c{len(self.stored)}"
        self.stored[name] = array
        return name

    def _numbers(self, *shape: int) -> str:
        found = self.draw.integers(1, 4, shape) * self.draw.choice([-1, 1], shape)
        return self._store(found.astype(np.float32))

    def conv(self, x: str, taps: int, stride: int, dilation: int, pads: tuple[int, int]) -> str:
        w, b = self._numbers(1, 1, taps), self._numbers(1)
        text = f"pads = [{pads[0]},{pads[1]}], strides = [{stride}], dilations = [{dilation}]"
        return self._add(f"Conv<{text}>({x}, {w}, {b})")

    def pad(self, x: str) -> str:
        begin, end = (int(n) for n in self.draw.integers(-2, 3, 2))
        amounts = self._store(np.array([0, 0, begin, 0, 0, end]))
        value = self._store(np.array(float(self.draw.integers(0, 2)), np.float32))
        return self._add(f"Pad({x}, {amounts}, {value})")

    def pool(self, x: str) -> str:
        pads = self.draw.integers(0, 2, 2)
        text = f"kernel_shape = [2], pads = [{pads[0]},{pads[1]}], count_include_pad = 1"
        return self._add(f"AveragePool<{text}>({x})")

    def affine(self, x: str) -> str:
        return self._add(f"Add({x}, {self._numbers(1, 1, 1)})")

    def branches(self, x: str) -> str:
        """Two or three windows of equal lengths, which stand where they like."""
        stride = int(self.draw.integers(1, 4))
        slack = int(self.draw.integers(-3, 2))
        found = []
        for _ in range(self.draw.integers(1, 4)):
            taps, dilation = (int(n) for n in self.draw.integers(1, [5, 3]))
            total = max(slack + dilation * (taps - 1) + 1, 0)
            if total != slack + dilation * (taps - 1) + 1:
                continue
            begin = int(self.draw.integers(0, total + 1))
            found.append(self.conv(x, taps, stride, dilation, (begin, total - begin)))
        total = found[0] if found else x
        for other in found[1:]:
            total = self._add(f"Add({total}, {other})")
        return total

    def chain(self) -> str:
        x = "x"
        for _ in range(self.draw.integers(1, 5)):
            kinds = [self.branches, self.branches, self.pad, self.pool, self.affine]
            x = kinds[self.draw.integers(len(kinds))](x)
        return x


def rows(run, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What each output reads of each position of a source of ``size``, and what it adds."""
    impulses = np.zeros((size + 1, 1, size), np.float32)
    impulses[np.arange(size), 0, np.arange(size)] = 1
    found = run(None, {"x": impulses})[0][:, 0]
    return (found[:size] - found[size]).T, found[size]


def grown(matrix: np.ndarray, constant: np.ndarray, at: int, more: int, jump: int):
    """The rows of a longer source, if row ``at`` sees neither border."""
    count, size = matrix.shape
    wider = np.zeros((count + more, size + more * jump), matrix.dtype)
    for row in range(count + more):
        moved = min(max(row - at, 0), more)
        wider[row, moved * jump : moved * jump + size] = matrix[row - moved]
    order = [row - min(max(row - at, 0), more) for row in range(count + more)]
    return wider, constant[order]


@pytest.mark.parametrize("chunk", range(8))
def test_longer_sources_repeat_what_is_between(chunk):
    compared = 0
    for seed in range(1000 * chunk, 1000 * chunk + 40):
        lines = Lines(seed)
        last = lines.chain()
        if last == "x":
            continue
        text = f"(float[B,1,X] x) => (float[] {last}) {{ {' '.join(lines.lines)} }}"
        built = model(text, **lines.stored)
        problem = _worked(built, Options(), Watch(), dry=False)[1].main.problem
        found = reach(list(problem.steps.values()), last, 0, ())
        assert found is not None
        run = session(built).run
        for residue in range(found.jump):
            least = found.least + residue
            matrix, constant = rows(run, least)
            for more in (1, 2, 3):
                longer = rows(run, least + more * found.jump)
                assert len(longer[0]) == len(matrix) + more
                between = [
                    at
                    for at in range(len(matrix))
                    if all(
                        map(np.array_equal, grown(matrix, constant, at, more, found.jump), longer)
                    )
                ]
                assert len(between) >= 1, (seed, least, more)
                compared += 1
    assert compared > 100


def test_there_are_two_outputs_also_where_no_border_is_seen():
    """A stride that is written wrongly would else go unseen."""
    assert Reach().behind(Axis.window(1)).least == 2
    assert Reach().behind(Axis.window(1, stride=2)).least == 3


def test_a_window_of_three_is_proved_at_three_positions():
    assert Reach().behind(Axis.window(3, begin=1, end=1)).least == 3
    assert Reach().behind(Axis.window(3, stride=2, begin=1, end=1)).least == 4
    cropped = Reach().behind(Axis.window(1, begin=-1, end=-1))
    assert cropped.behind(Axis.window(3, begin=1, end=1)).least == 5
