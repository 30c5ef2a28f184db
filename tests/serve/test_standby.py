"""`state.standby`: a takeover from what was followed is the restore from the topic, whatever happens meanwhile."""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.config import Config
from lstmstream.errors import TryAgain
from lstmstream.records import RecordBatch
from lstmstream.serve import loop_share, snapshots, standby
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.erasure_records import pack_request
from lstmstream.serve.standby import followed_partitions
from lstmstream.serve.state import KeyState, Slab
from lstmstream.serve.state_records import ENTITY_KEY, pack_key, pack_states
from lstmstream.transport.memory import MemoryReader
from lstmstream.transport.ports import MemberInfo
from tests.serve.memory_world import PARTITIONS, STATES, FakeStep, World, card
from tests.serve.restore_world import rows_of

KEYS = [b"a", b"b", b"c", b"d", b"e", None, b"\xff\x00"]


@pytest.fixture
def world() -> World:
    return World(state={"standby": 1, "checkpoint_interval": "5s"})


def produce(world: World, count: int) -> None:
    for number in range(count):
        world.produce(KEYS[number % len(KEYS)], b'{"amount": %d}' % number)


def let_follow(world: World, *daemons: Daemon, seconds: int = 40) -> None:
    """Time goes by, in which the daemons (all, if none is named) look at what is new."""
    for _ in range(seconds):
        world.now_s += 1
        for daemon in daemons or list(world.daemons):
            world.step(daemon)


def two(world: World, count: int = 42) -> tuple[Daemon, Daemon]:
    """Two daemons that share the partitions, have answered so many events, and follow each other."""
    first, second = world.start(), world.start()
    world.settle()
    produce(world, count)
    world.settle()
    let_follow(world)
    assert followed(second) == world.assigned(first)
    return first, second


def followed(daemon: Daemon) -> set[int]:
    assert daemon._standbys is not None
    return set(daemon._standbys._followed)


def take_over(world: World, daemon: Daemon) -> None:
    """Until it serves all that the group has given it."""
    for _ in range(200):
        world.step(daemon)
        if world.serving(daemon) == world.assigned(daemon):
            return
    raise AssertionError("it does not come to its end")


def sources(world: World, daemon: Daemon) -> dict[str, float]:
    return {source: world.metric(daemon, "restores_total", source=source) for source in ("standby", "topic")}


def states(daemon: Daemon) -> dict[int, Any]:
    return {number: (rows_of(slab), dict(slab.incidents)) for number, slab in daemon.states.slabs.items()}


def from_topic(world: World) -> dict[int, Any]:
    """What a restore of everything without a standby finds; there is no daemon afterwards."""
    for daemon in list(world.daemons):
        world.kill(daemon)
    daemon = world.start(state={})
    world.settle()
    found = states(daemon)
    world.kill(daemon)
    return found


def go_on(world: World) -> None:
    """More events, and all answers are right."""
    world.start()
    produce(world, 30)
    world.settle()
    world.check()
    world.check_states()


# -- who follows whom


def member(name: str, partitions: Sequence[int], host: str = "here", instance: str = "") -> MemberInfo:
    return MemberInfo(name, "lstmstream-t", host, partitions, instance)


def test_each_partition_is_followed_by_one_other_member() -> None:
    for count in range(2, 6):
        members = [member(f"m{number}", [number, 10 + number]) for number in range(count)]
        for order in (members, members[::-1]):
            found = {one.member_id: followed_partitions(order, one.member_id, 1) for one in order}
            for one in members:
                assert found[one.member_id] is not None
                assert not set(one.partitions) & (found[one.member_id] or set())
            by_partition = Counter(number for one in found.values() for number in one or ())
            assert by_partition == Counter(number for one in members for number in one.partitions)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_so_many_members_are_followed_but_not_itself(count: int) -> None:
    members = [member(f"m{number}", [number]) for number in range(4)]
    found = followed_partitions(members, "m1", count)
    assert found == set([2, 3, 0][:count])


def test_alone_there_is_nobody_to_follow() -> None:
    assert followed_partitions([member("m", [0, 1])], "m", 1) == set()


