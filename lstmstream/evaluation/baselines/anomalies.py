"""Baselines that detect anomalies: deviation from an exponentially weighted mean, and distance to centroids."""

from __future__ import annotations

import numpy as np

from lstmstream.evaluation.alignment import TaskSpec
from lstmstream.evaluation.baselines.forecasts import means, standard_deviations
from lstmstream.evaluation.baselines.past import before, is_first, key_blocks, recurrence, running_sums
from lstmstream.evaluation.metrics import Doubles
from lstmstream.history.events import Events
from lstmstream.records import Bools, Floats, Ints

EWMA_ALPHA = 0.05  # share of the newest event in mean and variance
CENTROIDS = 8
CENTROID_RATE = 0.05  # how far the nearest centroid moves towards each event
_KMEANS_ROWS = 20_000  # of the training split
_KMEANS_ITERATIONS = 30
_MAX_ROUNDS = 5_000  # centroids follow a key with more events after every few of them
_LEAST_VARIANCE = 1e-4  # of that of the training split, so that a constant past gives no infinite deviation


def scaled_error(error: Floats | Doubles, scale: Floats | Doubles) -> Floats:
    """[N'] Root of the mean squared error of the known values, in units of `scale`; 0 where none is known."""
    known = np.isfinite(error)
    squares = np.where(known, error.astype(np.float64) / scale, 0) ** 2
    return np.asarray(np.sqrt(squares.sum(axis=1) / np.maximum(1, known.sum(axis=1))), np.float32)


def ewma(spec: TaskSpec, events: Events, rows: Ints, training: Ints) -> tuple[Floats, Floats]:
    """Score [N'] and forecast [N', targets] at the ascending rows.

    The score is the deviation from the exponentially weighted mean of the key's earlier values in their exponentially
    weighted standard deviation (Finch 2009). The mean starts at the key's first known value, the variance at that of
    the training split. The forecast is the mean with the event in it.
    """
    score, forecast = np.empty(len(rows), np.float32), np.empty((len(rows), len(spec.columns)), np.float32)
    centre = means(events, spec.columns, training).astype(np.float64)
    variances = standard_deviations(events, spec.columns, training).astype(np.float64) ** 2
    for block, part in key_blocks(events, rows):
        inside, first = rows[part] - block.start, is_first(events, block)
        values = np.asarray(events.x[block], np.float64)[:, spec.columns] - centre
        deviation, mean = np.empty_like(values), np.empty_like(values)
        for column, variance in enumerate(variances):
            deviation[:, column], mean[:, column] = _ewma_of(values[:, column], first, variance)
        score[part] = scaled_error(deviation[inside], np.ones(len(variances)))
        forecast[part] = centre + mean[inside]
    return score, forecast


def _ewma_of(value: Doubles, first: Bools, variance: float) -> tuple[Doubles, Doubles]:
    """[n] The deviations of a column, NaN without an earlier value or the event's own, and the means with the event."""
    known = np.isfinite(value)
    number = running_sums(known[:, None].astype(np.float64), first)[:, 0]
    begins = known & (number == 1)
    decay = np.where(known, 1 - EWMA_ALPHA, 1.0)
    decay[first] = 0
    mean = recurrence(decay, np.where(known, np.where(begins, value, EWMA_ALPHA * value), 0)[:, None])
    error = np.where(known & ~begins, value - before(mean, first)[:, 0], np.nan)
    has_error = np.isfinite(error)
    decay = np.where(has_error, 1 - EWMA_ALPHA, 1.0)
    decay[first] = 0
    added = np.where(has_error, (1 - EWMA_ALPHA) * EWMA_ALPHA * error**2, 0)
    added[first] = variance
    spread = before(recurrence(decay, added[:, None]), first)[:, 0]  # up to the event before
    deviation = error / np.sqrt(np.maximum(spread, _LEAST_VARIANCE * variance))
    return deviation, np.where(number > 0, mean[:, 0], 0)


