"""`state.max_keys`: after each event a partition has the states of its most recently seen keys, and of no other.

An event sees its key if it is answered or changes what is kept of it (docs/semantics.md, line 38). So the set is a
function of the log, whatever the policy for alerts, and its order is that of `last_offset`. A batch is done as one
event after the other would be: a part of it in which no key can be evicted before the last event that it has there is
done at once, and what is over the limit is evicted behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lstmstream.records import Ints, Observations, partition_numbers, pick
from lstmstream.serve.recency import Recency
from lstmstream.serve.state import BatchStates, Slab, StateStore


class KeyLimit:
    """Of each partition."""

    def __init__(self, max_keys: int, states: StateStore) -> None:
        self._max_keys = max_keys
        self._states = states

    def parts(self, observations: Observations) -> Iterator[slice]:
        """Parts of M observations, in their order. Each is scored, with `evict`, before the next one is asked for."""
        waiting = [slice(0, len(observations.index))]
        while waiting:
            part = waiting.pop()
            middle = (part.start + part.stop) // 2
            if part.stop - part.start < 2 or self._fits(observations, part):
                yield part
            else:
                waiting += [slice(middle, part.stop), slice(part.start, middle)]

    def _fits(self, observations: Observations, part: slice) -> bool:
        """Whether nothing is evicted that the part still needs."""
        for partition in partition_numbers(observations.partitions[part]):
            mine = part.start + np.flatnonzero(observations.partitions[part] == partition)
            slab = self._states.slabs[partition]
            keys = pick(observations.keys, mine)
            rows, _ = slab.index.find_all(keys)
            there = (rows >= 0) & (slab.steps[rows] > 0)
            if there.all():
                continue
            new = len({keys[i] for i in np.flatnonzero(~there).tolist()})
            recency = recency_of(slab)
            over = recency.present + new - self._max_keys
            if over <= 0:
                continue
            least = recency.least(over)
            if len(least) < over or slab.last_offset[rows[there]].min(initial=_NEVER) <= slab.last_offset[least[-1]]:
                return False
        return True

    def evict(
        self, observations: Observations, states: BatchStates, first_change: Ints
    ) -> dict[int, tuple[Ints, Ints]]:
        """By partition, (rows, the offsets at which they were evicted) of what is over the limit now.

        `states` are those of the newest part, applied; `first_change` [K] the offset of each slot's first change in it.
        """
        evicted = {}
        before = self._states.newest_before()
        for partition in partition_numbers(states.partitions):
            slab = self._states.slabs[partition]
            added = (states.partitions == partition) & (before.steps == 0) & (states.steps > 0)
            recency = slab.recency
            if recency is None:
                recency = recency_of(slab)
            else:
                recency.present += int(np.count_nonzero(added))
            over = recency.present - self._max_keys
            if over <= 0:
                continue
            rows, offsets = recency.least(over), np.sort(first_change[added])[-over:]
            if len(offsets) < over:  # there were too many before: as it would be after the limit was lowered
                last = int(observations.offsets[observations.partitions == partition][-1])
                offsets = np.full(over, last, np.int64)
            self._states.evict(partition, rows, offsets)
            recency.present -= over
            evicted[partition] = (rows, offsets)
        return evicted


def recency_of(slab: Slab) -> Recency:
    """The order of a slab's keys, made where there is none yet."""
    if slab.recency is None:
        slab.recency = Recency(slab)
    return slab.recency


_NEVER = np.iinfo(np.int64).max
