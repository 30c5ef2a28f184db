"""How certain a metric is: 95 % bootstrap intervals, and paired intervals of the difference between two models.

Events of one key resemble each other, so keys are resampled and not rows. Events of one time may resemble each other
too, whatever their key (a holiday, an outage, an attack), so blocks of time are resampled as well, and the interval
reaches from the lower of the two lower ends to the higher of the higher ones. With few keys only blocks are resampled.
A resample is a count for each key or block, which `metric_function` takes as row weights: nothing is sorted or copied
again.
Percentile intervals as in Efron & Tibshirani 1993, chapter 13. A share that is 0 or 1 in all resamples gets the exact
binomial end instead (Clopper & Pearson 1934), since 62 of 62 does not mean that the 63rd is certain; a rate without any
alert gets that of a Poisson process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from lstmstream.evaluation.metrics import (
    LOWER_IS_BETTER,
    Doubles,
    Evaluated,
    MetricFunction,
    MetricValues,
    alerts,
    metric_function,
    rank_by_score,
)
from lstmstream.records import Bools, Ints

MIN_KEYS = 20  # with fewer keys, blocks of time are resampled
TIME_BLOCKS = 30
_LOW, _HIGH = 0.025, 0.975


class Interval(TypedDict):
    """A metric and the interval that holds 95 % of its resamples, NaN where there is nothing to resample."""

    value: float
    low: float
    high: float


class ResamplingUnits(NamedTuple):
    """What is resampled as a whole."""

    of_row: Ints  # [N'] index of the unit of each row
    number: int  # of units
    name: str  # for the reader of a report: "keys" or "blocks of time"


def resampling_units(evaluated: Evaluated) -> list[ResamplingUnits]:
    """Keys where there are at least MIN_KEYS, and TIME_BLOCKS consecutive blocks with equally many rows each.

    Rows without timestamps are only in the order of each key, so that blocks mean nothing where keys can be resampled.
    """
    units = []
    keys, of_row = np.unique(evaluated.sequence, return_inverse=True)
    if len(keys) >= MIN_KEYS:
        units.append(ResamplingUnits(of_row.astype(np.int64), len(keys), "keys"))
    if evaluated.timed or not units:
        count = min(TIME_BLOCKS, len(evaluated))
        block = np.empty(len(evaluated), np.int64)
        position = np.arange(len(evaluated)) * count // max(1, len(evaluated))
        block[np.argsort(evaluated.timestamp, kind="stable")] = position
        units.append(ResamplingUnits(block, count, "blocks of time"))
    return units


def bootstrap_intervals(
    evaluated: Evaluated,
    threshold: float | None = None,
    *,
    resamples: int = 200,
    seed: int = 0,
    k: Collection[int] = (100,),
) -> dict[str, Interval]:
    """Each metric that the rows determine, with its interval. The same seed gives the same interval."""
    function = metric_function(evaluated, threshold, k=k)
    values = function(np.ones(len(evaluated)))
    names = [name for name, value in values.items() if np.isfinite(value)]
    low, high = np.full(len(names), np.nan), np.full(len(names), np.nan)
    all_units = resampling_units(evaluated)
    for units in all_units:
        drawn = [[sample[name] for name in names] for sample in _resampled(units, [function], resamples, seed)]
        ends = _percentiles(np.array(drawn).reshape(len(drawn), len(names)))
        low, high = np.fmin(low, ends[0]), np.fmax(high, ends[1])
    for i, name in enumerate(names):
        if name == "alerts_per_day" and low[i] == high[i] == 0:
            high[i] = _rate_without_alerts(evaluated)
        elif low[i] == high[i] == values[name] and values[name] in {0.0, 1.0}:
            low[i], high[i] = _binomial_ends(all_units[0], _rows_of_share(evaluated, threshold, name), values[name])
    return {name: Interval(value=values[name], low=float(low[i]), high=float(high[i])) for i, name in enumerate(names)}


def alert_rate_intervals(
    evaluated: Evaluated, thresholds: Sequence[float], *, resamples: int = 200, seed: int = 0
) -> list[Interval]:
    """Alerts per day at each threshold, as `bootstrap_intervals` has them for one."""
    raised = [alerts(evaluated, threshold) for threshold in thresholds]
    low, high = np.full(len(thresholds), np.nan), np.full(len(thresholds), np.nan)
    for units in resampling_units(evaluated):
        by_unit = np.array([np.bincount(units.of_row[rows], minlength=units.number) for rows in raised], np.float64)
        drawn = np.array([drawn @ by_unit.T for drawn in _draws(units, resamples, seed)]).reshape(-1, len(thresholds))
        ends_of_units = _percentiles(drawn)
        low, high = np.fmin(low, ends_of_units[0]), np.fmax(high, ends_of_units[1])
    intervals = []
    for i, rows in enumerate(raised):
        ends = [evaluated.per_day(end) for end in (rows.sum(), low[i], high[i])]
        if low[i] == high[i] == 0:
            ends[2] = _rate_without_alerts(evaluated)
        intervals.append(Interval(value=ends[0], low=ends[1], high=ends[2]))
    return intervals


def _rate_without_alerts(evaluated: Evaluated) -> float:
    """The upper end where there are none: with a higher rate of a Poisson process, fewer than 2.5 % have none."""
    return evaluated.per_day(-float(np.log(_LOW)))


def _binomial_ends(units: ResamplingUnits, rows: Bools | None, share: float) -> tuple[float, float]:
    """The interval of a share that is 0 or 1 in each of the n units that have such rows: to 0.025^(1/n)."""
    count = 0 if rows is None else len(np.unique(units.of_row[rows]))
    if not count:
        return share, share
    end = float(_LOW ** (1 / count))
    return (end, 1.0) if share == 1 else (0.0, 1 - end)


def _rows_of_share(evaluated: Evaluated, threshold: float | None, name: str) -> Bools | None:
    """[N'] The rows that a metric between 0 and 1 is a share of; None for other metrics."""
    label = evaluated.label
    rows: Bools | None = None
    if name == "precision" and threshold is not None:
        rows = (evaluated.alert_label >= 0) & alerts(evaluated, threshold)
    elif name == "alert_share":
        rows = np.ones(len(evaluated), np.bool_)
    elif name.startswith("precision_at_"):
        rows = np.zeros(len(evaluated), np.bool_)
        rows[rank_by_score(evaluated).rows[: int(name.removeprefix("precision_at_"))]] = True
    elif name in {"recall", "f1", "average_precision", "roc_auc"}:
        rows = label > 0
    elif name in {"accuracy", "macro_f1"}:
        rows = label >= 0
    elif name.startswith("recall["):
        rows = label == evaluated.names.index(name.removeprefix("recall[").removesuffix("]"))
    return rows


def paired_difference(
    model: Evaluated, other: Evaluated, name: str, *, resamples: int = 200, seed: int = 0
) -> Interval:
    """By how much the model is better in metric `name` (positive: better), both evaluated on the same resamples.

    `other` holds the same events in the same order. NaN where either does not determine the metric.
    """
    sign = -1.0 if name.partition("[")[0] in LOWER_IS_BETTER else 1.0
    functions = [metric_function(model), metric_function(other)]

    def difference(values: list[MetricValues]) -> float:
        ours, theirs = (each.get(name, np.nan) for each in values)
        return sign * (ours - theirs)

    ones = np.ones(len(model))
    low = high = np.nan
    for units in resampling_units(model):
        drawn = list(_resampled(units, functions, resamples, seed))
        differences = [difference(drawn[i : i + 2]) for i in range(0, len(drawn), 2)]
        ends = _percentiles(np.array(differences).reshape(-1, 1))
        low, high = float(np.fmin(low, ends[0][0])), float(np.fmax(high, ends[1][0]))
    return Interval(value=difference([function(ones) for function in functions]), low=low, high=high)


def _resampled(
    units: ResamplingUnits, functions: list[MetricFunction], resamples: int, seed: int
) -> Iterator[MetricValues]:
    """For each resample, the result of each function in turn."""
    for drawn in _draws(units, resamples, seed):
        weights = drawn[units.of_row]
        for function in functions:
            yield function(weights)


def _draws(units: ResamplingUnits, resamples: int, seed: int) -> Iterator[Doubles]:
    """For each resample, how often each unit is in it [units]; none where there is only one unit."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples if units.number > 1 else 0):
        drawn = rng.integers(0, units.number, units.number)
        yield np.bincount(drawn, minlength=units.number).astype(np.float64)


def _percentiles(drawn: Doubles) -> tuple[Doubles, Doubles]:
    """Lower and upper end [M] of each column of `drawn` [resamples, M], over the resamples that are not NaN."""
    low, high = np.full(drawn.shape[1], np.nan), np.full(drawn.shape[1], np.nan)
    for i, column in enumerate(drawn.T):
        known = column[np.isfinite(column)]
        if len(known):
            low[i], high[i] = np.quantile(known, [_LOW, _HIGH])
    return low, high
