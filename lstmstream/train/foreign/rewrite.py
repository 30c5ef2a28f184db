"""A foreign whole-sequence graph becomes a step: one event of each key and its state row in, the next row out.

The graph itself is kept and run on sequences of one event. What changes: each recurrent node begins with its slice of
`state` and its last state goes to `state_out`; a missing number becomes 0; the answer becomes `prediction` and `score`.
Whether the result says what the original says is not decided here but in proof.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lstmstream.card import StatePart, StateSpec
from lstmstream.errors import CannotServe
from lstmstream.train.foreign.fit_shapes import Sizes, free_sizes
from lstmstream.train.foreign.graph import RECURRENT, Array, Foreign, attribute, copy_of, prune, run, session
from lstmstream.train.foreign.layout import Floats, Layout, probe

Missing = Literal["zero", "error"]
PROBES = (4, 6)  # batches; no graph has both as the size of something else by chance
# onnxruntime computes these differently where a vector is not full, so a value's bits depend on its place in the batch.
UNSTEADY = {"Log", "Sin", "Cos", "Softplus", "Mish", "Atan", "Asin", "Acos", "Elu", "Selu", "Celu"}
POISON = "zero_or_nan"  # [N] where a missing number is an error
_VECTOR = 16
_FORMS = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Gather", "Slice", "Flatten", "Cast"}


@dataclass(frozen=True, slots=True)
class Answer:
    """Where the answer lies in the output of a foreign graph."""

    output: str
    batch_axis: int
    time_axis: int | None  # None: one answer for the whole sequence
    columns: int  # P: what is left, flattened

    def rows(self, value: Array) -> Array:
        """[B, T, P], T being 1 without an axis of time."""
        if self.time_axis is None:
            return np.moveaxis(value, self.batch_axis, 0).reshape(value.shape[self.batch_axis], 1, -1)
        moved = np.moveaxis(value, (self.batch_axis, self.time_axis), (0, 1))
        return moved.reshape(*moved.shape[:2], -1)


@dataclass(frozen=True, slots=True)
class Step:
    """A step graph without its card, and how it came from the original."""

    model: onnx.ModelProto  # x, state -> state_out, score, prediction
    state: StateSpec
    answer: Answer  # of the original
    score: str  # which number it is, for a person
    probability: bool  # whether a sigmoid or softmax makes the answer


def to_step(foreign: Foreign, layout: Layout, output: str, *, missing: Missing, column: int | None) -> Step:
    """Rewrites the graph. Raises CannotServe naming the node that cannot run on one event."""
    batch, length = layout.sizes()
    draws = np.random.default_rng(0).standard_normal((2, batch, length, layout.features), dtype=np.float32)
    feeds = [layout.feed(foreign, x) for x in draws]
    original = [probe(foreign, feed) for feed in feeds]
    model = copy_of(foreign.model)
    model.graph.name = "step"
    state = _states(foreign, model.graph, original)
    del model.graph.value_info[:], model.graph.input[:]
    _inputs(model.graph, layout, state.size, missing)
    only_outputs(model.graph, [output, "state_out"])
    given = [_step_feed(rows, layout.features, state) for rows in PROBES]
    if layout.batch or layout.time:
        free_sizes(
            model, foreign.model, feeds[0], (given[0], given[1]), Sizes(batch, length, PROBES, 1), foreign.source
        )
    answer = _answer(foreign, model, output, original[0][output].shape, batch, given)
    score = Score.choose(foreign, answer, original[0][output], column)
    finish(foreign, model, output, (answer.batch_axis, len(original[0][output].shape)), score)
    return Step(model, state, answer, str(score), is_probability(foreign, output))


def _step_feed(rows: int, features: int, state: StateSpec) -> dict[str, Array]:
    x = np.random.default_rng(rows).standard_normal((rows, features), dtype=np.float32)
    return {"x": x, "state": np.tile(np.array(state.initial, np.float32), (rows, 1))}


def _states(foreign: Foreign, graph: onnx.GraphProto, runs: list[dict[str, Any]]) -> StateSpec:
    """First states out of `state`, last ones into `state_out`."""
    parts: list[StatePart] = []
    initial: list[float] = []
    before: list[onnx.NodeProto] = []
    last: list[str] = []
    for number, cell in enumerate(foreign.cells):
        node = graph.node[cell.index]
        inputs = [*node.input, *[""] * 7][: 7 if cell.kind == "LSTM" else 6]
        inputs += list(node.input[7:])  # peepholes
        outputs = [*node.output, "", "", ""][: 1 + RECURRENT[cell.kind]]
        for which, letter in enumerate(cell.letters):
            part = StatePart(f"{letter}{number}", len(initial), (cell.hidden,))
            first = _first_row(foreign, inputs[5 + which], runs, cell.hidden)
            initial += [float(str(value)) for value in first]
            inputs[5 + which] = _slice(graph, before, part)
            outputs[1 + which] = outputs[1 + which] or f"{part.name}_out"
            last.append(outputs[1 + which])
            parts.append(part)
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
    nodes = [one for node in graph.node for one in (open_rnn(foreign, graph, node) or [copy_of(node)])]
    shape = weight(graph, "state_row", np.array([-1, len(initial)]))
    nodes.append(helper.make_node("Concat", last, ["state_out_step"], name="state_out_step", axis=2))
    nodes.append(helper.make_node("Reshape", ["state_out_step", shape], ["state_out"], name="state_out"))
    del graph.node[:]
    graph.node.extend([*before, *nodes])
    return StateSpec(len(initial), tuple(initial), tuple(parts))


def open_rnn(foreign: Foreign, graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """An RNN node over one event as products and an activation; None for other nodes.

    Unlike LSTM and GRU, onnxruntime's RNN gives a row other last bits in another batch.
    """
    if node.op_type != "RNN" or attribute(node, "clip", None) is not None:
        return None
    activation = attribute(node, "activations", [b"Tanh"])[0].decode()
    weights = [foreign.constant(name) for name in node.input[1:4]]
    if activation not in {"Tanh", "Relu", "Sigmoid"} or weights[0] is None or weights[1] is None:
        return None
    h = node.output[1]
    kernel = weight(graph, f"{h} kernel", weights[0][0].T.copy())
    recurrent = weight(graph, f"{h} recurrent", weights[1][0].T.copy())
    hidden = weights[1].shape[-1]
    halves = np.zeros((2, hidden), np.float32) if weights[2] is None else weights[2][0].reshape(2, hidden)
    bias = weight(graph, f"{h} bias", halves.sum(axis=0))
    steps = [
        helper.make_node("MatMul", [node.input[0], kernel], [f"{h} from x"], name=f"{h} from x"),
        helper.make_node("MatMul", [node.input[5], recurrent], [f"{h} from h"], name=f"{h} from h"),
        helper.make_node("Add", [f"{h} from x", f"{h} from h"], [f"{h} sum"], name=f"{h} sum"),
        helper.make_node("Add", [f"{h} sum", bias], [f"{h} biased"], name=f"{h} biased"),
        helper.make_node(activation, [f"{h} biased"], [h], name=h),
    ]
    if node.output[0]:  # [T, 1, N, H], all sizes but the batch known
        shape = weight(graph, f"{h} whole", np.array([1, 1, -1, hidden]))
        steps.append(helper.make_node("Reshape", [h, shape], [node.output[0]], name=node.output[0]))
    return steps


def _first_row(foreign: Foreign, name: str, runs: list[dict[str, Any]], hidden: int) -> Floats:
    """What a recurrent node begins with, [H]; the same for every sequence and every content, or it is refused."""
    if not name:
        return np.zeros(hidden, np.float32)
    constant = foreign.constant(name)
    values = [np.asarray(run_.get(name, constant)) for run_ in runs]
    if name in foreign.inputs:
        return np.zeros(hidden, np.float32)  # what the proof feeds too
    rows = np.concatenate([value.reshape(-1, hidden) for value in values])
    if not (rows == rows[0]).all():
        raise foreign.refuse(f"the first state {foreign.shown(name)} is not the same for every sequence of a batch")
    return np.asarray(rows[0], np.float32)


def _slice(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], part: StatePart) -> str:
    columns = weight(graph, f"{part.name}_columns", np.arange(part.offset, part.offset + part.shape[0]))
    shape = weight(graph, f"{part.name}_shape", np.array([1, -1, part.shape[0]]))
    nodes.append(helper.make_node("Gather", ["state", columns], [f"{part.name}_row"], name=f"{part.name}_row", axis=1))
    name = f"{part.name}_in"
    nodes.append(helper.make_node("Reshape", [f"{part.name}_row", shape], [name], name=name))
    return name


def weight(graph: onnx.GraphProto, name: str, values: Any) -> str:
    """Adds an initializer; returns its name."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def _inputs(graph: onnx.GraphProto, layout: Layout, size: int, missing: Missing) -> None:
    """Feeds x [N, F], 0 for what is missing, as sequences of one event under the original's name."""
    graph.input.extend([declared("x", layout.features), declared("state", size)])
    filled, nodes = fill_missing(graph, missing)
    shape = [-1, 1] if layout.time_axis == 1 else [1, -1]
    wanted = weight(graph, "x_shape", np.array(shape + [layout.features] * (layout.rank - 2)))
    nodes.append(helper.make_node("Reshape", [filled, wanted], [layout.data], name="x_step"))
    rest = [copy_of(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def fill_missing(graph: onnx.GraphProto, missing: Missing) -> tuple[str, list[onnx.NodeProto]]:
    """The name of x with 0 for NaN (or of x itself), and the nodes that make it.

    NaN itself is of no use to see that something is missing: onnxruntime's LSTM makes finite numbers of it. So with
    "error" a number goes along that is NaN where anything in the row is, and else 0; `finish` adds it to the score.
    """
    if missing == "error":
        features = graph.input[0].type.tensor_type.shape.dim[1].dim_value
        ones = weight(graph, "ones", np.ones((features, 1), np.float32))
        flat = weight(graph, "flat", np.array([-1]))
        return "x", [
            helper.make_node("Sub", ["x", "x"], ["zeros_or_nan"], name="zeros_or_nan"),
            helper.make_node("MatMul", ["zeros_or_nan", ones], ["any_missing"], name="any_missing"),
            helper.make_node("Reshape", ["any_missing", flat], [POISON], name=POISON),
        ]
    zero = weight(graph, "nothing", np.array(0, np.float32))
    return "x_filled", [
        helper.make_node("IsNaN", ["x"], ["x_missing"], name="x_missing"),
        helper.make_node("Where", ["x_missing", zero, "x"], ["x_filled"], name="x_filled"),
    ]


def declared(name: str, columns: int | None = None) -> onnx.ValueInfoProto:
    """A float32 input or output [N] or [N, columns]."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"] if columns is None else ["N", columns])


def only_outputs(graph: onnx.GraphProto, names: list[str]) -> None:
    """Drops what none of these needs; what `finish` will need stays."""
    names = [*names, *(name for node in graph.node for name in node.output if name == POISON)]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    prune(graph)


def _answer(
    foreign: Foreign,
    model: onnx.ModelProto,
    output: str,
    whole: tuple[int, ...],
    batch: int,
    given: list[dict[str, Any]],
) -> Answer:
    """Which axis of the output is the batch, and which, if any, is time: by what one event leaves of it."""
    names = {value.name for value in model.graph.input}
    try:
        opened = session(model, foreign.source)
        shapes = [
            run(opened, [output], {k: v for k, v in feed.items() if k in names}, foreign.source)[output].shape
            for feed in given
        ]
    except CannotServe as error:
        raise foreign.refuse(
            f"it cannot run on one event at a time: {str(error).partition(' it: ')[2]}; that node needs the whole"
            " sequence. --mode window serves it as it is"
        ) from error
    batch_axes = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if sizes == PROBES]
    if len(batch_axes) != 1 or len(shapes[0]) != len(whole):
        raise foreign.refuse(
            f"the output {foreign.shown(output)} is {list(whole)} for a batch of sequences and {list(shapes[0])} for"
            f" {PROBES[0]} single events: it has no row for each sequence"
        )
    expected = [batch if axis == batch_axes[0] else size for axis, size in enumerate(shapes[0])]
    changed = [axis for axis, (now, then) in enumerate(zip(expected, whole, strict=True)) if now != then]
    if len(changed) > 1 or any(shapes[0][axis] != 1 for axis in changed):
        raise foreign.refuse(
            f"the output {foreign.shown(output)} is {list(whole)} for a batch of sequences and {expected} for single"
            " events: more than time has changed. --mode window serves it as it is"
        )
    columns = int(np.prod([size for axis, size in enumerate(shapes[0]) if axis != batch_axes[0]]))
    return Answer(output, batch_axes[0], changed[0] if changed else None, columns)


def one_hot(answer: Answer, value: Array) -> bool:
    """Whether the answer's columns are probabilities that sum to one."""
    rows = answer.rows(value)
    return bool(answer.columns > 1 and (rows >= 0).all() and np.allclose(rows.sum(axis=2), 1, atol=1e-5))


def is_probability(foreign: Foreign, output: str) -> bool:
    """Whether the output is what a sigmoid or a softmax gives, but for its form."""
    makers = {name: node for node in foreign.graph.node for name in node.output}
    while (node := makers.get(output)) is not None and node.op_type in _FORMS:
        output = node.input[0]
    return node is not None and node.op_type in {"Sigmoid", "HardSigmoid", "Softmax"}


@dataclass(frozen=True, slots=True)
class Score:
    """Which number of the answer alerts compare."""

    column: int | None  # None: 1 - P(class 0)
    of: int

    @classmethod
    def choose(cls, foreign: Foreign, answer: Answer, value: Array, column: int | None) -> Score:
        """The user's column; else by whether `value`, an answer, is made of probabilities. Raises CannotServe."""
        if column is not None and not 0 <= column < answer.columns:
            raise foreign.refuse(f"--score-column {column}: the output has columns 0 to {answer.columns - 1}")
        if column is None and not one_hot(answer, value):
            column = 0
        return cls(column, answer.columns)

    def __str__(self) -> str:
        if self.column is None:
            return f"1 - P(class 0) of {self.of} classes"
        return "the output" if self.of == 1 else f"column {self.column} of {self.of}"


def finish(foreign: Foreign, model: onnx.ModelProto, rows: str, axes: tuple[int, int], score: Score) -> None:
    """Makes `prediction` [N, P] and `score` [N] of the tensor `rows`, and settles what depends on the batch.

    `axes`: which axis of `rows` is the batch, and how many there are; the others are flattened in their order.
    """
    graph = model.graph
    batch_axis, rank = axes
    if batch_axis:
        order = [batch_axis, *(axis for axis in range(rank) if axis != batch_axis)]
        graph.node.append(helper.make_node("Transpose", [rows], ["answer_rows"], name="answer_rows", perm=order))
        rows = "answer_rows"
    shape = weight(graph, "prediction_shape", np.array([-1, score.of]))
    graph.node.append(helper.make_node("Reshape", [rows, shape], ["prediction"], name="prediction"))
    column = weight(graph, "score_column", np.array(score.column or 0))
    poisoned = any(POISON in node.output for node in graph.node)
    clean = "clean_score" if poisoned else "score"
    chosen = "usual" if score.column is None else clean
    graph.node.append(helper.make_node("Gather", ["prediction", column], [chosen], name=chosen, axis=1))
    if score.column is None:
        whole = weight(graph, "whole", np.array(1, np.float32))
        graph.node.append(helper.make_node("Sub", [whole, "usual"], ["others"], name="others"))
        graph.node.append(helper.make_node("Relu", ["others"], [clean], name=clean))  # rounding may pass 1 by a bit
    if poisoned:
        graph.node.append(helper.make_node("Add", [clean, POISON], ["score"], name="score"))
    size = next(value for value in graph.input if value.name == "state").type.tensor_type.shape.dim[1].dim_value
    del graph.output[:]
    graph.output.extend([declared("state_out", size), declared("score"), declared("prediction", score.of)])
    steady(graph, foreign.opset)
    prune(graph)
    model.ir_version = min(max(model.ir_version, 8), 10)
    if not {"x", "state"} <= {value.name for value in graph.input}:
        raise foreign.refuse("one event's answer depends on neither the event nor the state")


def steady(graph: onnx.GraphProto, opset: int) -> None:
    """Repeats each value of the UNSTEADY operators over a whole vector, so that its place in the batch is the same."""
    if opset < 13:  # the check at load finds them
        return
    nodes: list[onnx.NodeProto] = []
    for original in graph.node:
        node = copy_of(original)
        if node.op_type not in UNSTEADY:
            nodes.append(node)
            continue
        output = node.output[0]
        axis = weight(graph, f"{output} axis", np.array([-1]))
        full = weight(graph, f"{output} full", np.array([_VECTOR]))
        place = weight(graph, f"{output} place", np.array(0))
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
