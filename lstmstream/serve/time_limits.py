"""How long the daemon's loop may take for a thing, and how long it waits between two tries."""

from __future__ import annotations

from collections.abc import Iterator

from lstmstream.config import Config
from lstmstream.serve.committer import COMMIT_TIMEOUT_S

BACKOFF_S = (0.1, 0.2, 0.5, 1.0)
LONGEST_BATCH_S = 5.0


def commit_timeout_s(config: Config) -> float:
    """More than the broker gives a transaction; but the loop must be seen to move meanwhile."""
    open_s = int(config.kafka.properties.get("transaction.timeout.ms", 10_000)) / 1000
    return max(COMMIT_TIMEOUT_S, min(open_s + 2.0, 0.9 * config.http.stall_after))


def longest_batch_s(config: Config) -> float:
    """What a batch may take, so that neither the group nor /livez gives the daemon up within a few of them."""
    poll_s = int(config.kafka.properties.get("max.poll.interval.ms", 60_000)) / 1000
    return min(LONGEST_BATCH_S, poll_s / 4, config.http.stall_after / 4)


def backoffs() -> Iterator[float]:
    """Seconds to wait after the first, second, ... failure in a row."""
    yield from BACKOFF_S
    while True:
        yield BACKOFF_S[-1]
