"""Metrics of each task from plain arrays: a model's outputs against the true values of the same events.

Every metric takes a weight for each row, so that the bootstrap in intervals.py runs this code with the counts of
resampled keys. A metric that the rows do not determine (recall without positives) is NaN, and `compute_metrics` leaves
it out.

    binary     average_precision, roc_auc, precision_at_K; brier, log_loss, calibration_error where the score is a
               probability; precision, recall, f1, alerts_per_day at a threshold
    K classes  accuracy, macro_f1, log_loss, calibration_error, recall[CLASS]; at a threshold as binary, with every
               class but the first as positive
    forecast   mae, rmse, mase: means over the columns of mae[COLUMN] and so on
    anomaly    with labels as binary, without calibration; always score_p50, p90, p99, p999 and, at a threshold,
               alert_share; of its forecasts as above

Alerts are counted on all events that the daemon would answer, labelled or not. Where the label is that of a whole key
(`Evaluated.per`), ranking metrics and probabilities take the key's last event, while an alert is right at any event of
a positive key, and recall is the share of positive keys with an alert.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmstream.records import Bools, Floats, Ints

Doubles = NDArray[np.float64]
Weights = Doubles  # [N'] how often each row counts
MetricValues = dict[str, float]
MetricFunction = Callable[[Weights], MetricValues]

CALIBRATION_BINS = 15  # of equal width; Guo et al. 2017, "On Calibration of Modern Neural Networks"
QUANTILES = {"score_p50": 0.5, "score_p90": 0.9, "score_p99": 0.99, "score_p999": 0.999}
DAY_MS = 86_400_000
LOWER_IS_BETTER = ("mae", "rmse", "mase", "brier", "log_loss", "calibration_error")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A model's outputs and the true values of the N' events of one split that the daemon would answer."""

    task: str  # classify | forecast | anomaly
    sequence: Ints  # [N'] index of the key
    timestamp: Ints  # [N'] milliseconds since 1970 UTC
    score: Floats  # [N']
    prediction: Floats | None  # [N', P]
    label: Ints  # [N'] class index (anomaly: 0 or 1), -1 unknown; [0] without labels; `per` says at which events
    truth: Floats  # [N', P] true values of the forecast in raw units, NaN where unknown; [0, 0] without a forecast
    names: tuple[str, ...]  # the classes, or a name for each column of the prediction ("value t+1")
    naive: Floats  # [N', P] last value known at the event, raw units; [0, 0] without a forecast
    timed: bool = True  # whether `timestamp` comes from the data; else only its order counts
    per: str = "event"  # or "sequence": `label` is that of the key as a whole, and known at its last event only
    span_days: float | None = None  # the time that the events stand for; None: from the first to the last
    stream_share: float = (
        1.0  # the part of the stream in that time that they are, such as the split's share of the keys
    )

    def __len__(self) -> int:
        return len(self.score)

    @property
    def labelled(self) -> Ints:
        """[L] Indices of the rows whose label is known."""
        return np.flatnonzero(self.label >= 0)

    @property
    def has_labels(self) -> bool:
        """Whether the label of any row is known."""
        return bool((self.label >= 0).any())

    @property
    def is_binary(self) -> bool:
        """Whether the only labels are 0 and 1."""
        return self.task == "anomaly" or len(self.names) <= 2

    @property
    def is_probability(self) -> bool:
        """Whether the score is the probability of label 1; an anomaly score and a forecast are not."""
        return self.task == "classify" and bool(((self.score >= 0) & (self.score <= 1)).all())

    @property
    def days(self) -> float:
        """The time that the events stand for, in days; 0 where the data have no timestamps."""
        if not len(self) or not self.timed:
            return 0.0
        return float(np.ptp(self.timestamp)) / DAY_MS if self.span_days is None else self.span_days

    def per_day(self, count: float) -> float:
        """The daily rate, in the whole stream, of what occurs `count` times here; NaN where times are not known."""
        return _ratio(float(count), self.days * self.stream_share)

    @property
    def alert_label(self) -> Ints:
        """[N'] The label by which an alert at an event is right or wrong, -1 unknown; [0] without labels."""
        if self.per == "event" or not len(self.label):
            return self.label
        of_key = np.full(int(self.sequence.max()) + 1, -1)
        of_key[self.sequence[self.labelled]] = self.label[self.labelled]
        return np.asarray(of_key[self.sequence])


