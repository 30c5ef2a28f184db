"""Slabs and slots: row numbers that are used again, rounds, and batches in flight that are committed or rolled back."""

from __future__ import annotations

import mmap
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream import codec
from lstmstream.serve.row_memory import RowMemory
from lstmstream.serve.state import CLEAN, BatchStates, KeyState, Slab, StateStore, _slots
from lstmstream.serve.state_rows import StateBackend
from tests.serve.helpers import free_rows, snapshot

pytestmark = pytest.mark.usefixtures("either_codec")

Key = bytes | None
MakeBackend = Callable[[int], StateBackend]


def test_a_slab_grows_and_forgets(make_backend: MakeBackend) -> None:
    slab = Slab(3, make_backend(3))
    for i in range(1_000):
        slab.put(b"%d" % i, KeyState(np.full(3, i, np.float32), i, -i, 2 * i))
    slab.put(b"5", KeyState(np.full(3, 0.5, np.float32), 1, 2, 3))
    assert len(slab) == 1_000
    assert slab.get(slab.index[b"999"])[1:] == (999, -999, 1998, 0, None)
    assert slab.get(slab.index[b"5"]).row.tolist() == [0.5] * 3
    copy = slab.get(7)
    copy.row[:] = 9
    assert slab.get(7).row.tolist() == [7] * 3
    for i in range(6, 1_000):
        slab.remove(b"%d" % i)
    assert list(slab.index.items()) == [(b"%d" % i, i) for i in range(6)]
    assert len(slab) == 6
    capacity = slab.capacity
    assert sorted(slab.add(b"again %d" % i) for i in range(994)) == list(range(6, 1_000))
    assert slab.get(3).row.tolist() == [3] * 3
    assert slab.capacity == capacity, "free rows are used before the arrays grow"


def test_a_row_that_is_used_again_inherits_nothing(make_backend: MakeBackend) -> None:
    store = StateStore(np.array([0.25, -1.0], np.float32), make_backend(2))
    slab = store.open(0)
    for key in (b"a", b"b", b"c"):
        slab.put(key, KeyState(np.full(2, 9, np.float32), 41, 1_000, 77))
    slab.first_unwritten[:3] = [50, 60, 70]
    slab.remove(b"b")
    assert slab.first_unwritten[:3].tolist() == [50, CLEAN, 70]
    found = store.gather(np.array([0, 0]), [b"d", b"a"])
    where = found.row_numbers.tolist().index(1)
    assert slab.index == {b"a": 0, b"c": 2, b"d": 1}
    assert found.rows[where].tolist() == [0.25, -1.0]
    assert (found.steps[where], found.last_timestamp[where], found.last_offset[where]) == (0, 0, -1)
    assert slab.first_unwritten[:3].tolist() == [50, CLEAN, 70]
    store.commit()
    slab.remove(b"c")
    slab.first_unwritten[2] = 80  # a mark that came too late: the row was free already
    assert slab.add(b"e") == 2
    assert slab.first_unwritten[2] == CLEAN


@pytest.mark.parametrize("number", [0, 1, 40, 3_000])
def test_the_memory_of_a_slab_counts_its_keys(number: int) -> None:
    slab = Slab(3)
    keys = [b"x" * (i % 90) + b"%d" % i for i in range(number)]
    for key in keys:
        slab.put(key, KeyState(np.zeros(3, np.float32), 1, 0, 0))
    arrays = (4 * 3 + 6 * 8) * number
    texts = sum(map(sys.getsizeof, keys))
    places = 8 * number  # in the list of keys, at least
    if codec.load() is not None:  # it has objects neither for keys nor for row numbers
        texts, places = sum(map(len, keys)) - number * 15, 16 * number
    assert arrays + texts + places <= slab.nbytes <= arrays + texts + places + 80 * number + 40_000


