"""Serves a foreign graph as it is: the state is the last T inputs, and each event runs the whole window.

For graphs that cannot be a step (bidirectional, attention over time), and for models trained on windows of T. Until a
key has T events its window begins with zeros. Costs about T times a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from lstmstream.card import StatePart, StateSpec
from lstmstream.train.foreign.fit_shapes import Sizes, free_sizes
from lstmstream.train.foreign.graph import RECURRENT, Array, Foreign, copy_of, run, session
from lstmstream.train.foreign.layout import Floats, Layout, probe
from lstmstream.train.foreign.proof import TOLERANCE, Proof, Walker, difference, largest
from lstmstream.train.foreign.rewrite import (
    PROBES,
    Answer,
    Missing,
    Score,
    Step,
    declared,
    fill_missing,
    finish,
    is_probability,
    only_outputs,
    weight,
)

# For one row alone onnxruntime adds up in another order than for several, so these never see one row.
_ALONE = {
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
MAX_WINDOW_VALUES = 2**20  # T * F
_KEYS = 4
_AND_SPARE = (PROBES[0] + 1, PROBES[1] + 1)


def to_window(
    foreign: Foreign, layout: Layout, output: str, window: int | None, *, missing: Missing, column: int | None
) -> Step:
    """Puts the window around the graph. Raises CannotServe."""
    length = _length(foreign, layout, window)
    size = length * layout.features
    if layout.states:
        raise foreign.refuse(f"it takes a first state ({foreign.shown(layout.states[0])}): use --mode step")
    if size > MAX_WINDOW_VALUES:
        raise foreign.refuse(
            f"a window of {length} events has {size} values, at most {MAX_WINDOW_VALUES} are kept a key"
        )
    model = copy_of(foreign.model)
    graph = model.graph
    graph.name = "window"
    batch = layout.batch or 3
    old = layout.feed(foreign, _draw(batch, length, layout.features))
    original = probe(foreign, old)
    del graph.value_info[:], graph.input[:]
    spare = any(node.op_type in _ALONE for node in graph.node)
    _free_first_states(foreign, layout, graph, original, "and_spare" if spare else "state_out")
    _inputs(graph, layout, length, missing, spare=spare)
    only_outputs(graph, [output, "state_out"])
    state = StateSpec(size, (0.0,) * size, (StatePart("window", 0, (length, layout.features)),))
    given = [{"x": _draw(n, 1, layout.features)[:, 0], "state": np.zeros((n, size), np.float32)} for n in PROBES]
    if layout.batch:
        free_sizes(
            model, foreign.model, old, (given[0], given[1]), Sizes(batch, length, PROBES, length), foreign.source
        )
    answer, shape = _answer(foreign, layout, model, output, length, given)
    rows, axis, rank = output, answer.batch_axis, len(shape)
    if spare:
        rows = _without_spare(graph, rows, axis)
    if answer.time_axis is not None:
        last = weight(graph, "last_event", np.array(-1))
        graph.node.append(
            helper.make_node("Gather", [rows, last], ["last_answer"], name="last_answer", axis=answer.time_axis)
        )
        rows, axis, rank = "last_answer", axis - (answer.time_axis < axis), rank - 1
    score = Score.choose(foreign, answer, original[output], column)
    finish(foreign, model, rows, (axis, rank), score)
    return Step(model, state, answer, str(score), is_probability(foreign, output))


def _length(foreign: Foreign, layout: Layout, window: int | None) -> int:
    if layout.time and window not in {None, layout.time}:
        raise foreign.refuse(f"--window {window}: the file takes sequences of {layout.time} events and no others")
    length = layout.time or window
    if length is None:
        raise foreign.refuse("the file takes any length; say the one it was trained on: --window T")
    if length < 1:
        raise foreign.refuse(f"--window {length}: should be at least 1")
    return length


def _draw(batch: int, length: int, features: int) -> Floats:
    return np.random.default_rng(length).standard_normal((batch, length, features), dtype=np.float32)


def _inputs(graph: onnx.GraphProto, layout: Layout, length: int, missing: Missing, *, spare: bool) -> None:
    """Makes of x and the last T inputs a window of T: the new state, and what the graph is fed."""
    features = layout.features
    graph.input.extend([declared("x", features), declared("state", length * features)])
    filled, nodes = fill_missing(graph, missing)
    columns = weight(graph, "window_columns", np.arange(features, (length + 1) * features))
    nodes.append(helper.make_node("Concat", ["state", filled], ["longer"], name="longer", axis=1))
    nodes.append(helper.make_node("Gather", ["longer", columns], ["state_out"], name="state_out", axis=1))
    fed = "state_out"
    if spare:
        first = weight(graph, "first_row", np.array([0]))
        nodes.append(helper.make_node("Gather", ["state_out", first], ["spare_row"], name="spare_row", axis=0))
        nodes.append(helper.make_node("Concat", ["state_out", "spare_row"], ["and_spare"], name="and_spare", axis=0))
        fed = "and_spare"
    sizes = [-1, length, features] if layout.rank == 3 else [-1, length]
    shape = weight(graph, "window_shape", np.array(sizes))
    name = layout.data if layout.time_axis == 1 else "window"
    nodes.append(helper.make_node("Reshape", [fed, shape], [name], name="window"))
    if layout.time_axis == 0:
        order = [1, 0, 2][: layout.rank]
        nodes.append(helper.make_node("Transpose", [name], [layout.data], name="window_time_first", perm=order))
    rest = [copy_of(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _without_spare(graph: onnx.GraphProto, rows: str, axis: int) -> str:
    """All rows but the last."""
    bounds = [
        weight(graph, f"rows_{name}", np.array([value])) for name, value in (("from", 0), ("to", -1), ("axis", axis))
    ]
    graph.node.append(helper.make_node("Slice", [rows, *bounds], ["own_rows"], name="own_rows"))
    return "own_rows"


def _free_first_states(
    foreign: Foreign, layout: Layout, graph: onnx.GraphProto, original: dict[str, Any], fed: str
) -> None:
    """First states written for one batch size become the same for any; those that are zero are left out."""
    if not layout.batch:
        return
    extra: list[onnx.NodeProto] = []
    for node in graph.node:
        for place in range(5, 5 + RECURRENT.get(node.op_type, 0)):
            name = node.input[place] if len(node.input) > place else ""
            value = foreign.constant(name)
            value = original.get(name) if value is None else value
            if not name or value is None:
                continue
            rows = np.asarray(value)
            if not (rows == rows[:, :1]).all():
                raise foreign.refuse(
                    f"the first state {foreign.shown(name)} is not the same for every sequence of a batch"
                )
            if not rows.any():
                node.input[place] = ""
                continue
            row = weight(graph, f"{name} row", rows[:, :1])
            zeros = f"{name} zeros"
            # [N, 1] of zeros from the event itself, whatever the batch
            column = weight(graph, f"{name} column", np.array([0]))
            extra.append(helper.make_node("Gather", [fed, column], [f"{zeros} from"], name=f"{zeros} from", axis=1))
            extra.append(helper.make_node("Sub", [f"{zeros} from"] * 2, [zeros], name=zeros))
            extra.append(helper.make_node("Add", [row, zeros], [f"{name} rows"], name=f"{name} rows"))
            node.input[place] = f"{name} rows"
    rest = [copy_of(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*extra, *rest])


def _answer(
    foreign: Foreign, layout: Layout, model: onnx.ModelProto, output: str, length: int, given: list[dict[str, Array]]
) -> tuple[Answer, tuple[int, ...]]:
    """Where the answer lies, by what changes with the batch and with the length; and its shape."""
    opened = session(model, foreign.source)
    names = {value.name for value in model.graph.input}
    shapes = [
        run(opened, [output], {k: v for k, v in feed.items() if k in names}, foreign.source)[output].shape
        for feed in given
    ]
    batch_axes = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if sizes in (PROBES, _AND_SPARE)]
    if len(batch_axes) != 1:
        raise foreign.refuse(
            f"the output {foreign.shown(output)} is {list(shapes[0])}: it has no row for each sequence"
        )
    batch_axis = batch_axes[0]
    others = [axis for axis in range(len(shapes[0])) if axis != batch_axis]
    time_axis = None
    if layout.time is None:
        feeds = [layout.feed(foreign, _draw(3, n, layout.features)) for n in (length, length + 2)]
        whole = session(foreign.model, foreign.source)
        one, two = (run(whole, [output], feed, foreign.source)[output].shape for feed in feeds)
        time_axis = next((axis for axis in others if (one[axis], two[axis]) == (length, length + 2)), None)
    elif len(others) > 1:  # [batch, time, columns]; of [batch, columns] nothing is time
        time_axis = next((axis for axis in others[:1] if shapes[0][axis] == length), None)
    columns = int(np.prod([shapes[0][axis] for axis in others if axis != time_axis]))
    return Answer(output, batch_axis, time_axis, columns), shapes[0]


def prove_window(foreign: Foreign, layout: Layout, step: Step) -> Proof:
    """Compares with the original on the windows of random sequences. Raises CannotServe where they differ."""
    length = step.state.size // layout.features
    batch = layout.batch or _KEYS
    x = _draw(batch, length + 5, layout.features)
    walker = Walker(step.model, np.zeros(step.state.size, np.float32), foreign.source)
    given, states = walker.walk(x)
    padded = np.concatenate([np.zeros((batch, length, layout.features), np.float32), x], axis=1)
    whole = session(foreign.model, foreign.source)
    gap = state_gap = 0.0
    for event in range(x.shape[1]):
        window = padded[:, event + 1 : event + 1 + length]
        value = run(whole, [step.answer.output], layout.feed(foreign, window), foreign.source)[step.answer.output]
        gap = largest(gap, difference(given[:, event], step.answer.rows(value)[:, -1]))
        state_gap = largest(state_gap, difference(states[:, event], window.reshape(batch, -1)))
    if not largest(gap, state_gap) <= TOLERANCE:  # NaN too
        raise foreign.refuse(
            f"the window's answers differ from the original's by up to {largest(gap, state_gap):.3g}: does a row of the"
            " batch depend on the others?"
        )
    forgetful, _ = walker.walk(x[:, -1:])
    remembers = difference(forgetful[:, 0], given[:, -1]) > TOLERANCE
    return Proof((length,), every_position=True, sequences=batch, answers=gap, memories=state_gap, remembers=remembers)
