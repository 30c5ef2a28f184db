"""Gives one state row to a graph that is a step already: one event and its states in, the next states out.

The graph itself is unchanged, only its inputs and outputs are. Which output is the next value of which input is decided
by shape and, where two have the same shape, by the first letter of their names (h, c); an ambiguous pair is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from lstmstream.importer.equivalence import TOLERANCE, EquivalenceReport, StepRunner, difference, largest
from lstmstream.importer.graph import Array, SourceGraph, copy_of, open_session, run
from lstmstream.importer.layout import Floats
from lstmstream.importer.step_form import (
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

_KEYS, _EVENTS = 3, 9


@dataclass(frozen=True, slots=True)
class StatePairing:
    """The input for the event, and the output that holds the next value of each state."""

    data: str
    data_dims: tuple[int | None, ...]
    states: tuple[tuple[str, str, tuple[int | None, ...]], ...]  # input, output, dims of the input
    output: str

    @property
    def features(self) -> int:
        """F, the number of features."""
        return int(self.data_dims[-1] or 0)

    def part(self, dims: tuple[int | None, ...]) -> tuple[int, ...]:
        """Shape of a state with dimensions `dims` in the state row: [H], or [L, H] of several layers."""
        sizes = [int(dims[0] or 1), int(dims[-1] or 0)] if len(dims) == 3 else [int(dims[-1] or 0)]
        return tuple(sizes[-1:] if sizes[0] == 1 and len(sizes) == 2 else sizes)


def find_pairing(source: SourceGraph, wanted: str | None) -> StatePairing | None:
    """The pairing of a graph that is a step, with the output `wanted` as its prediction; None for other graphs.

    Raises CannotServe where it is a step and the pairing is ambiguous.
    """
    ranks = {name: len(source.dims(name)) for name in source.inputs}
    if len(ranks) < 2 or any(source.element(name) != FLOAT for name in ranks):
        return None
    data = source.inputs[0]
    dims = source.dims(data)
    if not (len(dims) == 2 or (len(dims) == 3 and 1 in dims[:2])) or not dims[-1]:
        return None
    outputs = [name for name in source.outputs if name != wanted] if wanted else list(source.outputs)
    pairs, taken = [], set()
    for name in source.inputs[1:]:
        mine = source.dims(name)
        alike = [other for other in outputs if _alike(source.dims(other), mine)]
        rivals = [other for other in source.inputs[1:] if other != name and _alike(source.dims(other), mine)]
        if not alike:
            return None
        if len(alike) > 1 or rivals:
            alike = [other for other in alike if other.lower()[:1] == name.lower()[:1]]
        if len(alike) != 1 or alike[0] in taken or not mine[-1]:
            raise source.error(
                f"it is a step already, but which output is the next value of {source.quoted(name)} is ambiguous; give"
                " inputs and outputs names with the same first letter (h, c -> h_next, c_next)"
            )
        pairs.append((name, alike[0], mine))
        taken.add(alike[0])
    output = wanted or next((name for name in outputs if name not in taken), pairs[0][1])
    return StatePairing(data, dims, tuple(pairs), output)


def _alike(one: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    """Whether two shapes can be the same state's; None, an undeclared size, matches any."""
    return len(one) == len(other) and all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


