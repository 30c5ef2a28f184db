"""The daemon on the memory transport: each event once and rightly, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream.errors import CannotServe, MembershipRefused
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.phase import Phase
from lstmstream.serve.state_records import FLOOR
from lstmstream.transport.memory import FAULT_POINTS
from tests.serve.memory_world import INPUT, LETTERS, PARTITIONS, STATES, FakeStep, World, card


def fill(world: World, events: int, keys: int = 7) -> None:
    for i in range(events):
        world.produce(b"k%d" % (i % keys), b'{"amount": %d}' % (i * 37 % 101))


def test_one_daemon_answers_every_event_once() -> None:
    world = World()
    fill(world, 100)
    daemon = world.start()
    world.settle()
    world.check()
    assert daemon.phase is Phase.RUNNING
    assert world.stop(daemon) == 0


def test_a_clean_stop_leaves_nothing_to_replay() -> None:
    """After SIGTERM the floor is the committed offset, and the next daemon reads no input again."""
    world = World()
    fill(world, 100)
    world.stop(_settled(world))
    fill(world, 50)
    world.broker.truncate(INPUT, 0, world.broker.offsets[0])  # what was handed over may be deleted
    world.start()
    world.settle()
    assert len(world.answers()) == 150


def _settled(world: World) -> Daemon:
    daemon = world.start()
    world.settle()
    return daemon


def test_a_daemon_that_is_killed_before_states_are_due_replays_no_more_each_time() -> None:
    """What was replayed once is written."""
    world = World(state={"checkpoint_interval": "1h"})
    for _ in range(5):
        fill(world, 100)
        daemon = _settled(world)
        for _ in range(5):
            world.now_s += 1  # a floor record a second
            world.step(daemon)
        world.kill(daemon)
    committed, floors = world.broker.offsets, world.floors()
    assert sum(committed.values()) == 500
    assert sum(committed[number] - floors[number] for number in floors) <= 200
    world.check_states()


def test_a_consumer_under_which_nothing_can_be_committed_is_replaced() -> None:
    """It polls and looks well; only the broker does not take what is committed under its membership."""
    world = World()
    daemon = _settled(world)
    transport = world.transports[id(daemon)]
    join, joins = transport.join, []

    def replace_consumer(**options: Any) -> None:
        joins.append(options)
        join(**options)

    def refuse(point: str) -> None:
        if point == "begin" and not joins:
            raise MembershipRefused("the coordinator is not aware of this member")

    transport.join = replace_consumer  # type: ignore[method-assign]
    world.watch = refuse
    fill(world, 100)
    world.settle()
    world.check()
    assert len(joins) == 1


def test_states_are_rebuilt_after_a_kill() -> None:
    world = World()
    fill(world, 100)
    world.kill(_settled(world))
    fill(world, 100)
    world.start()
    world.settle()
    world.check()


def test_a_bad_record_is_one_dead_letter_in_the_same_transaction() -> None:
    world = World()
    fill(world, 10)
    world.produce(b"k1", b'{"amount": "much"}')
    world.produce(b"k1", b"\xff")
    fill(world, 10)
    world.start()
    world.settle()
    world.check()
    letters = [record for log in world.broker.topics[LETTERS].logs for record in log]
    assert sorted(letter.value for letter in letters) == [b'{"amount": "much"}', b"\xff"]
    stages = sorted(dict(letter.headers)["lstmstream.stage"] for letter in letters)
    assert stages == [b"decode", b"validate"]


@pytest.mark.parametrize("point", FAULT_POINTS)
def test_a_fault_at_any_point_changes_no_answer(point: str) -> None:
    world = World()
    fill(world, 60)
    world.faults.append(point)
    daemon = _settled(world)
    for _ in range(6):
        world.faults.append(point)
        fill(world, 10)
        world.step(daemon)
    world.faults.clear()
    world.settle()
    world.check()
    registry = world.metrics[id(daemon)].registry
    assert registry.get_sample_value("lstmstream_events_total") == 120, "what was rolled back is not counted"


def test_a_commit_whose_answer_was_lost_is_not_done_twice() -> None:
    """The fault strikes after the transaction was applied: the committed offset tells, and nothing is redone."""
    world = World()
    daemon = _settled(world)
    fill(world, 30)
    world.settle()
    fill(world, 30)
    world.faults.append("committed")
    world.step(daemon)
    assert not world.unanswered()
    world.settle()
    world.check()
    registry = world.metrics[id(daemon)].registry
    assert registry.get_sample_value("lstmstream_events_total") == 60
    assert not registry.get_sample_value("lstmstream_transactions_total", {"outcome": "aborted"})


def test_a_zombie_commits_nothing() -> None:
    """A member that was dropped while it held polled records is fenced, and its work is done by the next."""
    world = World()
    zombie = _settled(world)
    fill(world, 40)

    def drop(point: str) -> None:
        if point == "begin":
            world.broker.fault = world._fault
            world.expire(zombie)
            world.start()
            for _ in range(40):
                world.step(world.daemons[-1])

    world.broker.fault = drop
    world.step(zombie)
    world.settle()
    world.check()


def test_a_member_that_is_not_in_its_group_yet_has_no_assignment() -> None:
    """None of its own is another thing than one without partitions, with which it would be ready."""
    world = World()
    daemon = world.start()
    world.expire(daemon)
    world.step(daemon)
    assert world.phase(daemon) == "joining"
    assert not world.metric(daemon, "rebalances_total")
    world.step(daemon)
    assert world.phase(daemon) == "running", "there was nothing to restore"
    assert world.metric(daemon, "rebalances_total") == 1


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_what_a_member_reads_once_it_was_dropped_is_not_committed(delivery: str) -> None:
    """The broker would take it: it fences an old generation, and not a member that shows none."""
    world = World(delivery=delivery)
    dropped = _settled(world)
    fill(world, 40)
    world.expire(dropped)
    second = world.start()
    while world.unanswered():
        world.step(second)
    answers = len(world.answers())
    world.step(dropped)
    assert len(world.answers()) == answers == 40
    world.settle()
    world.check()


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_what_is_read_between_two_generations_is_read_again(delivery: str) -> None:
    """The member keeps its partitions, so nothing else makes it look back."""
    world = World(delivery=delivery)
    daemon = _settled(world)
    fill(world, 30)
    world.settle()  # what was sought at the start has come
    fill(world, 30)
    world.rejoin(daemon)
    world.step(daemon)
    assert world.unanswered() == 30
    world.settle()
    world.check()


def test_a_second_daemon_takes_over_partitions_and_the_others_go_on() -> None:
    world = World()
    first = _settled(world)
    fill(world, 40)
    second = world.start()
    kept = set(world.broker.assignment(world.transports[id(first)].member_id) or ())
    world.step(first)
    assert kept <= first._partitions.running_numbers(), "partitions that stay are not restored again"
    world.settle()
    world.stop(first)
    fill(world, 40)
    world.settle()
    world.check()
    assert second.phase is Phase.RUNNING


def test_states_never_take_more_than_one_write_for_five_events() -> None:
    world = World(state={"checkpoint_interval": "1s"})
    daemon = world.start()
    for _ in range(40):
        fill(world, 10, keys=97)
        world.step(daemon)
    world.settle()
    states = sum(record.key[:1] != FLOOR for log in world.broker.topics[STATES].logs for record in log)
    assert 0 < states <= 400 / 5


def test_compaction_and_a_damaged_state_change_no_answer() -> None:
    world = World(state={"checkpoint_interval": "1s"})
    fill(world, 200)
    daemon = world.start()
    for _ in range(50):
        world.now_s += 2
        fill(world, 5)
        world.step(daemon)
    world.settle()
    world.kill(daemon)
    world.broker.compact(STATES)
    log = next(log for log in world.broker.topics[STATES].logs if any(r.key[:1] != FLOOR for r in log))
    at, record = next((i, r) for i, r in enumerate(log) if r.key[:1] != FLOOR)
    value = bytearray(record.value or b"")
    value[-10] ^= 4
    log[at] = record._replace(value=bytes(value))
    fill(world, 50)
    world.start()
    world.settle()
    world.check()


def _fails(world: World, start: Callable[[], Daemon]) -> str:
    daemon = start()

    def live() -> None:
        for _ in range(50):
            world.step(daemon)

    with pytest.raises(CannotServe) as caught:
        live()
    return str(caught.value)


def test_another_model_is_refused_and_both_are_named() -> None:
    world = World()
    fill(world, 20)
    world.stop(_settled(world))
    other = FakeStep(card(name="other", fingerprint="e" * 32))
    message = _fails(world, lambda: world.start(other))
    assert "f" * 32 in message
    assert "e" * 32 in message
    assert "set on_model_change: replay to rebuild" in message


def test_reset_starts_with_empty_states_and_going_back_revives_nothing_stale() -> None:
    """Each model has states of its own: the old one comes back to all events since, those of the other's time too."""
    world = World()
    world.produce(b"old", b'{"amount": 1}')
    fill(world, 21)
    world.stop(_settled(world))
    other = FakeStep(card(name="other", fingerprint="e" * 32))
    for step in (other, FakeStep(card())):
        fill(world, 21)
        daemon = world.start(step, on_model_change="reset")
        world.settle()
        world.stop(daemon)
    world.produce(b"old", b'{"amount": 1}')
    daemon = world.start()
    world.settle()
    steps = {key: [a["steps"] for a in world.answers() if a["key"] == key] for key in ("k0", "old")}
    assert steps == {"k0": [1, 2, 3, 1, 2, 3, 7, 8, 9], "old": [1, 2]}


