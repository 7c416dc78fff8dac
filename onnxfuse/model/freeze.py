"""What two switches change before anything is planned: overridable weights, and training modes.

Both change what a model means, so each is asked for, and each says what it did and what it left.
The given model is never touched; one that a switch would leave as it is stays the same object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from onnxfuse.errors import InputError
from onnxfuse.model import io, splice, tensors, walk

LISTED = 3
"""Names that a note lists; the report and the model's metadata hold all of them."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Weights that are no inputs any more, nodes now in inference mode, and what stayed so."""

    frozen: tuple[str, ...] = ()
    inference: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether the model is another one than the given."""
        return bool(self.frozen or self.inference)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done, in sentences."""
        found = []
        if self.frozen:
            count = len(self.frozen)
            found.append(
                f"--freeze-initializers took {_counted(count, 'weight')} out of the model's "
                f"inputs, so no caller can override {'it' if count == 1 else 'them'} any more: "
                f"{_named(self.frozen)}"
            )
        if self.inference:
            found.append(
                f"--assume-inference took {_counted(len(self.inference), 'node')} from training "
                f"to inference mode: {_named(self.inference)}"
            )
        return (*found, *self.left)

    @property
    def judged(self) -> tuple[str, ...]:
        """What the run of the whole model compares with, where that is not the given model."""
        if not self.inference:
            return ()
        return ("compared with the model in inference mode, as --assume-inference takes it",)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _named(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:LISTED]))
    rest = len(names) - LISTED
    return f"{listed} and {rest} more" if rest > 0 else listed


def changed(loaded: io.Loaded, *, freeze: bool, inference: bool) -> tuple[io.Loaded, Changes]:
    """A model as the switches take it, with the bytes of the given one, and what they did.

    Raises `InputError` where initializers must be inputs.
    """
    names = overridable(loaded.model) if freeze else ()
    if names and must_be_inputs(loaded.model):
        raise InputError(
            f"--freeze-initializers cannot take {names[0]!r} out of the inputs: IR version "
            f"{loaded.model.ir_version} demands every initializer there, and the version is never "
            f"raised; export with IR version {tensors.FREE_INITIALIZERS} or later"
        )
    if not names and not inference:
        return loaded, Changes()
    model = onnx.ModelProto()
    model.CopyFrom(loaded.model)
    splice.drop_entries(model.graph.input, lambda value: value.name in names)
    modes = _Modes(model, loaded.base) if inference else None
    changes = Changes(names, *((tuple(modes.taken), tuple(modes.left)) if modes else ()))
    return (replace(loaded, model=model) if changes.any else loaded), changes


