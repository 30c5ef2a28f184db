"""Any schedule of the real loop, with transactions of every kind in doubt, and what must hold after each action.

LSTMSTREAM_SCHEDULES is how many schedules each machine runs, others each time: thousands before a release. Without it,
as in `make test`, they are 150, the same each time.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lstmstream.serve.abandoned import ATTEMPTS
from lstmstream.serve.daemon import Daemon
from lstmstream.transport.memory import AT_LEAST_ONCE_POINTS, FAULT_POINTS
from tests.serve.helpers import DATA, onnx_step
from tests.serve.memory_world import PARTITIONS, STATES, Life
from tests.serve.schedule_world import FATES, KINDS, OVERLAPS, Killed, ScheduleWorld
from tests.verify.world import VerifyWorld

SCHEDULES = int(os.environ.get("LSTMSTREAM_SCHEDULES", "150"))
MAX_DAEMONS = 3
ARRIVALS = ("recovered", "committed_offset", "poll", "begin", "sent", "commit", "read", "resume")
KEYS = st.sampled_from([b"a", b"b", b"c", b"", b"\x00floor", b"\x01a", b"\xff\xfe", None])
VALUES = st.integers(-1000, 1000).map(lambda number: b'{"amount": %d}' % number) | st.just(b"no")
EVENTS = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=9)
DAEMON = st.integers(0, MAX_DAEMONS - 1)
STRIKE = st.fixed_dictionaries(
    {"fate": st.sampled_from(FATES), "arrives_at": st.sampled_from(ARRIVALS), "take_over": st.booleans()}
)
POINTS = st.lists(st.sampled_from(FAULT_POINTS), max_size=2)


# -- each kind of transaction with each fate


def fill(world: ScheduleWorld, count: int, partition: int = 0) -> None:
    for number in range(count):
        world.produce(b"k%d" % (number % 3), b'{"amount": %d}' % (number * 37 % 101), partition)


def run_until(world: ScheduleWorld, daemon: Daemon) -> None:
    """Until the strike has struck, and until its outcome is known."""
    for _ in range(60):
        if daemon not in world.daemons or (world.struck and world.phase(daemon) == "running"):
            break
        world.step(daemon)
        world.check_all()


def lead_to(world: ScheduleWorld, kind: str, fate: str, arrives_at: str) -> None:
    """Have a transaction of this kind struck."""
    daemon = world.start()
    if kind == "first floor":
        world.strike(fate, arrives_at=arrives_at)
        run_until(world, daemon)
        return
    world.settle()
    fill(world, 12)
    world.settle()
    if kind == "batch":
        fill(world, 9)
        world.now_s += 10
        world.strike(fate, arrives_at=arrives_at)
        run_until(world, daemon)
    elif kind == "idle checkpoint":
        world.now_s += 10
        world.strike(fate, arrives_at=arrives_at)
        run_until(world, daemon)
    else:
        world.strike(fate, arrives_at=arrives_at)
        world.stop(daemon)


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_a_transaction_of_any_kind_with_any_fate(overlap: str, kind: str, fate: str) -> None:
    """It counts if it went through, and is done again if it did not, whoever learns of it and when."""
    for delivery in ("exactly_once", "at_least_once"):
        for arrives_at in ARRIVALS if fate in ("too late", "twice") else ARRIVALS[:1]:
            for visible_after_s in (0.0, 0.3):
                world = ScheduleWorld(overlap=overlap, delivery=delivery, batch={"max_events": 3})
                world.broker.transactions.visible_after_s = visible_after_s
                lead_to(world, kind, fate, arrives_at)
                if not world.struck:
                    assert (delivery, kind, fate) in PLAIN, "nothing was struck"
                assert set(world.struck) <= {(kind, fate)}
                world.check_all()
                end(world)


# With at_least_once a batch without due states commits its offsets outside of any transaction.
PLAIN = {("at_least_once", "batch", "unsent")}


def end(world: ScheduleWorld) -> None:
    """Faults end, a daemon comes, and all is right."""
    for daemon in list(world.daemons):
        world.kill(daemon)
    world.now_s += 30
    fill(world, 4)
    world.finish()


def test_a_restore_waits_for_what_a_dead_member_has_left_open_in_the_state_topic() -> None:
    """Else it begins where it should go on, and its successor, which reads no further than it, finds no states.

    As where the broker does not say who has transactions open, so that none is ended before its time.
    """
    world = ScheduleWorld(overlap="none")
    world.faults.extend(["abandoned"] * 2 * ATTEMPTS)

    def die() -> None:
        world.kill(world.busy[-1])
        raise Killed

    world.actions.append(("sent", die))
    first = world.start()
    while first in world.daemons:
        world.step(first)
    (open_transaction,) = world.broker.transactions.open.values()
    (at,) = {partition for topic, partition, _ in open_transaction.records if topic == STATES}
    second = world.start()
    for _ in range(5):  # a slice of a restore takes up to a second
        world.step(second)
    assert world.broker.transactions.open
    assert world.serving(second) == set(range(PARTITIONS)) - {at}
    world.kill(second)
    world.start()
    fill(world, 4, at)
    world.settle()
    world.check()


# -- any schedule


class Schedules(RuleBasedStateMachine):
    """Daemons of one group that come, go, stall and fail, while events come in and transactions are struck."""

    delivery = "exactly_once"
    sound = False  # whether the world was right after the last action

    @initialize(
        interval=st.sampled_from(["1s", "5s", "20s"]),
        max_events=st.sampled_from([1, 3, 10_000]),
        overlap=st.sampled_from(OVERLAPS),
        lingering=st.booleans(),
        settled=st.booleans(),
        first=st.none() | STRIKE,
    )
    def begin(
        self,
        interval: str,
        max_events: int,
        overlap: str,
        lingering: bool,
        settled: bool,
        first: dict[str, Any] | None,
    ) -> None:
        """Full batches are committed in the background. `first`: a strike at the first floor."""
        state, batch = {"checkpoint_interval": interval}, {"max_events": max_events}
        named = {"state": state, "delivery": self.delivery, "batch": batch}
        self.world = self.make_world(overlap=overlap, lingering=lingering, **named)
        self.produce([(b"k%d" % (i % 4), b'{"amount": %d}' % i) for i in range(12)])
        self.world.start()
        if first is not None:
            self.world.strike(**first)
        if settled:
            self.world.settle()

    def make_world(self, **named: Any) -> ScheduleWorld:
        return ScheduleWorld(**named)

    def chosen(self, number: int) -> Any:
        return self.world.daemons[number % len(self.world.daemons)]

    def some(self) -> bool:
        return bool(self.world.daemons)

    @rule(events=EVENTS)
    def produce(self, events: list[tuple[bytes | None, bytes]]) -> None:
        for key, value in events:
            self.world.produce(key, value)

    @precondition(some)
    @rule(number=DAEMON, rounds=st.integers(1, 3))
    def step(self, number: int, rounds: int) -> None:
        for _ in range(rounds):
            if self.world.daemons:
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
        if self.world.daemons:
            self.world.step(self.chosen(number))

    @precondition(some)
    @rule(number=DAEMON)
    def kill(self, number: int) -> None:
        self.world.kill(self.chosen(number))

    @precondition(some)
    @rule(number=DAEMON)
    def stop(self, number: int) -> None:
        assert self.world.stop(self.chosen(number)) in (0, 1, -9)

    @precondition(some)
    @rule(number=DAEMON)
    def expire(self, number: int) -> None:
        self.world.expire(self.chosen(number))

    @precondition(some)
    @rule(number=DAEMON)
    def rejoin(self, number: int) -> None:
        self.world.rejoin(self.chosen(number))

    @precondition(some)
    @rule(number=DAEMON, partition=st.integers(0, PARTITIONS - 1), records=st.integers(1, 30))
    def lose_seek(self, number: int, partition: int, records: int) -> None:
        """Its client reads so many records once more, also of a transaction that is open."""
        daemon = self.chosen(number)
        if partition in self.world.serving(daemon) & self.world.assigned(daemon):
            self.world.lose_seek(daemon, partition, back=records)

    @rule(partition=st.integers(0, PARTITIONS - 1), records=st.integers(1, 30))
    def mislead(self, partition: int, records: int) -> None:
        """The next client that is told where to read there goes on so many records further."""
        self.world.broker.misled[partition] = records

    @precondition(lambda self: len(self.world.daemons) < MAX_DAEMONS)
    @rule()
    def start(self) -> None:
        self.world.start()

    @rule()
    def compact(self) -> None:
        self.world.broker.compact(STATES)

    @rule(seconds=st.integers(1, 25))
    def wait(self, seconds: int) -> None:
        self.world.now_s += seconds

    @rule(points=st.lists(st.sampled_from(FAULT_POINTS), min_size=1, max_size=3))
    def fail(self, points: list[str]) -> None:
        self.world.faults += points

    @rule(strike=STRIKE, points=POINTS)
    def strike(self, strike: dict[str, Any], points: list[str]) -> None:
        """The next transaction, and perhaps what its author does about it."""
        self.world.strike(**strike)
        self.world.faults += points

    @precondition(some)
    @rule(number=DAEMON, strike=STRIKE, points=POINTS, key=KEYS)
    def strike_a_checkpoint(self, number: int, strike: dict[str, Any], points: list[str], key: bytes | None) -> None:
        """The same where states alone are due."""
        self.produce([(key, b'{"amount": 5}')] * 6)
        self.world.settle()
        self.world.now_s += 25
        self.strike(strike, points)
        self.step(number, 2)

    @precondition(some)
    @rule(number=DAEMON, strike=STRIKE, points=POINTS, rounds=st.integers(0, 2), events=EVENTS)
    def strike_a_stop(
        self,
        number: int,
        strike: dict[str, Any],
        points: list[str],
        rounds: int,
        events: list[tuple[bytes | None, bytes]],
    ) -> None:
        """The same where a daemon stops, perhaps in the middle of its work."""
        self.produce(events)
        self.step_all(rounds)
        if self.world.daemons:
            self.strike(strike, points)
            self.stop(number)

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
            self.world.let_others_work(round_s=1.0 if stalled else 0.0)

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
        self.step(number, 1)

    @rule(number=st.integers(0, 3), again=st.booleans())
    def arrive(self, number: int, again: bool) -> None:
        self.world.arrive(number, again=again)

    @rule(seconds=st.sampled_from([0.0, 0.05, 1.0]))
    def decide_slowly(self, seconds: float) -> None:
        """What is committed becomes visible later."""
        self.world.broker.transactions.visible_after_s = seconds

    @invariant()
    def all_is_right(self) -> None:
        if hasattr(self, "world"):
            self.sound = False
            self.world.check_all()
            self.sound = True

    def teardown(self) -> None:
        if self.sound:  # else what went wrong is said already
            self.world.finish()


class AtLeastOnce(Schedules):
    """The same where predictions are written outside of transactions."""

    delivery = "at_least_once"


class VerifiedWorld(ScheduleWorld, VerifyWorld):
    """Daemons with a real model. `lstmstream verify` says whether they are right, with code of its own."""

    def make(self, step: Any = None, **changes: Any) -> Life:
        return super().make(step or onnx_step("small"), **changes)

    def check_all(self) -> None:
        self.check_states()
        self.check_offsets()

    def check(self) -> None:
        faults, self.broker.fault = self.broker.fault, lambda _point: None  # those are for daemons
        done = self.verify()
        self.broker.fault = faults
        assert done.exit_code == 0, [str(finding) for finding in done.comparison.findings.kept] or done.summary()


class Verified(Schedules):
    """The same, judged by `lstmstream verify`."""

    def make_world(self, **named: Any) -> ScheduleWorld:
        return VerifiedWorld(path=DATA / "small.onnx", **named)

    @rule()
    def verify(self) -> None:
        """At any moment: what is not answered yet is not before the group's offset."""
        broker = self.world.broker
        if any(broker.offsets.values()) and not broker.transactions.open:
            self.world.check()


class VerifiedAtLeastOnce(Verified):
    """The same where predictions may be repeated."""

    delivery = "at_least_once"


def schedule_settings(share: int) -> settings:
    """Of a machine that runs one in `share` of all schedules."""
    return settings(
        max_examples=max(1, SCHEDULES // share),
        stateful_step_count=40,
        deadline=None,
        derandomize="LSTMSTREAM_SCHEDULES" not in os.environ,
    )


TestExactlyOnce = Schedules.TestCase
TestAtLeastOnce = AtLeastOnce.TestCase
TestVerified = Verified.TestCase
TestVerifiedAtLeastOnce = VerifiedAtLeastOnce.TestCase
for case, share in ((TestExactlyOnce, 1), (TestAtLeastOnce, 1), (TestVerified, 5), (TestVerifiedAtLeastOnce, 10)):
    case.pytestmark = [pytest.mark.timeout(900)]
    case.settings = schedule_settings(share)
