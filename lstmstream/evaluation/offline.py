"""Scores the whole history of every key with a model file: the daemon's predictions, computed faster.

The meaning is the engine's for events in order and without `ttl`: the same step model, the same inputs and the same
rule for outputs that are not finite, so that the results are equal bit by bit. Reads no data and computes no metric.
"""

from __future__ import annotations

import numpy as np

from lstmstream.history.events import Events
from lstmstream.records import Floats, Ints
from lstmstream.serve.step_model import StepInput, StepModel

BATCH_KEYS = 4096


def score_events(step: StepModel, events: Events, *, batch_keys: int = BATCH_KEYS) -> tuple[Floats, Floats | None]:
    """Score [N] and prediction [N, P] (None where the model has none) of every event, in the order of `events`.

    Where any output is not finite, all outputs of that event are NaN and the key's state stays as it was.
    """
    lengths = np.diff(events.starts)
    by_length = np.argsort(-lengths, kind="stable")
    score = np.full(len(events.timestamp), np.nan, np.float32)
    prediction: Floats | None = None
    for start in range(0, len(by_length), batch_keys):
        keys = by_length[start : start + batch_keys]
        prediction = _score_keys(step, events, events.starts[keys], lengths[keys], score, prediction)
    return score, prediction


def _score_keys(
    step: StepModel, events: Events, first: Ints, lengths: Ints, score: Floats, prediction: Floats | None
) -> Floats | None:
    """Scores K keys, by falling length: round r, the keys' r-th events, is a prefix. Fills `score` and `prediction`.

    `first` [K] are the keys' first rows and `lengths` [K] their numbers of events.
    """
    state = np.tile(np.array(step.card.state.initial, np.float32), (len(first), 1))
    last = np.zeros(len(first), np.int64)  # the latest timestamp of each key
    seen = np.zeros(len(first), np.bool_)  # whether the key has a previous event
    count = len(first)
    for number in range(int(lengths[0]) if len(lengths) else 0):
        while lengths[count - 1] <= number:
            count -= 1
        rows = first[:count] + number
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
