"""Pairs a model's outputs with the true values of the same events: which events are evaluated, and against what.

The only place that defines the truth of a task; the validation split, the test split and `evaluate` all use it.
Computes no metric and reads no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmstream.errors import CannotServe
from lstmstream.evaluation.metrics import Evaluated
from lstmstream.history.events import Events
from lstmstream.model.card import Card
from lstmstream.records import Bools, Floats, Ints


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a model predicts."""

    task: str  # classify | forecast | anomaly
    numbers: tuple[str, ...]  # names of the columns of Events.x
    targets: tuple[str, ...] = ()  # the columns that are forecast, of `numbers`
    horizon: int = 1  # number of events ahead that are forecast
    classes: tuple[str, ...] = ()  # values of the label; the first is the normal one
    per: str = "event"  # or "sequence": the label is that of a key, and counts at its last event

    @classmethod
    def from_card(cls, card: Card) -> TaskSpec:
        """The task of a trained model; an imported forecast model predicts all numbers, one event ahead."""
        fields: dict[str, Any] = card.training.get("fields", {})
        numbers = tuple(feature.name for feature in card.numbers)
        targets = tuple(fields.get("targets") or ())
        return cls(
            task=card.task,
            numbers=numbers,
            targets=targets or (numbers if card.task == "forecast" else ()),
            horizon=int(fields.get("horizon") or 1),
            classes=tuple(map(str, fields.get("classes") or ())),
            per=fields.get("per") or "event",
        )

    @property
    def columns(self) -> list[int]:
        """Indices of the columns of Events.x that are forecast."""
        return [self.numbers.index(target) for target in self.targets]

    @property
    def names(self) -> tuple[str, ...]:
        """[P] The classes, or a name for each column of a forecast: t+1 of every target, then t+2, ..."""
        if self.task == "classify":
            return self.classes or ("0", "1")
        return tuple(f"{target} t+{ahead}" for ahead in range(1, self.horizon + 1) for target in self.targets)


def align_with_truth(
    spec: TaskSpec | Card, events: Events, score: Floats, prediction: Floats | None, mask: Bools | None = None
) -> Evaluated:
    """The events of a split that the daemon would answer, with the model's outputs and the true values.

    `score` [N] and `prediction` [N, P] are those of all events, `mask` [N] selects the split (None: all events). Left
    out are outputs that are not finite and, of forecasts, events without a known value in the next `horizon`. Values
    outside the split count as unknown, so that the end of a validation split does not see the test split.
    With `per: sequence` a label is known only of keys whose last event is in the split, and at that event.
    Raises CannotServe where the prediction does not have the columns of the task.
    """
    spec = TaskSpec.from_card(spec) if isinstance(spec, Card) else spec
    if spec.task == "forecast" and prediction is None:
        prediction = score[:, None]
    rows = evaluated_rows(spec, events, score, mask)
    truth = naive = np.empty((0, 0), np.float32)
    if spec.targets and prediction is not None and prediction.shape[1]:
        if prediction.shape[1] != len(spec.names):
            raise CannotServe(
                f"the model forecasts {prediction.shape[1]} values, but {spec.horizon} ahead of"
                f" {', '.join(map(repr, spec.targets))} are {len(spec.names)}; name the forecast fields with --target"
            )
        truth = _future_values(spec, events, rows, mask)
        naive = np.tile(last_known(events, spec.columns)[rows], (1, spec.horizon))
    label, sequence = np.empty(0, np.int64), key_index(events, rows)
    if len(events.label):
        label = np.array(events.label[rows])
        if spec.per == "sequence":
            label[rows != events.starts[sequence + 1] - 1] = -1
    return Evaluated(
        task=spec.task,
        sequence=sequence,
        timestamp=np.asarray(events.timestamp[rows]),
        score=score[rows],
        prediction=None if prediction is None else prediction[rows],
        label=label,
        truth=truth,
        names=spec.names,
        naive=naive,
        timed=events.timed,
        per=spec.per,
    )


def evaluated_rows(spec: TaskSpec, events: Events, score: Floats, mask: Bools | None = None) -> Ints:
    """[N'] The rows of `events` that `align_with_truth` evaluates, in their order. Arguments as there."""
    rows = np.arange(len(score)) if mask is None else np.flatnonzero(mask)
    rows = rows[np.isfinite(score[rows])]
    if spec.task == "forecast":
        rows = rows[np.isfinite(_future_values(spec, events, rows, mask)).any(axis=1)]
    return rows


def key_index(events: Events, rows: Ints) -> Ints:
    """[N'] Index of the key of each row."""
    return np.asarray(np.searchsorted(events.starts, rows, side="right") - 1)


def _future_values(spec: TaskSpec, events: Events, rows: Ints, mask: Bools | None) -> Floats:
    """[N', P] The targets' values 1 to horizon events later; NaN where the key has none, or none in the split."""
    end = events.starts[key_index(events, rows) + 1]
    truth = np.full((len(rows), len(spec.names)), np.nan, np.float32)
    width = len(spec.targets)
    for ahead in range(1, spec.horizon + 1):
        exists = rows + ahead < end
        if mask is not None:
            exists[exists] = mask[rows[exists] + ahead]
        truth[exists, (ahead - 1) * width : ahead * width] = events.x[rows[exists] + ahead][:, spec.columns]
    return truth


def last_known(events: Events, columns: list[int]) -> Floats:
    """[N, len(columns)] The key's last value that is not missing, up to and including each event; NaN without one."""
    last = np.empty((len(events.timestamp), len(columns)), np.float32)
    row = np.arange(len(last))
    first = np.repeat(events.starts[:-1], np.diff(events.starts))
    for place, column in enumerate(columns):
        values = np.asarray(events.x[:, column])
        known = np.maximum.accumulate(np.where(np.isnan(values), -1, row)) if len(row) else row
        last[:, place] = np.where(known >= first, values[known], np.nan)
    return last
