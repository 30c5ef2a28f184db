"""Serves a graph unchanged: the state is the last T inputs, and each event runs the whole window.

For graphs that cannot be a step (bidirectional, attention over time), and for models trained on windows of T events.
Until a key has T events its window is padded with zeros in front. Costs about T times as much as a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from lstmstream.importer.equivalence import TOLERANCE, EquivalenceReport, StepRunner, difference, largest
from lstmstream.importer.graph import RECURRENT, Array, SourceGraph, copy_of, open_session, run
from lstmstream.importer.layout import Floats, Layout, run_all
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
from lstmstream.model.card import StatePart, StateSpec

# ONNX Runtime sums in another order for a single row, so a spare row is added to what these operators see.
_NEED_SPARE_ROW = {
    "RNN",
    "Loop",
    "Scan",
    "ReduceSum",
    "ReduceMean",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
}
MAX_WINDOW_VALUES = 2**20  # T * F, of one key
_KEYS = 4
_AND_SPARE = (PROBES[0] + 1, PROBES[1] + 1)


def to_window(
    source: SourceGraph, layout: Layout, output: str, window: int | None, *, missing: Missing, column: int | None
) -> StepGraph:
    """The step graph that runs `output` of the graph on a window of `window` events; `column` is the score's.

    Raises CannotServe.
    """
    length = _length(source, layout, window)
    size = length * layout.features
    if layout.states:
        raise source.error(f"it has an input for an initial state ({source.quoted(layout.states[0])}): use --mode step")
    if size > MAX_WINDOW_VALUES:
        raise source.error(
            f"a window of {length} events has {size} values; at most {MAX_WINDOW_VALUES} are supported for each key"
        )
    model = copy_of(source.model)
    graph = model.graph
    graph.name = "window"
    batch = layout.batch or 3
    old = layout.feed(source, _draw(batch, length, layout.features))
    original = run_all(source, old)
    del graph.value_info[:], graph.input[:]
    spare = any(node.op_type in _NEED_SPARE_ROW for node in graph.node)
    _broadcast_initial_states(source, layout, graph, original, "and_spare" if spare else "state_out")
    _inputs(graph, layout, length, missing, spare=spare)
    keep_outputs(graph, [output, "state_out"])
    state = StateSpec(size, (0.0,) * size, (StatePart("window", 0, (length, layout.features)),))
    given = [{"x": _draw(n, 1, layout.features)[:, 0], "state": np.zeros((n, size), np.float32)} for n in PROBES]
    if layout.batch:
        make_dynamic(
            model, source.model, old, (given[0], given[1]), AxisSizes(batch, length, PROBES, length), source.file
        )
    result, shape = _locate_output(source, layout, model, output, length, given)
    rows, axis, rank = output, result.batch_axis, len(shape)
    if spare:
        rows = _without_spare(graph, rows, axis)
    if result.time_axis is not None:
        last = add_weight(graph, "last_event", np.array(-1))
        graph.node.append(
            helper.make_node("Gather", [rows, last], ["last_prediction"], name="last_prediction", axis=result.time_axis)
        )
        rows, axis, rank = "last_prediction", axis - (result.time_axis < axis), rank - 1
    score = Score.choose(source, result, original[output], column)
    add_outputs(source, model, rows, (axis, rank), score)
    return StepGraph(model, state, result, str(score), is_probability(source, output))


def _length(source: SourceGraph, layout: Layout, window: int | None) -> int:
    if layout.time and window not in {None, layout.time}:
        raise source.error(f"--window {window}: the file accepts only sequences of {layout.time} events")
    length = layout.time or window
    if length is None:
        raise source.error("the file accepts any length; give the one it was trained with: --window T")
    if length < 1:
        raise source.error(f"--window {length}: should be at least 1")
    return length


def _draw(batch: int, length: int, features: int) -> Floats:
    return np.random.default_rng(length).standard_normal((batch, length, features), dtype=np.float32)


def _inputs(graph: onnx.GraphProto, layout: Layout, length: int, missing: Missing, *, spare: bool) -> None:
    """Appends x to the last T inputs: the new window is the next state and the graph's input."""
    features = layout.features
    graph.input.extend([float_info("x", features), float_info("state", length * features)])
    filled, nodes = replace_missing(graph, missing)
    columns = add_weight(graph, "window_columns", np.arange(features, (length + 1) * features))
    nodes.append(helper.make_node("Concat", ["state", filled], ["longer"], name="longer", axis=1))
    nodes.append(helper.make_node("Gather", ["longer", columns], ["state_out"], name="state_out", axis=1))
    fed = "state_out"
    if spare:
        first = add_weight(graph, "first_row", np.array([0]))
        nodes.append(helper.make_node("Gather", ["state_out", first], ["spare_row"], name="spare_row", axis=0))
        nodes.append(helper.make_node("Concat", ["state_out", "spare_row"], ["and_spare"], name="and_spare", axis=0))
        fed = "and_spare"
    sizes = [-1, length, features] if layout.rank == 3 else [-1, length]
    shape = add_weight(graph, "window_shape", np.array(sizes))
    name = layout.data if layout.time_axis == 1 else "window"
    nodes.append(helper.make_node("Reshape", [fed, shape], [name], name="window"))
    if layout.time_axis == 0:
        order = [1, 0, 2][: layout.rank]
        nodes.append(helper.make_node("Transpose", [name], [layout.data], name="window_time_first", perm=order))
    rest = [copy_of(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _without_spare(graph: onnx.GraphProto, rows: str, axis: int) -> str:
    """Appends a node that removes the spare row, the last one; returns the tensor's name."""
    bounds = [
        add_weight(graph, f"rows_{name}", np.array([value]))
        for name, value in (("from", 0), ("to", -1), ("axis", axis))
    ]
    graph.node.append(helper.make_node("Slice", [rows, *bounds], ["own_rows"], name="own_rows"))
    return "own_rows"


def _broadcast_initial_states(
    source: SourceGraph, layout: Layout, graph: onnx.GraphProto, original: dict[str, Any], fed: str
) -> None:
    """Makes initial states of a fixed batch size broadcast to any; those that are zero are removed.

    Raises CannotServe for one that is not the same for every sequence.
    """
    if not layout.batch:
        return
    extra: list[onnx.NodeProto] = []
    for node in graph.node:
        for place in range(5, 5 + RECURRENT.get(node.op_type, 0)):
            name = node.input[place] if len(node.input) > place else ""
            value = source.constant(name)
            value = original.get(name) if value is None else value
            if not name or value is None:
                continue
            rows = np.asarray(value)
            if not (rows == rows[:, :1]).all():
                raise source.error(
                    f"the initial state {source.quoted(name)} is not the same for every sequence of a batch"
                )
            if not rows.any():
                node.input[place] = ""
                continue
            row = add_weight(graph, f"{name} row", rows[:, :1])
            zeros = f"{name} zeros"
            # [N, 1] zeros computed from the event, for any batch size
            column = add_weight(graph, f"{name} column", np.array([0]))
            extra.append(helper.make_node("Gather", [fed, column], [f"{zeros} from"], name=f"{zeros} from", axis=1))
            extra.append(helper.make_node("Sub", [f"{zeros} from"] * 2, [zeros], name=zeros))
            extra.append(helper.make_node("Add", [row, zeros], [f"{name} rows"], name=f"{name} rows"))
            node.input[place] = f"{name} rows"
    rest = [copy_of(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*extra, *rest])


def _locate_output(
    source: SourceGraph, layout: Layout, model: onnx.ModelProto, output: str, length: int, given: list[dict[str, Array]]
) -> tuple[GraphOutput, tuple[int, ...]]:
    """The axes of the output, by how its shape changes with batch size and length; and that shape.

    `given` are inputs of the step for the batch sizes PROBES. Raises CannotServe.
    """
    opened = open_session(model, source.file)
    names = {value.name for value in model.graph.input}
    shapes = [
        run(opened, [output], {k: v for k, v in feed.items() if k in names}, source.file)[output].shape
        for feed in given
    ]
    batch_axes = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if sizes in (PROBES, _AND_SPARE)]
    if len(batch_axes) != 1:
        raise source.error(
            f"the output {source.quoted(output)} has shape {list(shapes[0])}: it does not have one row for each"
            " sequence"
        )
    batch_axis = batch_axes[0]
    others = [axis for axis in range(len(shapes[0])) if axis != batch_axis]
    time_axis = None
    if layout.time is None:
        feeds = [layout.feed(source, _draw(3, n, layout.features)) for n in (length, length + 2)]
        whole = open_session(source.model, source.file)
        one, two = (run(whole, [output], feed, source.file)[output].shape for feed in feeds)
        time_axis = next((axis for axis in others if (one[axis], two[axis]) == (length, length + 2)), None)
    elif len(others) > 1:  # [batch, time, columns]; [batch, columns] has no time axis
        time_axis = next((axis for axis in others[:1] if shapes[0][axis] == length), None)
    columns = int(np.prod([shapes[0][axis] for axis in others if axis != time_axis]))
    return GraphOutput(output, batch_axis, time_axis, columns), shapes[0]


def check_window(source: SourceGraph, layout: Layout, step: StepGraph) -> EquivalenceReport:
    """Compares the step with the original on the windows of random sequences. Raises CannotServe where they differ."""
    length = step.state.size // layout.features
    batch = layout.batch or _KEYS
    x = _draw(batch, length + 5, layout.features)
    runner = StepRunner(step.model, np.zeros(step.state.size, np.float32), source.file)
    predictions, states = runner.run(x)
    padded = np.concatenate([np.zeros((batch, length, layout.features), np.float32), x], axis=1)
    whole = open_session(source.model, source.file)
    gap = state_gap = 0.0
    for event in range(x.shape[1]):
        window = padded[:, event + 1 : event + 1 + length]
        value = run(whole, [step.output.name], layout.feed(source, window), source.file)[step.output.name]
        gap = largest(gap, difference(predictions[:, event], step.output.rows(value)[:, -1]))
        state_gap = largest(state_gap, difference(states[:, event], window.reshape(batch, -1)))
    if not largest(gap, state_gap) <= TOLERANCE:  # also true for NaN
        raise source.error(
            f"the outputs for a window differ from the original's by up to {largest(gap, state_gap):.3g}: does a row of"
            " the batch depend on the others?"
        )
    without_past, _ = runner.run(x[:, -1:])
    depends_on_past = difference(without_past[:, 0], predictions[:, -1]) > TOLERANCE
    return EquivalenceReport(
        lengths=(length,),
        every_position=True,
        sequences=batch,
        output_difference=gap,
        state_difference=state_gap,
        depends_on_past=depends_on_past,
    )
