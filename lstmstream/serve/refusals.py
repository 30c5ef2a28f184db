"""Records that a topic refuses for good: which events they belong to, and what is published in their place.

An event whose prediction or alert is refused becomes a dead letter of the stage `publish`; its state takes the event
all the same, since what a state is depends on the input and the model only. A dead letter that is refused is written
in a plainer form. Two ways lead here: the topic's own bounds, where they are known, and the broker's refusal, for which
the batch is halved until the event is alone (batch_limit.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lstmstream.errors import CannotServe, Fatal, RecordRefused
from lstmstream.formats.iso_columns import iso_texts
from lstmstream.records import DeadLetter, Predictions, RecordBatch, lengths
from lstmstream.serve.encode import BARE, NOW, OWN_KEY, WITH_KEY, Outputs
from lstmstream.serve.failure_log import FailureLog

if TYPE_CHECKING:
    from lstmstream.serve.engine import Result

log = logging.getLogger(__name__)

CLOCK_MARGIN_MS = 60_000  # the broker's clock decides, not this one: what is closer to a bound is tried


class TopicBounds(NamedTuple):
    """What a topic takes; None: no bound, or not known."""

    before_ms: int | None  # how long before now a record's time may be
    after_ms: int | None
    max_bytes: int | None
    needs_key: bool

    @classmethod
    def of(cls, settings: Mapping[str, str], *, compressed: bool) -> TopicBounds:
        """From a topic's settings. `compressed`: records are, so that their size cannot be compared."""
        create_time = settings.get("message.timestamp.type", "CreateTime") == "CreateTime"
        return cls(
            _number(settings, "message.timestamp.before.max.ms") if create_time else None,
            _number(settings, "message.timestamp.after.max.ms") if create_time else None,
            None if compressed else _number(settings, "max.message.bytes"),
            "compact" in settings.get("cleanup.policy", "delete"),
        )

    def outside(self, batch: RecordBatch, now_ms: int) -> Iterator[tuple[int, int, str]]:
        """Rows that the topic refuses: the row, the form that a dead letter there needs, and why."""
        times = batch.timestamps
        if self.before_ms is not None:
            for row in np.flatnonzero((times >= 0) & (times < now_ms - self.before_ms - CLOCK_MARGIN_MS)).tolist():
                yield row, NOW, f"{_time(times[row])} is too old for message.timestamp.before.max.ms={self.before_ms}"
        if self.after_ms is not None:
            for row in np.flatnonzero(times > now_ms + self.after_ms + CLOCK_MARGIN_MS).tolist():
                yield (
                    row,
                    NOW,
                    f"{_time(times[row])} is too far in the future for message.timestamp.after.max.ms={self.after_ms}",
                )
        if self.needs_key and None in batch.keys:
            for row, key in enumerate(batch.keys):
                if key is None:
                    yield row, WITH_KEY, "a compacted topic accepts no record without a key"
        # Headers are not counted here, for speed: the broker finds those.
        if self.max_bytes is not None:
            sizes = lengths(batch.keys) + lengths(batch.values)
            for row in np.flatnonzero(sizes > self.max_bytes).tolist():
                yield row, BARE, f"key and value have {sizes[row]} bytes, more than max.message.bytes={self.max_bytes}"


class _Refusal(NamedTuple):
    reason: str | None  # why the prediction is not published; None where the event is a dead letter anyway
    form: int  # of its dead letter


