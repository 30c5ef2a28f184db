"""A producer for the commands that write events of their own: simulated ones, and those of a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice

from kafka import KafkaProducer
from kafka.errors import KafkaError

from lstmstream.errors import CannotServe, Fatal

_TICK_S = 0.1
_FLUSH_S = 60.0
_CLOSE_S = 10.0
_AT_ONCE = 1000  # events between two looks at errors and at the request to stop


def send_all(
    bootstrap_servers: str,
    topic: str,
    events: Iterable[tuple[bytes | None, bytes]],
    *,
    rate: float | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Send events, pairs of key and value, in their order, to the partitions that murmur2 gives for their keys.

    `rate` is in events per second. Returns how many were sent and acknowledged, all of them unless `stopping`.

    Raises CannotServe where the broker cannot be reached, Fatal where an event cannot be written.
    """
    failed = f"topic {topic}: an event could not be written"
    advice = f"does the topic exist? `lstmstream dev topic {topic}` creates it on the development broker"
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
    waiting, sent, began_s = iter(events), 0, time.monotonic()
    try:
        try:
            while not stopping():
                due = _AT_ONCE if rate is None else int((time.monotonic() - began_s) * rate) + 1 - sent
                part = list(islice(waiting, max(0, due)))
                if not part and due > 0:
                    break
                for key, value in part:
                    producer.send(topic, key=key, value=value).add_errback(errors.append)
                sent += len(part)
                if errors:
                    break
                if rate is not None:
                    time.sleep(_TICK_S)
            producer.flush(timeout=_FLUSH_S)
        except KafkaError as error:
            raise Fatal(f"{failed}: {error}; {advice}") from error
    finally:
        producer.close(timeout=_CLOSE_S)
    if errors:
        raise Fatal(f"{failed}: {errors[0]}; {advice}")
    return sent
