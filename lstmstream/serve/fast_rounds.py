"""All rounds of a batch in which every observation moves its key's state: the usual case, in few array operations.

Where one is late and may not move it, or an output is not finite, or a key has failed before, the batch is done by
`Scorer._run_round` instead, which is the meaning of a state. Both give the same bits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import isfinite
from typing import Protocol, runtime_checkable

import numpy as np

from lstmstream.records import Bools, Floats, Ints, Observations
from lstmstream.serve.state import BatchStates
from lstmstream.serve.state_rows import HostBackend, StateBackend
from lstmstream.serve.step_model import Rounds, StepInput, StepModel, rounds_of

HOT_KEYS = 8  # in the rounds that no more keys are left in, all events of a key are one call
HOT_ROUNDS = 8  # where there are so many of these rounds
_NEVER = np.iinfo(np.int64).min  # in place of the last timestamp of a key without events


class Mover(Protocol):
    """Moves the state rows of a batch through its rounds, where they are."""

    @property
    def backend(self) -> StateBackend:
        """Where they are."""

    def move(
        self, states: BatchStates, events: StepInput, expired: Bools | None
    ) -> tuple[Floats, Floats | None] | None:
        """Scores [M] and predictions [M, P] of M events in the order of the rounds; None where a state is not finite.

        `expired` [M] marks those whose key starts with the initial row. `events.state` has no rows.
        """


@runtime_checkable
class DeviceModel(StepModel, Protocol):
    """A model that may move state rows where it runs."""

    def device_mover(self) -> Mover | None:
        """A new place for state rows, and what moves them there; None: they are kept on the host."""


@dataclass(slots=True)
class MovedStates:
    """What M observations made of the states of K slots; arrays over observations are in the order of the rounds."""

    last_timestamp: Ints  # [K]
    slot_steps: Ints  # [K]
    last_offset: Ints  # [K]
    score: Floats  # [M]
    prediction: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None  # [M, P]
    steps: Ints  # [M]
    late_events: int
    expired: int


def run_rounds(
    mover: Mover,
    observations: Observations,
    states: BatchStates,
    *,
    ttl_ms: int | None,
    late_moves: bool,
) -> MovedStates | None:
    """The rows of `states` are moved. None where not every observation moves its state; `states` is then as it was.

    `late_moves`: whether an observation that is older than its key's newest one moves the state (`input.late: apply`).
    """
    if len(states.round_bounds) < 2 or states.failures.any():
        return None
    order = states.by_round
    sizes = np.diff(states.round_bounds)
    round_numbers = np.repeat(np.arange(len(sizes)), sizes)
    slots = np.arange(len(order)) - states.round_bounds[round_numbers]
    timestamps = observations.timestamps[order]
    previous, last = _previous_timestamps(timestamps, states, slots, round_numbers)
    seen = previous != _NEVER
    late = seen & (timestamps < previous)
    late_events = int(np.count_nonzero(late))
    if late_events and not late_moves:
        return None
    since_ms = np.where(seen, timestamps - np.where(seen, previous, 0), 0)
    elapsed = np.where(seen, np.maximum(0, since_ms) / 1000, np.nan).astype(np.float32)
    expired = None if ttl_ms is None else since_ms > ttl_ms
    if expired is not None and not expired.any():
        expired = None
    if expired is not None:
        elapsed[expired] = np.nan

    no_state = np.empty((0, len(states.initial)), np.float32)
    events = StepInput(observations.x[order], observations.categories[order], timestamps, elapsed, no_state)
    with np.errstate(over="ignore", invalid="ignore"):  # of sums
        outputs = mover.move(states, events, expired)
        if outputs is None or not all(_is_finite(values) for values in outputs if values is not None):
            states.restore_rows()
            return None
    score, prediction = outputs

    last_at = _last_of_slots(states)
    steps = _steps(states, slots, round_numbers, expired)
    return MovedStates(
        last_timestamp=last,
        slot_steps=steps[last_at],
        last_offset=observations.offsets[order[last_at]],
        score=score,
        prediction=prediction,
        steps=steps,
        late_events=late_events,
        expired=0 if expired is None else int(np.count_nonzero(expired)),
    )


class HostMover:
    """The Mover of rows that are copied out."""

    def __init__(self, model: StepModel) -> None:
        self.backend: StateBackend = HostBackend()
        self._model = model

    def move(
        self, states: BatchStates, events: StepInput, expired: Bools | None
    ) -> tuple[Floats, Floats | None] | None:
        """See Mover."""
        rounds = rounds_of(self._model, events)
        rows = _moved_rows(rounds, states, states.initial, expired)
        if rows is None:
            return None
        states.rows = rows
        return rounds.outputs()


class WatchingMover(HostMover):
    """Notes what the model met at some of the events."""

    def __init__(self, model: StepModel, watched: Bools) -> None:
        """`watched` [M], in the order of the rounds."""
        super().__init__(model)
        self._watched = watched
        self.met: StepInput  # at the watched events, in the order of the rounds, once all have moved

    def move(
        self, states: BatchStates, events: StepInput, expired: Bools | None
    ) -> tuple[Floats, Floats | None] | None:
        """See Mover."""
        rounds = _WatchedRounds(rounds_of(self._model, events), self._watched, len(states.initial))
        rows = _moved_rows(rounds, states, states.initial, expired)
        if rows is None:
            return None
        states.rows = rows
        at = np.flatnonzero(self._watched)
        self.met = StepInput(
            events.x[at], events.categories[at], events.timestamp[at], events.elapsed[at], rounds.states
        )
        return rounds.outputs()


class _WatchedRounds:
    """Rounds that keep the states which the watched events met."""

    def __init__(self, rounds: Rounds, watched: Bools, size: int) -> None:
        self._rounds = rounds
        self._watched = watched
        self._number = np.cumsum(watched) - 1  # of the watched events
        self.states: Floats = np.empty((np.count_nonzero(watched), size), np.float32)

    def step(self, start: int, stop: int, state: Floats) -> Floats:
        """See Rounds."""
        watched = np.flatnonzero(self._watched[start:stop])
        self.states[self._number[start + watched]] = state[watched]
        return self._rounds.step(start, stop, state)

    def step_key(self, events: Ints, state: Floats) -> Floats | None:
        """See Rounds: from one watched event to the next."""
        done = 0
        for stop in [*np.flatnonzero(self._watched[events]).tolist(), len(events)]:
            if stop > done:
                moved = self._rounds.step_key(events[done:stop], state)
                if moved is None:
                    return None
                state, done = moved, stop
            if stop < len(events):
                self.states[self._number[events[stop]]] = state[0]
        return state

    def outputs(self) -> tuple[Floats, Floats | None]:
        """See Rounds."""
        return self._rounds.outputs()


def _moved_rows(rounds: Rounds, states: BatchStates, initial: Floats, expired: Bools | None) -> Floats | None:
    """[K, S] The states after all rounds; None where one is not finite."""
    rows, bounds = states.stored.before(), states.round_bounds.tolist()
    first_of_hot = first_round_of_hot_keys(states.round_bounds, expired)
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        moved = _step_keys(rounds, states.round_bounds, number, rows) if number == first_of_hot else None
        last = moved is not None
        if moved is None:
            state = rows[: end - start]
            if expired is not None and (away := expired[start:end]).any():
                state = np.where(away[:, None], initial, state)
            moved = rounds.step(start, end, state)
        if not _is_finite(moved):
            return None
        if start == 0:
            rows = moved.copy() if np.may_share_memory(moved, rows) else moved  # of every slot
        else:
            rows[: end - start] = moved
        if last:
            break
    return rows


def first_round_of_hot_keys(bounds: Ints, expired: Bools | None) -> int | None:
    """The first of the rounds in which only a few hot keys are left; None where there are not many of these."""
    sizes = np.diff(bounds)
    first = int(np.searchsorted(-sizes, -HOT_KEYS))  # sizes descend
    if len(sizes) - first < HOT_ROUNDS or (expired is not None and expired[bounds[first] :].any()):
        return None
    return first


def _step_keys(rounds: Rounds, bounds: Ints, first: int, rows: Floats) -> Floats | None:
    """[n, S] The states of the n keys of round `first` after all rounds, one key after the other; None: in rounds."""
    moved = []
    for slot, events in enumerate(events_of_hot_keys(bounds, first)):
        state = rounds.step_key(events, rows[slot : slot + 1])
        if state is None:
            return None
        moved.append(state)
    return np.concatenate(moved)


def events_of_hot_keys(bounds: Ints, first: int) -> list[Ints]:
    """For each slot of round `first`, its events from there on, as numbers in the order of the rounds."""
    sizes = np.diff(bounds)
    # The rounds before `searchsorted` have this slot.
    return [bounds[first : int(np.searchsorted(-sizes, -slot))] + slot for slot in range(int(sizes[first]))]


def _previous_timestamps(timestamps: Ints, states: BatchStates, slots: Ints, rounds: Ints) -> tuple[Ints, Ints]:
    """[M] The newest timestamp of each observation's key before it, or _NEVER; [K] the newest of each slot after it."""
    bounds = states.round_bounds
    first = np.where(states.steps > 0, states.last_timestamp, _NEVER)
    later = slice(len(first), None)  # than the first round, which has an observation of each slot
    previous = np.concatenate([first, timestamps[bounds[rounds[later] - 1] + slots[later]]])
    if (timestamps >= previous).all():  # the newest is the one before
        return previous, timestamps[_last_of_slots(states)]
    last = first
    for start, end in itertools.pairwise(bounds.tolist()):
        newest = last[: end - start]
        previous[start:end] = newest
        np.maximum(newest, timestamps[start:end], out=newest)
    return previous, last


def _steps(states: BatchStates, slots: Ints, rounds: Ints, expired: Bools | None) -> Ints:
    """[M] Observations that the key's state has seen, each included."""
    if expired is None:
        return states.steps[slots] + rounds + 1
    steps = np.empty(len(slots), np.int64)
    slot_steps = states.steps.copy()
    for start, end in itertools.pairwise(states.round_bounds.tolist()):
        now = slot_steps[: end - start]
        now[expired[start:end]] = 0
        now += 1
        steps[start:end] = now
    return steps


def _last_of_slots(states: BatchStates) -> Ints:
    """[K] The last observation of a slot is in the last round that is larger than the slot's number."""
    sizes = np.diff(states.round_bounds)
    slots = np.arange(sizes[0])
    rounds_of_slot = len(sizes) - np.searchsorted(sizes[::-1], slots, side="right")
    return states.round_bounds[rounds_of_slot - 1] + slots


def _is_finite(values: Floats) -> bool:
    """Whether the sum is finite, which it is not if one of the values is not. One that overflows is no harm."""
    return isfinite(np.add.reduce(values, axis=None))
