"""Records in, answers out: decode → gather → step → stage → encode. No socket, no clock, no globals.

`process` is followed by `commit` or `rollback`; rollback leaves every state as it was before the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lstmstream.model import Card
from lstmstream.serve.decode import Decoder
from lstmstream.serve.encode import Encoder
from lstmstream.serve.records import Answers, Bools, Columns, DeadLetter, Ints, Message, RecordBatch
from lstmstream.serve.state import Gathered, StateStore
from lstmstream.serve.step import StepInput, StepModel

Measure = Callable[[str], AbstractContextManager[object]]


def unmeasured(_stage: str) -> AbstractContextManager[object]:
    """For an engine whose time nobody takes."""
    return nullcontext()


class Changes(NamedTuple):
    """The rows of one partition that a batch changed, by the offset of each row's first change."""

    rows: Ints  # [C]
    first_offsets: Ints  # [C] ascending


@dataclass(frozen=True, slots=True)
class Result:
    """What a batch of N records gave."""

    records: RecordBatch
    answers: Answers
    dead_letters: list[DeadLetter]
    messages: list[Message]  # predictions, alerts and dead letters, ready to be written
    changes: dict[int, Changes]  # by partition
    late_events: int
    expired: int


@dataclass(slots=True)
class _Outcome:
    """Arrays over the M observations of a batch, filled round by round."""

    score: np.ndarray[tuple[int], np.dtype[np.float32]]
    prediction: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None
    steps: Ints
    answered: Bools
    dead: dict[int, tuple[str, str]] = field(default_factory=dict)  # observation → (stage, message)
    late_events: int = 0
    expired: int = 0


