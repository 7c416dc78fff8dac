"""A region as boxes in rows and wires between them, in whole pixels, ready for SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from unicodedata import east_asian_width

from onnxfuse.records import Operator
from onnxfuse.report.layers import Layers, Link, arrange
from onnxfuse.report.names import clean, shortened

SHORT = {"BatchNormalization": "BN", "AveragePool": "AvgPool", "ConvTranspose": "ConvT"}
CROWDED = 60
"""Boxes beyond which every run of one-in-one-out operators is drawn as one."""
ROW_GAP, MARGIN = 30, 8
LETTER, LEAST, TALL, FLAT, PILL = 7.3, 62, 40, 26, 22

_GROUPS = {
    "conv": ("Conv", "ConvTranspose", "Gemm", "MatMul"),
    "affine": ("BatchNormalization", "Mul", "Div", "Add", "Sum", "Sub", "Neg"),
    "pool": ("AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool"),
    "border": ("Pad", "ScatterND", "ScatterElements", "Slice"),
}
_GROUP = {kind: group for group, kinds in _GROUPS.items() for kind in kinds}

Stroke = tuple[int, int, int, int]
"""From x, y to x, y: a curve where x changes, else a line."""


@dataclass(frozen=True, slots=True)
class Box:
    """Some operators, or a tensor (``first`` is None); ``x, y`` is the upper left corner."""

    group: str
    lines: tuple[str, ...]
    names: tuple[str, ...]
    first: int | None
    width: int
    height: int
    x: int = 0
    y: int = 0


@dataclass(frozen=True, slots=True)
class Wire:
    """A tensor on its way to its readers; ``tips`` are where it arrives."""

    tensor: str
    strokes: tuple[Stroke, ...]
    tips: tuple[tuple[int, int], ...]

    @property
    def path(self) -> str:
        """The strokes and arrowheads as the ``d`` of an SVG path."""
        words = []
        for x0, y0, x1, y1 in self.strokes:
            mid = (y0 + y1) // 2
            words.append(
                f"M{x0} {y0}" + (f"V{y1}" if x0 == x1 else f"C{x0} {mid} {x1} {mid} {x1} {y1}")
            )
        return "".join([*words, *(f"M{x - 3} {y - 5}l3 5l3-5" for x, y in self.tips)])


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes and wires on a canvas; ``operators`` were drawn, some of them in one box."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    operators: int


def group(operator: Operator) -> str:
    """What an operator is drawn as; a sum has two data inputs, a shift has one."""
    if operator.kind in ("Add", "Sum", "Sub") and len(operator.inputs) > 1:
        return "sum"
    if operator.kind in ("Mul", "Div") and len(operator.inputs) > 1:
        return "other"
    return _GROUP.get(operator.kind, "other")


def draw(operators: Sequence[Operator]) -> Drawing:
    """The drawing of some operators, given in topological order."""
    boxes, nets = _boxes(operators, runs(operators))
    return _drawn(boxes, arrange([box.width for box in boxes], nets), len(operators))


def runs(operators: Sequence[Operator]) -> list[list[int]]:
    """Operators by box: alike ones in a row share one; in a crowd, all that stand in a row do."""
    strict = _runs(operators, alike=True, least=3)
    return strict if len(strict) <= CROWDED else _runs(operators, alike=False, least=2)


def _runs(operators: Sequence[Operator], *, alike: bool, least: int) -> list[list[int]]:
    readers: dict[str, int] = {}
    for operator in operators:
        for name in dict.fromkeys(operator.inputs):
            readers[name] = readers.get(name, 0) + 1
    found: list[list[int]] = []
    ending: dict[str, list[int]] = {}
    for index, operator in enumerate(operators):
        plain = len(operator.inputs) == len(operator.outputs) == 1
        run = ending.get(operator.inputs[0]) if plain and readers[operator.inputs[0]] == 1 else None
        last = operators[run[-1]] if run else operator
        if run is None or (alike and (last.kind, last.detail) != (operator.kind, operator.detail)):
            run = []
            found.append(run)
        run.append(index)
        if plain:
            ending[operator.outputs[0]] = run
    split = [[run] if len(run) >= least else [[index] for index in run] for run in found]
    return sorted(run for group in split for run in group)


def _boxes(
    operators: Sequence[Operator], found: Sequence[Sequence[int]]
) -> tuple[list[Box], dict[str, tuple[int, list[int]]]]:
    """Boxes of operators and of the tensors at the ends; each tensor's writer and readers."""
    boxes = [_box([operators[index] for index in run], run[0]) for run in found]
    tensors: dict[str, tuple[int, list[int]]] = {}
    ends: list[tuple[str, int]] = []
    for index, run in enumerate(found):
        for name in dict.fromkeys(operators[run[0]].inputs):
            if name not in tensors:
                tensors[name] = (len(boxes), [])
                boxes.append(_pill(name))
            tensors[name][1].append(index)
        outputs = operators[run[-1]].outputs
        tensors.update((name, (index, [])) for name in outputs if name not in tensors)
        ends.extend((name, index) for name in outputs[:1])
    for name, index in ends:
        writes = [tensors[other] for other in operators[found[index][-1]].outputs]
        if not any(readers for _, readers in writes):
            tensors[name][1].append(len(boxes))
            boxes.append(_pill(name))
    return boxes, tensors


