"""What flows through the program: plain columns, N records to a batch.

A *record* comes from Kafka or goes there, an *observation* is a decoded record, a *prediction* is the model's output
for an observation, and a *dead letter* is a record that could not be turned into a prediction (docs/glossary.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
T = TypeVar("T")
Headers = Sequence[tuple[str, bytes | None]]

BY_KEY = -1  # in place of a partition: murmur2 of the key decides
NO_TIMESTAMP = -1  # in place of a record's timestamp: it has none
NO_OFFSET = -1  # of a record that is yet to be written


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
        columns = zip(self.keys, self.values, self.headers, strict=True)
        sizes = [
            len(key or b"") + len(value or b"") + (sum(len(n) + len(v or b"") for n, v in headers) if headers else 0)
            for key, value, headers in columns
        ]
        return np.array(sizes, dtype=np.int64)

    def take(self, rows: Ints) -> RecordBatch:
        """The records at `rows`."""
        kept = rows.tolist()
        return RecordBatch(
            self.topic,
            self.partitions[rows],
            self.offsets[rows],
            self.timestamps[rows],
            [self.keys[i] for i in kept],
            [self.values[i] for i in kept],
            [self.headers[i] for i in kept],
        )

    def slice(self, start: int, stop: int) -> RecordBatch:
        """The records from `start` to before `stop`."""
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
        return {p: int(self.offsets[self.partitions == p][0]) for p in partition_numbers(self.partitions)}

    def next_offsets(self) -> dict[int, int]:
        """The offset after the last record, by partition."""
        return {p: int(self.offsets[self.partitions == p][-1]) + 1 for p in partition_numbers(self.partitions)}

    def min_timestamp_ms(self) -> dict[int, int]:
        """The least timestamp, by partition; one where no record has any counts as the latest there is."""
        known = np.where(self.timestamps < 0, np.iinfo(np.int64).max, self.timestamps)
        return {p: int(known[self.partitions == p].min()) for p in partition_numbers(self.partitions)}


def partition_numbers(partitions: Ints) -> list[int]:
    """Those that occur in [N], ascending. Faster than to sort them; none is negative."""
    numbers: list[int] = np.flatnonzero(np.bincount(partitions)).tolist()
    return numbers


def concatenate(batches: Sequence[RecordBatch]) -> RecordBatch:
    """One batch after the other; all of one topic."""
    return RecordBatch(
        batches[0].topic,
        np.concatenate([batch.partitions for batch in batches]),
        np.concatenate([batch.offsets for batch in batches]),
        np.concatenate([batch.timestamps for batch in batches]),
        [key for batch in batches for key in batch.keys],
        [value for batch in batches for value in batch.values],
        [headers for batch in batches for headers in batch.headers],
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
            [self.keys[i] for i in rows.tolist()],
            self.timestamps[rows],
            self.x[rows],
            self.categories[rows],
        )


@dataclass(frozen=True, slots=True)
class Predictions:
    """The model's output for M observations; those that became dead letters are not in here."""

    index: Ints  # [M] position in the RecordBatch
    score: Floats  # [M]
    prediction: Floats | None  # [M, P]
    alert: Bools  # [M]
    steps: Ints  # [M] observations that the key's state has seen, this one included
    # [A, G] by how much each feature raised the score of each of the A alerts, NaN where it is missing. None: not asked
    reasons: Floats | None = None

    def take(self, rows: Ints) -> Predictions:
        """Those at `rows`."""
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
        )
