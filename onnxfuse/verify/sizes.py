"""The sizes that prove a region: the least that show every border, by residue of the stride."""

from __future__ import annotations

from collections.abc import Iterator

from onnxfuse.algebra.geometry import compose_axis
from onnxfuse.algebra.reshaping import Reshape
from onnxfuse.algebra.source import Source
from onnxfuse.lift import View
from onnxfuse.realise import Replacement
from onnxfuse.verify.reach import reach

Sizes = dict[str, tuple[int, ...]]


def proof_sizes(replacement: Replacement, view: View) -> Iterator[Sizes]:
    """The shapes of the region's free sources that prove it: see the module's text.

    Sources that the region itself computes from others follow from those.
    """
    region = replacement.region
    assert region.cover is not None
    form = region.cover.form
    inner = region.computed
    sources = _free_sources(replacement, view)
    if any(isinstance(step.law, Reshape) for step in region.interior):
        yield from _whole_sizes(sources, view, region.open_unit)
        return
    fixed = any(step.lifted.fixed for step in region.interior)
    follows = len(inner.intersection(region.sources)) > 0 or sources.keys() != form.sources.keys()
    least = [_least(replacement, axis) for axis in range(form.rank)]
    shapes: dict[str, list[list[int]]] = {name: [] for name in sources}
    for axis in range(form.rank):
        outer = form.outer.axes[axis].stride if form.outer else 1
        axes = [term.kernel.geometry.axes[axis] for term in form.terms]
        rates = {(window.stride * outer, window.up) for window in axes}
        step = max(stride for stride, _ in rates)
        known = [s.lengths[axis] for s in sources.values() if s.lengths[axis] is not None]
        room = [(_int(size) - least[axis]) // step for size in known]
        movable = bool(room) and len(rates) == 1 and not fixed and not follows
        cut = max(min(room), 0) if movable else 0
        for name, source in sources.items():
            size = source.lengths[axis]
            if size is not None:
                shapes[name].append([size - step * cut])
            else:
                shapes[name].append([least[axis] + residue for residue in range(step)])
    batches = dict.fromkeys(sources, 1)
    if fixed or follows:  # open ones are joined with those that are known
        given = {n: (view.shape(n) or (None,))[0] for n in sources}
        largest = max((size for size in given.values() if size is not None), default=1)
        batches = {n: largest if size is None else size for n, size in given.items()}
    rounds = max((len(options) for axes in shapes.values() for options in axes), default=1)
    for turn in range(rounds):
        yield {
            name: sources[name].standing(
                (batches[name], sources[name].channels, *(o[turn % len(o)] for o in axes))
            )
            for name, axes in shapes.items()
        }
    if any(None in source.lengths for source in sources.values()):
        for size in range(1, min(max(least, default=1), 12)):
            yield {
                name: s.standing(
                    (
                        batches[name],
                        s.channels,
                        *(
                            size if n is None else options[0]
                            for n, options in zip(s.lengths, shapes[name], strict=True)
                        ),
                    )
                )
                for name, s in sources.items()
            }


def _whole_sizes(sources: dict[str, Source], view: View, unit: int) -> Iterator[Sizes]:
    """The shapes the model has, open sizes being one and three: for maps that see no border.

    Where a Reshape divides what stands there, they are once and three times its ``unit``.
    """
    shapes = {name: view.shape(name) or () for name in sources}
    for size in (3 * unit, unit):
        yield {
            name: tuple(size if n is None else n for n in shape) for name, shape in shapes.items()
        }
        if all(None not in shape for shape in shapes.values()):
            return


def _free_sources(replacement: Replacement, view: View) -> dict[str, Source]:
    """The tensors a region starts from and does not compute, with what is known of them."""
    region = replacement.region
    assert region.cover is not None
    named = region.cover.form.sources
    inner = region.computed
    found: dict[str, Source] = {}
    for name in region.sources:
        shape = view.shape(name)
        if name in inner or view.constants.known(name):
            continue
        if name in named:
            found[name] = named[name]
        elif shape is not None and len(shape) >= 2 and shape[1] is not None:
            found[name] = Source(name, shape[1], shape[2:])
    return found


def _least(replacement: Replacement, axis: int) -> int:
    """The least length at which every border is seen with an interior between them.

    Where that is not told by windows, and where a constant map is cut out of the middle of a
    larger one, the borders have more room than they can need.
    """
    region = replacement.region
    assert region.cover is not None
    form = region.cover.form
    if form.outer is None and not replacement.maps:
        read = [(term.source.name, term.kernel.geometry.axes[axis]) for term in form.terms]
        found = reach(region.interior, region.root.tensor, axis, read)
        if found is not None:
            return found.least
    windows = [term.kernel.geometry.axes[axis] for term in form.terms]
    if form.outer is not None:
        windows = [compose_axis(form.outer.axes[axis], window) for window in windows]
    return max(
        (
            sum(map(abs, window.pads)) + 2 * (window.extent - 1) + 2 * window.stride + 1
            for window in windows
        ),
        default=1,
    )


def _int(size: int | None) -> int:
    assert size is not None
    return size
