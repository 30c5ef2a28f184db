"""The way of a micro-batch: decode → score → encode. No socket, no clock, no globals.

`process` is followed by `commit` or `rollback`; rollback leaves every state as it was before the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lstmstream.records import DeadLetter, Ints, Observations, Predictions, RecordBatch
from lstmstream.serve.alert_policy import AlertPolicy
from lstmstream.serve.decode import Decoded, Decoder
from lstmstream.serve.encode import Encoder, Outputs
from lstmstream.serve.enriched import Enriched
from lstmstream.serve.refusals import Refusals
from lstmstream.serve.scored import ChangedRows
from lstmstream.serve.scorer import Scorer, Timer, no_timer


@dataclass(frozen=True, slots=True)
class Result:
    """What a batch of N records gave: each is one prediction, one dead letter, or silent."""

    records: RecordBatch
    predictions: Predictions
    dead_letters: list[DeadLetter]
    outputs: Outputs  # the records to be written
    changed: dict[int, ChangedRows]  # states, by partition
    late_events: int
    expired: int
    resets: int
    decoded: Decoded  # the events as they were read
    silent_events: int  # states moved without a prediction
    evicted: Mapping[int, Ints] = field(default_factory=dict)  # partition → rows of keys that were evicted


class Engine:
    """Records in, records out."""

    def __init__(self, decoder: Decoder, scorer: Scorer, encoder: Encoder, *, timer: Timer = no_timer) -> None:
        self._decoder = decoder
        self.scorer = scorer
        self._encoder = encoder
        self._timer = timer

    def process(self, records: RecordBatch, refusals: Refusals | None = None) -> Result:
        """Answer N records, in order per key. The new states can still be rolled back.

        What topics refuse is replaced as `refusals` says. No state depends on that. Raises SchemaRegistryDown before
        anything has changed.
        """
        if self._encoder.form is not None:
            self._encoder.form.prepare()
        with self._timer("decode"):
            decoded = self._decoder.decode(records)
        scored = self.scorer.score(decoded.observations, decoded.silent)
        with self._timer("encode"):
            # In the input's order, whatever the rounds.
            dead_letters = sorted(decoded.dead_letters + scored.dead_letters, key=lambda letter: letter.index)
            predictions = _without_silent(scored.predictions, decoded)
            silent_events = len(scored.predictions.index) - len(predictions.index)
            predictions, dead_letters, enriched = self._enrich(records, decoded, predictions, dead_letters)
            outputs = self._encoder.encode(records, decoded, predictions, dead_letters, enriched=enriched)
            # Again for what is put in its place: forms only ever get plainer, so that this ends.
            while refusals is not None and (accepted := refusals.check(records, predictions, dead_letters, outputs)):
                predictions, dead_letters = accepted
                outputs = self._encoder.encode(records, decoded, predictions, dead_letters, now_ms=refusals.now_ms())
        return Result(
            records,
            predictions,
            dead_letters,
            outputs,
            scored.changed,
            scored.late_events,
            scored.expired,
            scored.resets,
            decoded,
            silent_events,
            scored.evicted,
        )

    def _enrich(
        self, records: RecordBatch, decoded: Decoded, predictions: Predictions, dead_letters: list[DeadLetter]
    ) -> tuple[Predictions, list[DeadLetter], Enriched | None]:
        """The events for a next stage. Where one cannot be written, it and its prediction become a dead letter.

        No state depends on that, so that a replay, which writes nothing, gives the same.
        """
        writer = self._encoder.events
        if writer is None:
            return predictions, dead_letters, None
        enriched = writer.write(decoded, predictions)
        if not enriched.faults:
            return predictions, dead_letters, enriched
        letters = [DeadLetter(i, "publish", message) for i, message in enriched.faults.items()]
        both = sorted([*dead_letters, *letters], key=lambda letter: letter.index)
        kept = np.flatnonzero(~np.isin(predictions.index, list(enriched.faults)))
        return predictions.take(kept), both, None

    def decode(self, records: RecordBatch) -> Decoded:
        """What N records say; no state is asked or changed."""
        return self._decoder.decode(records)

    def replay(
        self,
        records: RecordBatch,
        policy: AlertPolicy | None = None,
        *,
        count_hours: bool = False,
        kept: Callable[[Observations], Ints | None] = lambda _observations: None,
        evict: bool = False,
    ) -> dict[int, ChangedRows]:
        """Move states by records that were answered before; the rows that changed, by partition. See Scorer.

        `kept`: the rows of the observations that may be used; None: all of them.
        """
        decoded = self._decoder.decode(records)
        return self.scorer.replay(
            decoded.observations, decoded.silent, policy, count_hours=count_hours, kept=kept, evict=evict
        )

    @property
    def in_flight(self) -> int:
        """Batches that were processed and neither committed nor rolled back."""
        return self.scorer.states.in_flight

    def commit(self) -> None:
        """Keep the states of the oldest batch in flight."""
        self.scorer.commit()

    def rollback(self) -> None:
        """Take the states of the newest batch in flight back."""
        self.scorer.rollback()


def _without_silent(predictions: Predictions, decoded: Decoded) -> Predictions:
    if not decoded.silent.any():
        return predictions
    silent = decoded.observations.index[decoded.silent]
    return predictions.take(np.flatnonzero(~np.isin(predictions.index, silent)))