def alerts(evaluated: Evaluated, threshold: float) -> Bools:
    """[N'] Whether the daemon would alert: score >= float32(threshold)."""
    return evaluated.score >= np.float32(threshold)


def compute_metrics(
    evaluated: Evaluated, threshold: float | None = None, *, k: Collection[int] = (100,)
) -> MetricValues:
    """Every metric that the rows determine, by name (see the module's docstring). `k`: the K of precision_at_K."""
    values = metric_function(evaluated, threshold, k=k)(np.ones(len(evaluated)))
    return {name: value for name, value in values.items() if np.isfinite(value)}


def metric_function(
    evaluated: Evaluated, threshold: float | None = None, *, k: Collection[int] = (100,)
) -> MetricFunction:
    """A function from row weights [N'] to all metrics, NaN where undetermined. Sorting is done here, once."""
    functions: list[MetricFunction] = []
    if evaluated.has_labels and evaluated.task != "forecast":
        if evaluated.is_binary:
            functions.append(_ranking(evaluated, k))
            if evaluated.is_probability:
                functions.append(_probabilities(evaluated))
        else:
            functions.append(_classes(evaluated))
        if threshold is not None:
            functions.append(_at_threshold(evaluated, threshold))
    if evaluated.task == "anomaly":
        functions.append(_scores(evaluated))
    if threshold is not None and evaluated.task != "forecast":
        functions.append(_alerts(evaluated, threshold))
    if evaluated.truth.size and evaluated.prediction is not None:
        functions.append(_errors(evaluated, evaluated.prediction))
    return lambda weights: {name: value for function in functions for name, value in function(weights).items()}


class Ranking(NamedTuple):
    """Labelled rows by falling score, in groups that no threshold can separate.

    Rows of equal score are one group. So are neighbouring groups without a positive, which no metric distinguishes:
    positives are often rare.
    """

    rows: Ints  # [L] indices into the evaluated rows
    positives: Ints  # [M] positions in `rows` of those whose label is above 0
    ends: Ints  # [G] last position of each group
    score: Floats  # [G] lowest score of each group, falling

    def counts(self, weights: Weights) -> tuple[Doubles, Doubles]:
        """Weighted numbers of positives [G] and of rows [G] from the top down to each group."""
        sorted_weights = weights[self.rows]
        hits = np.append(0.0, np.cumsum(sorted_weights[self.positives]))
        return hits[np.searchsorted(self.positives, self.ends, side="right")], np.cumsum(sorted_weights)[self.ends]


def rank_by_score(evaluated: Evaluated) -> Ranking:
    """Sorts the labelled rows once; ranking metrics, curves and thresholds all use `Ranking.counts`."""
    rows = evaluated.labelled
    rows = rows[np.argsort(-evaluated.score[rows], kind="stable")]
    score = evaluated.score[rows]
    positive = evaluated.label[rows] > 0
    ends = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if len(rows) else np.empty(0, np.int64)
    has_positive = np.diff(np.append(0, np.cumsum(positive)[ends])) > 0
    wanted = has_positive | np.append(has_positive[1:], True) if len(rows) else has_positive
    return Ranking(rows, np.flatnonzero(positive), ends[wanted], score[ends[wanted]])


def average_precision(hits: Doubles, counts: Doubles) -> float:
    """Σ (recall_g - recall_g-1) · precision_g over the groups g of `Ranking.counts`; NaN without positives."""
    total = hits[-1]
    precision = np.divide(hits, counts, out=np.zeros_like(hits), where=counts > 0)
    return float(np.diff(hits, prepend=0.0) @ precision / total) if total > 0 else np.nan


def roc_auc(hits: Doubles, counts: Doubles) -> float:
    """Share of pairs of a positive and a negative in the right order, ties count half; NaN with one class only."""
    negatives = counts - hits
    pairs = hits[-1] * negatives[-1]
    new = np.diff(hits, prepend=0.0)
    return float(np.diff(negatives, prepend=0.0) @ (hits - new / 2) / pairs) if pairs > 0 else np.nan


