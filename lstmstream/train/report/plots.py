"""What the report draws, as plain numbers: thinned, so that a report of a million events stays small.

Knows nothing of HTML; report.js draws a `Plot` as it stands here. Models that are compared share one axis of x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lstmstream.serve.records import Ints
from lstmstream.train.measure.metrics import CALIBRATION_BINS, Doubles, Judged, calibration_bin, measure, rank

POINTS = 200  # of a curve
SERIES_POINTS = 400  # of a forecast
MOST_SERIES = 12  # keys and columns to choose from
BINS = 40
Numbers = Sequence[float] | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot. NaN is a gap."""

    name: str
    values: Numbers
    style: Literal["line", "dashed", "points", "steps", "area"] = "line"
    colour: int = 0  # of the palette


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over one x. Plots of one group share a place, with `choice` in a selector."""

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
    marks: tuple[tuple[float, str], ...] = field(default=())  # upright lines: x and what they say
    choice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values; numbers of five digits, times of milliseconds."""
        digits = 13 if self.x_scale == "time" else 5
        return {
            "id": self.id,
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "xScale": self.x_scale,
            "yScale": self.y_scale,
            "xRange": self.x_range,
            "yRange": self.y_range,
            "marks": [[_short(x), text] for x, text in self.marks],
            "choice": self.choice,
            "x": [_short(value, digits) for value in np.asarray(self.x, np.float64).tolist()],
            "series": [
                {
                    "name": one.name,
                    "style": one.style,
                    "colour": one.colour,
                    "y": [_short(value) for value in np.asarray(one.values, np.float64).tolist()],
                }
                for one in self.series
            ],
        }


def _short(value: float, digits: int = 5) -> float | None:
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


def learning_curves(history: Sequence[Mapping[str, float]], chosen: int) -> list[Plot]:
    """Losses by epoch, and the measure that the epochs are compared by, where there is one."""
    if not history:
        return []
    epochs = [line["epoch"] for line in history]
    marks = ((float(chosen), "kept"),) if chosen else ()

    def column(name: str) -> list[float]:
        return [float(line.get(name, np.nan)) for line in history]

    both = (Series("training", column("train_loss")), Series("validation", column("validation_loss"), colour=1))
    caption = "Where validation rises while training still falls, the network learns the training part by heart."
    plots = [Plot("loss", "Loss by epoch", caption, "epoch", "loss", epochs, both, marks=marks)]
    metric = column("metric")
    if np.isfinite(metric).any() and not np.allclose(np.negative(metric), column("validation_loss"), equal_nan=True):
        line = (Series("validation", metric, colour=1),)
        caption = "The measure that the kept epoch was chosen by; higher is better."
        plots.append(Plot("metric", "Measure by epoch", caption, "epoch", "measure", epochs, line, marks=marks))
    return plots


