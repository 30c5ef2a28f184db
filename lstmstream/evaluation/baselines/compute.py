"""All baselines of a task by name."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lstmstream.evaluation.alignment import TaskSpec, key_index, last_known
from lstmstream.evaluation.baselines.anomalies import centroid_distance, ewma, scaled_error
from lstmstream.evaluation.baselines.classes import classify_baselines
from lstmstream.evaluation.baselines.forecasts import (
    Autoregression,
    key_means,
    means,
    seasonal,
    standard_deviations,
)
from lstmstream.evaluation.baselines.inputs import DenseInputs
from lstmstream.evaluation.metrics import Evaluated
from lstmstream.history.events import Events
from lstmstream.records import Floats, Ints

MAX_ROWS = 200_000  # of the training split; more are sampled
DAY_S, WEEK_S = 86_400.0, 604_800.0


class Baselines(NamedTuple):
    """The baselines of a task."""

    evaluated: dict[str, Evaluated]  # by name, on the same events as the model
    notes: list[str]  # sentences for the reader, as on what was sampled


def compute_baselines(
    spec: TaskSpec,
    events: Events,
    evaluated: Evaluated,
    rows: Ints,
    *,
    training: Ints,
    dense: DenseInputs | None = None,
    period_s: float | None = None,
) -> Baselines:
    """The baselines on the same events as `evaluated`. `rows` [N'] are its rows in `events`, ascending.

    `training` are the ascending rows to learn from. Without `dense` the regressions use categories only. `period_s` is
    another season of a forecast, in seconds.
    """
    if spec.per == "sequence":
        training = np.intersect1d(training, events.starts[1:] - 1)
    if spec.task == "classify":
        training = training[events.label[training] >= 0] if len(events.label) else training[:0]
        found, notes = classify_baselines(spec.names, events, evaluated, rows, training, dense, max_rows=MAX_ROWS)
        return Baselines(found, notes)
    if not evaluated.truth.size:
        return Baselines({}, [])
    sample = training[:: max(1, -(-len(training) // MAX_ROWS))]
    autoregression = Autoregression(spec, events, training, max_rows=MAX_ROWS)
    notes = []
    if autoregression.learned_from < len(training):
        of_all = f"{autoregression.learned_from:,} of {len(training):,} events"
        notes.append(f"The linear autoregression learned from {of_all}.")
    if spec.task == "anomaly":
        return Baselines(_anomaly_baselines(spec, events, evaluated, rows, sample, autoregression), notes)
    overall = means(events, spec.columns, sample)
    forecasts = {
        "last value": evaluated.naive,
        "mean": np.tile(overall, (len(rows), spec.horizon)),
        "mean of the key": np.tile(key_means(events, spec.columns, rows, overall), (1, spec.horizon)),
        "linear autoregression": autoregression.forecast(rows),
    }
    periods = {"a day ago": DAY_S, "a week ago": WEEK_S}
    if period_s is not None:
        periods[f"{period_s:g} s ago"] = period_s
    for name, seconds in periods.items():
        ago = seasonal(spec, events, evaluated, rows, training, seconds)
        if ago is not None:
            forecasts[name] = ago
    return Baselines({name: replace(evaluated, prediction=values) for name, values in forecasts.items()}, notes)


def _anomaly_baselines(
    spec: TaskSpec, events: Events, evaluated: Evaluated, rows: Ints, sample: Ints, autoregression: Autoregression
) -> dict[str, Evaluated]:
    """Forecasts of the next event, with the scaled error of the forecast that was made for this one as the score."""
    present = np.asarray(events.x[rows])[:, spec.columns]
    scale, overall = standard_deviations(events, spec.columns, sample), means(events, spec.columns, sample)
    is_first = rows == events.starts[key_index(events, rows)]
    previous = np.maximum(0, rows - 1)

    def scored(forecast: Floats, before: Floats) -> Evaluated:
        error = present - np.where(is_first[:, None], np.nan, before)
        return replace(evaluated, prediction=forecast, score=scaled_error(error, scale))

    mean = np.tile(overall, (len(rows), 1))
    ewma_score, ewma_forecast = ewma(spec, events, rows, sample)
    return {
        "last value": scored(evaluated.naive, last_known(events, spec.columns)[previous]),
        "mean": replace(evaluated, prediction=mean, score=scaled_error(present - mean, scale)),
        "linear autoregression": scored(autoregression.forecast(rows), autoregression.forecast(previous)),
        "EWMA deviation": replace(evaluated, prediction=ewma_forecast, score=ewma_score),
        "nearest centroid": replace(evaluated, prediction=None, score=centroid_distance(spec, events, rows, sample)),
    }