def test_a_member_without_partitions_follows_and_is_passed_over() -> None:
    members = [member("a", [0]), member("b", []), member("c", [1])]
    assert {one.member_id: followed_partitions(members, one.member_id, 1) for one in members} == {
        "a": {1},
        "b": {1},
        "c": {0},
    }


def test_members_of_one_host_are_not_followed_where_another_host_is_there() -> None:
    members = [
        member(f"{host}{number}", [10 * place + number], host) for place, host in enumerate("xy") for number in (0, 1)
    ]
    found = {one.member_id: followed_partitions(members, one.member_id, 1) for one in members}
    assert found == {"x0": {10}, "y0": {1}, "x1": {11}, "y1": {0}}


def test_static_members_keep_their_places() -> None:
    members = [member("z", [0], instance="t-0"), member("a", [1], instance="t-1"), member("m", [2], instance="t-2")]
    assert [followed_partitions(members, one.member_id, 1) for one in members] == [{1}, {2}, {0}]


def test_while_a_rebalance_goes_on_nobody_knows() -> None:
    assert followed_partitions([member("a", []), member("b", [])], "a", 1) is None
    assert followed_partitions([member("a", [0])], "b", 1) is None


def test_by_default_nothing_is_followed() -> None:
    assert World().config().state.standby == 0
    daemon = World().start()
    assert daemon._standbys is None


@pytest.mark.parametrize("wrong", [-1, "one", True, 1.5])
def test_a_number_of_members_is_wanted(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"state\.standby"):
        Config.model_validate(World().config().model_dump() | {"state": {"standby": wrong}})


# -- a takeover


def test_a_takeover_uses_it_and_only_the_rest_of_the_topic_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = two(world)
    lost = world.assigned(first)
    before = {number: log[-1].offset for number, log in enumerate(world.state_logs())}
    produce(world, 42)
    for _ in range(40):  # the first goes on, and the other one does not look
        world.now_s += 1
        world.step(first)
    world.kill(first)
    starts = list[int]()
    original = MemoryReader.__init__

    def note(self: MemoryReader, broker: Any, topic: str, partition: int, start: int, end: int) -> None:
        original(self, broker, topic, partition, start, end)
        if topic == STATES and partition in lost:
            starts.append(start - before[partition])

    monkeypatch.setattr(MemoryReader, "__init__", note)
    take_over(world, second)
    assert sources(world, second)["standby"] == len(lost)
    let_follow(world, second, seconds=20)
    assert min(starts) > 0, "by the restore, or the look for erasures after it"
    said = [vars(r) for r in caplog.records if r.getMessage() == "partition restored" and r.from_standby is not None]  # type: ignore[attr-defined]
    assert {line["partition"] for line in said} == lost
    for line in said:
        log = world.state_logs()[line["partition"]]
        tail = [record for record in log if record.offset > before[line["partition"]]]
        assert 0 < line["state_records"] == len(tail) < len(log)
        assert line["from_standby"] == len(first.states.slabs[line["partition"]])
    found = states(second)
    assert found == from_topic(world)
    go_on(world)


def test_what_it_has_is_in_the_metrics(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = two(world)
    keys = sum(len(first.states.slabs[number]) for number in world.assigned(first))
    assert world.metric(second, "standby_keys") == keys > 0
    assert world.metric(second, "standby_bytes") > 0
    assert world.metric(second, "standby_records_behind") == 0
    complete = [r.partition for r in caplog.records if r.getMessage() == "standby is complete"]  # type: ignore[attr-defined]
    assert sorted(complete) == list(range(PARTITIONS))
    world.kill(first)
    take_over(world, second)
    assert [world.metric(second, f"standby_{name}") for name in ("keys", "bytes", "records_behind")] == [0, 0, 0]
    assert world.health[id(second)].readyz() == (True, [])


def test_alone_nothing_is_followed(world: World) -> None:
    daemon = world.start()
    produce(world, 20)
    world.settle()
    let_follow(world)
    assert followed(daemon) == set()
    assert world.metric(daemon, "standby_keys") == 0
    world.stop(daemon)
    world.check()


def test_one_that_has_come_half_way_is_used_as_far_as_it_is(world: World) -> None:
    first, second = world.start(), world.start()
    world.settle()
    for number in range(120):
        world.produce(b"k%d" % (number % 60), b'{"amount": %d}' % number)
    world.settle()
    let_follow(world, first, seconds=60)
    world.broker.read_records = 1
    for _ in range(400):
        world.now_s += 0.2
        world.step(second)
        if world.metric(second, "standby_keys") > 5:
            break
    assert world.metric(second, "standby_records_behind") > 5
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] > 0
    assert states(second) == from_topic(world)
    go_on(world)


