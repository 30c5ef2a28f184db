"""`state.max_keys`: the states of the most recently seen keys, whatever the batches, crashes and rebuilds."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.records import Observations
from lstmstream.serve import checkpoint, snapshots
from lstmstream.serve.recency import Recency
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.snapshot_file import SnapshotFile
from lstmstream.serve.state import KeyState, Slab
from lstmstream.serve.state_records import FLOOR, Floor, key_kind, unpack_floor
from tests.serve.memory_world import INPUT, MAGIC, OUTPUT, FakeStep, World, amount_of, card, crash_at_call, fold
from tests.serve.test_expiry import answers, idle, produce, records

KEYS = 6
RULES: dict[str, Any] = {"state": {"checkpoint_interval": "5s", "max_keys": KEYS}, "batch": {"max_events": 16}}
MAX_CALLS = 8

Event = tuple[bytes, float]
Outcome = tuple[float, int] | str


class Books:
    """One event after the other: a dict in the order in which its keys were seen."""

    def __init__(self, max_keys: int) -> None:
        self.max_keys = max_keys
        self.kept: dict[bytes | None, tuple[Any, Any, int]] = {}

    def take(self, key: bytes | None, amount: Any) -> Outcome:
        mean, count, steps = self.kept.get(key, (np.float32(0.5), np.float32(0), 0))
        if amount is None:
            return "step"
        mean, count = fold(mean, count, np.float32(amount))
        self.kept.pop(key, None)
        self.kept[key] = mean, count, steps + 1
        if len(self.kept) > self.max_keys:
            del self.kept[next(iter(self.kept))]
        return float(str(mean - count)), steps + 1


def check(world: World, max_keys: int = KEYS, fallen: int = 0) -> Books:
    """Of partition 0: the answers from offset `fallen` on."""
    books = Books(max_keys)
    log = world.broker.topics[INPUT].logs[0]
    expected = {record.offset: books.take(record.key, amount_of(record.value)) for record in log}
    found = answers(world)
    assert {at: said for at, said in found.items() if at >= fallen} == {
        at: said for at, said in expected.items() if at >= fallen
    }
    return books


def in_memory(world: World) -> list[bytes | None]:
    """Keys that have a state, the least recent first."""
    (daemon,) = world.daemons
    slab = daemon._partitions[0].slab
    rows = slab.index.rows()
    rows = rows[slab.steps[rows] > 0]
    return slab.index.keys_at(rows[np.argsort(slab.last_offset[rows])])


def churn(world: World, count: int, *, seed: int = 1, keys: int = 12) -> None:
    """Some keys often, many seldom."""
    source = random.Random(seed)
    for _ in range(count):
        key = b"k%d" % min(source.randrange(keys), source.randrange(keys))
        produce(world, key, source.choice([1, 2, 3, 3, 3, MAGIC]))


# -- the rule, by the engine


def observations(events: Sequence[Event], first: int) -> Observations:
    count = len(events)
    at = np.arange(first, first + count)
    return Observations(
        np.arange(count),
        np.zeros(count, np.int64),
        at,
        [key for key, _ in events],
        at * 1000,
        np.array([[amount] for _, amount in events], np.float32).reshape(count, 1),
        np.empty((count, 0), np.int64),
    )


def scorer(max_keys: int) -> Scorer:
    made = Scorer(FakeStep(card()), Meaning(None, "apply", None, max_keys=max_keys))
    made.states.open(0)
    return made


def outcomes(made: Scorer, batch: Observations) -> list[Outcome]:
    scored = made.score(batch)
    found: dict[int, Outcome] = {letter.index: letter.stage for letter in scored.dead_letters}
    for index, score, steps in zip(
        scored.predictions.index.tolist(), scored.predictions.score, scored.predictions.steps.tolist(), strict=True
    ):
        found[index] = (float(str(score)), steps)
    assert list(scored.predictions.index) == sorted(scored.predictions.index)
    return [found[i] for i in range(len(batch.index))]


def live(made: Scorer) -> list[bytes | None]:
    slab = made.states.slabs[0]
    rows = slab.index.rows()
    rows = rows[slab.steps[rows] > 0]
    return slab.index.keys_at(rows[np.argsort(slab.last_offset[rows])])


@pytest.mark.parametrize("seed", range(8))
def test_batches_are_as_one_event_after_the_other(seed: int) -> None:
    """Whatever the batches, of which some are rolled back and done again, one or two in flight."""
    source = random.Random(seed)
    for _ in range(25):
        keys, amounts = source.randrange(1, 12), [1.0, 2.0, 3.0, 3.0, MAGIC]
        events = [(b"k%d" % source.randrange(keys), source.choice(amounts)) for _ in range(source.randrange(1, 80))]
        compare(events, source.randrange(1, 8), source)


def compare(events: list[Event], max_keys: int, source: random.Random) -> None:
    made, books = scorer(max_keys), Books(max_keys)
    expected = [books.take(key, None if amount == MAGIC else amount) for key, amount in events]
    at = 0
    found: list[Outcome] = []
    in_flight: list[int] = []
    while at < len(events) or in_flight:
        act = source.random()
        if in_flight and act < 0.25:
            made.rollback()
            at = in_flight.pop()
            del found[at:]
        elif in_flight and (len(in_flight) == 2 or act < 0.5 or at == len(events)):
            made.commit()
            in_flight.pop(0)
        else:
            batch = events[at : at + source.randrange(1, 30)]
            in_flight.append(at)
            found += outcomes(made, observations(batch, at))
            at += len(batch)
    assert found == expected
    assert live(made) == list(books.kept)
    slab = made.states.slabs[0]
    assert len(slab) == len(books.kept), "no state topic has records: what is evicted is forgotten"
    assert slab.key_count == len(books.kept)


def test_a_full_batch_without_old_keys_is_done_at_once() -> None:
    """It is only cut where a key is needed that would go."""
    made = scorer(100)
    made.score(observations([(b"a%d" % i, 1) for i in range(100)], 0))
    made.commit()
    calls = []
    gather = made.states.gather
    made.states.gather = lambda *args, **named: calls.append(len(args[1])) or gather(*args, **named)  # type: ignore[func-returns-value, method-assign, misc, assignment]
    made.score(observations([(b"b%d" % i, 1) for i in range(50)] + [(b"a%d" % i, 1) for i in range(50, 100)], 100))
    made.commit()
    assert calls == [100]
    made.score(observations([(b"c%d" % i, 1) for i in range(10)] + [(b"b0", 1)], 200))
    assert len(calls) > 2


def test_the_order_of_a_slab() -> None:
    slab = Slab(1)
    for offset in (5, 3, 9, 1):
        slab.put(b"%d" % offset, KeyState(np.zeros(1, np.float32), 1, 0, offset))
    recency = Recency(slab)
    assert slab.index.keys_at(recency.least(2)) == [b"1", b"3"]
    slab.last_offset[slab.index[b"1"]] = 10
    assert slab.index.keys_at(recency.least(9)) == [b"3", b"5", b"9", b"1"]
    assert slab.index.keys_at(recency.least(1)) == [b"3"]


# -- the daemon


def test_the_most_recent_keys_have_a_state() -> None:
    world = World(**RULES)
    daemon = world.start()
    for key in (b"a", b"b", b"c", b"d", b"e", b"f", b"a", b"g", b"b"):
        produce(world, key)
    world.settle()
    books = check(world)
    assert in_memory(world) == list(books.kept) == [b"d", b"e", b"f", b"a", b"g", b"b"]
    idle(world, daemon, 3)
    assert world.metric(daemon, "state_evicted_total") == 2
    assert world.metric(daemon, "state_keys") == KEYS
    world.stop(daemon)
    daemon = world.start()
    for key in (b"d", b"c", b"e", b"f", b"a"):  # of these f is there no more once e has come back
        produce(world, key)
    world.settle()
    assert in_memory(world) == list(check(world).kept)


@pytest.mark.parametrize("late", ["apply", "score", "drop"])
def test_a_late_event_sees_its_key_if_it_is_answered(late: str) -> None:
    world = World(**RULES | {"input": {"topic": INPUT, "late": late}, "state": {"max_keys": 2}})
    daemon = world.start()
    for _ in range(2):
        produce(world, b"a")
        produce(world, b"b")
        produce(world, b"a", at_s=world.now_s - 10)
        world.settle()
        assert in_memory(world) == ([b"a", b"b"] if late == "drop" else [b"b", b"a"])
        world.kill(daemon)
        daemon = world.start()
        world.settle()
        assert in_memory(world) == ([b"a", b"b"] if late == "drop" else [b"b", b"a"])
    produce(world, b"c")
    world.settle()
    assert in_memory(world) == ([b"b", b"c"] if late == "drop" else [b"a", b"c"])


def test_an_evicted_key_leaves_memory_and_state_topic() -> None:
    world = World(**RULES)
    daemon = world.start()
    for number in range(200):
        produce(world, b"k%d" % (number // 2))
        if number % 10 == 0:
            world.settle()
    world.settle()
    assert world.keys_in_memory(daemon) > KEYS, "as long as their empty states are in the topic"
    for number in range(40):  # so that the last ones may be written
        produce(world, b"k%d" % (94 + number % 6))
        world.settle()
        idle(world, daemon, 2)
    check(world)
    assert world.keys_in_memory(daemon) == KEYS
    assert records(world) <= {b"k%d" % number for number in range(94, 100)}
    assert world.stop(daemon) == 0
    assert records(world) == {b"k%d" % number for number in range(94, 100)}


def test_as_many_records_are_deleted_as_keys_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each event is of a new key: else memory and state topic would grow without end."""
    monkeypatch.setattr(checkpoint, "DELETIONS_PER_TRANSACTION", 1)
    monkeypatch.setattr(checkpoint, "WRITES_PER_TRANSACTION", 1)
    world = World(**RULES)
    daemon = world.start()
    for number in range(60):
        for key in range(16):
            produce(world, b"k%d-%d" % (number, key))
        world.step(daemon)
    world.settle()
    assert world.metric(daemon, "state_evicted_total") > 900
    assert world.keys_in_memory(daemon) < 200


