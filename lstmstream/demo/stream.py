"""Both ends of the demo's stream: a thread that sends events, and one that reads what the daemon writes.

Both end when `stop` is set. An error ends the thread and is kept in `error`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import orjson
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from lstmstream.demo.scenario import Part, Scenario
from lstmstream.demo.tally import Tally
from lstmstream.errors import CannotServe

PARTITIONS = 4
_IN_FLIGHT = 2_000, 0.4  # events, seconds: the sender waits while more than both are in flight
_TICK = 0.01  # seconds between two bursts of the sender


@dataclass(frozen=True, slots=True)
class Topics:
    """The topic names of one demo; `name` is also the daemon's consumer group."""

    name: str

    @property
    def events(self) -> str:
        """Topic of the events that the demo sends."""
        return f"{self.name}.events"

    @property
    def predictions(self) -> str:
        """Topic of the predictions, one per event."""
        return f"{self.name}.predictions"

    @property
    def alerts(self) -> str:
        """Topic of the alerts."""
        return f"{self.name}.alerts"

    @property
    def dead_letters(self) -> str:
        """Topic of the dead letters."""
        return f"{self.name}.dead-letter"

    @property
    def state(self) -> str:
        """Topic of the states."""
        return f"{self.name}.state"

    def create(self, bootstrap_servers: str) -> None:
        """Create all topics but the state topic, which the daemon creates. Raises CannotServe."""
        # Events bear simulated times; with a retention of days the broker might delete them at once.
        plain = {"num_partitions": PARTITIONS, "configs": {"retention.ms": "-1"}}
        roomy = {"num_partitions": PARTITIONS, "configs": {"retention.ms": "-1", "max.message.bytes": "2097152"}}
        topics = {self.events: plain, self.predictions: plain, self.alerts: plain, self.dead_letters: roomy}
        try:
            with _close_quickly(_admin(bootstrap_servers)) as admin:
                admin.create_topics(topics, wait_for_metadata=True)
        except KafkaError as error:
            raise CannotServe(
                f"--bootstrap-servers {bootstrap_servers}: cannot create the demo's topics ({error}); "
                "start a broker there, or leave the option out, and the demo starts one"
            ) from error

    def delete(self, bootstrap_servers: str) -> None:
        """Delete the topics and the group, as far as possible, from a broker that the demo did not start."""
        with _close_quickly(_admin(bootstrap_servers)) as admin:
            ours = {self.events, self.predictions, self.alerts, self.dead_letters, self.state}
            admin.delete_topics(sorted(ours & set(admin.list_topics())), raise_errors=False)
            admin.delete_groups([self.name])


def _admin(bootstrap_servers: str) -> KafkaAdminClient:
    return KafkaAdminClient(bootstrap_servers=bootstrap_servers, bootstrap_timeout_ms=10_000, request_timeout_ms=15_000)


class Sender(Thread):
    """Sends events, `rate` per second, up to `limit` of them, and never too far ahead of the predictions."""

    def __init__(
        self,
        bootstrap_servers: str,
        topics: Topics,
        parts: Iterator[Part],
        tally: Tally,
        *,
        rate: float,
        limit: int | None,
        stop: Event,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self.error: Exception | None = None
        self._bootstrap_servers, self._topics, self._parts, self._tally = bootstrap_servers, topics, parts, tally
        self._rate, self._limit, self._stop_event = rate, limit, stop
        self._in_flight = max(_IN_FLIGHT[0], int(_IN_FLIGHT[1] * rate))

    def run(self) -> None:
        """Send until `limit`, `stop` or an error."""
        try:
            # Idempotent: a retry must not duplicate an event, or the final count would blame the daemon.
            producer = KafkaProducer(
                bootstrap_servers=self._bootstrap_servers, acks="all", enable_idempotence=True, linger_ms=0
            )
            with _close_quickly(producer):
                for part in self._bursts():
                    self._tally.record_sent(part)
                    for key, value in zip(part.keys(), part.values(), strict=True):
                        producer.send(self._topics.events, key=key, value=value).add_errback(self._failed)
        except Exception as error:  # the main thread reports it
            self._failed(error)

    def _bursts(self) -> Iterator[Part]:
        """Yield slices of the parts at the requested rate."""
        allowance, last, sent = 0.0, time.monotonic(), 0
        for whole in self._parts:
            start = 0
            while start < len(whole):
                if self._stop_event.wait(_TICK) or self.error or sent == self._limit:
                    return
                now = time.monotonic()
                allowance = min(allowance + (now - last) * self._rate, max(self._rate / 4, 1))  # no burst after a pause
                last = now
                room = min(int(allowance), self._in_flight - self._tally.in_flight)
                if self._limit is not None:
                    room = min(room, self._limit - sent)
                if room > 0:
                    part = whole[start : start + room]
                    yield part
                    start, sent, allowance = start + len(part), sent + len(part), allowance - len(part)

    def _failed(self, error: Exception) -> None:
        self.error = self.error or error


class Reader(Thread):
    """Reads predictions, alerts and dead letters with isolation level read_committed, and counts them in the tally."""

    def __init__(
        self, bootstrap_servers: str, topics: Topics, scenario: Scenario, tally: Tally, *, stop: Event
    ) -> None:
        super().__init__(name="reader", daemon=True)
        self._number, self._forecast = scenario.number, scenario.forecast
        self.error: Exception | None = None
        self.last_reason = ""  # reason of the newest dead letter
        self._bootstrap_servers, self._topics, self._tally, self._stop_event = bootstrap_servers, topics, tally, stop

    def run(self) -> None:
        """Read until `stop`, and then until nothing more arrives."""
        try:
            consumer = KafkaConsumer(
                bootstrap_servers=self._bootstrap_servers,
                isolation_level="read_committed",
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                fetch_max_wait_ms=100,
            )
            with _close_quickly(consumer):
                topics = (self._topics.predictions, self._topics.alerts, self._topics.dead_letters)
                consumer.assign([TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)])
                quiet_polls = 0
                # After the stop it reads on until nothing more arrives: a late duplicate must not be missed.
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
                tally.record_dead_letter(orjson.loads(record.value)[self._number])
                headers = dict(record.headers)
                self.last_reason = headers.get("__streams.errors.message", b"").decode()
            return
        for record in records:
            prediction = orjson.loads(record.value)
            number = prediction["event"][self._number]
            if topic == self._topics.alerts:
                tally.record_alert(number)
            else:
                tally.record_prediction(
                    number,
                    prediction["key"],
                    prediction["score"],
                    prediction["steps"],
                    alert=prediction["alert"],
                    forecast=prediction["prediction"][0] if self._forecast else None,
                )


@contextmanager
def _close_quickly(client: Any) -> Iterator[Any]:
    """Close a Kafka client at the end, without a long wait for a broker that may be gone."""
    try:
        yield client
    finally:
        if isinstance(client, KafkaProducer):
            try:
                client.close(timeout=5)
            except KafkaError:
                client._sender.force_close()  # close() alone would try again, and complain, in the destructor
                raise
        else:
            client.close()
