"""Keys that come from other partitions, where `state.max_keys` limits how many a partition has.

One that comes is less recent than all that stay: offsets of two partitions do not compare. Among those that come the
time of their last event decides, and the key itself where two times are equal. Where there are too many, the least
recent ones have no place, as if they had been evicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstmstream.records import Ints
from lstmstream.serve.key_table import Key
from lstmstream.states.seeding import seed_offsets


class Arrivals:
    """`stay` and `come` for all keys, then `settle`; then `last_offsets` of those that come."""

    def __init__(self, partitions: int, max_keys: int) -> None:
        """`partitions`: new ones. `max_keys`: of each."""
        self._stayed = np.zeros(partitions, np.int64)
        self._least = np.zeros(partitions, np.int64)  # last offset of those that stay, 0 where all are of the input
        self._max_keys = max_keys
        self._keys: list[Key] = []
        self._homes: list[Ints] = []
        self._times: list[Ints] = []
        self._offsets: dict[Key, int] = {}

    def stay(self, partition: int, count: int, least_offset: int) -> None:
        """So many keys, the least recent of which has this last offset: below 0 if it was there before the input."""
        self._stayed[partition] += count
        self._least[partition] = min(self._least[partition], least_offset)

    def come(self, keys: Sequence[Key], homes: Ints, times_ms: Ints) -> None:
        """N keys, the partitions [N] that they come to, and the times [N] of their last events."""
        self._keys += keys
        self._homes.append(homes)
        self._times.append(times_ms)

    def settle(self) -> int:
        """All are known. How many have no place."""
        if not self._keys:
            return 0
        homes, times = np.concatenate(self._homes), np.concatenate(self._times).tolist()
        keys = [key or b"" for key in self._keys]
        order = sorted(range(len(keys)), key=lambda i: (times[i], keys[i]))
        places = seed_offsets(homes, np.array(order, np.int64))  # -1 is the most recent of a partition
        has_place = -places <= (self._max_keys - self._stayed)[homes]
        offsets = np.where(has_place, places + self._least[homes], 0)
        self._offsets = dict(zip(self._keys, offsets.tolist(), strict=True))
        self._keys, self._homes, self._times = [], [], []
        return int(np.count_nonzero(~has_place))

    def last_offsets(self, keys: Sequence[Key]) -> Ints:
        """[N] What stands for the last offsets of keys that come, below 0; 0 of one that has no place."""
        return np.array([self._offsets[key] for key in keys], np.int64)
