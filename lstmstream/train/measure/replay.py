"""A model file over the whole history of every key, as the daemon would have answered it, only faster.

The meaning is the engine's for events in order and without `ttl`: the same step file, the same inputs, the same rule
for an answer that is not finite, so the same bits. Reads no data and judges nothing.
"""

from __future__ import annotations

import numpy as np

from lstmstream.serve.records import Floats, Ints
from lstmstream.serve.step import StepInput, StepModel
from lstmstream.train.history.data import Events

BATCH_KEYS = 4096


def replay(step: StepModel, events: Events, *, batch_keys: int = BATCH_KEYS) -> tuple[Floats, Floats | None]:
    """Score [N] and prediction [N, P] (None where the model has none) of every event, in the order of `events`.

    An answer that is not finite is NaN in all its numbers, and the key stays as it was before that event.
    """
    lengths = np.diff(events.starts)
    by_length = np.argsort(-lengths, kind="stable")
    score = np.full(len(events.timestamp), np.nan, np.float32)
    prediction: Floats | None = None
    for start in range(0, len(by_length), batch_keys):
        keys = by_length[start : start + batch_keys]
        prediction = _replay_keys(step, events, events.starts[keys], lengths[keys], score, prediction)
    return score, prediction


def _replay_keys(
    step: StepModel, events: Events, first: Ints, lengths: Ints, score: Floats, prediction: Floats | None
) -> Floats | None:
    """Keys by falling length: round r, each key's r-th event, is a prefix of them. Fills `score` and `prediction`."""
    state = np.tile(np.array(step.card.state.initial, np.float32), (len(first), 1))
    last = np.zeros(len(first), np.int64)
    seen = np.zeros(len(first), np.bool_)
    count = len(first)
    for turn in range(int(lengths[0]) if len(lengths) else 0):
        while lengths[count - 1] <= turn:
            count -= 1
        rows = first[:count] + turn
        timestamp = events.timestamp[rows]
        # in float64, then rounded, as the engine does it
        elapsed = np.where(seen[:count], np.maximum(0, timestamp - last[:count]) / 1000, np.nan).astype(np.float32)
        out = step.step(StepInput(events.x[rows], events.codes[rows], timestamp, elapsed, state[:count]))
        if out.prediction is not None and prediction is None:
            prediction = np.full((len(score), out.prediction.shape[1]), np.nan, np.float32)
        finite = out.finite()
        kept = slice(None) if finite.all() else np.flatnonzero(finite)
        score[rows[kept]] = out.score[kept]
        if prediction is not None and out.prediction is not None:
            prediction[rows[kept]] = out.prediction[kept]
        state[:count][kept] = out.state[kept]
        last[:count][kept] = timestamp[kept]
        seen[:count][kept] = True
    return prediction
