"""Transactions of other programs that stay open: what lies behind them cannot be read, and no lag shows it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from lstmstream.transport.ports import Admin

log = logging.getLogger(__name__)

OPEN_S = 30.0  # before it is said; a producer's default transaction.timeout.ms is 60 s, ours is 10 s


@dataclass(slots=True)
class _Open:
    """One transaction, as it was first seen."""

    offset: int  # the last stable offset, where it begins
    since_s: float
    said: bool = False


class OpenTransactions:
    """`check` now and then. Says each transaction once, and when it has ended."""

    def __init__(self, admin: Admin, clock: Callable[[], float], *, input_topic: str, state_topic: str) -> None:
        self._admin = admin
        self._clock = clock
        self._input_topic = input_topic
        self._state_topic = state_topic
        self._open: dict[tuple[str, int], _Open] = {}

    def check(self, running: Collection[int], restoring: Collection[int]) -> None:
        """Running partitions read the input, those being restored the state topic. Raises TryAgain."""
        now_s = self._clock()
        before, self._open = self._open, {}
        for topic, partitions in ((self._input_topic, running), (self._state_topic, restoring)):
            found = self._admin.open_transactions(topic, partitions) if partitions else {}
            for partition, (offset, end) in found.items():
                known = before.get((topic, partition))
                if known is None or known.offset != offset:
                    known = _Open(offset, now_s)
                self._open[topic, partition] = known
                if not known.said and now_s - known.since_s >= OPEN_S:
                    known.said = True
                    log.warning(
                        "a transaction of another program has been open for %.0f s: nothing from its first record on"
                        " can be read until it ends. Its producer ends it, or the broker after that producer's"
                        " transaction.timeout.ms; kafka-transactions.sh describe-producers shows who it is",
                        now_s - known.since_s,
                        extra={"topic": topic, "partition": partition, "offset": offset, "waiting": end - offset},
                    )
        for (topic, partition), known in before.items():
            if known.said and self._open.get((topic, partition)) is not known:
                extra = {"topic": topic, "partition": partition, "offset": known.offset}
                log.info("the transaction is over that was in the way", extra=extra)
