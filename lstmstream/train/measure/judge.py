"""Which events count, and what came after them: from a model's answers to `Judged`.

The one place that knows what a truth is, used alike for the validation part, the test part and `evaluate`. Measures
nothing, reads no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmstream.card import Card
from lstmstream.errors import CannotServe
from lstmstream.serve.records import Bools, Floats, Ints
from lstmstream.train.history.data import Events
from lstmstream.train.measure.metrics import Judged


@dataclass(frozen=True, slots=True)
class Goal:
    """What a model says, and of what."""

    task: str  # classify | forecast | anomaly
    numbers: tuple[str, ...]  # the columns of Events.x
    targets: tuple[str, ...] = ()  # those of `numbers` that are forecast
    horizon: int = 1  # events ahead
    classes: tuple[str, ...] = ()  # the label's values, the usual one first
    per: str = "event"  # or sequence: only a key's last event counts

    @classmethod
    def of(cls, card: Card) -> Goal:
        """As the card of a trained model says; an imported forecast is of all numbers, one event ahead."""
        fields: dict[str, Any] = card.training.get("fields", {})
        numbers = tuple(feature.name for feature in card.numbers)
        known = tuple(fields.get("targets") or ())
        return cls(
            task=card.task,
            numbers=numbers,
            targets=known or (numbers if card.task == "forecast" else ()),
            horizon=int(fields.get("horizon") or 1),
            classes=tuple(map(str, fields.get("classes") or ())),
            per=fields.get("per") or "event",
        )

    @property
    def columns(self) -> list[int]:
        """Columns of Events.x that are forecast."""
        return [self.numbers.index(target) for target in self.targets]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, or a name for each column of the prediction: t+1 of all targets, then t+2, ..."""
        if self.task == "classify":
            return self.classes or ("0", "1")
        return tuple(f"{target} t+{ahead}" for ahead in range(1, self.horizon + 1) for target in self.targets)


def judge_events(
    goal: Goal | Card, events: Events, score: Floats, prediction: Floats | None, mask: Bools | None = None
) -> Judged:
    """The events of one part with what came; `score` [N] and `prediction` [N, P] are of all events, `mask` is the part.

    Left out are answers that are not finite and, of forecasts, events without a known value in the next `horizon`.
    What lies outside the part is not known: the last events of a validation part have no truth from the test part.
    Raises CannotServe where the prediction's columns are not the goal's.
    """
    goal = Goal.of(goal) if isinstance(goal, Card) else goal
    if goal.task == "forecast" and prediction is None:
        prediction = score[:, None]
    rows = rows_that_count(goal, events, score, mask)
    truth = naive = np.empty((0, 0), np.float32)
    if goal.targets and prediction is not None and prediction.shape[1]:
        if prediction.shape[1] != len(goal.names):
            raise CannotServe(
                f"the model forecasts {prediction.shape[1]} values, and {goal.horizon} ahead of"
                f" {', '.join(map(repr, goal.targets))} are {len(goal.names)}; name what it forecasts with --target"
            )
        truth = _what_came(goal, events, rows, mask)
        naive = np.tile(last_known(events, goal.columns)[rows], (1, goal.horizon))
    return Judged(
        task=goal.task,
        sequence=key_of(events, rows),
        timestamp=np.asarray(events.timestamp[rows]),
        score=score[rows],
        prediction=None if prediction is None else prediction[rows],
        label=np.asarray(events.label[rows]) if len(events.label) else np.empty(0, np.int64),
        truth=truth,
        names=goal.names,
        naive=naive,
        timed=events.timed,
    )


def rows_that_count(goal: Goal, events: Events, score: Floats, mask: Bools | None = None) -> Ints:
    """[N'] The rows of `events` that `judge_events` judges, in their order."""
    if goal.per == "sequence":
        rows = events.starts[1:] - 1
        rows = rows if mask is None else rows[mask[rows]]
    else:
        rows = np.arange(len(score)) if mask is None else np.flatnonzero(mask)
    rows = rows[np.isfinite(score[rows])]
    if goal.task == "forecast":
        rows = rows[np.isfinite(_what_came(goal, events, rows, mask)).any(axis=1)]
    return rows


def key_of(events: Events, rows: Ints) -> Ints:
    """[N'] Index of the key of each row."""
    return np.asarray(np.searchsorted(events.starts, rows, side="right") - 1)


def _what_came(goal: Goal, events: Events, rows: Ints, mask: Bools | None) -> Floats:
    """[N', P] The targets' values 1 .. horizon events later; NaN where the key has none, or not in this part."""
    end = events.starts[key_of(events, rows) + 1]
    truth = np.full((len(rows), len(goal.names)), np.nan, np.float32)
    width = len(goal.targets)
    for ahead in range(1, goal.horizon + 1):
        there = rows + ahead < end
        if mask is not None:
            there[there] = mask[rows[there] + ahead]
        truth[there, (ahead - 1) * width : ahead * width] = events.x[rows[there] + ahead][:, goal.columns]
    return truth


def last_known(events: Events, columns: list[int]) -> Floats:
    """[N, len(columns)] The last value that is not missing, of the key, up to and with each event."""
    last = np.empty((len(events.timestamp), len(columns)), np.float32)
    row = np.arange(len(last))
    first = np.repeat(events.starts[:-1], np.diff(events.starts))
    for place, column in enumerate(columns):
        values = np.asarray(events.x[:, column])
        known = np.maximum.accumulate(np.where(np.isnan(values), -1, row)) if len(row) else row
        last[:, place] = np.where(known >= first, values[known], np.nan)
    return last
