"""What a model said, held against what came: the numbers of each task, from plain arrays.

Knows `Judged` and nothing else: no model, no file, no torch. Every measure takes a weight for each row, so that the
bootstrap in intervals.py is this same code run with the counts of resampled keys. A measure that the rows do not
determine (a recall without positives) is NaN here, and `measure` leaves it out.

    binary     average_precision, roc_auc, precision_at_K; brier, log_loss, calibration_error where the score is a
               probability; precision, recall, f1, alerts_per_day at a threshold
    K classes  accuracy, macro_f1, log_loss, calibration_error, recall[CLASS]; at a threshold, with "any class but the
               first" as what alerts should find, as binary
    forecast   mae, rmse, mase: means over the columns of mae[COLUMN] and so on
    anomaly    with labels as binary, without calibration; in any case score_p50, p90, p99, p999 and, at a threshold,
               alert_share; of its forecasts as above
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmstream.serve.records import Bools, Floats, Ints

Doubles = NDArray[np.float64]
Weights = Doubles  # [N'] how often each row counts
Values = dict[str, float]
Measure = Callable[[Weights], Values]

CALIBRATION_BINS = 15  # of equal width; Guo et al. 2017, "On Calibration of Modern Neural Networks"
QUANTILES = {"score_p50": 0.5, "score_p90": 0.9, "score_p99": 0.99, "score_p999": 0.999}
DAY_MS = 86_400_000
LOWER_IS_BETTER = ("mae", "rmse", "mase", "brier", "log_loss", "calibration_error")


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model said of the N' events of one part (validation, test) that count, and what came."""

    task: str  # classify | forecast | anomaly
    sequence: Ints  # [N'] index of the key
    timestamp: Ints  # [N'] milliseconds since 1970 UTC
    score: Floats  # [N']
    prediction: Floats | None  # [N', P]
    label: Ints  # [N'] class index (anomaly: 0 or 1), -1 unknown; [0] without labels
    truth: Floats  # [N', P] what came, raw units, NaN unknown; [0, 0] where there is none
    names: tuple[str, ...]  # the classes, or a name for each column of prediction ("value t+1")
    naive: Floats  # [N', P] last value known at the event, raw units; [0, 0] where there is none
    timed: bool = True  # whether `timestamp` is the data's own; else only the order counts

    def __len__(self) -> int:
        return len(self.score)

    @property
    def labelled(self) -> Ints:
        """Rows whose label is known."""
        return np.flatnonzero(self.label >= 0)

    @property
    def has_labels(self) -> bool:
        """Whether any row has one."""
        return bool((self.label >= 0).any())

    @property
    def is_binary(self) -> bool:
        """Whether labels are only 0 and 1."""
        return self.task == "anomaly" or len(self.names) <= 2

    @property
    def is_probability(self) -> bool:
        """Whether the score claims to be the probability of label 1. An anomaly score and a plain number do not."""
        return self.task == "classify" and bool(((self.score >= 0) & (self.score <= 1)).all())

    @property
    def days(self) -> float:
        """From the first event to the last; 0 where the data do not say when."""
        return float(np.ptp(self.timestamp)) / DAY_MS if len(self) and self.timed else 0.0


def alerts(judged: Judged, threshold: float) -> Bools:
    """[N'] Where the daemon would alert: score >= float32(threshold)."""
    return judged.score >= np.float32(threshold)


def measure(judged: Judged, threshold: float | None = None, *, k: Collection[int] = (100,)) -> Values:
    """Every measure of the part that its rows determine; the module's text lists them."""
    values = prepare(judged, threshold, k=k)(np.ones(len(judged)))
    return {name: value for name, value in values.items() if np.isfinite(value)}


def prepare(judged: Judged, threshold: float | None = None, *, k: Collection[int] = (100,)) -> Measure:
    """A function from row weights [N'] to all measures, NaN where undetermined; what can be is computed once, here."""
    measures: list[Measure] = []
    if judged.has_labels and judged.task != "forecast":
        if judged.is_binary:
            measures.append(_ranking(judged, k))
            if judged.is_probability:
                measures.append(_probabilities(judged))
        else:
            measures.append(_classes(judged))
        if threshold is not None:
            measures.append(_at_threshold(judged, threshold))
    if judged.task == "anomaly":
        measures.append(_scores(judged))
    if threshold is not None and judged.task != "forecast":
        measures.append(_alerts(judged, threshold))
    if judged.truth.size and judged.prediction is not None:
        measures.append(_errors(judged, judged.prediction))
    return lambda weights: {name: value for each in measures for name, value in each(weights).items()}


