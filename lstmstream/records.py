"""What flows through the program: plain columns, N records to a batch.

A *record* comes from Kafka or goes there, an *observation* is a decoded record, a *prediction* is the model's output
for an observation, and a *dead letter* is a record that could not be turned into a prediction (docs/glossary.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.int8]
T = TypeVar("T")
Headers = Sequence[tuple[str, bytes | None]]

BY_KEY = -1  # in place of a partition: murmur2 of the key decides
NO_TIMESTAMP = -1  # in place of a record's timestamp: it has none
NO_OFFSET = -1  # of a record that is yet to be written

HELD_BACK = ("", "mute", "cooldown", "hold", "max_per_hour")  # why an alert is not published; "": it is
ENDED, SUMMARY = "ended", "summary"  # kinds of notices


class UnreadableValue(bytes):
    """In place of the value of a record that cannot be decoded: its bytes as they stand in the log, and the reason."""

    reason: str

    def __new__(cls, raw: bytes, reason: str) -> Self:
        """`raw`: the whole record, without its length."""
        value = super().__new__(cls, raw)
        value.reason = reason
        return value


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """N records of one topic, read or to be written; offsets ascend within a partition."""

    topic: str
    partitions: Ints  # [N]; BY_KEY in a batch to be written
    offsets: Ints  # [N]; NO_OFFSET in a batch to be written
    timestamps: Ints  # [N] milliseconds since 1970 UTC, or NO_TIMESTAMP
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers]

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def empty(cls, topic: str) -> RecordBatch:
        """No records."""
        nothing = np.empty(0, dtype=np.int64)
        return cls(topic, nothing, nothing, nothing, [], [], [])

    @classmethod
    def to_write(
        cls,
        topic: str,
        partitions: Ints,
        timestamps: Ints,
        keys: list[bytes | None],
        values: list[bytes | None],
        headers: list[Headers] | None = None,
    ) -> RecordBatch:
        """Records that have no offsets yet; None: no headers."""
        offsets = np.full(len(values), NO_OFFSET, dtype=np.int64)
        return cls(
            topic, partitions, offsets, timestamps, keys, values, [()] * len(values) if headers is None else headers
        )

    def ages_s(self, now_s: float) -> NDArray[np.float64]:
        """[M] seconds from each record's timestamp to `now_s`, seconds since 1970; records without one are left out."""
        return now_s - self.timestamps[self.timestamps >= 0] / 1000

    def sizes(self) -> Ints:
        """[N] bytes of key, value and headers of each record."""
        sizes = lengths(self.keys) + lengths(self.values)
        if any(self.headers):
            sizes += [sum(len(name) + len(value or b"") for name, value in of_record) for of_record in self.headers]
        return sizes

    def take(self, rows: Ints) -> RecordBatch:
        """The records at `rows`."""
        if is_run(rows):
            return self.slice(int(rows[0]), int(rows[-1]) + 1)
        return RecordBatch(
            self.topic,
            self.partitions[rows],
            self.offsets[rows],
            self.timestamps[rows],
            pick(self.keys, rows),
            pick(self.values, rows),
            pick(self.headers, rows),
        )

    def slice(self, start: int, stop: int) -> RecordBatch:
        """The records from `start` to before `stop`; the arrays are views."""
        return RecordBatch(
            self.topic,
            self.partitions[start:stop],
            self.offsets[start:stop],
            self.timestamps[start:stop],
            self.keys[start:stop],
            self.values[start:stop],
            self.headers[start:stop],
        )

    def for_partitions(self, wanted: Collection[int]) -> RecordBatch:
        """The records of the wanted partitions, in their order."""
        if set(partition_numbers(self.partitions)) <= set(wanted):
            return self
        return self.take(np.flatnonzero(np.isin(self.partitions, list(wanted))))

    def split_at(self, offsets: dict[int, int]) -> tuple[RecordBatch, RecordBatch]:
        """The records before the offset of their partition, and the others; a partition not named is all before."""
        bound = np.full(len(self), np.iinfo(np.int64).max)
        for partition, offset in offsets.items():
            bound[self.partitions == partition] = offset
        before = self.offsets < bound
        return self.take(np.flatnonzero(before)), self.take(np.flatnonzero(~before))

    def first_offsets(self) -> dict[int, int]:
        """The offset of the first record, by partition."""
        return {p: int(self.offsets[row]) for p, row in first_rows(self.partitions).items()}

    def next_offsets(self) -> dict[int, int]:
        """The offset after the last record, by partition."""
        return {p: int(self.offsets[-1 - row]) + 1 for p, row in first_rows(self.partitions[::-1]).items()}

    def min_timestamp_ms(self) -> dict[int, int]:
        """The least timestamp, by partition; one where no record has any counts as the latest there is."""
        known = np.where(self.timestamps < 0, np.iinfo(np.int64).max, self.timestamps)
        return {p: int(known[self.partitions == p].min()) for p in partition_numbers(self.partitions)}


