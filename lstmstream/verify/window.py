"""A stretch of one input partition: what each of its events should have become, in columns, and what was seen of it."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from enum import IntEnum

import numpy as np

from lstmstream.records import Floats, Headers
from lstmstream.verify.expected import Expected

NO_HEADERS = 0


class Row(IntEnum):
    """What is known of an event."""

    PREDICTION = 0
    DECODE, VALIDATE, LATE, STEP = 1, 2, 3, 4  # a dead letter of this stage
    UNSAMPLED = 5  # some record, one only
    UNJUDGED = 6  # the same: the state that its model had is not known
    OUTSIDE = 7  # not asked for; it only takes part in its key's state
    SILENT = 8  # no record: it only takes part in its key's state
    UNSAMPLED_SILENT = 9  # no record, or a dead letter


STAGES = {Row.DECODE: "decode", Row.VALIDATE: "validate", Row.LATE: "late", Row.STEP: "step"}
_BY_STAGE = {stage: row for row, stage in STAGES.items()}
SEEN_PREDICTION, SEEN_DEAD_LETTER, SEEN_ALERT, SEEN_ENDED, SEEN_SUMMARY = 1, 2, 4, 8, 16


def header_hash(headers: Headers) -> int:
    """The same for equal headers."""
    return hash(tuple(map(tuple, headers))) if headers else NO_HEADERS


class Window:
    """About 120 bytes for each event. Of a prediction a hash is kept; where it differs, it is written again."""

    def __init__(self, columns: int) -> None:
        """`columns`: of the model's prediction."""
        self.offsets = array("q")
        self.kinds = bytearray()
        self.seen = bytearray()
        self.hashes = array("q")  # of the prediction
        self.timestamps = array("q")  # of the input's record, as the next three
        self.input_keys: list[bytes | None] = []
        self.value_hashes = array("q")  # None's where the dead letter has no value
        self.header_hashes = array("q")
        self.record_keys: list[bytes | None] = []  # of the prediction
        self.entities: list[bytes | None] = []
        self._times = array("q")
        self._scores = array("f")
        self._steps = array("q")
        self._predictions = array("f")
        self._columns = columns
        self.alerts = bytearray()  # whether there should be a record of it in the topic of the alerts
        self._high = bytearray()  # whether the score is at the threshold or above
        self.ended: dict[int, bytes] = {}  # by row: the end record, and in the next the summary, that it should have
        self.summaries: dict[int, bytes] = {}
        self.enriched: dict[int, int] = {}  # by row: the hash of the enriched event that it should have
        self._held_back: dict[int, str] = {}
        self._events: dict[int, bytes] = {}
        self._reasons: dict[int, bytes] = {}
        self._carried_hashes: dict[int, int] = {}  # of rows whose prediction has fewer headers
        self._interned: dict[bytes | None, bytes | None] = {}

    def __len__(self) -> int:
        return len(self.offsets)

    def add(
        self,
        offset: int,
        timestamp_ms: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        expected: Expected,
        rendered: bytes,
        *,
        kind: Row | None = None,
        carried: Headers | None = None,
    ) -> None:
        """The next event; `kind` stands in place of what is expected.

        `carried`: those of `headers` that a prediction has; None: all of them.
        """
        if kind is None:
            if not expected.sampled:
                kind = Row.UNSAMPLED_SILENT if expected.silent else Row.UNSAMPLED
            elif expected.stage is None and expected.silent:
                kind = Row.SILENT
            else:
                kind = Row.PREDICTION if expected.stage is None else _BY_STAGE[expected.stage]
        self.offsets.append(offset)
        self.kinds.append(kind)
        self.seen.append(0)
        self.hashes.append(hash(rendered))
        self.timestamps.append(timestamp_ms)
        self.input_keys.append(self._intern(key))
        self.value_hashes.append(hash(value if expected.with_value else None))
        self.header_hashes.append(header_hash(headers))
        if carried is not None and len(carried) < len(headers):
            self._carried_hashes[len(self.offsets) - 1] = header_hash(carried)
        self.record_keys.append(self._intern(expected.record_key))
        self.entities.append(self._intern(expected.key))
        self._times.append(expected.time_ms)
        self._scores.append(expected.score)
        self._steps.append(expected.steps)
        if self._columns:
            filled = expected.prediction if expected.prediction is not None else np.zeros(self._columns, np.float32)
            self._predictions.frombytes(filled.tobytes())
        self.alerts.append(expected.published_alert)
        self._high.append(expected.alert)
        if expected.held_back is not None:
            self._held_back[len(self.offsets) - 1] = expected.held_back
        if expected.event is not None:
            self._events[len(self.offsets) - 1] = expected.event
        if expected.reasons is not None:
            self._reasons[len(self.offsets) - 1] = expected.reasons

    def add_notices(self, ended: bytes | None, summary: bytes | None) -> None:
        """The records beside the alerts that the last event should have."""
        row = len(self.offsets) - 1
        if ended is not None:
            self.ended[row] = ended
        if summary is not None:
            self.summaries[row] = summary

    def drop_alerts(self, row: int) -> None:
        """There should be none of the records that are in the topic of the alerts."""
        self.alerts[row] = False
        self.ended.pop(row, None)
        self.summaries.pop(row, None)

    def is_high(self, row: int) -> bool:
        """Whether the score is at the threshold or above, so that the policy for alerts has decided."""
        return bool(self._high[row])

    def _intern(self, key: bytes | None) -> bytes | None:
        return self._interned.setdefault(key, key)

    def carried_hash(self, row: int) -> int:
        """Of the headers that a prediction should have."""
        return self._carried_hashes.get(row, self.header_hashes[row])

    def row(self, offset: int) -> int | None:
        """The row of an input offset, None where there is no event at it."""
        if not self.offsets:
            return None
        row = offset - self.offsets[0]  # where the offsets have no gaps
        if 0 <= row < len(self.offsets) and self.offsets[row] == offset:
            return row
        row = bisect_left(self.offsets, offset)
        return row if row < len(self.offsets) and self.offsets[row] == offset else None

    def expected(self, row: int) -> Expected:
        """What a prediction should be, to write it again."""
        prediction: Floats | None = None
        if self._columns:
            at = row * self._columns
            prediction = np.array(self._predictions[at : at + self._columns], np.float32)
        return Expected(
            key=self.entities[row],
            record_key=self.record_keys[row],
            time_ms=self._times[row],
            score=np.float32(self._scores[row]),  # type: ignore[arg-type]  # see Recomputation
            prediction=prediction,
            alert=bool(self._high[row]),
            held_back=self._held_back.get(row),
            reasons=self._reasons.get(row),
            steps=self._steps[row],
            event=self._events.get(row),
        )
