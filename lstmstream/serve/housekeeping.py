"""What the daemon looks after beside the stream: gauges, partitions that give nothing, topics that change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from lstmstream.config import Config
from lstmstream.errors import TryAgain
from lstmstream.serve.batch_limit import BatchLimit
from lstmstream.serve.checkpoint import Checkpointer
from lstmstream.serve.erasures import ErasureRequests
from lstmstream.serve.fetch_guard import FetchGuard
from lstmstream.serve.group_check import GroupCheck
from lstmstream.serve.observers import Gauges, Observer, PartitionGauges
from lstmstream.serve.open_transactions import OpenTransactions
from lstmstream.serve.partition import Partition, PartitionPhase, Partitions
from lstmstream.serve.seeks import Seeks
from lstmstream.serve.topics import GONE_S, Topics, TopicWatch
from lstmstream.transport.ports import PollResult, Transport

INTERVAL_S = 1.0
TOPICS_INTERVAL_S = 5.0
DOUBT_INTERVAL_S = 1.0  # the same while something seems to be gone

log = logging.getLogger(__name__)


class Housekeeping:
    """`tick` once in each round of the loop."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        topics: Topics,
        partitions: Partitions,
        checkpointer: Checkpointer,
        observer: Observer,
        clock: Callable[[], float],
        *,
        seeks: Seeks,
        batch_limit: BatchLimit,
        on_topics: Callable[[Mapping[str, Mapping[str, str]]], None] = lambda _settings: None,
    ) -> None:
        """`batch_limit`: what a poll is asked for. `on_topics` gets the settings of all topics, at each look."""
        self._batch_limit = batch_limit
        self._on_topics = on_topics
        self._config = config
        self._checkpointer = checkpointer
        self._watch = TopicWatch(config, transport, topics, clock)
        self._transport = transport
        self._topics = topics
        self._partitions = partitions
        self._observer = observer
        self._clock = clock
        self._fetch_guard = FetchGuard(transport, seeks, observer, clock)
        self._open_transactions = OpenTransactions(
            transport, clock, input_topic=config.input.topic, state_topic=config.state.topic
        )
        client_id = config.kafka.properties.get("client.id")
        self._group_check = GroupCheck(
            transport, config.name, None if client_id is None else str(client_id), observer, clock
        )
        self._erasure_requests = ErasureRequests(
            transport, clock, input_topic=config.input.topic, state_topic=config.state.topic
        )
        self._next_s = 0.0
        self._next_topics_s = 0.0
        self._doubt = ""  # what seemed to be wrong with the topics when they were last looked at

    def tick(self, polled: PollResult) -> None:
        """Gauges and a look at fetching once a second; every few seconds, the topics. Raises TryAgain, CannotServe."""
        running = self._partitions.running()
        saturated = len(polled.records) >= self._batch_limit.now
        self._fetch_guard.on_poll(polled.records.first_offsets().keys(), running, saturated=saturated)
        self._group_check.on_poll(polled)
        now_s = self._clock()
        if now_s >= self._next_s:
            ends = self._measure(now_s)
            self._fetch_guard.check(running, polled.positions, ends)
        if now_s >= self._next_topics_s:
            self._next_topics_s = now_s + TOPICS_INTERVAL_S
            try:
                self.check_topics()
                self._doubt = ""
            except TryAgain as error:
                if not self._watch.doubtful:
                    raise
                # Not sure yet: the broker that was asked may just not know it. If it is gone, writing fails too.
                self._next_topics_s = now_s + DOUBT_INTERVAL_S
                if str(error) != self._doubt:
                    self._doubt = str(error)
                    log.warning("%s; checking again every second, for up to %g s", error, GONE_S)
            else:
                restoring = {p.number for p in self._partitions if p.restore is not None}
                self._open_transactions.check(self._partitions.running_numbers(), restoring)
                self._group_check.check()
        self._erasure_requests.check({partition.number: partition.erasures for partition in running})

    def close(self) -> None:
        """Free what it reads with."""
        self._erasure_requests.close()

    def measure(self) -> None:
        """The gauges, where `tick` is not reached: while commits fail. Raises TryAgain."""
        now_s = self._clock()
        if now_s >= self._next_s:
            self._measure(now_s)

    def lose_lag(self) -> None:
        """The broker cannot be asked: how far the input goes is not known, and the last lag would be a guess."""
        self._observer.on_gauges(self._gauges({}))

    def _measure(self, now_s: float) -> Mapping[int, int]:
        """Set the gauges; the last stable offsets of the partitions that this member has."""
        self._next_s = now_s + INTERVAL_S
        numbers = [partition.number for partition in self._partitions]
        ends = self._transport.stable_end_offsets(numbers) if numbers else {}
        self._observer.on_gauges(self._gauges(ends))
        return ends

    def on_rebalance(self) -> None:
        """The assignment has changed."""
        self.hurry()
        self._group_check.on_rebalance()

    def hurry(self) -> None:
        """Something changed that the gauges should show now, and not in a second."""
        self._next_s = 0.0

    def check_topics(self) -> None:
        """Raises CannotServe where a topic is not as it was at the start, TryAgain also where that is not sure yet."""
        found = self._watch.look()
        self._on_topics({name: topic.settings for name, topic in found.items()})
        retention = self._watch.retention
        behind = [p.number for p in self._partitions.running() if p.floor_lag] if retention.by_size else []
        topic = self._config.input.topic
        self._checkpointer.note_input(retention, {n: self._transport.offset_range(topic, n) for n in behind})

    def check_assignment(self, partitions: Collection[int]) -> None:
        """Partitions that the input did not have at the start: it has grown. Raises CannotServe, TryAgain."""
        if any(number >= self._topics.partitions for number in partitions):
            self.check_topics()

    def _gauges(self, ends: Mapping[int, int]) -> Gauges:
        owned = list(self._partitions)
        return Gauges(
            [_partition_gauges(p, ends.get(p.number)) for p in owned],
            state_keys=sum(p.slab.key_count for p in owned),
            state_bytes=sum(p.slab.nbytes for p in owned),
            restore_records_remaining=sum(restore.remaining for restore in self._partitions.restoring()),
        )


def _partition_gauges(partition: Partition, end: int | None) -> PartitionGauges:
    """Control records behind the last event are no lag, and what was read but not committed is.

    A partition that is being restored lags by what waits behind the group's offset, once that is known.
    """
    if partition.phase is PartitionPhase.RUNNING:
        lag = None if end is None else max(0, end - partition.next_offset)
        return PartitionGauges(partition.number, partition.floor_lag, lag)
    committed = None if partition.restore is None else partition.restore.committed_offset
    lag = None if end is None or committed is None else max(0, end - committed)
    return PartitionGauges(partition.number, None, lag)
