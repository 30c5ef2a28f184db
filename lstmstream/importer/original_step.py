"""Runs a graph that is a step already as it came, carrying its own states, and compares the converted step with it."""

from __future__ import annotations

import numpy as np

from lstmstream.importer.equivalence import TOLERANCE, EquivalenceReport, StepRunner, difference, largest
from lstmstream.importer.graph import Array, SourceGraph, open_session, run
from lstmstream.importer.layout import Floats
from lstmstream.importer.state_pairs import StatePair, StatePairing
from lstmstream.importer.step_form import StepGraph
from lstmstream.importer.step_plans import Plan, initial_row

EVENTS = 300  # of each random sequence
_KEYS = 3


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
            row = np.array(initial_row(self._source, port, pair), np.float32)
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
        return self._key_axis(self._step(x, feed)[self._pairing.output].shape)

    def _key_axis(self, shape: tuple[int, ...]) -> int:
        """The axis of the keys of a prediction of this shape. Raises CannotServe where there is none."""
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
        axis = self._key_axis(value.shape)
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
