"""What is written when. At any moment, restore(state topic, floor) and a replay of the input give the live states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream.records import NO_OFFSET
from lstmstream.serve import checkpoint
from lstmstream.serve.checkpoint import (
    EVENTS_PER_WRITE,
    FLOOR_INTERVAL_S,
    WRITES_PER_TRANSACTION,
    Checkpointer,
    CheckpointPlan,
    Retention,
    StateTopic,
)
from lstmstream.serve.engine import Engine, Result
from lstmstream.serve.partition import Partition, Partitions
from lstmstream.serve.scored import ChangedRows
from lstmstream.serve.state_records import (
    FLOOR,
    StateIdentity,
    floor_key,
    key_kind,
    state_record_bytes,
    unpack_floor,
    unpack_key,
    unpack_state,
)
from tests.serve.helpers import NumpyStep, batch, engine, messages_of, snapshot
from tests.serve.reference import Event

IDENTITY = StateIdentity("m", "1", "f" * 32, "none", "apply", "the record's", "the record's", "10000000")
FLOOR_KEY = floor_key(IDENTITY.digest)
INTERVAL_S = 10.0
DAY_MS = 86_400_000


class World:
    """An input log, a state topic and committed offsets; a daemon's life without a daemon."""

    def __init__(
        self, partitions: int = 2, *, retention_ms: int | None = None, late: str = "apply", ttl_ms: int | None = 4_000
    ) -> None:
        self.now_s = 1_000.0
        self.retention_ms, self.late, self.ttl_ms = retention_ms, late, ttl_ms
        self.log: dict[int, list[Event]] = {p: [] for p in range(partitions)}
        self.topic: dict[int, dict[bytes, bytes]] = {p: {} for p in range(partitions)}
        self.committed = dict.fromkeys(range(partitions), 0)
        self.answered = 0
        self.state_writes = 0
        self.rows_by_transaction: list[list[tuple[int, bytes | None]]] = []
        self.engine, self.checkpointer, self.partitions = self._fresh()
        for p in range(partitions):
            partition = self._partition(self.engine, self.partitions, p)
            self._write(self.checkpointer.initial_plan(p, 0))
            partition.run(position=0, floor=0, now_s=self.now_s)

    def _fresh(self) -> tuple[Engine, Checkpointer, Partitions]:
        partitions = Partitions()
        checkpointer = Checkpointer(
            StateTopic("state", "state-id", "id", len(self.log)),
            IDENTITY,
            partitions,
            interval_s=INTERVAL_S,
            clock=lambda: self.now_s,
            wall_s=lambda: self.now_s,
            retention=Retention(self.retention_ms, by_size=False),
        )
        return engine(NumpyStep(), partitions=(), late=self.late, ttl_ms=self.ttl_ms), checkpointer, partitions

    def _partition(self, made: Engine, partitions: Partitions, number: int) -> Partition:
        partitions.add(Partition(number, 1, made.scorer.states))
        partitions[number].begin_states(0)
        return partitions[number]

    def _write(self, plan: CheckpointPlan) -> None:
        for message in state_messages(plan):
            assert message.partition in plan.offsets, "the fence must cover every partition written to"
            self.topic[message.partition][message.key or b""] = message.value or b""
        self.committed.update(plan.offsets)

    @property
    def floor_lags(self) -> dict[int, int]:
        return {partition.number: partition.floor_lag for partition in self.partitions.running()}

    def produce(self, partition: int, key: bytes | None, value: bytes, *, ago_ms: int = 0) -> None:
        log = self.log[partition]
        offset = log[-1].offset + 1 + (len(log) % 3 == 0) if log else 0  # transaction markers leave gaps
        log.append(Event(partition, offset, int(self.now_s * 1000) - ago_ms, key, value))

    def attempt(self, most: int = 10**6, *, flush: bool = False) -> tuple[Result, CheckpointPlan]:
        """Process what is there and plan the transaction."""
        waiting = [event for p, log in self.log.items() for event in log if event.offset >= self.committed[p]][:most]
        records = batch(waiting)
        result = self.engine.process(records)
        plan = self.checkpointer.plan(
            events=len(records), changed=result.changed, positions=records.next_offsets(), flush=flush
        )
        return result, plan

    def commit(self, most: int = 10**6, *, flush: bool = False) -> CheckpointPlan:
        result, plan = self.attempt(most, flush=flush)
        states = state_keys(plan)
        self._write(plan)
        self.engine.commit()
        self.checkpointer.on_commit(plan, result.changed, result.records.min_timestamp_ms())
        self.answered += len(result.records)
        self.state_writes += len(states)
        self.rows_by_transaction.append(states)
        assert self.checkpointer.behind() == any(self.floor_lags.values())
        return plan

    def abort(self) -> None:
        self.attempt()
        self.engine.rollback()

    def restored(self, slices: Sequence[int] = (7,)) -> tuple[Engine, Checkpointer, Partitions]:
        """As restore.py: states from the topic, then the input from the floor to the committed offset."""
        made, checkpointer, partitions = self._fresh()
        for p, topic in self.topic.items():
            partition = self._partition(made, partitions, p)
            for key, value in topic.items():
                if key != FLOOR_KEY:
                    partition.slab.put(unpack_key(key), unpack_state(key, value).state)
            floor = unpack_floor(topic[FLOOR_KEY]).offset
            assert floor <= self.committed[p]
            events = [event for event in self.log[p] if floor <= event.offset < self.committed[p]]
            replayed, at, number = [], 0, 0
            while at < len(events):
                part = batch(events[at : at + slices[number % len(slices)]])
                replayed.append((made.replay(part).get(p), part.min_timestamp_ms()[p]))
                at, number = at + len(part), number + 1
            partition.run(position=self.committed[p], floor=floor, now_s=self.now_s)
            for changed, oldest_ms in replayed:
                if changed is not None:
                    partition.dirty.mark(changed, self.now_s, oldest_ms)
        return made, checkpointer, partitions

    def check(self) -> None:
        assert snapshot(self.restored()[0].scorer.states) == snapshot(self.engine.scorer.states)

    def restart(self, slices: Sequence[int]) -> None:
        live = snapshot(self.engine.scorer.states)
        self.engine, self.checkpointer, self.partitions = self.restored(slices)
        assert snapshot(self.engine.scorer.states) == live


