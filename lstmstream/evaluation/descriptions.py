"""Metrics and numbers as text, for `evaluate` and the training report."""

from __future__ import annotations

import numpy as np

from lstmstream.evaluation.intervals import Interval

MEANINGS = {
    "average_precision": "area under the precision-recall curve; by chance: the fraction of positives",
    "roc_auc": "probability that a positive scores above a negative; by chance: 0.5",
    "precision_at": "fraction of positives among the K highest scores",
    "precision": "fraction of alerts that are correct",
    "recall": "fraction of positives that raise an alert",
    "f1": "harmonic mean of precision and recall",
    "alert_share": "fraction of events that raise an alert",
    "alerts_per_day": "on all events, labelled or not; average over the time, for all keys",
    "brier": "mean squared error of the probability; lower is better",
    "log_loss": "nats per event; lower is better",
    "calibration_error": "mean gap between probability and observed frequency; lower is better",
    "accuracy": "fraction of events whose predicted class is correct",
    "macro_f1": "mean F1 of the classes",
    "mae": "mean absolute error, in the field's unit",
    "rmse": "root of the mean squared error, in the field's unit",
    "mase": "error relative to forecasting the last value; below 1 is better",
}


def meaning(name: str) -> str:
    """The meaning of a metric in a few words; empty for a name that explains itself."""
    plain = name.partition("[")[0]
    if plain == "recall" and "[" in name:
        return "fraction of the class that is found"
    return MEANINGS.get(plain, MEANINGS["precision_at"] if plain.startswith("precision_at_") else "")


def format_number(value: float) -> str:
    """Four significant digits, whole numbers from 10,000 on; a dash for NaN."""
    if not np.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def format_interval(interval: Interval) -> str:
    """The ends of the interval; empty where they are not known."""
    if not np.isfinite(interval["low"]):
        return ""
    return f"{format_number(interval['low'])} to {format_number(interval['high'])}"
