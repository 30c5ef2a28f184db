"""Moves state rows through the rounds of a batch on the device that the model runs on (see Mover in fast_rounds.py).

Events go to the device once for a batch, and scores and predictions come back once. A round is one call: it reads its
rows from the slab and writes them back. Whether all states are finite is looked at after the last round.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmstream.model.graph_parts import STATE, STATE_OUT, GraphPart, GraphParts, moves_state
from lstmstream.model.sequence_graph import of_every_event
from lstmstream.model.slab_graph import (
    EVENTS,
    FINITE,
    FRESH,
    ROWS,
    SLAB,
    SLAB_OUT,
    of_batch,
    of_batch_out,
    sequence_step_content,
    step_content,
)
from lstmstream.records import Bools, Floats, Ints, Observations
from lstmstream.serve.device_memory import Array, DeviceArray, DeviceMemory, DeviceSession
from lstmstream.serve.device_slab import DeviceBatchRows, DeviceSlab
from lstmstream.serve.fast_rounds import HostMover, Mover, events_of_hot_keys, first_round_of_hot_keys
from lstmstream.serve.model_checks import CHECKED_ROWS, probe, same_values
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.state import BatchStates
from lstmstream.serve.step_model import StepInput

if TYPE_CHECKING:
    from lstmstream.serve.step import OnnxStep

# First row, number of events, and of keys: the last two batches are of hot keys, that are new and that are not.
CHECKED_TRIALS = ((0, 1, 17), (1, 8, 17), (9, 24, 17), (33, 18, 3), (51, CHECKED_ROWS - 51, 3))

log = logging.getLogger(__name__)

_NOTHING = GraphPart([], [], [])


class NotOnDeviceError(Exception):
    """The state rows are kept on the host; the argument says why."""


class DeviceMover:
    """A Mover with a slab of its own."""

    def __init__(self, step: OnnxStep) -> None:
        """Raises NotOnDeviceError where this would not give the results of the host's rows."""
        initial = step.card.state.initial
        memory = DeviceMemory(step.device)
        sequence = before = after = None
        if step.split is None:
            content, self.parts, self.axes, self._samples = _whole(step)
        else:
            split = step.split
            content, self.parts, self.axes, self._samples = split.step_content, split.parts, split.axes, split.samples
            before, after, sequence = split.before, split.after, split.sequence_content
        try:
            self.backend = DeviceSlab(len(initial), memory, step.open_session)
            self._before = None if before is None else DeviceSession(before, memory)
            self._after = None if after is None else DeviceSession(after, memory)
            self.step = DeviceSession(step.open_session(step_content(content, initial)), memory)
            self.sequence: DeviceSession | None = None
            if sequence is not None:
                wrapped = sequence_step_content(sequence, initial)
                self.sequence = DeviceSession(step.open_session(wrapped), memory)
            same = self._is_as_on_the_host(step)
            if not same and self.sequence is not None:
                log.debug("the events of one key are stepped through one by one: as a sequence, they differ")
                self.sequence = None
                same = self._is_as_on_the_host(step)
        except Exception as error:  # whatever it is, the host's rows work
            raise NotOnDeviceError(f"{type(error).__name__}: {error}") from error
        if not same:
            raise NotOnDeviceError("its results are not those of the host's rows")

    def move(
        self, states: BatchStates, events: StepInput, expired: Bools | None
    ) -> tuple[Floats, Floats | None] | None:
        """See Mover."""
        bounds = states.round_bounds
        first_of_hot = None if self.sequence is None else first_round_of_hot_keys(bounds, expired)
        hot = [] if first_of_hot is None else events_of_hot_keys(bounds, first_of_hot)
        in_rounds = bounds if first_of_hot is None else bounds[: first_of_hot + 1]
        rounds = _DeviceRounds(self, states, events, int(in_rounds[-1]) + len(hot))
        for start, stop in pairwise(in_rounds.tolist()):
            rounds.step(start, stop)
        for slot, of_slot in enumerate(hot):
            rounds.step_key(slot, of_slot)
        if not rounds.is_finite():
            return None
        values = rounds.values | rounds.hidden
        values |= _run(self._after, self.parts.after, values)
        prediction = values.get("prediction")
        return values["score"].numpy(), None if prediction is None else prediction.numpy()

    def upload(self, events: StepInput) -> dict[str, DeviceArray]:
        """What the graphs take of the events, and the features of all of them."""
        wanted = {name for part in self.parts for name in part.inputs} & set(StepInput._fields) - {STATE}
        values = {name: self.backend.memory.upload(getattr(events, name)) for name in wanted}
        return values | _run(self._before, self.parts.before, values)

    def hidden(self, count: int) -> dict[str, DeviceArray]:
        """Memory for what the rounds give of M = `count` events, beside the state."""
        arrays = {}
        for name in self.parts.step.outputs:
            if name != STATE_OUT:
                sample, axis = self._samples[name], self.axes[name]
                shape = (*sample.shape[:axis], count, *sample.shape[axis + 1 :])
                arrays[name] = self.backend.memory.empty(shape, sample.dtype)
        return arrays

    def _is_as_on_the_host(self, step: OnnxStep) -> bool:
        found, wanted = (_trial(step, mover) for mover in (self, HostMover(step)))
        return all(same_values(step, one, other) for one, other in zip(found, wanted, strict=True))


