"""What a run under faults is judged by: `lstmstream verify`, readers that run all the while, and the log at its end."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Self

import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition

from lstmstream.config import load_config
from lstmstream.model import load_model
from lstmstream.transport.kafka_admin import open_kafka_admin
from lstmstream.transport.patient_broker import connected
from lstmstream.verify.run import Verification
from tests.broker.answers import Digest
from tests.broker.harness import Follower, admin, in_transaction, read_all

WATCH_S = 0.2  # between two looks at the group's offsets
# A coordinator that has just started may answer with offsets of before. On a busy machine, with a broker that was
# killed twice within half a minute, it did so for more than three seconds. No daemon believes them.
STALE_S = 30.0
ASK_S = 5.0
MAX_LISTED = 20


def verify(config: Path) -> tuple[int, dict[str, Any]]:
    """`lstmstream verify CONFIG` in this process: its exit code and its summary."""
    loaded = load_config(config)
    with connected(open_kafka_admin(loaded), "the topics cannot be read") as broker:
        verification = Verification(broker, loaded, load_model(loaded.model, base=loaded.folder))
        verification.round()
        return verification.exit_code, verification.summary()


def source_of(record: Any) -> tuple[int, int]:
    """Partition and offset of the event that a prediction or a dead letter is of."""
    headers = dict(record.headers)
    if "lstmstream.stage" in headers:
        return int(headers["__streams.errors.partition"]), int(headers["__streams.errors.offset"])
    source = orjson.loads(record.value)["source"]
    return source["partition"], source["offset"]


class OnlineReaders:
    """read_committed readers of the predictions and of the dead letters, while faults strike.

    A second record of one event is a finding at once. At the end the topics must hold just what was seen.
    """

    def __init__(self, servers: str, name: str, *, partitions: int) -> None:
        self.duplicates: list[str] = []
        self._servers, self._partitions = servers, partitions
        self._sources: set[tuple[int, int]] = set()
        self._last: dict[int, float] = {}
        self._longest = (0.0, -1, 0.0)  # seconds, partition, since when
        self._lock = Lock()
        self._topics = [f"{name}.out", f"{name}.dead-letter"]
        self._digests = {topic: Digest() for topic in self._topics}
        self._followers = [
            Follower(servers, topic, partitions=partitions, take=partial(self._take, topic)) for topic in self._topics
        ]

    def __enter__(self) -> Self:
        for follower in self._followers:
            follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        for follower in self._followers:
            follower.finish()

    def _take(self, topic: str, records: list[Any]) -> None:
        now = time.monotonic()
        with self._lock:
            self._digests[topic].take(_with_values(records))
            for record in records:
                source = source_of(record)
                if source in self._sources and len(self.duplicates) < MAX_LISTED:
                    self.duplicates.append(f"event {source} once more: {topic} {record.partition} {record.offset}")
                self._sources.add(source)
                self._end_silence(source[0], now)

    def _end_silence(self, partition: int, now: float) -> None:
        since = self._last.get(partition, now)
        self._longest = max(self._longest, (now - since, partition, time.time() - (now - since)))
        self._last[partition] = now

    def events(self) -> int:
        """How many events have had their record."""
        return len(self._sources)

    def load_ended(self) -> None:
        """From now on silence is no wonder."""
        with self._lock:
            for partition in list(self._last):
                self._end_silence(partition, time.monotonic())
            self._last.clear()

    def begin_silences(self) -> None:
        """Forget the longest silence so far, and begin to count anew."""
        now = time.monotonic()
        with self._lock:
            self._longest = (0.0, -1, 0.0)
            self._last = dict.fromkeys(range(self._partitions), now)

    def longest_silence_s(self) -> float:
        """Of a partition, up to now."""
        now = time.monotonic()
        with self._lock:
            return max(self._longest[0], *(now - since for since in self._last.values()))

    def longest_silence(self) -> str:
        """Of a partition, while the load ran, from its first answer on."""
        seconds, partition, since = self._longest
        return f"{seconds:.1f} s of partition {partition} from {time.strftime('%H:%M:%S', time.localtime(since))}"

    def differences(self) -> list[str]:
        """Topics that do not hold, at the end, what was seen of them. The readers have finished."""
        found = []
        for topic, seen in self._digests.items():
            now = Digest()
            now.take(_with_values(read_all(self._servers, topic, partitions=self._partitions)))
            if now.seen() != seen.seen():
                found.append(f"{topic} is not what was read while it was written: {now.seen()}, was {seen.seen()}")
        return found


class _WithValue:
    """A record for `Digest`, which asks for the length of the value: that of a dead letter may be null."""

    __slots__ = ("offset", "partition", "value")

    def __init__(self, record: Any) -> None:
        self.partition, self.offset, self.value = record.partition, record.offset, record.value or b""


def _with_values(records: Any) -> Any:
    return (_WithValue(record) for record in records)


class OffsetsWatch(Thread):
    """The group's offsets never go down: a zombie that committed would take them back."""

    def __init__(self, servers: str, group: str, topic: str, *, partitions: int) -> None:
        super().__init__(name="offsets", daemon=True)
        self.fallen: list[str] = []
        self.looks = 0
        self.offsets: dict[int, int] = {}
        self._lower: dict[int, float] = {}  # since when a partition's is lower than before
        # It is not a member of the group, and what it asks for has an end whatever becomes of the broker.
        settings = {"bootstrap.servers": servers, "group.id": group, "isolation.level": "read_uncommitted"}
        self._consumer = Consumer({**settings, "log_level": 0})
        self._partitions = [TopicPartition(topic, number) for number in range(partitions)]
        self._ending = Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self.join(60)

    def run(self) -> None:
        """The thread."""
        while not self._ending.wait(WATCH_S):
            with contextlib.suppress(KafkaException):
                found = self._consumer.committed(self._partitions, timeout=ASK_S)
                now = {at.partition: at.offset for at in found if at.error is None and at.offset >= 0}
                self.looks += bool(now)
                lower = {p: now[p] for p, offset in self.offsets.items() if now.get(p, offset) < offset}
                self._lower = {p: since for p, since in self._lower.items() if p in lower}
                for partition, offset in lower.items():
                    since_s = self._lower.setdefault(partition, time.monotonic())
                    if time.monotonic() - since_s > STALE_S:
                        before = self.offsets[partition]
                        self.fallen.append(
                            f"the group's offset of partition {partition} fell from {before} to {offset}"
                        )
                        self.offsets[partition] = offset
                self.offsets |= {p: offset for p, offset in now.items() if p not in lower}
        self._consumer.close()


def open_transactions(servers: str, name: str, *, partitions: int) -> list[str]:
    """The daemon's topics in which a transaction stands open, though nobody runs any more."""
    with admin(servers) as client:
        topics = [f"{name}.{kind}" for kind in ("out", "alerts", "dead-letter", "state")]
        return [topic for topic in topics if in_transaction(client, topic, partitions=partitions)]


def tombstones(servers: str, topic: str, *, partitions: int) -> int:
    """Records without a value: in the state topic of keys that expired, were evicted or erased."""
    return sum(record.value is None for record in read_all(servers, topic, partitions=partitions))


def aborted_records(servers: str, topic: str, *, partitions: int) -> int:
    """How many records stand there that no read_committed reader is shown: a fault struck inside their transaction."""
    counts = [
        sum(1 for _ in read_all(servers, topic, partitions=partitions, isolation=isolation))
        for isolation in ("read_uncommitted", "read_committed")
    ]
    return counts[0] - counts[1]
