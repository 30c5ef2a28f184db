"""What kafka-python's consumers make of the bytes of the log, by the library's own fetcher."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer.offsets import IsolationLevel
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from lstmstream.errors import UnreadableRecords
from lstmstream.records import NO_TIMESTAMP, RecordBatch, UnreadableValue
from lstmstream.transport import decompression
from lstmstream.transport.clients import kafka_python_records
from lstmstream.transport.clients.kafka_python_records import PartitionBatches
from tests.transport.batches import BAD_RECORDS, CODECS, DAMAGED, TIMESTAMP_MS, batch, many, record, varint


class AbortedTransaction(NamedTuple):
    producer_id: int
    first_offset: int


AT = TopicPartition("in", 0)
decompression.limit_decompression()


class Read(NamedTuple):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[Any]


def flat(batches: list[RecordBatch]) -> list[Read]:
    return [
        Read(*columns)
        for b in batches
        for columns in zip(b.offsets.tolist(), b.timestamps.tolist(), b.keys, b.values, b.headers, strict=True)
    ]


def part(log: bytes, *, start: int = 0) -> Any:
    return PartitionBatches(start, AT, MemoryRecords(log), isolation_level=IsolationLevel.READ_COMMITTED)


def read(log: bytes, *, start: int = 0) -> list[Read]:
    return flat(part(log, start=start).take(1000))


@pytest.mark.parametrize("name", DAMAGED)
def test_a_batch_that_cannot_be_decoded_is_named_after_the_records_before_it(name: str) -> None:
    damaged, why = DAMAGED[name]
    before = part(batch([record(0)]) + damaged)
    taken: list[Any] = []
    said = None
    for _ in range(6):  # a fetch that goes on is asked again: it must not give nothing for ever
        try:
            taken += flat(before.take(1000))
            if not before:  # the library fetches again, from there
                before = part(damaged, start=before.next_fetch_offset)
        except UnreadableRecords as error:
            said = error
            break
    assert said is not None
    assert [r.offset for r in taken][:1] == [0]
    first = taken[-1].offset + 1
    assert str(said).startswith(f"in[0]@{first}: ")
    assert why in str(said)
    assert said.first == first
    assert first < said.next_offset <= 4
    assert not before, "the library would never come back from it"


@pytest.mark.parametrize("codec", [None, *CODECS])
@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_record_that_cannot_be_decoded_leaves_the_others_alone(name: str, codec: str | None) -> None:
    bad, why = BAD_RECORDS[name]
    found = read(batch([record(0), bad, record(2)], base=1, codec=codec))
    assert [r.offset for r in found] == [1, 2, 3]
    assert [type(r.value) for r in found] == [bytes, UnreadableValue, bytes]
    assert why in found[1].value.reason
    assert bad.endswith(found[1].value)
    assert [r.timestamp for r in found] == [TIMESTAMP_MS, NO_TIMESTAMP, TIMESTAMP_MS]


@pytest.mark.parametrize("name", [b"\xff\xfe", b"\xc3", None])
def test_a_header_whose_name_is_no_text_is_left_out(name: bytes | None) -> None:
    headers = [(b"a", b"1"), (name, b"2"), (b"", None), ("ä".encode(), b"3")]
    found = read(batch([record(0), record(1, b"x", headers=headers), record(2)], base=7), start=7)
    assert [r.offset for r in found] == [7, 8, 9]
    assert [r.value for r in found] == [b"v", b"x", b"v"]
    assert found[1].headers == [("a", b"1"), ("", None), ("ä", b"3")]
    assert found[1].timestamp == TIMESTAMP_MS


def test_null_and_large_fields_are_read() -> None:
    large = b"x" * 3_000_000
    found = read(batch([record(0, None, key=None), record(1, large, key=large, headers=[(b"h", None)])], codec="gzip"))
    assert [(r.key, r.value) for r in found] == [(None, None), (large, large)]


def test_a_timestamp_beyond_64_bits_wraps_around_as_in_kafka() -> None:
    for time in (varint(2**63 - 1), varint(2**62 - 1)):
        (found,) = read(batch([record(0, time=time)]))
        assert found.timestamp == (TIMESTAMP_MS + (2**63 - 1 if len(time) > 9 else 2**62 - 1) + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [0, 1])
def test_the_old_formats_are_read(magic: int, codec: int) -> None:
    builder = LegacyRecordBatchBuilder(magic, codec, 10_000)
    for offset in range(2):
        builder.append(offset, TIMESTAMP_MS if magic else None, b"k", b"v")
    found = read(bytes(builder.build()))
    assert [r.offset for r in found] == [0, 1]
    assert [r.timestamp for r in found] == [TIMESTAMP_MS if magic else NO_TIMESTAMP] * 2
    builder = LegacyRecordBatchBuilder(magic, codec, 10_000)
    builder.append(0, TIMESTAMP_MS, b"k", b"v")
    damaged = bytearray(builder.build())
    damaged[-1] ^= 1
    with pytest.raises(UnreadableRecords, match=r"in\[0\]@0: .*CRC"):
        read(bytes(damaged))


@pytest.mark.parametrize("key", [struct.pack(">hh", 0, 1), struct.pack(">hh", 0, 9), struct.pack(">hhq", 7, 3, 1), b""])
def test_control_batches_of_any_type_are_passed_over(key: bytes) -> None:
    marker = batch([record(0, key=key)], base=1, attributes=0x30, producer=5)
    reading = part(
        batch(many(1)) + marker + batch(many(1), base=2) + batch([record(0, key=key)], base=3, attributes=48)
    )
    assert [r.offset for r in flat(reading.take(10))] == [0, 2]
    assert reading.next_fetch_offset == 4


def test_empty_batches_and_gaps_are_passed_over() -> None:
    reading = part(batch([], last_delta=3) + batch([record(1), record(4)], base=10, last_delta=6))
    assert [r.offset for r in flat(reading.take(10))] == [11, 14]
    assert reading.next_fetch_offset == 17
    assert not reading


def test_a_batch_of_earlier_offsets_alone_does_not_come_for_ever() -> None:
    with pytest.raises(UnreadableRecords, match="earlier"):
        read(batch(many(3)), start=50)
    assert [r.offset for r in read(batch(many(3)) + batch(many(2), base=50), start=50)] == [50, 51]


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_a_batch_that_grows_too_large_is_named(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompression, "UNPACKED_MAX_BYTES", 1 << 20)
    with pytest.raises(UnreadableRecords, match=r"in\[0\]@0: .*too large to unpack"):
        read(batch([record(0, b"\0" * (2 << 20))], codec=codec))


class FakeFetcher:
    """As much of the library's fetcher as takes records."""

    def __init__(self, log: bytes) -> None:
        self.part = part(log)

    def poll(self, monkeypatch: pytest.MonkeyPatch, most: int = 1000) -> list[Read]:
        """Its loop."""
        drained: dict[Any, list[Any]] = {}

        def library(_: Any, into: dict[Any, list[Any]], part: Any, count: int, *__: Any) -> int:
            taken = part.take(count) if part else []
            if taken:
                into.setdefault(AT, []).extend(taken)
            return len(taken)

        monkeypatch.setattr(Fetcher, "_append", library)
        kafka_python_records.begin_poll(self)
        left, rounds = most, 0
        while left > 0 and self.part:
            left -= kafka_python_records._append_within_bound(self, drained, self.part, left, True)
            rounds += 1
            assert rounds < 100
        return [record for batches in drained.values() for record in flat(batches)]


