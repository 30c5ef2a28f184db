"""The data of the report's plots, thinned so that the report of a million events stays small.

Knows nothing of HTML; report.js draws a `Plot` as it is. Models that are compared share their x values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lstmstream.evaluation.alert_counts import alert_counts
from lstmstream.evaluation.metrics import (
    CALIBRATION_BINS,
    Doubles,
    Evaluated,
    calibration_bin,
    compute_metrics,
    rank_by_score,
)
from lstmstream.records import Ints

CURVE_POINTS = 200
FORECAST_POINTS = 400  # of one series
MAX_SERIES = 12  # pairs of key and column to choose from
MAX_COLUMNS = 6  # of a forecast
MAX_CLASSES = 6  # in the histogram of scores
BINS = 40
Numbers = Sequence[float] | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot: a y value for each x of the plot, NaN for a gap."""

    name: str
    values: Numbers
    style: Literal["line", "dashed", "points", "steps", "area"] = "line"
    colour: int = 0  # index into the palette of report.css


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over the same x values. Plots with the same id share a figure, with `choice` in its selector."""

    id: str
    title: str
    caption: str
    x_label: str
    y_label: str
    x: Numbers
    series: tuple[Series, ...]
    x_scale: Literal["linear", "log", "time"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    marks: tuple[tuple[float, str], ...] = field(default=())  # vertical lines: x and label
    choice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The plot as JSON values: numbers with five significant digits, times in seconds to the millisecond."""
        digits = 13 if self.x_scale == "time" else 5
        return {
            "id": self.id,
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "xScale": self.x_scale,
            "yScale": self.y_scale,
            "xRange": self.x_range,
            "yRange": self.y_range,
            "marks": [[_round(x), text] for x, text in self.marks],
            "choice": self.choice,
            "x": [_round(value, digits) for value in np.asarray(self.x, np.float64).tolist()],
            "series": [
                {
                    "name": one.name,
                    "style": one.style,
                    "colour": one.colour,
                    "y": [_round(value) for value in np.asarray(one.values, np.float64).tolist()],
                }
                for one in self.series
            ],
        }