def centroid_distance(spec: TaskSpec, events: Events, rows: Ints, training: Ints) -> Floats:
    """Score [N'] at the ascending rows: the distance of the standardised values to the nearest of the key's centroids.

    Each key starts with the centroids of the training split (Lloyd's k-means), and after each event the nearest one
    moves towards it. A missing value adds nothing to a distance.
    """
    score = np.empty(len(rows), np.float32)
    centre = means(events, spec.columns, training).astype(np.float64)
    scale = standard_deviations(events, spec.columns, training).astype(np.float64)

    def standardised(values: Floats) -> Doubles:
        return (values[:, spec.columns].astype(np.float64) - centre) / scale

    sample = training[:: max(1, -(-len(training) // _KMEANS_ROWS))]
    centroids = kmeans(np.nan_to_num(standardised(np.asarray(events.x[sample])), nan=0.0))
    for block, part in key_blocks(events, rows):
        values = standardised(np.asarray(events.x[block]))
        starts = np.flatnonzero(is_first(events, block))
        distances = _follow(values, starts, np.diff(starts, append=len(values)), centroids)
        score[part] = distances[rows[part] - block.start]
    return score


def _follow(values: Doubles, starts: Ints, lengths: Ints, centroids: Doubles) -> Doubles:
    """[n] The distance of each row of values [n, F] to its key's nearest centroid, before that one follows it."""
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    at_once = -(-int(lengths[0]) // _MAX_ROUNDS)  # events of a key between two updates of its centroids
    own = np.tile(centroids, (len(starts), 1, 1))  # [K, k, F]
    distances = np.zeros(len(values))
    for begin in range(0, int(lengths[0]), at_once):
        active = int((lengths > begin).sum())
        number = np.arange(begin, begin + at_once)
        inside = number < lengths[:active, None]  # [A, E]
        rows = np.where(inside, starts[:active, None] + number, 0)
        known = np.isfinite(values[rows]) & inside[:, :, None]
        value = np.where(known, values[rows], 0)  # [A, E, F]
        squares = np.where(known[:, :, None], value[:, :, None] - own[:active, None], 0) ** 2
        distance = squares.sum(axis=3) / np.maximum(1, known.sum(axis=2))[:, :, None]
        nearest = distance.argmin(axis=2)
        distances[rows[inside]] = np.sqrt(distance.min(axis=2)[inside])
        member = (nearest[:, :, None] == np.arange(len(centroids))).astype(np.float64)
        count = np.einsum("aek,aef->akf", member, known.astype(np.float64))
        mean = np.einsum("aek,aef->akf", member, value) / np.maximum(1, count)
        own[:active] += (1 - (1 - CENTROID_RATE) ** count) * (mean - own[:active])
    return distances


def kmeans(values: Doubles) -> Doubles:
    """[k, F] Centroids of values [n, F] by Lloyd's algorithm from k-means++ (Arthur & Vassilvitskii 2007).

    At most CENTROIDS, fewer where there are fewer distinct values; the same values give the same centroids.
    """
    generator = np.random.default_rng(0)
    if not len(values):
        return np.zeros((1, values.shape[1]))
    centroids = values[generator.integers(len(values))][None]
    nearest = ((values - centroids[0]) ** 2).sum(axis=1)
    while len(centroids) < CENTROIDS and nearest.sum() > 0:
        another = values[generator.choice(len(values), p=nearest / nearest.sum())]
        centroids = np.concatenate([centroids, another[None]])
        nearest = np.minimum(nearest, ((values - another) ** 2).sum(axis=1))
    for _ in range(_KMEANS_ITERATIONS):
        member = ((values[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
        counts = np.bincount(member, minlength=len(centroids))
        moved = centroids.copy()
        for one in np.flatnonzero(counts):
            moved[one] = values[member == one].mean(axis=0)
        if np.allclose(moved, centroids, rtol=0, atol=1e-6):
            break
        centroids = moved
    return np.asarray(centroids)
