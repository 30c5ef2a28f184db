"""The encoder's formulas a second time, in float64 and column by column: what graph and training are compared with."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from lstmstream.train.export import FeatureEncoder


def encode_in_float64(encoder: FeatureEncoder, feed: dict[str, np.ndarray]) -> np.ndarray:
    """The inputs [rows, width] of raw `x`, `elapsed`, `timestamp` and `categories`, as the export package has them."""
    numbers, flags, rest = [], [], []

    def number(raw: np.ndarray, *, centre: float, scale: float, log: bool, flag: bool) -> None:
        raw = raw.astype(np.float64)
        value = np.sign(raw) * np.log1p(np.abs(raw)) if log else raw
        value = np.clip((value - centre) / scale, -encoder.limit, encoder.limit)
        numbers.append(np.where(np.isnan(raw), 0, value))
        if flag:
            flags.append(np.isnan(raw))

    for index, one in enumerate(encoder.numbers):
        number(feed["x"][:, index], centre=one.centre, scale=one.scale, log=one.log, flag=one.flag_missing)
    if encoder.elapsed is not None:
        number(feed["elapsed"], centre=encoder.elapsed.centre, scale=encoder.elapsed.scale, log=True, flag=True)
    times = [datetime.fromtimestamp(int(ms) / 1000, UTC) for ms in feed.get("timestamp", [])]
    hours = np.array([t.hour + t.minute / 60 + t.second / 3600 + t.microsecond / 3.6e9 for t in times])
    if encoder.hour_of_day:
        rest += [np.sin(2 * np.pi * hours / 24), np.cos(2 * np.pi * hours / 24)]
    if encoder.day_of_week:
        days = np.array([t.weekday() for t in times]) + hours / 24
        rest += [np.sin(2 * np.pi * days / 7), np.cos(2 * np.pi * days / 7)]
    for index, category in enumerate(encoder.categories):
        rest += list(category.table[feed["categories"][:, index]].T)
    return np.stack([*numbers, *flags, *rest], axis=1)


def history_in_float64(encoder: FeatureEncoder, x: np.ndarray, elapsed: np.ndarray) -> np.ndarray:
    """The inputs [T, 4J] of one key's events, `x` [T, F] and `elapsed` [T], by weighted sums of earlier ones."""
    history = encoder.history
    assert history is not None
    bare = FeatureEncoder(encoder.numbers, limit=encoder.limit)
    values = encode_in_float64(bare, {"x": x})[:, : len(encoder.numbers)]
    time = np.cumsum(np.nan_to_num(elapsed.astype(np.float64)))
    blocks = np.zeros((4, len(x), len(history.columns)))
    for pair, (column, window) in enumerate(zip(history.columns, history.windows_s, strict=True)):
        present = ~np.isnan(x[:, column])
        for now in range(len(x)):
            earlier = np.flatnonzero(present[:now])
            weights = np.exp(-(time[now] - time[earlier]) / window)
            count = weights.sum()
            mean = np.average(values[earlier, column], weights=weights) if count else 0.0
            variance = np.average((values[earlier, column] - mean) ** 2, weights=weights) if count else 0.0
            usual = count * mean / (count + 0.1)
            spread = (count * variance + 0.1) / (count + 0.1)
            z = (values[now, column] - usual) / np.sqrt(spread)
            z = np.clip(z, -20, 20) if present[now] else 0.0
            blocks[:, now, pair] = np.log1p(count), np.log(spread), usual, z
    raw = np.concatenate(list(blocks), axis=-1)
    return np.clip((raw - np.array(history.centre)) / np.array(history.scale), -encoder.limit, encoder.limit)