def state_messages(plan: CheckpointPlan) -> list[Any]:
    return [message for records in plan.records for message in messages_of(records)]


def state_keys(plan: CheckpointPlan) -> list[tuple[int, bytes | None]]:
    """(partition, key) of the states that it writes, in their order."""
    found = state_messages(plan)
    return [(m.partition, unpack_key(m.key)) for m in found if key_kind(m.key)[0] != FLOOR]


values = st.sampled_from([b'{"amount":1}', b'{"amount":-2.5}', b"{}", b"{", b'{"amount":666}', b'{"amount":7}'])
produced = st.tuples(
    st.just("produce"), st.integers(0, 1), st.sampled_from([None, *[b"%d" % i for i in range(12)]]), values,
    st.sampled_from([0, 0, 0, 300, 5_000]),
)  # fmt: skip
bursts = st.tuples(st.just("burst"), st.integers(0, 1), st.integers(5, 60))
commits = st.tuples(st.just("commit"), st.integers(1, 30))
waits = st.tuples(st.just("wait"), st.sampled_from([0.3, 1.5, 4.0, 9.1, 11.0]))
restarts = st.tuples(st.just("restart"), st.lists(st.integers(1, 9), min_size=1, max_size=3))
others = st.sampled_from([("abort",), ("shutdown",), ("idle",)])
lives = st.lists(st.one_of(produced, produced, bursts, commits, commits, waits, waits, restarts, others), max_size=60)


@given(lives, st.sampled_from(["apply", "score", "drop"]), st.sampled_from([None, 3 * DAY_MS, 5_000]))
@settings(max_examples=250, deadline=None)
def test_restore_and_replay_give_the_live_states_at_any_moment(
    life: list[Any], late: str, retention_ms: int | None
) -> None:
    world = World(late=late, retention_ms=retention_ms)
    for what, *with_ in life:
        live(world, what, *with_)
        world.check()
        if retention_ms != 5_000 and ("shutdown",) not in life:
            assert world.state_writes * EVENTS_PER_WRITE <= world.answered


