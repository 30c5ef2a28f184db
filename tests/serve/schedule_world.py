"""The memory world for schedules: commits at any moment beside the loop, transactions in doubt, and all that must hold.

A *strike* is what happens to one transaction: it is aborted, decided without its author knowing it, decided when nobody
waits any longer, open for too long, or its author dies, or stalls while others take over.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from lstmstream.errors import TryAgain
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.phase import Phase
from lstmstream.serve.state_records import FLOOR, key_kind, unpack_floor, unpack_key, unpack_state
from lstmstream.transport.memory import LogRecord
from lstmstream.transport.memory_transactions import TIMEOUT_S
from tests.serve.memory_world import INPUT, LETTERS, STATES, LateExecutor, World, amount_of, fold

KINDS = ("batch", "idle checkpoint", "first floor", "drain")
FATES = ("unsent", "aborted", "lost response", "late", "too late", "twice", "timeout", "killed", "expired")
OVERLAPS = ("none", "early", "poll", "late")  # when a commit in the background is made
TransactionsState = dict[tuple[int, bytes | None], dict[int, tuple[float, float, int]]]


class Killed(BaseException):
    """The process ends where it stands. Nothing in the program catches it."""


class EarlyExecutor(Executor):
    """Makes its calls at once: the transaction is committed before the next batch is polled."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        made: Future[Any] = Future()
        try:
            made.set_result(call(*args, **kwargs))
        except Exception as error:
            made.set_exception(error)
        return made


class Call(NamedTuple):
    """One that is still to be made."""

    owner: Daemon
    future: Future[Any]
    make: Callable[[], Any]


