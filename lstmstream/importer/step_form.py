"""Makes a step graph of a whole-sequence graph: one event of each key and its state row in, the next row out.

The graph is kept and run on sequences of one event. What changes: each recurrent node starts with its slice of `state`
and its final state goes to `state_out`; a missing number becomes 0; the output becomes `prediction` and `score`.
equivalence.py then checks that the step computes what the original computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lstmstream.errors import CannotServe
from lstmstream.importer.graph import RECURRENT, Array, SourceGraph, attribute, copy_of, open_session, prune, run
from lstmstream.importer.layout import Floats, Layout, run_all
from lstmstream.importer.static_shapes import AxisSizes, make_dynamic
from lstmstream.model.card import StatePart, StateSpec

Missing = Literal["zero", "error"]
PROBES = (4, 6)  # two batch sizes: an axis with both sizes is the batch axis
# ONNX Runtime computes these differently in a vector that is not full, so the bits depend on the place in the batch.
POSITION_DEPENDENT = {"Log", "Sin", "Cos", "Softplus", "Mish", "Atan", "Asin", "Acos", "Elu", "Selu", "Celu"}
MISSING_FLAG = "zero_or_nan"  # [N] with --missing error: NaN for a row with a missing number
_VECTOR = 16
_SHAPE_OPERATORS = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Gather", "Slice", "Flatten", "Cast"}


@dataclass(frozen=True, slots=True)
class GraphOutput:
    """The output of a graph that becomes the prediction, and the meaning of its axes."""

    name: str
    batch_axis: int
    time_axis: int | None  # None: one output for the whole sequence
    columns: int  # P, the other axes flattened

    def rows(self, value: Array) -> Array:
        """The output's value as [B, T, P], with T = 1 where there is no time axis."""
        if self.time_axis is None:
            return np.moveaxis(value, self.batch_axis, 0).reshape(value.shape[self.batch_axis], 1, -1)
        moved = np.moveaxis(value, (self.batch_axis, self.time_axis), (0, 1))
        return moved.reshape(*moved.shape[:2], -1)


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A step graph without its card, and how it was made from the original."""

    model: onnx.ModelProto  # x, state -> state_out, score, prediction
    state: StateSpec
    output: GraphOutput  # of the original
    score: str  # which number of the output it is, for a report
    probability: bool  # whether a sigmoid or softmax computes the output


def to_step(source: SourceGraph, layout: Layout, output: str, *, missing: Missing, column: int | None) -> StepGraph:
    """The step graph that computes `output`; `column` is the score's (None: chosen by the output's values).

    Raises CannotServe naming the node that cannot run on one event.
    """
    batch, length = layout.sizes()
    draws = np.random.default_rng(0).standard_normal((2, batch, length, layout.features), dtype=np.float32)
    feeds = [layout.feed(source, x) for x in draws]
    original = [run_all(source, feed) for feed in feeds]
    model = copy_of(source.model)
    model.graph.name = "step"
    state = _states(source, model.graph, original)
    del model.graph.value_info[:], model.graph.input[:]
    _inputs(model.graph, layout, state.size, missing)
    keep_outputs(model.graph, [output, "state_out"])
    given = [_step_feed(rows, layout.features, state) for rows in PROBES]
    if layout.batch or layout.time:
        make_dynamic(
            model, source.model, feeds[0], (given[0], given[1]), AxisSizes(batch, length, PROBES, 1), source.file
        )
    result = _locate_output(source, model, output, original[0][output].shape, batch, given)
    score = Score.choose(source, result, original[0][output], column)
    add_outputs(source, model, output, (result.batch_axis, len(original[0][output].shape)), score)
    return StepGraph(model, state, result, str(score), is_probability(source, output))


def _step_feed(rows: int, features: int, state: StateSpec) -> dict[str, Array]:
    x = np.random.default_rng(rows).standard_normal((rows, features), dtype=np.float32)
    return {"x": x, "state": np.tile(np.array(state.initial, np.float32), (rows, 1))}


def _states(source: SourceGraph, graph: onnx.GraphProto, runs: list[dict[str, Any]]) -> StateSpec:
    """Takes initial states out of `state` and puts final states into `state_out`."""
    parts: list[StatePart] = []
    initial: list[float] = []
    before: list[onnx.NodeProto] = []
    last: list[str] = []
    for number, cell in enumerate(source.cells):
        node = graph.node[cell.index]
        inputs = [*node.input, *[""] * 7][: 7 if cell.kind == "LSTM" else 6]
        inputs += list(node.input[7:])  # peepholes
        outputs = [*node.output, "", "", ""][: 1 + RECURRENT[cell.kind]]
        for which, letter in enumerate(cell.letters):
            part = StatePart(f"{letter}{number}", len(initial), (cell.hidden,))
            first = _initial_row(source, inputs[5 + which], runs, cell.hidden)
            initial += [float(str(value)) for value in first]
            inputs[5 + which] = _slice(graph, before, part)
            outputs[1 + which] = outputs[1 + which] or f"{part.name}_out"
            last.append(outputs[1 + which])
            parts.append(part)
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
    nodes = [one for node in graph.node for one in (decompose_rnn(source, graph, node) or [copy_of(node)])]
    shape = add_weight(graph, "state_row", np.array([-1, len(initial)]))
    nodes.append(helper.make_node("Concat", last, ["state_out_step"], name="state_out_step", axis=2))
    nodes.append(helper.make_node("Reshape", ["state_out_step", shape], ["state_out"], name="state_out"))
    del graph.node[:]
    graph.node.extend([*before, *nodes])
    return StateSpec(len(initial), tuple(initial), tuple(parts))


def decompose_rnn(source: SourceGraph, graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """An RNN node over one event as matrix products and an activation; None for other nodes.

    ONNX Runtime's RNN, unlike its LSTM and GRU, computes other last bits for a row in another batch.
    """
    if node.op_type != "RNN" or attribute(node, "clip", None) is not None:
        return None
    activation = attribute(node, "activations", [b"Tanh"])[0].decode()
    weights = [source.constant(name) for name in node.input[1:4]]
    if activation not in {"Tanh", "Relu", "Sigmoid"} or weights[0] is None or weights[1] is None:
        return None
    h = node.output[1]
    kernel = add_weight(graph, f"{h} kernel", weights[0][0].T.copy())
    recurrent = add_weight(graph, f"{h} recurrent", weights[1][0].T.copy())
    hidden = weights[1].shape[-1]
    halves = np.zeros((2, hidden), np.float32) if weights[2] is None else weights[2][0].reshape(2, hidden)
    bias = add_weight(graph, f"{h} bias", halves.sum(axis=0))
    steps = [
        helper.make_node("MatMul", [node.input[0], kernel], [f"{h} from x"], name=f"{h} from x"),
        helper.make_node("MatMul", [node.input[5], recurrent], [f"{h} from h"], name=f"{h} from h"),
        helper.make_node("Add", [f"{h} from x", f"{h} from h"], [f"{h} sum"], name=f"{h} sum"),
        helper.make_node("Add", [f"{h} sum", bias], [f"{h} biased"], name=f"{h} biased"),
        helper.make_node(activation, [f"{h} biased"], [h], name=h),
    ]
    if node.output[0]:  # [T, 1, N, H]; all sizes but the batch are known
        shape = add_weight(graph, f"{h} whole", np.array([1, 1, -1, hidden]))
        steps.append(helper.make_node("Reshape", [h, shape], [node.output[0]], name=node.output[0]))
    return steps


def _initial_row(source: SourceGraph, name: str, runs: list[dict[str, Any]], hidden: int) -> Floats:
    """[H] A recurrent node's initial state. Raises CannotServe where it is not the same for every sequence."""
    if not name:
        return np.zeros(hidden, np.float32)
    constant = source.constant(name)
    values = [np.asarray(run_.get(name, constant)) for run_ in runs]
    if name in source.inputs:
        return np.zeros(hidden, np.float32)  # as in the equivalence check
    rows = np.concatenate([value.reshape(-1, hidden) for value in values])
    if not (rows == rows[0]).all():
        raise source.error(f"the initial state {source.quoted(name)} is not the same for every sequence of a batch")
    return np.asarray(rows[0], np.float32)