def _box(members: Sequence[Operator], first: int) -> Box:
    names = tuple(member.name for member in members)
    kinds = list(dict.fromkeys(SHORT.get(clean(m.kind), clean(m.kind)) for m in members))
    lines = [shortened(", ".join(kinds), 24), shortened(clean(members[0].detail), 26)]
    if len(members) > 1 and len(kinds) == 1:
        lines[0] = f"{len(members)} {lines[0]}"
    elif len(members) > 1:
        lines[1] = f"{len(members)} operators"
    groups = {group(member) for member in members}
    kept = tuple(line for line in lines if line) or ("unnamed",)
    width = max([LEAST, *(round(_columns(line) * LETTER) + 18 for line in kept)])
    height = TALL if len(kept) > 1 else FLAT
    return Box(groups.pop() if len(groups) == 1 else "other", kept, names, first, width, height)


def _pill(name: str) -> Box:
    text = shortened(clean(name), 22) or "unnamed"
    return Box("tensor", (text,), (name,), None, round(_columns(text) * LETTER * 0.92) + 18, PILL)


def _columns(text: str) -> int:
    """The width of a text in letters; those of East Asia are twice as wide."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def _drawn(boxes: Sequence[Box], found: Layers, operators: int) -> Drawing:
    """Whole coordinates: rows from the top, wires from row to row."""
    half = {number: box.width / 2 for number, box in enumerate(boxes)}
    left = min((at - half.get(n, 0) for n, at in found.centres.items()), default=0.0)
    x = {number: round(at - left) + MARGIN for number, at in found.centres.items()}
    placed: dict[int, Box] = {}
    spans: dict[int, tuple[int, int]] = {}
    y = MARGIN
    for row in found.rows:
        height = max(boxes[number].height for number in row if number < len(boxes))
        for number in row:
            spans[number] = (y, y + height)
            if number < len(boxes):
                box = boxes[number]
                middle = y + (height - box.height) // 2
                placed[number] = replace(box, x=x[number] - box.width // 2, y=middle)
        y += height + ROW_GAP
    right = max((*x.values(), *(box.x + box.width for box in placed.values())), default=0)
    ordered = tuple(placed[number] for number in range(len(boxes)))
    wires = _wires(found.links, placed, x, spans)
    return Drawing(right + MARGIN, max(y - ROW_GAP, 0) + MARGIN, ordered, wires, operators)


def _wires(
    links: Sequence[Link],
    placed: Mapping[int, Box],
    x: Mapping[int, int],
    spans: Mapping[int, tuple[int, int]],
) -> tuple[Wire, ...]:
    """Wires leave in the middle of a box and arrive side by side."""
    strokes: dict[str, list[Stroke]] = {}
    tips: dict[str, list[tuple[int, int]]] = {}
    arriving: dict[int, list[Link]] = {}
    for link in links:
        arriving.setdefault(link.lower, []).append(link)
    for lower, meeting in arriving.items():
        box, many = placed.get(lower), len(meeting)
        step = min(14, (box.width - 16) // (many - 1)) if box and many > 1 else 0
        for place, link in enumerate(sorted(meeting, key=lambda link: x[link.upper])):
            upper, start = placed.get(link.upper), x[link.upper]
            foot = spans[link.upper][1]
            head, floor = spans[lower]
            at = x[lower] + step * (2 * place - many + 1) // 2
            end = box.y if box is not None else floor
            stub = upper.y + upper.height if upper is not None else foot
            pieces = [(start, stub, start, foot), (start, foot, at, head), (at, head, at, end)]
            found = strokes.setdefault(link.net, [])
            found += [piece for piece in pieces if piece[1] < piece[3]]
            if box is not None:
                tips.setdefault(link.net, []).append((at, end))
    return tuple(
        Wire(name, tuple(dict.fromkeys(found)), tuple(tips[name]))
        for name, found in strokes.items()
    )
