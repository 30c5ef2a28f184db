"""The newest predictions of all keys together, in which those of one key are looked up."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lstmstream.formats.timestamps import format_iso
from lstmstream.records import Bools, Floats, Ints, pick

if TYPE_CHECKING:
    from lstmstream.serve.engine import Result

KEPT = 20_000  # predictions, and at least the newest batch: about 1 MB, and a millisecond to look through
SHOWN = 20  # of one key


class _Batch(NamedTuple):
    """The M observations of a batch that were answered."""

    keys: list[bytes | None]  # [M]
    partitions: Ints  # [M]
    offsets: Ints  # [M]
    timestamps: Ints  # [M]
    scores: Floats  # [M]
    alerts: Bools  # [M] that were published

    def take(self, rows: Ints) -> _Batch:
        """Those at `rows`."""
        return _Batch(
            pick(self.keys, rows),
            self.partitions[rows],
            self.offsets[rows],
            self.timestamps[rows],
            self.scores[rows],
            self.alerts[rows],
        )


class RecentScores:
    """Predictions that are committed, in the order in which they were."""

    def __init__(self) -> None:
        self._batches: deque[_Batch] = deque()
        self._count = 0

    def add(self, result: Result) -> None:
        """The predictions of a batch."""
        observations, predictions = result.decoded.observations, result.predictions
        if not len(predictions.index):
            return
        rows = np.searchsorted(observations.index, predictions.index)  # both are ascending
        answered = observations if len(rows) == len(observations.index) else observations.take(rows)
        self._batches.append(
            _Batch(
                answered.keys,
                answered.partitions,
                answered.offsets,
                answered.timestamps,
                predictions.score,
                predictions.published_alerts,
            )
        )
        self._count += len(rows)
        while len(self._batches) > 1 and self._count - len(self._batches[0].keys) >= KEPT:
            self._count -= len(self._batches.popleft().keys)

    def forget(self, keys: Collection[bytes | None], partition: int) -> None:
        """Keys of a partition that were erased."""
        for at, batch in enumerate(self._batches):
            gone = [key in keys and of == partition for key, of in zip(batch.keys, batch.partitions, strict=True)]
            if any(gone):
                kept = np.flatnonzero(~np.array(gone))
                self._batches[at] = batch.take(kept)
        self._count = sum(len(batch.keys) for batch in self._batches)

    def of_key(self, key: bytes, partition: int, *, most: int) -> list[dict[str, Any]]:
        """Those of a key in a partition, the newest first, at most so many and SHOWN."""
        found: list[dict[str, Any]] = []
        for batch in reversed(self._batches):
            rows = [row for row, one in enumerate(batch.keys) if one == key and batch.partitions[row] == partition]
            found += [
                {
                    "offset": int(batch.offsets[row]),
                    "timestamp": format_iso(int(batch.timestamps[row])),
                    "score": float(batch.scores[row]),
                    "alert": bool(batch.alerts[row]),
                }
                for row in reversed(rows)
            ]
            if len(found) >= min(most, SHOWN):
                break
        return found[: min(most, SHOWN)]