@pytest.mark.parametrize("point", ["read", "begin", "commit", "committed", "committed_offset", "poll"])
def test_a_crash_at_any_call_changes_nothing(point: str) -> None:
    crashes = 0
    while crash_at(point, crashes):
        crashes += 1
    assert crashes > 0


def crash_at(point: str, nth: int) -> bool:
    """Whether there was such a call."""
    world = World(**RULES)
    daemon = world.start()
    churn(world, 60)
    world.settle()
    idle(world, daemon, 4)
    churn(world, 60, seed=2)
    with crash_at_call(world, point, nth) as crash:
        for _ in range(12):
            world.step(daemon)
            world.now_s += 0.4
        if point in ("read", "committed_offset"):
            world.kill(daemon)
            daemon = world.start()
            world.settle()
    world.kill(daemon)
    world.busy.clear()
    daemon = world.start()
    world.settle()
    assert in_memory(world) == list(check(world).kept)
    churn(world, 60, seed=3)
    world.settle()
    assert in_memory(world) == list(check(world).kept)
    return crash.happened and nth < MAX_CALLS


@pytest.mark.parametrize("point", ["begin", "commit", "committed"])
def test_a_broker_that_fails_meanwhile(point: str) -> None:
    world = World(**RULES)
    world.start()
    for part in range(12):
        churn(world, 25, seed=part)
        world.faults += [point]
        world.settle()
    assert in_memory(world) == list(check(world).kept)


