"""What kafka-python reads where librdkafka has left a gap: see OtherOpinion in confluent_gaps.py.

To open a consumer takes longer than to read. A restore asks at the first gap of each partition, and in the state topic
each transaction leaves one: so the consumer is kept for a few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock, Timer

from kafka import TopicPartition

from lstmstream.records import RecordBatch
from lstmstream.transport.clients.kafka_python_consumer import KafkaPythonReader

OPINION_S = 2.0  # that it may take
KEPT_S = 5.0  # after it was last used
_READ_S = 0.2
_NO_END = 1 << 62


class OtherReader:
    """May be asked from any thread."""

    def __init__(self, open_reader: Callable[[str, int, int], KafkaPythonReader]) -> None:
        self._open_reader = open_reader
        self._lock = Lock()
        self._reader: KafkaPythonReader | None = None
        self._expiry: Timer | None = None

    def read(self, topic: str, partition: int, start: int) -> tuple[RecordBatch, int]:
        """Records from `start` on, perhaps none, and the offset to go on from. Raises UnreadableRecords, KafkaError."""
        with self._lock:
            if self._expiry is not None:
                self._expiry.cancel()
            deadline_s = time.monotonic() + OPINION_S
            try:
                if self._reader is None:
                    self._reader = self._open_reader(topic, partition, start)
                else:
                    self._reader.move(TopicPartition(topic, partition), start)
                while True:
                    records, position = self._reader.read(start, _NO_END, _READ_S)
                    if position > start or time.monotonic() > deadline_s:
                        break
            except BaseException:
                self._close()
                raise
            self._expiry = Timer(KEPT_S, self._expire)
            self._expiry.daemon = True
            self._expiry.start()
        return records, position

    def _expire(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
