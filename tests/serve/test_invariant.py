"""Any schedule of work and faults, and after every action: what counts as written is written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lstmstream.transport.memory import AT_LEAST_ONCE_POINTS, FAULT_POINTS
from tests.serve.memory_world import PARTITIONS, STATES, World

MAX_DAEMONS = 3
KEYS = st.sampled_from([b"a", b"b", b"c", b"", b"\x00floor", b"\x01a", b"\xff\xfe", None])
VALUES = st.integers(-1000, 1000).map(lambda number: b'{"amount": %d}' % number) | st.just(b"no")
EVENTS = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=12)
DAEMON = st.integers(0, MAX_DAEMONS - 1)


class Service(RuleBasedStateMachine):
    """Daemons of one group that come, go, stall and fail, while events come in."""

    delivery = "exactly_once"
    sound = False  # whether the world was right after the last action

    @initialize(interval=st.sampled_from(["1s", "5s", "20s"]), max_events=st.sampled_from([1, 3, 10_000]))
    def begin(self, interval: str, max_events: int) -> None:
        """Batches are committed in the background where they have `max_events`."""
        state = {"checkpoint_interval": interval}
        self.world = World(state=state, delivery=self.delivery, batch={"max_events": max_events})
        self.world.start()
        self.produce([(b"k%d" % (i % 4), b'{"amount": %d}' % i) for i in range(20)])
        self.world.settle()

    def chosen(self, number: int) -> Any:
        return self.world.daemons[number % len(self.world.daemons)]

    def some(self) -> bool:
        return bool(self.world.daemons)

    @rule(events=EVENTS)
    def produce(self, events: list[tuple[bytes | None, bytes]]) -> None:
        for key, value in events:
            self.world.produce(key, value)

    @precondition(some)
    @rule(number=DAEMON)
    def step(self, number: int) -> None:
        self.world.step(self.chosen(number))

    @precondition(some)
    @rule(rounds=st.integers(1, 12))
    def step_all(self, rounds: int) -> None:
        for _ in range(rounds):
            for daemon in list(self.world.daemons):
                self.world.step(daemon)

    @precondition(some)
    @rule(number=DAEMON, seconds=st.integers(1, 25))
    def go_idle(self, number: int, seconds: int) -> None:
        """All is answered and time goes by, so that what is written next are states alone."""
        self.world.settle()
        self.world.now_s += seconds
        self.world.step(self.chosen(number))

    @precondition(some)
    @rule(number=DAEMON)
    def kill(self, number: int) -> None:
        self.world.kill(self.chosen(number))

    @precondition(some)
    @rule(number=DAEMON)
    def stop(self, number: int) -> None:
        assert self.world.stop(self.chosen(number)) in (0, 1)

    @precondition(some)
    @rule(number=DAEMON)
    def expire(self, number: int) -> None:
        self.world.expire(self.chosen(number))

    @precondition(lambda self: len(self.world.daemons) < MAX_DAEMONS)
    @rule()
    def start(self) -> None:
        self.world.start()

    @precondition(some)
    @rule(number=DAEMON, partition=st.integers(0, PARTITIONS - 1), records=st.integers(1, 30))
    def lose_seek(self, number: int, partition: int, records: int) -> None:
        """Its client reads so many records once more, also of a transaction that is open."""
        daemon = self.chosen(number)
        if partition in self.world.serving(daemon) & self.world.assigned(daemon):
            self.world.lose_seek(daemon, partition, back=records)

    @rule()
    def compact(self) -> None:
        self.world.broker.compact(STATES)

    @rule(seconds=st.integers(1, 25))
    def wait(self, seconds: int) -> None:
        self.world.now_s += seconds

    @rule(points=st.lists(st.sampled_from(FAULT_POINTS), min_size=1, max_size=3))
    def fail(self, points: list[str]) -> None:
        self.world.faults += points

    @rule(point=st.sampled_from(AT_LEAST_ONCE_POINTS), late=st.booleans(), stalled=st.booleans(), events=EVENTS)
    def take_over_within(self, point: str, late: bool, stalled: bool, events: list[tuple[bytes | None, bytes]]) -> None:
        """At this point of the next commit its author stalls, another member comes, and answers what it can.

        `late`: the transaction is open for so long that the coordinator ends it. `stalled`: for so long that the group
        drops the member, and that its successors write states of more events.
        """

        def act() -> None:
            if late:
                self.world.abort_transactions()
            if stalled:
                self.world.expire(self.world.busy[-1])
                self.produce(events)
            if len(self.world.daemons) < MAX_DAEMONS:
                self.world.start()
            others = [daemon for daemon in self.world.daemons if daemon not in self.world.busy]
            for daemon in others * 15:
                self.world.step(daemon)
                self.world.now_s += 1 if stalled else 0

        self.world.actions.append((point, act))

    @precondition(some)
    @rule(
        point=st.sampled_from(AT_LEAST_ONCE_POINTS), late=st.booleans(), number=DAEMON, keys=st.lists(KEYS, min_size=1)
    )
    def stall_within_a_checkpoint(self, point: str, late: bool, number: int, keys: list[bytes | None]) -> None:
        """The same where states are due, of keys that have events before and after the stall."""
        events = [(key, b'{"amount": 5}') for key in keys]
        self.produce(events)
        self.world.settle()
        self.world.now_s += 25
        self.take_over_within(point, late, True, events)
        self.world.step(self.chosen(number))

    @invariant()
    def what_counts_as_written_is_written(self) -> None:
        if hasattr(self, "world"):
            self.sound = False
            self.world.check_states()
            self.sound = True

    def teardown(self) -> None:
        if self.sound:  # else what went wrong is said already
            self.world.faults.clear()
            self.world.actions.clear()
            self.world.start()
            self.world.settle()
            self.world.check()


TestService = Service.TestCase
TestService.pytestmark = [pytest.mark.timeout(900)]  # for making a failure small; a run without one takes 15 s
TestService.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
