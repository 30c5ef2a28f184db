"""Keys that are erased: `lstmstream state delete` writes a request, and the owner applies it at an offset of the input.

Judged by the world's own bookkeeping: a key's state begins anew at each offset that the state topic names, and nothing
else changes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lstmstream.errors import CannotServe
from lstmstream.records import RecordBatch
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.erasure_records import digest_of, pack_erasure, pack_request, read_applied
from lstmstream.serve.erasures import (
    FORGOTTEN_PER_TRANSACTION,
    INTERVAL_S,
    LOOK_S,
    RETENTION_INTERVAL_S,
    ErasureRequests,
    Erasures,
)
from lstmstream.serve.state_records import key_kind
from lstmstream.transport.memory import LogRecord
from tests.serve.memory_world import INPUT, PARTITIONS, STATES, FakeStep, World, card, crash_at_call

KEYS = [b"a", b"b", None]
OLD, NEW = "a" * 32, "b" * 32
MAX_CALLS = 12


def produce(world: World, rounds: int, keys: Sequence[bytes | None] = KEYS) -> None:
    """Of all keys in turn, in partition 0."""
    for _ in range(rounds):
        for key in keys:
            world.produce(key, b'{"amount": 3}', 0)


def ask(world: World, *keys: bytes | None) -> None:
    """As the command does: of each partition."""
    for partition in range(PARTITIONS):
        world.broker.append(STATES, partition, *pack_request(keys))


def log_of(world: World) -> Sequence[LogRecord]:
    return world.state_logs()[0]


def erased(world: World) -> list[tuple[int, bytes | None]]:
    return world.erased_at(0)


def apply(world: World, *daemons: Daemon) -> None:
    """Until the requests are found and applied."""
    world.now_s += INTERVAL_S
    for _ in range(4):
        for daemon in daemons:
            world.step(daemon)
    world.settle()


def life(world: World, rounds: int = 0, *, kill: bool = False, step: Any = None, **changes: Any) -> None:
    daemon = world.start(step, **changes)
    produce(world, rounds)
    world.settle()
    apply(world, daemon)
    (world.kill if kill else world.stop)(daemon)


def has_states_of(world: World, key: bytes) -> bool:
    """Whether the newest record of one of its states has a value."""
    newest = {one.key: one.value for one in log_of(world)}
    return any(v is not None for k, v in newest.items() if k and key_kind(k)[0] == b"\x01" and k[9:] == key)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_starts_anew_in_a_running_daemon(key: bytes | None) -> None:
    world = World()
    daemon = world.start()
    produce(world, 5)
    world.settle()
    ask(world, key)
    apply(world, daemon)
    assert erased(world) == [(15, key)]
    assert key not in daemon.states.slabs[0].index
    produce(world, 3)
    world.settle()
    world.check()
    world.check_states()
    assert [one["steps"] for one in world.answers() if one["key"] == (key and key.decode())] == [*range(1, 6), 1, 2, 3]


def test_the_key_stands_nowhere_after_compaction() -> None:
    world = World()
    life(world, 5)
    assert has_states_of(world, b"a")
    ask(world, b"a")
    life(world)
    assert not has_states_of(world, b"a")
    world.broker.compact(STATES)
    kept = [one for one in log_of(world) if one.value is not None]
    assert not [one for one in kept if one.key and one.key[:1] == b"\x03"]
    assert [one for one in kept if one.key and one.key[:1] == b"\x04"]


def test_the_one_who_asked_is_told_where_and_whether_there_was_a_state() -> None:
    world = World()
    life(world, 2)
    ask(world, b"a", b"nobody")
    life(world)
    records = [(one.key, one.value) for one in log_of(world)]
    told = read_applied(*zip(*records, strict=True))
    assert [(one.offset, one.found) for one in told] == [(6, True), (6, False)]


@pytest.mark.parametrize("kill", [False, True])
def test_a_request_to_a_stopped_group_takes_effect_at_the_next_start(kill: bool) -> None:
    world = World()
    life(world, 5, kill=kill)
    ask(world, b"a")
    produce(world, 2)
    life(world, 1, kill=kill)
    assert [at for at, _ in erased(world)] == [15]
    life(world, 2)
    world.check()
    assert world.steps(b"a") == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]


def test_the_replay_of_a_restart_does_not_bring_it_back() -> None:
    """The floor lies before the erasure: states are not due for an hour."""
    world = World(state={"checkpoint_interval": "1h"})
    daemon = world.start()
    produce(world, 5)
    world.settle()
    ask(world, b"a")
    apply(world, daemon)
    assert world.floors()[0] == 0
    world.kill(daemon)
    life(world, 2)
    world.check()
    assert world.steps(b"a")[-2:] == [1, 2]


def test_a_rebuild_does_not_bring_it_back() -> None:
    world = World()
    life(world, 5)
    ask(world, b"a")
    life(world, 2)
    log = world.broker.topics[STATES].logs[0]
    at = max(i for i, one in enumerate(log) if one.key and one.key.endswith(b"b") and one.value)
    log[at] = log[at]._replace(value=b"x" + (log[at].value or b"")[1:])
    life(world, 2)
    world.check()
    assert world.steps(b"a") == [1, 2, 3, 4, 5, 1, 2, 3, 4]


def test_a_new_model_with_replay_does_not_bring_it_back_and_neither_does_the_old_one() -> None:
    world = World(on_model_change="replay")
    old, new = FakeStep(card(fingerprint=OLD)), FakeStep(card(fingerprint=NEW))
    life(world, 5, step=old)
    ask(world, b"a")
    life(world, 1, step=old)
    life(world, 2, step=new)
    assert world.steps(b"a") == [1, 2, 3, 4, 5, 1, 2, 3]
    assert world.steps(b"b") == list(range(1, 9))
    ask(world, b"b")
    life(world, 0, step=new)
    assert not has_states_of(world, b"b")  # the old model's neither
    life(world, 2, step=old)
    assert world.steps(b"b") == [*range(1, 9), 1, 2]
    assert world.steps(b"a") == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    world.check()


def test_a_snapshot_does_not_bring_it_back(tmp_path: Path) -> None:
    """The state topic before the snapshot is not read: it has the erasure, and the floor lies before that."""
    world = World(state={"dir": str(tmp_path), "checkpoint_interval": "1h"})
    daemon = world.start()
    produce(world, 5)
    world.settle()
    ask(world, b"a")
    apply(world, daemon)
    for _ in range(60):
        world.now_s += 5
        world.step(daemon)
    world.kill(daemon)
    assert list(tmp_path.glob("*/*.snapshot"))
    daemon = world.start()
    world.settle()
    assert world.metric(daemon, "restores_total", source="snapshot")
    produce(world, 2)
    world.settle()
    world.check()
    assert world.steps(b"a")[-2:] == [1, 2]


def test_an_owner_that_was_replaced_does_not_bring_it_back() -> None:
    world = World()
    first = world.start()
    produce(world, 5)
    world.settle()
    world.expire(first)  # it goes on, as a process that slept
    second = world.start()
    world.daemons.remove(first)
    ask(world, b"a")
    for _ in range(30):
        world.step(second)
        world.now_s += 1
    world.daemons.append(first)
    for _ in range(10):
        world.step(first)
        world.step(second)
    produce(world, 3)
    world.settle()
    world.check()
    assert world.steps(b"a")[-3:] == [1, 2, 3]


def test_twice_and_many_keys() -> None:
    world = World()
    life(world, 3)
    ask(world, b"a", b"b")
    ask(world, b"b", None)
    life(world, 2)
    ask(world, b"a")
    life(world, 2)
    world.check()
    assert world.steps(b"a") == [1, 2, 3, 1, 2, 1, 2]
    assert world.steps(b"b") == [1, 2, 3, 1, 2, 1, 2]  # a request after the other, and events go on between them


def test_it_is_forgotten_once_the_input_has_nothing_of_the_key() -> None:
    world = World()
    life(world, 5)
    ask(world, b"a")
    daemon = world.start()
    produce(world, 2)
    world.settle()
    apply(world, daemon)
    at = erased(world)[0][0]
    world.broker.truncate(INPUT, 0, at - 1)
    world.now_s += RETENTION_INTERVAL_S
    apply(world, daemon)
    world.broker.compact(STATES)
    assert erased(world)  # one event is left that could bring it back
    world.broker.truncate(INPUT, 0, at)
    world.now_s += RETENTION_INTERVAL_S
    apply(world, daemon)
    world.broker.compact(STATES)
    assert not erased(world)
    world.stop(daemon)
    life(world, 2)
    assert world.steps(b"a")[-4:] == [1, 2, 3, 4]


def test_the_group_s_offset_cannot_go_back_behind_it() -> None:
    world = World()
    life(world, 5)
    ask(world, b"a")
    life(world, 2)
    world.broker.offsets[0] = 3
    world.start()
    with pytest.raises(CannotServe, match=r"moved back to 3, before 15, where `lstmstream state delete`.*15 or later"):
        world.settle()


def test_a_request_that_cannot_be_read_is_said_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    life(world, 2)
    key, value = pack_request([b"a"])
    world.broker.append(STATES, 0, key, value[:-3])
    life(world, 1)
    assert "an erasure request cannot be used" in caplog.text
    assert world.steps(b"a") == [1, 2, 3]


def test_an_idle_owner_asks_only_for_the_end() -> None:
    world = World()
    daemon = world.start()
    produce(world, 5)
    world.settle()
    for _ in range(40):
        world.now_s += 1
        world.step(daemon)
    points: list[str] = []
    world.watch = points.append
    for _ in range(60):
        world.now_s += 1
        world.step(daemon)
    assert "read" not in points
    assert 10 <= points.count("last_stable_offset") <= 13


class Silent:
    """A reader of a partition from which nothing comes, and whoever opens it."""

    end = 10

    def __init__(self) -> None:
        self.now_s, self.position = 0.0, 0
        self.opened: list[int] = []

    def last_stable_offsets(self, _topic: str, partitions: Sequence[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, self.end)

    def open_reader(self, _topic: str, partition: int, _start: int, _end: int) -> Silent:
        self.opened.append(partition)
        return self

    def next(self, timeout_s: float) -> RecordBatch:
        self.now_s += timeout_s
        return RecordBatch.empty(STATES)

    def close(self) -> None:
        pass


def test_a_look_is_short_however_many_partitions_there_are() -> None:
    broker: Any = Silent()
    requests = ErasureRequests(broker, lambda: broker.now_s, input_topic=INPUT, state_topic=STATES)
    running = {number: Erasures() for number in range(60)}
    while len(broker.opened) < len(running):
        before_s = broker.now_s
        requests.check(running)
        assert broker.now_s - before_s <= LOOK_S + 1e-6
        broker.now_s += INTERVAL_S
    assert set(broker.opened) == set(running)  # each in its turn


def test_a_great_many_are_forgotten_in_parts() -> None:
    """And a restore that reads them all, with what says that they are forgotten, is done soon."""
    erasures, count = Erasures(), 100_000
    keys = [b"%d" % number for number in range(count)]
    for offset, key in enumerate(keys):
        erasures.take(*pack_erasure(digest_of(key, "salt"), offset, b"request", found=True))
    erasures.forget_before(count // 2)
    forgotten: list[bytes] = []
    while erasures.due:
        plan = erasures.plan(count, "salt", lambda _key: False)
        assert len(plan.keys) <= FORGOTTEN_PER_TRANSACTION
        assert set(plan.values) == {None}
        forgotten += plan.forgotten
        erasures.on_commit(plan)
    assert len(forgotten) == count // 2 + 1
    assert erasures.last == count - 1
    for offset in range(count // 2 + 1, count):
        erasures.take(pack_erasure(digest_of(keys[offset], "salt"), offset, b"request", found=True)[0], None)
    assert (erasures.last, erasures.any_applied) == (-1, False)


def test_of_a_key_that_was_erased_twice_the_earlier_one_may_be_forgotten() -> None:
    erasures = Erasures()
    first, second = (pack_erasure(digest_of(b"a", "salt"), at, b"request", found=True) for at in (5, 9))
    erasures.take(*first)
    erasures.take(*second)
    erasures.take(first[0], None)
    assert erasures.last == 9
    erasures.take(second[0], None)
    assert erasures.last == -1


@pytest.mark.parametrize("point", ["read", "begin", "sent", "commit", "committed", "poll"])
def test_a_crash_while_it_is_applied_changes_nothing(point: str) -> None:
    """At each call of its kind, from the request on."""
    crashes = 0
    while crash_at(point, crashes):
        crashes += 1
    assert crashes > 0


def crash_at(point: str, nth: int) -> bool:
    """Whether there was such a call."""
    world = World(state={"checkpoint_interval": "20s"})
    daemon = world.start()
    produce(world, 5)
    world.settle()
    ask(world, b"a")
    world.now_s += INTERVAL_S
    with crash_at_call(world, point, nth) as crash:
        for _ in range(6):
            world.step(daemon)
        produce(world, 1)
        for _ in range(6):
            world.step(daemon)
    world.kill(daemon)
    world.busy.clear()
    life(world, 2)
    world.check()
    world.check_states()
    assert len(erased(world)) == 1
    return crash.happened and nth < MAX_CALLS


@pytest.mark.parametrize("seed", range(25))
def test_any_order_of_events_erasures_and_faults(seed: int) -> None:
    """Two members on the same partitions, batches of three, so that transactions overlap with steps."""
    source = random.Random(seed)
    world = World(batch={"max_events": 3}, state={"checkpoint_interval": source.choice(["2s", "1h"])})
    world.start()
    for _ in range(120):
        act = source.random()
        if act < 0.4:
            produce(world, source.randrange(4), [source.choice(KEYS) for _ in range(2)])
        elif act < 0.47:
            ask(world, *source.sample(KEYS, source.randrange(1, 3)))
        elif act < 0.52:
            world.faults.append(source.choice(["read", "begin", "sent", "commit", "committed", "last_stable_offset"]))
        elif act < 0.55 and world.daemons:
            world.kill(source.choice(world.daemons))
        elif act < 0.58 and world.daemons:
            world.expire(source.choice(world.daemons))
        if not world.daemons or (act > 0.97 and len(world.daemons) < 2):
            world.start()
        world.now_s += source.choice([0, 0, 1, INTERVAL_S])
        for daemon in list(world.daemons):
            world.step(daemon)
        world.check_states()
    world.faults.clear()
    apply(world, *world.daemons)
    world.check()
    assert erased(world)


@pytest.mark.parametrize("point", ["read", "begin", "sent", "commit", "committed", "last_stable_offset"])
def test_a_broker_that_fails_meanwhile(point: str) -> None:
    world = World()
    daemon = world.start()
    produce(world, 5)
    world.settle()
    ask(world, b"a")
    world.faults += [point] * 3
    for _ in range(4):
        apply(world, daemon)
    produce(world, 2)
    world.settle()
    world.check()
    world.check_states()
    assert [key for _, key in erased(world)] == [b"a"]
    assert world.steps(b"a")[-2:] == [1, 2]
