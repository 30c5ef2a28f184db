"""How sure a measure is: 95 % bootstrap intervals, and whether one model beats another beyond chance.

Events of one key resemble each other, so keys are resampled, not rows; with few keys, stretches of time. A resample is
a count for each key or stretch, which `metrics.prepare` takes as row weights: nothing is sorted or copied again.
Percentile intervals, Efron & Tibshirani 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple, TypedDict

import numpy as np

from lstmstream.serve.records import Ints
from lstmstream.train.measure.metrics import LOWER_IS_BETTER, Doubles, Judged, Measure, Values, prepare

FEWEST_KEYS = 20
BLOCKS = 30
_LOW, _HIGH = 0.025, 0.975


class Interval(TypedDict):
    """A measure with the interval that holds 95 % of its resamples; NaN where there is nothing to resample."""

    value: float
    low: float
    high: float


class Units(NamedTuple):
    """What is resampled as a whole."""

    of_row: Ints  # [N'] unit of each row
    number: int
    name: str  # for a person: "keys" or "stretches of time"


def units(judged: Judged) -> Units:
    """Keys where there are at least 20, else 30 stretches of time with equally many rows each."""
    keys, of_row = np.unique(judged.sequence, return_inverse=True)
    if len(keys) >= FEWEST_KEYS:
        return Units(of_row.astype(np.int64), len(keys), "keys")
    count = min(BLOCKS, len(judged))
    block = np.empty(len(judged), np.int64)
    block[np.argsort(judged.timestamp, kind="stable")] = np.arange(len(judged)) * count // max(1, len(judged))
    return Units(block, count, "stretches of time")


def intervals(
    judged: Judged,
    threshold: float | None = None,
    *,
    resamples: int = 200,
    seed: int = 0,
    k: Collection[int] = (100,),
) -> dict[str, Interval]:
    """Each measure that the part determines, with its interval. The same seed, the same interval."""
    measure = prepare(judged, threshold, k=k)
    values = measure(np.ones(len(judged)))
    names = [name for name, value in values.items() if np.isfinite(value)]
    drawn = [[once[name] for name in names] for once in _resampled(judged, [measure], resamples, seed)]
    low, high = _bounds(np.array(drawn).reshape(len(drawn), len(names)))
    return {name: Interval(value=values[name], low=float(low[i]), high=float(high[i])) for i, name in enumerate(names)}


def advantage(model: Judged, other: Judged, name: str, *, resamples: int = 200, seed: int = 0) -> Interval:
    """By how much the model is better in measure `name`, positive is better, both judged on the same resamples.

    `other` holds the same events in the same order. NaN where either does not determine the measure.
    """
    sign = -1.0 if name.partition("[")[0] in LOWER_IS_BETTER else 1.0
    measures = [prepare(model), prepare(other)]

    def gain(values: list[Values]) -> float:
        ours, theirs = (each.get(name, np.nan) for each in values)
        return sign * (ours - theirs)

    ones = np.ones(len(model))
    drawn = list(_resampled(model, measures, resamples, seed))
    gains = [gain(drawn[i : i + 2]) for i in range(0, len(drawn), 2)]
    low, high = _bounds(np.array(gains).reshape(-1, 1))
    return Interval(value=gain([each(ones) for each in measures]), low=float(low[0]), high=float(high[0]))


def _resampled(judged: Judged, measures: list[Measure], resamples: int, seed: int) -> Iterator[Values]:
    """For each resample, what each measure gives, one after the other."""
    whole, rng = units(judged), np.random.default_rng(seed)
    if whole.number < 2:
        return
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(0, whole.number, whole.number), minlength=whole.number).astype(np.float64)
        weights = drawn[whole.of_row]
        for measure in measures:
            yield measure(weights)


def _bounds(drawn: Doubles) -> tuple[Doubles, Doubles]:
    """Percentiles of each column, over the resamples that determine it."""
    low, high = np.full(drawn.shape[1], np.nan), np.full(drawn.shape[1], np.nan)
    for i, column in enumerate(drawn.T):
        known = column[np.isfinite(column)]
        if len(known):
            low[i], high[i] = np.quantile(known, [_LOW, _HIGH])
    return low, high
