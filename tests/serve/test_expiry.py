"""`input.max_lateness`, and keys that have expired for good: they are removed, and no answer differs."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

import numpy as np
import pytest

from lstmstream.serve.daemon import Daemon
from lstmstream.serve.state_records import FLOOR, key_kind, unpack_floor, unpack_key
from lstmstream.serve.stream_time import NEVER, StreamTime
from lstmstream.transport.memory import LogRecord
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, World, amount_of, crash_at_call, fold

TTL_S, LATENESS_S = 30, 10
RULES: dict[str, Any] = {
    "input": {"topic": INPUT, "max_lateness": f"{LATENESS_S}s"},
    "state": {"checkpoint_interval": "5s", "ttl": f"{TTL_S}s"},
}
MAX_CALLS = 8


class Kept(NamedTuple):
    mean: Any = np.float32(0.5)
    count: Any = np.float32(0)
    steps: int = 0
    last_ms: int = 0


Answers = dict[int, tuple[float, int] | str]


def expected(log: list[LogRecord]) -> Answers:
    """By offset: score and steps, or the stage of the dead letter. Nothing is removed here."""
    found: Answers = {}
    newest_ms = None
    kept: dict[bytes | None, Kept] = {}
    for record in log:
        try:
            amount = np.float32(json.loads(record.value or b"")["amount"])
        except (ValueError, TypeError, KeyError):
            found[record.offset] = "decode"
            continue
        if newest_ms is not None and newest_ms - record.timestamp_ms > LATENESS_S * 1000:
            found[record.offset] = "late"
            continue
        newest_ms = record.timestamp_ms if newest_ms is None else max(newest_ms, record.timestamp_ms)
        if amount_of(record.value) is None:
            found[record.offset] = "step"
            continue
        now = kept.get(record.key, Kept())
        if now.steps and record.timestamp_ms - now.last_ms > TTL_S * 1000:
            now = Kept()
        mean, count = fold(now.mean, now.count, amount)
        last_ms = max(now.last_ms, record.timestamp_ms) if now.steps else record.timestamp_ms
        kept[record.key] = Kept(mean, count, now.steps + 1, last_ms)
        found[record.offset] = (float(str(mean - count)), now.steps + 1)
    return found


def answers(world: World, partition: int = 0) -> Answers:
    found: Answers = {}
    for record in world.broker.topics[OUTPUT].logs[partition]:
        said = json.loads(record.value or b"")
        assert said["source"]["offset"] not in found
        found[said["source"]["offset"]] = (said["score"], said["steps"])
    for record in world.broker.topics[LETTERS].logs[partition]:
        headers = {name: value.decode() for name, value in record.headers if value is not None}
        offset = int(headers["__streams.errors.offset"])
        assert offset not in found
        found[offset] = headers["lstmstream.stage"]
    return found


def check(world: World) -> None:
    for partition in range(3):
        assert answers(world, partition) == expected(world.broker.topics[INPUT].logs[partition])


def produce(world: World, key: bytes, amount: float = 3, *, at_s: float | None = None) -> None:
    """An event of partition 0, a second after the last one; `at_s`: its own time."""
    world.now_s += 1
    time_ms = round(1000 * (world.now_s if at_s is None else at_s))
    world.broker.append(INPUT, 0, key, b'{"amount": %g}' % amount, time_ms, [])


def churn(world: World, count: int, *, seed: int = 1) -> None:
    """Keys that come, have a few events and never come back, a few that do, events that are late, poison."""
    source, first = random.Random(seed), len(world.broker.topics[INPUT].logs[0])
    for number in range(first, first + count):
        key = b"stays" if source.random() < 0.1 else b"k%d" % (number // 4 - source.randrange(3))
        at_s = world.now_s + 1 - source.choice([0, 0, 0, 0, 4, 9, 12])
        produce(world, key, source.choice([1, 2, 3, 3, 3, 1e30]), at_s=at_s)


def records(world: World, partition: int = 0) -> set[bytes | None]:
    """Keys whose newest record in the state topic is a state."""
    newest = {r.key: r.value for r in world.state_logs()[partition] if r.key and key_kind(r.key)[0] != FLOOR}
    return {unpack_key(key) for key, value in newest.items() if value is not None}


def idle(world: World, daemon: Daemon, seconds: float = 20) -> None:
    """So long without events."""
    until_s = world.now_s + seconds
    while world.now_s < until_s:
        world.now_s += 0.5
        world.step(daemon)


# -- the rule


def test_what_is_older_than_the_newest_of_its_partition_by_more_is_a_dead_letter() -> None:
    world = World(**RULES)
    daemon = world.start()
    start_s = world.now_s
    for key, at_s in [(b"a", 100), (b"b", 90), (b"c", 89.999), (b"c", 95), (b"a", 105), (b"b", 95), (b"b", 94.999)]:
        produce(world, key, at_s=start_s + at_s)
    world.settle()
    assert [said if isinstance(said, str) else said[1] for _, said in sorted(answers(world).items())] == [
        1, 1, "late", 1, 2, 2, "late",
    ]  # fmt: skip
    check(world)
    message = dict(world.broker.topics[LETTERS].logs[0][0].headers)["__streams.errors.message"]
    assert message is not None
    assert b"10001 ms older than the newest of its partition" in message
    assert world.metric(daemon, "dead_letters_total", stage="late") == 2


def test_dead_letters_of_earlier_stages_do_not_move_the_stream_time() -> None:
    """One wild clock: an event beyond `input.max_future` must not make all others late."""
    world = World(**RULES | {"input": {**RULES["input"], "timestamp": "at", "max_future": "1h"}})
    world.start()
    now_ms = round(1000 * world.now_s)
    for at_ms in (now_ms, now_ms + 3_600_001, now_ms - 9_000, now_ms + 3_600_000, now_ms):
        world.broker.append(INPUT, 0, b"a", b'{"amount": 3, "at": %.3f}' % (at_ms / 1000), now_ms, [])
    world.settle()
    found = [said if isinstance(said, str) else said[1] for _, said in sorted(answers(world).items())]
    assert found == [1, "validate", 2, 1, "late"]  # the fourth expires the state: 1 h is more than state.ttl


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_it_does_not_depend_on_how_events_fall_into_batches(limit: int) -> None:
    world = World(**RULES, batch={"max_events": limit})
    world.start()
    churn(world, 150)
    world.settle()
    check(world)
    assert {"late", "step"} <= {said for said in answers(world).values() if isinstance(said, str)}


def test_the_time_is_known_at_the_floor_after_a_crash() -> None:
    """The floor record has the time before its offset, not that of its position: what lies between is judged again."""
    world = World(**RULES | {"state": {"checkpoint_interval": "1s", "ttl": f"{TTL_S}s"}}, batch={"max_events": 3})
    daemon = world.start()
    churn(world, 60)
    world.settle()
    for number in range(-1, 6):
        produce(world, b"k%d" % number, at_s=world.now_s + 20)
    world.settle()
    floor, position = world.floors()[0], len(world.broker.topics[INPUT].logs[0])
    assert 0 < floor < position - 8, "what is judged again begins before the time has jumped"
    world.kill(daemon)
    world.start()
    produce(world, b"stays", at_s=world.now_s + 20)
    produce(world, b"stays", at_s=world.now_s + 5)
    for number in range(15):
        produce(world, b"k%d" % number, at_s=world.now_s + 20)
    world.settle()
    check(world)


def test_a_clean_stop_hands_the_time_over() -> None:
    world = World(**RULES)
    daemon = world.start()
    produce(world, b"a", at_s=world.now_s + 100)
    world.settle()
    world.stop(daemon)
    newest = [unpack_floor(r.value) for r in world.state_logs()[0] if r.value and r.key and r.key[:1] == FLOOR][-1]
    assert (newest.offset, newest.stream_time_ms) == (1, world.broker.topics[INPUT].logs[0][0].timestamp_ms)
    world.start()
    produce(world, b"a", at_s=world.now_s + 50)
    world.settle()
    assert answers(world)[1] == "late"


def test_notes_of_the_stream_time() -> None:
    time = StreamTime()
    time.begin(5, NEVER)
    assert time.pass_batch(np.array([7, 8, 9]), np.array([100, 90, 120])).tolist()[1:] == [10, -20]
    assert time.pass_batch(np.array([10, 11]), np.array([110, 130])).tolist() == [10, -10]
    assert [time.at(offset, 12) for offset in (5, 6, 7, 9, 10, 11, 12)] == [
        (5, NEVER), (5, NEVER), (7, NEVER), (7, NEVER), (10, 120), (10, 120), (12, 130),
    ]  # fmt: skip
    time.forget_before(10, 120)
    time.take_back()
    assert (time.now_ms, time.at(10, 10)) == (120, (10, 120))
    assert time.pass_batch(np.array([10]), np.array([111])).tolist() == [9]
    assert time.at(10, 11) == (10, 120)


# -- keys that can go


def test_keys_that_never_come_back_leave_memory_and_state_topic() -> None:
    world = World(**RULES)
    daemon = world.start()
    most = 0
    for part in range(40):
        churn(world, 25, seed=part)
        world.settle()
        for _ in range(3):
            world.step(daemon)
        most = max(most, world.keys_in_memory(daemon))
    idle(world, daemon)
    check(world)
    assert len(daemon._partitions[0].slab.stream_time._notes) < 5
    assert most < 60, "1,000 events of about 250 keys, of which few are younger than 40 s"
    assert world.keys_in_memory(daemon) < 25
    assert len(records(world)) < 25
    assert world.metric(daemon, "state_keys_removed_total") > 150
    assert world.metric(daemon, "state_records_deleted_total") > 0
    assert world.stop(daemon) == 0


def test_a_key_goes_when_no_event_can_find_it() -> None:
    """Not a millisecond earlier."""
    world = World(**RULES)
    daemon = world.start()
    start_s = world.now_s
    produce(world, b"a", at_s=start_s)
    produce(world, b"b", at_s=start_s + TTL_S + LATENESS_S)
    world.settle()
    world.stop(daemon)  # which writes all states
    daemon = world.start()
    world.settle()
    idle(world, daemon)
    assert records(world) == {b"a", b"b"}
    produce(world, b"b", at_s=start_s + TTL_S + LATENESS_S + 0.001)
    world.settle()
    idle(world, daemon)
    assert records(world) == {b"b"}
    assert world.keys_in_memory(daemon) == 1
    produce(world, b"a", at_s=start_s + TTL_S + 0.001)  # the oldest that may come
    world.settle()
    check(world)


def test_without_a_bound_on_lateness_nothing_goes() -> None:
    world = World(**RULES | {"input": {"topic": INPUT}})
    daemon = world.start()
    for number in range(50):
        produce(world, b"k%d" % number)
        world.now_s += 100
    world.settle()
    idle(world, daemon)
    assert world.keys_in_memory(daemon) == 50


def test_a_key_that_comes_back_while_its_record_goes() -> None:
    """In the batch of the tombstone, and between that and its removal from memory."""
    world = World(**RULES)
    daemon = world.start()
    for back in range(12):
        produce(world, b"a")
        world.settle()
        idle(world, daemon, 8)
        world.now_s += TTL_S + LATENESS_S + 5
        produce(world, b"b")
        for _ in range(back):
            world.step(daemon)
            world.now_s += 0.3
        produce(world, b"a", amount=back)
        world.settle()
        produce(world, b"a", amount=back + 1)
        world.settle()
        if back % 3 == 0:
            world.kill(daemon)
            daemon = world.start()
            world.settle()
    check(world)


@pytest.mark.parametrize("point", ["read", "begin", "commit", "committed", "committed_offset", "poll"])
def test_a_crash_at_any_call_changes_nothing(point: str) -> None:
    crashes = 0
    while crash_at(point, crashes):
        crashes += 1
    assert crashes > 0


def crash_at(point: str, nth: int) -> bool:
    """Whether there was such a call, after the first keys have gone."""
    world = World(**RULES)
    daemon = world.start()
    for part in range(6):
        churn(world, 25, seed=part)
        world.settle()
        idle(world, daemon, 6)
    removed = world.metric(daemon, "state_keys_removed_total")
    deleted = world.metric(daemon, "state_records_deleted_total")
    assert removed
    assert deleted
    churn(world, 60, seed=7)
    with crash_at_call(world, point, nth) as crash:
        for _ in range(30):
            world.step(daemon)
            world.now_s += 0.4
        if point in ("read", "committed_offset"):
            world.kill(daemon)
            daemon = world.start()
            world.settle()
    world.kill(daemon)
    world.busy.clear()
    daemon = world.start()
    churn(world, 40, seed=3)
    world.settle()
    idle(world, daemon)
    check(world)
    assert world.keys_in_memory(daemon) < 30
    world.stop(daemon)
    return crash.happened and nth < MAX_CALLS


@pytest.mark.parametrize("point", ["begin", "commit", "committed", "committed_offset"])
def test_a_broker_that_fails_meanwhile(point: str) -> None:
    world = World(**RULES)
    daemon = world.start()
    for part in range(10):
        churn(world, 20, seed=part)
        world.faults += [point]
        world.settle()
        idle(world, daemon, 3)
    check(world)
    assert world.metric(daemon, "state_records_deleted_total") > 0


def test_batches_in_flight_beside_it() -> None:
    """Full batches, each committed while the next one is computed."""
    world = World(**RULES, batch={"max_events": 8})
    daemon = world.start()
    for part in range(8):
        churn(world, 80, seed=part)
        world.settle()
    assert world.background.calls > 20
    idle(world, daemon)
    check(world)
    assert world.keys_in_memory(daemon) < 30


def test_a_rebuild_from_the_origin_meets_the_same_times() -> None:
    """A damaged record: all is read again from the origin, where there was no stream time yet."""
    world = World(**RULES)
    daemon = world.start()
    churn(world, 200)
    for _ in range(3):
        produce(world, b"stays")
    world.settle()
    idle(world, daemon, 12)
    world.stop(daemon)
    log = world.broker.topics["t.state"].logs[0]
    states = [i for i, r in enumerate(log) if r.value and r.key and key_kind(r.key)[0] != FLOOR]
    at = [i for i in states if unpack_key(log[i].key or b"") == b"stays"][-1]
    log[at] = log[at]._replace(value=b"x" + (log[at].value or b"")[1:])
    daemon = world.start()
    produce(world, b"stays")
    churn(world, 50, seed=2)
    world.settle()
    check(world)
    idle(world, daemon)
    assert world.keys_in_memory(daemon) < 30


def test_an_open_incident_keeps_its_key() -> None:
    """The record of its end may be published yet."""
    policy = {
        "alerts": {"cooldown": "5m", "hold": True, "end_record": True},
        "output": {"topic": OUTPUT, "alerts_topic": "alerts", "threshold": -2.0},
    }
    world = World(**RULES, **policy)
    daemon = world.start()
    produce(world, b"a", 20)  # above the threshold
    produce(world, b"b", 0)  # below: its score falls by 1 with each event
    produce(world, b"b", 0)
    world.settle()
    assert len(world.broker.topics["alerts"].logs[0]) == 2
    for _ in range(30):
        world.now_s += 10
        produce(world, b"c", 0)
        world.settle()
        idle(world, daemon, 1)
    assert b"a" in records(world)
    world.now_s += 300
    produce(world, b"a", 20)
    world.settle()
    ended = [json.loads(r.value or b"") for r in world.broker.topics["alerts"].logs[0] if b"ended" in (r.value or b"")]
    assert [one["key"] for one in ended][-1] == "a"
    check(world)
