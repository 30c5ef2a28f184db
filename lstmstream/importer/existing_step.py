"""Gives one state row to a graph that is a step already: one event and its states in, the next states out.

The graph itself is kept, only its inputs and outputs change. A batch of many keys goes through it in one of two ways:
along a batch axis, which is made dynamic where the file fixes it; or, where that cannot be done or changes a result,
row by row in a Scan, which takes longer and computes what the original computes for one key.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from lstmstream.errors import CannotServe
from lstmstream.importer.equivalence import EquivalenceReport
from lstmstream.importer.graph import Array, SourceGraph, copy_of, open_session, printable, prune, run
from lstmstream.importer.original_step import Reference, check_wrapped_states
from lstmstream.importer.state_pairs import StatePair, StatePairing
from lstmstream.importer.static_shapes import AxisSizes, make_dynamic
from lstmstream.importer.step_form import (
    PROBES,
    GraphOutput,
    Missing,
    Score,
    StepGraph,
    add_outputs,
    add_weight,
    float_info,
    is_probability,
    keep_outputs,
    replace_missing,
)
from lstmstream.importer.step_plans import Plan, Port, initial_row, possible_plans
from lstmstream.model.card import StatePart, StateSpec
from lstmstream.model.onnx_proto import FLOAT

_MAX_STATE = 2**24  # values of one key
_NO_LENGTH = -2  # no axis has this size: a step has no length


def step_of_pairing(
    source: SourceGraph,
    pairing: StatePairing,
    *,
    missing: Missing,
    column: int | None,
    accept: Callable[[StepGraph, int], None],
) -> tuple[StepGraph, EquivalenceReport, Plan]:
    """The step graph of the first plan that computes what the original computes.

    `accept` raises CannotServe for a step, and its number of features, that the daemon would not load. Raises
    CannotServe, with the reason of the plan that changes least, where there is no such plan.
    """
    _check_types(source, pairing)
    reasons = []
    for plan in possible_plans(source, pairing):
        try:
            step = wrap_states(source, pairing, plan, missing=missing, column=column)
            report = check_wrapped_states(source, pairing, plan, step)
            accept(step, plan.features)
        except CannotServe as error:
            reasons.append(error)
        except (ValueError, IndexError, KeyError, TypeError) as error:  # of numpy and protobuf, on axes that do not fit
            reasons.append(source.error(f"its inputs and outputs do not fit together ({printable(error)})"))
        else:
            return step, report, plan
    if source.element(pairing.data) != FLOAT and "out of data bounds" in str(reasons[-1]):
        raise source.error(
            f"the input {source.quoted(pairing.data)} is the index of a table (an embedding), and an event may hold any"
            " number; export the model starting after its embeddings"
        )
    raise reasons[-1]


def _check_types(source: SourceGraph, pairing: StatePairing) -> None:
    kind = source.element(pairing.data)
    if kind not in {FLOAT, TensorProto.INT32, TensorProto.INT64}:
        raise source.error(f"the input {source.quoted(pairing.data)} is not a number (ONNX type {kind})")
    dims = source.dims(pairing.data)
    if len(dims) > 1 and dims[-1] is None:
        raise source.error(
            f"the input {source.quoted(pairing.data)} does not state how many numbers an event has: its last axis is"
            " dynamic; export it with a fixed size there"
        )
    if source.element(pairing.output) not in {FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}:
        raise source.error(f"the output {source.quoted(pairing.output)} is not a number; --output chooses another")


def wrap_states(
    source: SourceGraph, pairing: StatePairing, plan: Plan, *, missing: Missing, column: int | None
) -> StepGraph:
    """The step graph: states are taken out of the state row and put back. Raises CannotServe."""
    parts: list[StatePart] = []
    initial: list[float] = []
    for port, pair in zip(plan.states, pairing.states, strict=True):
        shape = tuple(size for size in port.row if size != 1) or (1,)
        parts.append(StatePart(_part_name(source, pair, parts), len(initial), shape))
        initial += initial_row(source, port, pair)
        if len(initial) > _MAX_STATE:
            raise source.error(f"its states have more than {_MAX_STATE} values for each key")
    state = StateSpec(len(initial), tuple(initial), tuple(parts))
    model = copy_of(source.model)
    graph = model.graph
    graph.name = "step"
    del graph.value_info[:], graph.input[:], graph.output[:]
    graph.input.extend([float_info("x", plan.features), float_info("state", state.size)])
    filled, before = replace_missing(graph, missing)
    reference = Reference(source, pairing, plan)
    value = reference.first_output()
    if plan.scan:
        nodes = [_scan_node(source, graph, pairing, plan, state, filled, value.shape[1])]
        rows, axis, rank = "prediction by row", 0, 2
    else:
        nodes = _batch_nodes(source, graph, pairing, plan, state, filled)
        rows, axis, rank = pairing.output, -1, -1
    del graph.node[:]
    graph.node.extend([*before, *nodes])
    keep_outputs(graph, [rows, "state_out"])
    if not plan.scan:
        given = [_probe(plan, state, rows) for rows in PROBES]
        if plan.batch is not None:
            sizes = AxisSizes(plan.batch, _NO_LENGTH, PROBES, _NO_LENGTH)
            make_dynamic(model, source.model, reference.first_feed(), (given[0], given[1]), sizes, source.file)
        axis, rank = _output_axis(source, pairing, model, given)
        rows = _as_float(graph, source, pairing.output, rows)
    result = GraphOutput(pairing.output, 0, None, value.shape[1])
    score = Score.choose(source, result, value, column)
    add_outputs(source, model, rows, (axis, rank), score)
    return StepGraph(model, state, result, str(score), is_probability(source, pairing.output))


def _part_name(source: SourceGraph, pair: StatePair, parts: list[StatePart]) -> str:
    name = source.quoted(pair.input)[1:-1]
    return name if name not in {part.name for part in parts} else f"{name} {len(parts)}"


def _probe(plan: Plan, state: StateSpec, rows: int) -> dict[str, Array]:
    x = np.random.default_rng(rows).standard_normal((rows, plan.features), dtype=np.float32)
    return {"x": x, "state": np.tile(np.array(state.initial, np.float32), (rows, 1))}


def _batch_nodes(
    source: SourceGraph, graph: onnx.GraphProto, pairing: StatePairing, plan: Plan, state: StateSpec, filled: str
) -> list[onnx.NodeProto]:
    """The graph's nodes between those that take the inputs out of x and state and those that make state_out."""
    nodes = _arranged(graph, plan.data, filled)
    after: list[onnx.NodeProto] = []
    rows = []
    for port, part, pair in zip(plan.states, state.parts, pairing.states, strict=True):
        columns = add_weight(graph, f"{port.name} columns", np.arange(part.offset, part.offset + port.width))
        row = f"{port.name} row"
        nodes.append(helper.make_node("Gather", ["state", columns], [row], name=row, axis=1))
        nodes += _arranged(graph, port, row)
        last = _as_float(graph, source, pair.output, pair.output, after)
        if port.axis:
            order = [port.axis, *(axis for axis in range(len(port.shape)) if axis != port.axis)]
            moved = f"{pair.output} by key"
            after.append(helper.make_node("Transpose", [last], [moved], name=moved, perm=order))
            last = moved
        flat = add_weight(graph, f"{pair.output} width", np.array([-1, port.width]))
        rows.append(f"{pair.output} row")
        after.append(helper.make_node("Reshape", [last, flat], [rows[-1]], name=rows[-1]))
    after.append(helper.make_node("Concat", rows, ["state_out"], name="state_out", axis=1))
    return [*nodes, *(copy_of(node) for node in graph.node), *after]


