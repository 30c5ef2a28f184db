"""`lstmstream state repartition` with `state.max_keys`: which keys have a place, and which one goes next.

Judged by the rule in plain Python: one event after the other, and the keys of a partition in the order in which they
were seen last.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import CannotServe
from lstmstream.serve.state_records import FLOOR, unpack_floor
from lstmstream.states.arrivals import Arrivals
from lstmstream.transport.partitioner import partition_of
from tests.serve.memory_world import INPUT, PARTITIONS, crash_at_call, fold
from tests.states.test_repartition import Growing

MANY = [b"m%d" % number for number in range(24)]
MAX_CRASHES = 12


class Limited(Growing):
    """Notes what the partitions were when each event was produced."""

    def __init__(self, max_keys: int, **state: Any) -> None:
        super().__init__(state={"max_keys": max_keys, "checkpoint_interval": "1h", **state})
        self.max_keys = max_keys
        self.numbers = [PARTITIONS]  # of partitions
        self.produced: list[tuple[bytes, int, int, float, float]] = []  # key, partition, offset, amount, time
        self.grown_at: list[int] = []  # events that were produced before
        self.left_out = 0
        self.random = np.random.default_rng(7)

    def events(self, count: int) -> None:
        """Some keys more often than others, and some at the same time."""
        for _ in range(count):
            key = MANY[int(self.random.integers(len(MANY)) * self.random.random())]
            partition, amount = partition_of(key, self.numbers[-1]), float(self.random.integers(50))
            if self.random.random() < 0.5:
                self.now_s -= 1
            offset = self.broker.topics[INPUT].end(partition)
            self.produce(key, b'{"amount": %d}' % amount, partition)
            self.produced.append((key, partition, offset, amount, self.now_s))

    def grow(self, partitions: int = 7) -> None:
        super().grow(partitions)
        self.grown_at.append(len(self.produced))
        self.numbers.append(partitions)

    def check_limited(self) -> None:
        """Each event is answered once, as by the rule."""
        partitions: list[dict[bytes, tuple[Any, Any, int, float]]] = [{} for _ in range(PARTITIONS)]
        grown, expected = list(zip(self.grown_at, self.numbers[1:], strict=True)), {}
        for number, (key, partition, offset, amount, time) in enumerate(self.produced):
            while grown and grown[0][0] == number:
                partitions = self.moved(partitions, grown.pop(0)[1])
            mine = partitions[partition]
            mean, count, steps, last = mine.pop(key, (np.float32(0.5), np.float32(0), 0, 0.0))
            mean, count = fold(mean, count, np.float32(amount))
            mine[key] = mean, count, steps + 1, max(last, time)
            if len(mine) > self.max_keys:
                del mine[next(iter(mine))]
            expected[partition, offset] = float(str(mean - count)), steps + 1
        answers = [(a["source"]["partition"], a["source"]["offset"], a["score"], a["steps"]) for a in self.answers()]
        assert len(answers) == len(expected)
        assert {(p, o): (score, steps) for p, o, score, steps in answers} == expected

    def moved(self, old: list[dict[bytes, Any]], count: int) -> list[dict[bytes, Any]]:
        """Those that come are less recent than those that stay, and among them the time decides, then the key."""
        come: list[list[tuple[float, bytes, Any]]] = [[] for _ in range(count)]
        stay: list[dict[bytes, Any]] = [{} for _ in range(count)]
        for number, states in enumerate(old):
            for key, state in states.items():
                home = partition_of(key, count)
                if home == number:
                    stay[home][key] = state
                else:
                    come[home].append((state[3], key, state))
        found = []
        for arriving, staying in zip(come, stay, strict=True):
            room = self.max_keys - len(staying)
            taken = sorted(arriving)[-room:] if room else []
            self.left_out += len(arriving) - len(taken)
            found.append({key: state for _, key, state in taken} | staying)
        return found


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("numbers", [(7,), (6,), (4, 6), (5, 11)], ids=str)
@pytest.mark.parametrize("max_keys", [1, 3, 100])
def test_the_same_keys_have_a_state_as_by_the_rule(max_keys: int, numbers: tuple[int, ...], kill: bool) -> None:
    world = Limited(max_keys)
    world.serve(120, kill=kill)
    for partitions in numbers:
        world.grow(partitions)
        world.repartition(partitions)
        world.serve(60, kill=kill)
        world.serve(60)
    world.check_limited()


def test_how_many_have_no_place_is_said() -> None:
    world, said = Limited(1), []
    world.serve(200)
    for partitions in (4, 5, 6, 8):
        world.grow(partitions)
        said += world.repartition(partitions)
        world.serve(60)
    world.check_limited()
    lines = [line for line in said if line.endswith(" left out: state.max_keys is 1 for each partition")]
    assert sum(int(line.split()[0]) for line in lines) == world.left_out > 0


@pytest.mark.parametrize("point", ["read", "begin", "sent", "commit", "committed", "poll", "describe"])
def test_a_run_that_is_cut_is_done_again(point: str) -> None:
    """At each call of its kind: before the states count, and after that, before what the keys left is cleared away."""
    crashes = 0
    while crash_at(point, crashes):
        crashes += 1
    assert crashes > 0


def has_switched(world: Limited) -> bool:
    """Whether the states count as those of the new partitions."""
    floors = [one.value for one in world.state_logs()[0] if one.key and one.key[:1] == FLOOR and one.value]
    return unpack_floor(floors[-1]).partitions == world.numbers[-1]


def crash_at(point: str, nth: int) -> bool:
    """Whether there was such a call."""
    world = Limited(3)
    world.serve(90, kill=True)
    world.grow(5)
    if nth % 2:  # the states are of a group that was repartitioned before
        world.repartition(5)
        world.serve(40)
        world.grow(7)
    partitions = world.numbers[-1]
    with crash_at_call(world, point, nth) as crash:
        world.repartition(partitions)
    world.broker.transactions.abort_all()
    with contextlib.suppress(CannotServe):
        world.serve(40 if has_switched(world) and nth % 3 else 0)  # with what the keys have left behind
    for daemon in list(world.daemons):
        world.kill(daemon)
    world.busy.clear()
    world.repartition(partitions)
    world.serve(40)
    world.check_limited()
    return crash.happened and nth < MAX_CRASHES


def test_arrivals_have_places_behind_those_that_stay() -> None:
    arrivals = Arrivals(3, max_keys=4)
    arrivals.stay(0, 2, 17)
    arrivals.stay(0, 0, 0)
    arrivals.stay(1, 1, -5)  # it was there before the input
    arrivals.come([b"b", b"c", b"a"], np.array([0, 0, 0]), np.array([9, 9, 9]))
    arrivals.come([b"d", b"e"], np.array([1, 2]), np.array([1, 1]))
    assert arrivals.settle() == 1
    keys = [b"a", b"b", b"c", b"d", b"e"]
    assert arrivals.last_offsets(keys).tolist() == [0, -2, -1, -6, -1]