def test_a_member_that_leaves_in_order(world: World) -> None:
    first, second = two(world)
    produce(world, 14)
    world.settle()
    assert world.stop(first) == 0
    take_over(world, second)
    assert sources(world, second)["standby"] == 2
    assert states(second) == from_topic(world)
    go_on(world)


def test_three_members_and_one_that_dies(world: World) -> None:
    """Who gets the partition is for the group to say; with two neighbours each, whoever gets it has followed it."""
    world.settings["state"]["standby"] = 2
    daemons = [world.start() for _ in range(3)]
    world.settle()
    produce(world, 42)
    world.settle()
    let_follow(world)
    for daemon in daemons:
        assert followed(daemon) == set(range(PARTITIONS)) - world.assigned(daemon)
    world.kill(daemons[0])
    for daemon in daemons[1:]:
        take_over(world, daemon)
    assert sum(sources(world, daemon)["standby"] for daemon in daemons[1:]) == 1
    go_on(world)


def test_a_member_that_comes_changes_who_is_followed(world: World) -> None:
    two(world)
    third = world.start()
    world.settle()
    let_follow(world, seconds=150)
    by_partition = Counter(number for daemon in world.daemons for number in followed(daemon))
    assert by_partition == Counter(range(PARTITIONS))
    for daemon in world.daemons:
        assert not followed(daemon) & world.assigned(daemon)
    (place,) = world.assigned(third)
    (follower,) = [daemon for daemon in world.daemons if place in followed(daemon)]
    world.kill(third)
    for daemon in list(world.daemons):
        take_over(world, daemon)
    (new_owner,) = [daemon for daemon in world.daemons if place in world.assigned(daemon)]
    used = sum(sources(world, daemon)["standby"] for daemon in world.daemons)
    assert used == (new_owner is follower)
    go_on(world)


def test_a_partition_that_has_come_but_is_not_known_to_have_come_is_kept(world: World) -> None:
    """The broker says that it is ours before the client does."""
    first, second = two(world)
    lost, polled = world.assigned(first), second._membership
    assert second._standbys is not None
    assert polled is not None
    world.kill(first)
    for _ in range(200):
        world.now_s += 1
        second._standbys.tick(polled, second._partitions, idle=False)
    assert followed(second) == lost
    take_over(world, second)
    assert sources(world, second)["standby"] == len(lost)


def test_what_nobody_has_for_a_moment_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group whose member is gone says for a moment that nobody has anything, or that somebody has nothing."""
    first, second = two(world)
    lost, mine = world.assigned(first), world.assigned(second)
    ids = [str(world.transports[id(daemon)].member_id) for daemon in (first, second)]
    for now in ([member(ids[1], [])], [member(ids[1], list(mine))], [member(ids[0], []), member(ids[1], list(mine))]):
        with monkeypatch.context() as patch:
            patch.setattr(world.broker, "members", lambda now=now: now)
            let_follow(world, second, seconds=70)
        assert followed(second) == lost


def test_one_that_moves_to_a_member_that_is_not_followed_is_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two(world)
    ids = [str(world.transports[id(daemon)].member_id) for daemon in (first, second)]
    moved, kept = sorted(world.assigned(first))
    now = [member(ids[0], [kept]), member(ids[1], [2]), member("other", [moved])]
    following = followed_partitions(now, ids[1], 1)
    assert following is not None
    monkeypatch.setattr(world.broker, "members", lambda: now)
    let_follow(world, second, seconds=70)
    assert followed(second) == following
    assert world.metric(second, "standby_keys") < 7


def test_a_key_that_was_deleted_stays_deleted(world: World) -> None:
    """By somebody's tombstone, before and after it was followed."""
    first, second = two(world)
    assert second._standbys is not None
    digest = second._checkpointer.identity.digest
    place = min(world.assigned(first))
    at_first, later = list(rows_of(first.states.slabs[place]))[:2]
    world.broker.append(STATES, place, pack_key(at_first, digest), None)
    let_follow(world, second)
    world.broker.append(STATES, place, pack_key(later, digest), None)
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 2
    assert not {at_first, later} & set(rows_of(second.states.slabs[place]))


