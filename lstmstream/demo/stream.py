"""The demo's two ends of the stream: one thread that sends transactions, one that reads what the daemon answers.

Both end when `stop` is set; an error ends the thread and stays in `error`. Neither shows anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import orjson
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from lstmstream.demo.simulate import Transactions
from lstmstream.demo.tally import Tally
from lstmstream.errors import CannotServe

PARTITIONS = 4
_IN_FLIGHT = 2_000, 0.4  # events, seconds: the sender waits while more than both is not yet answered
_TICK = 0.01  # seconds between two bursts of the sender


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of one demo's topics; `name` is also the daemon's consumer group."""

    name: str

    @property
    def transactions(self) -> str:
        """What the demo sends."""
        return f"{self.name}.transactions"

    @property
    def predictions(self) -> str:
        """One record for each event."""
        return f"{self.name}.predictions"

    @property
    def alerts(self) -> str:
        """The predictions that are alerts."""
        return f"{self.name}.alerts"

    @property
    def dead_letters(self) -> str:
        """Where the daemon puts what it cannot score."""
        return f"{self.name}.dead-letter"

    @property
    def state(self) -> str:
        """Where the daemon keeps its states."""
        return f"{self.name}.state"

    def create(self, bootstrap_servers: str) -> None:
        """Creates all but the state topic, which the daemon makes; errors: CannotServe."""
        # Events bear simulated times; with a retention of days the broker might delete them at once.
        plain = {"num_partitions": PARTITIONS, "configs": {"retention.ms": "-1"}}
        roomy = {"num_partitions": PARTITIONS, "configs": {"retention.ms": "-1", "max.message.bytes": "2097152"}}
        topics = {self.transactions: plain, self.predictions: plain, self.alerts: plain, self.dead_letters: roomy}
        try:
            with _closing(_admin(bootstrap_servers)) as admin:
                admin.create_topics(topics, wait_for_metadata=True)
        except KafkaError as error:
            raise CannotServe(
                f"--bootstrap-servers {bootstrap_servers}: cannot create the demo's topics ({error}); "
                "start a broker there, or leave the option out and the demo starts one"
            ) from error

    def delete(self, bootstrap_servers: str) -> None:
        """Deletes the topics and the group from a broker that goes on without the demo, as far as possible."""
        with _closing(_admin(bootstrap_servers)) as admin:
            ours = {self.transactions, self.predictions, self.alerts, self.dead_letters, self.state}
            admin.delete_topics(sorted(ours & set(admin.list_topics())), raise_errors=False)
            admin.delete_groups([self.name])


def _admin(bootstrap_servers: str) -> KafkaAdminClient:
    return KafkaAdminClient(bootstrap_servers=bootstrap_servers, bootstrap_timeout_ms=10_000, request_timeout_ms=15_000)


class Sender(Thread):
    """Sends transactions at `rate` a second, `limit` of them or without end, never too far ahead of the answers."""

    def __init__(
        self,
        bootstrap_servers: str,
        topics: Topics,
        days: Iterator[Transactions],
        tally: Tally,
        *,
        rate: float,
        limit: int | None,
        stop: Event,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self.error: Exception | None = None
        self._bootstrap_servers, self._topics, self._days, self._tally = bootstrap_servers, topics, days, tally
        self._rate, self._limit, self._stop_event = rate, limit, stop
        self._in_flight = max(_IN_FLIGHT[0], int(_IN_FLIGHT[1] * rate))

    def run(self) -> None:
        """The thread."""
        try:
            # Idempotent: a retry must not double an event, or the count at the end would blame the daemon.
            producer = KafkaProducer(
                bootstrap_servers=self._bootstrap_servers, acks="all", enable_idempotence=True, linger_ms=0
            )
            with _closing(producer):
                for part in self._bursts():
                    self._tally.send(part)
                    for key, value in zip(part.keys(), part.values(), strict=True):
                        producer.send(self._topics.transactions, key=key, value=value).add_errback(self._failed)
        except Exception as error:  # the main thread reports it
            self._failed(error)

    def _bursts(self) -> Iterator[Transactions]:
        """Slices of the days at the pace asked for."""
        credit, last, sent = 0.0, time.monotonic(), 0
        for day in self._days:
            start = 0
            while start < len(day):
                if self._stop_event.wait(_TICK) or self.error or sent == self._limit:
                    return
                now = time.monotonic()
                credit = min(credit + (now - last) * self._rate, max(self._rate / 4, 1))  # no rush after a pause
                last = now
                room = min(int(credit), self._in_flight - self._tally.in_flight)
                if self._limit is not None:
                    room = min(room, self._limit - sent)
                if room > 0:
                    part = day[start : start + room]
                    yield part
                    start, sent, credit = start + len(part), sent + len(part), credit - len(part)

    def _failed(self, error: Exception) -> None:
        self.error = self.error or error


class Reader(Thread):
    """Reads predictions, alerts and dead letters as a read_committed reader and tells the tally."""

    def __init__(self, bootstrap_servers: str, topics: Topics, tally: Tally, *, stop: Event) -> None:
        super().__init__(name="reader", daemon=True)
        self.error: Exception | None = None
        self.last_reason = ""  # of the newest dead letter
        self._bootstrap_servers, self._topics, self._tally, self._stop_event = bootstrap_servers, topics, tally, stop

    def run(self) -> None:
        """The thread."""
        try:
            consumer = KafkaConsumer(
                bootstrap_servers=self._bootstrap_servers,
                isolation_level="read_committed",
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                fetch_max_wait_ms=100,
            )
            with _closing(consumer):
                topics = (self._topics.predictions, self._topics.alerts, self._topics.dead_letters)
                consumer.assign([TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)])
                quiet_polls = 0
                # After the stop it reads on until nothing more comes: a late duplicate must not go unseen.
                while not self._stop_event.is_set() or quiet_polls < 3:
                    batches = consumer.poll(timeout_ms=200)
                    quiet_polls = 0 if batches else quiet_polls + 1
                    for partition, records in batches.items():
                        self._read(partition.topic, records)
        except Exception as error:  # the main thread reports it
            self.error = error

    def _read(self, topic: str, records: list[Any]) -> None:
        tally = self._tally
        if topic == self._topics.dead_letters:
            for record in records:
                tally.dead_letter(orjson.loads(record.value)["transaction_id"])
                headers = dict(record.headers)
                self.last_reason = headers.get("__streams.errors.message", b"").decode()
            return
        for record in records:
            answer = orjson.loads(record.value)
            number = answer["event"]["transaction_id"]
            if topic == self._topics.alerts:
                tally.alert(number)
            else:
                tally.answer(number, answer["key"], answer["score"], answer["steps"], alert=answer["alert"])


class _closing:  # noqa: N801 - reads like contextlib.closing
    """Closes a Kafka client without waiting long for a broker that may be gone."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __enter__(self) -> Any:
        return self._client

    def __exit__(self, *_: object) -> None:
        if not isinstance(self._client, KafkaProducer):
            self._client.close()
            return
        try:
            self._client.close(timeout=5)
        except KafkaError:
            self._client._sender.force_close()  # close() alone would try again, and complain, in the destructor
            raise
