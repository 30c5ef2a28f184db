"""Which states go into the next transaction, and from which input offset a restore would have to replay.

A state is due `interval_s` after its first unwritten change (rows that are nearly due go with it), oldest first, at
most one write for five events. A shutdown (`flush`) or half of the input's retention used up lifts that cap. The bytes
are in state_records.py; bringing states back is in restore.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from lstmstream.records import Ints, RecordBatch, concatenate
from lstmstream.serve.alert_memory import AlertRules, PartitionMemory
from lstmstream.serve.erasures import ErasurePlan
from lstmstream.serve.expiry import Expiry
from lstmstream.serve.old_models import Deletion
from lstmstream.serve.partition import Partition, Partitions
from lstmstream.serve.scored import ChangedRows
from lstmstream.serve.state_records import (
    FLOOR,
    IDENTITY_BYTES,
    Floor,
    StateIdentity,
    floor_key,
    pack_floor,
    pack_key,
    pack_states,
    state_record_bytes,
)
from lstmstream.serve.stream_time import NEVER

log = logging.getLogger(__name__)

EVENTS_PER_WRITE = 5  # states never take more than one write for five events
WRITES_PER_TRANSACTION = 200  # or two fifths of the batch, if that is more: what a small batch waits for is latency
WRITES_PER_TRANSACTION_ON_SHUTDOWN = 10_000  # a shutdown has little time
STATE_BYTES_PER_TRANSACTION = 16 << 20  # large states must arrive within the limits of a transaction
DELETIONS_PER_TRANSACTION = 1_000  # or one for each event, if that is more: as many keys may be evicted
FLOOR_INTERVAL_S = 1.0
NEARLY_DUE = 0.9  # of the interval: such rows go into the same transaction, so that an idle owner makes fewer of them


class StateTopic(NamedTuple):
    """Where states are written, and what a floor record says of the topics around it."""

    name: str
    topic_id: str
    input_topic_id: str
    partitions: int


class Retention(NamedTuple):
    """How long the input is kept, as its topic's settings have it now."""

    ms: int | None  # None: whatever its age
    by_size: bool  # the oldest records go where the partition grows too large


NOTHING_EXPIRES = Expiry(None, None)
_FOR_EVER = Retention(None, by_size=False)


class CheckpointPlan(NamedTuple):
    """What one transaction writes besides the outputs."""

    records: list[RecordBatch]  # of the state topic
    written: dict[int, Ints]  # partition → rows that become clean
    floors: dict[int, int]
    offsets: dict[int, int]  # of every partition that the transaction writes anything of: they carry the fence
    write_budget: int  # what is left of it afterwards
    alerts: Mapping[int, PartitionMemory | None] = MappingProxyType(
        {}
    )  # what the floor records of `floors` have of them
    erasures: Mapping[int, ErasurePlan] = MappingProxyType({})
    stream_times: Mapping[int, int] = MappingProxyType({})  # at `floors`
    deleted: Mapping[int, Ints] = MappingProxyType({})  # partition → rows whose records are deleted
    old_models: Mapping[int, Deletion] = MappingProxyType({})


