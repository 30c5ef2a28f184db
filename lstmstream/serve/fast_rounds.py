"""All rounds of a batch in which every observation moves its key's state: the usual case, in few array operations.

Where one is late and may not move it, or an output is not finite, or a key has failed before, the batch is done by
`Scorer._run_round` instead, which is the meaning of a state. Both give the same bits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from lstmstream.records import Floats, Ints, Observations
from lstmstream.serve.state import BatchStates
from lstmstream.serve.step_model import StepInput, StepModel

_NEVER = np.iinfo(np.int64).min  # in place of the last timestamp of a key without events


@dataclass(slots=True)
class MovedStates:
    """What M observations made of the states of K slots; arrays over observations are in the order of the rounds."""

    rows: Floats  # [K, S]
    last_timestamp: Ints  # [K]
    slot_steps: Ints  # [K]
    last_offset: Ints  # [K]
    score: Floats  # [M]
    prediction: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None  # [M, P]
    steps: Ints  # [M]
    late_events: int
    expired: int


def run_rounds(
    model: StepModel,
    observations: Observations,
    states: BatchStates,
    initial: Floats,
    *,
    ttl_ms: int | None,
    late_moves: bool,
) -> MovedStates | None:
    """None where not every observation moves its state; `states` is left as it is.

    `late_moves`: whether an observation that is older than its key's newest one moves the state (`input.late: apply`).
    """
    order, bounds = states.by_round, states.round_bounds.tolist()
    if len(bounds) < 2 or states.failures.any():
        return None
    timestamps = observations.timestamps[order]
    previous, last = _previous_timestamps(timestamps, states, bounds)
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

    x, categories = observations.x[order], observations.categories[order]
    score = np.empty(len(order), np.float32)
    prediction: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None = None
    rows = states.rows
    for start, end in itertools.pairwise(bounds):
        state = rows[: end - start]
        if expired is not None and (away := expired[start:end]).any():
            state = np.where(away[:, None], initial, state)
        out = model.step(
            StepInput(x[start:end], categories[start:end], timestamps[start:end], elapsed[start:end], state)
        )
        if not _finite(out.state):
            return None
        score[start:end] = out.score
        if out.prediction is not None:
            if prediction is None:
                prediction = np.empty((len(order), out.prediction.shape[1]), np.float32)
            prediction[start:end] = out.prediction
        if start == 0:
            rows = out.state  # of every slot
        else:
            rows[: end - start] = out.state
    if not _finite(score) or (prediction is not None and not _finite(prediction)):
        return None

    # The last observation of a slot is in the last round that is larger than the slot's number.
    sizes = np.diff(states.round_bounds)
    rounds_of_slot = len(sizes) - np.searchsorted(sizes[::-1], np.arange(sizes[0]), side="right")
    last_at = states.round_bounds[rounds_of_slot - 1] + np.arange(sizes[0])
    steps = _steps(states, bounds, expired)
    return MovedStates(
        rows=rows,
        last_timestamp=last,
        slot_steps=steps[last_at],
        last_offset=observations.offsets[order[last_at]],
        score=score,
        prediction=prediction,
        steps=steps,
        late_events=late_events,
        expired=0 if expired is None else int(np.count_nonzero(expired)),
    )


def _previous_timestamps(timestamps: Ints, states: BatchStates, bounds: list[int]) -> tuple[Ints, Ints]:
    """[M] The newest timestamp of each observation's key before it, or _NEVER; [K] the newest of each slot after it."""
    previous = np.empty_like(timestamps)
    last = np.where(states.steps > 0, states.last_timestamp, _NEVER)
    for start, end in itertools.pairwise(bounds):
        newest = last[: end - start]
        previous[start:end] = newest
        np.maximum(newest, timestamps[start:end], out=newest)
    return previous, last


def _steps(states: BatchStates, bounds: list[int], expired: np.ndarray[tuple[int], np.dtype[np.bool_]] | None) -> Ints:
    """[M] Observations that the key's state has seen, each included."""
    steps = np.empty(bounds[-1], np.int64)
    slot_steps = states.steps.copy()
    for start, end in itertools.pairwise(bounds):
        now = slot_steps[: end - start]
        if expired is not None:
            now[expired[start:end]] = 0
        now += 1
        steps[start:end] = now
    return steps


def _finite(values: Floats) -> bool:
    """Whether the sum is finite, which it is not if one of the values is not. One that overflows is no harm."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(values, axis=None)))
