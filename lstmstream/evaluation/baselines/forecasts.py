"""Baselines that forecast: means, a linear autoregression, and the value at the same time of the day or week."""

from __future__ import annotations

import numpy as np

from lstmstream.evaluation.alignment import TaskSpec, key_index, last_known
from lstmstream.evaluation.baselines.past import BLOCK_ROWS, is_first, key_blocks, running_sums
from lstmstream.evaluation.metrics import Doubles, Evaluated
from lstmstream.history.events import Events
from lstmstream.records import Floats, Ints

MAX_LAGS = 24
MIN_ROWS_PER_LAG = 10  # in the training split
_MAX_PRODUCTS = 1_000_000_000  # of the least squares: rows times columns squared times outputs
_MIN_ROWS = 2_000
_COVERED = 0.5  # share of the forecasts that a season has to reach


def means(events: Events, columns: list[int], sample: Ints) -> Floats:
    """[targets] Means of the known values of the sample, 0 where none is known."""
    values = np.asarray(events.x[sample], np.float64)[:, columns]
    known = np.isfinite(values)
    found = np.where(known, values, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    return np.asarray(found, np.float32)


def standard_deviations(events: Events, columns: list[int], sample: Ints) -> Floats:
    """[targets] Standard deviations in the sample, 1 where constant or unknown."""
    values = np.asarray(events.x[sample], np.float64)[:, columns] - means(events, columns, sample)
    known = np.isfinite(values)
    variance = np.where(known, values, 0.0) ** 2
    spread = np.sqrt(variance.sum(axis=0) / np.maximum(1, known.sum(axis=0)))
    return np.where(spread > 0, spread, 1).astype(np.float32)


def key_means(events: Events, columns: list[int], rows: Ints, otherwise: Floats) -> Floats:
    """[N', targets] Means of the key's known values up to each of the ascending rows; `otherwise` without one."""
    found = np.empty((len(rows), len(columns)), np.float32)
    for block, part in key_blocks(events, rows):
        values = np.asarray(events.x[block], np.float64)[:, columns]
        known, first = np.isfinite(values), is_first(events, block)
        # sums of deviations: large values far from 0 would lose their digits in sums over many keys
        total = running_sums(np.where(known, values - otherwise, 0), first)
        number = running_sums(known.astype(np.float64), first)
        found[part] = (otherwise + total / np.maximum(1, number))[rows[part] - block.start]
    return found


class Autoregression:
    """Least squares of each target's values 1 to horizon events ahead over its last values, for all keys together.

    A missing value counts as the key's last known one, and what lies before its first known value as that value.
    """

    def __init__(self, spec: TaskSpec, events: Events, training: Ints, *, max_rows: int) -> None:
        """`training` are ascending rows of the training split; values ahead outside it are not used."""
        self._spec, self._events = spec, events
        self._known = last_known(events, spec.columns)
        some = training[:: max(1, -(-len(training) // max_rows))]
        self._means = means(events, spec.columns, some).astype(np.float64)
        self._scales = standard_deviations(events, spec.columns, some).astype(np.float64)
        self.lags = max(1, min(MAX_LAGS, len(training) // MIN_ROWS_PER_LAG))
        limit = max(_MIN_ROWS, min(max_rows, _MAX_PRODUCTS // ((1 + self.lags) ** 2 * max(1, len(spec.names)))))
        sample = training[:: max(1, -(-len(training) // limit))]
        self.learned_from = len(sample)
        self._fits = [self._fit(place, sample, training) for place in range(len(spec.columns))]

    def forecast(self, rows: Ints) -> Floats:
        """[N', P] The forecasts at the rows; the training split's mean before the key's first known value."""
        found = np.empty((len(rows), len(self._spec.names)), np.float32)
        width = len(self._spec.columns)
        for start in range(0, len(rows), BLOCK_ROWS):
            part = rows[start : start + BLOCK_ROWS]
            for place, fit in enumerate(self._fits):
                last, design = self._design(place, part)
                ahead = self._means[place] + self._scales[place] * (last[:, None] + design @ fit)
                found[start : start + len(part), place::width] = np.where(np.isfinite(ahead), ahead, self._means[place])
        return found

    def _fit(self, place: int, sample: Ints, training: Ints) -> Doubles:
        """[1 + lags, horizon] The coefficients, for differences to the last value."""
        in_training = np.zeros(len(self._events), np.bool_)
        in_training[training] = True
        end = self._events.starts[key_index(self._events, sample) + 1]
        last, design = self._design(place, sample)
        fit = np.zeros((design.shape[1], self._spec.horizon))
        for ahead in range(1, self._spec.horizon + 1):
            later = np.minimum(sample + ahead, len(in_training) - 1)
            values = np.asarray(self._events.x[later, self._spec.columns[place]], np.float64)
            follows = (values - self._means[place]) / self._scales[place] - last
            usable = (sample + ahead < end) & in_training[later] & np.isfinite(follows)
            if usable.any():
                fit[:, ahead - 1] = np.linalg.lstsq(design[usable], follows[usable], rcond=None)[0]
        return fit

    def _design(self, place: int, rows: Ints) -> tuple[Doubles, Doubles]:
        """The last known values [n], standardised, and [n, 1 + lags]: 1, they, and the earlier ones minus them.

        Differences carry the same information as the values and keep the least squares well conditioned.
        """
        start = self._events.starts[key_index(self._events, rows)]
        last = (self._known[rows, place] - self._means[place]) / self._scales[place]
        columns, value = [np.ones(len(rows)), last], last
        for lag in range(1, self.lags):
            earlier = (self._known[np.maximum(rows - lag, start), place] - self._means[place]) / self._scales[place]
            value = np.where(np.isfinite(earlier), earlier, value)
            columns.append(value - last)
        return last, np.stack(columns, axis=1)


def seasonal(
    spec: TaskSpec, events: Events, evaluated: Evaluated, rows: Ints, training: Ints, period_s: float
) -> Floats | None:
    """[N', P] The value one period before the event that is forecast, or the fewest periods that reach a known one.

    The time of that event is estimated from the key's median gap in the training split. Of the events up to now the
    one nearest to that time is used, if it is within a 24th of the period (or half a gap), else the last value. None
    where fewer than half of the events reach back that far.
    """
    period = period_s * 1000
    known = last_known(events, spec.columns)
    key = key_index(events, rows)
    gap = _median_gaps(events, training)[key]
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
        near = distance <= np.maximum(gap / 2, period / 24)
        value = known[nearest]
        usable = near[:, None] & np.isfinite(value)
        columns = forecast[:, (ahead - 1) * width : ahead * width]
        columns[usable] = value[usable]
        covered += float(near.mean()) / spec.horizon
    return forecast if covered >= _COVERED else None


def _median_gaps(events: Events, training: Ints) -> Doubles:
    """[K] Median milliseconds between a key's events in the training split, the longer of two middle ones.

    For keys without two such events it is the median over all keys, and 0 where there is none at all.
    """
    rows = training[~np.isin(training, events.starts[:-1])]  # all but the first event of each key
    key, gaps = key_index(events, rows), events.timestamp[rows] - events.timestamp[rows - 1]
    order = np.lexsort((gaps, key))
    counts = np.bincount(key, minlength=len(events.keys))
    middle = np.cumsum(counts) - counts + counts // 2
    medians = np.full(len(counts), np.median(gaps) if len(gaps) else 0.0)
    medians[counts > 0] = gaps[order][middle[counts > 0]]
    return medians
