"""Gives one state row to a graph that is a step already: one event and its states in, the next states out.

The graph itself is kept, only its inputs and outputs change. A batch of many keys goes through it in one of two ways:
along a batch axis, which is made dynamic where the file fixes it; or, where that cannot be done or changes a result,
row by row in a Scan, which takes longer and computes what the original computes for one key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from lstmstream.errors import CannotServe
from lstmstream.importer.equivalence import TOLERANCE, EquivalenceReport, StepRunner, difference, largest
from lstmstream.importer.graph import Array, SourceGraph, copy_of, open_session, prune, run
from lstmstream.importer.layout import Floats
from lstmstream.importer.state_pairs import Dims, StatePair, StatePairing
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
from lstmstream.model.onnx_proto import FLOAT

EVENTS = 300  # of each random sequence
_KEYS = 3
_MAX_STATE = 2**24  # values of one key
_NO_LENGTH = -2  # no axis has this size: a step has no length


@dataclass(frozen=True, slots=True)
class Port:
    """An input of the graph for one key: its shape, and the axis of the keys."""

    name: str
    shape: tuple[int, ...]  # with `axis` as the original takes it
    axis: int | None  # None: there is no axis of keys
    element: int  # ONNX type

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one key's values, without the axis of keys."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)

    @property
    def width(self) -> int:
        """Number of values of one key."""
        return math.prod(self.row)

    def arrange(self, rows: Array) -> Array:
        """Rows [N, width] as the input takes them; without an axis of keys N is 1."""
        values = rows.reshape(len(rows), *self.row) if self.axis is not None else rows.reshape(self.row)
        moved = values if self.axis is None else np.moveaxis(values, 0, self.axis)
        return np.ascontiguousarray(moved.astype(helper.tensor_dtype_to_np_dtype(self.element)))


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rows of a batch go through the graph."""

    data: Port
    states: tuple[Port, ...]  # in the order of the pairing
    batch: int | None  # keys in one run of the original; None: any number
    scan: bool  # row by row

    @property
    def features(self) -> int:
        """F, the number of values of an event."""
        return self.data.width


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
        else:
            return step, report, plan
    raise reasons[-1]


def _check_types(source: SourceGraph, pairing: StatePairing) -> None:
    kind = source.element(pairing.data)
    if kind not in {FLOAT, TensorProto.INT32, TensorProto.INT64}:
        raise source.error(f"the input {source.quoted(pairing.data)} is not a number (ONNX type {kind})")
    if source.element(pairing.output) not in {FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}:
        raise source.error(f"the output {source.quoted(pairing.output)} is not a number; --output chooses another")


def possible_plans(source: SourceGraph, pairing: StatePairing) -> Iterator[Plan]:
    """Every plan for the graph, the fastest first; the last one changes least."""
    data = source.dims(pairing.data)
    dims = {pair.input: source.dims(pair.input) for pair in pairing.states}

    def port(name: str, axis: int | None, keys: int) -> Port:
        sizes = [size or 1 for size in source.dims(name)]
        if axis is not None:
            sizes[axis] = keys
        return Port(name, tuple(sizes), axis, source.element(name))

    def plan(axes: dict[str, int | None], batch: int | None, *, scan: bool) -> Plan:
        keys = batch or 1
        states = tuple(port(pair.input, axes[pair.input], keys) for pair in pairing.states)
        return Plan(port(pairing.data, axes[pairing.data], keys), states, batch, scan)

    unbatched: dict[str, int | None] = dict.fromkeys([pairing.data, *dims])
    if any(None in one for one in dims.values()):
        label = _batch_label(source, pairing)
        axes: dict[str, int | None] = {name: _dynamic_axis(source, name, label) for name in unbatched}
        if all(axis is not None for axis in axes.values()):
            yield plan(axes, None, scan=False)
    else:
        for size in [*sorted({size for size in data[:2] if size and size > 1 and len(data) > 1}, reverse=True), 1]:
            first = next((axis for axis, found in enumerate(data[:2]) if found == size), None)
            if size == 1 and None in data[:1]:
                first = 0
            for before in (1, 0):
                places = {name: _fixed_axis(one, size, before) for name, one in dims.items()}
                if first is None or None in places.values() or (before == 0 and not _either(dims, size)):
                    continue
                yield plan({pairing.data: first, **places}, size, scan=False)
                if size > 1:
                    yield plan({pairing.data: first, **places}, size, scan=True)
    yield plan(unbatched, 1, scan=True)