def overridable(model: onnx.ModelProto) -> tuple[str, ...]:
    """The initializers of the main graph that are also inputs, in the order of the inputs."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return tuple(value.name for value in model.graph.input if value.name in stored)


def must_be_inputs(model: onnx.ModelProto) -> bool:
    """Whether the IR version demands that initializers are inputs."""
    return bool(model.ir_version < tensors.FREE_INITIALIZERS)


def hint(model: onnx.ModelProto) -> str:
    """What to say where weights stayed because callers may override them."""
    count = len(overridable(model))
    many = f"{_counted(count, 'weight')} {'is' if count == 1 else 'are'} also"
    if must_be_inputs(model):
        return f"{many} graph inputs, as IR version {model.ir_version} demands; export with a later"
    return (
        f"{many} graph inputs, which a caller may override; if none does, --freeze-initializers "
        "takes them out of the inputs, so that they can be fused"
    )


def noted(model: onnx.ModelProto, changes: Changes, version: str) -> onnx.ModelProto:
    """A copy of ``model`` whose metadata says what was changed, behind what it said before."""
    parts = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("initializers frozen", changes.frozen),
            ("taken to inference mode", changes.inference),
        )
        if names
    ]
    return splice.noted(model, f"{version}: {'; '.join(parts)}")


class _Modes:
    """Takes the nodes of a model from training to inference mode, in place.

    A BatchNormalization in training mode normalises by the batch; taken as inference it does so by
    its running mean and variance, which are its inputs either way. What it gives out beside the
    result exists in training only, so a node stays where something reads that.
    """

    def __init__(self, model: onnx.ModelProto, base: Path | None) -> None:
        self.taken: list[str] = []
        self.left: list[str] = []
        self._lost: set[str] = set()
        self._base = base
        main = list(_scopes(model.graph.node, model.graph, {}))
        read = _read(main)
        for scope in main:
            for node in scope.nodes:
                self._settle(node, scope.constants, read)
        for function in model.functions:
            for scope in _scopes(function.node, None, {}):
                for node in scope.nodes:
                    if _training(node, self._mode(node, scope.constants)):
                        self._leave(node, "it stands in a function; inline the functions first")
        if self.taken:
            self._drop(main, read - _read(main))

    def _settle(
        self, node: onnx.NodeProto, constants: Mapping[str, TensorProto], read: set[str]
    ) -> None:
        mode = self._mode(node, constants)
        if not _training(node, mode):
            return
        used = sorted(name for name in node.output[1:] if name and name in read)
        if mode is None and node.op_type == "Dropout":
            self._leave(node, f"its training_mode {node.input[2]!r} is no constant")
        elif node.op_type == "Dropout":
            del node.input[2:]
            self.taken.append(_label(node))
        elif used:
            self._leave(node, f"its output {used[0]!r} exists in training mode only, and is used")
        else:
            kept = [held for held in node.attribute if held.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
            self._lost.update(node.output[1:])
            del node.output[1:]
            self.taken.append(_label(node))

    def _leave(self, node: onnx.NodeProto, reason: str) -> None:
        self.left.append(f"--assume-inference leaves {_label(node)!r} in training mode: {reason}")

    def _mode(self, node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> bool | None:
        """The training_mode that a Dropout is given; ``None`` where that is not known."""
        name = node.input[2] if node.op_type == "Dropout" and len(node.input) > 2 else ""
        if not name:
            return False
        held = constants.get(name)
        return None if held is None else bool(np.any(tensors.read(held, self._base)))

    def _drop(self, scopes: Sequence[_Scope], flags: set[str]) -> None:
        """Remove the flags that no node reads any more, and what describes lost outputs."""
        for graph in (scope.graph for scope in scopes):
            assert graph is not None
            _forget(graph, flags, self._lost)


@dataclass(frozen=True, slots=True)
class _Scope:
    """The nodes of one graph and the constants that they see; ``graph`` is none for a function."""

    nodes: Sequence[onnx.NodeProto]
    graph: onnx.GraphProto | None
    constants: Mapping[str, TensorProto]


def _scopes(
    nodes: Sequence[onnx.NodeProto],
    graph: onnx.GraphProto | None,
    outer: Mapping[str, TensorProto],
) -> Iterator[_Scope]:
    """A graph and those nested in it, which may use a name again for something else."""
    inputs = {value.name for value in graph.input} if graph is not None else set()
    here = inputs.union(*(node.output for node in nodes))
    seen = {name: tensor for name, tensor in outer.items() if name not in here}
    if graph is not None:
        seen |= {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
    seen |= dict(_literals(nodes))
    yield _Scope(nodes, graph, seen)
    for node in nodes:
        for inner in walk.subgraphs(node):
            yield from _scopes(inner.node, inner, seen)


def _read(scopes: Sequence[_Scope]) -> set[str]:
    """Every name that a node reads or a graph gives out."""
    found = {name for scope in scopes for node in scope.nodes for name in node.input}
    graphs = [scope.graph for scope in scopes if scope.graph is not None]
    return found | {value.name for graph in graphs for value in graph.output}


def _forget(graph: onnx.GraphProto, flags: set[str], lost: set[str]) -> None:
    """Remove the constants in ``flags``, and what describes them or outputs in ``lost``."""
    splice.drop_entries(graph.initializer, lambda tensor: tensor.name in flags)
    splice.drop_entries(
        graph.node, lambda node: node.op_type == "Constant" and flags.issuperset(node.output)
    )
    gone = (flags | lost) - {name for node in graph.node for name in node.output}
    splice.drop_entries(graph.value_info, lambda value: value.name in gone)


def _training(node: onnx.NodeProto, mode: bool | None) -> bool:
    """Whether a node is in training mode, or may be."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Dropout":
        return mode is not False
    if node.op_type != "BatchNormalization":
        return False
    flag = any(held.name == "training_mode" and _is_on(held) for held in node.attribute)
    return flag or any(node.output[1:])


def _is_on(attribute: AttributeProto) -> bool:
    return bool(attribute.i or attribute.ref_attr_name)


def _literals(nodes: Sequence[onnx.NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    """The tensors that Constant nodes give."""
    for node in nodes:
        for attribute in node.attribute if node.op_type == "Constant" and node.output else ():
            if attribute.name == "value":
                yield node.output[0], attribute.t


def _label(node: onnx.NodeProto) -> str:
    """The name people can find: the node's own, else its first output's."""
    return str(node.name or next((out for out in node.output if out), node.op_type))
