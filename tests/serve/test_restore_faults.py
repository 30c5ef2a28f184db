"""Restores that must come to an end, go on in slices, and leave nothing behind: in memory, in metrics, in the group."""

from __future__ import annotations

import tracemalloc

import pytest

from lstmstream.transport.memory import AT_LEAST_ONCE_POINTS
from tests.serve.memory_world import MAGIC, STATES, World

SLICE_S = 1.0  # what one turn of the loop may spend on a restore


def events(world: World, count: int, partition: int, *, keys: int = 5) -> None:
    for i in range(count):
        world.produce(b"k%d" % (i % keys), b'{"amount": %d}' % (i * 37 % 101), partition)


def answered_and_killed(world: World, count: int, partition: int, *, keys: int = 5) -> None:
    """So many events of one partition, whose states were never written: a restore replays them all."""
    events(world, count, partition, keys=keys)
    daemon = world.start(state={"checkpoint_interval": "1h"})
    world.settle()
    world.kill(daemon)


def test_a_state_topic_that_does_not_begin_at_0_is_read_from_its_beginning() -> None:
    """As after `kafka-delete-records`: what is left there is all that is needed."""
    world = World()
    events(world, 50, 0)
    world.stop(_settled(world))
    world.broker.compact(STATES)
    first = world.broker.topics[STATES].logs[0][0].offset
    assert first > 0
    world.broker.truncate(STATES, 0, first)
    events(world, 10, 0)
    world.start()
    world.settle()
    world.check()


def _settled(world: World) -> object:
    daemon = world.start()
    world.settle()
    return daemon


@pytest.mark.parametrize("point", AT_LEAST_ONCE_POINTS)
def test_one_failure_of_the_very_first_commit_is_made_good(point: str) -> None:
    """At least once: the group has an offset then, and no floor yet. The daemon itself goes on, and so does another."""
    world = World(delivery="at_least_once")
    world.faults.append(point)
    events(world, 10, 0)
    world.kill(_settled(world))
    events(world, 10, 0)
    world.start()
    world.settle()
    world.check()


@pytest.mark.parametrize("point", AT_LEAST_ONCE_POINTS)
def test_a_kill_within_the_very_first_commit_is_made_good(point: str) -> None:
    world = World(delivery="at_least_once")
    daemon = world.make()
    world.actions.append((point, lambda: setattr(world, "away", True)))

    def give_up(_: str) -> None:
        if world.away:
            world.ask_to_stop(daemon)

    world.watch = give_up
    world.run(daemon)
    world.watch = lambda _: None
    world.away = False
    events(world, 10, 0)
    world.start()
    world.settle()
    world.check()


def test_a_long_restore_ends_though_commits_fail_now_and_then() -> None:
    """One failed commit in ten turns, of a partition that is served; the restore takes some fifteen turns."""
    world = World()
    world.call_s = 0.05  # 20 calls in a slice
    answered_and_killed(world, 2_100, 2)
    daemon = world.start()
    for turn in range(100):
        events(world, 1, 0)
        if turn % 10 == 9:
            world.faults.append("commit")
        world.step(daemon)
        if world.phase(daemon) == "running":
            break
    assert turn >= 10, "the restore was too short to be struck"
    assert turn < 40, f"{world.metric(daemon, 'restore_records_remaining'):g} records are left after {turn + 1} turns"
    world.faults.clear()
    world.settle()
    world.check()


def test_no_turn_of_a_restore_takes_longer_than_its_slice() -> None:
    """Reading, loading and replaying: the member must stay in its group, and other partitions must go on."""
    world = World()
    events(world, 4_000, 0, keys=4_000)
    world.stop(_settled(world))
    events(world, 1_000, 0, keys=4_000)
    answered_and_killed(world, 1, 0)
    daemon = world.start()
    longest_s = 0.0
    with world.time_per_call(50e-6):
        for _ in range(500):
            began_s = world.now_s
            world.step(daemon)
            longest_s = max(longest_s, world.now_s - began_s)
            if world.phase(daemon) == "running":
                break
    assert world.phase(daemon) == "running"
    assert longest_s < 1.5 * SLICE_S, f"one turn took {longest_s:.1f} s of work"
    world.check()


def test_the_memory_of_a_replay_does_not_grow_with_its_length() -> None:
    def peak(count: int) -> int:
        """Bytes that a restore of so many events takes at most."""
        world = World()
        answered_and_killed(world, count, 0)
        daemon = world.start()
        tracemalloc.start()
        try:
            for _ in range(200):
                world.step(daemon)
                if world.phase(daemon) == "running":
                    return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        raise AssertionError("the restore does not end")

    short, long = peak(2_000), peak(16_000)
    # One kept record takes more than 200 bytes; the interpreter's own tables move the peak by 100 kB.
    per_event = (long - short) / 14_000
    assert per_event < 20, f"{short} bytes for 2,000 events, {long} for 16,000"


def test_a_restore_whose_partition_goes_leaves_no_records_remaining() -> None:
    world = World()
    world.call_s = 0.05
    answered_and_killed(world, 2_000, 2)
    first = world.start()
    for _ in range(8):
        world.step(first)
    assert world.phase(first) == "restoring"
    assert world.metric(first, "restore_records_remaining") > 0
    second = world.start()
    for _ in range(5):
        world.step(first)
    assert world.assigned(second) == {2}
    assert world.phase(first) == "running"
    assert world.metric(first, "restore_records_remaining") == 0


def test_state_bytes_counts_keys_and_table() -> None:
    world = World()
    count, size = 1_000, 100
    for i in range(count):
        world.produce(b"%0100d" % i, b'{"amount": 1}', 0)
    daemon = world.start()
    world.settle()
    world.now_s += 2
    world.step(daemon)
    assert world.metric(daemon, "state_keys") == count
    row = 2 * 4 + 3 * 8  # two floats; steps, last timestamp, last offset
    assert world.metric(daemon, "state_bytes") >= count * (row + size)


def test_keys_that_were_never_answered_do_not_stay_in_memory() -> None:
    """Events whose answers are not finite become dead letters; their keys have no state, before a restart and after."""
    world = World()
    world.produce(b"good", b'{"amount": 1}', 0)
    for i in range(300):
        world.produce(b"bad-%d" % i, b'{"amount": %g}' % MAGIC, 0)
    world.produce(b"good", b'{"amount": %g}' % MAGIC, 0)
    daemon = world.start()
    world.settle()
    assert world.metric(daemon, "dead_letters_total", stage="step") == 301
    assert world.keys_in_memory(daemon) == 1
    world.kill(daemon)
    world.produce(b"good", b'{"amount": 2}', 0)
    daemon = world.start()
    world.settle()
    assert world.keys_in_memory(daemon) == 1
    world.check()
