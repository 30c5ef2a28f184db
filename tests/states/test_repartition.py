"""`lstmstream state repartition` on the broker in memory: answers as if there had never been fewer partitions.

Judged by each key's events in the order in which they were produced, wherever they are.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import CannotServe
from lstmstream.serve.clock import Clock
from lstmstream.serve.erasure_records import pack_request
from lstmstream.serve.factory import make_engine
from lstmstream.serve.state_records import key_kind, unpack_key
from lstmstream.states.repartition import Repartition
from lstmstream.states.stored import StateTopicReader
from lstmstream.transport.partitioner import partition_of
from lstmstream.transport.patient_broker import PatientBroker
from tests.serve.memory_world import INPUT, OUTPUT, PARTITIONS, STATES, FakeStep, World, card, crash_at_call, fold
from tests.states.seed_world import KEYS, SeedTransport

MORE = 7
MAX_CRASHES = 14


class Growing(World):
    """Remembers each event of a key, in the order in which they were produced."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.order: list[tuple[bytes, int, int, float]] = []  # key, partition, offset, amount
        self.erased: dict[bytes, int] = {}  # key → events that were produced before

    def events(self, count: int) -> None:
        partitions = len(self.broker.topics[INPUT].logs)
        for number in range(count):
            key = KEYS[number % len(KEYS)]
            partition = partition_of(key, partitions)
            offset = self.broker.topics[INPUT].end(partition)
            self.order.append((key, partition, offset, float(number % 50)))
            self.produce(key, b'{"amount": %d}' % (number % 50), partition)

    def serve(self, count: int = 0, *, kill: bool = False, **changes: Any) -> None:
        daemon = self.start(**changes)
        self.events(count)
        self.settle()
        (self.kill if kill else self.stop)(daemon)

    def grow(self, partitions: int = MORE) -> None:
        self.broker.grow(INPUT, partitions)

    def repartition(self, partitions: int = MORE, **changes: Any) -> list[str]:
        """What is raised leaves the member in the group until its session is over, as a kill does."""
        config, said = self.config(**changes), []
        transport = SeedTransport(self.broker, INPUT)
        clock = Clock(lambda: self.now_s, lambda: self.now_s, self._sleep)
        engine = make_engine(config, FakeStep(card()))
        run = Repartition(config, engine, transport, partitions, clock=clock, say=said.append)
        run._rows_at_once = 2
        try:
            run.run()
        finally:
            self.broker.leave(transport.member_id)
        return said

    def check_keys(self) -> None:
        """Each event is answered once, from all events of its key before it."""
        states: dict[bytes, tuple[Any, Any, int]] = {}
        expected, erased = {}, dict(self.erased)
        for number, (key, partition, offset, amount) in enumerate(self.order):
            if number >= erased.get(key, len(self.order)):
                states.pop(key, None)
                del erased[key]
            mean, count, steps = states.get(key, (np.float32(0.5), np.float32(0), 0))
            mean, count = fold(mean, count, np.float32(amount))
            states[key] = mean, count, steps + 1
            expected[partition, offset] = float(str(mean - count)), steps + 1
        answers = [(a["source"]["partition"], a["source"]["offset"], a["score"], a["steps"]) for a in self.answers()]
        assert len(answers) == len(expected)
        assert {(p, o): (score, steps) for p, o, score, steps in answers} == expected

    def homes(self) -> dict[bytes, set[int]]:
        """In which partitions of the state topic each key has a record that is no tombstone."""
        found: dict[bytes, set[int]] = {}
        for partition, log in enumerate(self.state_logs()):
            newest = {one.key: one.value for one in log if one.key and key_kind(one.key)[0] == b"\x01"}
            for record_key, value in newest.items():
                if value is not None:
                    found.setdefault(unpack_key(record_key) or b"", set()).add(partition)
        return found


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("interval", ["2s", "1h"])
def test_the_daemon_goes_on_where_it_stood(kill: bool, interval: str) -> None:
    world = Growing(state={"checkpoint_interval": interval})
    world.serve(60, kill=kill)
    world.grow()
    (said,) = world.repartition()
    assert "states have moved: the daemon goes on with 7 partitions" in said
    assert world.homes() == {key: {partition_of(key, MORE)} for key in KEYS}
    world.serve(60, kill=kill)
    world.serve(60)
    world.check_keys()