class PollExecutor(Executor):
    """Makes its calls within the next poll, of whichever daemon."""

    def __init__(self, world: ScheduleWorld) -> None:
        self._world = world
        self._calls: list[Call] = []

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        owner, executor = self._world.busy[-1], self

        class Waiting(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                executor.make(owner)
                return super().result(0)

        future = Waiting()
        self._calls.append(Call(owner, future, lambda: call(*args, **kwargs)))
        return future

    def make(self, owner: Daemon | None = None) -> None:
        """Those of one daemon, or all."""
        calls = [call for call in self._calls if owner is None or call.owner is owner]
        self._calls = [call for call in self._calls if call not in calls]
        for call in calls:
            self._world.busy.append(call.owner)
            try:
                call.future.set_result(call.make())
            except Exception as error:
                call.future.set_exception(error)
            finally:
                self._world.busy.remove(call.owner)

    def drop(self, owner: Daemon) -> None:
        """Its process is gone."""
        self._calls = [call for call in self._calls if call.owner is not owner]


class ScheduleWorld(World):
    """A world that is told what to do to the next transactions, and that can check what must hold at any moment."""

    def __init__(self, *, overlap: str = "late", lingering: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.broker.transactions.lingering = lingering
        executors = {"none": None, "early": EarlyExecutor(), "poll": PollExecutor(self), "late": LateExecutor()}
        self.executor: Executor | None = executors[overlap]
        self.background = self.executor  # type: ignore[assignment]
        self.watch = self._make_calls
        self.broker.on_fence = self._check_gone
        self.struck: Counter[tuple[str, str]] = Counter()  # kind of transaction and fate
        self.highest: dict[int, int] = {}  # the group's offsets
        self.highest_floor: dict[int, int] = {}
        self._seen_states: set[tuple[int, int]] = set()  # partition and offset in the state topic

    def _make_calls(self, point: str) -> None:
        if point == "poll" and isinstance(self.executor, PollExecutor):
            self.executor.make()

    def _check_gone(self, author: int) -> None:
        members = [member.member_id for member in self.broker.members()]
        assert str(author) not in members, f"member {author} is fenced, and the group has it"

    # -- actions

    def step(self, daemon: Daemon) -> None:
        """Of one that has died meanwhile, nothing."""
        if daemon in self.daemons:
            with suppress(Killed):
                super().step(daemon)

    def stop(self, daemon: Daemon) -> int:
        try:
            return super().stop(daemon)
        except Killed:
            return -9

    def kill(self, daemon: Daemon) -> None:
        if isinstance(self.executor, PollExecutor):
            self.executor.drop(daemon)
        if daemon in self.daemons:  # else it was within a stop
            self.daemons.remove(daemon)
        self.broker.leave(self.transports[id(daemon)].member_id)

    def settle(self, rounds: int = 400) -> None:
        """A poll that has nothing waits a little, so that time goes by, as transactions need that were left open."""
        for _ in range(rounds + self.unanswered()):
            restored = all(daemon.phase is Phase.RUNNING for daemon in self.daemons)
            if restored and not (self.daemons and self.unanswered()):
                return
            for daemon in list(self.daemons):
                self.step(daemon)
            self.now_s += 0.1
        raise AssertionError(f"{self.unanswered()} events are still unanswered")

    def strike(self, fate: str, *, arrives_at: str = "committed_offset", take_over: bool = True) -> None:
        """What happens to the next transaction. `arrives_at`: the point at which its late request arrives."""
        point = {"unsent": "sent", "lost response": "committed"}.get(fate, "commit")

        def act() -> None:
            author = self.busy[-1]
            member_id = self.transports[id(author)].author
            self.struck[kind_of(author), fate] += 1
            if fate in ("late", "too late", "twice"):
                self.broker.transactions.leave_behind(member_id)
                for _ in range(1 + (fate == "twice")):
                    at = "recover" if fate == "late" else arrives_at
                    self.actions.append((at, lambda: self.arrive(again=fate == "twice")))
            elif fate == "timeout":
                self.now_s += TIMEOUT_S + 1
                return  # its author goes on
            elif fate == "killed":
                self.kill(author)
                raise Killed
            elif fate == "expired":
                self.expire(author)
                if take_over:
                    self.start()
                    self.let_others_work(round_s=0.1)
                return  # the same
            raise TryAgain(f"a transaction whose fate is: {fate}")

        self.actions.append((point, act))

    def let_others_work(self, *, round_s: float) -> None:
        """Those that are within no call, for some rounds; one may die in the midst of it."""
        for _ in range(15):
            for daemon in list(self.daemons):
                if daemon not in self.busy:
                    self.step(daemon)
            self.now_s += round_s

    def arrive(self, number: int = 0, *, again: bool = False) -> None:
        """A request that nobody waits for any longer arrives."""
        late = self.broker.transactions.late
        if late:
            self.broker.transactions.arrive(number % len(late), again=again)

    # -- what must hold

    def state_logs(self) -> list[list[LogRecord]]:
        """What is decided counts, although no reader sees it yet."""
        logs = [list(log) for log in super().state_logs()]
        for transaction in self.broker.transactions.open.values():
            if transaction.visible_at_s is not None:
                for topic, partition, record in transaction.records:
                    if topic == STATES:
                        insort(logs[partition], record, key=lambda one: one.offset)
        return logs

    def check_all(self) -> None:
        """At any moment, whatever has happened."""
        self.check_states()
        self.check_offsets()
        folded = self._folded()
        self._check_state_records(folded)
        self._check_memory(folded)
        self._check_answers()

    def finish(self) -> None:
        """Faults are over: everything is answered, and right."""
        self.faults.clear()
        self.actions.clear()
        self.broker.transactions.visible_after_s = 0.0
        last = self.start()
        self.settle()
        if self.assigned(last):
            members = {int(member.member_id) for member in self.broker.members()}
            assert self.broker.transactions.open.keys() <= members, "what dead members have left open was not ended"
        self.now_s += TIMEOUT_S + 1
        self.broker.transactions.tick()  # what dead members have left open ends
        self.check_all()
        self.check()

    def check_offsets(self) -> None:
        """The group's offsets and the floors never go down, and no floor is ahead of the group's offset."""
        for partition, offset in self.broker.offsets.items():
            before = self.highest.get(partition, 0)
            assert offset >= before, f"the group's offset of partition {partition} went from {before} to {offset}"
            self.highest[partition] = offset
        for partition, record in self._newest_floors():
            floor = unpack_floor(record)
            committed = self.broker.offsets.get(partition)
            assert committed is not None, f"partition {partition} has a floor and no offset"
            assert floor.offset <= floor.position <= committed, f"{floor} is ahead of the group's offset {committed}"
            before = self.highest_floor.get(partition, 0)
            assert floor.offset >= before, f"the floor of partition {partition} went from {before} to {floor.offset}"
            self.highest_floor[partition] = floor.offset

    def _newest_floors(self) -> Iterator[tuple[int, bytes]]:
        for partition, log in enumerate(self.broker.topics[STATES].logs if STATES in self.broker.topics else ()):
            values = [record.value for record in log if record.value and key_kind(record.key)[0] == FLOOR]
            if values:
                yield partition, values[-1]

    def _folded(self) -> TransactionsState:
        """Partition and key → offset of each of its events → mean, count and steps with that event."""
        found: TransactionsState = {}
        for partition, log in enumerate(self.broker.topics[INPUT].logs):
            for record in log:
                amount = amount_of(record.value)
                if amount is not None:
                    of_key = found.setdefault((partition, record.key), {})
                    mean, count, steps = next(reversed(of_key.values())) if of_key else (np.float32(0.5), 0, 0)
                    mean, count = fold(np.float32(mean), np.float32(count), amount)
                    of_key[record.offset] = (float(mean), float(count), steps + 1)
        return found

    def _check_state_records(self, folded: TransactionsState) -> None:
        """A record that can be seen holds the state of its offset, which is before the group's."""
        for partition, log in enumerate(self.broker.topics[STATES].logs if STATES in self.broker.topics else ()):
            for record in log:
                seen = (partition, record.offset)
                if seen in self._seen_states or not record.value or key_kind(record.key)[0] == FLOOR:
                    continue
                self._seen_states.add(seen)
                assert record.key is not None
                key, state = unpack_key(record.key), unpack_state(record.key, record.value).state
                committed = self.broker.offsets.get(partition, 0)
                text = f"the state of {key!r} in partition {partition} up to offset {state.last_offset}"
                assert state.last_offset < committed, f"{text} is ahead of the group's offset {committed}"
                right = folded.get((partition, key), {}).get(state.last_offset)
                assert (*map(float, state.row), state.steps) == right, f"{text} should be {right}"

    def _check_memory(self, folded: TransactionsState) -> None:
        """A state in memory is that of its offset, of a batch in flight too."""
        for daemon in self.daemons:
            for partition in daemon._partitions.running():
                for key, row in partition.slab.index.items():
                    state = partition.slab.get(row)
                    if state.steps:
                        right = folded.get((partition.number, key), {}).get(state.last_offset)
                        text = f"the state of {key!r} in memory, up to offset {state.last_offset} of"
                        found = (*map(float, state.row), state.steps)
                        assert found == right, f"{text} partition {partition.number}, should be {right}"

    def _check_answers(self) -> None:
        """Each event before the group's offset has its answer; with exactly_once no other has one."""
        exactly_once = self.config().delivery == "exactly_once"
        offsets = self.broker.offsets
        seen = [(a["source"]["partition"], a["source"]["offset"], a["score"], a["steps"]) for a in self.answers()]
        expected = self.expected()
        answered = [one for one in expected if one[1] < offsets.get(one[0], 0)]
        letters = self._letters()
        dead = [(p, r.offset) for p, log in enumerate(self.broker.topics[INPUT].logs) for r in log if _is_dead(r.value)]
        answered_dead = [one for one in dead if one[1] < offsets.get(one[0], 0)]
        if exactly_once:
            assert seen == answered
            assert letters == answered_dead
        else:
            assert set(answered) <= set(seen) <= set(expected)
            assert set(answered_dead) <= set(letters) <= set(dead)

    def _letters(self) -> list[tuple[int, int]]:
        logs = self.broker.topics[LETTERS].logs if LETTERS in self.broker.topics else ()
        headers = [dict(record.headers) for log in logs for record in log]
        return [(int(h["__streams.errors.partition"] or 0), int(h["__streams.errors.offset"] or 0)) for h in headers]


def _is_dead(value: bytes | None) -> bool:
    return amount_of(value) is None


def kind_of(author: Daemon) -> str:
    """What the pending transaction of a daemon is."""
    pending = author._committer.pending
    assert pending is not None
    if pending.result is None:
        return "first floor"
    if len(pending.result.records):
        return "batch"
    return "drain" if author._stopping else "idle checkpoint"