def _slice(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], part: StatePart) -> str:
    """Appends the nodes that take a part [1, N, H] out of the state rows; returns the tensor's name."""
    columns = add_weight(graph, f"{part.name}_columns", np.arange(part.offset, part.offset + part.shape[0]))
    shape = add_weight(graph, f"{part.name}_shape", np.array([1, -1, part.shape[0]]))
    nodes.append(helper.make_node("Gather", ["state", columns], [f"{part.name}_row"], name=f"{part.name}_row", axis=1))
    name = f"{part.name}_in"
    nodes.append(helper.make_node("Reshape", [f"{part.name}_row", shape], [name], name=name))
    return name


def add_weight(graph: onnx.GraphProto, name: str, values: Any) -> str:
    """Adds an initializer to the graph; returns its name."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def _inputs(graph: onnx.GraphProto, layout: Layout, size: int, missing: Missing) -> None:
    """Feeds x [N, F] as sequences of one event to the original's input; missing numbers as `missing` says."""
    graph.input.extend([float_info("x", layout.features), float_info("state", size)])
    filled, nodes = replace_missing(graph, missing)
    shape = [-1, 1] if layout.time_axis == 1 else [1, -1]
    wanted = add_weight(graph, "x_shape", np.array(shape + [layout.features] * (layout.rank - 2)))
    nodes.append(helper.make_node("Reshape", [filled, wanted], [layout.data], name="x_step"))
    rest = [copy_of(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def replace_missing(graph: onnx.GraphProto, missing: Missing) -> tuple[str, list[onnx.NodeProto]]:
    """The name of x with 0 for NaN, or of x itself, and the nodes that compute it.

    With "error", NaN cannot simply be fed: ONNX Runtime's LSTM makes finite numbers of it. Instead MISSING_FLAG is NaN
    for a row with any NaN and 0 for all others, and `add_outputs` adds it to the score.
    """
    if missing == "error":
        features = graph.input[0].type.tensor_type.shape.dim[1].dim_value
        ones = add_weight(graph, "ones", np.ones((features, 1), np.float32))
        flat = add_weight(graph, "flat", np.array([-1]))
        return "x", [
            helper.make_node("Sub", ["x", "x"], ["zeros_or_nan"], name="zeros_or_nan"),
            helper.make_node("MatMul", ["zeros_or_nan", ones], ["any_missing"], name="any_missing"),
            helper.make_node("Reshape", ["any_missing", flat], [MISSING_FLAG], name=MISSING_FLAG),
        ]
    zero = add_weight(graph, "nothing", np.array(0, np.float32))
    return "x_filled", [
        helper.make_node("IsNaN", ["x"], ["x_missing"], name="x_missing"),
        helper.make_node("Where", ["x_missing", zero, "x"], ["x_filled"], name="x_filled"),
    ]


def float_info(name: str, columns: int | None = None) -> onnx.ValueInfoProto:
    """The declaration of a float32 input or output [N] or [N, columns]."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"] if columns is None else ["N", columns])


def keep_outputs(graph: onnx.GraphProto, names: list[str]) -> None:
    """Keeps these outputs and the nodes they need, and what `add_outputs` will need."""
    names = [*names, *(name for node in graph.node for name in node.output if name == MISSING_FLAG)]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    prune(graph)


def _locate_output(
    source: SourceGraph,
    model: onnx.ModelProto,
    output: str,
    whole: tuple[int, ...],
    batch: int,
    given: list[dict[str, Any]],
) -> GraphOutput:
    """The batch axis and, if any, the time axis of the output, by its shapes for whole sequences and for one event.

    `whole` is the output's shape for `batch` sequences, `given` are inputs of the step for the batch sizes PROBES.
    Raises CannotServe.
    """
    names = {value.name for value in model.graph.input}
    try:
        opened = open_session(model, source.file)
        shapes = [
            run(opened, [output], {k: v for k, v in feed.items() if k in names}, source.file)[output].shape
            for feed in given
        ]
    except CannotServe as error:
        raise source.error(
            f"it cannot run on one event at a time: {str(error).partition(' it: ')[2]}; that node needs the whole"
            " sequence. --mode window serves it as it is"
        ) from error
    batch_axes = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if sizes == PROBES]
    if len(batch_axes) != 1 or len(shapes[0]) != len(whole):
        raise source.error(
            f"the output {source.quoted(output)} has shape {list(whole)} for {batch} sequences and {list(shapes[0])}"
            f" for {PROBES[0]} single events: it does not have one row for each sequence"
        )
    expected = [batch if axis == batch_axes[0] else size for axis, size in enumerate(shapes[0])]
    changed = [axis for axis, (now, then) in enumerate(zip(expected, whole, strict=True)) if now != then]
    if len(changed) > 1 or any(shapes[0][axis] != 1 for axis in changed):
        raise source.error(
            f"the output {source.quoted(output)} has shape {list(whole)} for whole sequences and {expected} for single"
            " events: more than the time axis differs. --mode window serves it as it is"
        )
    columns = int(np.prod([size for axis, size in enumerate(shapes[0]) if axis != batch_axes[0]]))
    return GraphOutput(output, batch_axes[0], changed[0] if changed else None, columns)


def sums_to_one(output: GraphOutput, value: Array) -> bool:
    """Whether the columns of the output's value are probabilities of classes."""
    rows = output.rows(value)
    return bool(output.columns > 1 and (rows >= 0).all() and np.allclose(rows.sum(axis=2), 1, atol=1e-5))


def is_probability(source: SourceGraph, output: str) -> bool:
    """Whether the output comes from a sigmoid or a softmax, apart from changes of shape."""
    makers = {name: node for node in source.graph.node for name in node.output}
    while (node := makers.get(output)) is not None and node.op_type in _SHAPE_OPERATORS:
        output = node.input[0]
    return node is not None and node.op_type in {"Sigmoid", "HardSigmoid", "Softmax"}


@dataclass(frozen=True, slots=True)
class Score:
    """Which number of the output becomes the score."""

    column: int | None  # None: 1 - P(class 0)
    of: int  # number of columns

    @classmethod
    def choose(cls, source: SourceGraph, output: GraphOutput, value: Array, column: int | None) -> Score:
        """The user's column; without one, 1 - P(class 0) where `value` holds class probabilities, else column 0.

        Raises CannotServe for a column that the output does not have.
        """
        if column is not None and not 0 <= column < output.columns:
            raise source.error(f"--score-column {column}: the output has columns 0 to {output.columns - 1}")
        if column is None and not sums_to_one(output, value):
            column = 0
        return cls(column, output.columns)

    def __str__(self) -> str:
        if self.column is None:
            return f"1 - P(class 0) of {self.of} classes"
        return "the output" if self.of == 1 else f"column {self.column} of {self.of}"


def add_outputs(source: SourceGraph, model: onnx.ModelProto, rows: str, axes: tuple[int, int], score: Score) -> None:
    """Adds `prediction` [N, P] and `score` [N], computed from the tensor `rows`, and declares all outputs.

    `axes`: the index of the batch axis of `rows`, and its number of axes; the others are flattened in their order.
    Raises CannotServe where the result depends on neither event nor state.
    """
    graph = model.graph
    batch_axis, rank = axes
    if batch_axis:
        order = [batch_axis, *(axis for axis in range(rank) if axis != batch_axis)]
        graph.node.append(
            helper.make_node("Transpose", [rows], ["prediction_rows"], name="prediction_rows", perm=order)
        )
        rows = "prediction_rows"
    shape = add_weight(graph, "prediction_shape", np.array([-1, score.of]))
    graph.node.append(helper.make_node("Reshape", [rows, shape], ["prediction"], name="prediction"))
    column = add_weight(graph, "score_column", np.array(score.column or 0))
    flagged = any(MISSING_FLAG in node.output for node in graph.node)
    clean = "clean_score" if flagged else "score"
    chosen = "usual" if score.column is None else clean
    graph.node.append(helper.make_node("Gather", ["prediction", column], [chosen], name=chosen, axis=1))
    if score.column is None:
        whole = add_weight(graph, "whole", np.array(1, np.float32))
        graph.node.append(helper.make_node("Sub", [whole, "usual"], ["others"], name="others"))
        graph.node.append(
            helper.make_node("Relu", ["others"], [clean], name=clean)
        )  # the difference may be negative by rounding
    if flagged:
        graph.node.append(helper.make_node("Add", [clean, MISSING_FLAG], ["score"], name="score"))
    size = next(value for value in graph.input if value.name == "state").type.tensor_type.shape.dim[1].dim_value
    del graph.output[:]
    graph.output.extend([float_info("state_out", size), float_info("score"), float_info("prediction", score.of)])
    pad_columns(graph, source.opset)
    prune(graph)
    model.ir_version = min(max(model.ir_version, 8), 10)
    if not {"x", "state"} <= {value.name for value in graph.input}:
        raise source.error("the output for one event depends on neither the event nor the state")


def pad_columns(graph: onnx.GraphProto, opset: int) -> None:
    """Repeats each input of the POSITION_DEPENDENT operators over a whole vector; the position then does not matter."""
    if opset < 13:  # the check at load reports them
        return
    nodes: list[onnx.NodeProto] = []
    for original in graph.node:
        node = copy_of(original)
        if node.op_type not in POSITION_DEPENDENT:
            nodes.append(node)
            continue
        output = node.output[0]
        axis = add_weight(graph, f"{output} axis", np.array([-1]))
        full = add_weight(graph, f"{output} full", np.array([_VECTOR]))
        place = add_weight(graph, f"{output} place", np.array(0))
        for number, name in enumerate(node.input):
            column, wide = f"{output} column {number}", f"{output} wide {number}"
            nodes.append(helper.make_node("Unsqueeze", [name, axis], [column], name=column))
            nodes.append(helper.make_node("Expand", [column, full], [wide], name=wide))
            node.input[number] = wide
        node.output[0] = f"{output} wide"
        nodes.append(node)
        nodes.append(helper.make_node("Gather", [node.output[0], place], [output], name=f"{output} one", axis=-1))
    del graph.node[:]
    graph.node.extend(nodes)
