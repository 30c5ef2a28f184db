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
