"""How kafka-python's consumers turn the bytes of the log into records: a replacement for the library's own way.

The library's generator ends with its first error, and stays in line: from then on `poll` goes round for ever and never
returns. It gives up a whole batch for the name of one header. It does not look at offsets, so that a damaged one moves
the position anywhere. And it unpacks as many compressed batches in one poll as its fetches hold. Here
- a header whose name is not UTF-8 is left out;
- a record that cannot be decoded comes as an UnreadableValue, where the batch around it can be;
- a batch that cannot be decoded raises UnreadableRecords each time it is read, after the records before it;
- a poll ends after about POLL_MAX_BYTES.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.errors import KafkaError
from kafka.protocol.consumer.offsets import IsolationLevel
from kafka.record.default_records import DefaultRecord
from kafka.record.util import decode_varint

from lstmstream.errors import UnreadableRecords
from lstmstream.records import NO_TIMESTAMP, UnreadableValue
from lstmstream.transport.decompression import limit_decompression

log = logging.getLogger(__name__)

POLL_MAX_BYTES = 32 << 20  # of unpacked batches; the last one may go beyond it
_ABORT = b"\x00\x00"  # of a control record's type
_FORMATS = range(3)  # of the log; the newest is of 2017
_SPAN = 1 << 64  # of Kafka's timestamps, which wrap around


def read_records_our_way() -> None:
    """Put it in place, for the whole process; a second call changes nothing."""
    limit_decompression()
    global _append  # noqa: PLW0603 - what was replaced, for the one that replaces it
    if Fetcher._append is not _append_within_bound:
        _append = Fetcher._append
        Fetcher._append = _append_within_bound
        Fetcher.PartitionRecords._unpack_records = _unpack_records


_append: Any = None


def begin_poll(fetcher: Any) -> None:
    """The bound counts from here."""
    fetcher.lstmstream_unpacked = 0


def _append_within_bound(self: Any, drained: Any, part: Any, max_records: int, *rest: Any) -> int:
    """The library's, and the end of the poll once the bound is reached: its loop ends after `max_records` records."""
    taken: int = _append(self, drained, part, max_records, *rest)
    unpacked = getattr(part, "lstmstream_unpacked", 0) if part is not None else 0
    if unpacked:
        part.lstmstream_unpacked = 0
        self.lstmstream_unpacked = getattr(self, "lstmstream_unpacked", 0) + unpacked
    if drained and getattr(self, "lstmstream_unpacked", 0) >= POLL_MAX_BYTES:
        return max_records
    return taken


class _Records:
    """The records of one partition from one fetch. It stops after some bytes, as if at its end, and goes on later."""

    def __init__(self, part: Any, at: Any, records: Any) -> None:
        self._part = part
        self._at = at
        self._records = records
        self._inside: Iterator[Any] = iter(())
        self._next_offset = 0  # after the batch that is being read

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        part = self._part
        try:
            while True:
                for record in self._inside:
                    part.next_fetch_offset = max(part.next_fetch_offset, record.offset + 1)
                    return record
                # It stands in the batch even where compaction has removed its last records.
                part.next_fetch_offset = max(part.next_fetch_offset, self._next_offset)
                if part.lstmstream_unpacked >= POLL_MAX_BYTES:
                    break  # `_append_within_bound` ends the poll; the next one goes on here
                if not self._records.has_next():
                    if part.next_fetch_offset == part.fetch_offset and self._next_offset:
                        raise self._unreadable(part.fetch_offset + 1, "it holds earlier offsets only")
                    part.drain()
                    break
                self._inside = self._next_batch()
        except BaseException:
            part.drain()  # the library would ask for the next record for ever; the next poll fetches it again
            raise
        raise StopIteration

    def _next_batch(self) -> Iterator[Any]:
        """The records of the next batch: none, where it is aborted or holds markers."""
        end = self._part.next_fetch_offset + 1  # until more is known
        try:
            batch = self._records.next_batch()
            if batch.magic not in _FORMATS:
                raise ValueError(f"its format is {batch.magic}, which is not known")
            end = _end(batch)
            if batch.magic == 2 and not 0 <= batch.records_count <= end - batch.base_offset:
                count, room = batch.records_count, end - batch.base_offset
                raise ValueError(f"it claims {count} records for {room} offsets, so it is damaged")
            if self._part.check_crcs and not batch.validate_crc():
                raise ValueError("its CRC does not match, so it is damaged")
            if batch.magic == 2:
                self._part.leader_epoch = batch.leader_epoch
                self._next_offset = end
                if self._passed_over(batch):
                    return
            records = iter(batch)  # unpacks it
            self._part.lstmstream_unpacked += len(batch._buffer)
            for record in _of_batch(batch) if batch.magic == 2 else records:
                if batch.magic < 2 and not record.validate_crc():
                    raise ValueError("the CRC of a record does not match, so it is damaged")
                yield self._consumer_record(record)
        except Exception as error:
            explained = type(error) is ValueError or isinstance(error, KafkaError)
            raise self._unreadable(end, str(error) if explained else f"{type(error).__name__}: {error}") from error

    def _unreadable(self, end: int, reason: str) -> UnreadableRecords:
        first = self._part.next_fetch_offset
        return UnreadableRecords(self._at.topic, self._at.partition, first, max(end, first + 1), reason)

    def _passed_over(self, batch: Any) -> bool:
        """Whether it holds nothing for a reader of committed records."""
        part = self._part
        if part.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            part._consume_aborted_transactions_up_to(batch.last_offset)
            if _aborts(batch):
                part.aborted_producer_ids.discard(batch.producer_id)
            elif part._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)

    def _consumer_record(self, record: Any) -> Any:
        part, at = self._part, self._at
        part.records_read += 1
        part.bytes_read += record.size_in_bytes
        return ConsumerRecord(
            at.topic,
            at.partition,
            part.leader_epoch,
            record.offset,
            _timestamp(record.timestamp),
            record.timestamp_type,
            record.key,
            record.value,
            record.headers,
            None,
            -1,
            -1,
            -1,
        )


def _unpack_records(self: Any, at: Any, records: Any, *_: Any) -> Iterator[Any]:
    """In place of the generator of `PartitionRecords`; called as one is made."""
    self.lstmstream_unpacked = 0
    if not records.has_next() and records.size_in_bytes() > 0:
        first = self.next_fetch_offset
        reason = "it is cut short, or its length is damaged"
        raise UnreadableRecords(at.topic, at.partition, first, first + 1, reason)
    return _Records(self, at, records)


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
