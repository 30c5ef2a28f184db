"""Erased keys with `state.max_keys`: the key leaves the set at the offset of its erasure, live and in every rebuild.

Judged by a dict in the order in which its keys were seen, from which a key is taken at each offset that the state
topic names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lstmstream.serve import snapshots
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.erasure_records import pack_request, read_applied
from lstmstream.serve.erasures import INTERVAL_S, RebuildErasures
from lstmstream.serve.partition import Partition
from lstmstream.serve.restore import Restore
from lstmstream.serve.state_records import ENTITY_KEY, key_kind, unpack_key
from tests.serve.memory_world import INPUT, OUTPUT, PARTITIONS, STATES, FakeStep, World, amount_of, card, crash_at_call
from tests.serve.test_expiry import answers, idle, produce
from tests.serve.test_key_limit import RULES, Books, churn, in_memory, newest_floor

KEYS = 3
LIMITED: dict[str, Any] = RULES | {"state": {"checkpoint_interval": "5s", "max_keys": KEYS}}
MAX_CALLS = 12
OLD, NEW = "a" * 32, "b" * 32


def expected(world: World) -> tuple[dict[int, Any], Books]:
    """Of partition 0: what each offset becomes, and what is kept after all."""
    books, erased = Books(KEYS), world.erased_at(0)
    found: dict[int, Any] = {}
    for record in world.broker.topics[INPUT].logs[0]:
        leave(books, erased, record.offset)
        found[record.offset] = books.take(record.key, amount_of(record.value))
    leave(books, erased, world.broker.offsets.get(0, 0))
    return found, books


def leave(books: Books, erased: list[tuple[int, bytes | None]], offset: int) -> None:
    while erased and erased[0][0] <= offset:
        books.kept.pop(erased.pop(0)[1], None)


def check(world: World, *, fallen: int = 0) -> None:
    """The answers from offset `fallen` on, and the keys in memory."""
    said, books = expected(world)
    found = answers(world)
    assert {at: one for at, one in found.items() if at >= fallen} == {
        at: one for at, one in said.items() if at >= fallen
    }
    if world.daemons:
        assert in_memory(world) == list(books.kept)


def ask(world: World, *keys: bytes | None) -> None:
    for partition in range(PARTITIONS):
        world.broker.append(STATES, partition, *pack_request(keys))


def erase(world: World, daemon: Daemon, *keys: bytes | None) -> None:
    """And wait until it is done."""
    ask(world, *keys)
    world.now_s += INTERVAL_S
    for _ in range(4):
        world.step(daemon)
    world.settle()


def states(world: World) -> set[bytes | None]:
    """Keys whose newest record in partition 0 of the state topic is a state, empty or not."""
    newest = {r.key: r.value for r in world.state_logs()[0] if r.key and key_kind(r.key)[0] == ENTITY_KEY}
    return {unpack_key(key) for key, value in newest.items() if value is not None}


def damage(world: World, key: bytes) -> None:
    """Its newest record."""
    log = world.broker.topics[STATES].logs[0]
    at = max(i for i, r in enumerate(log) if r.key and r.value and r.key[:1] == ENTITY_KEY and r.key.endswith(key))
    log[at] = log[at]._replace(value=b"x" + (log[at].value or b"")[1:])


def answer(world: World, keys: Sequence[bytes]) -> None:
    for key in keys:
        produce(world, key)
    world.settle()


def steps_at(world: World, offset: int) -> int:
    said = answers(world)[offset]
    assert isinstance(said, tuple)
    return said[1]


def test_an_erased_key_makes_room() -> None:
    world = World(**LIMITED)
    daemon = world.start()
    answer(world, [b"a", b"b", b"c"])
    erase(world, daemon, b"b")
    answer(world, [b"d", b"a", b"c", b"e", b"d"])  # nobody has to go for d; d goes for e
    check(world)
    assert [steps_at(world, offset) for offset in range(8)] == [1, 1, 1, 1, 2, 2, 1, 1]


def test_of_an_evicted_key_it_is_said_that_there_was_no_state() -> None:
    world = World(**LIMITED)
    daemon = world.start()
    answer(world, [b"a", b"b", b"c", b"d"])
    erase(world, daemon, b"a", b"b")
    records = [(one.key, one.value) for one in world.state_logs()[0]]
    assert [one.found for one in read_applied(*zip(*records, strict=True))] == [False, True]
    assert b"a" not in states(world)
    answer(world, [b"a", b"b"])
    check(world)


@pytest.mark.parametrize("back", [False, True])
def test_in_a_rebuild_others_have_gone_for_the_erased_key(*, back: bool) -> None:
    """Without its events a would not have gone for x, and would go on. `back`: x has come again before the rebuild."""
    world = World(**LIMITED)
    daemon = world.start()
    answer(world, [b"a", b"b", b"c", b"x"])
    erase(world, daemon, b"x")
    answer(world, [b"b", b"x"] if back else [b"b"])
    world.stop(daemon)
    damage(world, b"c")
    daemon = world.start()
    world.settle()
    check(world)
    answer(world, [b"a", b"x", b"b"])
    check(world)
    world.stop(daemon)
    world.start()
    world.settle()
    check(world)


def test_a_new_model_has_the_set_of_the_whole_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """An erasure at the group's offset too, behind the last event that is read again."""
    world = World(**LIMITED, on_model_change="replay")
    daemon = world.start(FakeStep(card(fingerprint=OLD)))
    answer(world, [b"a", b"b", b"c", b"x", b"y"])
    erase(world, daemon, b"x")
    answer(world, [b"b"])
    erase(world, daemon, b"y")
    world.stop(daemon)
    erased = world.erased_at(0)
    assert erased == [(5, b"x"), (6, b"y")]
    taken: list[list[bytes | None]] = []
    take_due = RebuildErasures.take_due

    def note(self: RebuildErasures, offset: int) -> list[bytes | None]:
        taken.append(take_due(self, offset))
        return taken[-1]

    monkeypatch.setattr(RebuildErasures, "take_due", note)
    daemon = world.start(FakeStep(card(fingerprint=NEW)))
    world.settle()
    check(world)
    assert [one for one in taken if one] == [[b"x"], [b"y"]]
    answer(world, [b"c", b"a", b"x", b"y", b"b"])
    check(world)
    assert states(world) >= {b"b"}


