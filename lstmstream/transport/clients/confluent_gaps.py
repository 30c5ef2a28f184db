"""Records that librdkafka leaves out without a word: it gives what it found in a batch, however many there should be.

Of a gzip batch of several members it decodes the first, of one with an impossible base offset nothing. What is missing
shows as a gap in the offsets. Control records, aborted records and compaction leave gaps as well, so the other library
is asked whether there are records in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from lstmstream.errors import UnreadableRecords
from lstmstream.records import Ints, RecordBatch
from lstmstream.transport.decompression import BatchTooLargeError

_CHECK_AGAIN_S = 60.0  # after a gap that holds no record: a topic with transactions has one behind each

# Topic, partition, offset and how many records at most → the records that another library reads there, and the offset
# to go on from. Raises UnreadableRecords. librdkafka goes on and on, without a word, over some batches that it cannot
# decode, gives up a whole batch for one record, and does not say where the batch ends.
OtherOpinion = Callable[[str, int, int, int], tuple[RecordBatch, int]]


def unless_too_large(other_opinion: OtherOpinion) -> OtherOpinion:
    """For a silence of librdkafka, which gives neither a record nor an error.

    It may still be unpacking a batch. That this one is too large for the other library counts for nothing then.
    """

    def ask(topic: str, partition: int, start: int, max_records: int) -> tuple[RecordBatch, int]:
        try:
            return other_opinion(topic, partition, start, max_records)
        except UnreadableRecords as error:
            if isinstance(error.__cause__, BatchTooLargeError):
                return RecordBatch.empty(topic), start
            raise

    return ask


class GapCheck:
    """Asks about the first gap in what was given. After an empty one it asks again only after a while."""

    def __init__(self, topic: str, other_opinion: OtherOpinion) -> None:
        self._topic = topic
        self._other_opinion = other_opinion
        self._quiet_until_s: dict[int, float] = {}  # by partition

    def first_lost(self, partition: int, start: int, offsets: Ints, end: int, *, certain: bool = False) -> int | None:
        """Where records are missing among those given from `start` to before `end`; None where none are known to be.

        `offsets` [n] are those given, ascending. The offset is the first of a gap. `certain`: ask in any case, and
        take a gap of which nothing can be found out for one with records. Raises UnreadableRecords where the other
        library cannot read there either.
        """
        after = np.append(offsets, end)
        before = np.concatenate([[start], offsets + 1])
        gaps = np.flatnonzero(after > before)
        if not len(gaps) or (not certain and time.monotonic() < self._quiet_until_s.get(partition, 0.0)):
            return None
        first, until = int(before[gaps[0]]), int(after[gaps[0]])
        at = first
        while at < until:
            records, position = self._other_opinion(self._topic, partition, at, 1)
            if len(records):
                if int(records.offsets[0]) < until:
                    return first
                break
            if position <= at:  # nothing is known yet
                return first if certain else None
            at = position
        self._quiet_until_s[partition] = time.monotonic() + _CHECK_AGAIN_S
        return None
