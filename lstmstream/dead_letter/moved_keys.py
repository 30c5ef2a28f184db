"""Where the keys of dead letters are now: `lstmstream state repartition` has moved some since these events came.

An event that is replayed into the partition that it came from would give its key a second state there, and answers
that know nothing of the first one.
"""

from __future__ import annotations

from lstmstream.config import Config
from lstmstream.serve.state_records import FLOOR, CorruptStateRecord, unpack_floor
from lstmstream.transport.partitioner import partition_of
from lstmstream.transport.patient_broker import PatientBroker


class MovedKeys:
    """Asks the state topic, but for keys that are where Kafka's partitioner puts them, as all are without a move."""

    def __init__(self, broker: PatientBroker, config: Config) -> None:
        self._broker = broker
        self._topic = config.state.topic
        self._until: dict[int, int] = {}  # partition → the input offset of its last move; 0: there was none

    def partition(self, key: bytes | None, partitions: int, partition: int, offset: int) -> int:
        """Of the events of a key now, of which one was at this partition and offset. Raises CannotServe."""
        if key is None or (home := partition_of(key, partitions)) == partition:
            return partition
        if partition not in self._until:
            self._until[partition] = self._last_move(partition)
        return home if offset < self._until[partition] else partition

    def _last_move(self, partition: int) -> int:
        found = self._broker.describe([self._topic]).get(self._topic)
        if found is None or partition >= found.partitions:
            return 0
        floors: dict[bytes, bytes | None] = {}
        start, _ = self._broker.offset_range(self._topic, partition)
        end = self._broker.last_stable_offsets(self._topic, [partition])[partition]
        for records in self._broker.read(self._topic, partition, start, end):
            pairs = zip(records.keys, records.values, strict=True)
            floors |= {key: value for key, value in pairs if key is not None and key[:1] == FLOOR}
        return max((offset for value in floors.values() if value is not None for offset in _moves(value)), default=0)


def _moves(value: bytes) -> list[int]:
    try:
        return [offset for offset, _before, _after in unpack_floor(value).moves]
    except CorruptStateRecord:  # the daemon refuses it, and says so
        return []
