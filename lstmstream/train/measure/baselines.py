"""What somebody would do without a recurrent network, judged on the same events: is the network worth it?

    forecast   last value; mean (of the training part); the value a day, a week or `period_s` ago, where the history
               of most events reaches back that far
    classify   class shares (of the training part); logistic regression on the event alone, without its past
    anomaly    last value, mean: as forecasts, and their scaled error at the event as the score

Bounded in time: at most 200,000 training rows are learned from. No torch; the regression is Newton's method in numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lstmstream.serve.records import Floats, Ints
from lstmstream.train.history.data import Events
from lstmstream.train.measure.judge import Goal, key_of, last_known
from lstmstream.train.measure.metrics import Doubles, Judged

MOST_ROWS = 200_000
MOST_VALUES = 30  # of a category that get a column of their own in the regression
DAY_S, WEEK_S = 86_400.0, 604_800.0
_PENALTY = 1.0  # L2, on the sum of the losses over standardised inputs
_CHUNK_ROWS = 100_000

Dense = Callable[[Ints], Floats]  # rows of the events to their inputs [n, D], as the network gets them


def baselines(
    goal: Goal,
    events: Events,
    judged: Judged,
    rows: Ints,
    *,
    training: Ints,
    dense: Dense | None = None,
    period_s: float | None = None,
) -> dict[str, Judged]:
    """Name to what that baseline says of the same events. `rows` [N'] are the rows of `judged` in `events`.

    `training` are rows to learn from. Without `dense`, the regression sees categories only.
    """
    if goal.per == "sequence":
        training = np.intersect1d(training, events.starts[1:] - 1)
    if goal.task == "classify":
        training = training[events.label[training] >= 0] if len(events.label) else training[:0]
    sample = training[:: max(1, -(-len(training) // MOST_ROWS))]
    if goal.task == "classify":
        return _classify(goal, events, judged, rows, sample, dense)
    if not judged.truth.size:
        return {}
    last = replace(judged, prediction=judged.naive)
    mean = replace(judged, prediction=np.tile(_means(events, goal, sample), (len(rows), goal.horizon)))
    if goal.task == "anomaly":
        present = np.asarray(events.x[rows])[:, goal.columns]
        scale = _spread(events, goal, sample)
        before = _last_before(events, goal.columns, rows)
        return {
            "last value": replace(last, score=_distance(present - before, scale)),
            "mean": replace(mean, score=_distance(present - _means(events, goal, sample), scale)),
        }
    found = {"last value": last, "mean": mean}
    periods = {"a day ago": DAY_S, "a week ago": WEEK_S}
    if period_s is not None:
        periods[f"{period_s:g} s ago"] = period_s
    for name, seconds in periods.items():
        seasonal = _seasonal(goal, events, judged, rows, seconds)
        if seasonal is not None:
            found[name] = replace(judged, prediction=seasonal)
    return found


def _means(events: Events, goal: Goal, sample: Ints) -> Floats:
    """[targets] of what is known in the sample, 0 where nothing is."""
    values = np.asarray(events.x[sample], np.float64)[:, goal.columns]
    known = np.isfinite(values)
    means = np.where(known, values, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    return np.asarray(means, np.float32)


def _spread(events: Events, goal: Goal, sample: Ints) -> Floats:
    """[targets] Standard deviations, 1 where constant or unknown."""
    values = np.asarray(events.x[sample], np.float64)[:, goal.columns] - _means(events, goal, sample)
    known = np.isfinite(values)
    variance = np.where(known, values, 0.0) ** 2
    spread = np.sqrt(variance.sum(axis=0) / np.maximum(1, known.sum(axis=0)))
    return np.where(spread > 0, spread, 1).astype(np.float32)


def _distance(error: Floats, scale: Floats) -> Floats:
    """[N'] Root of the mean squared scaled error over the values there are; 0 without any."""
    known = np.isfinite(error)
    squares = np.where(known, error.astype(np.float64) / scale, 0) ** 2
    return np.asarray(np.sqrt(squares.sum(axis=1) / np.maximum(1, known.sum(axis=1))), np.float32)


def _last_before(events: Events, columns: list[int], rows: Ints) -> Floats:
    """[N', targets] The last known values before each event, of its key."""
    before = last_known(events, columns)[np.maximum(0, rows - 1)]
    before[rows == events.starts[key_of(events, rows)]] = np.nan
    return before


def _seasonal(goal: Goal, events: Events, judged: Judged, rows: Ints, period_s: float) -> Floats | None:
    """[N', P] The value one period before the event that is forecast, or as many periods as it takes to be known.

    When that event will come is taken from the key's median gap. The nearest event within a 24th of the period (or
    within a gap) counts; else the last value. None where fewer than half of the events reach back so far.
    """
    period = period_s * 1000
    known = last_known(events, goal.columns)
    key = key_of(events, rows)
    gap = _median_gaps(events)[key]
    now = events.timestamp[rows].astype(np.float64)
    start = int(events.timestamp.min())
    stride = int(events.timestamp.max()) - start + 1
    place = key_of(events, np.arange(len(events.timestamp))) * stride + (np.asarray(events.timestamp) - start)
    out = judged.naive.copy()
    reached = 0.0
    width = len(goal.targets)
    for ahead in range(1, goal.horizon + 1):
        back = np.maximum(1, np.ceil(ahead * gap / period)) * period
        wanted = now + ahead * gap - back
        after = np.searchsorted(place, key * stride + np.clip(np.rint(wanted) - start, 0, stride - 1).astype(np.int64))
        nearest, distance = rows, np.full(len(rows), np.inf)
        for beside in (after - 1, after):
            inside = (beside >= events.starts[key]) & (beside <= rows)
            candidate = np.where(inside, beside, rows)
            off = np.where(inside, np.abs(events.timestamp[candidate] - wanted), np.inf)
            nearest, distance = np.where(off < distance, candidate, nearest), np.minimum(off, distance)
        near = distance <= np.maximum(gap, period / 24)
        value = known[nearest]
        use = near[:, None] & np.isfinite(value)
        part = out[:, (ahead - 1) * width : ahead * width]
        part[use] = value[use]
        reached += float(near.mean()) / goal.horizon
    return out if reached >= 0.5 else None


def _median_gaps(events: Events) -> Doubles:
    """[K] Milliseconds between a key's events; of two in the middle the longer; 0 for keys with one event."""
    later = np.ones(len(events), np.bool_)
    later[events.starts[:-1]] = False
    rows = np.flatnonzero(later)  # all but the keys' first events
    key, gaps = key_of(events, rows), events.timestamp[rows] - events.timestamp[rows - 1]
    gaps = gaps[np.lexsort((gaps, key))]
    counts = np.diff(events.starts) - 1
    middle = np.cumsum(counts) - counts + counts // 2
    medians = np.zeros(len(counts))
    medians[counts > 0] = gaps[middle[counts > 0]]
    return medians


def _classify(
    goal: Goal, events: Events, judged: Judged, rows: Ints, sample: Ints, dense: Dense | None
) -> dict[str, Judged]:
    if not len(sample):
        return {}
    count = len(goal.names)
    label = np.asarray(events.label[sample])
    shares = np.bincount(label, minlength=count) / len(label)
    found = {"class shares": _said(judged, np.tile(shares, (len(rows), 1)))}
    inputs = _Inputs(events, sample, dense)
    learned = inputs.of(sample)
    if learned.shape[1] and (shares > 0).sum() > 1:
        # one regression for each class against the rest, made to add up to 1
        classes = [1] if count == 2 else range(count)
        weights = [_logistic(learned, (label == one).astype(np.float64)) for one in classes]
        given = [inputs.of(rows[start : start + _CHUNK_ROWS]) for start in range(0, len(rows), _CHUNK_ROWS)]
        likely = np.concatenate([np.stack([_sigmoid(part @ w[1:] + w[0]) for w in weights], axis=1) for part in given])
        if count == 2:
            likely = np.concatenate([1 - likely, likely], axis=1)
        found["logistic regression"] = _said(judged, likely / np.maximum(1e-12, likely.sum(axis=1, keepdims=True)))
    return found


def _said(judged: Judged, likely: Doubles) -> Judged:
    """`likely` [N', K]: the score is the probability of any class but the first, as the model's is."""
    score = likely[:, 1] if likely.shape[1] == 2 else 1 - likely[:, 0]
    return replace(judged, score=score.astype(np.float32), prediction=likely.astype(np.float32))


class _Inputs:
    """Inputs of the regression: the dense ones, standardised, and a column for each frequent value of a category."""

    def __init__(self, events: Events, sample: Ints, dense: Dense | None) -> None:
        self._events, self._dense = events, dense
        self._values = [_frequent(np.asarray(events.codes[sample, column])) for column in range(events.codes.shape[1])]
        self._centre, self._scale = np.zeros(0), np.ones(0)
        raw = self._raw(sample)
        self._centre, self._scale = raw.mean(axis=0), raw.std(axis=0)
        self._used = self._scale > 1e-9  # a constant says nothing

    def _raw(self, rows: Ints) -> Doubles:
        columns = [np.asarray(self._dense(rows), np.float64)] if self._dense is not None else []
        for column, values in enumerate(self._values):
            columns.append((np.asarray(self._events.codes[rows, column])[:, None] == values).astype(np.float64))
        return np.concatenate(columns, axis=1) if columns else np.zeros((len(rows), 0))

    def of(self, rows: Ints) -> Doubles:
        """[n, D'] Cut at 10 standard deviations, so that no single event rules."""
        return np.clip((self._raw(rows)[:, self._used] - self._centre[self._used]) / self._scale[self._used], -10, 10)


def _frequent(codes: Ints) -> Ints:
    values, counts = np.unique(codes, return_counts=True)
    return values[np.argsort(-counts, kind="stable")][:MOST_VALUES]


def _logistic(inputs: Doubles, positive: Doubles) -> Doubles:
    """[1 + D'] Intercept and weights by Newton's method (iteratively reweighted least squares), with an L2 penalty.

    A step that makes the loss worse is halved, so that separable data end too.
    """
    design = np.concatenate([np.ones((len(inputs), 1)), inputs], axis=1)
    penalty = np.full(design.shape[1], _PENALTY)
    penalty[0] = 1e-9  # the intercept is free
    share = np.clip(positive.mean(), 1e-6, 1 - 1e-6)
    weights = np.zeros(design.shape[1])
    weights[0] = np.log(share / (1 - share))

    def loss(at: Doubles) -> float:
        z = design @ at
        return float(np.logaddexp(0, z).sum() - positive @ z + 0.5 * penalty @ at**2)

    now = loss(weights)
    for _ in range(30):
        likely = _sigmoid(design @ weights)
        gradient = design.T @ (likely - positive) + penalty * weights
        curvature = design.T @ (design * (likely * (1 - likely))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (then := loss(weights - size * step)) > now and size > 1e-4:
            size /= 2
        if not then < now:
            break
        weights, before, now = weights - size * step, now, then
        if before - now < 1e-8 * max(1.0, abs(now)):
            break
    return weights


def _sigmoid(z: Doubles) -> Doubles:
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))  # cannot overflow
