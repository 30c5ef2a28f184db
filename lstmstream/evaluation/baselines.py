"""Baselines without a recurrent network, evaluated on the same events as the network.

    forecast   last value; mean (of the training split); the value a day, a week or `period_s` ago, where the history
               of most events reaches back that far
    classify   class shares (of the training split); logistic regression on the event alone, without its past
    anomaly    last value and mean as forecasts, with their scaled error at the event as the score

At most MAX_ROWS training rows are used. The regression is Newton's method in numpy; torch is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lstmstream.evaluation.alignment import TaskSpec, key_index, last_known
from lstmstream.evaluation.metrics import Doubles, Evaluated
from lstmstream.history.events import Events
from lstmstream.records import Floats, Ints

MAX_ROWS = 200_000
MAX_CATEGORY_VALUES = 30  # values of a category with a column of their own in the regression
DAY_S, WEEK_S = 86_400.0, 604_800.0
_PENALTY = 1.0  # L2, relative to the sum of the losses over standardised inputs
_CHUNK_ROWS = 100_000

DenseInputs = Callable[[Ints], Floats]  # rows of the events to the network's numeric inputs [n, D]


def compute_baselines(
    spec: TaskSpec,
    events: Events,
    evaluated: Evaluated,
    rows: Ints,
    *,
    training: Ints,
    dense: DenseInputs | None = None,
    period_s: float | None = None,
) -> dict[str, Evaluated]:
    """The baselines by name, on the same events as `evaluated`. `rows` [N'] are its rows in `events`.

    `training` are the rows to learn from. Without `dense` the regression uses categories only. `period_s` is another
    season of a forecast, in seconds.
    """
    if spec.per == "sequence":
        training = np.intersect1d(training, events.starts[1:] - 1)
    if spec.task == "classify":
        training = training[events.label[training] >= 0] if len(events.label) else training[:0]
    sample = training[:: max(1, -(-len(training) // MAX_ROWS))]
    if spec.task == "classify":
        return _classify(spec, events, evaluated, rows, sample, dense)
    if not evaluated.truth.size:
        return {}
    last = replace(evaluated, prediction=evaluated.naive)
    mean = replace(evaluated, prediction=np.tile(_means(events, spec, sample), (len(rows), spec.horizon)))
    if spec.task == "anomaly":
        present = np.asarray(events.x[rows])[:, spec.columns]
        scale = _standard_deviations(events, spec, sample)
        before = _last_before(events, spec.columns, rows)
        return {
            "last value": replace(last, score=_scaled_error(present - before, scale)),
            "mean": replace(mean, score=_scaled_error(present - _means(events, spec, sample), scale)),
        }
    baselines = {"last value": last, "mean": mean}
    periods = {"a day ago": DAY_S, "a week ago": WEEK_S}
    if period_s is not None:
        periods[f"{period_s:g} s ago"] = period_s
    for name, seconds in periods.items():
        seasonal = _seasonal(spec, events, evaluated, rows, seconds)
        if seasonal is not None:
            baselines[name] = replace(evaluated, prediction=seasonal)
    return baselines


def _means(events: Events, spec: TaskSpec, sample: Ints) -> Floats:
    """[targets] Means of the known values of the sample, 0 where none is known."""
    values = np.asarray(events.x[sample], np.float64)[:, spec.columns]
    known = np.isfinite(values)
    means = np.where(known, values, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    return np.asarray(means, np.float32)


def _standard_deviations(events: Events, spec: TaskSpec, sample: Ints) -> Floats:
    """[targets] Standard deviations in the sample, 1 where constant or unknown."""
    values = np.asarray(events.x[sample], np.float64)[:, spec.columns] - _means(events, spec, sample)
    known = np.isfinite(values)
    variance = np.where(known, values, 0.0) ** 2
    spread = np.sqrt(variance.sum(axis=0) / np.maximum(1, known.sum(axis=0)))
    return np.where(spread > 0, spread, 1).astype(np.float32)


def _scaled_error(error: Floats, scale: Floats) -> Floats:
    """[N'] Root of the mean squared error of the known values, in units of `scale`; 0 where none is known."""
    known = np.isfinite(error)
    squares = np.where(known, error.astype(np.float64) / scale, 0) ** 2
    return np.asarray(np.sqrt(squares.sum(axis=1) / np.maximum(1, known.sum(axis=1))), np.float32)


def _last_before(events: Events, columns: list[int], rows: Ints) -> Floats:
    """[N', targets] The key's last known values before each event, NaN on its first."""
    before = last_known(events, columns)[np.maximum(0, rows - 1)]
    before[rows == events.starts[key_index(events, rows)]] = np.nan
    return before


def _seasonal(spec: TaskSpec, events: Events, evaluated: Evaluated, rows: Ints, period_s: float) -> Floats | None:
    """[N', P] The value one period before the event that is forecast, or the fewest periods that reach a known one.

    The time of that event is estimated from the key's median gap. The nearest event within a 24th of the period (or
    within one gap) is used, else the last value. None where fewer than half of the events reach back that far.
    """
    period = period_s * 1000
    known = last_known(events, spec.columns)
    key = key_index(events, rows)
    gap = _median_gaps(events)[key]
    now = events.timestamp[rows].astype(np.float64)
    # one ascending number for key and time together, so that one binary search serves all keys
    start = int(events.timestamp.min())
    stride = int(events.timestamp.max()) - start + 1
    position = key_index(events, np.arange(len(events.timestamp))) * stride + (np.asarray(events.timestamp) - start)
    forecast = evaluated.naive.copy()
    covered = 0.0  # share of the forecasts that a season reaches
    width = len(spec.targets)
    for ahead in range(1, spec.horizon + 1):
        back = np.maximum(1, np.ceil(ahead * gap / period)) * period
        target = now + ahead * gap - back
        offset = np.clip(np.rint(target) - start, 0, stride - 1).astype(np.int64)
        after = np.searchsorted(position, key * stride + offset)
        nearest, distance = rows, np.full(len(rows), np.inf)
        for neighbour in (after - 1, after):
            inside = (neighbour >= events.starts[key]) & (neighbour <= rows)
            candidate = np.where(inside, neighbour, rows)
            off = np.where(inside, np.abs(events.timestamp[candidate] - target), np.inf)
            nearest, distance = np.where(off < distance, candidate, nearest), np.minimum(off, distance)
        near = distance <= np.maximum(gap, period / 24)
        value = known[nearest]
        usable = near[:, None] & np.isfinite(value)
        columns = forecast[:, (ahead - 1) * width : ahead * width]
        columns[usable] = value[usable]
        covered += float(near.mean()) / spec.horizon
    return forecast if covered >= 0.5 else None


def _median_gaps(events: Events) -> Doubles:
    """[K] Median milliseconds between a key's events, the longer of two middle ones; 0 for keys with one event."""
    later = np.ones(len(events), np.bool_)
    later[events.starts[:-1]] = False
    rows = np.flatnonzero(later)  # all but the first event of each key
    key, gaps = key_index(events, rows), events.timestamp[rows] - events.timestamp[rows - 1]
    gaps = gaps[np.lexsort((gaps, key))]
    counts = np.diff(events.starts) - 1
    middle = np.cumsum(counts) - counts + counts // 2
    medians = np.zeros(len(counts))
    medians[counts > 0] = gaps[middle[counts > 0]]
    return medians


def _classify(
    spec: TaskSpec, events: Events, evaluated: Evaluated, rows: Ints, sample: Ints, dense: DenseInputs | None
) -> dict[str, Evaluated]:
    if not len(sample):
        return {}
    count = len(spec.names)
    label = np.asarray(events.label[sample])
    shares = np.bincount(label, minlength=count) / len(label)
    baselines = {"class frequencies": _with_probabilities(evaluated, np.tile(shares, (len(rows), 1)))}
    inputs = _RegressionInputs(events, sample, dense)
    design = inputs.matrix(sample)
    if design.shape[1] and (shares > 0).sum() > 1:
        # one regression for each class against the rest, normalised to a sum of 1
        classes = [1] if count == 2 else range(count)
        weights = [_logistic(design, (label == one).astype(np.float64)) for one in classes]
        chunks = [inputs.matrix(rows[start : start + _CHUNK_ROWS]) for start in range(0, len(rows), _CHUNK_ROWS)]
        probability = np.concatenate(
            [np.stack([_sigmoid(chunk @ w[1:] + w[0]) for w in weights], axis=1) for chunk in chunks]
        )
        if count == 2:
            probability = np.concatenate([1 - probability, probability], axis=1)
        probability /= np.maximum(1e-12, probability.sum(axis=1, keepdims=True))
        baselines["logistic regression"] = _with_probabilities(evaluated, probability)
    return baselines


def _with_probabilities(evaluated: Evaluated, probability: Doubles) -> Evaluated:
    """The rows with class probabilities [N', K]; as for the model, the score is that of all classes but the first."""
    score = probability[:, 1] if probability.shape[1] == 2 else 1 - probability[:, 0]
    return replace(evaluated, score=score.astype(np.float32), prediction=probability.astype(np.float32))


class _RegressionInputs:
    """Inputs of the regression: the dense inputs and a column for each frequent category value, standardised."""

    def __init__(self, events: Events, sample: Ints, dense: DenseInputs | None) -> None:
        self._events, self._dense = events, dense
        self._values = [_frequent(np.asarray(events.codes[sample, column])) for column in range(events.codes.shape[1])]
        self._centre, self._scale = np.zeros(0), np.ones(0)
        raw = self._raw(sample)
        self._centre, self._scale = raw.mean(axis=0), raw.std(axis=0)
        self._used = self._scale > 1e-9  # constant columns are dropped

    def _raw(self, rows: Ints) -> Doubles:
        columns = [np.asarray(self._dense(rows), np.float64)] if self._dense is not None else []
        for column, values in enumerate(self._values):
            columns.append((np.asarray(self._events.codes[rows, column])[:, None] == values).astype(np.float64))
        return np.concatenate(columns, axis=1) if columns else np.zeros((len(rows), 0))

    def matrix(self, rows: Ints) -> Doubles:
        """[n, D'] Clipped at 10 standard deviations, so that no single event dominates."""
        return np.clip((self._raw(rows)[:, self._used] - self._centre[self._used]) / self._scale[self._used], -10, 10)


def _frequent(codes: Ints) -> Ints:
    """The most frequent codes, at most MAX_CATEGORY_VALUES."""
    values, counts = np.unique(codes, return_counts=True)
    return values[np.argsort(-counts, kind="stable")][:MAX_CATEGORY_VALUES]


def _logistic(inputs: Doubles, positive: Doubles) -> Doubles:
    """[1 + D'] Intercept and weights by Newton's method (iteratively reweighted least squares), with an L2 penalty.

    A step that increases the loss is halved, so that it converges on separable data too.
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
        probability = _sigmoid(design @ weights)
        gradient = design.T @ (probability - positive) + penalty * weights
        curvature = design.T @ (design * (probability * (1 - probability))[:, None]) + np.diag(penalty)
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
