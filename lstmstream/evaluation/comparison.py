"""Whether the network is better than the best baseline, from a paired interval of the difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lstmstream.evaluation.intervals import Interval, paired_difference
from lstmstream.evaluation.metrics import LOWER_IS_BETTER, Evaluated, compute_metrics

METRIC_NAMES = {
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "mase": "relative error (MASE)",
}


_FORECASTS_ONLY = (
    " The data have no labels, so this says nothing about which faults the alerts find: look at the highest scores, and"
    " name known faults by target.field to have them counted."
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result for a report, and what it is based on."""

    better: bool | None  # whether the network is better beyond chance; None where that cannot be known
    answer: str  # Yes, No or Unclear
    text: str  # one or two sentences
    metric: str = ""
    baseline: str = ""  # the best one
    difference: Interval | None = None  # positive where the network is better
    forecasts_only: bool = False  # an anomaly model without labels: whether it finds faults is not what was compared


def main_metric(evaluated: Evaluated) -> str:
    """The metric by which models of the task are compared."""
    if evaluated.task == "forecast" or not evaluated.has_labels:
        return "mase"
    return "average_precision" if evaluated.is_binary else "accuracy"


def compare(
    model: Evaluated, baselines: Mapping[str, Evaluated], *, called: str = "LSTM", resamples: int = 200, seed: int = 0
) -> Comparison:
    """The model against the baseline that is best on these events. `called` is the model's name in the text."""
    name = main_metric(model)
    forecasts_only = model.task == "anomaly" and not model.has_labels
    note = _FORECASTS_ONLY if forecasts_only else ""
    ours = compute_metrics(model).get(name, np.nan)
    theirs = {other: compute_metrics(evaluated).get(name, np.nan) for other, evaluated in baselines.items()}
    theirs = {other: value for other, value in theirs.items() if np.isfinite(value)}
    if not np.isfinite(ours) or not theirs:
        text = f"Nothing can be compared: the split has no baseline or no true values.{note}"
        return Comparison(None, "Unclear", text, forecasts_only=forecasts_only)
    best = (min if name in LOWER_IS_BETTER else max)(theirs, key=lambda other: theirs[other])
    difference = paired_difference(model, baselines[best], name, resamples=resamples, seed=seed)
    values = f"{METRIC_NAMES[name]} {ours:.3g}, against {theirs[best]:.3g} for the best baseline, {best!r}"
    if np.isnan(difference["low"]):
        text = f"The {called} has {values}. There are too few events to tell this apart from chance; evaluate on more."
        return Comparison(None, "Unclear", text + note, name, best, difference, forecasts_only)
    interval = (
        f"a difference of {_signed(difference['value'])} (95 % interval {_signed(difference['low'])} to"
        f" {_signed(difference['high'])}; + is better)"
    )
    better = difference["low"] > 0
    if better:
        text = f"The {called} has {values}: {interval}."
    elif difference["high"] < 0:
        remedy = "Find" if forecasts_only else "Use the baseline, or find"
        text = f"The {called} is worse: {values}: {interval}. {remedy} what went wrong in training."
    elif forecasts_only:
        text = f"The {called} has {values}: {interval}, which may be chance."
    else:
        text = (
            f"The {called} has {values}: {interval}, which may be chance. The baseline is simpler and, as far as these"
            " events show, just as good."
        )
    return Comparison(better, "Yes" if better else "No", text + note, name, best, difference, forecasts_only)


def _signed(value: float) -> str:
    """Two significant digits with a sign; 0 without."""
    return f"{value:+.2g}" if value else "0"
