"""Transactions: what goes into one, and who judges one whose outcome is not known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import Fatal, OutcomeUnknown, OwnershipLost, TryAgain
from lstmstream.serve.batch_limit import CAREFUL_COMMITS, PROMPT_S, BatchLimit
from lstmstream.serve.checkpoint import Checkpointer, CheckpointPlan, StateTopic
from lstmstream.serve.committer import COMMIT_TIMEOUT_S, INITIAL_COMMIT_TIMEOUT_S, LOOP_S, Committer, PendingTransaction
from lstmstream.serve.engine import Result
from lstmstream.serve.observers import Observer
from lstmstream.serve.partition import Partition, Partitions
from lstmstream.serve.refusals import Refusals
from lstmstream.serve.state_records import StateIdentity
from lstmstream.transport.ports import CommittedOffset, Membership
from tests.serve.helpers import LETTERS, OUT, NumpyStep, batch, engine, snapshot
from tests.serve.reference import Event

IDENTITY = StateIdentity("m", "1", "f" * 32, "none", "apply", "the record's", "the record's", "10000000")
MEMBERSHIP = Membership("a token", valid=True, member_id="m-1")


class Broker:
    """As much of a Transport as a committer needs."""

    def __init__(self) -> None:
        self.commits: list[dict[str, Any]] = []
        self.offsets: dict[int, CommittedOffset] = {}
        self.before: Callable[[], None] = lambda: None  # may raise: nothing was applied
        self.after: Callable[[], None] = lambda: None  # may raise: it was

    def commit(self, outputs: Any, states: Any, offsets: Mapping[int, int], **named: Any) -> None:
        self.before()
        self.commits.append({"outputs": outputs, "states": states, "offsets": offsets, **named})
        self.offsets |= {p: CommittedOffset(offset, named["nonce"]) for p, offset in offsets.items()}
        self.after()


class Told(Observer):
    def __init__(self) -> None:
        self.what: list[tuple[str, Any]] = []
        self.loops = 0

    def on_loop(self) -> None:
        self.loops += 1

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        self.what.append(("commit", (len(result.records), plan.offsets, duration_s)))

    def on_abort(self) -> None:
        self.what.append(("abort", None))


class World:
    """A committer over an engine with two running partitions."""

    def __init__(self) -> None:
        self.now_s = 50.0
        self.offset = 0
        self.timed: list[str] = []
        self.broker, self.told = Broker(), Told()
        self.engine = engine(NumpyStep(), partitions=())
        self.partitions = Partitions()
        for number in (0, 1):
            self.partitions.add(Partition(number, 1, self.engine.scorer.states))
            self.partitions[number].run(position=0, floor=0, now_s=self.now_s)
        clock = lambda: self.now_s  # noqa: E731
        self.checkpointer = Checkpointer(
            StateTopic("state", "s", "i", 2), IDENTITY, self.partitions, interval_s=10, clock=clock, wall_s=clock
        )
        self.batch_limit = BatchLimit(100)
        self.refusals = Refusals("state", compressed=False, wall_s=clock)
        self.committer = Committer(
            self.broker,  # type: ignore[arg-type]
            self.engine,
            self.checkpointer,
            self.told,
            self.timer,
            clock,
            refusals=self.refusals,
            batch_limit=self.batch_limit,
        )

    @contextmanager
    def timer(self, stage: str) -> Iterator[None]:
        self.timed.append(stage)
        yield

    def process(self, *keys: bytes, partition: int = 0) -> Result:
        events = [Event(partition, self.offset + i, 1_000, key, b'{"amount":1}') for i, key in enumerate(keys)]
        events.append(Event(partition, self.offset + len(keys), 1_000, b"bad", b"{"))
        self.offset += len(events)
        return self.engine.process(batch(events))

    def submit(self, *keys: bytes, **named: Any) -> None:
        self.committer.submit(self.process(*keys), MEMBERSHIP, **named)

    def positions(self) -> list[int]:
        return [partition.position for partition in self.partitions]

    def keys(self) -> set[bytes | None]:
        return {key for _, key in snapshot(self.engine.scorer.states)}


def fails(error: Exception) -> Callable[[], None]:
    def strike() -> None:
        raise error

    return strike


def test_one_transaction_has_the_batchs_outputs_states_and_offsets() -> None:
    world = World()
    for _ in range(3):
        world.submit(b"a", b"b")
        world.now_s += 5
    first, _, last = world.broker.commits
    assert [records.topic for records in first["outputs"]] == [OUT, LETTERS]
    assert [len(records) for records in first["outputs"]] == [2, 1]
    assert (first["states"], first["offsets"]) == ([], {0: 3})
    assert (first["membership"], first["timeout_s"]) == (MEMBERSHIP, COMMIT_TIMEOUT_S)
    (states,) = last["states"]
    assert (states.topic, last["offsets"]) == ("state", {0: 9})
    assert world.positions() == [9, 0]
    assert world.checkpointer.dirty_count() == 1, "nine events pay for one of the two"
    assert world.told.what == [("commit", (3, {0: at}, 0.0)) for at in (3, 6, 9)]
    assert world.timed == ["commit"] * 3
    assert world.committer.pending is None
    assert world.engine.scorer.states.in_flight == 0


def test_each_transaction_has_a_nonce_of_its_own() -> None:
    worlds = [World(), World()]
    for world in worlds:
        world.submit(b"a")
        world.submit(b"a")
    nonces = [commit["nonce"] for world in worlds for commit in world.broker.commits]
    assert len(set(nonces)) == 4
    assert all(nonce.startswith("lstmstream:") for nonce in nonces)


def test_how_long_it_took_is_told() -> None:
    world = World()

    def pass_time() -> None:
        world.now_s += 1.5

    world.broker.before = pass_time
    world.submit(b"a", timeout_s=3.0)
    assert world.told.what == [("commit", (2, {0: 2}, 1.5))]
    assert world.broker.commits[0]["timeout_s"] == 3.0


def test_a_shutdown_writes_what_is_dirty() -> None:
    world = World()
    world.submit(b"a", b"b")
    world.committer.submit(world.engine.process(batch([])), MEMBERSHIP, flush=True)
    assert world.broker.commits[1]["outputs"] == []
    assert len(world.broker.commits[1]["states"][0]) == 3  # two states and the floor
    assert world.broker.commits[1]["offsets"] == {0: 3}
    assert not world.checkpointer.behind()


@pytest.mark.parametrize("applied", [False, True])
def test_a_transaction_whose_outcome_is_not_known_is_judged_by_its_nonce(applied: bool) -> None:
    world = World()
    world.submit(b"a")
    setattr(world.broker, "after" if applied else "before", fails(TryAgain("away")))
    with pytest.raises(TryAgain):
        world.submit(b"a", b"new")
    assert world.committer.pending is not None
    assert world.committer.pending_partitions() == {0}
    assert world.told.what == [("commit", (2, {0: 2}, 0.0))], "nothing is told before it is known"
    assert world.positions() == [2, 0]
    assert world.engine.scorer.states.in_flight == 1
    world.committer.resolve(world.broker.offsets)
    assert world.committer.pending is None
    assert world.committer.pending_partitions() == set()
    assert world.engine.scorer.states.in_flight == 0
    if applied:
        assert world.told.what[1:] == [("commit", (3, {0: 5}, None))]
        assert (world.positions(), world.keys(), world.checkpointer.dirty_count()) == ([5, 0], {b"a", b"new"}, 2)
    else:
        assert world.told.what[1:] == [("abort", None)]
        assert (world.positions(), world.keys(), world.checkpointer.dirty_count()) == ([2, 0], {b"a"}, 1)
    assert snapshot(world.engine.scorer.states)[0, b"a"][1] == (2 if applied else 1)


def test_the_same_offsets_of_somebody_else_are_not_this_transaction() -> None:
    """Another member took the partition over and answered the very same records."""
    world = World()
    world.broker.before = fails(TryAgain("away"))
    with pytest.raises(TryAgain):
        world.submit(b"a")
    world.committer.resolve({0: CommittedOffset(2, "lstmstream:another:7")})
    assert world.told.what == [("abort", None)]
    assert (world.positions(), world.keys()) == ([0, 0], set())


def test_an_idle_checkpoint_that_did_not_come_through_leaves_its_states_dirty() -> None:
    """It commits the present offsets once more, so that the offsets alone could not tell."""
    world = World()
    world.submit(*[b"a"] * 9)
    world.broker.before = fails(TryAgain("away"))
    with pytest.raises(TryAgain):
        world.committer.submit(world.engine.process(batch([])), MEMBERSHIP, flush=True)
    assert world.committer.pending is not None
    assert world.committer.pending.plan.offsets == {0: world.broker.offsets[0].offset}
    world.committer.resolve(world.broker.offsets)
    assert world.checkpointer.dirty_count() == 1
    assert world.checkpointer.behind()


def test_nothing_is_submitted_while_another_transaction_is_pending() -> None:
    world = World()
    world.broker.before = fails(TryAgain("away"))
    with pytest.raises(TryAgain):
        world.submit(b"a")
    world.broker.before = lambda: None
    with pytest.raises(AssertionError, match="not known"):
        world.submit(b"b")
    with pytest.raises(AssertionError, match="not known"):
        world.committer.submit_plan(world.checkpointer.initial_plan(0, 0), MEMBERSHIP)
    assert world.broker.commits == []


@pytest.mark.parametrize(("error", "asks_again"), [(TryAgain("no"), False), (OutcomeUnknown("lost"), True)])
def test_offsets_are_asked_for_again_only_where_the_transaction_may_have_been_committed(
    error: TryAgain, asks_again: bool
) -> None:
    world = World()
    world.broker.before = fails(error)
    with pytest.raises(TryAgain):
        world.submit(b"a")
    assert world.committer.looks_aborted(world.broker.offsets) is asks_again
    world.committer.resolve(world.broker.offsets)
    assert not world.committer.looks_aborted(world.broker.offsets)


def test_after_a_failure_fewer_states_are_written_and_then_more_again() -> None:
    world = World()
    world.submit(*[b"%d" % number for number in range(40)])
    empty, written = world.engine.process(batch([])), list[int]()

    def fail_late() -> None:
        world.now_s += PROMPT_S
        raise TryAgain("too much at once")

    world.broker.before = fail_late
    with pytest.raises(TryAgain):
        world.committer.submit(empty, MEMBERSHIP, flush=True)
    world.committer.resolve(world.broker.offsets)
    world.broker.before = lambda: None
    for number in range(CAREFUL_COMMITS + 1):
        if number:  # all are dirty again
            world.submit(*[b"%d" % number for number in range(40)])
        world.committer.submit(world.engine.process(batch([])), MEMBERSHIP, flush=True)
        written.append(sum(map(len, world.broker.commits[-1]["states"])) - 1)  # without the floor
    assert written[0] == 20
    assert written[-1] == 40


@pytest.mark.parametrize("error", [OwnershipLost("taken"), Fatal("no")])
def test_other_failures_are_not_swallowed(error: Exception) -> None:
    world = World()
    world.broker.before = fails(error)
    with pytest.raises(type(error)):
        world.submit(b"a")
    assert world.told.what == []


class SlowExecutor(Executor):
    """Its calls are made once somebody has waited for them so many times in vain."""

    def __init__(self, waits: int) -> None:
        self.waits = waits

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        executor = self

        class Slow(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                assert timeout == LOOP_S
                if executor.waits:
                    executor.waits -= 1
                    raise TimeoutError
                return call(*args, **kwargs)

        return Slow()


def test_a_loop_that_waits_for_a_transaction_in_the_background_is_seen_to_be_alive() -> None:
    world = World()
    world.committer._background = SlowExecutor(waits=3)
    world.submit(b"a", overlap=True)
    assert world.committer.in_background
    assert world.told.loops == 0
    world.committer.wait()
    assert world.told.loops == 3
    assert world.positions() == [2, 0]


@pytest.mark.parametrize("then", ["batch", "plan"])
def test_the_transaction_in_the_background_ends_before_the_next_one_begins(then: str) -> None:
    world = World()
    world.committer._background = SlowExecutor(waits=1)
    world.submit(b"a", overlap=True)
    assert world.broker.commits == []
    if then == "batch":
        world.submit(b"b")
    else:
        world.committer.submit_plan(world.checkpointer.initial_plan(1, 0), MEMBERSHIP)
    assert [commit["offsets"] for commit in world.broker.commits] == [{0: 2}, {0: 4} if then == "batch" else {1: 0}]
    assert world.committer.pending is None


def test_a_batch_that_was_never_submitted_is_rolled_back() -> None:
    world = World()
    world.process(b"a")
    world.committer.resolve({})
    assert (world.engine.scorer.states.in_flight, world.keys(), world.told.what) == (0, set(), [])
    world.committer.resolve({})  # and without one, nothing happens
    assert world.told.what == []


@pytest.mark.parametrize("applied", [None, True, False])
def test_a_plan_without_a_batch(applied: bool | None) -> None:
    """The beginning of a partition's states: its restore goes on, or looks again and finds what was committed."""
    world = World()
    if applied is not None:
        setattr(world.broker, "after" if applied else "before", fails(TryAgain("away")))
    plan = world.checkpointer.initial_plan(1, 40)
    if applied is None:
        world.committer.submit_plan(plan, MEMBERSHIP)
    else:
        with pytest.raises(TryAgain):
            world.committer.submit_plan(plan, MEMBERSHIP)
        assert world.committer.pending_partitions() == {1}
        world.committer.resolve(world.broker.offsets)
    if applied is not False:
        (commit,) = world.broker.commits
        assert (commit["outputs"], commit["offsets"], len(commit["states"][0])) == ([], {1: 40}, 1)
        assert (commit["timeout_s"], commit["membership"]) == (INITIAL_COMMIT_TIMEOUT_S, MEMBERSHIP)
    assert world.committer.pending is None
    assert world.told.what == [], "only batches are counted"
    assert world.positions() == [0, 0]