def test_a_poll_gives_no_more_records_than_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = FakeFetcher(b"".join(batch(many(5), base=base) for base in (0, 5, 10)))
    polls = []
    while fetcher.part:
        polls.append([r.offset for r in fetcher.poll(monkeypatch, most=4)])
        assert not fetcher.part or fetcher.part.next_fetch_offset == polls[-1][-1] + 1
    assert polls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14]]


def test_a_poll_ends_after_so_many_unpacked_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is small in the log and large unpacked: they are handed out one after the other, none is lost."""
    monkeypatch.setattr(kafka_python_records, "POLL_MAX_BYTES", 1_500_000)
    log = b"".join(batch([record(0, b"\0" * 1_000_000)], base=offset, codec="gzip") for offset in range(7))
    fetcher = FakeFetcher(log)
    polls = []
    while fetcher.part:
        polls.append([r.offset for r in fetcher.poll(monkeypatch)])
    assert [offset for poll in polls for offset in poll] == list(range(7))
    assert max(map(len, polls)) == 2


# -- beside the library


def random_log(source: random.Random) -> bytes:
    """Sound batches of every kind, with gaps, transactions and markers."""
    log, base = [], source.randrange(5)
    for _ in range(source.randint(1, 6)):
        kind = source.choice(["plain", "plain", "transactional", "marker"])
        producer = -1 if kind == "plain" else source.choice([5, 6])
        if kind == "marker":
            log.append(
                batch(
                    [record(0, key=struct.pack(">hh", 0, source.randint(0, 1)))],
                    base=base,
                    attributes=0x30,
                    producer=producer,
                )
            )
            base += 1
            continue
        deltas = sorted(source.sample(range(40), source.randint(1, 9)))
        records = [
            record(
                delta,
                source.choice([None, b"", b"v", bytes(source.randrange(300)), b"x" * 20_000]),
                key=source.choice([None, b"", b"key", bytes(70)]),
                headers=source.choice([[], [], [(b"h", b"1"), ("ä".encode(), None)], [(b"", b"x" * 200)]]),
                time=varint(source.choice([0, 1, -1, 86_400_000, -(2**40), 2**45])),
            )
            for delta in deltas
        ]
        attributes = (0 if kind == "plain" else 0x10) | source.choice([0, 0, 0x08])
        codec = source.choice([None, *CODECS])
        log.append(
            batch(records, base=base, codec=codec, attributes=attributes, producer=producer, last_delta=deltas[-1])
        )
        base += deltas[-1] + 1 + source.randrange(3)
    return b"".join(log)


@pytest.mark.parametrize("seed", range(150))
def test_sound_logs_are_read_as_the_library_reads_them(seed: int) -> None:
    source = random.Random(seed)
    log, start = random_log(source), source.randrange(20)
    aborted = [AbortedTransaction(producer, source.randrange(60)) for producer in (5, 6) if source.random() < 0.5]
    options: dict[str, Any] = {"isolation_level": IsolationLevel.READ_COMMITTED, "aborted_transactions": aborted}
    library = Fetcher.PartitionRecords(start, AT, MemoryRecords(log), **options)
    wanted = [Read(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in library.take(10_000)]
    ours = PartitionBatches(start, AT, MemoryRecords(log), **options)
    found: list[Read] = []
    if library.next_fetch_offset <= start and not wanted:  # there is nothing to come from this log
        with pytest.raises(UnreadableRecords, match="earlier offsets only"):
            ours.take(1)
        return
    while ours:
        found += flat(ours.take(source.randint(1, 7)))
    assert [r._replace(headers=tuple(r.headers)) for r in found] == wanted
    assert ours.next_fetch_offset == max(start, library.next_fetch_offset)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_records_are_read_the_same_in_bulk_and_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the records changed, the CRC made good: the same records, or the same reason."""
    source = random.Random(seed)
    for _ in range(25):
        body = bytearray(
            b"".join(record(i, bytes(source.randrange(90)), headers=[(b"h", b"1")] * (i % 2)) for i in range(4))
        )
        for _ in range(source.randint(1, 3)):
            body[source.randrange(len(body))] = source.choice([0, 1, 2, 0x7F, 0x80, 0xFF, source.randrange(256)])
        log = batch([b""] * 4, payload=bytes(body))
        outcomes = []
        for bulk in (True, False):
            with monkeypatch.context() as patch:
                if not bulk:
                    patch.setattr(kafka_python_records, "_all_at_once", lambda *_: None)
                outcome: list[Any] = []
                try:
                    reading = part(log)
                    while reading:
                        outcome += flat(reading.take(10))
                except UnreadableRecords as error:
                    outcome.append(str(error))
                outcomes.append([(r, list(r.headers)) if isinstance(r, Read) else r for r in outcome])
        assert [str(o) for o in outcomes[0]] == [str(o) for o in outcomes[1]]
