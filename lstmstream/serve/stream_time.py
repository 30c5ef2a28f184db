"""The stream time of a partition: the greatest event time seen so far, in the order of the log.

It is a function of the log alone (docs/semantics.md, line 36), so that a replay meets the same times. A replay begins
at the floor, so the time must be known there too: it is noted before each batch, and the floor record names it.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from lstmstream.records import Ints

NEVER = -(2**62)  # before any event; far below all times, and differences of it with them fit into 64 bits


class StreamTime:
    """Of one partition. Batches are passed in their order; the newest may be taken back."""

    def __init__(self) -> None:
        self.now_ms = NEVER  # since 1970 UTC
        self._notes: deque[tuple[int, int]] = deque([(0, NEVER)])  # (input offset, the time before it), ascending

    def begin(self, offset: int, now_ms: int) -> None:
        """The next event is at `offset` or behind it, and meets this time."""
        self.now_ms = now_ms
        self._notes = deque([(offset, now_ms)])

    def pass_batch(self, offsets: Ints, timestamps: Ints) -> Ints:
        """[M] milliseconds by which each event lies behind the stream time that it meets; less than 0 where it leads.

        `offsets` and `timestamps` [M], M > 0, of the next events.
        """
        self._notes.append((int(offsets[0]), self.now_ms))
        newest = np.maximum.accumulate(np.concatenate([[self.now_ms], timestamps]))
        self.now_ms = int(newest[-1])
        behind: Ints = newest[:-1] - timestamps
        return behind

    def take_back(self) -> None:
        """The newest batch was rolled back."""
        _, self.now_ms = self._notes.pop()

    def at(self, offset: int, position: int) -> tuple[int, int]:
        """(the last offset up to this one at which the time is known, the time there).

        `position`: the offset behind the last batch.
        """
        if offset >= position:
            return position, self.now_ms
        found = self._notes[0]
        for note in self._notes:
            if note[0] > offset:
                break
            found = note
        return found

    def forget_before(self, floor: int, then_ms: int) -> None:
        """No replay begins before `floor`, where the time was `then_ms`."""
        while len(self._notes) > 1 and self._notes[1][0] < floor:
            self._notes.popleft()
        self._notes[0] = (floor, then_ms)