class _DeviceRounds:
    """One batch: its events and rows on the device."""

    def __init__(self, mover: DeviceMover, states: BatchStates, events: StepInput, moves: int) -> None:
        """`moves`: rows that all calls together write."""
        assert isinstance(states.stored, DeviceBatchRows), states.stored
        self._mover = mover
        self._memory = mover.backend.memory
        self._slab = mover.backend.array
        self._places = states.stored.places
        self.values = mover.upload(events)
        self.hidden = mover.hidden(len(events.x))
        # A key starts with the initial row where it has no previous event that counts: then there is no time since it.
        self._fresh = self._memory.upload(np.isnan(events.elapsed)[:, np.newaxis])
        self._finite = self._memory.empty((moves, 1), np.dtype(np.float32))
        self._moved = 0

    def step(self, start: int, stop: int) -> None:
        """The events start..stop, each of another key: of the first slots."""
        axes, taken = self._mover.axes, self._mover.parts.step.inputs
        inputs = {name: self.values[name].part(axes[name], start, stop) for name in taken if name != STATE}
        outputs = {name: array.part(axes[name], start, stop) for name, array in self.hidden.items()}
        self._run(self._mover.step, 0, stop - start, start, inputs, outputs)

    def step_key(self, slot: int, events: Ints) -> None:
        """The events of one slot, one after the other."""
        assert self._mover.sequence is not None
        taken = self._mover.parts.step.inputs
        inputs = {of_batch(name): self.values[name].without_axis(0) for name in taken if name != STATE}
        outputs = {}
        for name, array in self.hidden.items():
            output = of_every_event(name)
            inputs[of_batch(output)] = outputs[of_batch_out(output)] = array.without_axis(0)
        inputs[EVENTS] = self._memory.upload(events[:, np.newaxis])
        self._run(self._mover.sequence, slot, slot + 1, int(events[0]), inputs, outputs)

    def is_finite(self) -> bool:
        """Whether all states were, after all moves."""
        return not np.isnan(self._finite.numpy()).any()

    def _run(
        self,
        session: DeviceSession,
        slot: int,
        slot_end: int,
        event: int,
        inputs: dict[str, DeviceArray],
        outputs: dict[str, DeviceArray],
    ) -> None:
        """Move the slots, in place; `event` is the first one."""
        count = slot_end - slot
        finite = self._finite.part(0, self._moved, self._moved + count)
        self._moved += count
        rows, fresh = self._places.part(0, slot, slot_end), self._fresh.part(0, event, event + count)
        session.run_into(
            inputs | {SLAB: self._slab, ROWS: rows, FRESH: fresh},
            outputs | {SLAB_OUT: self._slab, FINITE: finite},
        )


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
    for start, count, distinct in CHECKED_TRIALS:
        rows, numbers = given.rows(start, count), np.arange(start, start + count)
        keys: list[bytes | None] = [b"%d of %d" % (number * number % distinct, distinct) for number in numbers.tolist()]
        times = numbers * 7_000
        batch = Observations(numbers, numbers * 0, numbers, keys, times, rows.x, rows.categories)
        predictions = scorer.score(batch).predictions
        scorer.commit()
        found.append(predictions.score)
        if predictions.prediction is not None:
            found.append(predictions.prediction)
        found.append(slab.rows.read(np.arange(slab.index.used_rows)))
    scorer.states.close(0)
    return found
