"""Who is called with what the daemon does: metrics and health. The loop knows only `Observer`.

An observer may not fail and may not take long: it is called on the daemon's thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lstmstream.model import Card
from lstmstream.records import HELD_BACK, Predictions
from lstmstream.serve.health import Health
from lstmstream.serve.lag_age import LagAge
from lstmstream.serve.metrics import Metrics
from lstmstream.serve.traces import slowest

if TYPE_CHECKING:
    from lstmstream.serve.checkpoint import CheckpointPlan
    from lstmstream.serve.engine import Result
    from lstmstream.serve.restore import Restored
    from lstmstream.serve.snapshots import SnapshotTaken
    from lstmstream.serve.standby import StandbyGauges


class PartitionGauges(NamedTuple):
    """What is measured of a partition once a second."""

    number: int
    floor_lag: int | None  # None while it is being restored
    consumer_lag: int | None  # None where it is not known


class Gauges(NamedTuple):
    """What is measured once a second."""

    partitions: Sequence[PartitionGauges]
    state_keys: int
    state_bytes: int
    restore_records_remaining: int


class Observer:
    """Told what happened; does nothing. Override what is of interest."""

    def on_loop(self) -> None:
        """The loop goes round: the daemon is alive."""

    def on_phase(self, phase: str) -> None:
        """A phase of the daemon's life begins."""

    def on_rebalance(self) -> None:
        """The assignment changed."""

    def on_close(self, partition: int) -> None:
        """A partition was revoked, or its restore starts over."""

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """A batch is committed; the duration is None where that was only learnt afterwards."""

    def on_abort(self) -> None:
        """A transaction was aborted; its batch will be done again."""

    def on_failure(self, error: str, waiting: int) -> None:
        """The broker failed, with so many events in the batch."""

    def on_restored(self, restored: Restored) -> None:
        """A partition is running."""

    def on_snapshot(self, taken: SnapshotTaken) -> None:
        """A snapshot of a partition's states is on the disk."""

    def on_snapshot_kept(self, partition: int, taken_ms: int, size: int) -> None:
        """One that was there before will do for now; when it was taken, and its bytes."""

    def on_snapshot_failed(self) -> None:
        """One could not be written."""

    def on_standby(self, gauges: StandbyGauges) -> None:
        """What is followed of other members' partitions has changed."""

    def on_stalled_fetch(self, action: str) -> None:
        """A partition gave no records though some wait; `action` was taken."""

    def on_records_without_key(self, count: int) -> None:
        """So many records of a committed batch have no key."""

    def on_keys_in_several_partitions(self, count: int) -> None:
        """So many more keys were found to have a state in two partitions."""

    def on_keys_removed(self, count: int) -> None:
        """So many keys that have expired were removed from memory."""

    def on_gauges(self, gauges: Gauges) -> None:
        """Once a second."""

    def on_blocked(self, what: str, reason: str) -> None:
        """The daemon is not ready because of `what`, until `on_unblocked`. The reason is public."""

    def on_unblocked(self, what: str) -> None:
        """`what` is no longer in the way."""