def pending(*partitions: int) -> PendingTransaction:
    offsets = dict.fromkeys(partitions, 7)
    return PendingTransaction(None, CheckpointPlan([], {}, {}, offsets, 0), "mine")


@pytest.mark.parametrize(
    ("committed", "was"),
    [
        ({}, False),
        ({0: CommittedOffset(7, "mine")}, True),
        ({0: CommittedOffset(7, "another's"), 1: CommittedOffset(7, "mine")}, True),  # one was taken over since
        ({0: CommittedOffset(9, "another's"), 1: CommittedOffset(7, "mine")}, True),
        ({0: CommittedOffset(7, "another's"), 1: CommittedOffset(7, "another's")}, False),
        ({0: CommittedOffset(7, ""), 1: CommittedOffset(7, "")}, False),  # the same offsets, by an idle checkpoint
        ({2: CommittedOffset(7, "mine")}, False),  # not a partition of this transaction
    ],
)
def test_a_transaction_was_committed_if_one_of_its_partitions_shows_its_nonce(
    committed: dict[int, CommittedOffset], was: bool
) -> None:
    assert pending(0, 1).was_committed(committed) == was


def test_states_that_were_committed_are_clean_and_the_others_dirty() -> None:
    """The checkpointer is told of the engine's batch and of the plan, in that order of things."""
    world = World()
    world.submit(*[b"%d" % i for i in range(10)])
    world.now_s += 10
    world.submit(b"0", b"new", b"another")
    written = world.broker.commits[1]["states"][0]
    assert len(written) == 4  # three states, which eleven and four events pay for, and the floor
    slab = world.engine.scorer.states.slabs[0]
    marks = slab.first_unwritten[: slab.index.used_rows]
    assert np.flatnonzero(marks >= 0).tolist() == sorted(
        slab.index[key] for key in [b"%d" % i for i in range(3, 10)] + [b"new", b"another"]
    )