def test_incidents_are_in_it() -> None:
    world = World(
        alerts={"cooldown": "1h"},
        output={"topic": "out", "alerts_topic": "alerts", "threshold": -1e9},
        state={"standby": 1, "checkpoint_interval": "5s"},
    )
    first, second = two(world)
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 2
    found = states(second)
    assert sum(len(incidents) for _, incidents in found.values()) == len(KEYS)
    assert found == from_topic(world)


def test_a_damaged_record_has_the_states_rebuilt_as_without_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    first, second = two(world)
    place = min(world.assigned(first))
    log = world.state_logs()[place]
    record = [record for record in log if record.key[:1] == ENTITY_KEY][-1]
    value = bytearray(record.value or b"")
    value[-9] ^= 4
    world.broker.append(STATES, place, record.key, bytes(value))
    let_follow(world, second)
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 2
    assert [r for r in caplog.records if "1 state record is damaged" in r.getMessage()]
    produce(world, 14)
    world.settle()
    world.check()


@pytest.mark.parametrize("seen", [True, False])
def test_erasures_are_in_it(world: World, *, seen: bool) -> None:
    """A request that came while it was followed, or after the last look, is served by the new owner, and once."""
    first, second = two(world)
    place = min(world.assigned(first))
    key = next(iter(rows_of(first.states.slabs[place])))
    world.broker.append(STATES, place, *pack_request([key]))
    if seen:
        let_follow(world, second)
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 2
    for _ in range(5):
        world.step(second)
    assert key not in rows_of(second.states.slabs[place])
    assert world.erased_at(place)
    go_on(world)


