"""What each possible threshold would give: alerts, right ones and positives found, over all events of a split."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lstmstream.evaluation.metrics import Doubles, Evaluated
from lstmstream.records import Floats


class AlertCounts(NamedTuple):
    """The counts at each of the T distinct scores as threshold, falling."""

    score: Floats  # [T]
    alerts: Doubles  # [T] events at or above it, with a label or without
    judged: Doubles  # [T] alerts that are known to be right or wrong
    right: Doubles  # [T] alerts at positives
    found: Doubles  # [T] positives with an alert
    positives: int  # events, or keys where the label is that of a key


def alert_counts(evaluated: Evaluated) -> AlertCounts:
    """Sorts all events once. Without labels, only `score` and `alerts` are above 0."""
    order = np.argsort(-evaluated.score, kind="stable")
    score = evaluated.score[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if len(score) else np.empty(0, np.int64)
    label = evaluated.alert_label[order] if len(evaluated.label) else np.full(len(score), -1)
    positive = label > 0
    if evaluated.per == "sequence":  # a key is found by its first alert
        first = np.zeros(len(score), np.bool_)
        first[np.unique(evaluated.sequence[order], return_index=True)[1]] = True
        new = positive & first
    else:
        new = positive
    alerts, judged, right, found = (
        np.cumsum(rows, dtype=np.float64)[last] for rows in (np.ones(len(score)), label >= 0, positive, new)
    )
    return AlertCounts(score[last], alerts, judged, right, found, int((evaluated.label > 0).sum()))