def live(world: World, what: str, *with_: Any) -> None:
    if what == "produce":
        partition, key, value, ago_ms = with_
        world.produce(partition, key, value, ago_ms=ago_ms)
    elif what == "burst":
        partition, count = with_
        for i in range(count):
            world.produce(partition, b"%d" % (i % 12), b'{"amount":%d}' % i)
    elif what == "commit":
        world.commit(with_[0])
    elif what == "wait":
        world.now_s += with_[0]
    elif what == "restart":
        world.restart(with_[0])
    elif what == "abort":
        world.abort()
    elif what == "idle" and world.checkpointer.due():
        before = world.checkpointer.dirty_count(), sum(world.floor_lags.values())
        world.commit(0)
        after = world.checkpointer.dirty_count(), sum(world.floor_lags.values())
        assert after < before, "a state is written, or the floor follows"
    elif what == "shutdown":
        world.commit(flush=True)
        world.commit(0, flush=True)  # what the first one's events changed
        assert world.checkpointer.dirty_count() == 0
        assert world.restored()[1].dirty_count() == 0


def active(world: World, keys: int, rounds: int, *, of: int = 40, partitions: Sequence[int] = (0,)) -> None:
    """Every second, each partition has one event of each of the next `keys` of its `of` keys."""
    for turn in range(rounds):
        for p in partitions:
            for i in range(keys):
                world.produce(p, b"%d" % ((turn * keys + i) % of), b'{"amount":1}')
        world.commit()
        world.now_s += 1.0


def test_states_take_at_most_one_write_for_five_events_and_the_oldest_go_first() -> None:
    world = World(1)
    active(world, 20, 60)
    assert world.state_writes <= world.answered // EVENTS_PER_WRITE
    assert world.state_writes >= world.answered // EVENTS_PER_WRITE - 20  # and where many are due, that much it is
    written = [key for rows in world.rows_by_transaction for _, key in rows]
    first_round = [b"%d" % i for i in range(40)]
    assert written[:40] == first_round  # in the order of their first change
    world.check()


def test_an_aborted_transaction_neither_pays_nor_costs() -> None:
    world = World(1)
    for i in range(40):
        world.produce(0, b"%d" % i, b"{}")
    for _ in range(30):
        world.abort()
    world.commit()
    world.now_s += 11
    for _ in range(40):
        world.commit(0)
    assert world.state_writes == 40 // EVENTS_PER_WRITE
    for i in range(100):
        world.produce(0, b"%d" % i, b"{}")
    world.abort()
    assert world.commit().written[0].tolist()[:20]


def test_no_partition_starves_where_the_budget_is_short() -> None:
    world = World(3)
    active(world, 20, 120, of=500, partitions=(0, 1, 2))
    lag = world.floor_lags
    assert max(lag.values()) <= 1.2 * min(lag.values())
    world.check()


def test_a_key_is_written_at_the_latest_an_interval_after_it_first_changed() -> None:
    world = World(1)
    for i in range(50):
        world.produce(0, b"hot", b'{"amount":1}')
        if i == 3:
            world.produce(0, b"once", b"{}")
        world.commit()
        world.now_s += 1.0
    written = [(turn, key) for turn, rows in enumerate(world.rows_by_transaction) for _, key in rows]
    assert [key for _, key in written].count(b"hot") in range(4, 7)
    (once,) = [turn for turn, key in written if key == b"once"]
    assert once in (12, 13)
    assert world.floor_lags[0] <= 14
    world.check()


def test_nothing_is_due_before_its_time_or_without_budget() -> None:
    world = World(1)
    world.produce(0, b"a", b"{}")
    world.commit()
    assert not world.checkpointer.due()
    world.now_s += INTERVAL_S + 1
    assert not world.checkpointer.due()  # one event pays for no write
    for _ in range(4):
        world.produce(0, b"a", b"{")
    assert world.commit().written[0].tolist() == [0]
    assert not world.checkpointer.due()
    assert world.floor_lags == {0: 0}


def test_a_state_written_with_a_batch_holds_that_batch() -> None:
    world = World(1)
    for _ in range(5):
        world.produce(0, b"a", b"{}")
    world.commit()
    world.now_s += INTERVAL_S
    world.produce(0, b"a", b'{"amount":7}')
    world.produce(0, b"b", b"{}")
    assert world.commit().written[0].tolist() == [0]
    assert world.checkpointer.dirty_count() == 1  # b's
    began = world.log[0][5].offset
    assert world.floor_lags == {0: world.committed[0] - began}  # it could be at b's
    world.check()


def test_an_idle_owner_writes_what_is_due_and_then_has_nothing_to_replay() -> None:
    world = World(1)
    for i in range(50):
        world.produce(0, b"%d" % (i % 5), b"{}")
    world.commit()
    world.now_s += INTERVAL_S
    assert world.checkpointer.due()
    plan = world.commit(0)
    assert (len(plan.written[0]), plan.floors, plan.offsets) == (5, world.committed, world.committed)
    assert world.checkpointer.dirty_count() == 0
    assert not world.checkpointer.due()