def test_nothing_of_an_erased_key_is_written_by_a_rebuild() -> None:
    world = World(**LIMITED, on_model_change="replay")
    daemon = world.start(FakeStep(card(fingerprint=OLD)))
    answer(world, [b"a", b"x", b"c"])
    erase(world, daemon, b"x")
    world.stop(daemon)
    before = len(world.state_logs()[0])
    daemon = world.start(FakeStep(card(fingerprint=NEW)))
    world.settle()
    idle(world, daemon, 20)
    answer(world, [b"d"])
    world.stop(daemon)
    new = world.state_logs()[0][before:]
    keys = {unpack_key(r.key) for r in new if r.key and r.key[:1] == ENTITY_KEY}
    assert keys == {b"a", b"c", b"d"}


def test_twice_erased() -> None:
    """In a rebuild it leaves twice: after the first time another one has its place."""
    world = World(**LIMITED)
    daemon = world.start()
    answer(world, [b"a", b"b", b"x"])
    erase(world, daemon, b"x")
    answer(world, [b"c", b"x"])
    erase(world, daemon, b"x")
    answer(world, [b"a", b"b"])
    world.stop(daemon)
    damage(world, b"b")
    world.start()
    answer(world, [b"d", b"a", b"c", b"x"])
    check(world)


@pytest.mark.parametrize("before", [False, True])
def test_after_the_offset_was_moved_back_states_of_the_first_time_do_not_count(*, before: bool) -> None:
    """z went and came the first time; the second time d is erased, so that z stays. `before`: it was erased as well."""
    settings = LIMITED["state"] | {"checkpoint_interval": "1h"}
    world = World(**LIMITED | {"batch": {"max_events": 1}, "state": settings})
    daemon = world.start()
    answer(world, [b"a", b"b", b"z", *[b"a", b"b"] * 15])
    if before:
        erase(world, daemon, b"z")
    answer(world, [b"c", b"a"])
    world.stop(daemon)
    log = world.broker.topics[OUTPUT].logs[0]
    back = len(log)
    daemon = world.start()
    answer(world, [b"z", b"d", b"e", b"f", b"z"])
    world.stop(daemon)
    assert steps_at(world, back + 4) == 1
    world.broker.offsets[0] = back
    del log[back:]
    daemon = world.start()
    while len(log) <= back:
        world.step(daemon)
    ask(world, b"d")
    world.now_s += INTERVAL_S
    world.settle()
    assert world.erased_at(0)[-1] in {(back + 2, b"d"), (back + 3, b"d")}  # before f comes
    idle(world, daemon, 3)
    assert newest_floor(world).offset >= back
    world.kill(daemon)
    world.start()
    world.settle()
    check(world)
    answer(world, [b"z"])
    check(world)
    assert steps_at(world, back + 5) == 3


@pytest.mark.parametrize("point", ["read", "begin", "sent", "commit", "committed", "poll"])
def test_a_crash_while_it_is_applied_changes_nothing(point: str) -> None:
    """At each call of its kind, from the request on; then comes a restart, a rebuild or a new model."""
    crashes = 0
    while crash_at(point, crashes, ("rebuild", "new model", "restart")[crashes % 3]):
        crashes += 1
    assert crashes > 0


