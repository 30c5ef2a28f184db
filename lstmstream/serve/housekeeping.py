"""What the daemon looks after beside the stream: gauges, partitions that give nothing, topics that change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from lstmstream.config import Config
from lstmstream.serve.batch_limit import BatchLimit
from lstmstream.serve.fetch_guard import FetchGuard
from lstmstream.serve.observers import Gauges, Observer, PartitionGauges
from lstmstream.serve.partition import Partition, PartitionPhase, Partitions
from lstmstream.serve.topics import Topics, check_topics_unchanged
from lstmstream.transport.ports import PollResult, Transport

INTERVAL_S = 1.0
TOPICS_INTERVAL_S = 5.0


class Housekeeping:
    """`tick` once in each round of the loop."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        topics: Topics,
        partitions: Partitions,
        observer: Observer,
        clock: Callable[[], float],
        *,
        batch_limit: BatchLimit,
        on_topics: Callable[[Mapping[str, Mapping[str, str]]], None] = lambda _settings: None,
    ) -> None:
        """`batch_limit`: what a poll is asked for. `on_topics` gets the settings of all topics, at each look."""
        self._batch_limit = batch_limit
        self._on_topics = on_topics
        self._config = config
        self._transport = transport
        self._topics = topics
        self._partitions = partitions
        self._observer = observer
        self._clock = clock
        self._fetch_guard = FetchGuard(transport, observer, clock)
        self._next_s = 0.0
        self._next_topics_s = 0.0

    def tick(self, polled: PollResult) -> None:
        """Gauges and a look at fetching once a second; every few seconds, the topics. Raises TryAgain, CannotServe."""
        running = self._partitions.running()
        saturated = len(polled.records) >= self._batch_limit.now
        self._fetch_guard.on_poll(polled.records.first_offsets().keys(), running, saturated=saturated)
        now_s = self._clock()
        if now_s >= self._next_s:
            self._next_s = now_s + INTERVAL_S
            ends = self._transport.stable_end_offsets([p.number for p in running]) if running else {}
            self._observer.on_gauges(self._gauges(polled.positions, ends))
            self._fetch_guard.check(running, polled.positions, ends)
        if now_s >= self._next_topics_s:
            self._next_topics_s = now_s + TOPICS_INTERVAL_S
            self.check_topics()

    def hurry(self) -> None:
        """Something changed that the gauges should show now, and not in a second."""
        self._next_s = 0.0

    def check_topics(self) -> None:
        """Raises CannotServe where a topic is not as it was at the start, TryAgain."""
        found = check_topics_unchanged(self._config, self._transport, self._topics)
        self._on_topics({name: topic.settings for name, topic in found.items()})

    def check_assignment(self, partitions: Collection[int]) -> None:
        """Partitions that the input did not have at the start: it has grown. Raises CannotServe, TryAgain."""
        if any(number >= self._topics.partitions for number in partitions):
            self.check_topics()

    def _gauges(self, positions: Mapping[int, int], ends: Mapping[int, int]) -> Gauges:
        owned = list(self._partitions)
        return Gauges(
            [_partition_gauges(p, positions, ends) for p in owned if p.phase is PartitionPhase.RUNNING],
            state_keys=sum(len(p.slab) for p in owned),
            state_bytes=sum(p.slab.nbytes for p in owned),
            restore_records_remaining=sum(restore.remaining for restore in self._partitions.restoring()),
        )


def _partition_gauges(partition: Partition, positions: Mapping[int, int], ends: Mapping[int, int]) -> PartitionGauges:
    """Control records behind the last event are no lag: the client's position passes over them."""
    number = partition.number
    position = max(partition.position, positions.get(number, 0))
    lag = max(0, ends[number] - position) if number in ends else None
    return PartitionGauges(number, partition.floor_lag, lag)