class Observers(Observer):
    """Several as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_loop(self) -> None:  # noqa: D102 - see Observer, as all below
        for observer in self._observers:
            observer.on_loop()

    def on_phase(self, phase: str) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_phase(phase)

    def on_rebalance(self) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_rebalance()

    def on_close(self, partition: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_close(partition)

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_commit(result, plan, duration_s)

    def on_abort(self) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_abort()

    def on_failure(self, error: str, waiting: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_failure(error, waiting)

    def on_restored(self, restored: Restored) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_restored(restored)

    def on_snapshot(self, taken: SnapshotTaken) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_snapshot(taken)

    def on_snapshot_kept(self, partition: int, taken_ms: int, size: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_snapshot_kept(partition, taken_ms, size)

    def on_snapshot_failed(self) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_snapshot_failed()

    def on_standby(self, gauges: StandbyGauges) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_standby(gauges)

    def on_stalled_fetch(self, action: str) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_stalled_fetch(action)

    def on_records_without_key(self, count: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_records_without_key(count)

    def on_keys_in_several_partitions(self, count: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_keys_in_several_partitions(count)

    def on_keys_removed(self, count: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_keys_removed(count)

    def on_gauges(self, gauges: Gauges) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_gauges(gauges)

    def on_blocked(self, what: str, reason: str) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_blocked(what, reason)

    def on_unblocked(self, what: str) -> None:  # noqa: D102
        for observer in self._observers:
            observer.on_unblocked(what)


class StageTimer:
    """Seconds spent in each stage since the last `take`. Always on: the seven stages of a batch take about 5 µs."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._spent_s: dict[str, float] = {}

    def __call__(self, stage: str) -> _Timing:
        """Times what is within."""
        return _Timing(self, stage)

    def add(self, stage: str, seconds: float) -> None:
        """Count what was spent in a stage."""
        self._spent_s[stage] = self._spent_s.get(stage, 0.0) + seconds

    def spent_s(self) -> Mapping[str, float]:
        """What was spent so far since the last `take`."""
        return self._spent_s

    def take(self) -> Mapping[str, float]:
        """What was spent; counting begins again."""
        spent_s, self._spent_s = self._spent_s, {}
        return spent_s


class _Timing:
    """One stay in a stage. As a generator it would take twice as long, which shows with batches of a few events."""

    __slots__ = ("_began_s", "_stage", "_timer")

    def __init__(self, timer: StageTimer, stage: str) -> None:
        self._timer = timer
        self._stage = stage
        self._began_s = 0.0

    def __enter__(self) -> None:
        self._began_s = self._timer.clock()

    def __exit__(self, *_: object) -> None:
        self._timer.add(self._stage, self._timer.clock() - self._began_s)


