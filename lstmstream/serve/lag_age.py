"""For how long the records of each input partition have been waiting, without reading them."""

from __future__ import annotations

from lstmstream.records import RecordBatch, partition_numbers


class LagAge:
    """The age of the oldest record that waits, by partition.

    A record that waits is as a rule no older than the last one that was committed, and it was not there when nothing
    waited: the later of both times is taken. Until either is known, the time when records were first seen waiting.
    """

    def __init__(self) -> None:
        self._since_s: dict[int, float] = {}  # seconds since 1970 UTC

    def on_commit(self, records: RecordBatch, now_s: float) -> None:
        """These were committed. A timestamp of the future counts as now, or it would hide all lag until then."""
        for partition in partition_numbers(records.partitions):
            last_s = float(records.timestamps[records.partitions == partition][-1]) / 1000
            self._since_s[partition] = max(self._since_s.get(partition, 0.0), min(last_s, now_s))

    def seconds(self, partition: int, lag: int, now_s: float) -> float:
        """Seconds for which the oldest of `lag` records has been waiting; 0 where none is."""
        if lag == 0:
            self._since_s[partition] = now_s
        return max(0.0, now_s - self._since_s.setdefault(partition, now_s))

    def remove(self, partition: int) -> None:
        """Another member has it now."""
        self._since_s.pop(partition, None)
