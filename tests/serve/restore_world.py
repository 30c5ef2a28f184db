"""A restore without a daemon: an input and a state topic on the memory broker, written record by record."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.serve.batch_limit import BatchLimit
from lstmstream.serve.checkpoint import Checkpointer, StateTopic
from lstmstream.serve.committer import NONCE_PREFIX, Committer
from lstmstream.serve.observers import Observer, StageTimer
from lstmstream.serve.partition import Partition, PartitionPhase, Partitions
from lstmstream.serve.refusals import Refusals
from lstmstream.serve.restore import Restore, Restored
from lstmstream.serve.restore_context import RestoreContext
from lstmstream.serve.state import CLEAN, KeyState, Slab
from lstmstream.serve.state_records import (
    Floor,
    StateIdentity,
    floor_key,
    pack_floor,
    pack_states,
)
from lstmstream.transport.memory import MemoryBroker, MemoryReader, MemoryTransport
from tests.serve.helpers import NumpyStep, batch, engine
from tests.serve.reference import Event

INPUT, STATE = "in", "state"
IDENTITY = StateIdentity("m", "1", "f" * 32, "none", "apply", "the record's", "the record's", "10000000")
OTHER = IDENTITY._replace(model="other", fingerprint="e" * 32)
BASE_MS = 1_767_609_067_000

Key = bytes | None


class Reader(MemoryReader):
    def __init__(self, broker: MemoryBroker, topic: str, partition: int, start: int, end: int) -> None:
        super().__init__(broker, topic, partition, start, end)
        self.topic, self.start, self.closed = topic, start, False

    def close(self) -> None:
        self.closed = True


class Transport(MemoryTransport):
    """Remembers the readers that were opened."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker, INPUT)
        self.readers: list[Reader] = []

    def open_reader(self, topic: str, partition: int, start: int, end: int) -> Reader:
        self._broker.fault("open_reader")
        self.readers.append(Reader(self._broker, topic, partition, start, end))
        return self.readers[-1]


