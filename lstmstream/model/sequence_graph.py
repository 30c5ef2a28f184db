"""The state's part of a step graph (graph_parts.py), for T events of one key in one call.

ONNX's LSTM, GRU and RNN run over a sequence themselves: the step graph gives them one of length 1. Here the features
are [T, 1, D], and what the rest of the graph takes of the hidden states is [T, 1, H], of every event. Only protobuf is
used.
"""

from __future__ import annotations

from collections.abc import Mapping

from lstmstream.model import onnx_proto
from lstmstream.model.graph_parts import STATE, STATE_OUT, GraphPart, TensorType, part_content
from lstmstream.model.onnx_proto import Proto

RECURRENT = {"LSTM", "GRU", "RNN"}
_ALL = "__of_every_event"  # a name that no exporter gives


def of_every_event(hidden: str) -> str:
    """The output of a sequence graph that has a hidden state of every event."""
    return hidden + _ALL


def sequence_content(content: bytes, part: GraphPart, types: Mapping[str, TensorType]) -> bytes | None:
    """The part as a model over T events, with inputs and outputs in the same order; None where it cannot be one.

    The features and the hidden states among them are [T, 1, D] and [T, 1, H]; the state is that after the last event.
    It can where each recurrent node takes a feature, or the hidden state of another one, as it is. Whether the bits are
    those of single steps is for the caller to check. `types`: as for `part_content`.
    """
    model = onnx_proto.parse(part_content(content, part, types))
    graph = model.graph
    recurrent = [node for node in graph.node if node.op_type in RECURRENT]
    features = {name for name in part.inputs if name in types}
    hidden = {node.output[1]: node for node in recurrent if len(node.output) > 1 and node.output[1]}
    taken = {node.input[0] for node in recurrent}
    if not features or set(part.inputs) != features | {STATE}:
        return None
    if not recurrent or not set(part.outputs) - {STATE_OUT} <= hidden.keys() or not taken <= features | hidden.keys():
        return None
    if not all(map(_is_plain, recurrent)) or not all(len(types[name][1]) == 3 for name in features):
        return None
    if any(node.op_type not in RECURRENT and features & set(node.input) for node in graph.node):
        return None  # it would see one event where there are many

    wanted = (taken & hidden.keys()) | (set(part.outputs) - {STATE_OUT})
    steps = onnx_proto.parse(onnx_proto.serialise(model)).graph.node
    del graph.node[:]
    for node in steps:
        if node.op_type in RECURRENT and node.input[0] in hidden:
            node.input[0] += _ALL
        graph.node.add().CopyFrom(node)
        if node.op_type in RECURRENT and node.output[1] in wanted:
            _keep_every_event(graph)
    for value in graph.input:
        if value.name in features:
            _set_dimensions(value, types[value.name][1][2])
    for value in graph.output:
        if value.name in hidden:
            value.name += _ALL
    return onnx_proto.serialise(model)


def _keep_every_event(graph: Proto) -> None:
    """After a recurrent node was added: its first output [T, 1, 1, H] as [T, 1, H]."""
    node = graph.node[-1]
    hidden = node.output[1]
    node.output[0] = f"{hidden}{_ALL}_directions"
    size = next(attribute.i for attribute in node.attribute if attribute.name == "hidden_size")
    shape = f"{hidden}{_ALL}_shape"
    graph.initializer.add(name=shape, data_type=onnx_proto.INT64, dims=[3], int64_data=[-1, 1, size])
    graph.node.add(op_type="Reshape", name=hidden + _ALL, input=[node.output[0], shape], output=[hidden + _ALL])


def _set_dimensions(value: Proto, width: int | str) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add(dim_param="T")
    shape.dim.add(dim_value=1)
    if isinstance(width, int):
        shape.dim.add(dim_value=width)
    else:
        shape.dim.add(dim_param=width)


def _is_plain(node: Proto) -> bool:
    """One direction, forwards, over all events; and a state that is not finite once does not become finite again.

    With bounded activations, that is: others could hide from the last state that one before it was not.
    """
    attributes = {attribute.name: attribute for attribute in node.attribute}
    direction = attributes["direction"].s if "direction" in attributes else b"forward"
    activations = attributes["activations"].strings if "activations" in attributes else []
    lengths = node.input[4] if len(node.input) > 4 else ""
    bounded = all(name.lower() in {b"sigmoid", b"tanh"} for name in activations)
    return direction == b"forward" and not lengths and bounded and "hidden_size" in attributes