@pytest.mark.parametrize("limit", [1, 5, 64])
def test_batches_of_any_size_and_in_flight(limit: int) -> None:
    world = World(**RULES | {"batch": {"max_events": limit}})
    world.start()
    churn(world, 300, keys=30)
    world.settle()
    assert world.background.calls > 0
    assert in_memory(world) == list(check(world).kept)


def test_daemons_that_are_killed_again_and_again() -> None:
    source = random.Random(4)
    world = World(**RULES)
    daemon = world.start()
    for part in range(60):
        churn(world, source.randrange(1, 30), seed=part, keys=source.choice([5, 8, 20]))
        for _ in range(source.randrange(4)):
            world.step(daemon)
            world.now_s += source.choice([0.1, 0.6, 3])
        if source.random() < 0.5:
            world.kill(daemon)
            daemon = world.start()
    world.settle()
    assert in_memory(world) == list(check(world).kept)


def states_in(path: Path) -> int:
    with SnapshotFile(path) as snapshot:
        return snapshot.states


def test_a_snapshot_has_the_evicted_keys_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons that are killed again and again, and begin with a snapshot of a second ago."""
    monkeypatch.setattr(snapshots, "LOOK_INTERVAL_S", 0.5)
    monkeypatch.setattr(snapshots, "MAX_AGE_S", 1.0)
    source = random.Random(6)
    world = World(**RULES | {"state": RULES["state"] | {"dir": str(tmp_path)}})
    from_snapshots, with_evicted = 0.0, 0
    for part in range(25):
        daemon = world.start()
        churn(world, source.randrange(1, 30), seed=part, keys=source.choice([5, 8, 20]))
        for _ in range(source.randrange(4, 25)):
            world.step(daemon)
            world.now_s += 0.5
        world.settle()
        assert in_memory(world) == list(check(world).kept)
        from_snapshots += world.metric(daemon, "restores_total", source="snapshot")
        with_evicted += any(states_in(path) > KEYS for path in tmp_path.rglob("0-*.snapshot"))
        world.kill(daemon)
    assert from_snapshots > 5
    assert with_evicted > 5


def damage(world: World) -> None:
    log = world.broker.topics["t.state"].logs[0]
    at = max(i for i, r in enumerate(log) if r.value and r.key and key_kind(r.key)[0] != FLOOR)
    log[at] = log[at]._replace(value=b"x" + (log[at].value or b"")[1:])


def newest_floor(world: World) -> Floor:
    return [unpack_floor(r.value) for r in world.state_logs()[0] if r.value and r.key and r.key[:1] == FLOOR][-1]


@pytest.mark.parametrize("fault", [None, "begin", "sent", "commit"])
@pytest.mark.parametrize("kills", [1, 6])
def test_a_rebuild_after_a_damaged_record(kills: int, fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of before are of different offsets; and those of the rebuild are too few until all are written.

    `fault`: at the first transaction, which says that they are.
    """
    world = World(**RULES)
    daemon = world.start()
    churn(world, 150, keys=20)
    world.settle()
    world.stop(daemon)
    damage(world)
    monkeypatch.setattr(checkpoint, "WRITES_PER_TRANSACTION", 1)
    daemon = world.start()
    world.faults += [fault] if fault else []
    world.settle()
    assert newest_floor(world).rebuilt_to == 150
    for number in range(kills):
        churn(world, 1 + number % 2, seed=50 + number, keys=20)
        world.settle()
        assert in_memory(world) == list(check(world).kept)
        world.kill(daemon)
        daemon = world.start()
        world.settle()
        assert in_memory(world) == list(check(world).kept)
    churn(world, 60, seed=9, keys=20)
    world.settle()
    assert in_memory(world) == list(check(world).kept)
    monkeypatch.undo()
    for part in range(12):
        churn(world, 10, seed=70 + part, keys=3)
        world.settle()
        idle(world, daemon, 3)
    world.stop(daemon)
    assert records(world) == set(check(world).kept)
    assert newest_floor(world).rebuilt_to == -1


