"""A foreign graph that is a step already (one event and its states in, the next states out) gets our one state row.

Nothing of the graph is changed, only what is fed to it. Which output is the next value of which input is found by
shape and, where two have the same, by the first letter of their names (h, c): a guess is refused, not made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from lstmstream.card import StatePart, StateSpec
from lstmstream.onnx_wire import FLOAT
from lstmstream.train.foreign.graph import Array, Foreign, copy_of, run, session
from lstmstream.train.foreign.layout import Floats
from lstmstream.train.foreign.proof import TOLERANCE, Proof, Walker, difference, largest
from lstmstream.train.foreign.rewrite import (
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

_KEYS, _EVENTS = 3, 9


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which input is the event and which output follows which state."""

    data: str
    data_dims: tuple[int | None, ...]
    states: tuple[tuple[str, str, tuple[int | None, ...]], ...]  # input, output, dims of the input
    output: str

    @property
    def features(self) -> int:
        """F."""
        return int(self.data_dims[-1] or 0)

    def part(self, dims: tuple[int | None, ...]) -> tuple[int, ...]:
        """Shape of a state in the row: [H], or [L, H] of several layers."""
        sizes = [int(dims[0] or 1), int(dims[-1] or 0)] if len(dims) == 3 else [int(dims[-1] or 0)]
        return tuple(sizes[-1:] if sizes[0] == 1 and len(sizes) == 2 else sizes)


def find_pairing(foreign: Foreign, wanted: str | None) -> Pairing | None:
    """How the graph is a step; None where it is not one. Raises CannotServe where it is one and cannot be told how."""
    ranks = {name: len(foreign.dims(name)) for name in foreign.inputs}
    if len(ranks) < 2 or any(foreign.element(name) != FLOAT for name in ranks):
        return None
    data = foreign.inputs[0]
    dims = foreign.dims(data)
    if not (len(dims) == 2 or (len(dims) == 3 and 1 in dims[:2])) or not dims[-1]:
        return None
    outputs = [name for name in foreign.outputs if name != wanted] if wanted else list(foreign.outputs)
    pairs, taken = [], set()
    for name in foreign.inputs[1:]:
        mine = foreign.dims(name)
        alike = [other for other in outputs if _alike(foreign.dims(other), mine)]
        rivals = [other for other in foreign.inputs[1:] if other != name and _alike(foreign.dims(other), mine)]
        if not alike:
            return None
        if len(alike) > 1 or rivals:
            alike = [other for other in alike if other.lower()[:1] == name.lower()[:1]]
        if len(alike) != 1 or alike[0] in taken or not mine[-1]:
            raise foreign.refuse(
                f"it is a step already, and it cannot be told which output is the next value of {foreign.shown(name)};"
                " name inputs and outputs by the same first letter (h, c -> h_next, c_next)"
            )
        pairs.append((name, alike[0], mine))
        taken.add(alike[0])
    answer = wanted or next((name for name in outputs if name not in taken), pairs[0][1])
    return Pairing(data, dims, tuple(pairs), answer)


