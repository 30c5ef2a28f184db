"""A restore whose reads fail is tried again by itself: partitions that are served, and other restores, go on."""

from __future__ import annotations

from collections import Counter

import pytest

from lstmstream.errors import TryAgain
from lstmstream.records import RecordBatch
from lstmstream.serve import restores
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.restore import RETRY_S
from lstmstream.serve.restores import FAILURES_BEFORE_RECOVERY
from lstmstream.transport.memory import MemoryReader, MemoryTransport
from tests.serve.memory_world import INPUT, PARTITIONS, STATES, World

KEYS = [b"k%d" % i for i in range(30)]


class Failing(World):
    """Reads of some partitions fail, as often as wanted; all readers and calls are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, topic: str = STATES) -> None:
        super().__init__()
        self.topic = topic  # in which reads fail
        self.broken: set[int] = set()
        self.failures_s: list[float] = []  # when a read failed
        self.opened: Counter[tuple[str, int]] = Counter()
        self.calls: Counter[str] = Counter()
        self.watch = lambda point: self.calls.update([point])
        read, open_reader = MemoryReader.next, MemoryTransport.open_reader

        def fails(reader: MemoryReader, timeout_s: float) -> RecordBatch:
            if reader._topic == self.topic and reader._partition in self.broken:
                self.failures_s.append(self.now_s)
                raise TryAgain("the partition has no leader")
            return read(reader, timeout_s)

        def counts(transport: MemoryTransport, topic: str, partition: int, start: int, end: int) -> MemoryReader:
            if topic == INPUT or start == 0:  # a look for requests to erase keys begins behind what a restore has read
                self.opened[topic, partition] += 1
            return open_reader(transport, topic, partition, start, end)

        monkeypatch.setattr(MemoryReader, "next", fails)
        monkeypatch.setattr(MemoryTransport, "open_reader", counts)

    def events(self, *partitions: int) -> None:
        """One event of each key in each of these partitions."""
        for partition in partitions:
            for key in KEYS:
                self.produce(key, b'{"amount": 3}', partition)

    def restart(self, *broken: int) -> Daemon:
        """A daemon that has to restore every partition, from states and from the input."""
        before = self.start()
        self.events(*range(PARTITIONS))
        self.settle()
        for _ in range(4):
            self.now_s += 10  # states are due
            self.events(*range(PARTITIONS))
            self.settle()
        self.kill(before)
        assert set(self.floors()) == set(range(PARTITIONS))
        assert self.state_records()
        self.broken = set(broken)
        self.opened.clear()
        self.calls.clear()
        return self.start()

    def read_slowly(self) -> None:
        """A restore is given time for one read or so in each round."""

        def watch(point: str) -> None:
            self.calls.update([point])
            self.now_s += 0.4 if point == "read" else 0.0

        self.watch = watch

    def step_until_failed(self, daemon: Daemon, times: int) -> set[str]:
        """Go round until a read has failed so often; the phases seen."""
        phases = set()
        for _ in range(1_000):
            if len(self.failures_s) >= times:
                return phases
            self.step(daemon)
            phases.add(self.phase(daemon))
        raise AssertionError(f"only {len(self.failures_s)} reads have failed")

    def lags(self, *partitions: int) -> int:
        """Events of these partitions that are not answered."""
        ends = self.broker.topics[INPUT]
        return sum(ends.end(p) - self.broker.offsets[p] for p in partitions)


@pytest.mark.parametrize("topic", [STATES, INPUT])
def test_one_that_fails_does_not_disturb_the_partitions_that_are_served(
    monkeypatch: pytest.MonkeyPatch, topic: str
) -> None:
    world = Failing(monkeypatch, topic)
    daemon = world.restart(0)
    phases = world.step_until_failed(daemon, 1)
    for failures in range(2, FAILURES_BEFORE_RECOVERY):
        world.events(1, 2)
        phases |= world.step_until_failed(daemon, failures)
        assert world.serving(daemon) == {1, 2}
        assert world.lags(1, 2) == 0, "they are answered meanwhile"
    pauses = [later - earlier for earlier, later in zip(world.failures_s, world.failures_s[1:], strict=False)]
    assert min(pauses) >= RETRY_S
    assert (world.calls["recover"], phases) == (0, {"restoring"}), "no producer is made again for a read"
    world.broken.clear()
    world.settle()
    world.check()
    assert world.calls["recover"] == 0
    assert set(world.opened.values()) == {1}, "and what was read is not read again"


def test_every_few_failures_the_transport_recovers_and_what_is_served_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Failing(monkeypatch)
    daemon = world.restart(0)
    for recoveries in (1, 2):
        world.step_until_failed(daemon, recoveries * FAILURES_BEFORE_RECOVERY - 1)
        assert world.calls["recover"] == recoveries - 1
        world.step_until_failed(daemon, recoveries * FAILURES_BEFORE_RECOVERY)
        assert world.calls["recover"] == recoveries
        assert world.serving(daemon) == {1, 2}
        world.events(1, 2)
    world.broken.clear()
    world.settle()
    world.check()
    assert set(world.opened.values()) == {1}, "no partition is restored twice"
    assert world.metric(daemon, "transactions_total", outcome="aborted") == 0


def test_restores_beside_one_that_fails_go_on_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when the transport recovers: nothing was committed meanwhile, so nothing is read twice."""
    world = Failing(monkeypatch)
    daemon = world.restart(0)
    world.read_slowly()
    world.step_until_failed(daemon, FAILURES_BEFORE_RECOVERY)
    assert world.calls["recover"] == 1
    assert world.serving(daemon) == set(), "they are in the middle of it"
    assert {partition for _, partition in world.opened} == {0, 1, 2}
    world.broken.clear()
    world.settle()
    world.check()
    assert set(world.opened.values()) == {1}