class Ranked(NamedTuple):
    """Labelled rows by falling score, in steps, as no threshold can part rows of equal score.

    Neighbouring steps without a positive are one step: no measure can tell them apart, and positives are often rare.
    """

    rows: Ints  # [L] indices into the part
    positives: Ints  # [M] positions in `rows` of those whose label is above 0
    ends: Ints  # [G] last position of each step
    score: Floats  # [G] lowest score of each step, falling

    def counts(self, weights: Weights) -> tuple[Doubles, Doubles]:
        """(positives, rows) down to each step; [G] each."""
        sorted_weights = weights[self.rows]
        found = np.append(0.0, np.cumsum(sorted_weights[self.positives]))
        return found[np.searchsorted(self.positives, self.ends, side="right")], np.cumsum(sorted_weights)[self.ends]


def rank(judged: Judged) -> Ranked:
    """Sorts once; every ranking measure, curve and threshold then comes from `counts`."""
    rows = judged.labelled
    rows = rows[np.argsort(-judged.score[rows], kind="stable")]
    score = judged.score[rows]
    positive = judged.label[rows] > 0
    ends = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if len(rows) else np.empty(0, np.int64)
    has_positive = np.diff(np.append(0, np.cumsum(positive)[ends])) > 0
    wanted = has_positive | np.append(has_positive[1:], True) if len(rows) else has_positive
    return Ranked(rows, np.flatnonzero(positive), ends[wanted], score[ends[wanted]])


def average_precision(found: Doubles, seen: Doubles) -> float:
    """Σ (recall_g - recall_g-1) · precision_g over distinct scores g; NaN without positives."""
    total = found[-1]
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    return float(np.diff(found, prepend=0.0) @ precision / total) if total > 0 else np.nan


def roc_auc(found: Doubles, seen: Doubles) -> float:
    """Share of pairs of a positive and a negative that are in the right order, ties half; NaN with one class only."""
    missed = seen - found
    pairs = found[-1] * missed[-1]
    new = np.diff(found, prepend=0.0)
    return float(np.diff(missed, prepend=0.0) @ (found - new / 2) / pairs) if pairs > 0 else np.nan


def precision_at(found: Doubles, seen: Doubles, k: int) -> float:
    """Share of positives among the k highest scores; of those tied at the k-th, the expected share. NaN if fewer."""
    if seen[-1] < k:
        return np.nan
    return float(np.interp(k, np.append(0.0, seen), np.append(0.0, found))) / k


def _ranking(judged: Judged, k: Collection[int]) -> Measure:
    ranked = rank(judged)

    def values(weights: Weights) -> Values:
        found, seen = ranked.counts(weights)
        return {
            "average_precision": average_precision(found, seen),
            "roc_auc": roc_auc(found, seen),
            **{f"precision_at_{top}": precision_at(found, seen, top) for top in sorted({100, *k})},
        }

    return values


def _probabilities(judged: Judged) -> Measure:
    """Brier: mean (score - label)^2. Log loss: mean -ln of the probability given to what came, cut at 1e-7."""
    rows = judged.labelled
    score, positive = judged.score[rows].astype(np.float64), (judged.label[rows] > 0).astype(np.float64)
    brier, log_loss = (score - positive) ** 2, _surprise(np.where(positive > 0, score, 1 - score))
    calibration = _calibration(score, positive)

    def values(weights: Weights) -> Values:
        weights = _of(weights, rows)
        return {
            "brier": _mean(brier, weights),
            "log_loss": _mean(log_loss, weights),
            "calibration_error": calibration(weights),
        }

    return values


def _calibration(confidence: Doubles, right: Doubles) -> Callable[[Weights], float]:
    """Expected calibration error: Σ over bins of (rows in it / rows) · |mean confidence - share that was right|."""
    bins = calibration_bin(confidence)
    gap = confidence - right

    def value(weights: Weights) -> float:
        gaps = np.bincount(bins, weights * gap, CALIBRATION_BINS)
        return _ratio(float(np.abs(gaps).sum()), float(weights.sum()))

    return value