def _alike(one: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    """The same state shape: an output's inner sizes may be undeclared."""
    return len(one) == len(other) and all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


def wrap(foreign: Foreign, pairing: Pairing, *, missing: Missing, column: int | None) -> Step:
    """Puts the state row around the graph. Raises CannotServe."""
    sizes = [size for name in foreign.inputs for size in [_batch_of(foreign, name)] if size not in {None, 1}]
    if sizes or any(_batch_of(foreign, name) == 1 for name in foreign.inputs):
        raise foreign.refuse("its batch is fixed; export the step with a dynamic batch axis")
    model = copy_of(foreign.model)
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
    graph.input.extend([declared("x", pairing.features), declared("state", offset)])
    filled, before = fill_missing(graph, missing)
    shape_x = [size or -1 for size in pairing.data_dims]
    before.append(
        helper.make_node(
            "Reshape", [filled, weight(graph, "x_shape", np.array(shape_x))], [pairing.data], name="x_step"
        )
    )
    after: list[onnx.NodeProto] = []
    rows = []
    for part, (name, output, dims) in zip(parts, pairing.states, strict=True):
        width = int(np.prod(part.shape))
        columns = weight(graph, f"{name} columns", np.arange(part.offset, part.offset + width))
        before.append(helper.make_node("Gather", ["state", columns], [f"{name} row"], name=f"{name} row", axis=1))
        inner = weight(
            graph, f"{name} shape", np.array([-1, dims[0] or 1, dims[-1]] if len(dims) == 3 else [-1, width])
        )
        shaped = f"{name} layers" if len(dims) == 3 else name
        before.append(helper.make_node("Reshape", [f"{name} row", inner], [shaped], name=shaped))
        last = output
        if len(dims) == 3:
            before.append(helper.make_node("Transpose", [shaped], [name], name=f"{name} in", perm=[1, 0, 2]))
            last = f"{output} by key"
            after.append(helper.make_node("Transpose", [output], [last], name=last, perm=[1, 0, 2]))
        flat = weight(graph, f"{output} width", np.array([-1, width]))
        after.append(helper.make_node("Reshape", [last, flat], [f"{output} row"], name=f"{output} row"))
        rows.append(f"{output} row")
    after.append(helper.make_node("Concat", rows, ["state_out"], name="state_out", axis=1))
    nodes = [copy_of(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*before, *nodes, *after])
    only_outputs(graph, [pairing.output, "state_out"])
    value = _run(foreign, pairing, session(foreign.model, foreign.source), _draw(pairing)[:, 0], None)[pairing.output]
    axes = [axis for axis, size in enumerate(value.shape) if size == _KEYS]
    if len(axes) > 1:
        axes = [1 if len(value.shape) == 3 and pairing.data_dims[0] == 1 else 0]
    if not axes:
        raise foreign.refuse(f"the output {foreign.shown(pairing.output)} has no row for each key")
    answer = Answer(pairing.output, axes[0], None, value.size // _KEYS)
    score = Score.choose(foreign, answer, value, column)
    finish(foreign, model, pairing.output, (axes[0], value.ndim), score)
    return Step(model, state, answer, str(score), is_probability(foreign, pairing.output))


def _batch_of(foreign: Foreign, name: str) -> int | None:
    dims = foreign.dims(name)
    if name == foreign.inputs[0]:
        free = [size for size in dims[:-1] if size is None]
        return None if free else dims[0]
    return dims[1] if len(dims) == 3 else dims[0]


def _draw(pairing: Pairing) -> Floats:
    return np.random.default_rng(5).standard_normal((_KEYS, _EVENTS, pairing.features), dtype=np.float32)


def _run(
    foreign: Foreign, pairing: Pairing, opened: ort.InferenceSession, x: Floats, states: dict[str, Array] | None
) -> dict[str, Array]:
    """One step of the original for x [N, F]; `states` by input name, zeros at first."""
    feed = {pairing.data: x.reshape([size or len(x) for size in pairing.data_dims])}
    for name, _, dims in pairing.states:
        shape = [dims[0] or 1, len(x), int(dims[-1] or 0)] if len(dims) == 3 else [len(x), int(dims[-1] or 0)]
        feed[name] = np.zeros(shape, np.float32) if states is None else states[name]
    names = list(dict.fromkeys([pairing.output, *(output for _, output, _ in pairing.states)]))
    return run(opened, names, feed, foreign.source)


def prove_wrap(foreign: Foreign, pairing: Pairing, step: Step) -> Proof:
    """Compares with the original, its states handed on by hand. Raises CannotServe where they differ."""
    x = _draw(pairing)
    walker = Walker(step.model, np.zeros(step.state.size, np.float32), foreign.source)
    given, _ = walker.walk(x)
    opened, states, gap = session(foreign.model, foreign.source), None, 0.0
    for event in range(_EVENTS):
        out = _run(foreign, pairing, opened, x[:, event], states)
        states = {name: out[output] for name, output, _ in pairing.states}
        gap = largest(gap, difference(given[:, event], step.answer.rows(out[pairing.output])[:, 0]))
    if not gap <= TOLERANCE:  # NaN too
        raise foreign.refuse(f"the step with our state row differs from the original by up to {gap:.3g}")
    forgetful, _ = walker.walk(x[:, -1:])
    remembers = difference(forgetful[:, 0], given[:, -1]) > TOLERANCE
    return Proof((_EVENTS,), every_position=True, sequences=_KEYS, answers=gap, memories=0.0, remembers=remembers)