@pytest.mark.parametrize("kills", [1, 6])
def test_a_new_model_whose_states_are_rebuilt(kills: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(**RULES, on_model_change="replay")
    daemon = world.start(FakeStep(card(fingerprint="a" * 32)))
    churn(world, 150, keys=20)
    world.settle()
    world.stop(daemon)
    monkeypatch.setattr(checkpoint, "WRITES_PER_TRANSACTION", 1)
    new = FakeStep(card(fingerprint="b" * 32))
    daemon = world.start(new)
    world.settle()
    for number in range(kills):
        churn(world, 1 + number % 2, seed=50 + number, keys=20)
        world.settle()
        world.kill(daemon)
        daemon = world.start(new)
        world.settle()
        assert in_memory(world) == list(check(world, fallen=150).kept)
    churn(world, 60, seed=9, keys=20)
    world.settle()
    assert in_memory(world) == list(check(world, fallen=150).kept)


@pytest.mark.parametrize("point", ["read", "begin", "committed", "commit"])
def test_a_crash_while_a_new_models_states_are_rebuilt(point: str) -> None:
    crashes = 0
    while crash_in_rebuild(point, crashes):
        crashes += 1
    assert crashes > 0


def crash_in_rebuild(point: str, nth: int) -> bool:
    """Whether there was such a call, up to the first answers."""
    world = World(**RULES, on_model_change="replay")
    daemon = world.start(FakeStep(card(fingerprint="a" * 32)))
    churn(world, 60, keys=20)
    world.settle()
    world.stop(daemon)
    new = FakeStep(card(fingerprint="b" * 32))
    daemon = world.start(new)
    churn(world, 3, seed=2)
    with crash_at_call(world, point, nth) as crash:
        for _ in range(12):
            world.step(daemon)
    world.kill(daemon)
    world.busy.clear()
    world.start(new)
    churn(world, 10, seed=3, keys=20)
    world.settle()
    assert in_memory(world) == list(check(world, fallen=60).kept)
    return crash.happened and nth < 12


def test_an_incident_goes_with_its_key() -> None:
    """No end record of it comes, and the next alert is published."""
    policy = {
        "alerts": {"cooldown": "1h", "hold": True, "end_record": True},
        "output": {"topic": OUTPUT, "alerts_topic": "alerts", "threshold": -0.2},
    }
    world = World(**RULES, **policy)
    world.start()
    produce(world, b"a", 20)
    for number in range(KEYS):
        produce(world, b"k%d" % number, 0)
    produce(world, b"a", 20)
    world.settle()
    said = [json.loads(r.value or b"") for r in world.broker.topics["alerts"].logs[0]]
    assert [(one["key"], one["source"]["offset"]) for one in said] == [("a", 0), ("a", KEYS + 1)]
    check(world)


def test_a_damaged_record_of_a_key_that_has_gone_is_deleted(caplog: pytest.LogCaptureFixture) -> None:
    """Else each start would rebuild all, for as long as the input has it all."""
    world = World(**RULES)
    daemon = world.start()
    for number in range(KEYS + 1):
        produce(world, b"k%d" % number)
    world.settle()
    world.stop(daemon)
    log = world.broker.topics["t.state"].logs[0]
    (at,) = [i for i, r in enumerate(log) if r.value and r.key and r.key.endswith(b"k0")]
    log[at] = log[at]._replace(value=b"x" + (log[at].value or b"")[1:])
    for _ in range(3):
        caplog.clear()
        daemon = world.start()
        world.settle()
        rebuilt = "rebuilding states" in caplog.text
        for number in range(20):
            produce(world, b"k%d" % (1 + number % KEYS))
            world.settle()
            idle(world, daemon, 2)
        check(world)
        world.stop(daemon)
    assert not rebuilt
    assert b"k0" not in records(world)