class Checkpointer:
    """`plan` for a transaction, then `on_commit` once it is committed."""

    def __init__(
        self,
        topic: StateTopic,
        identity: StateIdentity,
        partitions: Partitions,
        *,
        interval_s: float,
        clock: Callable[[], float],
        wall_s: Callable[[], float],
        retention: Retention = _FOR_EVER,
        alert_rules: AlertRules | None = None,
        expiry: Expiry = NOTHING_EXPIRES,
    ) -> None:
        """`clock` is monotonic seconds, `wall_s` seconds since 1970 UTC. `alert_rules`: of the alert policy, if any.

        `expiry`: which keys can go.
        """
        self._expiry = expiry
        self.identity = identity
        self.topic = topic
        self.alert_rules = alert_rules
        self._partitions = partitions
        self._interval_s = interval_s
        self._clock = clock
        self._wall_s = wall_s
        self._write_budget = 0  # events that no write was charged to yet
        self.retention = retention  # may change while the daemon runs
        self._kept_from: Mapping[int, tuple[int, int]] = {}

    def note_input(self, retention: Retention, kept: Mapping[int, tuple[int, int]]) -> None:
        """What the input keeps now: its settings, and (beginning, end) of partitions where its size is limited."""
        self.retention, self._kept_from = retention, kept

    def add_to_budget(self, events: int) -> None:
        """Events that changed states without a transaction of ours: those that a restore replayed."""
        self._write_budget += events

    def due(self) -> bool:
        """Whether an idle owner should write states now."""
        now_s = self._clock()
        latest_s = now_s - self._interval_s
        for partition in self._partitions.running():
            if partition.next_offset > partition.position and now_s - partition.floor_written_s >= FLOOR_INTERVAL_S:
                return True  # control records were passed over: retention may take them, so the offset should say it
            late = now_s - partition.deleted_s >= FLOOR_INTERVAL_S
            if partition.old_models.next is not None or (late and len(self._still_to_delete(partition))):
                return True
            oldest = partition.dirty.oldest()
            if oldest is None:  # all is written: the floor should say so, or retention could pass it
                if partition.floor_lag and now_s - partition.floor_written_s >= FLOOR_INTERVAL_S:
                    return True
                continue
            if self._write_budget >= EVENTS_PER_WRITE and oldest[0] <= latest_s:
                return True
            if self._retention_at_risk(partition):
                return True
        return False

    def dirty_count(self) -> int:
        """States that changed since they were written."""
        return sum(partition.dirty.count for partition in self._partitions.running())

    def behind(self) -> bool:
        """Whether a restart would have anything to replay, or to pass over."""
        return any(p.floor_lag or p.next_offset > p.position for p in self._partitions.running())

    def plan(
        self,
        *,
        events: int,
        changed: Mapping[int, ChangedRows],
        positions: Mapping[int, int],
        flush: bool = False,
        max_writes: int = WRITES_PER_TRANSACTION_ON_SHUTDOWN,
        evicted: Mapping[int, Ints] = MappingProxyType({}),
    ) -> CheckpointPlan:
        """States due for the transaction that takes the input to `positions` (partition → next offset).

        `changed` are those of the batch of `events` events; states are written as of that batch. `flush` is for a
        shutdown: all that is dirty, a transaction's worth at a time. `max_writes` limits the states, floors aside.
        `evicted`: rows of keys that the batch has evicted. They are written with it, so that no replay has to evict.
        """
        budget = self._write_budget + events
        now_s = self._clock()
        records: list[RecordBatch] = []
        written: dict[int, Ints] = {}
        floors: dict[int, int] = {}
        alerts: dict[int, PartitionMemory | None] = {}
        erasures: dict[int, ErasurePlan] = {}
        stream_times: dict[int, int] = {}
        deleted: dict[int, Ints] = {}
        old_models: dict[int, Deletion] = {}
        offsets = dict(positions)
        usual = max(WRITES_PER_TRANSACTION, 2 * events // EVENTS_PER_WRITE)
        room = min(max_writes, WRITES_PER_TRANSACTION_ON_SHUTDOWN if flush else usual, self._writes_of_size())
        # Partitions oldest first too: where the budget is short, the first of them would else take all of it.
        for partition in sorted(self._partitions.running(), key=_oldest_s):
            number = partition.number
            urgent = flush or self._retention_at_risk(partition)
            limit = room if urgent else min(room, budget // EVENTS_PER_WRITE)
            if urgent and number in changed:  # more than become dirty by this batch, or it would never be done
                limit += len(changed[number].rows)
            rows, next_dirty = partition.dirty.take(
                limit, before_s=np.inf if urgent else now_s - NEARLY_DUE * self._interval_s
            )
            room = max(0, room - len(rows))
            budget = max(0, budget - EVENTS_PER_WRITE * len(rows))
            if number in evicted:
                rows = np.union1d(rows, evicted[number])
            if len(rows):
                written[number] = rows
                records.append(self._state_records(partition, rows))
            position = positions.get(number, partition.next_offset)
            if len(rows := self._to_delete(partition, max(DELETIONS_PER_TRANSACTION, events))):
                deleted[number] = rows
                records.append(self._deletions(partition, rows))
            floor = max(partition.floor, _floor_after(next_dirty, changed.get(number), position))
            stream_time_ms = NEVER
            if self._expiry.max_lateness_ms is not None:  # a floor is no less right where it is older
                floor, stream_time_ms = partition.slab.stream_time.at(floor, position)
            # An older floor is no less right, so one per second is enough.
            news = floor > partition.floor or position > partition.floor_position
            # No replay tells how many alerts there were: the floor record has them as of this very transaction.
            memory = partition.alerts
            if memory != partition.alerts_written or (
                news and (flush or now_s - partition.floor_written_s >= FLOOR_INTERVAL_S)
            ):
                floors[number], alerts[number], stream_times[number] = floor, memory, stream_time_ms
                records.append(
                    self.floor_record(number, partition.origin, floor, position, partition.answers_from, stream_time_ms)
                )
            if not events and partition.erasures.due:  # with events in flight, they could be of a key that goes
                erasures[number] = plan = self._erasure_plan(partition, position)
                records.append(self._to_write(number, plan.keys, plan.values))
            if (deletion := partition.old_models.next) is not None:
                old_models[number] = deletion
                records.append(self._old_model_records(number, deletion))
            planned: tuple[Mapping[int, object], ...] = (written, deleted, floors, erasures, old_models)
            writes = any(number in one for one in planned)
            if writes or position > partition.position:
                offsets[number] = position
        return CheckpointPlan(
            [concatenate(records)] if records else [],
            written,
            floors,
            offsets,
            budget,
            alerts,
            erasures,
            stream_times,
            deleted,
            old_models,
        )

    def _erasure_plan(self, partition: Partition, position: int) -> ErasurePlan:
        partition.erasures.identities.add(self.identity.digest[:IDENTITY_BYTES])
        return partition.erasures.plan(position, self.topic.input_topic_id, partition.slab.has_state)

    def _to_delete(self, partition: Partition, limit: int) -> Ints:
        """Rows whose records go now."""
        rows = self._still_to_delete(partition)
        partition.to_delete = rows[limit:]
        return rows[:limit]

    def _still_to_delete(self, partition: Partition) -> Ints:
        """Those that the sweeper has found, but for what has changed since."""
        if len(partition.to_delete):
            partition.to_delete = partition.to_delete[self._expiry.to_delete(partition, partition.to_delete)]
        return partition.to_delete

    def _writes_of_size(self) -> int:
        slabs = (partition.slab for partition in self._partitions.running())
        state_bytes = max((state_record_bytes(slab.rows.size) for slab in slabs), default=1)
        return max(1, STATE_BYTES_PER_TRANSACTION // state_bytes)

    def initial_plan(self, partition: int, origin: int) -> CheckpointPlan:
        """The transaction that fixes where this identity's states begin, and the group's offset with it."""
        floors = {partition: origin}
        return CheckpointPlan(
            [self.floor_record(partition, origin, origin, origin)], {}, floors, floors, self._write_budget
        )

    def clearing_plan(self, partition: int, keys: Sequence[bytes | None], position: int) -> CheckpointPlan:
        """The transaction that deletes what is left of earlier states of these keys."""
        record_keys = [pack_key(key, self.identity.digest) for key in keys]
        records = self._to_write(partition, record_keys, [None] * len(keys))
        return CheckpointPlan([records], {}, {}, {partition: position}, self._write_budget)

    def position_plan(
        self, partition: int, origin: int, floor: int, position: int, answers_from: int = -1
    ) -> CheckpointPlan:
        """The transaction that makes a group's offset our own: one set by somebody else, or another model's."""
        _, stream_time_ms = self._partitions[partition].slab.stream_time.at(floor, np.iinfo(np.int64).max)
        record = self.floor_record(partition, origin, floor, position, answers_from, stream_time_ms)
        return CheckpointPlan([record], {}, {partition: floor}, {partition: position}, self._write_budget)

    def on_commit(
        self, plan: CheckpointPlan, changed: Mapping[int, ChangedRows], min_timestamp_ms: Mapping[int, int]
    ) -> None:
        """The transaction with `plan` is committed: its states are clean, the batch's other changes are dirty."""
        now_s = self._clock()
        self._write_budget = plan.write_budget
        for partition in self._partitions.running():
            number = partition.number
            rows = plan.written.get(number)
            if rows is not None:
                partition.dirty.clean(rows)
                partition.slab.recorded[rows] = 1
            if number in plan.deleted:
                partition.slab.recorded[plan.deleted[number]] = 0
                partition.deleted_s = now_s
            if number in plan.stream_times and self._expiry.max_lateness_ms is not None:
                partition.slab.stream_time.forget_before(plan.floors[number], plan.stream_times[number])
            if number in plan.floors:
                partition.floor, partition.floor_written_s = plan.floors[number], now_s
                partition.floor_position = plan.offsets[number]
            if number in plan.alerts:
                partition.alerts_written = plan.alerts[number]
            if number in plan.offsets:
                partition.position = plan.offsets[number]
            if number in plan.old_models:
                partition.old_models.on_commit(plan.old_models[number])
            if number in plan.erasures:
                self._on_erased(partition, plan.erasures[number])
            change = changed.get(number)
            if change is None:
                continue
            if rows is not None and len(rows):
                fresh = ~np.isin(change.rows, rows)
                change = ChangedRows(change.rows[fresh], change.first_offsets[fresh])
            partition.dirty.mark(change, now_s, min_timestamp_ms[number])

    def _on_erased(self, partition: Partition, plan: ErasurePlan) -> None:
        partition.erasures.on_commit(plan)
        for keys in plan.requests.values():
            partition.erase(keys)
            extra = {"partition": partition.number, "offset": partition.position, "keys": len(keys)}
            log.info("keys were erased, as `lstmstream state delete` has asked for", extra=extra)

    def floor_record(
        self,
        partition: int,
        origin: int,
        offset: int,
        position: int,
        answers_from: int = -1,
        stream_time_ms: int = NEVER,
    ) -> RecordBatch:
        """One floor record; `position` is the group's offset of the same transaction."""
        topic, owned = self.topic, self._partitions[partition]
        floor = Floor(
            self.identity,
            origin,
            offset,
            topic.input_topic_id,
            topic.partitions,
            topic.topic_id,
            position=position,
            answers_from=answers_from,
            alerts=None if self.alert_rules is None else owned.alerts,
            seed=owned.seed,
            moved_from=owned.moved_from,
            outside_times=owned.outside_times,
            moves=owned.moves,
            stream_time_ms=stream_time_ms,
            rebuilt_to=owned.rebuilt_to if owned.rebuilt_to > offset else -1,
            earlier=owned.earlier,
        )
        return self._to_write(partition, [floor_key(self.identity.digest)], [pack_floor(floor)])

    def _state_records(self, partition: Partition, rows: Ints) -> RecordBatch:
        evicted = partition.slab.is_evicted(rows) if self._expiry.limited else None
        keys, values = pack_states(partition.slab, rows, self.identity.digest, partition.origin, evicted)
        return self._to_write(partition.number, keys, values)

    def _deletions(self, partition: Partition, rows: Ints) -> RecordBatch:
        keys = [pack_key(key, self.identity.digest) for key in partition.slab.index.keys_at(rows)]
        return self._to_write(partition.number, keys, [None] * len(keys))

    def _old_model_records(self, partition: int, deletion: Deletion) -> RecordBatch:
        keys = [*deletion.keys, *(FLOOR + identity for identity in deletion.floors)]
        values = [*[None] * len(deletion.keys), *map(pack_floor, deletion.floors.values())]
        return self._to_write(partition, keys, values)

    def _to_write(self, partition: int, keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> RecordBatch:
        count = len(values)
        timestamps = np.full(count, int(self._wall_s() * 1000), dtype=np.int64)
        return RecordBatch.to_write(
            self.topic.name, np.full(count, partition, dtype=np.int64), timestamps, list(keys), list(values)
        )

    def _retention_at_risk(self, partition: Partition) -> bool:
        """Whether half of what the input keeps lies between the oldest unwritten change and the end.

        By age, against `retention.ms`. Where the size is limited, by offset: records have different sizes, but the
        older half of the log is what goes next.
        """
        oldest = partition.dirty.oldest()
        if oldest is None:
            return False
        if self.retention.ms is not None and self._wall_s() * 1000 - oldest[1] > self.retention.ms / 2:
            return True
        kept = self._kept_from.get(partition.number)
        return self.retention.by_size and kept is not None and partition.floor < sum(kept) / 2


def _oldest_s(partition: Partition) -> float:
    oldest = partition.dirty.oldest()
    return np.inf if oldest is None else oldest[0]


def _floor_after(next_dirty: int | None, changed: ChangedRows | None, position: int) -> int:
    """The floor once what is taken is written: the first change that no record contains."""
    if next_dirty is not None:
        return next_dirty
    if changed is not None and len(changed.rows):
        return int(changed.first_offsets[0])
    return position