class World:
    """An input and a state topic of one partition, and a restore over them."""

    def __init__(
        self, *, start: str | int = "earliest", on_model_change: str = "fail", on_foreign_commit: str = "fail"
    ) -> None:
        self.now_s = 1_000.0
        self.read_takes_s = 0.0
        self.broker = MemoryBroker(clock=lambda: self.now_s)
        self.broker.create(INPUT, 1)
        self.broker.create(STATE, 1)
        self.broker.fault = self._fault
        self.faults: list[str] = []
        self.points: list[str] = []  # what was asked of the broker
        self.transport = Transport(self.broker)
        self.transport.join()
        self.membership = self.transport.poll(0.0, 1).membership
        self.engine = engine(NumpyStep(), partitions=())
        self.partitions = Partitions()
        self.ids = (self.broker.topics[STATE].topic_id, self.broker.topics[INPUT].topic_id)
        clock = lambda: self.now_s  # noqa: E731
        self.checkpointer = Checkpointer(
            StateTopic(STATE, *self.ids, 1), IDENTITY, self.partitions, interval_s=10, clock=clock, wall_s=clock
        )
        self.committer = Committer(
            self.transport,
            self.engine,
            self.checkpointer,
            Observer(),
            StageTimer(clock),
            clock,
            refusals=Refusals("s", compressed=False, wall_s=clock),
            batch_limit=BatchLimit(4096),
        )
        self.context = RestoreContext(
            self.transport,
            self.engine,
            self.checkpointer,
            self.committer.submit_plan,
            INPUT,
            "group",
            start,
            on_model_change,
            604_800.0,
            on_foreign_commit,
            clock,
            BatchLimit(4096),
            set(),
        )

    def _fault(self, point: str) -> None:
        self.points.append(point)
        if point == "read":
            self.now_s += self.read_takes_s
        if point in self.faults:
            self.faults.remove(point)
            raise TryAgain(f"a fault at {point}")

    # -- what was there

    @property
    def end(self) -> int:
        return self.broker.topics[INPUT].end(0)

    @property
    def state_log(self) -> list[Any]:
        return self.broker.topics[STATE].logs[0]

    def produce(self, *keys: Key, amount: float = 1.0) -> None:
        """One event each."""
        for key in keys:
            at_ms = BASE_MS + 1_000 * self.end
            self.broker.append(INPUT, 0, key, json.dumps({"amount": amount}).encode(), at_ms)

    def states_at(self, offset: int, origin: int = 0) -> Slab:
        """The states that the events from `origin` to before `offset` make."""
        log = self.broker.topics[INPUT].logs[0]
        events = [Event(0, r.offset, r.timestamp_ms, r.key, r.value) for r in log if origin <= r.offset < offset]
        made = engine(NumpyStep())
        made.process(batch(events))
        made.commit()
        return made.scorer.states.slabs[0]

    def write(self, *keys: Key, at: int, origin: int = 0, identity: StateIdentity = IDENTITY) -> None:
        """State records of keys as they are at an offset."""
        slab = self.states_at(at, origin)
        rows = np.array([slab.index[key] for key in keys], np.int64)
        for record_key, value in zip(*pack_states(slab, rows, identity.digest, origin), strict=True):
            self.append(record_key, value)

    def write_state(self, key: Key, state: KeyState, origin: int = 0) -> None:
        """Any state record."""
        slab = Slab(len(state.row))
        slab.put(key, state)
        (record_key,), (value,) = pack_states(slab, np.array([0]), IDENTITY.digest, origin)
        self.append(record_key, value)

    def write_floor(self, offset: int, *, origin: int = 0, identity: StateIdentity = IDENTITY, **changes: Any) -> None:
        floor = Floor(identity, origin, offset, self.ids[1], 1, self.ids[0])._replace(**changes)
        self.append(floor_key(identity.digest), pack_floor(floor))

    def append(self, key: bytes | None, value: bytes | None) -> None:
        self.broker.append(STATE, 0, key, value)

    def damage(self, number: int) -> None:
        """Flip a bit in the value of a record of the state topic."""
        record = self.state_log[number]
        value = bytearray(record.value or b"")
        value[-9] ^= 4
        self.state_log[number] = record._replace(value=bytes(value))

    def commit_offset(self, offset: int, *, metadata: str = f"{NONCE_PREFIX}before:1") -> None:
        """As lstmstream does it; with other metadata, as somebody else does."""
        self.broker.offsets[0], self.broker.metadata[0] = offset, metadata

    # -- the restore

    def begin(self) -> Restore:
        partition = Partition(0, 1, self.engine.scorer.states)
        partition.restore = Restore(partition, self.context)
        self.partitions.add(partition)
        return partition.restore

    def finish(self, restore: Restore, slice_s: float = 1.0) -> Restored:
        for _ in range(1_000):
            restored = restore.advance(self.membership, slice_s)
            if restored is not None:
                return restored
            self.now_s = max(self.now_s, restore.retry_at_s)
        raise AssertionError("it never ends")

    def restored(self) -> Partition:
        """Restore, and hold the outcome against the states that the whole input makes."""
        restored = self.finish(self.begin())
        partition = self.partitions[0]
        assert partition.phase is PartitionPhase.RUNNING
        assert (restored.partition, restored.offset) == (0, self.broker.offsets[0]) == (0, partition.position)
        assert restored.states == len(partition.slab)
        self.check(partition.origin)
        assert all(reader.closed for reader in self.transport.readers)
        return partition

    def check(self, origin: int = 0) -> None:
        expected = self.states_at(self.broker.offsets[0], origin)
        slab = self.partitions[0].slab
        assert rows_of(slab) == rows_of(expected)

    def refusal(self) -> str:
        with pytest.raises(CannotServe) as caught:
            self.finish(self.begin())
        assert self.partitions[0].phase is PartitionPhase.RESTORING
        return str(caught.value)

    @property
    def replayed_from(self) -> int | None:
        """Where the input was read from; None if it was not."""
        starts = [reader.start for reader in self.transport.readers if reader.topic == INPUT]
        assert len(starts) <= 1
        return starts[0] if starts else None


def rows_of(slab: Slab) -> dict[Key, tuple[bytes, int, int, int, int]]:
    return {key: ((state := slab.get(row)).row.tobytes(), *state[1:5]) for key, row in slab.index.items()}


def marks(partition: Partition) -> dict[Key, int]:
    """The first unwritten change of each dirty key; checks that the queue of dirty rows says the same."""
    slab = partition.slab
    found = {key: int(slab.first_unwritten[row]) for key, row in slab.index.items()}
    dirty = {key: offset for key, offset in found.items() if offset != CLEAN}
    oldest_first = sorted(dirty, key=lambda key: dirty[key])
    rows, _ = partition.dirty.take(10**6, before_s=float("inf"))
    assert slab.index.keys_at(rows) == oldest_first
    assert partition.dirty.count == len(dirty)
    return dirty