def forecasts(judged: Judged, keys: Sequence[str]) -> list[Plot]:
    """Forecast and truth of a few series, each up to its last events. The longest keys; first and last step ahead."""
    assert judged.prediction is not None
    sequence, counts = np.unique(judged.sequence, return_counts=True)
    longest = sequence[np.argsort(-counts, kind="stable")]
    columns = _columns_to_show(judged)
    plots: list[Plot] = []
    for key in longest[: max(1, MOST_SERIES // len(columns))].tolist():
        rows = np.flatnonzero(judged.sequence == key)[-SERIES_POINTS:]
        for column in columns:
            ahead = _ahead(judged.names[column])
            if len(rows) <= ahead:
                continue
            then = judged.timestamp[rows[ahead:]] / 1000  # when what is forecast came
            made = rows[: len(rows) - ahead]
            choice = judged.names[column] if len(sequence) == 1 else f"{keys[key]} · {judged.names[column]}"
            series = (
                Series("truth", judged.truth[made, column], colour=2),
                Series("forecast", judged.prediction[made, column], "dashed"),
            )
            title = "Forecast against truth"
            caption = f"The last {SERIES_POINTS} events of the part at most, at the time that the forecast is for."
            name = judged.names[column].rpartition(" t+")[0]
            plots.append(
                Plot("forecast", title, caption, "time (UTC)", name, then, series, x_scale="time", choice=choice)
            )
    return plots[:MOST_SERIES]


def _columns_to_show(judged: Judged) -> list[int]:
    """Columns of the first and the last step ahead, a few."""
    ahead = [_ahead(name) for name in judged.names]
    wanted = [column for column, steps in enumerate(ahead) if steps in {1, max(ahead)}]
    return wanted[:6]


def _ahead(name: str) -> int:
    return int(name.rpartition(" t+")[2])


def errors_by_step(judged: Judged) -> list[Plot]:
    """Error by how far ahead, as a share of the last value's."""
    ahead = np.array([_ahead(name) for name in judged.names])
    if ahead.max() < 3:
        return []
    found = measure(judged)
    steps = np.unique(ahead)
    each = [[found.get(f"mase[{judged.names[c]}]", np.nan) for c in np.flatnonzero(ahead == s)] for s in steps]
    mase = [float(np.mean(values)) for values in each]
    series = (Series("model", mase), Series("last value", np.ones(len(steps)), "dashed", 3))
    caption = "Below 1 the model is better than the last value."
    return [Plot("steps", "Error by how far ahead", caption, "events ahead", "MASE", steps, series)]


def score_histogram(judged: Judged, threshold: float | None) -> Plot:
    """Share of the events in each stretch of scores, by class where there are labels; a log scale shows rare ones."""
    low, high = float(judged.score.min()), float(judged.score.max())
    if judged.is_probability or judged.task == "anomaly":
        low, high = min(0.0, low), max(1.0, high)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    series = []
    for colour, (name, rows) in enumerate(_groups(judged)):
        shares = np.histogram(judged.score[rows], edges)[0] / max(1, len(rows))
        shares = np.maximum(shares, 0.5 / len(judged))  # a logarithm has no zero; this is the foot of the plot
        series.append(Series(name, np.append(shares, shares[-1]), "steps", colour))
    caption = "Share of the events by score, on a log scale. Each class adds up to 1; lines at the foot stand for none."
    return Plot(
        "scores", "Scores", caption, "score", "share of events", edges, tuple(series), y_scale="log",
        marks=_threshold_mark(threshold),
    )  # fmt: skip


def _groups(judged: Judged) -> list[tuple[str, Ints]]:
    if not judged.has_labels:
        return [("all events", np.arange(len(judged)))]
    if judged.is_binary:
        names = judged.names if judged.task == "classify" else ("usual", "anomaly")
        return [(names[i], np.flatnonzero((judged.label > 0) == bool(i) if i else judged.label == 0)) for i in (0, 1)]
    present = [i for i in range(len(judged.names)) if (judged.label == i).any()][:6]
    return [(judged.names[i], np.flatnonzero(judged.label == i)) for i in present]


def _threshold_mark(threshold: float | None) -> tuple[tuple[float, str], ...]:
    return () if threshold is None else ((float(threshold), "threshold"),)


def scores_over_time(judged: Judged, threshold: float | None) -> Plot:
    """Highest and mean score through time."""
    time = judged.timestamp / 1000
    edges = np.linspace(time.min(), max(time.max(), time.min() + 1), POINTS + 1)
    where = np.clip(np.searchsorted(edges, time, side="right") - 1, 0, POINTS - 1)
    there, where = np.unique(where, return_inverse=True)  # stretches without events are not drawn
    highest = np.full(len(there), -np.inf)
    np.maximum.at(highest, where, judged.score)
    mean = np.bincount(where, judged.score.astype(np.float64)) / np.bincount(where)
    series = [Series("highest", highest), Series("mean", mean, colour=2)]
    if threshold is not None:
        series.append(Series("threshold", np.full(len(there), threshold), "dashed", 3))
    caption = "All keys together, by stretches of time."
    return Plot("time", "Scores over time", caption, "time (UTC)", "score", edges[there], tuple(series), x_scale="time")


@dataclass(frozen=True, slots=True)
class _Counts:
    """Down to each step of the ranking, of the labelled events: positives found, events flagged."""

    found: Doubles
    seen: Doubles


def _counts(judged: Judged) -> _Counts:
    found, seen = rank(judged).counts(np.ones(len(judged)))
    return _Counts(np.append(0.0, found), np.append(0.0, seen))


def ranking_curves(models: Mapping[str, Judged], threshold: float | None) -> list[Plot]:
    """Precision and recall, ROC, alerts a day against recall; `models` holds the model first, then baselines."""
    first = next(iter(models.values()))
    labels = first.label[first.labelled] > 0
    if not labels.any() or labels.all():
        return []
    curves = {name: _counts(judged) for name, judged in models.items()}
    positives, rows = float(labels.sum()), float(len(labels))
    chosen = measure(first, threshold) if threshold is not None else {}
    recall_mark = ((chosen["recall"], "threshold"),) if "recall" in chosen else ()
    recall = np.linspace(0, 1, POINTS + 1)
    shares = np.unique(np.concatenate([np.linspace(0, 1, POINTS + 1), np.geomspace(1e-4, 1, 60)]))
    chance = positives / rows
    plots = [
        Plot(
            "pr", "Precision and recall", "Of the alerts, how many are right; of the positives, how many are found.",
            "recall", "precision", recall,
            (*_lines(curves, lambda c: _precision_at_recall(c, recall)),
             Series("chance", np.full(len(recall), chance), "dashed", 3)),
            x_range=(0, 1), y_range=(0, 1), marks=recall_mark,
        ),
        Plot(
            "roc", "ROC", "Positives found against false alarms, each as a share.", "share of negatives that alert",
            "share of positives found", shares,
            (*_lines(curves, lambda c: np.interp(shares, (c.seen - c.found) / (rows - positives), c.found / positives)),
             Series("chance", shares, "dashed", 3)),
            x_range=(0, 1), y_range=(0, 1),
        ),
    ]  # fmt: skip
    if first.days > 0:
        unlabelled = len(first) / rows  # alerts among events without a label, as often as among the others
        per_day = {name: c.seen * unlabelled / first.days for name, c in curves.items()}
        low = min(float(rate[1]) for rate in per_day.values())
        rates = np.geomspace(max(low, 1e-6), max(float(rate[-1]) for rate in per_day.values()), POINTS)
        lines = tuple(
            Series(name, np.interp(rates, per_day[name], c.found / positives), colour=i)
            for i, (name, c) in enumerate(curves.items())
        )
        mark = ((chosen["alerts_per_day"], "threshold"),) if chosen.get("alerts_per_day", 0) > 0 else ()
        plots.append(
            Plot(
                "alerts", "Alerts a day against recall", "What more people looking at alerts would find.",
                "alerts a day", "recall", rates, lines, x_scale="log", y_range=(0, 1), marks=mark,
            )
        )  # fmt: skip
    return plots


def _lines(curves: Mapping[str, _Counts], of: Any) -> tuple[Series, ...]:
    return tuple(Series(name, of(counts), colour=i) for i, (name, counts) in enumerate(curves.items()))


def _precision_at_recall(counts: _Counts, recall: Doubles) -> Doubles:
    """The precision of the fewest alerts that reach each recall."""
    step = np.searchsorted(counts.found / counts.found[-1], recall - 1e-12)
    step = np.maximum(1, np.minimum(step, len(counts.found) - 1))
    return np.asarray(counts.found[step] / counts.seen[step])


def calibration(judged: Judged) -> Plot | None:
    """How often it was so, by how likely it was said to be."""
    if not judged.has_labels or not judged.is_probability:
        return None
    rows = judged.labelled
    if judged.is_binary:
        said, so = judged.score[rows].astype(np.float64), judged.label[rows] > 0
        x_label, y_label = "probability said", "share that was positive"
    elif judged.prediction is not None:
        said = judged.prediction[rows].max(axis=1).astype(np.float64)
        so = judged.prediction[rows].argmax(axis=1) == judged.label[rows]
        x_label, y_label = "probability of the class said", "share that was right"
    else:
        return None
    bins = calibration_bin(said)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    there = count > 0
    x = np.bincount(bins, said, CALIBRATION_BINS)[there] / count[there]
    share = np.bincount(bins, so, CALIBRATION_BINS)[there] / count[there]
    caption = "On the diagonal, what is said to happen in 3 of 10 cases does. Each point is a 15th of the scale."
    axis = np.unique(np.concatenate([[0.0, 1.0], x]))
    points = np.full(len(axis), np.nan)
    points[np.searchsorted(axis, x)] = share
    series = (Series("model", points, "points"), Series("ideal", axis, "dashed", 3))
    return Plot("calibration", "Calibration", caption, x_label, y_label, axis, series, x_range=(0, 1), y_range=(0, 1))
