"""A step graph in three parts: before the state, the state, and after it.

    before  x, categories, timestamp, elapsed -> features      what does not depend on the state
    step    features, state -> state_out, hidden               what the new state needs
    after   hidden, features -> score, prediction              the rest

So that the first and the last can run once for a whole batch. Only protobuf is used; nothing is run here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from lstmstream.model import onnx_proto
from lstmstream.model.onnx_proto import Proto

STATE, STATE_OUT = "state", "state_out"

TensorType = tuple[int, Sequence[int | str]]  # element type and dimensions, as `onnx_proto.tensor_type` gives them


class GraphPart(NamedTuple):
    """Some nodes of a graph: what they take from outside, and what others need of them."""

    nodes: list[int]
    inputs: list[str]  # of the whole graph, or outputs of the parts before
    outputs: list[str]


class GraphParts(NamedTuple):
    """The three parts; `before` or `after` may be without nodes."""

    before: GraphPart
    step: GraphPart
    after: GraphPart


def split_graph(content: bytes) -> GraphParts | None:
    """None where a node holds a graph of its own, an output does not depend on the state, or nothing can be split off.

    Raises ValueError if `content` is not an ONNX model.
    """
    graph = onnx_proto.parse(content).graph
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return None
    inputs = [value.name for value in graph.input]
    outputs = [value.name for value in graph.output]
    from_state = _reached(graph, {STATE})
    from_events = _reached(graph, set(inputs) - {STATE})
    if not set(outputs) <= from_state or STATE_OUT not in outputs:
        return None
    for_state = _needed(graph, STATE_OUT)
    before, step, after = [], [], []
    for i, node in enumerate(graph.node):
        if _any(node.output, for_state & from_state):
            step.append(i)
        elif _any(node.output, from_state):
            after.append(i)
        elif _any(node.output, from_events):
            before.append(i)
    constants = [i for i in range(len(graph.node)) if not _any(graph.node[i].output, from_state | from_events)]
    if any(_any(graph.node[i].input, {STATE, STATE_OUT}) for i in after):  # states are not kept for it
        step, after = sorted(step + after), []
    if not (before or after):
        return None
    taken = [{name for i in part for name in graph.node[i].input} for part in (before, step, after)]
    made = [{name for i in part for name in graph.node[i].output if name} for part in (before, step, after)]
    features = sorted(made[0] & (taken[1] | taken[2]))
    hidden = sorted(made[1] & (taken[2] | set(outputs)) - {STATE_OUT})
    wanted = [features, [STATE_OUT, *hidden], [name for name in outputs if name in made[2]]]
    outside = [set(inputs), {*inputs, *features}, {*inputs, *features, STATE_OUT, *hidden}]
    parts = [
        GraphPart(_with_constants(graph, constants, nodes), sorted(takes & given), makes)
        for nodes, takes, given, makes in zip((before, step, after), taken, outside, wanted, strict=True)
    ]
    return GraphParts(*parts)


def moves_state(content: bytes) -> bool:
    """Whether the new state depends on the old one. Raises ValueError if `content` is not an ONNX model."""
    return STATE_OUT in _reached(onnx_proto.parse(content).graph, {STATE})


def part_content(content: bytes, part: GraphPart, types: Mapping[str, TensorType]) -> bytes:
    """The part as a model. `types`: of those of its inputs that are no inputs of the whole graph."""
    whole, model = onnx_proto.parse(content), onnx_proto.parse(content)
    graph = model.graph
    for field in ("node", "input", "output", "initializer", "value_info"):
        del getattr(graph, field)[:]
    graph.node.extend(whole.graph.node[i] for i in part.nodes)
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(tensor for tensor in whole.graph.initializer if tensor.name in used)
    declared = {value.name: value for value in [*whole.graph.input, *whole.graph.output]}
    for name in part.inputs:
        if name in declared:
            graph.input.append(declared[name])
            continue
        element, dimensions = types[name]
        tensor = graph.input.add(name=name).type.tensor_type
        tensor.elem_type = element
        for size in dimensions:
            if isinstance(size, int):
                tensor.shape.dim.add(dim_value=size)
            else:
                tensor.shape.dim.add(dim_param=size)
    for name in part.outputs:
        if name in declared:
            graph.output.append(declared[name])
        else:
            graph.output.add(name=name)  # without a type: onnxruntime infers it
    return onnx_proto.serialise(model)


def _with_constants(graph: Proto, constants: Collection[int], nodes: Collection[int]) -> list[int]:
    """The nodes, and those that compute what they take from weights alone; in the graph's order."""
    needed = {name for i in nodes for name in graph.node[i].input}
    kept = set(nodes)
    for i in sorted(constants, reverse=True):
        if _any(graph.node[i].output, needed):
            kept.add(i)
            needed.update(graph.node[i].input)
    return sorted(kept)


def _reached(graph: Proto, sources: Collection[str]) -> set[str]:
    """The sources and what is computed from them. The nodes of a graph stand in the order of their use."""
    reached = set(sources)
    for node in graph.node:
        if _any(node.input, reached):
            reached.update(name for name in node.output if name)
    return reached


def _needed(graph: Proto, output: str) -> set[str]:
    """The output and what it is computed from."""
    needed = {output}
    for node in reversed(graph.node):
        if _any(node.output, needed):
            needed.update(name for name in node.input if name)
    return needed


def _any(names: Collection[str], of: Collection[str]) -> bool:
    return any(name in of for name in names)