def test_a_snapshot_that_is_further_is_used(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.settings["state"]["dir"] = str(tmp_path)
    first, second = two(world)
    produce(world, 42)
    for _ in range(200):  # it writes snapshots, and the other one does not look
        world.now_s += 6
        world.step(first)
    assert list(tmp_path.glob("*/*.snapshot"))
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 0
    assert world.metric(second, "restores_total", source="snapshot") == 2
    let_follow(world)
    assert followed(second) == set(), "what was not used is dropped"
    go_on(world)


def test_one_that_is_further_than_the_snapshot_is_used(world: World, tmp_path: Path) -> None:
    world.settings["state"]["dir"] = str(tmp_path)
    first, second = two(world)
    let_follow(world, seconds=3 * round(snapshots.LOOK_INTERVAL_S))
    assert list(tmp_path.glob("*/*.snapshot"))
    produce(world, 14)
    world.settle()
    let_follow(world, seconds=20)
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 2
    assert states(second) == from_topic(world)


# -- what is doubtful


def made_again(daemon: Daemon, **changes: str) -> None:
    assert daemon._standbys is not None
    daemon._standbys._topic = daemon._standbys._topic._replace(**changes)


def ended_before(world: World, place: int) -> None:
    """As after an unclean election."""
    log = world.state_logs()[place]
    world.broker.topics[STATES].passed.pop(place, None)
    log[:] = log[:1] and [log[0]]


DOUBTS: dict[str, tuple[Callable[[World, Daemon], object], str]] = {
    "state topic made again": (lambda _world, daemon: made_again(daemon, topic_id="x"), "made again"),
    "input made again": (lambda _world, daemon: made_again(daemon, input_topic_id="x"), "made again"),
    "not read for long": (lambda world, _daemon: let_age(world, 12 * 3600), "was not read for"),
}


def let_age(world: World, seconds: float) -> None:
    world.now_s += seconds


def assert_refused(caplog: pytest.LogCaptureFixture, reason: str, count: int) -> None:
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("a standby is not used")]
    assert len(said) == count
    assert all(reason in line for line in said)


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_doubtful_one_is_dropped_and_the_topic_is_read(
    world: World, doubt: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = two(world)
    before = sources(world, second)["topic"]
    act, reason = DOUBTS[doubt]
    act(world, second)
    world.kill(first)
    take_over(world, second)
    assert sources(world, second) == {"standby": 0, "topic": before + 2}
    assert_refused(caplog, reason, 2)
    assert states(second) == from_topic(world)
    go_on(world)


def test_where_tombstones_may_be_gone_it_is_dropped(world: World) -> None:
    """A key was deleted, and compaction has taken the tombstone away before it was read."""
    first, second = two(world)
    place = min(world.assigned(first))
    key = next(iter(rows_of(first.states.slabs[place])))
    record_key = pack_key(key, second._checkpointer.identity.digest)
    log = world.state_logs()[place]
    log[:] = [record for record in log if record.key != record_key]
    let_age(world, 12 * 3600)
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 0
    assert key not in rows_of(second.states.slabs[place])


def test_one_that_is_read_all_the_time_does_not_grow_old(world: World) -> None:
    first, second = two(world)
    for hours in range(30):
        let_age(world, 3600)
        if hours % 3 == 0:
            produce(world, 3)
        let_follow(world, seconds=20)
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 2
    assert states(second) == from_topic(world)


def test_one_that_always_has_something_new_does_not_grow_old(world: World) -> None:
    first, second = two(world)
    lost = world.assigned(first)

    def write(point: str) -> None:
        if point == "last_stable_offset":
            for place in lost:
                world.broker.append(STATES, place, pack_key(b"x", bytes(16)), None)

    world.watch = write
    for _ in range(15):
        let_age(world, 3600)
        let_follow(world, second, seconds=12)
    world.watch = lambda _point: None
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 2


def test_a_restore_that_begins_again_reads_the_topic(world: World) -> None:
    """What was handed over is gone then: the restore has added the tail to it."""
    first, second = two(world)
    before = sources(world, second)["topic"]
    produce(world, 42)
    for _ in range(40):
        world.now_s += 1
        world.step(first)
    world.kill(first)
    world.broker.read_records, world.call_s = 1, 0.3
    while not any(restore._load.records for restore in second._partitions.restoring()):
        world.step(second)
    for restore in second._partitions.restoring():
        assert restore._load.from_standby is not None
        restore._committed = None  # as if the group's offset had moved
        restore.check_again()
    world.call_s = 0.01
    take_over(world, second)
    assert sources(world, second) == {"standby": 0, "topic": before + 2}
    assert states(second) == from_topic(world)
    go_on(world)


def test_where_the_age_of_tombstones_is_not_known_it_is_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = two(world)
    monkeypatch.setattr("lstmstream.transport.ports.TopicInfo.settings_denied", True)
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 0
    assert_refused(caplog, "DESCRIBE_CONFIGS", 2)


@pytest.mark.parametrize("looked", [False, True])
def test_where_records_after_it_were_deleted_it_is_dropped(
    world: World, caplog: pytest.LogCaptureFixture, *, looked: bool
) -> None:
    first, second = two(world)
    for place in world.assigned(first):
        produce_until_new(world, first, place)
        world.broker.truncate(STATES, place, world.broker.topics[STATES].end(place))
        produce_until_new(world, first, place)
    if looked:
        let_follow(world, second, seconds=12)
    else:
        world.kill(first)
        for place in range(PARTITIONS):
            assert second._standbys is not None
            beginning, end = world.transports[id(second)].offset_range(STATES, place)
            assert second._standbys.find(place, beginning, end) is None
    assert_refused(caplog, "the state topic begins at", 2)


def produce_until_new(world: World, daemon: Daemon, place: int) -> None:
    """Until the state topic has new records of all keys of a partition."""
    for key in rows_of(daemon.states.slabs[place]):
        world.produce(key, b'{"amount": 3}', place)
    for _ in range(30):
        world.now_s += 1
        world.step(daemon)


@pytest.mark.parametrize("looked", [False, True])
def test_where_the_topic_ends_before_it_is_dropped(
    world: World, caplog: pytest.LogCaptureFixture, *, looked: bool
) -> None:
    first, second = two(world)
    assert second._standbys is not None
    places = world.assigned(first)
    for place in places:
        ended_before(world, place)
    if looked:
        let_follow(world, second, seconds=12)
        assert_refused(caplog, "the state topic ends at", 2)
        return
    for place in places:
        assert second._standbys.find(place, *world.transports[id(second)].offset_range(STATES, place)) is None
    assert_refused(caplog, "it is newer than the state topic", 2)


def test_states_of_another_model_are_not_in_it(world: World) -> None:
    """What is followed is of this daemon's own identity, whoever else writes into the topic."""
    old = world.start(FakeStep(card(fingerprint="e" * 32)))
    produce(world, 42)
    world.settle()
    world.stop(old)
    world.settings["on_model_change"] = "reset"
    first, second = world.start(), world.start()
    world.settle()
    let_follow(world)
    assert followed(second) == world.assigned(first)
    assert world.metric(second, "standby_keys") == 0
    produce(world, 1)
    world.settle()
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 2
    assert states(second) == from_topic(world)


# -- what fails


def test_no_memory_is_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise MemoryError("no memory for 4096 bytes of states")

    with monkeypatch.context() as patch:
        patch.setattr(standby.Standby, "read", full)
        first, second = world.start(), world.start()
        world.settle()
        produce(world, 42)
        world.settle()
        let_follow(world)
        assert [r for r in caplog.records if "states of other members cannot be followed" in r.getMessage()]
        assert world.metric(second, "standby_keys") == 0
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 0
    go_on(world)


def test_a_state_that_does_not_fit_is_for_the_owner_to_refuse(world: World, caplog: pytest.LogCaptureFixture) -> None:
    first, second = two(world)
    place = min(world.assigned(first))
    slab = Slab(5)
    slab.put(b"x", KeyState(np.zeros(5, np.float32), 1, 0, 0))
    digest = second._checkpointer.identity.digest
    (key,), (value,) = pack_states(slab, np.array([0]), digest, 0)
    world.broker.append(STATES, place, key, value)
    let_follow(world, seconds=200)
    assert followed(second) == world.assigned(first) - {place}
    assert len([r for r in caplog.records if r.getMessage().startswith("a standby is not used")]) == 1
    produce(world, 14)
    world.settle()
    world.check()


def test_a_topic_that_gives_nothing_is_given_up_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = world.start(), world.start()
    world.settle()
    produce(world, 42)
    world.settle()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryReader, "next", lambda *_: RecordBatch.empty(STATES))
        let_follow(world, seconds=round(standby.STUCK_S) + 30)
    assert [r for r in caplog.records if "cannot be read beyond offset 0" in r.getMessage()]
    let_follow(world, seconds=80)
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 2