def _round(value: float, digits: int = 5) -> float | None:
    """The value with so many significant digits; None where it is not finite."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


def learning_curves(history: Sequence[Mapping[str, float]], chosen: int) -> list[Plot]:
    """Losses by epoch, and the metric that the epoch is chosen by, where that is not the loss."""
    if not history:
        return []
    epochs = [epoch["epoch"] for epoch in history]
    marks = ((float(chosen), "kept"),) if chosen else ()

    def column(name: str) -> list[float]:
        return [float(epoch.get(name, np.nan)) for epoch in history]

    losses = (Series("training", column("train_loss")), Series("validation", column("validation_loss"), colour=1))
    caption = "If the validation loss rises while the training loss still falls, the network overfits."
    plots = [Plot("loss", "Loss by epoch", caption, "epoch", "loss", epochs, losses, marks=marks)]
    metric = column("metric")
    if np.isfinite(metric).any() and not np.allclose(np.negative(metric), column("validation_loss"), equal_nan=True):
        series = (Series("validation", metric, colour=1),)
        caption = "The metric by which the epoch was chosen; higher is better."
        plots.append(Plot("metric", "Metric by epoch", caption, "epoch", "metric", epochs, series, marks=marks))
    return plots


def forecast_plots(evaluated: Evaluated, keys: Sequence[str]) -> list[Plot]:
    """Forecast and truth of the longest keys, up to their last events, one event and `horizon` events ahead."""
    assert evaluated.prediction is not None
    sequence, counts = np.unique(evaluated.sequence, return_counts=True)
    longest = sequence[np.argsort(-counts, kind="stable")]
    columns = _columns_to_show(evaluated)
    plots: list[Plot] = []
    for key in longest[: max(1, MAX_SERIES // len(columns))].tolist():
        rows = np.flatnonzero(evaluated.sequence == key)[-FORECAST_POINTS:]
        for column in columns:
            ahead = _ahead(evaluated.names[column])
            if len(rows) <= ahead:
                continue
            target_times = evaluated.timestamp[rows[ahead:]] / 1000
            forecast_rows = rows[: len(rows) - ahead]
            choice = evaluated.names[column] if len(sequence) == 1 else f"{keys[key]} · {evaluated.names[column]}"
            series = (
                Series("truth", evaluated.truth[forecast_rows, column], colour=2),
                Series("forecast", evaluated.prediction[forecast_rows, column], "dashed"),
            )
            title = "Forecast and true value"
            caption = (
                f"At most the last {FORECAST_POINTS} events of the split, each at the time that its forecast is for."
            )
            name = evaluated.names[column].rpartition(" t+")[0]
            plots.append(
                Plot(
                    "forecast", title, caption, "time (UTC)", name, target_times, series, x_scale="time", choice=choice
                )
            )
    return plots[:MAX_SERIES]


def _columns_to_show(evaluated: Evaluated) -> list[int]:
    """Columns of the prediction for one event ahead and for the whole horizon, a few of them."""
    ahead = [_ahead(name) for name in evaluated.names]
    columns = [column for column, events in enumerate(ahead) if events in {1, max(ahead)}]
    return columns[:MAX_COLUMNS]


def _ahead(name: str) -> int:
    """How many events ahead the column with this name forecasts."""
    return int(name.rpartition(" t+")[2])


def error_by_horizon(evaluated: Evaluated) -> list[Plot]:
    """The mean MASE of the columns by how many events ahead they forecast; no plot for fewer than three."""
    ahead = np.array([_ahead(name) for name in evaluated.names])
    if ahead.max() < 3:
        return []
    metrics = compute_metrics(evaluated)
    horizons = np.unique(ahead)
    mase = [
        float(np.mean([metrics.get(f"mase[{evaluated.names[c]}]", np.nan) for c in np.flatnonzero(ahead == horizon)]))
        for horizon in horizons
    ]
    series = (Series("model", mase), Series("last value", np.ones(len(horizons)), "dashed", 3))
    caption = "Below 1 the model is better than the last value."
    return [Plot("horizon", "Error by horizon", caption, "events ahead", "MASE", horizons, series)]


def score_histogram(evaluated: Evaluated, threshold: float | None) -> Plot:
    """Share of the events by score, for each class where there are labels; the log scale shows rare ones."""
    low, high = float(evaluated.score.min()), float(evaluated.score.max())
    if evaluated.is_probability or evaluated.task == "anomaly":
        low, high = min(0.0, low), max(1.0, high)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    series = []
    for colour, (name, rows) in enumerate(_groups(evaluated)):
        shares = np.histogram(evaluated.score[rows], edges)[0] / max(1, len(rows))
        shares = np.maximum(shares, 0.5 / len(evaluated))  # there is no zero on a log scale; this is its lower end
        series.append(Series(name, np.append(shares, shares[-1]), "steps", colour))
    caption = (
        "Fraction of events per score, on a log scale. The fractions of each class add up to 1; the bottom of the"
        " scale is zero."
    )
    return Plot(
        "scores", "Scores", caption, "score", "fraction of events", edges, tuple(series), y_scale="log",
        marks=_threshold_mark(threshold),
    )  # fmt: skip


def _groups(evaluated: Evaluated) -> list[tuple[str, Ints]]:
    """Names and rows of the classes; of all events where there are no labels."""
    label = evaluated.alert_label
    if not evaluated.has_labels:
        return [("all events", np.arange(len(evaluated)))]
    if evaluated.is_binary:
        names = evaluated.names if evaluated.task == "classify" else ("normal", "anomaly")
        return [(names[0], np.flatnonzero(label == 0)), (names[1], np.flatnonzero(label > 0))]
    present = [i for i in range(len(evaluated.names)) if (label == i).any()][:MAX_CLASSES]
    return [(evaluated.names[i], np.flatnonzero(label == i)) for i in present]


def _threshold_mark(threshold: float | None) -> tuple[tuple[float, str], ...]:
    return () if threshold is None else ((float(threshold), "threshold"),)


def scores_over_time(evaluated: Evaluated, threshold: float | None) -> Plot:
    """Highest and mean score of all keys by time."""
    time = evaluated.timestamp / 1000
    edges = np.linspace(time.min(), max(time.max(), time.min() + 1), CURVE_POINTS + 1)
    bins = np.clip(np.searchsorted(edges, time, side="right") - 1, 0, CURVE_POINTS - 1)
    used, bins = np.unique(bins, return_inverse=True)  # intervals without events are not drawn
    highest = np.full(len(used), -np.inf)
    np.maximum.at(highest, bins, evaluated.score)
    mean = np.bincount(bins, evaluated.score.astype(np.float64)) / np.bincount(bins)
    series = [Series("highest", highest), Series("mean", mean, colour=2)]
    if threshold is not None:
        series.append(Series("threshold", np.full(len(used), threshold), "dashed", 3))
    caption = "Highest and mean score over all keys, per time interval."
    return Plot("time", "Scores over time", caption, "time (UTC)", "score", edges[used], tuple(series), x_scale="time")


@dataclass(frozen=True, slots=True)
class _RankingCounts:
    """Labelled events at or above each distinct score, from 0 up: how many are positive, and how many in all."""

    positives: Doubles
    rows: Doubles


def _ranking_counts(evaluated: Evaluated) -> _RankingCounts:
    positives, rows = rank_by_score(evaluated).counts(np.ones(len(evaluated)))
    return _RankingCounts(np.append(0.0, positives), np.append(0.0, rows))


def ranking_curves(models: Mapping[str, Evaluated], threshold: float | None) -> list[Plot]:
    """Precision and recall, ROC, and alerts per day against recall; none without both classes.

    `models` has the model first, then the baselines, all on the same events. `threshold` is the model's.
    """
    model = next(iter(models.values()))
    labels = model.label[model.labelled] > 0
    if not labels.any() or labels.all():
        return []
    curves = {name: _ranking_counts(evaluated) for name, evaluated in models.items()}
    positives, rows = float(labels.sum()), float(len(labels))
    at_threshold = compute_metrics(model, threshold) if threshold is not None else {}
    per_event = model.per == "event"  # else the threshold's recall, over all events of a key, is not on these curves
    recall_mark = ((at_threshold["recall"], "threshold"),) if "recall" in at_threshold and per_event else ()
    at = "" if per_event else " At each key's last event."
    recall = np.linspace(0, 1, CURVE_POINTS + 1)
    false_positive_rate = np.unique(np.concatenate([np.linspace(0, 1, CURVE_POINTS + 1), np.geomspace(1e-4, 1, 60)]))
    plots = [
        Plot(
            "pr", "Precision and recall",
            f"Precision: fraction of alerts that are correct. Recall: fraction of positives that are found.{at}",
            "recall", "precision", recall,
            (*_lines(curves, lambda c: _precision_at_recall(c, recall)),
             Series("chance", np.full(len(recall), positives / rows), "dashed", 3)),
            x_range=(0, 1), y_range=(0, 1), marks=recall_mark,
        ),
        Plot(
            "roc", "ROC", f"Fraction of positives found against fraction of negatives that raise an alert.{at}",
            "false positive rate", "true positive rate", false_positive_rate,
            (*_lines(curves, lambda c: _recall_at_false_positive_rate(c, false_positive_rate)),
             Series("chance", false_positive_rate, "dashed", 3)),
            x_range=(0, 1), y_range=(0, 1),
        ),
    ]  # fmt: skip
    if model.days > 0:
        counts = {name: alert_counts(evaluated) for name, evaluated in models.items()}
        per_day = {name: np.append(0.0, c.alerts) * model.per_day(1) for name, c in counts.items()}
        found = {name: np.append(0.0, c.found) / c.positives for name, c in counts.items()}
        low = min(float(rate[1]) for rate in per_day.values())
        rates = np.geomspace(max(low, 1e-6), max(float(rate[-1]) for rate in per_day.values()), CURVE_POINTS)
        lines = tuple(
            Series(name, np.interp(rates, per_day[name], found[name]), colour=i) for i, name in enumerate(counts)
        )
        alert_rate = at_threshold.get("alerts_per_day", 0)
        plots.append(
            Plot(
                "alerts", "Alerts per day against recall", "How many positives a larger alert budget would find.",
                "alerts per day", "recall", rates, lines, x_scale="log", y_range=(0, 1),
                marks=((alert_rate, "threshold"),) if alert_rate > 0 else (),
            )
        )  # fmt: skip
    return plots


def _lines(curves: Mapping[str, _RankingCounts], y_of: Callable[[_RankingCounts], Doubles]) -> tuple[Series, ...]:
    return tuple(Series(name, y_of(counts), colour=i) for i, (name, counts) in enumerate(curves.items()))


def _precision_at_recall(counts: _RankingCounts, recall: Doubles) -> Doubles:
    """The precision of the fewest alerts that reach each recall; both are [n]."""
    index = np.searchsorted(counts.positives / counts.positives[-1], recall - 1e-12)
    index = np.maximum(1, np.minimum(index, len(counts.positives) - 1))
    return np.asarray(counts.positives[index] / counts.rows[index])


def _recall_at_false_positive_rate(counts: _RankingCounts, rate: Doubles) -> Doubles:
    """The recall at each rate of false positives; both are [n]."""
    negatives = counts.rows - counts.positives
    return np.asarray(np.interp(rate, negatives / negatives[-1], counts.positives / counts.positives[-1]))


def calibration_plot(evaluated: Evaluated, note: str = "") -> Plot | None:
    """Observed frequency by predicted probability; None where the scores are not between 0 and 1.

    `note` is a sentence for the caption.
    """
    if not evaluated.has_labels or not evaluated.is_probability:
        return None
    rows = evaluated.labelled
    if evaluated.is_binary:
        predicted, correct = evaluated.score[rows].astype(np.float64), evaluated.label[rows] > 0
        x_label, y_label = "predicted probability", "fraction of positives"
    elif evaluated.prediction is not None:
        predicted = evaluated.prediction[rows].max(axis=1).astype(np.float64)
        correct = evaluated.prediction[rows].argmax(axis=1) == evaluated.label[rows]
        x_label, y_label = "probability of the predicted class", "fraction that is correct"
    else:
        return None
    bins = calibration_bin(predicted)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    used = count > 0
    x = np.bincount(bins, predicted, CALIBRATION_BINS)[used] / count[used]
    frequency = np.bincount(bins, correct, CALIBRATION_BINS)[used] / count[used]
    caption = (
        "On the diagonal, predicted probabilities match the observed frequencies. Each point is one of"
        f" {CALIBRATION_BINS} bins."
    )
    caption += f" {note}" if note else ""
    axis = np.unique(np.concatenate([[0.0, 1.0], x]))
    points = np.full(len(axis), np.nan)
    points[np.searchsorted(axis, x)] = frequency
    series = (Series("model", points, "points"), Series("ideal", axis, "dashed", 3))
    return Plot("calibration", "Calibration", caption, x_label, y_label, axis, series, x_range=(0, 1), y_range=(0, 1))
