"""From which score on to alert: chosen on the validation part by a rule that the user states.

The daemon alerts where score >= float32(threshold), so every candidate is one of the part's own float32 scores, and
what is returned gives that float32 back. Never sees the test part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lstmstream.errors import CannotServe
from lstmstream.train.measure.metrics import Doubles, Judged, alerts, rank

Kind = Literal["f1", "alerts_per_day", "cost", "value", "none"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a threshold is chosen. `value` belongs to alerts_per_day and value; the costs to cost."""

    kind: Kind
    value: float = 0.0  # alerts a day; the threshold itself
    missed: float = 0.0  # cost of a positive without an alert
    alert: float = 0.0  # cost of every alert, right or wrong

    @property
    def text(self) -> str:
        """The rule for a person, as the card keeps it."""
        return {
            "f1": "the highest F1",
            "alerts_per_day": f"at most {self.value:g} alerts a day on average",
            "cost": f"the least cost, with {self.missed:g} for a missed positive and {self.alert:g} for each alert",
            "value": f"given as {self.value:g}",
            "none": "none",
        }[self.kind]


def check(judged: Judged, rule: Rule) -> None:
    """Raises CannotServe where the rule cannot choose on this part. Looks at labels and times only, not at scores."""
    if judged.task == "forecast" or rule.kind in {"value", "none"}:
        return
    if not len(judged):
        raise CannotServe("threshold.rule: the validation part is empty; give it events with split.validation")
    if rule.kind in {"f1", "cost"}:
        _check_labels(judged, rule)
    if rule.kind == "alerts_per_day" and judged.days <= 0:
        raise CannotServe(
            "threshold.alerts_per_day: the validation part's events all have the same time or none, so there is no day"
            " to count by; name the time's column under data.timestamp, or use another rule"
        )


def _check_labels(judged: Judged, rule: Rule) -> None:
    if not judged.has_labels:
        raise CannotServe(
            f"threshold.rule: {rule.kind} needs labels, and the validation part has none; use alerts_per_day, value or"
            " none"
        )
    positives, rows = int((judged.label > 0).sum()), len(judged.labelled)
    if positives == 0:
        raise CannotServe(
            f"threshold.rule: {rule.kind} cannot choose, as none of the {rows} labelled events of the validation part"
            " is positive; split so that it has some, or use alerts_per_day, value or none"
        )
    if positives == rows:
        raise CannotServe(
            f"threshold.rule: {rule.kind} cannot choose, as all {rows} labelled events of the validation part are"
            " positive; split so that it has others too, or use value or none"
        )


def choose(judged: Judged, rule: Rule) -> tuple[float | None, str]:
    """(threshold, what was done and what it gives on this part). None: no alerts.

    `judged` is the validation part. Of equally good thresholds the highest is taken, so the fewest alerts, except that
    an alert budget is used up: on new data that catches more. Raises CannotServe as `check` does.
    """
    check(judged, rule)
    if rule.kind == "none":
        return None, "No threshold was asked for; nothing alerts."
    if judged.task == "forecast" and rule.kind != "value":
        return None, "A forecast has no threshold; nothing alerts."
    if rule.kind == "value":
        return rule.value, f"Threshold {rule.value:g} was given.{_outcome(judged, rule.value)}"
    if rule.kind == "alerts_per_day":
        best = _within(judged, int(np.floor(rule.value * judged.days)))
    else:
        best = _by_labels(judged, rule)
    threshold = float(str(best))  # the shortest text of the float32, as the card's JSON has it
    return threshold, f"Threshold {threshold:g} was chosen for {rule.text}.{_outcome(judged, threshold)}"


def _within(judged: Judged, budget: int) -> np.float32:
    """The lowest score with at most `budget` alerts; above all scores where even the highest has too many."""
    falling = np.sort(judged.score)[::-1]
    if budget >= len(falling):
        return np.float32(falling[-1])
    # alerts at falling[i] include all equal scores, so step over those tied with the first one that is too many
    above = np.flatnonzero(falling[:budget] > falling[budget])
    return np.float32(falling[above[-1]]) if len(above) else _above(falling[0])


def _by_labels(judged: Judged, rule: Rule) -> np.float32:
    ranked = rank(judged)
    hits, raised = ranked.counts(np.ones(len(judged)))
    positives = len(ranked.positives)
    if rule.kind == "f1":
        return np.float32(ranked.score[_first_best(2 * hits / (raised + positives))])
    saved = rule.missed * hits - rule.alert * raised
    best = _first_best(saved)
    return np.float32(ranked.score[best]) if saved[best] > 0 else _above(ranked.score[0])


def _first_best(values: Doubles) -> int:
    """First index, so highest score, of the maximum; differences of rounding do not count."""
    return int(np.flatnonzero(values >= values.max() - 1e-12 * max(1.0, abs(float(values.max()))))[0])


def _above(score: np.float32) -> np.float32:
    return np.float32(np.nextafter(np.float32(score), np.float32(np.inf)))


def _outcome(judged: Judged, threshold: float) -> str:
    """What the threshold gives on the part, as further sentences; empty for a part without events."""
    if not len(judged):
        return ""
    raised = alerts(judged, threshold)
    count = int(raised.sum())
    rate = f" ({count / judged.days:.3g} a day)" if judged.days > 0 else ""
    text = f" On the validation part it gives {count} alerts{rate} in {len(judged)} events"
    positives = int((judged.label > 0).sum())
    if positives:
        hits = int((judged.label[raised] > 0).sum())
        text += f" and finds {hits} of {positives} positives"
        if not judged.is_binary:
            text += f" (any class but {judged.names[0]!r})"
    return text + "."
