"""For how long the records of each input partition have been waiting, without reading them."""

from __future__ import annotations

import numpy as np

from lstmstream.records import NO_TIMESTAMP, RecordBatch


class LagAge:
    """The age of the oldest record that waits, by partition.

    A record that waits is as a rule no older than the last one that was committed, and it was not there when nothing
    waited: the later of both times is taken. Until either is known, the time when records were first seen waiting.
    """

    def __init__(self) -> None:
        self._last_ms = np.full(64, NO_TIMESTAMP, dtype=np.int64)  # of the last committed record, by partition
        self._idle_s: dict[int, float] = {}  # when nothing waited last, seconds since 1970 UTC

    def on_commit(self, records: RecordBatch) -> None:
        """These were committed. One assignment for all: of several records of a partition the last one stays."""
        if len(records):
            more = int(records.partitions.max()) + 1 - len(self._last_ms)
            if more > 0:
                self._last_ms = np.pad(self._last_ms, (0, more), constant_values=NO_TIMESTAMP)
            self._last_ms[records.partitions] = records.timestamps

    def seconds(self, partition: int, lag: int, now_s: float) -> float:
        """Seconds for which the oldest of `lag` records has been waiting; 0 where none is."""
        if lag == 0:
            self._idle_s[partition] = now_s
            return 0.0
        last_s = int(self._last_ms[partition]) / 1000 if partition < len(self._last_ms) else -1.0
        if not 0 <= last_s <= now_s:  # one of the future would hide all lag until then
            last_s = self._idle_s.setdefault(partition, now_s)
        return max(0.0, now_s - max(last_s, self._idle_s.get(partition, 0.0)))

    def remove(self, partition: int) -> None:
        """Another member has it now."""
        self._idle_s.pop(partition, None)
        self._last_ms[partition : partition + 1] = NO_TIMESTAMP
