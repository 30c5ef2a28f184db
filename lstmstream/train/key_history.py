"""Statistics of each key's earlier events: what the exported graph keeps in the state row, for training.

The formulas are those of export/key_history.py, in float32 as there. The statistics of all events are computed once,
in the order of each key's events; the inputs are made from them in each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lstmstream.history.events import Events
from lstmstream.records import Bools, Floats
from lstmstream.train.export import FeatureEncoder, History
from lstmstream.train.export.key_history import MAX_Z, PRIOR

_ONE, _PRIOR = np.float32(1), np.float32(PRIOR)
_MIN_SCALE = 1e-3  # of an input: one that hardly changes in the training split is not blown up


def history_pairs(windows_s: Sequence[Sequence[float]]) -> History | None:
    """The pairs of a number and a window, not yet scaled, from the windows of each number; None where there is none."""
    pairs = [(column, window) for column, own in enumerate(windows_s) for window in own]
    if not pairs:
        return None
    columns, windows = zip(*pairs, strict=True)
    return History(columns, windows, (0.0,) * 4 * len(pairs), (1.0,) * 4 * len(pairs))


def key_statistics(events: Events, history: History, scale: Callable[[Floats], Floats]) -> Floats:
    """[N, 3J] Count, mean and variance of the earlier events of each event's key, as aged at the event.

    `scale` makes the encoder's numbers [n, F] of raw ones. The array lies on disk if the events do.
    """
    count = len(history)
    columns = list(history.columns)
    out: Floats = _empty(events, 3 * count)
    windows = np.array(history.windows_s, np.float32)
    order = np.argsort(-events.lengths, kind="stable")  # longest first: each round is a prefix
    starts, lengths = events.starts[:-1][order], events.lengths[order]
    state = np.zeros((3, len(order), count), np.float32)  # count, mean, variance
    for step in range(int(lengths[0]) if len(lengths) else 0):
        keys = int(np.searchsorted(-lengths, -step, side="left"))  # those with more than `step` events
        rows = starts[:keys] + step
        number, mean, variance = state[:, :keys]
        if step:
            number *= np.exp(-(np.asarray(events.elapsed[rows])[:, np.newaxis] / windows))
        out[rows] = np.concatenate([number, mean, variance], axis=1)
        raw = np.asarray(events.x[rows])
        value = scale(raw)[:, columns]
        present = (~np.isnan(raw[:, columns])).astype(np.float32)
        number += present
        gain = present / np.maximum(number, _ONE)
        away = value - mean
        move = gain * away
        mean += move
        variance += move * away
        variance *= _ONE - gain
    return out


def _empty(events: Events, columns: int) -> Any:
    if events.scratch is None:
        return np.empty((len(events), columns), np.float32)
    path = Path(events.scratch.name) / "statistics"
    return np.memmap(path, np.float32, mode="w+", shape=(len(events), columns))


def history_inputs(encoder: FeatureEncoder, statistics: Floats, values: Floats, missing: Bools) -> Floats:
    """The inputs [..., 4J], scaled, from statistics [..., 3J] and the encoder's numbers `values` [..., F]."""
    history = encoder.history
    assert history is not None
    raw = _raw_inputs(history, statistics, values, missing)
    centre = np.array(history.centre, np.float32)
    inverse = np.array([1 / scale for scale in history.scale], np.float32)
    scaled: Floats = np.clip((raw - centre) * inverse, -encoder.limit, encoder.limit)
    return scaled


def _raw_inputs(history: History, statistics: Floats, values: Floats, missing: Bools) -> Floats:
    columns = list(history.columns)
    count, mean, variance = np.split(statistics, 3, axis=-1)
    total = count + _PRIOR
    share = count / total
    usual = share * mean
    spread = share * variance + _PRIOR / total
    z = np.clip((values[..., columns] - usual) / np.sqrt(spread), np.float32(-MAX_Z), np.float32(MAX_Z))
    z = np.where(missing[..., columns], np.float32(0), z)
    return np.concatenate([np.log(count + _ONE), np.log(spread), usual, z], axis=-1)


def fit_history(history: History, statistics: Floats, values: Floats, missing: Bools) -> History:
    """The pairs with centre and scale of the inputs at n events: statistics [n, 3J], numbers `values` [n, F].

    The deviations keep centre 0, which is also where the number is missing.
    """
    raw = _raw_inputs(history, statistics, values, missing).astype(np.float64)
    centre = raw.mean(axis=0) if len(raw) else np.zeros(raw.shape[1])
    centre[3 * len(history) :] = 0
    scale = np.sqrt(np.mean((raw - centre) ** 2, axis=0)) if len(raw) else np.ones(raw.shape[1])
    scale[scale < _MIN_SCALE] = 1
    return History(history.columns, history.windows_s, _as_float32(centre), _as_float32(scale))


def _as_float32(values: Any) -> tuple[float, ...]:
    """The nearest float32 values, so that training and the graph use the same bits."""
    return tuple(float(np.float32(value)) for value in values)