class Engine:
    """One model over the states of many keys."""

    def __init__(
        self,
        model: StepModel,
        decoder: Decoder,
        encoder: Encoder,
        *,
        ttl_ms: int | None,
        late: str,
        threshold: float | None,
        measure: Measure = unmeasured,
    ) -> None:
        """`late` is apply, score or drop; `threshold` is compared in float32, None never alerts.

        `measure(stage)` is a context manager around each stage, for whoever owns a clock.
        """
        self._model = model
        self._decoder = decoder
        self._encoder = encoder
        self._ttl_ms = ttl_ms
        self._late = late
        self._threshold = None if threshold is None else np.float32(threshold)
        self.states = StateStore(np.array(model.card.state.initial, dtype=np.float32))
        self._measure = measure

    @property
    def card(self) -> Card:
        """The model's card."""
        return self._model.card

    def process(self, records: RecordBatch) -> Result:
        """Answer N records, in order per key. Their states are staged: call `commit` or `rollback` next."""
        with self._measure("decode"):
            columns, dead_letters = self._decoder.decode(records)
        outcome, changes = self._advance(columns)
        with self._measure("encode"):
            answers = self._answers(columns, outcome)
            dead_letters += [
                DeadLetter(int(columns.index[i]), stage, message) for i, (stage, message) in outcome.dead.items()
            ]
            dead_letters.sort(key=lambda letter: letter.index)  # in the input's order, whatever the rounds
            messages = self._encoder.encode(records, columns, answers, dead_letters)
        return Result(records, answers, dead_letters, messages, changes, outcome.late_events, outcome.expired)

    def replay(self, records: RecordBatch) -> dict[int, Changes]:
        """Move states on by records that were answered before, skipping for each key what its state has seen.

        Returns the changes of every partition among the records; they may be none.
        """
        columns, _ = self._decoder.decode(records)
        _, changes = self._advance(self._unseen(columns))
        self.commit()
        nothing = Changes(np.empty(0, np.int64), np.empty(0, np.int64))
        return {partition: changes.get(partition, nothing) for partition in records.next_offsets()}

    def commit(self) -> None:
        """Keep the last batch's states."""
        self.states.commit()

    def rollback(self) -> None:
        """Take the last batch's states back; without a batch, nothing happens."""
        self.states.rollback()

    def _advance(self, columns: Columns) -> tuple[_Outcome, dict[int, Changes]]:
        with self._measure("gather"):
            gathered = self.states.gather(columns.partitions, columns.keys)
            first_change = np.full(len(gathered.steps), -1, dtype=np.int64)
        outcome = _Outcome(
            score=np.empty(len(columns.index), dtype=np.float32),
            prediction=None,
            steps=np.empty(len(columns.index), dtype=np.int64),
            answered=np.zeros(len(columns.index), dtype=np.bool_),
        )
        with self._measure("step"):
            for start, end in zip(gathered.bounds, gathered.bounds[1:], strict=False):
                self._round(columns, gathered.by_turn[start:end], gathered, outcome, first_change)
        with self._measure("stage"):
            self.states.stage(gathered)
        return outcome, _changes(gathered, first_change)

    def _round(self, columns: Columns, events: Ints, gathered: Gathered, outcome: _Outcome, first_change: Ints) -> None:
        """One event of each of the first n slots, by the meaning of section 4 of the design, a line for a line."""
        n = len(events)
        timestamp = columns.timestamps[events]
        steps, last = gathered.steps[:n], gathered.last_timestamp[:n]

        seen = steps > 0
        late = seen & (timestamp < last)
        elapsed = np.where(seen, np.maximum(0, timestamp - last) / 1000, np.nan).astype(np.float32)
        state = gathered.rows[:n]
        expired = np.zeros(n, dtype=np.bool_)
        if self._ttl_ms is not None:
            expired = seen & (timestamp - last > self._ttl_ms)
            if expired.any():
                state = np.where(expired[:, None], self.states.initial, state)
                elapsed[expired] = np.nan
        out = self._model.step(StepInput(columns.x[events], columns.categories[events], timestamp, elapsed, state))

        dropped = late if self._late == "drop" else np.zeros(n, dtype=np.bool_)
        finite = out.finite()
        answered = finite & ~dropped
        moves = answered & ~late if self._late == "score" else answered
        base = np.where(expired, 0, steps)

        outcome.score[events] = out.score
        if out.prediction is not None:
            if outcome.prediction is None:
                outcome.prediction = np.empty((len(columns.index), out.prediction.shape[1]), dtype=np.float32)
            outcome.prediction[events] = out.prediction
        outcome.steps[events] = base + moves
        outcome.answered[events] = answered
        outcome.late_events += int(late.sum())
        outcome.expired += int((expired & moves).sum())
        if not answered.all():
            for i in np.flatnonzero(~answered).tolist():
                outcome.dead[int(events[i])] = _why_dead(dropped=bool(dropped[i]), timestamp=timestamp[i], last=last[i])

        if moves.all():
            gathered.rows[:n] = out.state
        else:
            gathered.rows[:n][moves] = out.state[moves]
        gathered.last_timestamp[:n] = np.where(
            moves & seen, np.maximum(last, timestamp), np.where(moves, timestamp, last)
        )
        gathered.steps[:n] = np.where(moves, base + 1, steps)
        gathered.last_offset[:n] = np.where(moves, columns.offsets[events], gathered.last_offset[:n])
        first = moves & (first_change[:n] < 0)
        first_change[:n][first] = columns.offsets[events][first]

    def _unseen(self, columns: Columns) -> Columns:
        """Only the observations that their key's state does not contain yet."""
        fresh = np.ones(len(columns.index), dtype=np.bool_)
        for i, (partition, key, offset) in enumerate(
            zip(columns.partitions.tolist(), columns.keys, columns.offsets.tolist(), strict=True)
        ):
            slab = self.states.slabs[partition]
            row = slab.index.get(key)
            fresh[i] = row is None or offset > slab.last_offset[row]
        return columns.take(np.flatnonzero(fresh))

    def _answers(self, columns: Columns, outcome: _Outcome) -> Answers:
        kept = np.flatnonzero(outcome.answered)
        score = outcome.score[kept]
        return Answers(
            index=columns.index[kept],
            score=score,
            prediction=None if outcome.prediction is None else outcome.prediction[kept],
            alert=np.zeros(len(kept), np.bool_) if self._threshold is None else score >= self._threshold,
            steps=outcome.steps[kept],
        )


def _why_dead(*, dropped: bool, timestamp: np.int64, last: np.int64) -> tuple[str, str]:
    if dropped:
        return "late", f"the event is {int(last - timestamp)} ms older than its key's last, and input.late is drop"
    return "step", "the model's answer to this event is not finite; the key's state stays as it was"


def _changes(gathered: Gathered, first_change: Ints) -> dict[int, Changes]:
    changes = {}
    for partition in np.unique(gathered.partitions).tolist():
        where = np.flatnonzero((gathered.partitions == partition) & (first_change >= 0))
        where = where[np.argsort(first_change[where], kind="stable")]
        changes[partition] = Changes(gathered.row_numbers[where], first_change[where])
    return changes