def calibration_bin(confidence: Doubles) -> Ints:
    """[N] Which of the bins of equal width over 0..1."""
    return np.clip((confidence * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)


def _at_threshold(judged: Judged, threshold: float) -> Measure:
    rows = judged.labelled
    positive, alert = (judged.label[rows] > 0).astype(np.float64), alerts(judged, threshold)[rows].astype(np.float64)
    both = positive * alert

    def values(weights: Weights) -> Values:
        weights = _of(weights, rows)
        hits, alerted, positives = float(both @ weights), float(alert @ weights), float(positive @ weights)
        return {
            "precision": _ratio(hits, alerted),
            "recall": _ratio(hits, positives),
            "f1": _ratio(2 * hits, alerted + positives),
        }

    return values


def _alerts(judged: Judged, threshold: float) -> Measure:
    alert, days = alerts(judged, threshold).astype(np.float64), judged.days

    def values(weights: Weights) -> Values:
        raised = float(alert @ weights)
        return {"alert_share": _ratio(raised, float(weights.sum())), "alerts_per_day": _ratio(raised, days)}

    return values


def _scores(judged: Judged) -> Measure:
    """Quantiles: the least score that the given share of the rows does not exceed."""
    order = np.argsort(judged.score, kind="stable")
    score = judged.score[order]

    def values(weights: Weights) -> Values:
        cumulated = np.cumsum(weights[order])
        if not len(score) or cumulated[-1] <= 0:
            return dict.fromkeys(QUANTILES, np.nan)
        where = np.searchsorted(cumulated, np.array(list(QUANTILES.values())) * cumulated[-1])
        return dict(zip(QUANTILES, score[np.minimum(where, len(score) - 1)].tolist(), strict=True))

    return values


def _classes(judged: Judged) -> Measure:
    """The class said is the one of the highest probability. Macro F1: mean over classes that came or were said."""
    assert judged.prediction is not None
    rows, count = judged.labelled, len(judged.names)
    label, prediction = judged.label[rows], judged.prediction[rows].astype(np.float64)
    said = prediction.argmax(axis=1)
    right = (said == label).astype(np.float64)
    probable = bool(((prediction >= 0) & (prediction <= 1)).all())
    log_loss = _surprise(prediction[np.arange(len(rows)), label]) if probable else np.full(len(rows), np.nan)
    calibration = _calibration(prediction.max(axis=1), right) if probable else lambda _: np.nan

    def values(weights: Weights) -> Values:
        weights = _of(weights, rows)
        came, claimed = np.bincount(label, weights, count), np.bincount(said, weights, count)
        hits = np.bincount(label, weights * right, count)
        there = came + claimed > 0
        return {
            "accuracy": _mean(right, weights),
            "macro_f1": float(np.mean(2 * hits[there] / (came + claimed)[there])) if there.any() else np.nan,
            "log_loss": _mean(log_loss, weights),
            "calibration_error": calibration(weights),
            **{f"recall[{name}]": _ratio(hits[i], came[i]) for i, name in enumerate(judged.names)},
        }

    return values


def _errors(judged: Judged, prediction: Floats) -> Measure:
    """MAE, RMSE, MASE of each column over the rows whose truth is known, and their means over the columns.

    MASE = Σ |truth - prediction| / Σ |truth - naive|, both over the rows whose naive forecast, the last value known
    at the event, is known too: below 1 beats it. (Hyndman & Koehler 2006 scale by the training part's naive error;
    the same rows above and below make the number comparable between parts.)
    """
    truth = judged.truth.astype(np.float64)
    error = np.abs(truth - prediction)
    naive = np.abs(truth - judged.naive)
    known, both = np.isfinite(error), np.isfinite(error) & np.isfinite(naive)
    columns = [
        (known[:, j], error[known[:, j], j], both[:, j], error[both[:, j], j], naive[both[:, j], j])
        for j in range(truth.shape[1])
    ]

    def values(weights: Weights) -> Values:
        each: dict[str, list[float]] = {"mae": [], "rmse": [], "mase": []}
        for rows, errors, pairs, ours, theirs in columns:
            each["mae"].append(_mean(errors, weights[rows]))
            each["rmse"].append(float(np.sqrt(_mean(errors**2, weights[rows]))))
            each["mase"].append(_ratio(float(ours @ weights[pairs]), float(theirs @ weights[pairs])))
        # a column that never changes has no MASE; the others still have
        known = {name: [value for value in values if np.isfinite(value)] for name, values in each.items()}
        out = {name: float(np.mean(values)) if values else np.nan for name, values in known.items()}
        if len(columns) > 1:
            out |= {f"{name}[{judged.names[j]}]": value for name in each for j, value in enumerate(each[name])}
        return out

    return values


def _of(weights: Weights, rows: Ints) -> Weights:
    return weights if len(rows) == len(weights) else weights[rows]


def _surprise(probability: Doubles) -> Doubles:
    return -np.log(np.maximum(probability, 1e-7))


def _mean(values: Doubles, weights: Weights) -> float:
    return _ratio(float(values @ weights), float(weights.sum()))


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0 else np.nan
