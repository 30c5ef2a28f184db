"""What flows through the engine: plain columns, N records to a batch.

A *record* comes from Kafka, an *observation* is a decoded record, an *answer* is a prediction record or a dead letter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
T = TypeVar("T")
Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """N records of one topic, as the broker gave them; offsets ascend within a partition."""

    topic: str
    partitions: Ints  # [N]
    offsets: Ints  # [N]
    timestamps: Ints  # [N] milliseconds since 1970 UTC, -1 where the record has none
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

    def of_partitions(self, wanted: Collection[int]) -> RecordBatch:
        """The records of the wanted partitions, in their order."""
        good = np.isin(self.partitions, list(wanted))
        if good.all():
            return self
        rows = np.flatnonzero(good)
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

    def next_offsets(self) -> dict[int, int]:
        """The offset after the last record, by partition."""
        return {p: int(self.offsets[self.partitions == p][-1]) + 1 for p in np.unique(self.partitions).tolist()}

    def oldest_ms(self) -> dict[int, int]:
        """The least timestamp, by partition; one where no record has any counts as the latest there is."""
        known = np.where(self.timestamps < 0, np.iinfo(np.int64).max, self.timestamps)
        return {p: int(known[self.partitions == p].min()) for p in np.unique(self.partitions).tolist()}


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


class Message(NamedTuple):
    """One record to be written. `partition` None: murmur2 of the key decides."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why the record at `index` of its batch has no prediction."""

    index: int
    stage: str  # decode | validate | late | step
    message: str
    keep_value: bool = True  # False for a value over input.max_bytes


@dataclass(frozen=True, slots=True)
class Columns:
    """M decoded observations of a batch of N records (M <= N)."""

    index: Ints  # [M] position in the RecordBatch
    partitions: Ints  # [M]
    offsets: Ints  # [M]
    keys: list[bytes | None]  # [M] entity keys
    timestamps: Ints  # [M] event time, milliseconds since 1970 UTC
    x: Floats  # [M, F] raw numbers, NaN where missing
    categories: Ints  # [M, C] 0 where unknown or missing
    included: list[bytes] | None  # [M] JSON objects, the fields of the event to carry along
    output_keys: list[bytes | None] | None  # [M] where `output.key` re-keys the stream

    def take(self, rows: Ints) -> Columns:
        """The observations at `rows`."""

        def pick(values: list[T]) -> list[T]:
            return [values[i] for i in rows.tolist()]

        return Columns(
            self.index[rows],
            self.partitions[rows],
            self.offsets[rows],
            pick(self.keys),
            self.timestamps[rows],
            self.x[rows],
            self.categories[rows],
            None if self.included is None else pick(self.included),
            None if self.output_keys is None else pick(self.output_keys),
        )


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model said of M observations; rows of dead letters are not in here."""

    index: Ints  # [M] position in the RecordBatch
    score: Floats  # [M]
    prediction: Floats | None  # [M, P]
    alert: Bools  # [M]
    steps: Ints  # [M]
