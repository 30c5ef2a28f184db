"""What is written when. At any moment, restore(state topic, floor) and a replay of the input give the live states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from helpers import NumpyStep, batch, engine, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Event

from lstmstream.serve import checkpoint
from lstmstream.serve.checkpoint import (
    EVENTS_PER_WRITE,
    FLOOR_EVERY_S,
    FLOOR_KEY,
    WRITES_PER_TRANSACTION,
    Checkpointer,
    Owner,
    Plan,
    decode_floor,
    decode_state,
    entity_key,
)
from lstmstream.serve.engine import Engine, Result

OWNER = Owner("m", "1", "f" * 32, "none", "apply", "the record's", "the record's")
INTERVAL_S = 10.0
DAY_MS = 86_400_000


class World:
    """An input log, a state topic and committed offsets; a daemon's life without a daemon."""

    def __init__(
        self, partitions: int = 2, *, retention_ms: int | None = None, late: str = "apply", ttl_ms: int | None = 4_000
    ) -> None:
        self.now_s = 1_000.0
        self.partitions = partitions
        self.retention_ms, self.late, self.ttl_ms = retention_ms, late, ttl_ms
        self.log: dict[int, list[Event]] = {p: [] for p in range(partitions)}
        self.topic: dict[int, dict[bytes, bytes]] = {p: {} for p in range(partitions)}
        self.committed = dict.fromkeys(range(partitions), 0)
        self.answered = 0
        self.state_writes = 0
        self.rows_by_transaction: list[list[tuple[int, bytes | None]]] = []
        self.engine, self.checkpointer = self._fresh()
        for p in range(partitions):
            message = self.checkpointer.first_floor(p, 0)
            self.topic[p][message.key or b""] = message.value or b""
            self.engine.states.open(p)
            self.checkpointer.open(p, start=0, position=0, floor=0, retention_ms=retention_ms)

    def _fresh(self) -> tuple[Engine, Checkpointer]:
        made = engine(NumpyStep(), partitions=(), late=self.late, ttl_ms=self.ttl_ms)
        checkpointer = Checkpointer(
            "state",
            OWNER,
            interval_s=INTERVAL_S,
            input_id="id",
            partitions=self.partitions,
            clock=lambda: self.now_s,
            wall_ms=lambda: int(self.now_s * 1000),
        )
        return made, checkpointer

    def produce(self, partition: int, key: bytes | None, value: bytes, *, ago_ms: int = 0) -> None:
        log = self.log[partition]
        offset = log[-1].offset + 1 + (len(log) % 3 == 0) if log else 0  # transaction markers leave gaps
        log.append(Event(partition, offset, int(self.now_s * 1000) - ago_ms, key, value))

    def attempt(self, most: int = 10**6, *, everything: bool = False) -> tuple[Result, Plan]:
        """Process what is there and plan the transaction."""
        waiting = [event for p, log in self.log.items() for event in log if event.offset >= self.committed[p]][:most]
        records = batch(waiting)
        result = self.engine.process(records)
        plan = self.checkpointer.plan(
            self.engine.states,
            events=len(records),
            changes=result.changes,
            positions=records.next_offsets(),
            everything=everything,
        )
        return result, plan

    def commit(self, most: int = 10**6, *, everything: bool = False) -> Plan:
        result, plan = self.attempt(most, everything=everything)
        states = [m for m in plan.messages if m.key != FLOOR_KEY]
        for message in plan.messages:
            assert message.partition is not None
            assert message.partition in plan.offsets, "the fence must cover every partition written to"
            self.topic[message.partition][message.key or b""] = message.value or b""
        self.committed.update(plan.offsets)
        self.engine.commit()
        self.checkpointer.committed(plan, result.changes, result.records.oldest_ms())
        self.answered += len(result.records)
        self.state_writes += len(states)
        self.rows_by_transaction.append([(m.partition or 0, entity_key(m.key or b"")) for m in states])
        return plan

    def abort(self) -> None:
        self.attempt()
        self.engine.rollback()

    def restored(self, slices: Sequence[int] = (7,)) -> tuple[Engine, Checkpointer]:
        """As restore.py: states from the topic, then the input from the floor to the committed offset."""
        made, checkpointer = self._fresh()
        for p, topic in self.topic.items():
            slab = made.states.open(p)
            for key, value in topic.items():
                if key != FLOOR_KEY:
                    slab.put(entity_key(key), decode_state(key, value).state)
            floor = decode_floor(topic[FLOOR_KEY]).offset
            assert floor <= self.committed[p]
            events = [event for event in self.log[p] if floor <= event.offset < self.committed[p]]
            changes, at, turn = [], 0, 0
            while at < len(events):
                part = batch(events[at : at + slices[turn % len(slices)]])
                changes.append((made.replay(part)[p], part.oldest_ms()[p]))
                at, turn = at + len(part), turn + 1
            checkpointer.open(p, start=0, position=self.committed[p], floor=floor, retention_ms=self.retention_ms)
            for change, oldest in changes:
                checkpointer.mark(p, change, oldest)
        return made, checkpointer

    def check(self) -> None:
        assert snapshot(self.restored()[0].states) == snapshot(self.engine.states)

    def restart(self, slices: Sequence[int]) -> None:
        live = snapshot(self.engine.states)
        self.engine, self.checkpointer = self.restored(slices)
        assert snapshot(self.engine.states) == live


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
        before = world.checkpointer.unwritten()
        world.commit(0)
        assert world.checkpointer.unwritten() < before
    elif what == "shutdown":
        world.commit(everything=True)
        world.commit(0, everything=True)  # what the first one's events changed
        assert world.checkpointer.unwritten() == 0
        assert world.restored()[1].unwritten() == 0


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
    lag = world.checkpointer.floor_lag()
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
    assert world.checkpointer.floor_lag()[0] <= 14
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
    assert world.checkpointer.floor_lag() == {0: 0}


