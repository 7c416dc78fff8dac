"""Every graph of a model: the main one, then the bodies below it and those of functions.

A body is fused as a model of its own (see `onnxfuse.model.alone`) and put back. Outer ones come
first, so that what is inferred of them is known within; functions come after all that call them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from onnxfuse.errors import InputError, within
from onnxfuse.model import io, scopes, shapes, tensors
from onnxfuse.model.alone import Alone, Tensor, alone, given, put_back
from onnxfuse.model.constants import Constants, analyse
from onnxfuse.model.graph import Graph, all_names
from onnxfuse.model.scopes import Callee, Scope
from onnxfuse.model.shapes import Shape, Shapes
from onnxfuse.model.store import Memory, Store
from onnxfuse.model.totals import count
from onnxfuse.options import Options
from onnxfuse.records import Counts, Kept
from onnxfuse.refusal import Code
from onnxfuse.rounds import (
    MAX_PASSES,
    Given,
    Index,
    Pass,
    Plan,
    Rounds,
    detail,
    marked,
    prepare,
    size_of,
    valid,
)
from onnxfuse.watch import Watch


@dataclass(frozen=True, slots=True)
class Work:
    """All rounds on a model: the index and totals it had, and the result with its index.

    ``inner`` are the rounds on bodies by their place (see `Scope.key`); ``closed`` says why others
    could not be looked into. ``holds`` are the owners of the weights that stand beside the model.
    """

    main: Rounds
    inner: Mapping[tuple[Any, ...], Rounds]
    closed: Sequence[Kept]
    model: onnx.ModelProto
    before: Counts
    index: Index
    bodies: Sequence[tuple[Index, int]]
    holds: tuple[io.Loaded, Store]

    def count(self, size: int) -> Counts:
        """The totals of the result, whose file has ``size`` bytes."""
        return count(self.index, size, self.bodies)

    @property
    def all(self) -> list[Rounds]:
        return [self.main, *self.inner.values()]

    @property
    def changed(self) -> bool:
        """Whether anything was fused, or laid out otherwise."""
        return any(rounds.laid for rounds in self.all) or any(
            one.replacements for one in self.passes
        )

    @property
    def passes(self) -> list[Pass]:
        """The rounds on all graphs."""
        return [one for rounds in self.all for one in rounds.passes]


def work(
    loaded: io.Loaded,
    options: Options,
    watch: Watch,
    *,
    dry: bool,
    store: Store | None = None,
    planned: Callable[[Plan], None] | None = None,
) -> Work:
    """Plan and replace in all graphs until nothing is left to gain.

    So a second run changes nothing. ``dry`` reads no kernel: constants have shapes only. What is
    written goes to the ``store``; ``planned`` is told the main graph's first plan before that.
    """
    watch.enter("shapes")
    index = prepare(loaded, options)
    given_index = index
    every = Given(options, watch, dry, {}, store or Memory(), planned)
    sizes = dict(options.input_shapes or {})
    main, below = Rounds(index), _Below(loaded.base, every)
    model = loaded.model

    def analysed(of: onnx.ModelProto) -> Index:
        watch.enter("shapes")
        graph = Graph(of)
        return graph, *analyse(graph, loaded.base, sizes, every.pending)

    for _ in range(MAX_PASSES):
        model, index = main.run(model, index, analysed, every)
        moved = below.fuse(model, index)
        if moved is None:
            break
        model = valid(moved, index[0])
        index = analysed(model)
    before = count(given_index, size_of(loaded), below.counted(loaded.model, below.first))
    counted = below.counted(model, below.last)
    closed = list(below.closed.values())
    holds = loaded, every.store
    done = Work(main, below.found, closed, model, before, index, counted, holds)
    return replace(done, model=marked(model, done.passes))


def counted(loaded: io.Loaded, options: Options) -> tuple[Counts, Shapes]:
    """The totals of a model and its shapes, looking for nothing to fuse."""
    index = prepare(loaded, options)
    every = Given(options, Watch(), True, {})
    below = _Below(loaded.base, every, fusing=False)
    below.fuse(loaded.model, index)
    return count(index, size_of(loaded), below.counted(loaded.model, below.first)), index[1]


@dataclass(slots=True)
class _Room:
    """What the scopes of one tree share: how often names are read, and which are in use."""

    readers: Counter[str]
    names: set[str]
    every: Given
    lost: list[tuple[list[Any], set[str]]] = field(default_factory=list)
    changed: bool = False

    def sweep(self) -> None:
        """Drop what nothing captures any more."""
        for owners, lost in self.lost:
            scopes.sweep(owners, lost, self.readers)


class _Below:
    """The rounds on the bodies of one model; ``found`` has them by their place.

    ``closed`` has those that cannot be analysed, and why; ``first`` and ``last`` the index of each
    of the others as it was given and as it is. Where not ``fusing``, bodies are only indexed.
    """

    def __init__(self, base: Path | None, every: Given, *, fusing: bool = True) -> None:
        self.found: dict[tuple[Any, ...], Rounds] = {}
        self.first: dict[tuple[Any, ...], Index] = {}
        self.last: dict[tuple[Any, ...], Index] = {}
        self._fusing = fusing
        self.closed: dict[tuple[Any, ...], Kept] = {}
        self._base = base
        self._every = every
        self._functions: dict[int, Given] = {}

    def fuse(self, model: onnx.ModelProto, index: Index) -> onnx.ModelProto | None:
        """A copy of ``model`` with its bodies fused; ``None`` where nothing is to be gained.

        ``index`` is that of its main graph.
        """
        if not model.functions and not Scope(model.graph, "").inner():
            return None
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        main = Scope(copy.graph, "")
        readers = scopes.reads(copy.graph)
        for info in copy.training_info:
            readers.update({*all_names(info.initialization), *all_names(info.algorithm)})
        rooms = [_Room(readers, index[0].names(), self._every)]
        calls: dict[Callee, list[list[Tensor]]] = {}
        self._tree(main, index, copy, rooms[0], calls)
        written = Counter(scopes.calls(copy))
        for scope in scopes.callers_first(scopes.functions(copy)):
            key = scopes.callee(scope.proto)
            inputs = _agreed(calls.get(key, []), written[key])
            every = self._functions.setdefault(
                scope.function or 0, replace(self._every, pending={})
            )
            room = _Room(scopes.reads(scope.proto), scopes.names(scope.proto), every)
            rooms.append(room)
            found = self._one(scope, None, inputs, copy, room)
            if found is not None:
                self._tree(scope, found, copy, room, calls)
        for room in rooms:
            room.sweep()
        return copy if any(room.changed for room in rooms) else None

    def counted(
        self, model: onnx.ModelProto, found: Mapping[tuple[Any, ...], Index]
    ) -> list[tuple[Index, int]]:
        """Bodies of ``model``, each with how many calls lead to it."""
        times = scopes.call_counts(model)
        return [
            (index, 1 if of is None else times[scopes.callee(model.functions[of])])
            for (of, _), index in found.items()
        ]

    def _tree(
        self,
        top: Scope,
        index: Index,
        model: onnx.ModelProto,
        room: _Room,
        calls: dict[Callee, list[list[Tensor]]],
    ) -> None:
        """Fuse the bodies below a scope, outer ones first, and note what functions are given."""
        stack = [(top, index)]
        while stack:
            scope, around = stack.pop()
            _note_calls(around, calls)
            found = []
            for inner in scope.inner():
                held = self._inputs(inner, around, model, room)
                below = None if held is None else self._one(inner, around, held, model, room)
                if below is not None:
                    found.append((inner, below))
            stack.extend(reversed(found))

    def _inputs(
        self, scope: Scope, around: Index, model: onnx.ModelProto, room: _Room
    ) -> list[Tensor] | None:
        def infer(inputs: Sequence[Tensor]) -> Index:
            return self._indexed(self._alone(scope, around, inputs, model, room), room)

        try:
            return given(scope, around, infer)
        except Exception as error:  # whatever it is, as `prepare` has it for the main graph
            self._close(scope, error)
            return None

    def _close(self, scope: Scope, error: Exception) -> None:
        """Leave a body that cannot be analysed alone, and say so of the node that holds it."""
        if scope.key in self.found:
            return
        what, node, around = "it", scope.where, ""
        if scope.holder is not None:
            what, around = f"its {scope.attribute}", scope.above[-1].where
            node = scope.holder.name or scope.path[-1][0]
        text = f"{what} cannot be analysed: {detail(error)}"
        root = scope.path[-1][0] if scope.path else ""
        self.closed[scope.key] = Kept(Code.MALFORMED, text, node, root=root, scope=around)

    def _alone(
        self,
        scope: Scope,
        around: Index | None,
        inputs: Sequence[Tensor],
        model: onnx.ModelProto,
        room: _Room,
    ) -> Alone:
        own = scopes.reads(scope.proto)
        held = {n for n in scopes.captures(scope.proto) if room.readers[n] > own[n]}
        return alone(scope, model, around, inputs, held, room.names)

    def _indexed(self, held: Alone, room: _Room, model: onnx.ModelProto | None = None) -> Index:
        def of(graph: Graph, sizes: Mapping[str, Shape]) -> tuple[Shapes, Constants]:
            return analyse(graph, self._base, sizes, room.every.pending)

        room.every.watch.enter("shapes")
        return held.index(model or held.model, of)

    def _one(
        self,
        scope: Scope,
        around: Index | None,
        inputs: Sequence[Tensor],
        model: onnx.ModelProto,
        room: _Room,
    ) -> Index | None:
        """Fuse one body in its place; its index, or ``None`` where it cannot be analysed."""
        try:
            if name := scopes.shadowed(scope):
                raise InputError(f"it stores a constant {name!r}, as something around it is named")
            held = self._alone(scope, around, inputs, model, room)
            for tensor in held.model.graph.initializer:
                tensors.check_size(tensor)
            index = self._indexed(held, room)
            shapes.check(index[0])
        except Exception as error:
            self._close(scope, error)
            return None
        self.first.setdefault(scope.key, index)
        if not self._fusing:
            return index
        rounds = self.found.setdefault(scope.key, Rounds(index, scope.where))
        with within(scope.where):
            fused, index = rounds.run(
                held.model, index, lambda new: self._indexed(held, room, new), room.every
            )
        self.last[scope.key] = index
        if fused is held.model:
            return index
        room.changed = True
        room.readers.subtract(scopes.reads(scope.proto))
        room.names |= index[0].names()
        put_back(held, fused)
        room.readers.update(scopes.reads(scope.proto))
        lost = {name for name in held.lent if not room.readers[name]}
        room.lost.append(([outer.proto for outer in scope.above], lost))
        return index


def _note_calls(index: Index, calls: dict[Callee, list[list[Tensor]]]) -> None:
    """What the calls in one graph hand to functions."""
    graph, found, _ = index
    for node in graph.nodes:
        if not node.standard:
            key = scopes.callee(graph.model.graph.node[node.index])
            calls.setdefault(key, []).append([Tensor.of(name, found) for name in node.inputs])


def _agreed(calls: Sequence[Sequence[Tensor]], written: int) -> list[Tensor]:
    """What is certain of a function's inputs in every call; nothing where one was not seen."""
    if not calls or len(calls) != written:
        return []
    return [_joined(column) for column in zip(*calls, strict=False)]


def _joined(column: Iterable[Tensor]) -> Tensor:
    first, *rest = column
    for other in rest:
        first = first.joined(other)
    return first
