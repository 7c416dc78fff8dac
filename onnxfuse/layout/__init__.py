"""Layout: operators between Transposes take the layout of their neighbours, and those vanish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnxfuse.emit import NewNode
from onnxfuse.layout.choose import choose
from onnxfuse.layout.rewrite import Edits, edits
from onnxfuse.lift import View
from onnxfuse.model import relayout
from onnxfuse.model.splice import fresh_names

Build = Callable[[list[NewNode]], list[Any]]


@dataclass(frozen=True, slots=True)
class Relaid:
    """A model whose operators work in other layouts, and the edits that made it so.

    ``view`` is the model before.
    """

    model: Any
    edits: Edits
    view: View


def relaid(model: Any, view: View, admitted: Callable[[str], bool], build: Build) -> Relaid | None:
    """A copy of ``model`` with fewer Transposes; ``None`` where nothing is saved.

    Nodes that are not ``admitted`` by name stay as they are.
    """
    choice = choose(view, admitted)
    fresh = fresh_names(view.graph)
    found = edits(choice, fresh)
    if found.transposes > 0 or not (found.moved or found.dropped):
        return None
    copy = type(model)()
    copy.CopyFrom(model)
    for index in found.inputs.keys() | found.outputs.keys():
        inputs, outputs = found.inputs.get(index, {}), found.outputs.get(index, {})
        relayout.rename(copy, index, inputs, outputs)
    stored = []
    for index, (_, moved) in found.moved.items():
        kinds = [view.shapes.type_of(name) for name in view.graph.nodes[index].inputs]
        stored += relayout.adjust(copy, index, moved.attributes, moved.constants, kinds, fresh)
    relayout.rearrange(copy, view.graph, found.dropped, found.inserted, found.raised, build)
    relayout.store(copy, stored)
    return Relaid(copy, found, view)