def _arranged(graph: onnx.GraphProto, port: Port, rows: str) -> list[onnx.NodeProto]:
    """Nodes that make the input of rows [N, width]."""
    assert port.axis is not None
    nodes = []
    shape = add_weight(graph, f"{port.name} shape", np.array([-1, *port.row]))
    last = port.name if not port.axis and port.element == FLOAT else f"{port.name} shaped"
    nodes.append(helper.make_node("Reshape", [rows, shape], [last], name=f"{port.name} shaped"))
    if port.axis:
        order = [*range(1, port.axis + 1), 0, *range(port.axis + 1, len(port.shape))]
        moved = port.name if port.element == FLOAT else f"{port.name} moved"
        nodes.append(helper.make_node("Transpose", [last], [moved], name=f"{port.name} moved", perm=order))
        last = moved
    if port.element != FLOAT:
        nodes.append(helper.make_node("Cast", [last], [port.name], name=f"{port.name} cast", to=port.element))
    return nodes


def _as_float(
    graph: onnx.GraphProto, source: SourceGraph, output: str, tensor: str, nodes: list[onnx.NodeProto] | None = None
) -> str:
    """The tensor, an output of the original, as float32."""
    if source.element(output) == FLOAT:
        return tensor
    cast = f"{tensor} as float"
    node = helper.make_node("Cast", [tensor], [cast], name=cast, to=FLOAT)
    (graph.node if nodes is None else nodes).append(node)
    return cast


