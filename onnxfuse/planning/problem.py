"""The problem a plan solves: tensors, the laws between them, and what must stay.

A tensor is *required* if something outside the algebra reads it: an operator that is not
lifted, a graph output, another scope. Everything else exists only for the sake of those.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from onnxfuse.algebra.commuting import Pool
from onnxfuse.algebra.form import Facts, Form
from onnxfuse.algebra.geometry import Axis, Geometry
from onnxfuse.algebra.joining import Concat, Select
from onnxfuse.algebra.laws import Alias, Convolve, Law, Linear, Scale
from onnxfuse.algebra.layouts import Permute, Squeeze, Unsqueeze
from onnxfuse.algebra.maps import AddMap
from onnxfuse.algebra.reshaping import Reshape
from onnxfuse.algebra.source import Source
from onnxfuse.lift import Lifted, View, lift
from onnxfuse.lift.activations import activation_nodes
from onnxfuse.lift.matrix import is_bias
from onnxfuse.model.graph import Node
from onnxfuse.model.tensors import FLOATS, dtype_of
from onnxfuse.planning import cost
from onnxfuse.planning.channels import channel_axes
from onnxfuse.planning.cost import POLICIES, Cost, Policy
from onnxfuse.planning.written import KERNELED
from onnxfuse.refusal import Code, Refusal

FREE = {"Identity", "Dropout", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"}
"""Operators that runtimes remove or that move no data; alone they are no reason to change a file.