POINTS = ("group_members", "last_stable_offset", "bounds", "read", "describe")


@pytest.mark.parametrize("point", POINTS)
def test_a_broker_that_fails_while_it_follows_is_no_failure_of_the_stream(world: World, point: str) -> None:
    first, second = world.start(), world.start()
    world.settle()
    produce(world, 42)
    world.settle()
    phases: list[str] = []
    while_following = iter(range(10_000))

    def fail(at: str) -> None:
        phases.append(at)
        if at == point and standby_calls() and next(while_following) < 3:
            raise TryAgain(f"a fault at {point}")

    def standby_calls() -> bool:
        """Whether it is the standby that calls."""
        frame = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename.endswith("serve/standby.py"):
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False

    world.watch = fail
    let_follow(world, seconds=400)
    world.watch = lambda _point: None
    assert "recover" not in phases
    world.kill(first)
    take_over(world, second)
    assert sources(world, second)["standby"] == 2
    go_on(world)


class _Killed(BaseException):
    """The process ends where it stands."""


@pytest.mark.parametrize("how", ["fault", "kill"])
def test_whatever_call_of_a_takeover_fails(how: str) -> None:
    """The n-th call to the broker after the other one has died: it fails, or the process ends there."""
    used = 0
    for nth in range(1, 200):
        world = World(state={"standby": 1, "checkpoint_interval": "5s"})
        first, second = two(world, 14)
        produce(world, 14)
        for _ in range(3):
            world.now_s += 3
            world.step(first)
        world.kill(first)
        left = nth

        def strike(_point: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise TryAgain("struck") if how == "fault" else _Killed

        world.watch = strike
        try:
            take_over(world, second)
        except _Killed:
            world.kill(second)
        world.watch = lambda _point: None
        used += second in world.daemons and int(sources(world, second)["standby"])
        world.busy.clear()
        go_on(world)
        if left > 0:
            break
    assert nth > 10
    assert used


def follower_of_much(world: World) -> Daemon:
    """It has states of another member to follow, which come one by one."""
    first, second = world.start(), world.start()
    world.settle()
    for number in range(90):
        world.produce(b"k%d" % number, b'{"amount": 3}')
    world.settle()
    let_follow(world, first, seconds=60)
    world.broker.read_records = 1
    return second


@pytest.mark.parametrize("idle", [False, True])
def test_a_slice_is_short_and_the_rest_of_the_time_is_the_streams(world: World, idle: bool) -> None:
    """By the clock of the world, in which a call to the broker takes time."""
    second, reads = follower_of_much(world), list[float]()
    following, membership = second._standbys, second._membership
    assert following is not None
    assert membership is not None
    world.watch = lambda point: reads.append(world.now_s) if point == "read" else None
    for _ in range(30_000):
        world.now_s += 0.001
        following.tick(membership, second._partitions, idle=idle)
    assert len(reads) > 4
    spent_s = len(reads) * world.call_s
    fraction = loop_share.IDLE_FRACTION if idle else loop_share.BUSY_FRACTION
    assert spent_s > loop_share.SLICE_S
    assert spent_s == pytest.approx((reads[-1] - reads[0]) * fraction, abs=2 * loop_share.SLICE_S)


def test_out_of_the_group_it_does_not_ask_for_the_loop_at_once(world: World) -> None:
    """There is something to read, and nothing is read until the member is in its group again: the loop would spin."""
    second = follower_of_much(world)
    following, membership = second._standbys, second._membership
    assert following is not None
    assert membership is not None
    while following.rest_s == math.inf:
        world.now_s += 0.1
        following.tick(membership, second._partitions, idle=True)
    for _ in range(3):
        world.now_s += 1
        following.tick(membership._replace(valid=False), second._partitions, idle=True)
        assert following.rest_s > loop_share.SLICE_S / 2


def test_while_something_is_restored_nothing_is_followed(world: World) -> None:
    first, second = two(world)
    produce(world, 42)
    for _ in range(30):
        world.now_s += 1
        world.step(first)
    following, membership = second._standbys, second._membership
    assert following is not None
    assert membership is not None
    restoring = second._partitions.restoring
    second._partitions.restoring = lambda: [object()]  # type: ignore[method-assign, list-item, return-value]
    calls: list[str] = []
    world.watch = calls.append
    for _ in range(100):
        world.now_s += 1
        following.tick(membership, second._partitions, idle=False)
    assert not calls
    second._partitions.restoring = restoring  # type: ignore[method-assign]
    for _ in range(100):
        world.now_s += 1
        following.tick(membership, second._partitions, idle=False)
    assert "read" in calls


def test_every_reader_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[MemoryReader] = []
    closed: list[MemoryReader] = []
    original = MemoryReader.__init__

    def note(self: MemoryReader, *args: Any) -> None:
        original(self, *args)
        opened.append(self)

    def note_close(self: MemoryReader) -> None:
        closed.append(self)

    monkeypatch.setattr(MemoryReader, "__init__", note)
    monkeypatch.setattr(MemoryReader, "close", note_close)
    world.broker.read_records = 1
    first, second = world.start(), world.start()
    world.settle()
    produce(world, 42)
    world.settle()
    let_follow(world, seconds=12)  # in the middle of it
    world.kill(first)
    take_over(world, second)
    let_follow(world)
    world.stop(second)
    ours = [one for one in opened if one._topic == STATES]
    left = [one for one in ours if one not in closed]
    reading = first._standbys._reading if first._standbys is not None else None
    assert len(ours) > PARTITIONS
    assert left == ([] if reading is None else [reading[1]]), "but for that of the process that was killed"
