"""The events of the benchmark: JSON of about 160 bytes with 8 numbers, keyed by card, the same in each run.

An event is kept as key, head and tail. Its time, as text, goes between head and tail: while the topic is loaded a
simulated time, and for the latency the moment at which it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

FEATURES = ("amount", *(f"f{number}" for number in range(1, 8)))
FIRST_EVENT = np.datetime64("2025-06-01T00:00:00.000")
EVENT_INTERVAL_MS = 20
CHUNK = 100_000  # events made at once
LOG_LEVEL = 2  # of librdkafka: critical; it also reports that the broker was stopped

_TAIL = ",".join(f'"{name}":%.4f' for name in FEATURES).encode()


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `numbers` in the order of FEATURES, as they stand in the text."""

    key: bytes
    head: bytes
    tail: bytes
    numbers: tuple[float, ...]

    def value(self, time: bytes) -> bytes:
        """The record's value with this time."""
        return self.head + time + self.tail


@dataclass(frozen=True, slots=True)
class Workload:
    """How many events, and how they are spread over keys: the key of rank r occurs in proportion to 1 / r**zipf."""

    events: int
    keys: int = 100_000
    zipf: float = 0.8
    seed: int = 7

    def shares(self) -> NDArray[np.float64]:
        """[keys] The expected share of the events, by rank."""
        weights: NDArray[np.float64] = np.arange(1, self.keys + 1, dtype=np.float64) ** -self.zipf
        return np.asarray(weights / weights.sum())

    def ranked_keys(self) -> list[bytes]:
        """All keys, the most frequent first."""
        numbers = np.random.default_rng(self.seed).permutation(self.keys)
        return [b"c%06d" % number for number in numbers.tolist()]

    def make_events(self) -> Iterator[tuple[bytes, Event]]:
        """Each event with its simulated time."""
        cumulative = np.cumsum(self.shares())
        keys = self.ranked_keys()
        for start in range(0, self.events, CHUNK):
            size = min(CHUNK, self.events - start)
            random = np.random.default_rng([self.seed, start])
            ranks = np.minimum(np.searchsorted(cumulative, random.random(size)), self.keys - 1)
            numbers = np.round(random.standard_normal((size, len(FEATURES))), 4)
            numbers[:, 0] = np.round(random.lognormal(0, 0.5, size), 4)
            since_first = np.arange(start, start + size) * np.timedelta64(EVENT_INTERVAL_MS, "ms")
            times = np.datetime_as_string(FIRST_EVENT + since_first, unit="ms").tolist()
            for rank, row, time in zip(ranks.tolist(), numbers.tolist(), times, strict=True):
                key = keys[rank]
                values = tuple(row)
                head = b'{"card_id":"%b","ts":"' % key
                yield time.encode() + b"Z", Event(key, head, b'",' + _TAIL % values + b"}", values)

    def event_bytes(self) -> int:
        """The mean size of a value, of the first events."""
        return round(float(np.mean([len(event.value(time)) for time, event in islice(self.make_events(), 1000)])))


def load_topic(servers: str, topic: str, workload: Workload, see: Callable[[bytes, Event], None]) -> None:
    """Write all events into the topic, in order per key; `see` gets each event with its time."""
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "log_level": LOG_LEVEL,
            "partitioner": "murmur2_random",  # as Java's clients and kafka-python
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 50,
            "batch.size": 262_144,
            "queue.buffering.max.messages": 2 * CHUNK,
        }
    )
    for time, event in workload.make_events():
        see(time, event)
        value = event.value(time)
        while True:
            try:
                producer.produce(topic, value, event.key)
                break
            except BufferError:
                producer.poll(0.05)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} events could not be written to {topic} within 120 s")
