"""How kafka-python's consumers turn the bytes of the log into records: a replacement for the library's own way.

The library makes an object of each record, which takes most of its time. Its generator ends with its first error, and
stays in line: from then on `poll` goes round for ever and never returns. It gives up a whole batch for the name of one
header. It does not look at offsets, so that a damaged one moves the position anywhere. And it unpacks as many
compressed batches in one poll as its fetches hold. Here
- a batch of the log comes as one RecordBatch;
- a header whose name is not UTF-8 is left out;
- a record that cannot be decoded comes as an UnreadableValue, where the batch around it can be;
- a batch that cannot be decoded raises UnreadableRecords each time it is read, after the records before it;
- a poll ends after about POLL_MAX_BYTES.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import MethodType
from typing import Any

import numpy as np
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError
from kafka.protocol.consumer.offsets import IsolationLevel
from kafka.record.default_records import DefaultRecord
from kafka.record.util import decode_varint

from lstmstream.errors import UnreadableRecords
from lstmstream.records import NO_TIMESTAMP, RecordBatch, UnreadableValue
from lstmstream.transport.decompression import limit_decompression
from lstmstream.transport.record_format import decode_records

log = logging.getLogger(__name__)

POLL_MAX_BYTES = 32 << 20  # of unpacked batches; the last one may go beyond it
_ABORT = b"\x00\x00"  # of a control record's type
_FORMATS = range(3)  # of the log; the newest is of 2017
_SPAN = 1 << 64  # of Kafka's timestamps, which wrap around


def read_by_batch(consumer: Any) -> None:
    """Put it in place, for this consumer: `poll` gives RecordBatches in place of records."""
    limit_decompression()
    fetcher = consumer._fetcher
    fetcher.PartitionRecords = PartitionBatches
    fetcher._append = MethodType(_append_within_bound, fetcher)


def begin_poll(fetcher: Any) -> None:
    """The bound counts from here."""
    fetcher.lstmstream_unpacked = 0


def _append_within_bound(fetcher: Any, drained: Any, part: Any, max_records: int, *rest: Any) -> int:
    """The library's, which counts batches; and the end of the poll once the bound is reached.

    Its loop ends after `max_records` records.
    """
    read_before = 0 if part is None else part.records_read
    Fetcher._append(fetcher, drained, part, max_records, *rest)
    if part is None:
        return 0
    fetcher.lstmstream_unpacked = getattr(fetcher, "lstmstream_unpacked", 0) + part.unpacked_bytes
    part.unpacked_bytes = 0
    if drained and fetcher.lstmstream_unpacked >= POLL_MAX_BYTES:
        return max_records
    return int(part.records_read - read_before)


class PartitionBatches(Fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of one partition from one fetch. It stops after some bytes, and goes on later."""

    def __init__(self, fetch_offset: int, at: Any, records: Any, **options: Any) -> None:
        super().__init__(fetch_offset, at, records, **options)
        self._log = records
        self._blocks: Iterator[RecordBatch] = iter(())  # of the batch that is being read
        self._rest: RecordBatch | None = None  # of a block that was more than was asked for
        self._next_offset = 0  # after that batch
        self.next_fetch_offset: int
        self.unpacked_bytes = 0
        if not records.has_next() and records.size_in_bytes() > 0:
            reason = "it is cut short, or its length is damaged"
            raise UnreadableRecords(at.topic, at.partition, fetch_offset, fetch_offset + 1, reason)

    def _unpack_records(self, *_: Any) -> Iterator[Any]:
        """What the library would take the records from; here `take` does it."""
        return iter(())

    def take(self, n: int) -> list[RecordBatch]:
        """Up to `n` records, in as many batches as they stand in. Raises UnreadableRecords."""
        taken: list[RecordBatch] = []
        try:
            while n > 0 and (block := self._next_block(n)) is not None:
                n -= len(block)
                self.records_read += len(block)
                taken.append(block)
        except BaseException:
            self.drain()  # the library would ask for the next record for ever; the next poll fetches it again
            if not taken:
                raise
        return taken

    def _next_block(self, most: int) -> RecordBatch | None:
        """None at the end, and where so much is unpacked that the poll should end."""
        while self._rest is None:
            block = next(self._blocks, None)
            if block is not None:
                first = int(np.searchsorted(block.offsets, self.fetch_offset))  # a fetch begins inside a batch
                self._rest = block.slice(first, len(block)) if first < len(block) else None
                continue
            # It stands in the batch even where compaction has removed its last records.
            self.next_fetch_offset = max(self.next_fetch_offset, self._next_offset)
            if self.unpacked_bytes >= POLL_MAX_BYTES:
                return None
            if not self._log.has_next():
                if self.next_fetch_offset == self.fetch_offset and self._next_offset:
                    raise self._unreadable(self.fetch_offset + 1, "it holds earlier offsets only")
                self.drain()
                return None
            self._blocks = self._read_batch()
        block, self._rest = self._rest, None
        if len(block) > most:
            block, self._rest = block.slice(0, most), block.slice(most, len(block))
        self.next_fetch_offset = int(block.offsets[-1]) + 1
        return block

    def _read_batch(self) -> Iterator[RecordBatch]:
        """The records of the next batch: none, where it is aborted or holds markers."""
        end = self.next_fetch_offset + 1  # until more is known
        try:
            batch = self._log.next_batch()
            if batch.magic not in _FORMATS:
                raise ValueError(f"its format is {batch.magic}, which is not known")
            end = _end(batch)
            if batch.magic == 2 and not 0 <= batch.records_count <= end - batch.base_offset:
                count, room = batch.records_count, end - batch.base_offset
                raise ValueError(f"it claims {count} records for {room} offsets, so it is damaged")
            if self.check_crcs and not batch.validate_crc():
                raise ValueError("its CRC does not match, so it is damaged")
            if batch.magic == 2:
                self.leader_epoch = batch.leader_epoch
                self._next_offset = end
                if self._passed_over(batch):
                    return
            unpacked = iter(batch)
            self.unpacked_bytes += len(batch._buffer)
            self.bytes_read += len(batch._buffer)
            at = self.topic_partition
            if batch.magic == 2 and (block := _all_at_once(batch, at.topic, at.partition)) is not None:
                yield block
                return
            records: list[Any] = []
            damage: Exception | None = None
            try:
                for record in _of_batch(batch) if batch.magic == 2 else unpacked:
                    if batch.magic < 2 and not record.validate_crc():
                        raise ValueError("the CRC of a record does not match, so it is damaged")
                    records.append(record)
            except Exception as error:
                damage = error
            if records:
                yield _block(records, at.topic, at.partition)
            if damage is not None:
                raise damage
        except Exception as error:
            explained = type(error) is ValueError or isinstance(error, KafkaError)
            raise self._unreadable(end, str(error) if explained else f"{type(error).__name__}: {error}") from error

    def _unreadable(self, end: int, reason: str) -> UnreadableRecords:
        first, at = self.next_fetch_offset, self.topic_partition
        return UnreadableRecords(at.topic, at.partition, first, max(end, first + 1), reason)

    def _passed_over(self, batch: Any) -> bool:
        """Whether it holds nothing for a reader of committed records."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if _aborts(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


def _all_at_once(batch: Any, topic: str, partition: int) -> RecordBatch | None:
    """The records of an unpacked batch; None where one of them is not sound, or its offset cannot be."""
    body = bytes(memoryview(batch._buffer)[batch._pos :])
    try:
        columns = decode_records(body, batch.records_count)
    except ValueError:
        return None
    deltas = columns.offset_deltas
    if len(deltas) and (deltas[0] < 0 or deltas[-1] > batch.last_offset_delta or (np.diff(deltas) <= 0).any()):
        return None
    if batch.timestamp_type == batch.LOG_APPEND_TIME:
        timestamps = np.full(len(deltas), batch.max_timestamp, np.int64)
    else:
        timestamps = columns.timestamp_deltas + np.int64(batch.first_timestamp)  # wraps around, as in Kafka
    offsets = deltas + batch.base_offset
    partitions = np.full(len(deltas), partition, np.int64)
    return RecordBatch(topic, partitions, offsets, timestamps, columns.keys, columns.values, columns.headers)


def _block(records: list[Any], topic: str, partition: int) -> RecordBatch:
    return RecordBatch(
        topic=topic,
        partitions=np.full(len(records), partition, np.int64),
        offsets=np.array([record.offset for record in records], np.int64),
        timestamps=np.array([_timestamp(record.timestamp) for record in records], np.int64),
        keys=[record.key for record in records],
        values=[record.value for record in records],
        headers=[record.headers or () for record in records],
    )


def _end(batch: Any) -> int:
    """The offset after it, as its head has it. Raises ValueError if that cannot be."""
    first = batch.base_offset
    last = first if batch.magic < 2 else batch.last_offset  # `first` of an old compressed one is its last record's
    if first < 0 or last < first:
        raise ValueError(f"it claims offsets {first} to {last}, so it is damaged")
    return int(last) + 1


def _aborts(batch: Any) -> bool:
    """Whether it is the marker of an aborted transaction; markers of a type that is not known mean nothing."""
    if not batch.is_control_batch or not batch.records_count:
        return False
    iter(batch)  # unpacks it
    key = _leniently(batch, _framed(batch, batch._pos)).key
    return key is not None and key[2:4] == _ABORT


def _of_batch(batch: Any) -> Iterator[Any]:
    """Its records, each with an offset that can be. Raises ValueError, or whatever the library does."""
    before, last = batch.base_offset - 1, batch.last_offset
    dense = batch.records_count == last - before
    for number in range(batch.records_count):
        start = batch._pos
        try:
            record = batch._read_msg()
        except Exception:
            record = _by_hand(batch, start, number, batch.base_offset + number if dense else None)
        if not before < record.offset <= last:
            raise ValueError(f"its record {number} claims offset {record.offset}, so it is damaged")
        before = record.offset
        yield record
    if batch._pos != len(batch._buffer):
        raise ValueError(f"{len(batch._buffer) - batch._pos} bytes are left after its {batch.records_count} records")


def _by_hand(batch: Any, start: int, number: int, offset: int | None) -> Any:
    """A record that the library cannot decode. Raises unless the others can still be told apart.

    `offset`: the one it must have, where that is known.
    """
    raw = _framed(batch, start)
    batch._pos += len(raw)
    following, end = batch._pos, len(batch._buffer)
    for _ in range(batch.records_count - number - 1):
        following += len(_framed(batch, following))
    if following != end:
        raise ValueError(f"its record {number} cannot be told from the next, so it is damaged")
    content = raw[-decode_varint(raw)[0] :]
    try:
        return _leniently(batch, raw)
    except (ValueError, IndexError) as error:
        if offset is None:
            raise
        value = UnreadableValue(content, str(error) if type(error) is ValueError else "it ends too early")
        return DefaultRecord(len(content), offset, NO_TIMESTAMP, 0, None, value, [])


def _framed(batch: Any, start: int) -> bytes:
    """A record with its length before it. Raises ValueError, IndexError."""
    length, begin = decode_varint(batch._buffer, start)
    if length < 1 or begin + length > len(batch._buffer):
        raise ValueError(f"a record claims {length} bytes of {len(batch._buffer) - begin}, so it is damaged")
    return bytes(batch._buffer[start : begin + length])


def _leniently(batch: Any, raw: bytes) -> Any:
    """The record, from its length on, without headers whose names are not UTF-8. Raises ValueError, IndexError."""
    _, at = decode_varint(raw)
    delta, at = decode_varint(raw, at + 1)  # after a byte of attributes, which are not in use
    timestamp = batch.max_timestamp if batch.timestamp_type == batch.LOG_APPEND_TIME else batch.first_timestamp + delta
    offset, at = decode_varint(raw, at)
    key, at = _bytes(raw, at, "the key")
    value, at = _bytes(raw, at, "the value")
    count, at = decode_varint(raw, at)
    if count < 0:
        raise ValueError(f"it claims {count} headers")
    headers = []
    for _ in range(count):
        name, at = _bytes(raw, at, "a header's name")
        content, at = _bytes(raw, at, "a header's value")
        try:
            if name is not None:
                headers.append((name.decode(), content))
                continue
        except UnicodeDecodeError:
            pass
        log.debug("a header is left out: its name is not UTF-8", extra={"offset": batch.base_offset + offset})
    if at != len(raw):
        raise ValueError(f"{len(raw) - at} bytes are left after its headers")
    return DefaultRecord(len(raw), batch.base_offset + offset, timestamp, batch.timestamp_type, key, value, headers)


def _bytes(raw: bytes, at: int, what: str) -> tuple[bytes | None, int]:
    """A field with a length before it; null where that is negative."""
    length, at = decode_varint(raw, at)
    if length < 0:
        return None, at
    if at + length > len(raw):
        raise ValueError(f"{what} claims {length} bytes, {len(raw) - at} are left")
    return raw[at : at + length], at + length


def _timestamp(timestamp: int | None) -> int:
    """In 64 bits, as Kafka's own clients add it up; the oldest format has none."""
    return NO_TIMESTAMP if timestamp is None else (timestamp + _SPAN // 2) % _SPAN - _SPAN // 2