def test_a_restore_whose_offset_was_moved_starts_over_when_the_transport_has_recovered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Failing(monkeypatch)
    daemon = world.restart(0)
    world.read_slowly()
    world.step_until_failed(daemon, 2)
    world.broker.offsets[1] -= 2
    world.step_until_failed(daemon, FAILURES_BEFORE_RECOVERY)
    assert world.calls["recover"] == 1
    world.broken.clear()
    world.settle()
    assert {partition: world.opened[STATES, partition] for partition in range(PARTITIONS)} == {0: 1, 1: 2, 2: 1}
    assert not world.unanswered()
    answers = [(a["source"]["partition"], a["source"]["offset"], a["score"], a["steps"]) for a in world.answers()]
    assert sorted(set(answers)) == world.expected()
    assert len(answers) == len(set(answers)) + 2, "the two events before the moved offset were answered again"


def test_one_that_fails_does_not_keep_the_place_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more partitions than are restored at once."""
    monkeypatch.setattr(restores, "MAX_PARALLEL", 1)
    world = Failing(monkeypatch)
    daemon = world.restart(0)
    world.step_until_failed(daemon, 2)
    assert world.serving(daemon) == {1, 2}
    assert world.calls["recover"] == 0
    world.broken.clear()
    world.settle()
    world.check()


def test_several_that_fail_are_counted_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Failing(monkeypatch)
    daemon = world.restart(0, 1)
    world.step_until_failed(daemon, 2 * (FAILURES_BEFORE_RECOVERY - 1))
    assert world.calls["recover"] == 0
    assert world.serving(daemon) == {2}
    world.broken.clear()
    world.settle()
    world.check()
    assert world.calls["recover"] == 0


@pytest.mark.parametrize("point", ["begin", "commit", "committed"])
def test_a_beginning_whose_commit_fails_needs_a_new_producer_at_once(point: str) -> None:
    world = World()
    calls: Counter[str] = Counter()
    world.watch = lambda point: calls.update([point])
    world.faults.append(point)
    daemon = world.start()
    while world.faults:
        world.step(daemon)
    assert calls["recover"] == 1
    world.produce(b"a", b'{"amount": 3}')
    world.settle()
    world.check()
    assert calls["recover"] == 1
    assert world.metric(daemon, "transactions_total", outcome="aborted") == 0, "it had no batch"