def crash_at(point: str, nth: int, then: str) -> bool:
    """Whether there was such a call."""
    world = World(**LIMITED | {"on_model_change": "replay"})
    old, new = FakeStep(card(fingerprint=OLD)), FakeStep(card(fingerprint=NEW))
    daemon = world.start(old)
    churn(world, 30, keys=7)
    world.settle()
    idle(world, daemon, 6)
    ask(world, b"k0", b"k1")
    world.now_s += INTERVAL_S
    with crash_at_call(world, point, nth) as crash:
        for _ in range(6):
            world.step(daemon)
        churn(world, 12, seed=2, keys=7)
        for _ in range(6):
            world.step(daemon)
    world.kill(daemon)
    world.busy.clear()
    daemon = world.start(old)
    churn(world, 12, seed=3, keys=7)
    world.settle()
    check(world)
    world.stop(daemon)
    if then == "rebuild":
        damage(world, next(iter(expected(world)[1].kept)) or b"")
    world.start(new if then == "new model" else old)
    world.settle()
    check(world)
    churn(world, 12, seed=4, keys=7)
    world.settle()
    check(world)
    assert {key for _, key in world.erased_at(0)} == {b"k0", b"k1"}
    return crash.happened and nth < MAX_CALLS


@pytest.mark.parametrize("point", ["read", "begin", "committed", "commit"])
def test_a_crash_in_a_rebuild_over_erasures(point: str) -> None:
    crashes = 0
    while crash_in_rebuild(point, crashes):
        crashes += 1
    assert crashes > 0


def crash_in_rebuild(point: str, nth: int) -> bool:
    """Whether there was such a call, up to the first answers."""
    world = World(**LIMITED, on_model_change="replay")
    daemon = world.start(FakeStep(card(fingerprint=OLD)))
    for part in range(3):
        churn(world, 20, seed=part, keys=7)
        world.settle()
        erase(world, daemon, b"k%d" % part, b"k0")
    world.stop(daemon)
    new = FakeStep(card(fingerprint=NEW))
    daemon = world.start(new)
    churn(world, 3, seed=5)
    with crash_at_call(world, point, nth) as crash:
        for _ in range(12):
            world.step(daemon)
    world.kill(daemon)
    world.busy.clear()
    world.start(new)
    churn(world, 10, seed=6, keys=7)
    world.settle()
    check(world)
    return crash.happened and nth < MAX_CALLS


@pytest.mark.parametrize("seed", range(10))
def test_any_order_of_events_erasures_faults_and_rebuilds(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Daemons that are killed, or stopped and begin with a damaged record, or with the other model."""
    monkeypatch.setattr(snapshots, "LOOK_INTERVAL_S", 0.5)
    monkeypatch.setattr(snapshots, "MAX_AGE_S", 1.0)
    source = random.Random(seed)
    settings: dict[str, Any] = {"checkpoint_interval": source.choice(["2s", "1h"]), "max_keys": KEYS}
    if seed % 2:
        settings["dir"] = str(tmp_path)
    world = World(batch={"max_events": source.choice([1, 3, 16])}, state=settings, on_model_change="replay")
    models = [FakeStep(card(fingerprint=OLD)), FakeStep(card(fingerprint=NEW))]
    daemon = world.start(models[0])
    for part in range(40):
        churn(world, source.randrange(12), seed=100 * seed + part, keys=source.choice([3, 5, 8]))
        act = source.random()
        if act < 0.3:
            ask(world, *source.sample([b"k%d" % number for number in range(5)], source.randrange(1, 3)))
        elif act < 0.4:
            world.faults.append(source.choice(["read", "begin", "sent", "commit", "committed", "last_stable_offset"]))
        elif act < 0.55:
            world.kill(daemon)
            daemon = world.start(models[0])
        elif act < 0.7:
            world.settle()
            check(world)
            world.stop(daemon)
            kept = sorted(key for key in states(world) if key is not None)
            if act < 0.62 and kept:
                damage(world, source.choice(kept))
            else:
                models.reverse()
            daemon = world.start(models[0])
        for _ in range(source.randrange(6)):
            world.step(daemon)
            world.now_s += source.choice([0, 0.3, 1, INTERVAL_S])
    world.faults.clear()
    world.settle()
    check(world)
    assert world.erased_at(0)


# -- a fault on purpose is noticed


def leave_events_out(patch: pytest.MonkeyPatch) -> None:
    replay = Restore._replay_some

    def without(self: Restore, batch: Any) -> None:
        self._erasures = None
        replay(self, batch)

    patch.setattr(Restore, "_replay_some", without)


def keep_the_place_in_rebuilds(patch: pytest.MonkeyPatch) -> None:
    take_due = RebuildErasures.take_due
    patch.setattr(RebuildErasures, "take_due", lambda self, offset: take_due(self, offset)[:0])


def keep_the_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "erase", lambda self, keys: self.slab.remove_all([]))


@pytest.mark.parametrize(
    ("plant", "test"),
    [
        (leave_events_out, lambda: test_in_a_rebuild_others_have_gone_for_the_erased_key(back=False)),
        (keep_the_place_in_rebuilds, lambda: test_in_a_rebuild_others_have_gone_for_the_erased_key(back=False)),
        (keep_the_place, test_an_erased_key_makes_room),
    ],
)
def test_a_fault_is_noticed(plant: Any, test: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test()