def test_a_shutdown_writes_all_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "WRITES_PER_TRANSACTION_ON_SHUTDOWN", 70)
    world = World(2)
    for i in range(200):
        world.produce(i % 2, b"%d" % i, b"{}")
    world.commit()
    turns = 0
    while world.checkpointer.dirty_count():
        assert len(state_keys(world.commit(0, flush=True))) <= 70
        world.check()
        turns += 1
    assert turns == math.ceil(200 / 70)
    assert world.floor_lags == {0: 0, 1: 0}
    assert [unpack_floor(world.topic[p][FLOOR_KEY]).offset for p in (0, 1)] == list(world.committed.values())
    assert world.restored()[1].dirty_count() == 0


def test_half_of_the_retention_used_up_lifts_the_cap() -> None:
    world = World(1, retention_ms=100_000)
    for i in range(30):
        world.produce(0, b"%d" % i, b"{}")
    world.commit()
    world.now_s += 50
    assert len(world.commit(0).written[0]) == 30 // EVENTS_PER_WRITE
    assert not world.checkpointer.due()
    world.now_s += 0.1
    assert world.checkpointer.due()
    assert len(world.commit(0).written[0]) == 24
    world.check()


def test_with_half_of_the_retention_used_up_more_is_written_than_becomes_dirty() -> None:
    """Only new keys in each batch: the floor still comes nearer, and the oldest change does not get older."""
    world = World(1, retention_ms=100_000)
    new = 3 * WRITES_PER_TRANSACTION
    number, ages = 0, []
    for _ in range(300):
        for _ in range(new):
            world.produce(0, b"%d" % number, b"{}")
            number += 1
        world.now_s += 1
        plan = world.commit()
        oldest = world.partitions[0].dirty.oldest()
        ages.append(0 if oldest is None else world.now_s - oldest[0])
        if ages[-1] > 50:
            assert len(plan.written[0]) >= new
    assert max(ages) < 55
    world.check()


def test_a_transaction_takes_no_more_states_than_its_share() -> None:
    world = World(1)
    for i in range(WRITES_PER_TRANSACTION + 500):
        world.produce(0, b"%d" % i, b"{}")
    world.commit()
    world.checkpointer.add_to_budget(10**9)
    world.now_s += 11
    assert len(world.commit(0).written[0]) == WRITES_PER_TRANSACTION
    assert world.checkpointer.dirty_count() == 500
    world.check()