class MetricsObserver(Observer):
    """Counts in Prometheus metrics. Nothing is counted before it is committed."""

    def __init__(
        self,
        metrics: Metrics,
        card: Card,
        *,
        input_topic: str,
        late_policy: str,
        timer: StageTimer,
        wall_s: Callable[[], float],
    ) -> None:
        """`wall_s`: seconds since 1970 UTC."""
        self._metrics = metrics
        self._card = card
        metrics.features(card)
        self._input_topic = input_topic
        self._late_policy = late_policy
        self._timer = timer
        self._wall_s = wall_s
        self._lag_age = LagAge()

    def on_rebalance(self) -> None:
        """Count it."""
        self._metrics.rebalances.inc()

    def on_close(self, partition: int) -> None:
        """Its lag is not known any longer; where it was revoked, its new owner tells it."""
        self._metrics.remove_partition(self._input_topic, partition)
        self._lag_age.remove(partition)

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """Count the batch and its transaction."""
        now_s = self._wall_s()
        self._metrics.observe_batch(
            events=len(result.records),
            scores=result.predictions.score,
            alerts=int(np.count_nonzero(result.predictions.alert)),
            held_back=_held_back(result.predictions),
            dead_letters=Counter(letter.stage for letter in result.dead_letters),
            latencies_s=result.records.ages_s(now_s),
            now_s=now_s,
            late=result.late_events,
            late_policy=self._late_policy,
            expired=result.expired,
            resets=result.resets,
            checkpoints=sum(map(len, plan.written.values())),
            silent=result.silent_events,
            deleted=sum(map(len, plan.deleted.values())) + sum(len(one.keys) for one in plan.old_models.values()),
            evicted=sum(map(len, result.evicted.values())),
        )
        self._lag_age.on_commit(result.records)
        if traced := slowest(result.records, now_s):
            self._metrics.event_latency_seconds.note_exemplar(traced.seconds, traced.trace, now_s)
        counts = result.decoded.field_counts
        self._metrics.observe_fields(self._card, counts.missing, counts.unknown)
        self._metrics.transaction("committed", duration_s)
        self._metrics.observe_stages(self._timer.take())

    def on_abort(self) -> None:
        """Count the transaction."""
        self._metrics.transaction("aborted")
        self._timer.take()

    def on_restored(self, restored: Restored) -> None:
        """How long it took, and where the states came from."""
        self._metrics.restore_seconds.set(restored.duration_s)
        source = "topic" if restored.from_snapshot is None else "snapshot"
        self._metrics.restores.labels(source if restored.from_standby is None else "standby").inc()

    def on_snapshot(self, taken: SnapshotTaken) -> None:
        """Count it; its size and its time."""
        self._metrics.snapshots.labels("written").inc()
        self._metrics.snapshot_seconds.set(taken.duration_s)
        self.on_snapshot_kept(taken.partition, taken.taken_ms, taken.bytes)

    def on_snapshot_kept(self, partition: int, taken_ms: int, size: int) -> None:
        """Its age and its size."""
        self._metrics.snapshot(self._input_topic, partition, taken_ms / 1000, size)

    def on_snapshot_failed(self) -> None:
        """Count it."""
        self._metrics.snapshots.labels("failed").inc()

    def on_standby(self, gauges: StandbyGauges) -> None:
        """Set what it has, and what is new since."""
        self._metrics.standby_keys.set(gauges.keys)
        self._metrics.standby_bytes.set(gauges.bytes)
        self._metrics.standby_records_behind.set(gauges.records_behind)

    def on_stalled_fetch(self, action: str) -> None:
        """Count it."""
        self._metrics.stalled_fetches.labels(action).inc()

    def on_records_without_key(self, count: int) -> None:
        """Count them."""
        self._metrics.records_without_key.inc(count)

    def on_keys_in_several_partitions(self, count: int) -> None:
        """Count them."""
        self._metrics.keys_in_several_partitions.inc(count)

    def on_keys_removed(self, count: int) -> None:
        """Count them."""
        self._metrics.state_keys_removed.inc(count)

    def on_gauges(self, gauges: Gauges) -> None:
        """Set what is measured."""
        now_s = self._wall_s()
        for partition in gauges.partitions:
            if partition.floor_lag is not None:
                self._metrics.floor_lag(self._input_topic, partition.number, partition.floor_lag)
            if partition.consumer_lag is None:
                self._metrics.lose_lag(self._input_topic, partition.number)
            else:
                lag = partition.consumer_lag
                age_s = self._lag_age.seconds(partition.number, lag, now_s)
                self._metrics.lag(self._input_topic, partition.number, lag, age_s)
        self._metrics.state_keys.set(gauges.state_keys)
        self._metrics.state_bytes.set(gauges.state_bytes)
        self._metrics.restore_records_remaining.set(gauges.restore_records_remaining)


def _held_back(predictions: Predictions) -> Mapping[str, int]:
    """Alerts that were held back, by reason."""
    if predictions.held_back is None:
        return {}
    counts = np.bincount(predictions.held_back, minlength=len(HELD_BACK)).tolist()
    return {reason: count for reason, count in zip(HELD_BACK, counts, strict=True) if reason and count}


class HealthObserver(Observer):
    """Keeps `/livez` and `/readyz` true."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def on_loop(self) -> None:
        """Alive."""
        self._health.heartbeat()

    def on_phase(self, phase: str) -> None:
        """Named by both endpoints."""
        self._health.set_phase(phase)

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """Progress, unless only states were written."""
        if len(result.records):
            self._health.committed(len(result.records))

    def on_failure(self, error: str, waiting: int) -> None:
        """No progress."""
        self._health.failed(error, waiting)

    def on_gauges(self, gauges: Gauges) -> None:
        """How much input waits; what was seen last, where nothing is known."""
        lags = [partition.consumer_lag for partition in gauges.partitions if partition.consumer_lag is not None]
        if lags or not gauges.partitions:
            self._health.waiting(sum(lags))

    def on_blocked(self, what: str, reason: str) -> None:
        """Not ready."""
        self._health.block(what, reason)

    def on_unblocked(self, what: str) -> None:
        """Ready, if nothing else is in the way."""
        self._health.unblock(what)
