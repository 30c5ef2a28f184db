"""The keys of a partition by the offset of their last event, for `state.max_keys`.

`Slab.last_offset` says it already, and survives a restart with the states. What is here is only an order of it: the
rows were sorted once, and a row whose offset has changed since is passed over, since it is more recent than all that
are still in the queue. The queue is made again when it is used up, so that a key costs little more than one sort.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lstmstream.records import Ints

if TYPE_CHECKING:
    from lstmstream.serve.state import Slab

_CHUNK_ROWS = 1024


class Recency:
    """Of one slab. To be made again after its states were restored or rolled back."""

    def __init__(self, slab: Slab) -> None:
        self._slab = slab
        self.present = 0  # keys that have a state; whoever changes that changes this
        self._sort()
        self.present = len(self._rows)

    def _sort(self) -> None:
        rows = np.flatnonzero(self._slab.steps[: self._slab.index.used_rows] > 0)
        offsets = self._slab.last_offset[rows]
        order = np.argsort(offsets, kind="stable")
        self._rows, self._offsets, self._next = rows[order], offsets[order], 0

    def least(self, count: int) -> Ints:
        """The rows of the `count` least recent keys, the first of them first; of all where there are fewer."""
        count = min(count, self.present)
        found = self._waiting(count)
        if len(found) < count:
            self._sort()
            found = self._waiting(count)
        return found

    def _waiting(self, count: int) -> Ints:
        """Up to so many at the head of the queue."""
        found: list[Ints] = []
        size, at = 0, self._next
        while size < count and at < len(self._rows):
            end = at + max(_CHUNK_ROWS, count)
            rows = self._rows[at:end]
            valid = np.flatnonzero(
                (self._slab.last_offset[rows] == self._offsets[at:end]) & (self._slab.steps[rows] > 0)
            )
            if not size:  # what is passed over at the head stays so
                self._next = at + (int(valid[0]) if len(valid) else len(rows))
            found.append(rows[valid[: count - size]])
            size, at = size + len(found[-1]), end
        return np.concatenate(found) if found else self._rows[:0]
