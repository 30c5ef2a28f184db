"""Keys that no event will find again: their states can go, from memory and from the state topic.

With `state.ttl` and `input.max_lateness` an event that is answered is not older than the stream time minus the bound. A
state whose expiry lies before that will be replaced by a fresh one whatever comes (docs/semantics.md, line 37). A state
goes in two steps, so that a replay, which begins at the floor, never begins a key again that its record would have
skipped:

1. `Checkpointer` deletes the record of a state that is written and whose last event lies before the floor;
2. `Sweeper` removes what the state topic has no record of, in slices between two batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lstmstream.records import Bools, Ints
from lstmstream.serve.observers import Observer
from lstmstream.serve.partition import Partition, Partitions
from lstmstream.serve.state import CLEAN, Slab

INTERVAL_S = 0.25
ROWS_PER_SLICE = 1 << 18  # looked at: a millisecond or two
KEYS_PER_SLICE = 8_192  # removed: about 10 ms
LOG_INTERVAL_S = 60.0

log = logging.getLogger(__name__)


class Expiry(NamedTuple):
    """The settings that decide which keys can go."""

    ttl_ms: int | None
    max_lateness_ms: int | None
    incidents: bool = False  # whether there is a policy for alerts, which remembers more than states
    limited: bool = False  # by `state.max_keys`: evicted keys go, and expired ones wait for their turn

    @property
    def any(self) -> bool:
        """Whether any key can."""
        return self.limited or (self.ttl_ms is not None and self.max_lateness_ms is not None)

    def gone(self, slab: Slab, rows: Ints) -> Bools:
        """[n] Which of the keys at `rows` no event will find again; a row without a key is none."""
        if self.limited:
            return slab.is_evicted(rows)
        if self.ttl_ms is None or self.max_lateness_ms is None:
            return np.zeros(len(rows), np.bool_)
        before_ms = slab.stream_time.now_ms - self.max_lateness_ms - self.ttl_ms
        found: Bools = (slab.steps[rows] > 0) & (slab.last_timestamp[rows] < before_ms)
        if slab.incidents and found.any():  # an incident outlives its state: its end may be published yet
            keys = slab.index.keys_at(rows[found])
            found[found] = [key not in slab.incidents for key in keys]
        return found

    def to_delete(self, partition: Partition, rows: Ints) -> Bools:
        """[n] Of which of the keys at `rows` the record in the state topic can be deleted."""
        slab = partition.slab
        written = (slab.recorded[rows] > 0) & (slab.first_unwritten[rows] == CLEAN)
        found: Bools = self.gone(slab, rows) & written & (slab.last_offset[rows] < partition.floor)
        return found

    def to_remove(self, partition: Partition, rows: Ints) -> Bools:
        """[n] Which of the keys at `rows` can be removed from memory: the state topic has no record of them.

        One that is not written yet need not be: a replay from the floor may begin it again, in part, and it is expired
        then too. With a policy for alerts it is written first, or that replay could begin an incident that never was.
        """
        slab = partition.slab
        found: Bools = self.gone(slab, rows) & (slab.recorded[rows] == 0)
        if self.incidents:
            found &= slab.first_unwritten[rows] == CLEAN
        return found


class Sweeper:
    """Removes keys that can go, and notes those whose records are to be deleted. No more in a slice than a few ms."""

    def __init__(self, expiry: Expiry, partitions: Partitions, observer: Observer, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds."""
        self._expiry = expiry
        self._partitions = partitions
        self._observer = observer
        self._clock = clock
        self._next_s = 0.0
        self._next_log_s = 0.0
        self._removed = 0  # since the last line in the log

    def due(self) -> bool:
        """Whether it is time for a slice."""
        return self._expiry.any and self._clock() >= self._next_s

    def sweep(self) -> None:
        """One slice. No batch may be in flight."""
        now_s = self._clock()
        self._next_s = now_s + INTERVAL_S
        rows_left, keys_left = ROWS_PER_SLICE, KEYS_PER_SLICE
        for partition in sorted(self._partitions.running(), key=lambda one: one.swept_s):
            if rows_left <= 0 or keys_left <= 0:
                break
            looked, removed = self._sweep_partition(partition, rows_left, keys_left)
            partition.swept_s = now_s
            rows_left, keys_left = rows_left - looked, keys_left - removed
            self._removed += removed
            if removed:
                self._observer.on_keys_removed(removed)
        if self._removed and now_s >= self._next_log_s:
            log.info("keys that have expired were removed", extra={"keys": self._removed})
            self._removed, self._next_log_s = 0, now_s + LOG_INTERVAL_S

    def _sweep_partition(self, partition: Partition, max_rows: int, max_keys: int) -> tuple[int, int]:
        """(rows looked at, keys removed)."""
        slab, start = partition.slab, partition.sweep_row
        end = min(start + max_rows, slab.index.used_rows)
        rows = np.arange(start, end)
        remove = rows[self._expiry.to_remove(partition, rows)]
        if len(remove) > max_keys:  # the others next time
            remove = remove[:max_keys]
            end = int(remove[-1]) + 1
            rows = rows[: end - start]
        if not len(partition.to_delete):  # those that were found before come first
            partition.to_delete = rows[self._expiry.to_delete(partition, rows)]
        slab.remove_all(slab.index.keys_at(remove))
        partition.sweep_row = 0 if end >= slab.index.used_rows else end
        return len(rows), len(remove)