def wrap_states(source: SourceGraph, pairing: StatePairing, *, missing: Missing, column: int | None) -> StepGraph:
    """The step graph: states are taken out of the state row and put back. Raises CannotServe."""
    sizes = [size for name in source.inputs for size in [_batch_of(source, name)] if size not in {None, 1}]
    if sizes or any(_batch_of(source, name) == 1 for name in source.inputs):
        raise source.error("its batch size is fixed; export the step with a dynamic batch axis")
    model = copy_of(source.model)
    graph = model.graph
    graph.name = "step"
    parts: list[StatePart] = []
    offset = 0
    for name, _, dims in pairing.states:
        shape = pairing.part(dims)
        parts.append(StatePart(name, offset, shape))
        offset += int(np.prod(shape))
    state = StateSpec(offset, (0.0,) * offset, tuple(parts))
    del graph.value_info[:], graph.input[:], graph.output[:]
    graph.input.extend([float_info("x", pairing.features), float_info("state", offset)])
    filled, before = replace_missing(graph, missing)
    shape_x = [size or -1 for size in pairing.data_dims]
    before.append(
        helper.make_node(
            "Reshape", [filled, add_weight(graph, "x_shape", np.array(shape_x))], [pairing.data], name="x_step"
        )
    )
    after: list[onnx.NodeProto] = []
    rows = []
    for part, (name, output, dims) in zip(parts, pairing.states, strict=True):
        width = int(np.prod(part.shape))
        columns = add_weight(graph, f"{name} columns", np.arange(part.offset, part.offset + width))
        before.append(helper.make_node("Gather", ["state", columns], [f"{name} row"], name=f"{name} row", axis=1))
        inner = add_weight(
            graph, f"{name} shape", np.array([-1, dims[0] or 1, dims[-1]] if len(dims) == 3 else [-1, width])
        )
        shaped = f"{name} layers" if len(dims) == 3 else name
        before.append(helper.make_node("Reshape", [f"{name} row", inner], [shaped], name=shaped))
        last = output
        if len(dims) == 3:
            before.append(helper.make_node("Transpose", [shaped], [name], name=f"{name} in", perm=[1, 0, 2]))
            last = f"{output} by key"
            after.append(helper.make_node("Transpose", [output], [last], name=last, perm=[1, 0, 2]))
        flat = add_weight(graph, f"{output} width", np.array([-1, width]))
        after.append(helper.make_node("Reshape", [last, flat], [f"{output} row"], name=f"{output} row"))
        rows.append(f"{output} row")
    after.append(helper.make_node("Concat", rows, ["state_out"], name="state_out", axis=1))
    nodes = [copy_of(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*before, *nodes, *after])
    keep_outputs(graph, [pairing.output, "state_out"])
    value = _run(source, pairing, open_session(source.model, source.file), _draw(pairing)[:, 0], None)[pairing.output]
    axes = [axis for axis, size in enumerate(value.shape) if size == _KEYS]
    if len(axes) > 1:
        axes = [1 if len(value.shape) == 3 and pairing.data_dims[0] == 1 else 0]
    if not axes:
        raise source.error(f"the output {source.quoted(pairing.output)} does not have one row for each key")
    result = GraphOutput(pairing.output, axes[0], None, value.size // _KEYS)
    score = Score.choose(source, result, value, column)
    add_outputs(source, model, pairing.output, (axes[0], value.ndim), score)
    return StepGraph(model, state, result, str(score), is_probability(source, pairing.output))


def _batch_of(source: SourceGraph, name: str) -> int | None:
    """The fixed batch size of an input, None where it is dynamic."""
    dims = source.dims(name)
    if name == source.inputs[0]:
        free = [size for size in dims[:-1] if size is None]
        return None if free else dims[0]
    return dims[1] if len(dims) == 3 else dims[0]


def _draw(pairing: StatePairing) -> Floats:
    return np.random.default_rng(5).standard_normal((_KEYS, _EVENTS, pairing.features), dtype=np.float32)


def _run(
    source: SourceGraph, pairing: StatePairing, opened: ort.InferenceSession, x: Floats, states: dict[str, Array] | None
) -> dict[str, Array]:
    """The outputs of one step of the original for x [N, F]; `states` by input name, None: zeros."""
    feed = {pairing.data: x.reshape([size or len(x) for size in pairing.data_dims])}
    for name, _, dims in pairing.states:
        shape = [dims[0] or 1, len(x), int(dims[-1] or 0)] if len(dims) == 3 else [len(x), int(dims[-1] or 0)]
        feed[name] = np.zeros(shape, np.float32) if states is None else states[name]
    names = list(dict.fromkeys([pairing.output, *(output for _, output, _ in pairing.states)]))
    return run(opened, names, feed, source.file)


def check_wrapped_states(source: SourceGraph, pairing: StatePairing, step: StepGraph) -> EquivalenceReport:
    """Compares the step with the original, which is fed its own states. Raises CannotServe where they differ."""
    x = _draw(pairing)
    runner = StepRunner(step.model, np.zeros(step.state.size, np.float32), source.file)
    predictions, _ = runner.run(x)
    opened, states, gap = open_session(source.model, source.file), None, 0.0
    for event in range(_EVENTS):
        out = _run(source, pairing, opened, x[:, event], states)
        states = {name: out[output] for name, output, _ in pairing.states}
        gap = largest(gap, difference(predictions[:, event], step.output.rows(out[pairing.output])[:, 0]))
    if not gap <= TOLERANCE:  # also true for NaN
        raise source.error(f"the step with one state row differs from the original by up to {gap:.3g}")
    without_past, _ = runner.run(x[:, -1:])
    depends_on_past = difference(without_past[:, 0], predictions[:, -1]) > TOLERANCE
    return EquivalenceReport(
        lengths=(_EVENTS,),
        every_position=True,
        sequences=_KEYS,
        output_difference=gap,
        state_difference=0.0,
        depends_on_past=depends_on_past,
    )