def _batch_label(source: SourceGraph, pairing: StatePairing) -> str:
    """The name of the axis that event and states have in common; empty where the file has no such name."""
    labels = [{text for text in _labels(source, pair.input) if text} for pair in pairing.states]
    common = set.intersection(*labels) & set(_labels(source, pairing.data)) if labels else set[str]()
    return min(common, key=lambda text: ("batch" not in text.lower(), text), default="")


def _labels(source: SourceGraph, name: str) -> list[str]:
    value = next(value for value in source.graph.input if value.name == name)
    return [dim.dim_param for dim in value.type.tensor_type.shape.dim]


def _dynamic_axis(source: SourceGraph, name: str, label: str) -> int | None:
    """The batch axis of an input with dynamic axes; None where there is none."""
    labels, dims = _labels(source, name), source.dims(name)
    if label and label in labels:
        return labels.index(label)
    free = [axis for axis, size in enumerate(dims) if size is None]
    if len(free) > 1 and len(dims) == 3 and 1 in free and any(dims[axis] for axis in (0, 2)):
        return 0 if name == source.inputs[0] and 0 in free else 1
    return free[0] if free else None


def _fixed_axis(dims: Dims, size: int, before: int) -> int | None:
    """The batch axis of a state whose batch is fixed to `size`; `before` is tried first where there are three axes."""
    order = [before, 1 - before] if len(dims) >= 3 else [0]
    return next((axis for axis in order if axis < len(dims) and dims[axis] == size), None)


def _either(dims: dict[str, Dims], size: int) -> bool:
    """Whether any state may have its batch on either of two axes."""
    return any(len(one) >= 3 and one[0] == size and one[1] == size for one in dims.values())


def wrap_states(
    source: SourceGraph, pairing: StatePairing, plan: Plan, *, missing: Missing, column: int | None
) -> StepGraph:
    """The step graph: states are taken out of the state row and put back. Raises CannotServe."""
    parts: list[StatePart] = []
    initial: list[float] = []
    for port, pair in zip(plan.states, pairing.states, strict=True):
        shape = tuple(size for size in port.row if size != 1) or (1,)
        parts.append(StatePart(_part_name(source, pair, parts), len(initial), shape))
        initial += _initial_row(source, port, pair)
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


def _initial_row(source: SourceGraph, port: Port, pair: StatePair) -> list[float]:
    """The state of a new key: zeros, or the default of the input."""
    if pair.initial is None:
        return [0.0] * port.width
    rows = np.asarray(pair.initial, np.float32).reshape(port.shape)
    rows = rows[np.newaxis] if port.axis is None else np.moveaxis(rows, port.axis, 0)
    if not (rows == rows[:1]).all():
        raise source.error(f"the default of {source.quoted(pair.input)} is not the same for every key of a batch")
    return [float(str(value)) for value in rows[0].reshape(-1)]


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