class Refusals:
    """What is known of refused records. `check` changes what a batch publishes, `note` learns from the broker."""

    def __init__(self, state_topic: str, *, compressed: bool, wall_s: Callable[[], float]) -> None:
        """`compressed`: the producer compresses. `wall_s`: seconds since 1970 UTC."""
        self._state_topic = state_topic
        self._compressed = compressed
        self._wall_s = wall_s
        self._bounds: dict[str, TopicBounds] = {}
        self._known: dict[tuple[int, int], _Refusal] = {}  # by input partition and offset, until it is committed
        self._failures = FailureLog(log, wall_s)

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return int(self._wall_s() * 1000)

    def set_topics(self, settings: Mapping[str, Mapping[str, str]]) -> None:
        """The settings of topics by name, as the broker has them now."""
        self._bounds = {name: TopicBounds.of(found, compressed=self._compressed) for name, found in settings.items()}

    def check(
        self, records: RecordBatch, predictions: Predictions, dead_letters: list[DeadLetter], outputs: Outputs
    ) -> tuple[Predictions, list[DeadLetter]] | None:
        """The predictions that can be published and the dead letters in forms that can; None: all as they are."""
        known = self._known_in(records)
        refused = {i: refusal.reason for i, refusal in known.items() if refusal.reason is not None}
        for batch, index in (
            (outputs.predictions, predictions.index),
            (outputs.alerts, outputs.of_alerts),
            (outputs.events, predictions.index),
        ):
            if batch is not None and index is not None:
                refused |= {int(index[row]): f"{batch.topic}: {why}" for row, _, why in self._outside(batch)}
        kept = ~np.isin(predictions.index, list(refused)) if refused else np.ones(len(predictions.index), np.bool_)
        added = [DeadLetter(i, "publish", refused[i]) for i in predictions.index[~kept].tolist()]
        # A form is never taken back: what the bounds ask for and what the broker refused would alternate for ever.
        forms = [
            max(letter.form, known[letter.index].form) if letter.index in known else letter.form
            for letter in dead_letters
        ]
        for row, form, _ in self._outside(outputs.dead_letters):
            forms[row] = max(forms[row], form)
        if not added and forms == [letter.form for letter in dead_letters]:
            return None
        changed = [replace(letter, form=form) for letter, form in zip(dead_letters, forms, strict=True)]
        both = sorted([*changed, *added], key=lambda letter: letter.index)
        return predictions.take(np.flatnonzero(kept)), both

    def note(self, result: Result | None, error: RecordRefused) -> None:
        """The broker refused a record of this batch. Alone in it, its event is known from then on.

        Raises CannotServe where it was a state, Fatal where the plainest dead letter is refused too.
        """
        count = 0 if result is None else len(result.records)
        if result is None or not count or error.topic == self._state_topic:
            raise CannotServe(
                f"state.topic: {error}. Correct the settings of topic {self._state_topic!r}: it must accept records of"
                " the current time and of the size of a state"
            ) from error
        if count > 1:
            return
        partition, offset = int(result.records.partitions[0]), int(result.records.offsets[0])
        place = f"{result.records.topic}[{partition}]@{offset}"
        if not result.dead_letters:
            self._failures.note(f"the prediction for {place} cannot be published; it becomes a dead letter", error)
            self._known[partition, offset] = _Refusal(str(error), 0)
            return
        letter = result.dead_letters[0]
        if letter.form >= OWN_KEY:
            raise Fatal(
                f"{place}: not even a dead letter without value, headers and key can be written: {error}. Correct the"
                " settings of the dead-letter topic"
            ) from error
        form = max(letter.form + 1, BARE if error.too_large else 0)
        if form == WITH_KEY and result.records.keys[0] is not None:
            form += 1
        self._failures.note(f"the dead letter for {place} is refused; it is written in a reduced form", error)
        before = self._known.get((partition, offset))
        self._known[partition, offset] = _Refusal(None if before is None else before.reason, min(form, OWN_KEY))

    def on_commit(self, next_offsets: Mapping[int, int]) -> None:
        """The batch is committed: forget what lies before (partition → next offset)."""
        if self._known:
            self._known = {at: refusal for at, refusal in self._known.items() if at[1] >= next_offsets.get(at[0], 0)}

    def _outside(self, batch: RecordBatch) -> Iterator[tuple[int, int, str]]:
        bounds = self._bounds.get(batch.topic)
        return iter(()) if bounds is None or not len(batch) else bounds.outside(batch, self.now_ms())

    def _known_in(self, records: RecordBatch) -> dict[int, _Refusal]:
        """Refusals by index in the batch."""
        if not self._known:
            return {}
        places = zip(records.partitions.tolist(), records.offsets.tolist(), strict=True)
        return {i: self._known[place] for i, place in enumerate(places) if place in self._known}


def _number(settings: Mapping[str, str], name: str) -> int | None:
    value = settings.get(name, "")
    return int(value) if value.isdigit() and int(value) < np.iinfo(np.int64).max // 2 else None


def _time(timestamp_ms: int) -> str:
    """A record's time for a message; one beyond the calendar as a number."""
    try:
        text = iso_texts(np.array([timestamp_ms], dtype=np.int64))[0]
    except (ValueError, OverflowError):
        return f"the record time {timestamp_ms} ms"
    return f"the record time {text.decode()}Z"