def test_a_changed_ttl_is_another_identity() -> None:
    world = World()
    fill(world, 20)
    world.stop(_settled(world))
    assert "ttl 60000ms" in _fails(world, lambda: world.start(state={"ttl": "1m"}))


def test_lost_offsets_are_refused() -> None:
    world = World()
    fill(world, 20)
    world.stop(_settled(world))
    world.broker.offsets.clear()
    assert "offsets are gone" in _fails(world, world.start)


def test_a_lost_state_topic_is_refused() -> None:
    world = World()
    fill(world, 20)
    world.stop(_settled(world))
    del world.broker.topics[STATES]
    assert "holds no states" in _fails(world, world.start)


def test_offsets_moved_back_rebuild_from_the_start() -> None:
    world = World()
    fill(world, 60)
    world.stop(_settled(world))
    before = dict(world.broker.offsets)
    world.broker.offsets.update({p: offset - 5 for p, offset in before.items()})
    world.start()
    world.settle()
    again = [a for a in world.answers() if a["source"]["offset"] >= before[a["source"]["partition"]] - 5]
    texts = [repr(sorted(a.items(), key=str)) for a in again]
    assert len(texts) == 2 * len(set(texts)), "the second answer is the first one's twin"


def test_offsets_moved_back_while_a_partition_is_restored_are_noticed_after_a_failure() -> None:
    """What a restore works towards was asked for before."""
    world = World()
    fill(world, 60)
    world.stop(_settled(world))
    world.call_s = 0.4
    daemon = world.start()
    while not any(restore.committed_offset for restore in daemon._partitions.restoring()):
        world.step(daemon)
    number = next(r.partition.number for r in daemon._partitions.restoring() if r.committed_offset)
    moved = world.broker.offsets[number] - 2
    world.broker.offsets[number], world.broker.metadata[number] = moved, ""
    world.faults.append("poll")
    world.settle()
    sources = [(a["source"]["partition"], a["source"]["offset"]) for a in world.answers()]
    assert [one for one in set(sources) if sources.count(one) > 1 and one[1] < moved] == []
    assert sources.count((number, moved)) == sources.count((number, moved + 1)) == 2


