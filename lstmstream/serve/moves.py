"""Keys that have left a partition, because the input has got more of them (`lstmstream state repartition`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstmstream.records import Bools, Ints
from lstmstream.transport.partitioner import partitions_of_keys


def left_behind(
    moves: Sequence[tuple[int, int, int]], number: int, keys: Sequence[bytes | None], last_offsets: Ints
) -> Bools:
    """[N] Whether the state of a key in partition `number` is one that it has left there.

    `moves`: see Floor. `last_offsets` [N] of the states: a key that had an event here after it had left is in use here.
    """
    left = np.zeros(len(keys), np.bool_)
    if not moves or not keys:
        return left
    for offset, before, after in moves:
        moved = (partitions_of_keys(keys, before) == number) & (partitions_of_keys(keys, after) != number)
        left |= moved & (last_offsets < offset)
    has_key = np.array([key is not None for key in keys], np.bool_)  # others have a state in each partition
    left &= has_key
    left &= partitions_of_keys(keys, moves[-1][2]) != number  # it may have come back
    return left