def test_a_state_written_with_a_batch_holds_that_batch() -> None:
    world = World(1)
    for _ in range(5):
        world.produce(0, b"a", b"{}")
    world.commit()
    world.now_s += INTERVAL_S
    world.produce(0, b"a", b'{"amount":7}')
    world.produce(0, b"b", b"{}")
    assert world.commit().written[0].tolist() == [0]
    assert world.checkpointer.unwritten() == 1  # b's
    began = world.log[0][5].offset
    assert world.checkpointer.floor_lag() == {0: world.committed[0] - began}  # it could be at b's
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
    assert world.checkpointer.unwritten() == 0
    assert not world.checkpointer.due()


def test_a_shutdown_writes_all_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "WRITES_PER_TRANSACTION_AT_END", 70)
    world = World(2)
    for i in range(200):
        world.produce(i % 2, b"%d" % i, b"{}")
    world.commit()
    turns = 0
    while world.checkpointer.unwritten():
        assert len([m for m in world.commit(0, everything=True).messages if m.key != FLOOR_KEY]) <= 70
        world.check()
        turns += 1
    assert turns == math.ceil(200 / 70)
    assert world.checkpointer.floor_lag() == {0: 0, 1: 0}
    assert [decode_floor(world.topic[p][FLOOR_KEY]).offset for p in (0, 1)] == list(world.committed.values())
    assert world.restored()[1].unwritten() == 0


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


def test_a_transaction_takes_no_more_states_than_its_share() -> None:
    world = World(1)
    for i in range(WRITES_PER_TRANSACTION + 500):
        world.produce(0, b"%d" % i, b"{}")
    world.commit()
    world.checkpointer._credit = 10**9
    world.now_s += 11
    assert len(world.commit(0).written[0]) == WRITES_PER_TRANSACTION
    assert world.checkpointer.unwritten() == 500
    world.check()


def test_the_floor_is_written_at_most_once_a_second() -> None:
    world = World(1)
    written = 0
    for _ in range(40):
        world.produce(0, b"a", b"{")  # changes nothing, so the floor may always move
        written += len(world.commit().floors)
        world.now_s += FLOOR_EVERY_S / 4
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
    world.checkpointer.close(1)
    world.checkpointer.close(1)
    assert world.checkpointer.unwritten() == 0
    assert world.checkpointer.floor_lag().keys() == {0}
    assert np.isinf(world.checkpointer._ledgers[0].oldest_s())