A Cast is lifted only where it changes nothing.
"""


MOVES = (Alias, Concat, Permute, Reshape, Select, Squeeze, Unsqueeze)
"""Laws that only pass on what they read, in another place or order."""
_COPIES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast")
FEW = 8
"""Operands that are looked through one by one."""


@dataclass(frozen=True, slots=True)
class Step:
    """How one tensor comes about: a law over operands."""

    tensor: str
    lifted: Lifted
    law: Law
    position: int

    @property
    def node(self) -> Node:
        return self.lifted.node


class Problem:
    """Steps by tensor, sources, facts and costs of one model."""

    def __init__(
        self,
        view: View,
        admitted: Callable[[str], bool],
        pinned: frozenset[str] = frozenset(),
        *,
        interior_only: bool = False,
        keep_post_bn: bool = False,
        policy: Policy = POLICIES["default"],
    ) -> None:
        self.view = view
        self.policy = policy
        self.steps: dict[str, Step] = {}
        self.refusals: list[Refusal] = []
        self._sources: dict[str, Source | None] = {}
        self._costs: dict[str, Cost] = {}
        self._bare: dict[str, Form | None] = {}
        self._sets: dict[int, frozenset[str]] = {}
        self.passed: dict[Any, Any] = {}  # of `onnxfuse.planning.forward`
        self._lift_all(admitted)
        if keep_post_bn:
            self._keep_post_bn()
        auxiliary = self._auxiliary()
        self.axes = channel_axes(self.steps.values())
        self.steps = {t: s for t, s in self.steps.items() if not self._takes_apart(s)}
        self.steps = {t: s for t, s in self.steps.items() if s.node.index not in auxiliary}
        self.required = pinned | {
            tensor for tensor in self.steps if self._read_outside(tensor, auxiliary)
        }
        self.exact = Facts(self._roundoff())
        self.facts = Facts(self._roundoff(), interior_only=True) if interior_only else self.exact
        self.kernel_users = self._kernel_users()

    def _lift_all(self, admitted: Callable[[str], bool]) -> None:
        guarded = activation_nodes(self.view)
        for position, node in enumerate(self.view.graph.order):
            found = lift(node, self.view)
            if found is None:
                continue
            if isinstance(found, Lifted) and not admitted(node.label):
                found = Refusal(Code.EXCLUDED, "left out by --only or --except", node.label)
            elif isinstance(found, Lifted) and node.index in guarded:
                form = guarded[node.index]
                found = Refusal(
                    Code.ACTIVATION,
                    f"it completes a {form} written out in nodes, which runtimes recognise",
                    node.label,
                )
            if isinstance(found, Refusal):
                self.refusals.append(found)
                continue
            for tensor, law in found.laws.items():
                self.steps[tensor] = Step(tensor, found, law, position)

    def _keep_post_bn(self) -> None:
        """Take no BatchNormalization that nothing linear reads; what only passes it on is not."""
        post: set[str] = set()
        for tensor, step in reversed(list(self.steps.items())):
            readers = self.view.graph.consumers.get(tensor, [])
            passed_on = [out for r in readers for out in r.outputs if self._reads_data(r, tensor)]
            if all(out in post for out in passed_on):
                if isinstance(step.law, MOVES):
                    post.add(tensor)
                elif step.node.op_type == "BatchNormalization":
                    del self.steps[tensor]
                    self.refusals.append(
                        Refusal(Code.EXCLUDED, "kept by --keep-post-bn", step.node.label)
                    )

    @cached_property
    def labelled(self) -> dict[str, Node]:
        """The nodes by the name that reports give them; the first of several."""
        return {node.label: node for node in reversed(self.view.graph.order)}

    def _takes_apart(self, step: Step) -> bool:
        """Whether a step reshapes its channels away: nothing passes it, so it is a barrier."""
        if not isinstance(step.law, Reshape):
            return False
        return step.law.places[self.axes.get(step.lifted.operands[0], 1)] is None

    def _reads_data(self, reader: Node, tensor: str) -> bool:
        """Whether a lifted node has ``tensor`` among its operands."""
        return any(
            out in self.steps and tensor in self._operands(self.steps[out].lifted)
            for out in reader.outputs
        )

    def _operands(self, lifted: Lifted) -> Container[str]:
        """The operands of a node: of many a set, for each of them is looked for among them all."""
        if len(lifted.operands) <= FEW:
            return lifted.operands
        if lifted.node.index not in self._sets:
            self._sets[lifted.node.index] = frozenset(lifted.operands)
        return self._sets[lifted.node.index]

    def _auxiliary(self) -> set[int]:
        """Nodes whose results only tell lifted nodes what to do: shapes, indices, constants."""
        graph = self.view.graph
        found: set[int] = set()
        for node in reversed(graph.order):
            if any(graph.read_outside(out) for out in node.outputs if out):
                continue
            readers = [(r, out) for out in node.outputs for r in graph.consumers.get(out, [])]
            if all(
                reader.index in found
                or (self._lifted(reader) and not self._reads_data(reader, out))
                for reader, out in readers
            ):
                found.add(node.index)
        return found

    def _lifted(self, node: Node) -> bool:
        return any(out in self.steps for out in node.outputs)

    def shared_outputs(self, step: Step) -> bool:
        """Whether another output of the step's node is in use, so that the node must stay."""
        return any(out != step.tensor for out in self.used_outputs(step))

    def used_outputs(self, step: Step) -> list[str]:
        """The outputs of a step's node that anything reads."""
        graph = self.view.graph
        return [
            out
            for out in step.node.outputs
            if out and (graph.consumers.get(out) or graph.read_outside(out))
        ]

    def _read_outside(self, tensor: str, auxiliary: set[int]) -> bool:
        """Whether something other than lifted nodes needs a tensor."""
        graph = self.view.graph
        return graph.read_outside(tensor) or any(
            reader.index not in auxiliary and not self._reads_data(reader, tensor)
            for reader in graph.consumers.get(tensor, [])
        )

    def _roundoff(self) -> float:
        kinds = {self.view.shapes.type_of(tensor) for tensor in self.steps}
        return min((FLOATS[kind] for kind in kinds if kind in FLOATS), default=2.0**-24)

    def _kernel_users(self) -> dict[str, int]:
        """How many nodes use each stored kernel; copies in another layout count as one tensor."""
        graph = self.view.graph
        users: dict[str, int] = {}
        for node in graph.nodes:
            if len(node.inputs) > 1 and node.op_type in KERNELED:
                name = self.kernel_name(node)
                users[name] = users.get(name, 0) + 1
        passive = (*KERNELED, *_COPIES, "Shape", "Size")
        for name in users:  # an embedding table, say, stays in the file whatever becomes of it here
            readers = graph.consumers.get(name, [])
            users[name] += sum(reader.op_type not in passive for reader in readers)
            users[name] += graph.read_outside(name)
        return users

    def kernel_name(self, node: Node) -> str:
        """The tensor behind a node's kernel, copies looked through."""
        name = node.inputs[1]
        producer = self.view.graph.producer.get(name)
        while producer is not None and producer.op_type in _COPIES:
            name = producer.inputs[0]
            producer = self.view.graph.producer.get(name)
        return name

    def source(self, tensor: str) -> Source | None:
        """A tensor as it stands, if its rank and channels are known."""
        if tensor not in self._sources:
            shape, axis = self.view.shape(tensor), self.axes.get(tensor, 1)
            self._sources[tensor] = None
            if shape is not None and 2 <= len(shape) <= 5 and 0 not in shape and axis > 0:
                self._sources[tensor] = Source.shaped(tensor, shape, axis)
        return self._sources[tensor]

    def bare(self, tensor: str) -> Form | None:
        """The form of a tensor that stands as it is, if its rank and channels are known."""
        if tensor not in self._bare:
            source = self.source(tensor)
            self._bare[tensor] = None if source is None else Form.of(source)
        return self._bare[tensor]

    def itemsize(self, tensor: str) -> int:
        try:
            return dtype_of(self.view.shapes.type_of(tensor)).itemsize
        except (KeyError, TypeError):  # a type that onnx does not know
            return 4

    def lengths(self, source: Source) -> tuple[int, ...]:
        """Spatial lengths to count at: certain ones, else nominal ones."""
        shape = self.view.shapes.nominal.get(source.like, ())
        known = len(shape) == len(source.order)
        padded = source.lying(shape) if known else [None] * len(source.lengths)
        return tuple(
            certain if certain is not None else guess or cost.UNKNOWN_LENGTH
            for certain, guess in zip(source.lengths, padded, strict=True)
        )

    def batch(self, tensor: str) -> int:
        shape = self.view.shapes.nominal.get(tensor)
        return (shape[0] if shape else None) or 1

    def elements(self, tensor: str) -> int:
        """How many numbers a tensor holds, at the sizes that costs are counted at."""
        shape = self.view.shapes.nominal.get(tensor, ())
        lengths = (size if size is not None else cost.UNKNOWN_LENGTH for size in shape[1:])
        return self.batch(tensor) * prod(lengths)

    def original_cost(self, step: Step) -> Cost:
        """What the node costs as it stands in the file (a share, if it has several outputs)."""
        if step.tensor not in self._costs:
            self._costs[step.tensor] = self.counted(step)
        return self._costs[step.tensor]

    def counted(self, step: Step) -> Cost:
        """The same, counted anew."""
        node = step.node
        if node.op_type in FREE:
            return Cost()
        if isinstance(step.law, Linear):
            source = self.source(step.lifted.operands[0])
            if source is not None:
                geometry = step.law.kernel(len(source.lengths)).geometry
                batch, itemsize = self.batch(source.name), self.itemsize(step.tensor)
                return cost.convolution(geometry, self.lengths(source), batch, itemsize)
        window = _window(step.law)
        if window is not None and node.op_type in ("Conv", "ConvTranspose", "AveragePool"):
            source = self.source(step.lifted.operands[0])
            if source is not None:
                axes, kernel = window
                return cost.convolution(
                    kernel or Geometry(source.channels, source.channels, source.channels, axes),
                    self.lengths(source),
                    self.batch(source.name),
                    self.itemsize(step.tensor),
                    pool=node.op_type == "AveragePool",
                )
        reads = [self.elements(name) for name in step.lifted.operands]
        if isinstance(step.law, AddMap):
            reads.append(prod(step.law.shape))
        if node.op_type in ("Slice", "Split"):  # only what is selected is read
            reads = [self.elements(step.tensor)]
        itemsize = self.itemsize(step.tensor)
        whole = cost.passes(*reads, self.elements(step.tensor), itemsize=itemsize)
        biases = isinstance(step.law, Scale) and is_bias(node, self.view)
        return cost.bias(whole) if biases else whole


def _window(law: Law) -> tuple[tuple[Axis, ...], Geometry | None] | None:
    """The axes of an operator with a window, and its geometry where it is a convolution."""
    if isinstance(law, Convolve):
        return law.kernel.geometry.axes, law.kernel.geometry
    return (law.outer.axes, None) if isinstance(law, Pool) else None
