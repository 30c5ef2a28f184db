"""`lstmstream dev events`: simulated card payments into a topic, so that there is something to score."""

from __future__ import annotations

import time
from collections.abc import Callable

from kafka import KafkaProducer
from kafka.errors import KafkaError

from lstmstream.demo.simulate import World
from lstmstream.errors import CannotServe, Fatal

_TICK_S = 0.1
_FLUSH_S = 10.0


def send_events(
    bootstrap_servers: str,
    topic: str,
    *,
    rate: float,
    events: int | None,
    seed: int,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Send payments, keyed by customer, `rate` per second, until there were `events` of them; the number sent.

    Raises CannotServe where the broker cannot be reached, Fatal where an event cannot be written.
    """
    errors: list[BaseException] = []
    try:
        producer = KafkaProducer(
            bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True, max_block_ms=10_000
        )
    except KafkaError as error:
        raise CannotServe(
            f"--bootstrap-servers {bootstrap_servers}: cannot be reached ({error}); start a broker there,"
            " for example with `lstmstream dev up`"
        ) from error
    sent, began_s = 0, time.monotonic()
    try:
        for day in World(seed=seed).stream():
            start = 0
            while start < len(day):
                due = int((time.monotonic() - began_s) * rate) + 1 - sent
                part = day[start : start + max(0, due if events is None else min(due, events - sent))]
                for key, value in zip(part.keys(), part.values(), strict=True):
                    producer.send(topic, key=key, value=value).add_errback(errors.append)
                sent, start = sent + len(part), start + len(part)
                if errors:
                    raise Fatal(f"topic {topic}: an event could not be written: {errors[0]}; does the topic exist?")
                if sent == events or stopping():
                    return sent  # the days never end
                time.sleep(_TICK_S)
    except KafkaError as error:
        raise Fatal(f"topic {topic}: an event could not be written: {error}; does the topic exist?") from error
    finally:
        producer.close(timeout=_FLUSH_S)
    return sent