def _output_axis(
    source: SourceGraph, pairing: StatePairing, model: onnx.ModelProto, given: list[dict[str, Array]]
) -> tuple[int, int]:
    """The batch axis of the prediction, and its number of axes."""
    names = {value.name for value in model.graph.input}
    opened = open_session(model, source.file)
    shapes = [
        run(opened, [pairing.output], {k: v for k, v in feed.items() if k in names}, source.file)[pairing.output].shape
        for feed in given
    ]
    axes = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if sizes == PROBES]
    if len(axes) != 1:
        raise source.error(f"the output {source.quoted(pairing.output)} does not have one row for each key")
    return axes[0], len(shapes[0])


def _scan_node(
    source: SourceGraph,
    graph: onnx.GraphProto,
    pairing: StatePairing,
    plan: Plan,
    state: StateSpec,
    filled: str,
    columns: int,
) -> onnx.NodeProto:
    """The whole graph as the body of a Scan over the rows of x and state."""
    nodes = [*_one_row(graph, plan.data, "x of row")]
    after: list[onnx.NodeProto] = []
    rows = []
    for port, part, pair in zip(plan.states, state.parts, pairing.states, strict=True):
        place = add_weight(graph, f"{port.name} columns", np.arange(part.offset, part.offset + port.width))
        row = f"{port.name} row"
        nodes.append(helper.make_node("Gather", ["state of row", place], [row], name=row, axis=0))
        nodes += _one_row(graph, port, row)
        rows.append(_first_row(source, graph, pair.output, port.axis, port.width, after))
    after.append(helper.make_node("Concat", rows, ["state_out of row"], name="state_out of row", axis=0))
    axis = Reference(source, pairing, plan).output_axis()
    last = _first_row(source, graph, pairing.output, axis, columns, after, name="prediction of row")
    body = helper.make_graph(
        [*nodes, *(copy_of(node) for node in graph.node), *after],
        "row",
        [_vector("x of row", plan.features), _vector("state of row", state.size)],
        [_vector("state_out of row", state.size), _vector(last, columns)],
    )
    inputs = [copy_of(value) for value in body.input]
    prune(body)
    del body.input[:]  # a Scan feeds both, whether they are read or not
    body.input.extend(inputs)
    return helper.make_node(
        "Scan", [filled, "state"], ["state_out", "prediction by row"], name="rows", body=body, num_scan_inputs=2
    )


def _vector(name: str, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [size])


def _one_row(graph: onnx.GraphProto, port: Port, row: str) -> list[onnx.NodeProto]:
    """Nodes that make the input of one row [width]; a batch of the original's fixed size is filled with that row."""
    single = [1 if axis == port.axis else size for axis, size in enumerate(port.shape)]
    nodes = []
    shape = add_weight(graph, f"{port.name} shape", np.array(single, np.int64))
    copies = port.shape[port.axis] if port.axis is not None else 1
    steps = ["shaped", *(["filled"] if copies > 1 else []), *(["cast"] if port.element != FLOAT else [])]
    names = [f"{port.name} {step}" for step in steps[:-1]] + [port.name]
    nodes.append(helper.make_node("Reshape", [row, shape], [names[0]], name=f"{port.name} shaped"))
    if copies > 1:
        whole = add_weight(graph, f"{port.name} whole", np.array(port.shape, np.int64))
        place = steps.index("filled")
        nodes.append(helper.make_node("Expand", [names[0], whole], [names[place]], name=f"{port.name} filled"))
    if port.element != FLOAT:
        nodes.append(helper.make_node("Cast", [names[-2]], [port.name], name=f"{port.name} cast", to=port.element))
    return nodes


def _first_row(
    source: SourceGraph,
    graph: onnx.GraphProto,
    output: str,
    axis: int | None,
    width: int,
    nodes: list[onnx.NodeProto],
    name: str | None = None,
) -> str:
    """Appends nodes that make a vector [width] of the first key of an output."""
    last = _as_float(graph, source, output, output, nodes)
    name = name or f"{output} row"
    if axis is not None:
        first = add_weight(graph, f"{name} first", np.array([0]))
        nodes.append(helper.make_node("Gather", [last, first], [f"{name} only"], name=f"{name} only", axis=axis))
        last = f"{name} only"
    flat = add_weight(graph, f"{name} width", np.array([width]))
    nodes.append(helper.make_node("Reshape", [last, flat], [name], name=name))
    return name
