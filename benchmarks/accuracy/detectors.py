"""Detectors to compare with: rules that read no data, and plain ones. Each has one configuration for all series.

Row by row, no row knows a later one. `rank` is what ranks the rows. `score` is what a threshold of one number for all
series is for: without a unit, and only where it is the largest of the last 100 rows, since each row above the threshold
outside of a window costs points.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.accuracy.series import Numbers, Series

ALPHA = 0.01  # of exponentially weighted means and deviations
HOLD_ROWS = 100
EVERY_ROWS = 500  # near the best of its kind for NAB
CENTRES, WINDOW, FIRST_ROWS, RATE, ROUNDS = 10, 50, 149, 0.007, 20  # of k-means, as touchstone has it
MAX_Z = 100.0


@dataclass(frozen=True, slots=True)
class Readings:
    """What a detector says of each row: [T], higher for more anomalous."""

    rank: Numbers  # NaN before the first
    score: Numbers  # 0 and more
    alarm: Numbers  # of SMAP/MSL, where it differs from the score


def made_of(rank: Numbers, level: Numbers) -> Readings:
    """`level` has no unit; r / (r + 1) is between 0 and 1."""
    level = np.nan_to_num(level)
    score = only_largest(level / (level + 1.0))
    return Readings(rank, score, score)


def only_largest(score: Numbers) -> Numbers:
    """The score where it is larger than in the 100 rows before, else 0."""
    before = np.concatenate([np.full(HOLD_ROWS, -1.0), score[:-1]])
    largest = np.lib.stride_tricks.sliding_window_view(before, HOLD_ROWS).max(axis=1)
    return np.where(score > largest, score, 0.0)


def every_so_often(series: Series) -> Readings:
    """Reads no data. A row of every 500 x 2^k scores (k + 1) / 16, k up to 8: a threshold picks k."""
    rows = np.arange(len(series.x))
    rounds = rows // EVERY_ROWS
    power = np.minimum(np.log2(np.maximum(np.bitwise_and(rounds, -rounds), 1)), 8)
    score = np.where(rows % EVERY_ROWS == 0, (np.where(rounds == 0, 8, power) + 1) / 16, 0.0)
    return Readings(score, score, score)


def random_numbers(series: Series) -> Readings:
    """Reads no data."""
    rank = np.random.default_rng(zlib.crc32(series.name.encode())).random(len(series.x))
    return Readings(rank, rank, rank)


def row_index(series: Series) -> Readings:
    """Reads no data: later is more anomalous. One threshold for all series is then a time at which the alarm begins."""
    rank = np.arange(len(series.x), dtype=np.float64)
    score = np.clip(rank / 1e6, 0, 1)
    return Readings(rank, score, score)


def last_value(series: Series) -> Readings:
    """|x - the last x|; the level is that over its own deviation."""
    x = series.x.astype(np.float64)
    steps = np.concatenate([np.zeros((1, x.shape[1])), np.abs(np.diff(x, axis=0))])
    rank = steps.max(axis=1)
    rank[0] = np.nan
    return made_of(rank, _over_deviation(steps, centred=False))


def ewma_z(series: Series) -> Readings:
    """The largest |x - mean| / deviation, both exponentially weighted over the rows before."""
    z = _over_deviation(series.x.astype(np.float64), centred=True)
    rank = z.copy()
    rank[:2] = np.nan
    return made_of(rank, z)


def _over_deviation(x: Numbers, *, centred: bool) -> Numbers:
    """[T] of [T, C]: |x| or |x - mean| over the weighted root mean square of what it was, at most 100."""
    mean, square, weight = np.zeros(x.shape[1]), np.zeros(x.shape[1]), 0.0
    if centred:
        x = x - x[0]
    out = np.zeros(len(x))
    with np.errstate(divide="ignore", invalid="ignore"):
        for row, values in enumerate(x):
            away = values - mean / weight if centred and weight else values
            if row > 1:
                z = np.abs(away) / np.sqrt(square / weight)
                out[row] = min(np.nan_to_num(z, nan=0.0, posinf=MAX_Z).max(), MAX_Z)
            mean += ALPHA * (values - mean)
            square += ALPHA * (away * away - square)
            weight += ALPHA * (1 - weight)
    return out


def k_means(series: Series) -> Readings:
    """Touchstone's k-means: distance of the last 50 rows to the nearest of 10 centres.

    They are learned from the first 149 rows (k-means++, Lloyd); then the nearest moves by 0.007 of the difference at
    each row. The level is the distance over its weighted root mean square.
    """
    random, x = np.random.default_rng(zlib.crc32(series.name.encode())), np.ascontiguousarray(series.x)
    centres = _first_centres(x[:FIRST_ROWS], random)
    rank = np.full(len(x), np.nan)
    for row in range(FIRST_ROWS, len(x)):
        away = x[row - WINDOW + 1 : row + 1].ravel() - centres
        squares = np.einsum("ij,ij->i", away, away)
        nearest = squares.argmin()
        rank[row] = squares[nearest]
        centres[nearest] += np.float32(RATE) * away[nearest]
    rank = np.sqrt(rank)
    level = np.zeros(len(x))
    level[FIRST_ROWS:] = _over_deviation(rank[FIRST_ROWS:, np.newaxis], centred=False)
    return made_of(rank, level)


def _first_centres(x: np.ndarray[tuple[int, ...], np.dtype[np.float32]], random: np.random.Generator) -> Numbers:
    windows = np.stack([x[i : i + WINDOW].ravel() for i in range(len(x) - WINDOW + 1)]).astype(np.float64)
    centres = windows[random.integers(len(windows))][np.newaxis]
    while len(centres) < CENTRES:
        squares = ((windows[:, np.newaxis] - centres) ** 2).sum(axis=2).min(axis=1)
        total = squares.sum()
        chosen = random.choice(len(windows), p=squares / total) if total > 0 else random.integers(len(windows))
        centres = np.vstack([centres, windows[chosen]])
    for _ in range(ROUNDS):
        squares = ((windows[:, np.newaxis] - centres) ** 2).sum(axis=2)
        nearest = squares.argmin(axis=1)
        for centre in range(CENTRES):
            mine = nearest == centre
            centres[centre] = windows[mine].mean(axis=0) if mine.any() else windows[squares.min(axis=1).argmax()]
    found: Numbers = centres.astype(np.float32)
    return found


BASELINES: dict[str, Callable[[Series], Readings]] = {
    "blind: every 500 x 2^k rows": every_so_often,
    "blind: random": random_numbers,
    "blind: row index": row_index,
    "last value": last_value,
    "EWMA z-score": ewma_z,
    "streaming k-means": k_means,
}