def is_run(rows: Ints) -> bool:
    """Whether these are n, n + 1, n + 2, and so on: one at least."""
    return len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((rows[1:] > rows[:-1]).all())


def pick(items: list[T], rows: Ints) -> list[T]:
    """Those at `rows`. No Python code runs for each."""
    return items[rows[0] : rows[-1] + 1] if is_run(rows) else list(map(items.__getitem__, rows.tolist()))


def lengths(fields: list[bytes | None]) -> Ints:
    """[N] bytes of each; null has none."""
    present = fields if None not in fields else [field or b"" for field in fields]
    return np.fromiter(map(len, present), np.int64, len(present))  # type: ignore[arg-type]  # no None


def partition_numbers(partitions: Ints) -> list[int]:
    """Those that occur in [N], ascending. Faster than to sort them; none is negative."""
    numbers: list[int] = np.flatnonzero(np.bincount(partitions)).tolist()
    return numbers


def first_rows(partitions: Ints) -> dict[int, int]:
    """Where each partition occurs first in [N], by partition, ascending. It looks at where one follows another only."""
    starts = np.flatnonzero(np.diff(partitions, prepend=-2))  # which no partition is
    numbers, at = np.unique(partitions[starts], return_index=True)
    return dict(zip(numbers.tolist(), starts[at].tolist(), strict=True))


def concatenate(batches: Sequence[RecordBatch]) -> RecordBatch:
    """One batch after the other; all of one topic."""
    return RecordBatch(
        batches[0].topic,
        np.concatenate([batch.partitions for batch in batches]),
        np.concatenate([batch.offsets for batch in batches]),
        np.concatenate([batch.timestamps for batch in batches]),
        list(chain.from_iterable([batch.keys for batch in batches])),
        list(chain.from_iterable([batch.values for batch in batches])),
        list(chain.from_iterable([batch.headers for batch in batches])),
    )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why the record at `index` of its batch has no prediction."""

    index: int
    stage: str  # decode | validate | late | step | publish
    message: str
    with_value: bool = True  # False for a value over input.max_bytes
    form: int = 0  # how much of the record the dead letter keeps: one of encode.py's forms


@dataclass(frozen=True, slots=True)
class Observations:
    """M decoded records of a batch of N (M <= N)."""

    index: Ints  # [M] position in the RecordBatch
    partitions: Ints  # [M]
    offsets: Ints  # [M]
    keys: list[bytes | None]  # [M] entity keys
    timestamps: Ints  # [M] event time, milliseconds since 1970 UTC
    x: Floats  # [M, F] raw numbers, NaN where missing
    categories: Ints  # [M, C] 0 where unknown or missing

    def take(self, rows: Ints) -> Observations:
        """The observations at `rows`."""
        return Observations(
            self.index[rows],
            self.partitions[rows],
            self.offsets[rows],
            pick(self.keys, rows),
            self.timestamps[rows],
            self.x[rows],
            self.categories[rows],
        )


@dataclass(frozen=True, slots=True)
class Notice:
    """A record beside the alerts, which the event at `index` of the batch has brought about."""

    index: int
    kind: str  # ENDED | SUMMARY
    members: bytes  # JSON of what it tells


@dataclass(frozen=True, slots=True)
class Predictions:
    """The model's output for M observations; those that became dead letters are not in here."""

    index: Ints  # [M] position in the RecordBatch
    score: Floats  # [M]
    prediction: Floats | None  # [M, P]
    alert: Bools  # [M] at the threshold or above
    steps: Ints  # [M] observations that the key's state has seen, this one included
    # [A, G] by how much each feature raised the score of each of the A alerts, NaN where it is missing. None: not asked
    reasons: Floats | None = None
    held_back: Codes | None = None  # [M] indices of HELD_BACK; None: all alerts are published
    notices: Sequence[Notice] = ()  # in the order of the batch

    @property
    def published_alerts(self) -> Bools:
        """[M] Which of them are published as alerts."""
        return self.alert if self.held_back is None else self.alert & (self.held_back == 0)

    def take(self, rows: Ints) -> Predictions:
        """Those at `rows`, with their notices."""
        reasons = None
        if self.reasons is not None:
            number = np.cumsum(self.alert) - 1  # of the alert
            reasons = self.reasons[number[rows[self.alert[rows]]]]
        return Predictions(
            self.index[rows],
            self.score[rows],
            None if self.prediction is None else self.prediction[rows],
            self.alert[rows],
            self.steps[rows],
            reasons,
            None if self.held_back is None else self.held_back[rows],
            self._notices_of(rows),
        )

    def _notices_of(self, rows: Ints) -> Sequence[Notice]:
        if not self.notices:
            return ()
        taken = set(self.index[rows].tolist())
        return [notice for notice in self.notices if notice.index in taken]
