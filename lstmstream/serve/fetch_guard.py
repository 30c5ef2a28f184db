"""A running partition whose records wait at the broker and never come.

A client was seen to keep an assigned partition and never to fetch it again: transport/clients/kafka_python_consumer.py
says why, and what is done about it. This guard needs no cause: where the broker has records that the client does not
fetch, the client is told again where to read, and if that does not help the consumer is replaced. The new one asks for
less at once, since the network may be too slow for what the other one asked for, and is waited for twice as long, since
the broker may hold the answers back for a quota.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from lstmstream.serve.observers import Observer
from lstmstream.serve.partition import Partition
from lstmstream.serve.seeks import Seeks
from lstmstream.transport.ports import GroupMember
from lstmstream.wording import counted

log = logging.getLogger(__name__)

STALL_S = 5.0  # without a record, though some wait and the client had nothing else to hand out
MOST_PATIENCE = 16  # times those seconds, after consumers that were replaced in vain: a quota makes a client wait too
PATIENCE_KEPT_S = 600.0  # after the last stall
LONGEST_POLL_S = 1.0  # what a poll counts at most: a loop that was held up elsewhere did not ask for records
STARVED_STALL_S = 60.0  # the same while other partitions keep the client busy: it hands out one after the other


class FetchGuard:
    """`on_poll` after each poll, `check` now and then."""

    def __init__(self, member: GroupMember, seeks: Seeks, observer: Observer, clock: Callable[[], float]) -> None:
        self._member = member
        self._seeks = seeks
        self._observer = observer
        self._clock = clock
        self._last_poll_s = clock()
        self._quiet: dict[int, _Quiet] = {}  # of running partitions
        self._sought: set[int] = set()  # stalled, and told again where to read
        self._patience = 1
        self._last_stall_s = -math.inf

    def on_poll(self, with_records: Collection[int], running: Sequence[Partition], *, saturated: bool) -> None:
        """Note which partitions gave records; forget those that are no longer running.

        `saturated`: the poll gave as many records as were asked for, so that others may have had to wait.
        """
        now_s = self._clock()
        elapsed_s, self._last_poll_s = min(now_s - self._last_poll_s, LONGEST_POLL_S), now_s
        before, self._quiet = self._quiet, {}
        for partition in running:
            quiet = before.get(partition.number)
            if quiet is None or partition.number in with_records:
                quiet = _Quiet()
            else:
                quiet.total_s += elapsed_s
                quiet.idle_s += 0.0 if saturated else elapsed_s
            self._quiet[partition.number] = quiet
        moving = {number for number in self._sought if number not in self._quiet or number in with_records}
        if moving:
            self._sought -= moving
            self._update_health()

    def check(self, running: Sequence[Partition], positions: Mapping[int, int], ends: Mapping[int, int]) -> None:
        """Look at partitions that have been quiet for a while. Raises TryAgain.

        `positions` are the client's; `ends` the last stable offsets of running partitions, as the broker has them now.
        """
        now_s = self._clock()
        if now_s - self._last_stall_s > PATIENCE_KEPT_S:
            self._patience = 1
        patience, known = self._patience, self._quiet
        quiet = {p.number: p for p in running if p.number in known and known[p.number].too_long(patience)}
        stalled = [
            partition
            for number, partition in quiet.items()
            if max(positions.get(number, 0), partition.next_offset) < ends.get(number, 0)
        ]
        self._sought -= quiet.keys() - {partition.number for partition in stalled}
        for partition in stalled:
            self._quiet[partition.number] = _Quiet()
            self._last_stall_s = now_s
        again = [partition.number for partition in stalled if partition.number in self._sought]
        if again:
            log.error(
                "partitions return no records although some are waiting (a slow network, or a quota of the broker?);"
                " replacing the consumer",
                extra={"partitions": again},
            )
            self._observer.on_stalled_fetch("rejoin")
            self._patience = min(MOST_PATIENCE, 2 * patience)
            self._sought.clear()
            self._member.join(smaller_fetches=True)
        else:
            for partition in stalled:
                log.warning(
                    "a partition returns no records although some are waiting; seeking again",
                    extra={
                        "partition": partition.number,
                        "offset": partition.next_offset,
                        "end": ends[partition.number],
                    },
                )
                self._observer.on_stalled_fetch("seek")
                self._seeks.resume(partition.number, partition.next_offset)
                self._sought.add(partition.number)
        self._update_health()

    def _update_health(self) -> None:
        if self._sought:
            self._observer.on_blocked(
                "fetch",
                f"{counted(len(self._sought), 'partition returns', 'partitions return')} no records"
                " although some are waiting",
            )
        else:
            self._observer.on_unblocked("fetch")


@dataclass(slots=True)
class _Quiet:
    """How long a partition has given no record."""

    idle_s: float = 0.0  # while the client had nothing else to hand out
    total_s: float = 0.0

    def too_long(self, patience: int) -> bool:
        return self.idle_s >= patience * STALL_S or self.total_s >= patience * STARVED_STALL_S