def test_twice() -> None:
    world = Growing()
    world.serve(40)
    for partitions in (5, 11):
        world.grow(partitions)
        world.repartition(partitions)
        world.serve(40)
    world.check_keys()
    assert world.homes() == {key: {partition_of(key, 11)} for key in KEYS}


def test_what_keys_have_left_behind_is_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that was killed before it had cleared it away; nor is it exported."""
    world = Growing()
    world.serve(60)
    world.grow()
    monkeypatch.setattr(Repartition, "_clear", lambda _self: None)
    world.repartition()
    assert any(len(homes) > 1 for homes in world.homes().values())
    reader = StateTopicReader(world.config(), card(), PatientBroker(SeedTransport(world.broker, INPUT)))
    found = [(key, one.partition) for one in reader.read() for key in one.slab.index.keys_at(one.rows)]
    homes = [(key, partition_of(key, MORE)) for key in sorted(KEYS)]
    assert sorted(found) == homes
    daemon = world.start()
    world.settle()
    assert sorted((key, number) for number, slab in daemon.states.slabs.items() for key in slab.index) == homes


def test_the_daemon_names_the_command() -> None:
    world = Growing()
    world.serve(20)
    world.grow()
    world.broker.grow(STATES, MORE)
    world.start()
    with pytest.raises(CannotServe, match=r"lstmstream state repartition CONFIG --partitions 7"):
        world.settle()


def test_alerts_stay_held_back() -> None:
    world = Growing(output={"topic": OUTPUT, "alerts_topic": "alerts", "threshold": -1e9}, alerts={"cooldown": "30d"})
    world.serve(40)
    world.grow()
    world.repartition()
    world.serve(40)
    held_back = [answer.get("held_back") for answer in world.answers()]
    assert held_back.count(None) == len(KEYS)


def test_a_key_whose_erasure_was_asked_for_does_not_move_on() -> None:
    world = Growing()
    world.serve(40)
    key = next(key for key in KEYS if partition_of(key, MORE) >= PARTITIONS)
    for partition in range(PARTITIONS):
        world.broker.append(STATES, partition, *pack_request([key]))
    world.erased[key] = len(world.order)
    world.grow()
    world.repartition()
    world.serve(40)
    world.check_keys()


def refused(world: Growing, message: str, partitions: int = MORE) -> None:
    before = [list(log) for log in world.state_logs()]
    with pytest.raises(CannotServe, match=message):
        world.repartition(partitions)
    assert [list(log) for log in world.state_logs()][: len(before)] == before


def test_events_that_nobody_has_answered() -> None:
    world = Growing()
    world.serve(40)
    world.events(1)
    world.grow()
    refused(world, r"events that are not answered \(in\[\d\] has events from offset \d+ on\)")


def test_a_number_of_partitions_that_the_input_does_not_have() -> None:
    world = Growing()
    world.serve(40)
    refused(world, r"--partitions 7: topic 'in' has 3 partitions\. First give the topic")


def test_a_member_that_is_still_there() -> None:
    world = Growing()
    world.serve(40)
    world.start()
    world.grow()
    refused(world, "has other members: lstmstream-t at here")


def test_keys_that_are_not_where_the_partitioner_puts_them() -> None:
    world = Growing()
    world.serve(40)
    wrong = next(p for p in range(PARTITIONS) if p != partition_of(b"x", PARTITIONS))
    world.produce(b"x", b'{"amount": 1}', wrong)
    world.serve()
    world.grow()
    with pytest.raises(CannotServe, match=r"1 key has states there, and murmur2 of the key puts none of them there"):
        world.repartition()


def test_a_new_partition_that_has_events_already() -> None:
    """Of producers that went on too early: they are answered, after what the keys had before."""
    world = Growing()
    world.serve(40)
    world.grow()
    new = [key for key in KEYS if partition_of(key, MORE) >= PARTITIONS]
    for key in new:
        partition = partition_of(key, MORE)
        world.order.append((key, partition, world.broker.topics[INPUT].end(partition), 3.0))
        world.produce(key, b'{"amount": 3}', partition)
    assert new
    world.repartition()
    world.serve(40)
    world.check_keys()


def test_a_rebuild_from_the_input_is_refused_afterwards() -> None:
    world = Growing()
    world.serve(40)
    world.grow()
    world.repartition()
    world.serve(20)
    log = world.broker.topics[STATES].logs[PARTITIONS]
    at = max(i for i, one in enumerate(log) if one.key and key_kind(one.key)[0] == b"\x01" and one.value)
    log[at] = log[at]._replace(value=b"x" + (log[at].value or b"")[1:])
    world.start()
    with pytest.raises(CannotServe, match=r"`lstmstream state import`, `build` or `repartition` has written"):
        world.settle()


@pytest.mark.parametrize("point", ["read", "begin", "sent", "commit", "committed", "poll", "describe"])
def test_a_run_that_is_cut_is_done_again(point: str) -> None:
    """At each call of its kind. Between the two the daemon refuses to start, or goes on with all states."""
    crashes = 0
    while crash_at(point, crashes):
        crashes += 1
    assert crashes > 0


def crash_at(point: str, nth: int) -> bool:
    """Whether there was such a call."""
    world = Growing(state={"checkpoint_interval": "1h"})
    world.serve(40, kill=True)
    world.grow(5)
    if nth % 2:  # the states are of a group that was repartitioned before
        world.repartition(5)
        world.serve(20)
        world.grow()
    partitions = MORE if nth % 2 else 5
    with crash_at_call(world, point, nth) as crash:
        world.repartition(partitions)
    world.broker.transactions.abort_all()
    daemons = len(world.daemons)
    with contextlib.suppress(CannotServe):
        world.serve()
    for daemon in world.daemons[daemons:]:
        world.kill(daemon)
    world.busy.clear()
    world.repartition(partitions)
    world.serve(40)
    world.check_keys()
    assert world.homes() == {key: {partition_of(key, partitions)} for key in KEYS}
    return crash.happened and nth < MAX_CRASHES


@pytest.mark.parametrize("point", ["read", "begin", "sent", "commit", "committed", "poll", "describe", "bounds"])
def test_a_broker_that_fails_meanwhile(point: str) -> None:
    world = Growing()
    world.serve(40)
    world.grow()
    world.faults += [point] * 3
    world.repartition()
    world.serve(40)
    world.check_keys()


@pytest.mark.parametrize("repartitioned", [False, True])
def test_keys_that_others_have_put_elsewhere_stay_where_they_are_in_use(repartitioned: bool) -> None:
    """By a producer with another partitioner, or with a key field that is not what the topic is partitioned by."""
    world = Growing()
    world.serve(40)
    if repartitioned:
        world.grow()
        world.repartition()
    partitions = MORE if repartitioned else PARTITIONS
    elsewhere = {
        b"x%d" % number: (partition_of(b"x%d" % number, PARTITIONS) + 1) % PARTITIONS
        for number in range(30)
        if partition_of(b"x%d" % number, partitions) != (partition_of(b"x%d" % number, PARTITIONS) + 1) % PARTITIONS
    }
    assert elsewhere
    for key, partition in elsewhere.items():
        world.produce(key, b'{"amount": 1}', partition)
    world.serve()
    before = world.homes()
    assert {key: before[key] for key in elsewhere} == {key: {partition} for key, partition in elsewhere.items()}
    assert world.repartition(partitions) == [f"the states are those of {partitions} partitions already"]
    assert world.homes() == before


def test_a_key_that_a_producer_goes_on_to_put_where_it_was_starts_over_there() -> None:
    """What it has left there does not count, whether it is cleared away or not; what comes of it from now on does."""
    world = Growing()
    world.serve(40)
    world.grow()
    world.repartition()
    key = next(key for key in KEYS if partition_of(key, PARTITIONS) != partition_of(key, MORE))
    where = partition_of(key, PARTITIONS)
    end = world.broker.topics[INPUT].end(where)
    for _ in range(3):
        world.produce(key, b'{"amount": 1}', where)
        world.serve()
    answers = {(one["source"]["partition"], one["source"]["offset"]): one["steps"] for one in world.answers()}
    assert [answers[where, end + number] for number in range(3)] == [1, 2, 3]


# -- input.max_lateness

LATENESS_MS, TTL_MS = 5_000, 20_000
FRESH = np.float32(0.5), np.float32(0), 0


class Timed(Growing):
    """Events with times of their own."""

    def __init__(self) -> None:
        state = {"ttl": f"{TTL_MS}ms", "checkpoint_interval": "2s"}
        super().__init__(input={"topic": INPUT, "max_lateness": f"{LATENESS_MS}ms"}, state=state)
        self.times_ms: list[int] = []  # of `order`
        self.grown: dict[int, tuple[int, int]] = {}  # events before → partitions before and afterwards

    def timed(self, count: int, ahead_ms: int) -> None:
        """Some are late. Each partition is ahead of the one before by so much."""
        for _ in range(count):
            number = len(self.order)
            key, partitions = KEYS[number * 3 % len(KEYS)], len(self.broker.topics[INPUT].logs)
            partition = partition_of(key, partitions)
            at_ms = 1_700_000_000_000 + 1_000 * number - 3_000 * (number % 4) + ahead_ms * (partition % PARTITIONS)
            self.order.append((key, partition, self.broker.topics[INPUT].end(partition), float(number % 50)))
            self.times_ms.append(at_ms)
            self.broker.append(INPUT, partition, key, b'{"amount": %d}' % (number % 50), at_ms, [])

    def serve_timed(self, count: int, ahead_ms: int, *, kill: bool) -> None:
        daemon = self.start()
        self.timed(count, ahead_ms)
        self.settle()
        (self.kill if kill else self.stop)(daemon)

    def move(self, partitions: int) -> None:
        self.grown[len(self.order)] = len(self.broker.topics[INPUT].logs), partitions
        self.grow(partitions)
        self.repartition(partitions)

    def check_times(self) -> int:
        """Each event is answered, or too late, by the rule; how many are too late."""
        newest_ms, late = [-1] * PARTITIONS, 0
        states: dict[bytes, tuple[Any, Any, int, int]] = {}
        expected = {}
        for number, (key, partition, offset, amount) in enumerate(self.order):
            if number in self.grown:
                before, after = self.grown[number]
                homes = {(some % before, some % after) for some in range(before * after)}  # of all hashes
                newest_ms = [max(newest_ms[old] for old, new in homes if new == one) for one in range(after)]
            at_ms, newest = self.times_ms[number], newest_ms[partition]
            newest_ms[partition] = max(newest, at_ms)
            if at_ms < newest - LATENESS_MS:
                late += 1
                continue
            mean, count, steps, last_ms = states.get(key, (*FRESH, at_ms))
            if at_ms - last_ms > TTL_MS:
                mean, count, steps = FRESH
            mean, count = fold(mean, count, np.float32(amount))
            states[key] = mean, count, steps + 1, max(at_ms, last_ms)
            expected[partition, offset] = float(str(mean - count)), steps + 1
        found = {(a["source"]["partition"], a["source"]["offset"]): (a["score"], a["steps"]) for a in self.answers()}
        assert found == expected
        return late


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("numbers", [(7,), (6,), (4, 6)], ids=str)
def test_the_stream_time_goes_on(numbers: tuple[int, ...], kill: bool) -> None:
    """A partition begins with the greatest one of those that its keys may have come from."""
    world = Timed()
    world.serve_timed(60, 20_000, kill=kill)
    late = world.check_times()
    for number in numbers:
        world.move(number)
        world.serve_timed(30, 0, kill=kill)
    world.serve_timed(60, 0, kill=kill)
    assert world.check_times() > late + 10


def test_the_stream_time_of_partitions_that_stay_the_newest_is_their_own() -> None:
    world = Timed()
    world.serve_timed(30, 20_000, kill=False)
    world.move(6)
    floors = [floor for _, floor in sorted(world._floors().items())]
    newest_ms = [max(t for t, one in zip(world.times_ms, world.order, strict=True) if one[1] == p) for p in range(3)]
    assert [floor.stream_time_ms for floor in floors] == newest_ms * 2
    assert [bool(floor.outside_times) for floor in floors] == [False] * 3 + [True] * 3