def precision_at(hits: Doubles, counts: Doubles, k: int) -> float:
    """Share of positives among the k highest scores; of ties at the k-th the expected share. NaN with fewer rows."""
    if counts[-1] < k:
        return np.nan
    return float(np.interp(k, np.append(0.0, counts), np.append(0.0, hits))) / k


def _ranking(evaluated: Evaluated, k: Collection[int]) -> MetricFunction:
    ranking = rank_by_score(evaluated)

    def values(weights: Weights) -> MetricValues:
        hits, counts = ranking.counts(weights)
        return {
            "average_precision": average_precision(hits, counts),
            "roc_auc": roc_auc(hits, counts),
            **{f"precision_at_{top}": precision_at(hits, counts, top) for top in sorted({100, *k})},
        }

    return values


def _probabilities(evaluated: Evaluated) -> MetricFunction:
    """Brier score: mean (score - label)^2. Log loss: mean -ln of the true label's probability, clipped at 1e-7."""
    rows = evaluated.labelled
    score, positive = evaluated.score[rows].astype(np.float64), (evaluated.label[rows] > 0).astype(np.float64)
    brier, log_loss = (score - positive) ** 2, _negative_log(np.where(positive > 0, score, 1 - score))
    calibration = _calibration(score, positive)

    def values(weights: Weights) -> MetricValues:
        weights = _take(weights, rows)
        return {
            "brier": _mean(brier, weights),
            "log_loss": _mean(log_loss, weights),
            "calibration_error": calibration(weights),
        }

    return values


def _calibration(confidence: Doubles, right: Doubles) -> Callable[[Weights], float]:
    """Expected calibration error: Σ over bins of (share of the rows) · |mean confidence - accuracy in the bin|."""
    bins = calibration_bin(confidence)
    gap = confidence - right

    def value(weights: Weights) -> float:
        gaps = np.bincount(bins, weights * gap, CALIBRATION_BINS)
        return _ratio(float(np.abs(gaps).sum()), float(weights.sum()))

    return value


