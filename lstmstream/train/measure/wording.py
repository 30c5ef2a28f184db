"""Measures and numbers for a person: what `evaluate` and the report say alike."""

from __future__ import annotations

import numpy as np

from lstmstream.train.measure.intervals import Interval

MEANINGS = {
    "average_precision": "area under precision over recall; by chance: the share of positives",
    "roc_auc": "a positive scores above a negative; by chance: 0.5",
    "precision_at": "share of positives among so many highest scores",
    "precision": "share of alerts that are right",
    "recall": "share of positives that alert",
    "f1": "harmonic mean of precision and recall",
    "alert_share": "share of events that alert",
    "alerts_per_day": "on average over the time of the data",
    "brier": "mean squared error of the probability; lower is better",
    "log_loss": "nats for each event; lower is better",
    "calibration_error": "mean distance of probability and frequency; lower is better",
    "accuracy": "share of right classes",
    "macro_f1": "mean F1 of the classes",
    "mae": "mean absolute error, in the field's unit",
    "rmse": "root of the mean squared error, in the field's unit",
    "mase": "absolute error as a share of the last value's; below 1 beats it",
}


def meaning(name: str) -> str:
    """What a measure says, in a few words; empty where the name says it."""
    plain = name.partition("[")[0]
    if plain == "recall" and "[" in name:
        return "share of the class that is found"
    return MEANINGS.get(plain, MEANINGS["precision_at"] if plain.startswith("precision_at_") else "")


def number(value: float) -> str:
    """Four digits that count; a dash where there is no number."""
    if not np.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def span(one: Interval) -> str:
    """The interval as text, empty where it is not known."""
    return f"{number(one['low'])} to {number(one['high'])}" if np.isfinite(one["low"]) else ""