def test_retention_shorter_than_the_floor_is_refused() -> None:
    world = World()
    fill(world, 60)
    world.kill(_settled(world))
    for partition in range(PARTITIONS):
        world.broker.truncate(INPUT, partition, 3)
    assert "retention is too short" in _fails(world, world.start)


def test_an_input_made_again_is_refused() -> None:
    world = World()
    fill(world, 20)
    world.stop(_settled(world))
    world.broker.topics[INPUT].topic_id = "another"
    assert "deleted and recreated" in _fails(world, world.start)


def test_a_grown_input_is_refused() -> None:
    world = World()
    fill(world, 20)
    world.stop(_settled(world))
    world.broker.topics[INPUT].logs.append([])
    world.broker.topics[INPUT].beginnings.append(0)
    with pytest.raises(CannotServe, match="partitions"):
        world.start()


def test_start_latest_begins_at_the_end() -> None:
    world = World(input={"topic": INPUT, "start": "latest"})
    fill(world, 20)
    daemon = world.start()
    for _ in range(20):
        world.step(daemon)
    fill(world, 30)
    world.settle()
    assert len(world.answers()) == 30


def test_start_by_time_begins_with_the_records_since_then() -> None:
    world = World(input={"topic": INPUT, "start": "1h"})
    fill(world, 20)
    world.now_s += 7_200
    fill(world, 30)
    daemon = world.start()
    world.settle()
    assert len(world.answers()) == 30
    world.now_s += 86_400
    assert world.stop(daemon) == 0
    fill(world, 5)
    world.start()
    world.settle()
    assert len(world.answers()) == 35, "it counts for a group that has no offset"