class Reference:
    """The original, fed with events and its own states, as many keys at once as it takes."""

    def __init__(self, source: SourceGraph, pairing: StatePairing, plan: Plan) -> None:
        self._source, self._pairing, self._plan = source, pairing, plan
        self._session = open_session(source.model, source.file)
        self.keys = plan.batch or 1
        self._ports = {port.name: port for port in (plan.data, *plan.states)}
        self._names = list(dict.fromkeys([pairing.output, *(pair.output for pair in pairing.states)]))

    def first_states(self) -> dict[str, Array]:
        """The states of new keys, by input."""
        found = {}
        for port, pair in zip(self._plan.states, self._pairing.states, strict=True):
            row = np.array(_initial_row(self._source, port, pair), np.float32)
            found[port.name] = port.arrange(np.tile(row, (self.keys, 1)))
        return found

    def first_feed(self) -> dict[str, Array]:
        """Inputs of a run on new keys."""
        x = _draw(self.keys, 1, self._plan.features)[:, 0]
        return {self._plan.data.name: self._plan.data.arrange(x), **self.first_states()}

    def first_output(self) -> Array:
        """The prediction [keys, P] for an event of new keys."""
        feed = self.first_feed()
        x = feed.pop(self._plan.data.name)
        return self._rows(self._step(x, feed))

    def output_axis(self) -> int | None:
        """The axis of the keys of the prediction, None where there is one key and no need to know."""
        if self.keys == 1:
            return None
        feed = self.first_feed()
        x = feed.pop(self._plan.data.name)
        shape = self._step(x, feed)[self._pairing.output].shape
        axis = next((axis for axis, size in enumerate(shape) if size == self.keys), None)
        if axis is None:
            raise self._source.error(
                f"the output {self._source.quoted(self._pairing.output)} has shape {list(shape)}: it does not have one"
                f" row for each key of its batch of {self.keys}"
            )
        return axis

    def run(self, x: Floats) -> Array:
        """Predictions [keys, T, P] of the sequences x [keys, T, F]."""
        states = self.first_states()
        found = []
        for event in range(x.shape[1]):
            out = self._step(self._plan.data.arrange(x[:, event]), states)
            found.append(self._rows(out))
            states = {pair.input: self._next(out[pair.output], pair) for pair in self._pairing.states}
        return np.stack(found, axis=1)

    def _next(self, value: Array, pair: StatePair) -> Array:
        shape = self._ports[pair.input].shape
        if value.shape != shape:
            raise self._source.error(
                f"the state {self._source.quoted(pair.input)} has shape {list(shape)}, and its next value"
                f" {self._source.quoted(pair.output)} {list(value.shape)}: a state that changes its size (a cache that"
                " grows with each event) cannot be kept in a state row"
            )
        return value

    def _step(self, x: Array, states: dict[str, Array]) -> dict[str, Array]:
        return run(self._session, self._names, {self._plan.data.name: x, **states}, self._source.file)

    def _rows(self, out: dict[str, Array]) -> Array:
        value = np.asarray(out[self._pairing.output], np.float32)
        if self.keys == 1:
            return value.reshape(1, -1)
        axis = next((axis for axis, size in enumerate(value.shape) if size == self.keys), 0)
        return np.moveaxis(value, axis, 0).reshape(self.keys, -1)


def _draw(keys: int, events: int, features: int) -> Floats:
    """Random sequences whose size differs from key to key."""
    x = np.random.default_rng(5).standard_normal((keys, events, features), dtype=np.float32)
    scales = np.resize(np.array([1.0, 0.1, 4.0], np.float32), keys)
    return np.asarray(x * scales[:, np.newaxis, np.newaxis], np.float32)


def check_wrapped_states(source: SourceGraph, pairing: StatePairing, plan: Plan, step: StepGraph) -> EquivalenceReport:
    """Compares the step with the original, which is fed its own states. Raises CannotServe where they differ."""
    reference = Reference(source, pairing, plan)
    x = _draw(reference.keys if reference.keys > 1 else _KEYS, EVENTS, plan.features)
    runner = StepRunner(step.model, np.array(step.state.initial, np.float32), source.file)
    parts = [x] if reference.keys > 1 else [x[key : key + 1] for key in range(len(x))]
    expected = np.concatenate([reference.run(part) for part in parts])
    predictions, _ = runner.run(x)
    gap = largest(difference(predictions, expected), 0.0)
    if not gap <= TOLERANCE:  # also true for NaN
        event = int(
            np.argmax([not difference(predictions[:, at], expected[:, at]) <= TOLERANCE for at in range(EVENTS)])
        )
        raise source.error(
            f"the step with one state row differs from the original by up to {gap:.3g}, first at event {event + 1}"
        )
    without_past, _ = runner.run(x[:, -1:])
    depends_on_past = difference(without_past[:, 0], predictions[:, -1]) > TOLERANCE
    depends_on_input = len(x) == 1 or bool(np.ptp(predictions[:, -1], axis=0).max() > TOLERANCE)
    return EquivalenceReport(
        lengths=(EVENTS,),
        every_position=True,
        sequences=len(x),
        output_difference=gap,
        state_difference=0.0,
        depends_on_past=depends_on_past,
        depends_on_input=depends_on_input,
    )
