"""Surgery on the ModelProto: dead nodes out, new ones in where the root stood.

The proto is edited in place. Nodes, initializers and value_info that no region owns keep their
place, order and every field, those this version of the format does not know included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import TensorProto

from onnxfuse.emit import NewNode, Weight
from onnxfuse.model import tensors, walk
from onnxfuse.model.graph import PROVENANCE, Graph
from onnxfuse.model.shapes import Shapes
from onnxfuse.realise import Replacement


def fresh_names(graph: Graph) -> Callable[[str], str]:
    """A maker of names that collide with nothing in the model."""
    used = graph.names() | graph.captured
    used.update(note.tensor_name for note in graph.model.graph.quantization_annotation)
    used.update(value.name for inner in walk.nested(graph.model) for value in inner.value_info)

    def fresh(wanted: str) -> str:
        name, count = wanted, 1
        while name in used:
            count += 1
            name = f"{wanted}_{count}"
        used.add(name)
        return name

    return fresh


def constants(
    replacement: Replacement, data_type: int, *, dry: bool, location: str = ""
) -> list[TensorProto]:
    """A replacement's constants in the model's type, in the order they were made.

    ``location`` names the data file that holds those which were stored in one.
    """
    if dry:
        made = [
            tensors.placeholder(name, weight.shape, data_type)
            for name, weight in replacement.weights.items()
        ]
    else:
        made = [
            _constant(name, weight, data_type, location)
            for name, weight in replacement.weights.items()
        ]
    made += [
        tensors.make(name, value, TensorProto.INT64) for name, value in replacement.integers.items()
    ]
    return made


def _constant(name: str, weight: Weight, data_type: int, location: str) -> TensorProto:
    """A weight as it was stored."""
    if weight.stored is None:
        return tensors.make(name, weight.value, data_type)
    if weight.stored.offset is None:
        return tensors.make(name, weight.stored.array, data_type)
    made = TensorProto(name=name, dims=weight.shape, data_type=data_type)
    length = weight.size * tensors.dtype_of(data_type).itemsize
    tensors.refer(made, location, weight.stored.offset, length)
    return made


def splice(
    model: onnx.ModelProto,
    graph: Graph,
    shapes: Shapes,
    replacements: Sequence[Replacement],
    build: Callable[[list[NewNode]], list[onnx.NodeProto]],
    version: str,
    *,
    dry: bool = False,
    location: str = "",
) -> set[str]:
    """Write replacements into ``model``, the proto that ``graph`` indexes; the names removed.

    A ``dry`` splice reads no weights: its constants have shapes and no data.
    """
    dead = dead_nodes(graph, replacements)
    inserted = {}
    for replacement in replacements:
        protos = build(list(replacement.nodes))
        form = replacement.region.cover.form if replacement.region.cover else None
        text = f"{version}: {form.text}" if form else ""
        text += " (approximate at the border)" if form and form.interior_only else ""
        _note(protos[-1], text)
        for new, proto in zip(replacement.nodes[:-1], protos[:-1], strict=True):
            if replacement.maps.keys() & set(new.inputs):
                _note(proto, f"{version}: constant map")
        if model.ir_version < tensors.FREE_INITIALIZERS:
            data_type = shapes.type_of(replacement.root)
            made = constants(replacement, data_type, dry=dry)
            protos = [tensors.constant_node(tensor) for tensor in made] + protos
        inserted[replacement.region.root.node.index] = protos
    _rewrite_nodes(model.graph, dead, inserted)
    roots = {replacement.root for replacement in replacements}
    gone = {
        name for index in dead for name in graph.nodes[index].outputs if name and name not in roots
    }
    read = {
        name for replacement in replacements for new in replacement.nodes for name in new.inputs
    }
    unused = unused_initializers(graph, dead) - read
    for replacement in replacements if model.ir_version >= tensors.FREE_INITIALIZERS else ():
        data_type = shapes.type_of(replacement.root)
        made = constants(replacement, data_type, dry=dry, location=location)
        model.graph.initializer.extend(made)
    drop_entries(model.graph.initializer, lambda tensor: tensor.name in unused)
    drop_entries(model.graph.value_info, lambda value: value.name in gone | unused)
    drop_entries(
        model.graph.quantization_annotation, lambda entry: entry.tensor_name in gone | unused
    )
    return gone | unused


def _note(node: onnx.NodeProto, text: str) -> None:
    entry = node.metadata_props.add()
    entry.key, entry.value = PROVENANCE, text


def dead_nodes(graph: Graph, replacements: Sequence[Replacement]) -> set[int]:
    """The nodes nobody needs once the replacements' roots have new producers."""
    readers = Counter({name: len(consumers) for name, consumers in graph.consumers.items()})
    for replacement in replacements:
        for new in replacement.nodes:
            readers.update(dict.fromkeys(new.inputs, 1))
    dead: set[int] = set()
    queue = [replacement.region.root.node for replacement in replacements]
    while queue:
        node = queue.pop()
        if node.index in dead:
            continue
        dead.add(node.index)
        for name in dict.fromkeys(node.inputs):
            readers[name] -= 1
            producer = graph.producer.get(name)
            if producer is not None and not any(
                readers[out] > 0 or graph.read_outside(out) for out in producer.outputs if out
            ):
                queue.append(producer)
    return dead


def _rewrite_nodes(
    graph: onnx.GraphProto, dead: set[int], inserted: dict[int, list[onnx.NodeProto]]
) -> None:
    kept: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.node):
        if index in inserted:
            kept += inserted[index]
        elif index not in dead:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def unused_initializers(graph: Graph, dead: set[int]) -> set[str]:
    """Initializers that only dead nodes read; those nobody ever read are left alone."""
    once = {name for index in dead for name in graph.nodes[index].inputs}
    return {
        name
        for name in once & graph.initializers.keys()
        if name not in graph.inputs_set
        and not graph.read_outside(name)
        and all(reader.index in dead for reader in graph.consumers[name])
    }


def drop_entries(entries: Any, unwanted: Callable[[Any], bool]) -> None:
    """Remove entries of a protobuf field, the others staying as they are."""
    for index in range(len(entries) - 1, -1, -1):
        if unwanted(entries[index]):
            del entries[index]


def noted(model: onnx.ModelProto, text: str) -> onnx.ModelProto:
    """A copy of ``model`` whose metadata says ``text`` under `PROVENANCE`, behind what it said."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    entry = next((e for e in copy.metadata_props if e.key == PROVENANCE), None)
    if entry is None:
        entry = copy.metadata_props.add()
        entry.key = PROVENANCE
    entry.value = f"{entry.value}; {text}" if entry.value else text
    return copy