def calibration_bin(confidence: Doubles) -> Ints:
    """[N] Index of the confidence's bin, of CALIBRATION_BINS of equal width over 0 to 1."""
    return np.clip((confidence * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)


def _at_threshold(evaluated: Evaluated, threshold: float) -> MetricFunction:
    alert, label = alerts(evaluated, threshold), evaluated.alert_label
    judged, right = (alert & (label >= 0)).astype(np.float64), (alert & (label > 0)).astype(np.float64)
    positive = (evaluated.label > 0).astype(np.float64)  # events, or the last ones of keys
    found = positive * (alert if evaluated.per == "event" else np.isin(evaluated.sequence, evaluated.sequence[alert]))

    def values(weights: Weights) -> MetricValues:
        counts = [np.array(float(each @ weights)) for each in (right, judged, found, positive)]
        return {
            "precision": _ratio(float(counts[0]), float(counts[1])),
            "recall": _ratio(float(counts[2]), float(counts[3])),
            "f1": float(f1_scores(*counts)),
        }

    return values


def f1_scores(right: Doubles, judged: Doubles, found: Doubles, positives: Doubles) -> Doubles:
    """The harmonic mean of precision, right / judged, and recall, found / positives; NaN without either.

    `right` of the `judged` alerts are at positives, and `found` of the `positives` have an alert. Any shapes.
    """
    below = right * positives + found * judged
    none = np.where(judged + positives > 0, 0.0, np.nan)
    return np.asarray(np.where(below > 0, 2 * right * found / np.where(below > 0, below, 1), none))


def _alerts(evaluated: Evaluated, threshold: float) -> MetricFunction:
    alert = alerts(evaluated, threshold).astype(np.float64)

    def values(weights: Weights) -> MetricValues:
        raised = float(alert @ weights)
        return {"alert_share": _ratio(raised, float(weights.sum())), "alerts_per_day": evaluated.per_day(raised)}

    return values


def _scores(evaluated: Evaluated) -> MetricFunction:
    """Quantiles: the lowest score that the given share of the rows does not exceed."""
    order = np.argsort(evaluated.score, kind="stable")
    score = evaluated.score[order]

    def values(weights: Weights) -> MetricValues:
        cumulated = np.cumsum(weights[order])
        if not len(score) or cumulated[-1] <= 0:
            return dict.fromkeys(QUANTILES, np.nan)
        where = np.searchsorted(cumulated, np.array(list(QUANTILES.values())) * cumulated[-1])
        return dict(zip(QUANTILES, score[np.minimum(where, len(score) - 1)].tolist(), strict=True))

    return values


def _classes(evaluated: Evaluated) -> MetricFunction:
    """The predicted class has the highest probability. Macro F1: mean over classes that occur or are predicted."""
    assert evaluated.prediction is not None
    rows, count = evaluated.labelled, len(evaluated.names)
    label, prediction = evaluated.label[rows], evaluated.prediction[rows].astype(np.float64)
    predicted = prediction.argmax(axis=1)
    right = (predicted == label).astype(np.float64)
    probable = bool(((prediction >= 0) & (prediction <= 1)).all())
    log_loss = _negative_log(prediction[np.arange(len(rows)), label]) if probable else np.full(len(rows), np.nan)
    calibration = _calibration(prediction.max(axis=1), right) if probable else lambda _: np.nan

    def values(weights: Weights) -> MetricValues:
        weights = _take(weights, rows)
        actual, claimed = (np.bincount(classes, weights, count) for classes in (label, predicted))
        hits = np.bincount(label, weights * right, count)
        present = actual + claimed > 0
        return {
            "accuracy": _mean(right, weights),
            "macro_f1": float(np.mean(2 * hits[present] / (actual + claimed)[present])) if present.any() else np.nan,
            "log_loss": _mean(log_loss, weights),
            "calibration_error": calibration(weights),
            **{f"recall[{name}]": _ratio(hits[i], actual[i]) for i, name in enumerate(evaluated.names)},
        }

    return values


def _errors(evaluated: Evaluated, prediction: Floats) -> MetricFunction:
    """MAE, RMSE and MASE of each column over the rows whose truth is known, and their means over the columns.

    MASE = Σ |truth - prediction| / Σ |truth - naive|, both sums over the rows that also have a naive forecast, the
    last value known at the event; below 1 is better than naive. (Hyndman & Koehler 2006 scale by the naive error of
    the training split; with the same rows in both sums the metric can be compared between splits.)
    """
    truth = evaluated.truth.astype(np.float64)
    error = np.abs(truth - prediction)
    naive = np.abs(truth - evaluated.naive)
    known, both = np.isfinite(error), np.isfinite(error) & np.isfinite(naive)
    columns = [
        (known[:, j], error[known[:, j], j], both[:, j], error[both[:, j], j], naive[both[:, j], j])
        for j in range(truth.shape[1])
    ]

    def values(weights: Weights) -> MetricValues:
        each: dict[str, list[float]] = {"mae": [], "rmse": [], "mase": []}
        for rows, errors, pairs, ours, theirs in columns:
            each["mae"].append(_mean(errors, weights[rows]))
            each["rmse"].append(float(np.sqrt(_mean(errors**2, weights[rows]))))
            each["mase"].append(_ratio(float(ours @ weights[pairs]), float(theirs @ weights[pairs])))
        # a column that never changes has no MASE; the mean is over the others
        known = {name: [value for value in values if np.isfinite(value)] for name, values in each.items()}
        out = {name: float(np.mean(values)) if values else np.nan for name, values in known.items()}
        if len(columns) > 1:
            out |= {f"{name}[{evaluated.names[j]}]": value for name in each for j, value in enumerate(each[name])}
        return out

    return values


def _take(weights: Weights, rows: Ints) -> Weights:
    return weights if len(rows) == len(weights) else weights[rows]


def _negative_log(probability: Doubles) -> Doubles:
    return -np.log(np.maximum(probability, 1e-7))


def _mean(values: Doubles, weights: Weights) -> float:
    return _ratio(float(values @ weights), float(weights.sum()))


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0 else np.nan