KEYS = st.sampled_from([b"a", b"b", b"c", b"", b"\x00floor", b"\x01a", b"\xff\xfe", None])
EVENTS = st.lists(
    st.tuples(KEYS, st.integers(-1000, 1000).map(lambda n: b'{"amount": %d}' % n) | st.just(b"no")),
    min_size=1,
    max_size=9,
)
DAEMON = st.integers(0, 2)
ACTION = st.one_of(
    st.tuples(st.just("produce"), EVENTS),
    st.tuples(st.just("produce"), EVENTS),
    st.tuples(st.just("step"), DAEMON),
    st.tuples(st.just("step"), DAEMON),
    st.tuples(st.just("settle")),
    st.tuples(st.sampled_from(["kill", "stop", "expire"]), DAEMON),
    st.tuples(st.sampled_from(["start", "compact"])),
    st.tuples(st.just("wait"), st.integers(1, 20)),
    st.tuples(st.just("fault"), st.sampled_from(["begin", "commit", "committed", "poll", "read", "recover", "bounds"])),
)


@given(st.lists(ACTION, min_size=10, max_size=80), st.sampled_from(["1s", "5s", "60s"]))
@settings(max_examples=500, deadline=None)
def test_any_schedule_gives_the_answers_of_one_pass(actions: list[tuple[Any, ...]], interval: str) -> None:
    """Produce, step, kill, stop, expire, start, compact, wait and fail in any order: answers are those of a fold."""
    world = World(state={"checkpoint_interval": interval})
    fill(world, 20)
    _settled(world)
    for what, *details in actions:
        if what == "produce":
            for event in details[0]:
                world.produce(*event)
        elif what == "start":
            if len(world.daemons) < 3:
                world.start()
        elif what == "compact":
            world.broker.compact(STATES)
        elif what == "settle":
            world.settle()
        elif what == "wait":
            world.now_s += details[0]
        elif what == "fault":
            world.faults.append(details[0])
        elif world.daemons:
            daemon = world.daemons[details[0] % len(world.daemons)]
            if what == "stop":
                assert world.stop(daemon) in (0, 1)
            else:
                {"step": world.step, "kill": world.kill, "expire": world.expire}[what](daemon)
    world.faults.clear()
    world.start()
    world.settle()
    world.check()
