"""Moves state rows through the rounds of a batch on the device that the model runs on (see Mover in fast_rounds.py).

Events go to the device once for a batch, and scores and predictions come back once. A round is one call: it reads its
rows from the slab and writes them back. Whether all states are finite is looked at after the last round.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmstream.model.graph_parts import STATE, STATE_OUT, GraphPart, GraphParts, moves_state
from lstmstream.model.slab_graph import FINITE, FRESH, ROWS, SLAB, SLAB_OUT, step_content
from lstmstream.records import Bools, Floats, Observations
from lstmstream.serve.device_memory import Array, DeviceArray, DeviceMemory, DeviceSession
from lstmstream.serve.device_slab import DeviceBatchRows, DeviceSlab
from lstmstream.serve.fast_rounds import HostMover, Mover
from lstmstream.serve.model_checks import CHECKED_ROWS, probe, same_values
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.state import BatchStates
from lstmstream.serve.step_model import StepInput

if TYPE_CHECKING:
    from lstmstream.serve.step import OnnxStep

CHECKED_KEYS = 17

_NOTHING = GraphPart([], [], [])


class NotOnDeviceError(Exception):
    """The state rows are kept on the host; the argument says why."""


class DeviceMover:
    """A Mover with a slab of its own."""

    def __init__(self, step: OnnxStep) -> None:
        """Raises NotOnDeviceError where this would not give the results of the host's rows."""
        initial = step.card.state.initial
        memory = DeviceMemory(step.device)
        if step.split is None:
            content, parts, self._axes, self._samples = _whole(step)
            before = after = None
        else:
            split = step.split
            content, parts, self._axes, self._samples = split.step_content, split.parts, split.axes, split.samples
            before, after = split.before, split.after
        self._parts = parts
        try:
            self.backend = DeviceSlab(len(initial), memory, step.open_session)
            self._before = None if before is None else DeviceSession(before, memory)
            self._step = DeviceSession(step.open_session(step_content(content, initial)), memory)
            self._after = None if after is None else DeviceSession(after, memory)
            same = self._is_as_on_the_host(step)
        except Exception as error:  # whatever it is, the host's rows work
            raise NotOnDeviceError(f"{type(error).__name__}: {error}") from error
        if not same:
            raise NotOnDeviceError("its results are not those of the host's rows")

    def move(
        self, states: BatchStates, events: StepInput, expired: Bools | None
    ) -> tuple[Floats, Floats | None] | None:
        """See Mover."""
        rows = states.stored
        assert isinstance(rows, DeviceBatchRows), rows
        memory, slab, count = self.backend.memory, self.backend.array, len(events.x)
        wanted = {name for part in self._parts for name in part.inputs} & set(StepInput._fields) - {STATE}
        values = {name: memory.upload(getattr(events, name)) for name in wanted}
        values |= _run(self._before, self._parts.before, values)
        hidden = {name: self._room(name, count) for name in self._parts.step.outputs if name != STATE_OUT}
        finite = memory.empty((count, 1), np.dtype(np.float32))
        by_round = {name: values[name] for name in self._parts.step.inputs if name != STATE}
        # A key starts with the initial row where it has no previous event that counts: then there is no time since it.
        fresh = memory.upload(np.isnan(events.elapsed)[:, np.newaxis])
        for start, stop in pairwise(states.round_bounds.tolist()):
            inputs = {name: array.part(self._axes[name], start, stop) for name, array in by_round.items()}
            inputs |= {SLAB: slab, ROWS: rows.places.part(0, 0, stop - start), FRESH: fresh.part(0, start, stop)}
            outputs = {name: array.part(self._axes[name], start, stop) for name, array in hidden.items()}
            outputs |= {SLAB_OUT: slab, FINITE: finite.part(0, start, stop)}
            self._step.run_into(inputs, outputs)
        if np.isnan(finite.numpy()).any():
            return None
        values |= hidden
        values |= _run(self._after, self._parts.after, values)
        prediction = values.get("prediction")
        return values["score"].numpy(), None if prediction is None else prediction.numpy()

    def _room(self, name: str, count: int) -> DeviceArray:
        """For a tensor of all events."""
        sample, axis = self._samples[name], self._axes[name]
        shape = (*sample.shape[:axis], count, *sample.shape[axis + 1 :])
        return self.backend.memory.empty(shape, sample.dtype)

    def _is_as_on_the_host(self, step: OnnxStep) -> bool:
        found, wanted = (_trial(step, mover) for mover in (self, HostMover(step)))
        return all(same_values(step, one, other) for one, other in zip(found, wanted, strict=True))


def _whole(step: OnnxStep) -> tuple[bytes, GraphParts, dict[str, int], dict[str, Array]]:
    """The graph in one part: content, parts, axes of the rows, and outputs of some rows."""
    content = step.model.content
    if not moves_state(content):
        raise NotOnDeviceError("the new state does not depend on the old one")
    out = step.step(probe(step.card, rows=3))
    samples: dict[str, Any] = {"score": out.score}
    if out.prediction is not None:
        samples["prediction"] = out.prediction
    parts = GraphParts(_NOTHING, GraphPart([], step.inputs, step.outputs), _NOTHING)
    return content, parts, dict.fromkeys([*step.inputs, *step.outputs], 0), samples


def _run(session: DeviceSession | None, part: GraphPart, values: dict[str, DeviceArray]) -> dict[str, DeviceArray]:
    return {} if session is None else session.run({name: values[name] for name in part.inputs})


def _trial(step: OnnxStep, mover: Mover) -> list[Floats]:
    """Scores, predictions and states of a few batches with several events of a key, new keys and expired states."""
    scorer = Scorer(step, Meaning(60_000, "apply", None), mover=mover)
    slab = scorer.states.open(0)
    given = probe(step.card, rows=CHECKED_ROWS)
    found = []
    for start, count in ((0, 1), (1, 8), (9, CHECKED_ROWS - 9)):
        rows, numbers = given.rows(start, count), np.arange(start, start + count)
        keys: list[bytes | None] = [b"%d" % (number * number % CHECKED_KEYS) for number in numbers.tolist()]
        times = numbers * 7_000
        batch = Observations(numbers, numbers * 0, numbers, keys, times, rows.x, rows.categories)
        predictions = scorer.score(batch).predictions
        scorer.commit()
        found.append(predictions.score)
        if predictions.prediction is not None:
            found.append(predictions.prediction)
        found.append(slab.rows.read(np.arange(len(slab.keys))))
    scorer.states.close(0)
    return found
