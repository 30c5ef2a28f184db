"""The score from which on events alert: chosen on the validation split by the user's rule.

The daemon alerts where score >= float32(threshold), so every candidate is one of the split's own float32 scores, and
the returned number converts back to that float32. Every rule counts the alerts on all events that the daemon would
answer, and a number per day is that of the whole stream (`Evaluated.per_day`). The test split plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lstmstream.errors import CannotServe
from lstmstream.evaluation.alert_counts import alert_counts
from lstmstream.evaluation.metrics import Doubles, Evaluated, alerts, f1_scores
from lstmstream.wording import counted

RuleKind = Literal["f1", "alerts_per_day", "cost", "value", "default", "none"]
ANOMALY_THRESHOLD = 0.5  # the default; the anomaly score is scaled to it
ANOMALY_SHARE = 0.005  # of the validation split's events that reach it


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """How a threshold is chosen. `value` is for the kinds alerts_per_day and value, the costs are for cost.

    `default` is ANOMALY_THRESHOLD, for anomalies alone.
    """

    kind: RuleKind
    value: float = 0.0  # alerts per day, or the threshold itself
    missed: float = 0.0  # cost of a positive without an alert
    alert: float = 0.0  # cost of every alert, right or wrong

    @property
    def text(self) -> str:
        """The rule in words, as the model card holds it."""
        return {
            "f1": "the highest F1",
            "alerts_per_day": f"at most {self.value:g} alerts per day on average",
            "cost": f"the lowest cost, with {self.missed:g} for a missed positive and {self.alert:g} for each alert",
            "value": f"threshold.value, {self.value:g}",
            "default": f"the default for anomalies, {ANOMALY_THRESHOLD:g}",
            "none": "none",
        }[self.kind]


def check_rule(evaluated: Evaluated, rule: ThresholdRule) -> None:
    """Raises CannotServe where the rule cannot choose on this split. Uses labels and times only, not scores."""
    if evaluated.task == "forecast" or rule.kind in {"value", "default", "none"}:
        return
    if not len(evaluated):
        raise CannotServe("threshold.rule: the validation split is empty; give it events with split.validation")
    if rule.kind in {"f1", "cost"}:
        _check_labels(evaluated, rule)
    if rule.kind == "alerts_per_day" and evaluated.days <= 0:
        raise CannotServe(
            "threshold.alerts_per_day: the events of the validation split have no timestamps or all the same, so alerts"
            " per day cannot be counted; name the field of the time under data.timestamp, or use another rule"
        )


def _check_labels(evaluated: Evaluated, rule: ThresholdRule) -> None:
    if not evaluated.has_labels:
        raise CannotServe(
            f"threshold.rule: {rule.kind} needs labels, but the validation split has none; use alerts_per_day, value or"
            " none"
        )
    positives, rows = int((evaluated.label > 0).sum()), len(evaluated.labelled)
    if positives == 0:
        raise CannotServe(
            f"threshold.rule: {rule.kind} cannot choose, as none of the {rows} labelled events of the validation split"
            " is positive; change the split so that it has some, or use alerts_per_day, value or none"
        )
    if positives == rows:
        raise CannotServe(
            f"threshold.rule: {rule.kind} cannot choose, as all {rows} labelled events of the validation split are"
            " positive; change the split so that it has others, or use value or none"
        )


def choose_threshold(evaluated: Evaluated, rule: ThresholdRule) -> tuple[float | None, str]:
    """The threshold (None: no alerts), and sentences about the choice and its result on this split.

    `evaluated` is the validation split. Of equally good thresholds the highest is taken, with the fewest alerts; only
    an alert budget is used up, which finds more on new data. Raises CannotServe as `check_rule` does.
    """
    check_rule(evaluated, rule)
    if rule.kind == "none":
        return None, "No threshold was requested; nothing alerts."
    if evaluated.task == "forecast" and rule.kind != "value":
        return None, "A forecast has no threshold; nothing alerts."
    if rule.kind == "value":
        return rule.value, f"Threshold {rule.value:g} was set by threshold.value.{_outcome(evaluated, rule.value)}"
    if rule.kind == "default":
        return ANOMALY_THRESHOLD, _default_text(evaluated)
    if rule.kind == "alerts_per_day":
        # what the split may use of the budget; 0.29 * 100 is 29, though not in float64
        best = _by_budget(evaluated, int(np.floor(rule.value * evaluated.days * evaluated.stream_share + 1e-9)))
    else:
        best = _by_labels(evaluated, rule)
    threshold = float(str(best))  # the shortest text of the float32, as in the JSON of the card
    return threshold, f"Threshold {threshold:g} was chosen for {rule.text}.{_outcome(evaluated, threshold)}"


def _default_text(evaluated: Evaluated) -> str:
    labels = ", or rule: f1 to use the labels" if 0 < (evaluated.label > 0).sum() < len(evaluated.labelled) else ""
    return (
        f"Threshold {ANOMALY_THRESHOLD:g} is the default for anomalies: scores are scaled so that 1 in"
        f" {1 / ANOMALY_SHARE:.0f} events of the validation split reaches it."
        f"{_outcome(evaluated, ANOMALY_THRESHOLD)} To choose the number of alerts yourself, set threshold.rule:"
        f" alerts_per_day{labels}."
    )


def _by_budget(evaluated: Evaluated, budget: int) -> np.float32:
    """The lowest score with at most `budget` alerts; a value above all scores where even the highest has too many."""
    falling = np.sort(evaluated.score)[::-1]
    if budget >= len(falling):
        return np.float32(falling[-1])
    # a threshold of falling[i] includes all equal scores, so skip those tied with the first one beyond the budget
    above = np.flatnonzero(falling[:budget] > falling[budget])
    return np.float32(falling[above[-1]]) if len(above) else _above(falling[0])


def _by_labels(evaluated: Evaluated, rule: ThresholdRule) -> np.float32:
    counts = alert_counts(evaluated)
    if rule.kind == "f1":
        f1 = f1_scores(counts.right, counts.judged, counts.found, np.array(float(counts.positives)))
        return np.float32(counts.score[_first_best(f1)])
    saved = rule.missed * counts.found - rule.alert * counts.alerts  # against no alerts at all
    best = _first_best(saved)
    return np.float32(counts.score[best]) if saved[best] > 0 else _above(counts.score[0])


def _first_best(values: Doubles) -> int:
    """The first index (the highest score) of the maximum, up to rounding."""
    return int(np.flatnonzero(values >= values.max() - 1e-12 * max(1.0, abs(float(values.max()))))[0])


def _above(score: np.float32) -> np.float32:
    """The next float32."""
    return np.float32(np.nextafter(np.float32(score), np.float32(np.inf)))


def _outcome(evaluated: Evaluated, threshold: float) -> str:
    """The threshold's result on the validation split, as one more sentence; empty for a split without events."""
    if not len(evaluated):
        return ""
    raised = alerts(evaluated, threshold)
    count = int(raised.sum())
    whole = " in the whole stream" if evaluated.stream_share < 1 else ""
    rate = f" ({evaluated.per_day(count):.3g} per day{whole})" if evaluated.days > 0 else ""
    text = f" On the validation split it gives {counted(count, 'alert')}{rate} in {counted(len(evaluated), 'event')}"
    positive = evaluated.label > 0
    if positive.any():
        per_key = evaluated.per == "sequence"
        hits = positive & (np.isin(evaluated.sequence, evaluated.sequence[raised]) if per_key else raised)
        text += f" and finds {int(hits.sum())} of {int(positive.sum())} {'positive keys' if per_key else 'positives'}"
        if not evaluated.is_binary:
            text += f" (any class but {evaluated.names[0]!r})"
    return text + "."