def test_a_transaction_has_so_many_bytes_of_states_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fifths of a large batch, with large states, would not arrive within the limits of a transaction."""
    world = World(1)
    size = world.partitions[0].slab.rows.size
    monkeypatch.setattr(checkpoint, "STATE_BYTES_PER_TRANSACTION", 300 * state_record_bytes(size))
    for i in range(5_000):
        world.produce(0, b"%d" % i, b"{}")
    world.commit()
    world.checkpointer.add_to_budget(10**9)
    world.now_s += 11
    for i in range(5_000):
        world.produce(0, b"%d" % i, b"{}")
    assert len(world.commit().written[0]) == 300
    world.check()


def test_the_floor_is_written_at_most_once_a_second() -> None:
    world = World(1)
    written = 0
    for _ in range(40):
        world.produce(0, b"a", b"{")  # changes nothing, so the floor may always move
        written += len(world.commit().floors)
        world.now_s += FLOOR_INTERVAL_S / 4
    assert written in (9, 10)


def test_the_floor_is_the_first_change_that_no_record_contains() -> None:
    world = World(1)
    for key in (b"a", b"b", b"c", b"a", b"b"):
        world.produce(0, key, b"{}")
    world.commit()
    firsts = [event.offset for event in world.log[0]][:3]
    world.now_s += 20
    plan = world.commit(0)
    assert plan.floors == {0: firsts[1]}  # one write, a's
    world.produce(0, b"a", b"{}")
    for _ in range(4):
        world.produce(0, b"z", b"{")
    world.now_s += 20
    assert world.commit().floors == {0: firsts[2]}
    for _ in range(5):
        world.produce(0, b"z", b"{")
    world.now_s += 1
    plan = world.commit()
    assert plan.floors == {0: world.log[0][5].offset}  # a's second change
    world.check()


def test_closing_a_partition_forgets_it() -> None:
    world = World(2)
    world.produce(1, b"a", b"{}")
    world.commit()
    partition = world.partitions.remove(1)
    assert partition is not None
    partition.close()
    assert world.partitions.remove(1) is None
    assert world.checkpointer.dirty_count() == 0
    assert world.floor_lags.keys() == {0}
    assert world.partitions[0].dirty.oldest() is None
    assert list(world.engine.scorer.states.slabs) == [0]


def test_what_is_written_to_the_state_topic() -> None:
    """One batch in the order of the partitions: states of a partition, then its floor."""
    world = World(2)
    for i in range(60):
        world.produce(i % 2, b"%d" % i, b"{}")
    world.commit()
    world.now_s += INTERVAL_S
    world.produce(0, b"0", b'{"amount":5}')
    result, plan = world.attempt()
    (records,) = plan.records
    assert (records.topic, set(records.offsets.tolist())) == ("state", {NO_OFFSET})
    assert set(records.timestamps.tolist()) == {int(world.now_s * 1000)}
    kinds = [(m.partition, key_kind(m.key)[0] == FLOOR) for m in messages_of(records)]
    # 61 events pay for twelve; the floor of the other partition stays, and its record names the new position.
    assert kinds == [*[(0, False)] * 12, (0, True), (1, True)]
    assert plan.written[0].tolist() == list(range(12))
    stored = {unpack_key(m.key): unpack_state(m.key, m.value) for m in messages_of(records)[:12]}
    slab = world.engine.scorer.states.slabs[0]
    for key, found in stored.items():
        assert (found.digest, found.origin) == (IDENTITY.digest, 0)
        assert found.state.row.tobytes() == slab.get(slab.index[key]).row.tobytes()
    assert stored[b"0"].state.last_offset == result.records.offsets[0]  # as of this very batch
    floor = unpack_floor(messages_of(records)[12].value or b"")
    assert floor[:7] == (IDENTITY, 0, world.log[0][12].offset, "id", 2, "state-id", world.log[0][-1].offset + 1)
    assert unpack_floor(messages_of(records)[13].value or b"")[3:7] == (
        "id",
        2,
        "state-id",
        world.log[1][-1].offset + 1,
    )
    world.engine.rollback()


def test_the_first_transaction_of_an_identity_fixes_where_its_states_begin() -> None:
    plan = World(2).checkpointer.initial_plan(1, 40)
    (message,) = state_messages(plan)
    assert (message.partition, message.key) == (1, FLOOR_KEY)
    assert unpack_floor(message.value)[:7] == (IDENTITY, 40, 40, "id", 2, "state-id", 40)
    assert (plan.offsets, plan.floors, plan.written) == ({1: 40}, {1: 40}, {})


def test_a_transaction_without_states_has_no_records_of_them() -> None:
    world = World(1)
    world.produce(0, b"a", b"{}")
    plan = world.commit()
    assert (plan.records, plan.written, plan.floors, plan.offsets) == ([], {}, {}, {0: 1})


def test_partitions_that_are_still_restored_are_left_alone() -> None:
    """Neither their states nor their floor are written, and their position does not move."""
    world = World(2)
    for i in range(20):
        world.produce(0, b"%d" % i, b"{}")
    world.commit()
    partition = Partition(2, 1, world.engine.scorer.states)
    world.partitions.add(partition)
    partition.slab.add(b"a")
    partition.dirty.mark(ChangedRows(np.array([0]), np.array([3])), 0.0, 0)
    plan = world.commit(0, flush=True)
    assert plan.offsets.keys() == plan.written.keys() == plan.floors.keys() == {0}
    assert (partition.position, partition.floor, partition.dirty.count) == (0, 0, 1)
    assert world.checkpointer.dirty_count() == 0
    assert not world.checkpointer.behind()


def test_the_floor_of_an_idle_owner_follows_its_last_states() -> None:
    """States of more than one transaction are written within a second, and only the first of these moves the floor."""
    world = World(1)
    for i in range(3_000):
        world.produce(0, b"%d" % (i % 500), b"{}")
    world.commit()
    world.now_s += INTERVAL_S
    while world.checkpointer.dirty_count():
        assert world.checkpointer.due()
        world.commit(0)
    assert world.floor_lags[0] > 0
    assert not world.checkpointer.due(), "not more than once a second"
    world.now_s += FLOOR_INTERVAL_S
    assert world.checkpointer.due()
    world.commit(0)
    assert world.floor_lags == {0: 0}
    assert not world.checkpointer.due()
    world.check()
