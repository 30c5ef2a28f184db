"""`lstmstream dev events`: simulated card payments into a topic, so that there is something to score."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from lstmstream.demo.simulate import World
from lstmstream.dev.producer import send_all


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
    payments = (pair for day in World(seed=seed).stream() for pair in zip(day.keys(), day.values(), strict=True))
    return send_all(bootstrap_servers, topic, islice(payments, events), rate=rate, stopping=stopping)
