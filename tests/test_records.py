"""Columns taken apart and put together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmstream.records import RecordBatch, concatenate, pick


@given(st.lists(st.integers(0, 9)))
def test_picked_items_are_those_of_an_array(rows: list[int]) -> None:
    items = list(range(100, 110))
    assert pick(items, np.array(rows, np.int64)) == [items[row] for row in rows]


@pytest.mark.parametrize("rows", [[], [2], [1, 2, 3], [3, 2, 1], [0, 0, 2], [0, 2, 4], [1, 1, 1]])
def test_a_part_of_a_batch_has_the_chosen_records(rows: list[int]) -> None:
    numbers = np.arange(5)
    keys: list[bytes | None] = [b"a", None, b"", b"d", b"e"]
    values: list[bytes | None] = [b"v" * n for n in range(5)]
    batch = RecordBatch("t", numbers % 2, numbers + 10, numbers + 20, keys, values, [(), [("h", b"1")], (), (), ()])
    part = batch.take(np.array(rows, np.int64))
    assert part.offsets.tolist() == [row + 10 for row in rows]
    assert (part.keys, part.values) == ([keys[row] for row in rows], [values[row] for row in rows])
    assert part.headers == [batch.headers[row] for row in rows]
    assert part.sizes().tolist() == [len(keys[row] or b"") + row + 2 * (row == 1) for row in rows]
    assert concatenate([part, batch]).offsets.tolist() == [*part.offsets.tolist(), *batch.offsets.tolist()]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3))))
def test_the_first_and_the_next_offset_of_each_partition(runs: list[tuple[int, int]]) -> None:
    """One partition after the other, or in turns."""
    partitions = np.array([number for number, count in runs for _ in range(count)], np.int64)
    offsets = np.arange(len(partitions)) + 5
    nothing: list[bytes | None] = [None] * len(partitions)
    batch = RecordBatch("t", partitions, offsets, offsets, nothing, nothing, [()] * len(partitions))
    of_each = {number: offsets[partitions == number].tolist() for number in sorted(set(partitions.tolist()))}
    assert list(batch.first_offsets().items()) == [(number, found[0]) for number, found in of_each.items()]
    assert list(batch.next_offsets().items()) == [(number, found[-1] + 1) for number, found in of_each.items()]
