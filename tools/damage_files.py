"""Ways to damage a model as a whole: bombs, depth, other models, files beside it, its bytes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from damage_kinds import (
    Rng,
    a_node,
    a_shape,
    a_tensor,
    an_attribute,
    any_field,
    interface,
    pick,
    tensors_of,
    versions,
)  # fmt: skip
from onnx import TensorProto, helper, numpy_helper


def bomb(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:
    """A constant, computed or read, that would be enormous; behind it what read a weight."""
    graph = model.graph
    nodes = [n for n in graph.node if len(n.input) > 1]
    if not nodes:
        return model
    node, kind = pick(rng, nodes), pick(rng, ["ConstantOfShape", "Expand", "Tile", "Pad", "Range"])
    size = [
        int(pick(rng, [1, 3, 1000, 2**20, 2**31, 2**40])) for _ in range(int(rng.integers(1, 5)))
    ]
    one = np.ones([1] * len(size), np.float32)
    graph.initializer.append(numpy_helper.from_array(np.array(size), "bomb_size"))
    graph.initializer.append(numpy_helper.from_array(one, "bomb_one"))
    inputs = ["bomb_one", "bomb_size"]
    if kind == "ConstantOfShape":
        inputs = ["bomb_size"]
    elif kind == "Pad":
        graph.initializer.append(
            numpy_helper.from_array(np.array([0] * len(size) + size), "bomb_by")
        )
        inputs = ["bomb_one", "bomb_by"]
    elif kind == "Range":
        for name, number in (("from", 0), ("to", 2**40), ("step", 1)):
            graph.initializer.append(numpy_helper.from_array(np.array(number), f"bomb_{name}"))
        inputs = ["bomb_from", "bomb_to", "bomb_step"]
    graph.node.insert(0, helper.make_node(kind, inputs, ["bomb"]))
    node.input[int(rng.integers(len(node.input)))] = "bomb"
    return model


def depth(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:
    """Long chains, deep subgraphs, deep types, functions that call themselves or are missing."""
    graph, how = model.graph, int(rng.integers(6))
    start = graph.input[0].name if graph.input else "x"
    if how == 0:  # a chain that recursion would not survive
        kind, length = pick(rng, ["Identity", "Neg", "Shape", "Relu"]), int(pick(rng, [300, 3000]))
        names = [start, *(f"chain{i}" for i in range(length))]
        graph.node.extend(helper.make_node(kind, [a], [b]) for a, b in pairwise(names))
        graph.output.append(helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, None))
    elif how == 1:
        inner = helper.make_graph([], "leaf", [], [])
        for level in range(int(pick(rng, [3, 20, 40]))):
            node = helper.make_node(
                "If", [start], [f"t{level}"], then_branch=inner, else_branch=inner
            )
            node.attribute.pop(1)
            inner = helper.make_graph([node], f"g{level}", [], [])
        graph.node.extend(inner.node)
    elif how == 2:
        kind = graph.value_info.add(name="deep").type
        for _ in range(int(pick(rng, [5, 40, 90]))):
            kind = kind.sequence_type.elem_type
        kind.tensor_type.elem_type = 1
    elif how in (3, 4):  # a function that calls itself, or one that does not exist
        calls = "F" if how == 3 else "Gone"
        body = [helper.make_node(calls, ["a"], ["b"], domain="f")]
        model.functions.append(
            helper.make_function("f", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
        )
        model.opset_import.append(helper.make_opsetid("f", 1))
        graph.node.add().CopyFrom(helper.make_node("F", [start], ["called"], domain="f"))
    else:  # as many terms as anybody could want
        last = graph.node[-1].output[0] if graph.node and graph.node[-1].output else start
        for index in range(40):
            new = f"sum{index}"
            graph.node.add().CopyFrom(helper.make_node("Add", [last, start], [new]))
            last = new
        graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, None))
    return model


def grafted(rng: Rng, model: onnx.ModelProto, other: onnx.ModelProto) -> onnx.ModelProto:
    """Parts of another model in this one: both whole, its weights, its nodes."""
    how = int(rng.integers(4))
    if how == 0:
        model.MergeFrom(other)
    elif how == 1:
        del model.graph.initializer[:]
        model.graph.initializer.extend(other.graph.initializer)
    elif how == 2:
        model.graph.node.extend(other.graph.node)
    else:
        del model.graph.node[:]
        model.graph.node.extend(other.graph.node)
    return model


LOCATIONS = ["data.bin", "../data.bin", "/etc/passwd", "missing.bin", "", ".",
             "sub/data.bin", "a\0b", "x" * 5000, "link.bin", "model.onnx", "\n"]  # fmt: skip


def external(rng: Rng, model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A tensor moved into a file beside the model, at an offset and place that may be wrong."""
    found = [t for t in tensors_of(model) if t.HasField("raw_data")]
    if not found:
        return model
    tensor = pick(rng, found)
    data = tensor.raw_data
    (folder / "data.bin").write_bytes(
        data[: len(data) - int(pick(rng, [0, 0, 0, 1, len(data) // 2]))]
    )
    (folder.parent / "data.bin").write_bytes(data)
    (folder / "link.bin").unlink(missing_ok=True)
    (folder / "link.bin").symlink_to("/etc/passwd")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {
        "location": pick(rng, ["data.bin"] * 12 + LOCATIONS),
        "offset": pick(rng, ["0"] * 3 + ["-1", "1", "4", "abc", "", "9" * 30, "1e3", "٣"]),
        "length": pick(rng, [str(len(data))] * 3 + ["0", "-4", "abc", "1", "9" * 30]),
    }
    for key, value in entries.items():
        if rng.random() < 0.9:
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    return model


def raw(rng: Rng, data: bytes, other: bytes) -> bytes:
    """Bytes flipped, cut off, spliced from two files, repeated, or of another kind altogether."""
    how, held = int(rng.integers(7)), bytearray(data)
    place = int(rng.integers(len(held) + 1))
    if how <= 1:
        for _ in range(int(pick(rng, [1, 1, 4, 40]))):
            held[int(rng.integers(len(held)))] ^= 1 << int(rng.integers(8))
    elif how == 2:
        del held[place:]
    elif how == 3:
        held[place:] = other[int(rng.integers(len(other) + 1)) :]
    elif how == 4:
        stop = min(len(held), place + int(rng.integers(1, 60)))
        held[place:place] = held[place:stop]
    elif how == 5:
        del held[place : place + int(rng.integers(1, 60))]
    else:
        held[place:place] = rng.bytes(int(rng.integers(1, 30)))
    return bytes(held)


def unread(rng: Rng, data: bytes, model: onnx.ModelProto) -> bytes:
    """A name that is not UTF-8, wherever it stands."""
    graph = model.graph
    found = [*(n for node in graph.node for n in (node.name, *node.input, *node.output)),
             *(tensor.name for tensor in graph.initializer), graph.name]  # fmt: skip
    name = pick(rng, [n.encode("utf-8", "replace") for n in found if n] or [b"x"])
    place = int(rng.integers(len(name)))
    bad = name[:place] + pick(rng, [b"\xff", b"\xc3", b"\x80"]) + name[place + 1 :]
    return data.replace(bytes([len(name) % 256]) + name, bytes([len(name) % 256]) + bad)


def order(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes in any order, or backwards; now and then a cycle through two of them."""
    nodes = list(model.graph.node)
    places = rng.permutation(len(nodes)) if rng.random() < 0.5 else range(len(nodes) - 1, -1, -1)
    kept = [onnx.NodeProto.FromString(nodes[int(i)].SerializeToString()) for i in places]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    able = [node for node in model.graph.node if node.input and node.output]
    if able and rng.random() < 0.3:
        first, second = pick(rng, able), pick(rng, able)
        first.input[0], second.input[0] = second.output[0], first.output[0]
    return model


def twice(rng: Rng, model: onnx.ModelProto) -> onnx.ModelProto:
    """A name that two tensors, two nodes or two results share."""
    graph, how = model.graph, int(rng.integers(4))
    if how == 0 and graph.initializer:
        graph.initializer.add().CopyFrom(pick(rng, graph.initializer))
    elif how == 1 and len(graph.initializer) > 1:
        pick(rng, graph.initializer).name = pick(rng, graph.initializer).name
    elif how == 2 and graph.node:
        pick(rng, graph.node).name = pick(rng, graph.node).name
    else:
        able = [node for node in graph.node if node.output]
        if able:
            pick(rng, able).output[0] = pick(rng, able).output[0]
    return model


KINDS: dict[str, Callable[[Rng, onnx.ModelProto], onnx.ModelProto]] = {
    "field": any_field, "tensor": a_tensor, "attribute": an_attribute, "node": a_node,
    "shape": a_shape, "versions": versions, "interface": interface, "bomb": bomb, "depth": depth,
    "order": order, "twice": twice,
}  # fmt: skip
SHARES = {
    "field": 6, "tensor": 5, "attribute": 6, "node": 6, "shape": 4, "versions": 1, "interface": 2,
    "bomb": 1, "depth": 1, "graft": 1, "external": 2, "raw": 2,
    "order": 1, "twice": 1, "unread": 1, "foreign": 1,
}  # fmt: skip
"""How often each kind is drawn."""
