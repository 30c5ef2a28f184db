"""A steady stream of events with hostile ones among them: a third of it is one key."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self
from zlib import crc32

from kafka.errors import KafkaError

from tests.broker.harness import Producing, create_topics, write_config
from tests.models import MAGIC, poisoned_model
from tests.verify.world import events

HOT_KEY = b"hot"
HOT_SHARE = 1 / 3
KEYS = 200  # named k0 and so on, beside the hot one and hostile ones
HOSTILE_SHARE = 0.02
CHUNK = 2_000  # events that are made at once

# Keys like a control record's, without bytes, that are no text, and long; values that have to become dead letters.
HOSTILE_KEYS = (b"", b"\x00\x00\x00\x01", b"\xff\xfe", b"__floor__", b"L" * 65_536)
HOSTILE_VALUES: tuple[bytes | None, ...] = (
    None,
    b"",
    b"not json",
    b"\xff",
    b'{"amount": NaN}',
    b'{"amount": 1e400}',
    b'{"amount": 1e39}',
    b'{"amount": true}',
    b'{"amount": %r}' % MAGIC,
    b"[" * 20_000,
    b'{"a": ' + b'{"a": ' * 500 + b"1" + b"}" * 501,
)

Record = tuple[bytes | None, bytes | None, int, int]  # key, value, timestamp in ms, partition


def hostile_stream(seed: int, partitions: int) -> Iterator[Record]:
    """Events without end, the same for the same seed; each key in one partition."""
    source = random.Random(seed)
    later_ms = 0
    for chunk in count():
        last_ms = 0
        for given_key, given_value, at_ms in events(CHUNK, seed=seed + chunk, keys=KEYS):
            key: bytes | None = given_key
            value: bytes | None = given_value
            if source.random() < HOT_SHARE:
                key = HOT_KEY
            elif source.random() < HOSTILE_SHARE:
                key = source.choice(HOSTILE_KEYS)
            if source.random() < HOSTILE_SHARE:
                value = source.choice(HOSTILE_VALUES if key is not None else HOSTILE_VALUES[1:])
            last_ms = max(last_ms, at_ms)
            yield key, value, at_ms + later_ms, crc32(key or b"") % partitions
        later_ms += last_ms - 1_700_000_000_000


def make_stream(servers: str, name: str, folder: Path, *, partitions: int, **sections: Any) -> Path:
    """The topics, and the configuration of a daemon with late events, expiry, alerts and fields that are carried."""
    create_topics(servers, [f"{name}.{kind}" for kind in ("in", "out", "alerts")], partitions=partitions)
    return write_config(
        folder / "daemon.yaml",
        name=name,
        model=make_model(folder, 1),
        servers=servers,
        **{
            "input": {"late": "drop"},
            "output": {"alerts_topic": f"{name}.alerts", "include": ["note", "amount"], "threshold": 0.6},
            "state": {"ttl": "1h", "checkpoint_interval": "1s"},
            **sections,
        },
    )


def make_model(folder: Path, version: int) -> Path:
    """Other weights for each version."""
    categories: dict[str, Any] = {"channel": ["web", "7"], "shop": 5}
    file = f"version-{version}.onnx"
    return poisoned_model(folder, file=file, version=str(version), seed=version, categories=categories)


class Load(Thread):
    """Sends `hostile_stream` at a steady rate until it is told to stop, whatever becomes of the broker meanwhile."""

    def __init__(self, servers: str, topic: str, *, partitions: int, rate: float, seed: int) -> None:
        super().__init__(name="load", daemon=True)
        self.sent = 0
        self.written = 0  # of those, what the broker has acknowledged
        self.error: BaseException | None = None
        self._servers, self._topic, self._rate = servers, topic, rate
        self._records = hostile_stream(seed, partitions)
        self._ending = Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """No more is sent, and all that was sent is in the topic. Raises what ended it before."""
        self._ending.set()
        self.join(180)
        if self.error is not None:
            raise self.error
        assert not self.is_alive(), "the load could not be written to its end"

    def run(self) -> None:
        """The thread: a producer that failed is replaced. What it lost is no matter: the topic says what was sent."""
        try:
            while not self._ending.is_set():
                try:
                    with Producing(self._servers, self._topic) as producer:
                        self._send(producer)
                except KafkaError:
                    self._ending.wait(0.5)
        except BaseException as error:  # raised again in `finish`
            self.error = error

    def _send(self, producer: Producing) -> None:
        due = time.monotonic()
        while not self._ending.is_set():
            for _ in range(max(1, round(self._rate / 20))):
                producer.send(*next(self._records))
                self.sent += 1
                due += 1 / self._rate
            producer.flush()
            self.written = self.sent
            now = time.monotonic()
            due = max(due, now - 1.0)  # what an outage has held up is not made up for at once
            self._ending.wait(max(0.0, due - now))
