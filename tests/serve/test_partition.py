"""A partition's life, and its dirty rows against a plain dict: oldest first, whatever was written or removed since."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream.serve import partition as partition_module
from lstmstream.serve.partition import DirtyRows, Partition, PartitionPhase, Partitions
from lstmstream.serve.scored import ChangedRows
from lstmstream.serve.state import Slab, StateStore

INFINITY = float("inf")
KEYS = 12


class Mark(NamedTuple):
    """Of one dirty key."""

    first_offset: int
    since_s: float
    min_timestamp_ms: int


class Marks:
    """A slab with its dirty rows, and a dict that says which keys are dirty and since when."""

    def __init__(self) -> None:
        self.slab = Slab(1)
        self.dirty = DirtyRows(self.slab)
        self.marks: dict[bytes, Mark] = {}
        self.now_s = 100.0
        self.offset = 0

    def mark(self, numbers: list[int]) -> None:
        """A batch changed these keys, in this order; one that is new gets a row."""
        keys = [b"%d" % number for number in numbers]
        rows = [self.slab.index[key] if key in self.slab.index else self.slab.add(key) for key in keys]
        offsets = list(range(self.offset, self.offset + len(keys)))
        min_timestamp_ms = 7 * self.offset
        self.dirty.mark(ChangedRows(np.array(rows, np.int64), np.array(offsets, np.int64)), self.now_s, 7 * self.offset)
        for key, offset in zip(keys, offsets, strict=True):
            self.marks.setdefault(key, Mark(offset, self.now_s, min_timestamp_ms))
        self.offset += len(keys) + 1

    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def remove(self, number: int) -> None:
        key = b"%d" % number
        if key in self.slab.index:
            self.slab.remove(key)
            self.marks.pop(key, None)

    def write(self, limit: int, ago_s: float) -> None:
        """A transaction: what is taken stays dirty until it is committed."""
        rows = self.take(limit, self.now_s - ago_s)
        self.check()
        self.dirty.clean(rows)
        for key in self.slab.index.keys_at(rows):
            del self.marks[key or b""]

    def clean(self, numbers: list[int]) -> None:
        """Any rows, in any order."""
        keys = [b"%d" % number for number in numbers if b"%d" % number in self.slab.index]
        self.dirty.clean(np.array([self.slab.index[key] for key in keys], np.int64))
        for key in keys:
            self.marks.pop(key, None)

    def take(self, limit: int, before_s: float) -> np.ndarray:
        """The oldest that are due, and what would be the floor once they are written."""
        rows, next_offset = self.dirty.take(limit, before_s=before_s)
        oldest_first = sorted(self.marks.items(), key=lambda item: item[1].first_offset)
        due = [key for key, mark in oldest_first if mark.since_s <= before_s][:limit]
        assert self.slab.index.keys_at(rows) == due
        left = [mark.first_offset for key, mark in oldest_first if key not in due]
        assert next_offset == (left[0] if left else None)
        return rows

    def check(self) -> None:
        assert self.dirty.count == len(self.marks)
        first = min(self.marks.values(), default=None)
        assert self.dirty.oldest() == (None if first is None else (first.since_s, first.min_timestamp_ms))
        # The first change that no record contains is where a restore must begin.
        assert self.dirty.take(0, before_s=INFINITY)[1] == (None if first is None else first.first_offset)
        self.take(3, self.now_s - 2)
        self.take(10**6, INFINITY)
        found = {key: int(self.slab.first_unwritten[row]) for key, row in self.slab.index.items()}
        assert {key: offset for key, offset in found.items() if offset >= 0} == {
            key: mark.first_offset for key, mark in self.marks.items()
        }


numbers = st.lists(st.integers(0, KEYS - 1), max_size=KEYS, unique=True)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("mark"), numbers),
        st.tuples(st.just("mark"), numbers),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 3.0])),
        st.tuples(st.just("write"), st.integers(0, 8), st.sampled_from([-1.0, 0.0, 1.0, 2.0])),
        st.tuples(st.just("clean"), numbers),
        st.tuples(st.just("remove"), st.integers(0, KEYS - 1)),
    ),
    max_size=30,
)


@given(actions, st.sampled_from([1, 3, 4096]))
@settings(max_examples=300, deadline=None)
def test_dirty_rows_are_those_of_a_dict(life: list[tuple[Any, ...]], chunk_rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition_module, "_CHUNK_ROWS", chunk_rows)
        marks = Marks()
        for what, *details in life:
            getattr(marks, what)(*details)
            marks.check()


def changed(*pairs: tuple[int, int]) -> ChangedRows:
    return ChangedRows(np.array([row for row, _ in pairs]), np.array([offset for _, offset in pairs]))


def test_the_row_of_a_removed_key_is_not_written_under_the_next_one() -> None:
    slab = Slab(1)
    dirty = DirtyRows(slab)
    for key in (b"a", b"b", b"c"):
        slab.add(key)
    dirty.mark(changed((0, 10), (1, 11), (2, 12)), 5.0, 1_000)
    slab.remove(b"a")
    slab.remove(b"b")
    assert slab.add(b"new") == 1
    assert dirty.count == 1
    rows, next_offset = dirty.take(9, before_s=INFINITY)
    assert (rows.tolist(), next_offset) == ([2], None)
    dirty.mark(changed((1, 20)), 6.0, 2_000)  # the new key's own change
    rows, next_offset = dirty.take(1, before_s=INFINITY)
    assert (rows.tolist(), next_offset) == ([2], 20)
    dirty.clean(rows)
    assert dirty.oldest() == (6.0, 2_000)


def test_many_rows_of_one_batch_are_taken_bit_by_bit() -> None:
    """A restore marks all at once, and a shutdown writes a part of it at a time."""
    slab = Slab(1)
    dirty = DirtyRows(slab)
    rows = [slab.add(b"%d" % i) for i in range(10_000)]
    dirty.mark(ChangedRows(np.array(rows), np.arange(10_000) * 3), 5.0, 1_000)
    for start in range(0, 10_000, 2_500):
        taken, next_offset = dirty.take(2_500, before_s=5.0)
        assert taken.tolist() == rows[start : start + 2_500]
        assert next_offset == (3 * (start + 2_500) if start < 7_500 else None)
        dirty.clean(taken)
        assert dirty.count == 10_000 - start - 2_500
    assert (dirty.oldest(), dirty.take(5, before_s=INFINITY)[1]) == (None, None)


def test_nothing_is_taken_before_its_time_and_the_floor_is_known_all_the_same() -> None:
    slab = Slab(1)
    dirty = DirtyRows(slab)
    slab.add(b"a")
    dirty.mark(changed((0, 10)), 5.0, 1_000)
    rows, next_offset = dirty.take(9, before_s=4.9)
    assert (rows.tolist(), rows.dtype, next_offset) == ([], np.int64, 10)
    assert dirty.take(9, before_s=5.0)[0].tolist() == [0]


# -- the partition


def made(number: int = 3, epoch: int = 8) -> tuple[Partition, StateStore]:
    states = StateStore(np.zeros(2, np.float32))
    return Partition(number, epoch, states), states


def test_from_restoring_to_running_to_closed() -> None:
    partition, states = made()
    assert (partition.number, partition.epoch, partition.phase) == (3, 8, PartitionPhase.RESTORING)
    assert states.slabs == {3: partition.slab}
    partition.begin_states(5)
    partition.run(position=40, floor=12, now_s=7.0)
    assert partition.phase is PartitionPhase.RUNNING
    assert (partition.origin, partition.position, partition.floor, partition.floor_lag) == (5, 40, 12, 28)
    assert partition.floor_written_s == 7.0
    with pytest.raises(AssertionError):
        partition.run(position=41, floor=12, now_s=8.0)
    partition.close()
    assert partition.phase is PartitionPhase.CLOSED
    assert states.slabs == {}


def test_states_that_begin_again_are_empty_and_clean() -> None:
    partition, states = made()
    partition.slab.add(b"a")
    partition.dirty.mark(changed((0, 4)), 1.0, 1_000)
    assert partition.dirty.count == 1
    partition.begin_states(9)
    assert (len(partition.slab), partition.dirty.count, partition.origin) == (0, 0, 9)
    assert states.slabs[3] is partition.slab
    partition.slab.add(b"b")
    partition.dirty.mark(changed((0, 5)), 1.0, 1_000)
    assert partition.dirty.count == 1, "the rows are those of the new slab"


class SomeRestore:
    """As much of a Restore as a partition knows."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_partition_that_is_closed_frees_its_restores_reader() -> None:
    partition, _ = made()
    restore = SomeRestore()
    partition.restore = restore  # type: ignore[assignment]
    partition.close()
    assert (restore.closed, partition.restore) == (1, None)


def test_a_partition_is_not_closed_under_a_batch_in_flight() -> None:
    partition, states = made()
    states.gather(np.array([3]), [b"a"])
    with pytest.raises(AssertionError):
        partition.close()


def test_the_partitions_of_a_member() -> None:
    states = StateStore(np.zeros(2, np.float32))
    partitions = Partitions()
    first, second = Partition(4, 1, states), Partition(2, 7, states)
    for one in (first, second):
        one.restore = SomeRestore()  # type: ignore[assignment]
        partitions.add(one)
    assert partitions.assignment() == {4: 1, 2: 7}
    assert partitions.restoring() == [first.restore, second.restore], "in the order of assignment"
    assert (partitions.running(), partitions.running_numbers()) == ([], set())
    first.run(position=0, floor=0, now_s=0.0)
    assert (partitions.running(), partitions.running_numbers()) == ([first], {4})
    assert partitions.restoring() == [second.restore]
    assert (len(partitions), list(partitions), partitions[2]) == (2, [first, second], second)
    for one in partitions:  # may shrink meanwhile
        assert partitions.remove(one.number) is one
    assert partitions.remove(4) is None
    assert (len(partitions), partitions.assignment()) == (0, {})
