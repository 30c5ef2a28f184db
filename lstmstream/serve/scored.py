"""What the model made of a batch, and of parts of one that were scored one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lstmstream.records import DeadLetter, Ints, Predictions, T


class ChangedRows(NamedTuple):
    """The rows of one partition that a batch changed, by the offset of each row's first change."""

    rows: Ints  # [C]
    first_offsets: Ints  # [C] ascending


@dataclass(frozen=True, slots=True)
class Scored:
    """What the model made of M observations: each is one prediction or one dead letter."""

    predictions: Predictions
    dead_letters: list[DeadLetter]
    changed: dict[int, ChangedRows]  # by partition
    late_events: int
    expired: int
    resets: int  # states replaced by a fresh one after `reset_after` failures
    evicted: dict[int, Ints] = field(default_factory=dict)  # partition → rows, which are among `changed`


def joined(parts: list[Scored]) -> Scored:
    """Of one batch, in the order of its events."""
    if len(parts) == 1:
        return parts[0]
    answered = [part.predictions for part in parts if len(part.predictions.index)] or [parts[0].predictions]
    first = answered[0]
    predictions = Predictions(
        index=np.concatenate([one.index for one in answered]),
        score=np.concatenate([one.score for one in answered]),
        prediction=None if first.prediction is None else np.concatenate([_given(one.prediction) for one in answered]),
        alert=np.concatenate([one.alert for one in answered]),
        steps=np.concatenate([one.steps for one in answered]),
        reasons=None if first.reasons is None else np.concatenate([_given(one.reasons) for one in answered]),
        held_back=None if first.held_back is None else np.concatenate([_given(one.held_back) for one in answered]),
        notices=[notice for one in answered for notice in one.notices],
    )
    evicted: dict[int, Ints] = {}
    for part in parts:
        for partition, rows in part.evicted.items():
            evicted[partition] = np.union1d(evicted.get(partition, rows), rows)
    return Scored(
        predictions,
        [letter for part in parts for letter in part.dead_letters],
        joined_changes([part.changed for part in parts]),
        sum(part.late_events for part in parts),
        sum(part.expired for part in parts),
        sum(part.resets for part in parts),
        evicted,
    )


def joined_changes(parts: Sequence[dict[int, ChangedRows]]) -> dict[int, ChangedRows]:
    """The first change of each row."""
    joined: dict[int, ChangedRows] = {}
    for partition in sorted({number for part in parts for number in part}):
        changes = [part[partition] for part in parts if partition in part]
        rows = np.concatenate([change.rows for change in changes])
        offsets = np.concatenate([change.first_offsets for change in changes])
        order = np.argsort(offsets, kind="stable")
        _, firsts = np.unique(rows[order], return_index=True)
        order = order[np.sort(firsts)]
        joined[partition] = ChangedRows(rows[order], offsets[order])
    return joined


def _given(values: T | None) -> T:
    assert values is not None
    return values