class _FixedMap(mmap.mmap):
    """As on a system without mremap."""

    def resize(self, newsize: int) -> None:
        raise SystemError("mmap: resizing not available--no mremap()")


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("held", [False, True])
def test_rows_keep_their_content_while_the_memory_grows(
    held: bool, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place, or copied, where somebody still has one of the arrays or the system cannot grow memory."""
    if not in_place:
        monkeypatch.setattr("lstmstream.serve.row_memory.mmap.mmap", _FixedMap)
    slab = Slab(2)
    arrays = []
    for number in range(2_000):
        slab.put(b"%d" % number, KeyState(np.array([number, -number], np.float32), number + 1, 2 * number, 3 * number))
        if held:
            arrays.append(slab.rows.array)
    assert slab.capacity >= 2_000
    for number in range(2_000):
        row, *numbers = slab.get(slab.index[b"%d" % number])
        assert row.tolist() == [number, -number]
        assert numbers == [number + 1, 2 * number, 3 * number, 0, None]
    row = slab.add(b"next")
    assert (slab.steps[row], slab.last_offset[row], slab.first_unwritten[row]) == (0, -1, CLEAN)
    assert all(array[0, 0] == 0 for array in arrays)


def test_states_that_no_memory_is_left_for_are_a_memory_error() -> None:
    memory = RowMemory(np.float32, 64, 256)
    with pytest.raises(MemoryError, match="bytes of states"):
        memory.grow(1 << 50)


def test_the_memory_of_removed_keys_is_given_back() -> None:
    slab = Slab(3)
    slab.put(b"a", KeyState(np.zeros(3, np.float32), 1, 0, 0))
    before = slab.nbytes
    slab.put(b"x" * 100_000, KeyState(np.zeros(3, np.float32), 1, 0, 0))
    slab.put(None, KeyState(np.zeros(3, np.float32), 1, 0, 0))
    assert slab.nbytes > before + 100_000
    slab.remove(b"x" * 100_000)
    slab.remove(None)
    kept = 2 * (4 * 3 + 5 * 8 + 16)  # their rows are kept for other keys
    assert before < slab.nbytes <= before + kept + 1_000  # a dict stays as large as it was


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.binary(max_size=1)), max_size=40))
@settings(deadline=None)
def test_rounds_take_each_key_once_and_in_order(pairs: list[tuple[int, bytes | None]]) -> None:
    store = StateStore(np.zeros(1, np.float32))
    for partition in range(4):
        store.open(partition)
    gathered = store.gather(np.array([p for p, _ in pairs], np.int64), [key for _, key in pairs])
    slot_names = [
        (p, store.slabs[p].index.keys_at(gathered.row_numbers[slot : slot + 1])[0])
        for slot, p in enumerate(gathered.partitions.tolist())
    ]
    assert sorted(map(repr, set(pairs))) == sorted(map(repr, slot_names))
    seen: list[int] = []
    for start, end in zip(gathered.round_bounds, gathered.round_bounds[1:], strict=False):
        events = gathered.by_round[start:end].tolist()
        assert [pairs[i] for i in events] == slot_names[: len(events)]  # a prefix of the slots
        assert events
        seen += events
    assert sorted(seen) == list(range(len(pairs)))
    for name in slot_names:
        mine = [i for i in seen if pairs[i] == name]
        assert mine == sorted(mine)


def test_a_partition_is_not_closed_under_a_batch_in_flight() -> None:
    store = StateStore(np.zeros(1, np.float32))
    store.open(0)
    store.gather(np.array([0]), [b"a"])
    store.gather(np.array([0]), [b"a"])
    for _ in range(2):
        with pytest.raises(AssertionError):
            store.close(0)
        store.rollback()
    store.close(0)
    store.close(0)


class Change(NamedTuple):
    """One event of a batch; `moves` is False for one that becomes a dead letter."""

    partition: int
    key: Key
    moves: bool


class Stream:
    """A store, and what must be in it: a dict of states, and one more for each batch in flight, as it was before."""

    def __init__(self, make_backend: MakeBackend, partitions: int = 2) -> None:
        self.store = StateStore(np.array([0.25, 0.0], np.float32), make_backend(2))
        for partition in range(partitions):
            self.store.open(partition)
        self.states: dict[tuple[int, Key], tuple[float, int, int]] = {}  # sum of offsets, steps, last offset
        self.before: list[dict[tuple[int, Key], tuple[float, int, int]]] = []
        self.marks: dict[tuple[int, Key], int] = {}
        self.offset = 0

    def batch(self, changes: Sequence[Change]) -> None:
        """As the scorer does it, round by round."""
        offsets = np.arange(self.offset, self.offset + len(changes))
        self.offset += len(changes)
        moves = np.array([change.moves for change in changes], np.bool_)
        states = self.store.gather(
            np.array([change.partition for change in changes], np.int64), [change.key for change in changes]
        )
        for start, end in pairwise(states.round_bounds.tolist()):
            chosen = states.by_round[start:end]
            slots = np.flatnonzero(moves[chosen])
            states.rows[slots, 0] += offsets[chosen][slots]
            states.steps[slots] += 1
            states.last_offset[slots] = offsets[chosen][slots]
        self.store.apply(states)
        self.before.append(dict(self.states))
        for change, offset in zip(changes, offsets.tolist(), strict=True):
            if change.moves:
                total, steps, _ = self.states.get((change.partition, change.key), (0.25, 0, -1))
                self.states[change.partition, change.key] = float(np.float32(total + offset)), steps + 1, offset

    def commit(self) -> None:
        self.store.commit()
        if self.before:
            self.before.pop(0)

    def rollback(self) -> None:
        self.store.rollback()
        if self.before:
            self.states = self.before.pop()

    def mark(self) -> None:
        """Something notes each row as unwritten."""
        for partition, key in self.states:
            self.marks[partition, key] = self.offset
            slab = self.store.slabs[partition]
            slab.first_unwritten[slab.index[key]] = self.offset

    def remove(self, number: int) -> None:
        """A key is forgotten, as one that was silent for long."""
        partition, key = sorted(self.states, key=repr)[number % len(self.states)]
        self.store.slabs[partition].remove(key)
        del self.states[partition, key]
        self.marks.pop((partition, key), None)

    def add(self, partition: int, key: Key) -> None:
        """A state is put there, as a restore does it."""
        if (partition, key) not in self.states:
            self.store.slabs[partition].put(key, KeyState(np.array([7, 0], np.float32), 3, 0, 1))
            self.states[partition, key] = 7.0, 3, 1

    def check(self) -> None:
        found = {
            (partition, key): (float(slab.get(row).row[0]), int(slab.steps[row]), int(slab.last_offset[row]))
            for partition, slab in self.store.slabs.items()
            for key, row in slab.index.items()
            if slab.steps[row]
        }
        assert found == self.states
        for partition, slab in self.store.slabs.items():
            for key, row in slab.index.items():
                assert slab.index.keys_at(np.array([row])) == [key]
                assert slab.first_unwritten[row] == self.marks.get((partition, key), CLEAN)
            if not self.before:
                here = {key for number, key in self.states if number == partition}
                assert set(slab.index) == here, "a key without a step leaves no row"


keys = st.sampled_from([None, b"", b"a", b"b", b"c", b"d", b"e"])
changes = st.lists(st.builds(Change, st.integers(0, 1), keys, st.sampled_from([True, True, False])), max_size=8)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("batch"), changes),
        st.tuples(st.just("batch"), changes),
        st.sampled_from([("commit",), ("commit",), ("rollback",), ("mark",)]),
        st.tuples(st.just("remove"), st.integers(0, 9)),
        st.tuples(st.just("add"), st.integers(0, 1), keys),
    ),
    max_size=40,
)


@given(life=actions)
@settings(max_examples=300, deadline=None)
def test_any_order_of_batches_commits_and_rollbacks_is_that_of_a_dict(
    make_backend: MakeBackend, life: list[tuple[Any, ...]]
) -> None:
    """Up to three batches in flight; keys come and go in between, and their rows are used again."""
    stream = Stream(make_backend)
    for what, *details in life:
        if what == "batch" and len(stream.before) == 3:
            continue
        if what in ("remove", "add", "mark") and (stream.before or (what == "remove" and not stream.states)):
            continue
        getattr(stream, what)(*details)
        stream.check()
    for slab in stream.store.slabs.values():
        rows = [*slab.index.values(), *free_rows(slab)]
        assert sorted(rows) == list(range(slab.index.used_rows)), "each row has one key or is free"


def moved(*keys: Key) -> list[Change]:
    return [Change(0, key, moves=True) for key in keys]


def dead(*keys: Key) -> list[Change]:
    return [Change(0, key, moves=False) for key in keys]


def two_in_flight(make_backend: MakeBackend) -> Stream:
    """`a` was there; the first batch makes `b` and meets `dead`, the second goes on with `b` and makes `c`."""
    stream = Stream(make_backend, 1)
    stream.batch(moved(b"a", b"gone"))
    stream.commit()
    stream.store.slabs[0].remove(b"gone")  # so that b gets its row
    del stream.states[0, b"gone"]
    stream.batch([*moved(b"b", b"a"), *dead(b"dead")])
    stream.batch(moved(b"b", b"c", b"a"))
    stream.check()
    assert stream.store.slabs[0].index[b"b"] == 1
    return stream


def test_of_two_batches_in_flight_the_oldest_is_committed_first(make_backend: MakeBackend) -> None:
    stream = two_in_flight(make_backend)
    for _ in range(2):
        stream.commit()
        stream.check()
    assert {key: steps for (_, key), (_, steps, _) in stream.states.items()} == {b"a": 3, b"b": 2, b"c": 1}


def test_a_key_of_a_committed_batch_outlives_the_rollback_of_the_next(make_backend: MakeBackend) -> None:
    stream = two_in_flight(make_backend)
    stream.commit()
    stream.rollback()
    stream.check()
    assert {key: steps for (_, key), (_, steps, _) in stream.states.items()} == {b"a": 2, b"b": 1}


def test_of_two_batches_in_flight_the_newest_is_rolled_back_first(make_backend: MakeBackend) -> None:
    stream = two_in_flight(make_backend)
    stream.rollback()
    stream.check()
    assert {key: steps for (_, key), (_, steps, _) in stream.states.items()} == {b"a": 2, b"b": 1}
    stream.commit()
    stream.check()


def test_the_rollback_of_both_leaves_no_trace(make_backend: MakeBackend) -> None:
    stream = two_in_flight(make_backend)
    slab = stream.store.slabs[0]
    bare = Stream(make_backend, 1)
    bare.batch(moved(b"a"))
    bare.commit()
    for _ in range(2):
        stream.rollback()
        stream.check()
    assert slab.index == {b"a": 0}
    assert snapshot(stream.store) == snapshot(bare.store)
    free = slab.index.used_rows - 1
    assert slab.nbytes - bare.store.slabs[0].nbytes <= free * (4 * 2 + 5 * 8 + 16) + 1_000
    assert free_rows(slab)[0] == 1, "the row that was free before is the next to be used"
    stream.rollback()  # without a batch, nothing happens
    stream.commit()
    stream.check()


def test_a_key_without_a_step_is_kept_for_as_long_as_a_batch_may_use_it(make_backend: MakeBackend) -> None:
    stream = Stream(make_backend, 1)
    stream.batch(dead(b"a", b"b"))
    stream.batch(moved(b"a"))
    stream.commit()
    assert set(stream.store.slabs[0].index) == {b"a", b"b"}
    stream.commit()
    assert set(stream.store.slabs[0].index) == {b"a"}
    stream.check()


def test_a_batch_that_was_gathered_and_never_applied_can_be_rolled_back(make_backend: MakeBackend) -> None:
    stream = Stream(make_backend, 1)
    stream.batch(moved(b"a"))
    stream.commit()
    states = stream.store.gather(np.array([0, 0]), [b"a", b"new"])
    states.rows[:] = np.nan
    stream.store.rollback()
    stream.check()


def test_what_was_gathered_is_a_copy(make_backend: MakeBackend) -> None:
    """Neither the slab nor the undo of a batch changes with what the scorer does to its arrays."""
    stream = Stream(make_backend, 1)
    stream.batch(moved(b"a", b"b"))
    stream.commit()
    states: BatchStates = stream.store.gather(np.array([0, 0]), [b"a", b"b"])
    for array in (states.rows, states.steps, states.last_timestamp, states.last_offset):
        array[:] = 99
    stream.check()
    stream.store.apply(states)
    assert {steps for _, steps, *_ in snapshot(stream.store).values()} == {99}
    stream.store.rollback()
    stream.check()


@pytest.mark.parametrize("count", [0, 1, 2, 500])
@pytest.mark.parametrize("keys", [1, 40, 1 << 31])
def test_slots_and_rounds_are_those_of_the_definition(count: int, keys: int) -> None:
    random = np.random.default_rng(count + keys)
    partitions, rows = random.integers(0, 5, count), random.integers(0, keys, count)
    of_slot, row_of_slot, by_round, bounds = _slots(partitions, rows)
    keys_of = list(zip(partitions.tolist(), rows.tolist(), strict=True))
    occurrences = Counter(keys_of)
    slots = list(zip(of_slot.tolist(), row_of_slot.tolist(), strict=True))
    assert slots == sorted(occurrences, key=lambda key: (-occurrences[key], key))
    seen: Counter[tuple[int, int]] = Counter()
    rounds: dict[int, list[tuple[int, int]]] = {}
    for observation, key in enumerate(keys_of):
        rounds.setdefault(seen[key], []).append((slots.index(key), observation))
        seen[key] += 1
    expected = [observation for number in sorted(rounds) for _, observation in sorted(rounds[number])]
    assert by_round.tolist() == expected
    assert bounds.tolist() == [0, *np.cumsum([len(rounds[number]) for number in sorted(rounds)]).tolist()]
