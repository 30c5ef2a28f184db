"""What the model remembers of each key: one slab of rows per partition, so that a partition moves as a whole.

A batch is worked on in *slots*, one for each distinct (partition, key), ordered by how often the key occurs in the
batch, most first. Round r (each key's r-th event) is then the prefix of the slots that have more than r events: one
gather and one scatter serve the whole batch. Knows nothing of Kafka, JSON or the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lstmstream.serve.records import Floats, Ints

_FIRST_CAPACITY = 256


class KeyState(NamedTuple):
    """Everything that is kept of one key."""

    row: Floats  # [S]
    steps: int
    last_timestamp: int  # milliseconds; the largest event time seen
    last_offset: int  # of the last event that changed this state


class Slab:
    """The keys of one partition: a dict from key to row number, and growing arrays of rows."""

    def __init__(self, size: int) -> None:
        self.index: dict[bytes | None, int] = {}
        self.keys: list[bytes | None] = []  # by row
        self.rows = np.zeros((_FIRST_CAPACITY, size), dtype=np.float32)
        self.steps = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        self.last_timestamp = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        self.last_offset = np.full(_FIRST_CAPACITY, -1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.rows.nbytes + self.steps.nbytes + self.last_timestamp.nbytes + self.last_offset.nbytes

    def add(self, key: bytes | None) -> int:
        """Make a row for a key that has none yet; its content is whatever the caller puts there."""
        number = len(self.keys)
        if number == len(self.steps):
            self._grow()
        self.index[key] = number
        self.keys.append(key)
        return number

    def forget_from(self, count: int) -> None:
        """Drop the rows made last, down to `count` rows."""
        for key in self.keys[count:]:
            del self.index[key]
        del self.keys[count:]

    def get(self, row: int) -> KeyState:
        """A copy of one row."""
        return KeyState(
            self.rows[row].copy(), int(self.steps[row]), int(self.last_timestamp[row]), int(self.last_offset[row])
        )

    def put(self, key: bytes | None, state: KeyState) -> None:
        """Set a key's state, as a restore does."""
        row = self.index.get(key)
        if row is None:
            row = self.add(key)
        self.rows[row] = state.row
        self.steps[row], self.last_timestamp[row], self.last_offset[row] = state[1:]

    def _grow(self) -> None:
        more = len(self.steps)
        self.rows = np.concatenate([self.rows, np.zeros((more, self.rows.shape[1]), dtype=np.float32)])
        self.steps = np.concatenate([self.steps, np.zeros(more, dtype=np.int64)])
        self.last_timestamp = np.concatenate([self.last_timestamp, np.zeros(more, dtype=np.int64)])
        self.last_offset = np.concatenate([self.last_offset, np.full(more, -1, dtype=np.int64)])


@dataclass(slots=True)
class Gathered:
    """The states of a batch's K distinct keys, copied out, in slots by descending count.

    `by_turn` lists the batch's M events round by round; round r is `by_turn[bounds[r]:bounds[r + 1]]`, and its i-th
    event belongs to slot i.
    """

    rows: Floats  # [K, S]
    steps: Ints  # [K]
    last_timestamp: Ints  # [K]
    last_offset: Ints  # [K]
    by_turn: Ints  # [M] indices of events
    bounds: Ints  # [rounds + 1]
    partitions: Ints  # [K]
    row_numbers: Ints  # [K] in the slab of the slot's partition


class StateStore:
    """Slabs by partition. A batch is gathered, scattered, and then committed or rolled back."""

    def __init__(self, initial: Floats) -> None:
        """`initial` is the [S] row that a key starts with."""
        self.initial = initial
        self.slabs: dict[int, Slab] = {}
        self._undo: Gathered | None = None
        self._counts_before: dict[int, int] = {}

    def open(self, partition: int) -> Slab:
        """Begin to keep a partition, with no keys."""
        self.slabs[partition] = Slab(len(self.initial))
        return self.slabs[partition]

    def close(self, partition: int) -> None:
        """Forget a partition. Not while a batch is staged: commit or roll back first."""
        assert self._undo is None, "a batch is staged"
        self.slabs.pop(partition, None)

    def gather(self, partitions: Ints, keys: list[bytes | None]) -> Gathered:
        """Copy out the states of M events' keys; new keys come with the initial row and 0 steps."""
        assert self._undo is None, "the last batch was neither committed nor rolled back"
        self._counts_before = {p: len(slab.keys) for p, slab in self.slabs.items()}
        slot_of, counts, slot_partitions, slot_rows = self._slots(partitions, keys)
        distinct = len(counts)
        gathered = Gathered(
            rows=np.empty((distinct, len(self.initial)), dtype=np.float32),
            steps=np.empty(distinct, dtype=np.int64),
            last_timestamp=np.empty(distinct, dtype=np.int64),
            last_offset=np.empty(distinct, dtype=np.int64),
            by_turn=_by_turn(slot_of, counts),
            bounds=_round_bounds(counts),
            partitions=slot_partitions,
            row_numbers=slot_rows,
        )
        for slab, where, rows in self._each_slab(gathered):
            gathered.rows[where] = slab.rows[rows]
            gathered.steps[where] = slab.steps[rows]
            gathered.last_timestamp[where] = slab.last_timestamp[rows]
            gathered.last_offset[where] = slab.last_offset[rows]
        self._undo = Gathered(
            gathered.rows.copy(),
            gathered.steps.copy(),
            gathered.last_timestamp.copy(),
            gathered.last_offset.copy(),
            gathered.by_turn,
            gathered.bounds,
            slot_partitions,
            slot_rows,
        )
        return gathered

    def stage(self, gathered: Gathered) -> None:
        """Write the batch's new states into the slabs; `rollback` takes them back."""
        self._scatter(gathered)

    def commit(self) -> None:
        """Keep what was staged."""
        self._undo = None

    def rollback(self) -> None:
        """Leave every state as it was before `gather`, and no trace of new keys."""
        if self._undo is None:
            return
        self._scatter(self._undo)
        for partition, count in self._counts_before.items():
            self.slabs[partition].forget_from(count)
        self._undo = None

    def _slots(self, partitions: Ints, keys: list[bytes | None]) -> tuple[Ints, Ints, Ints, Ints]:
        """(slot of each event [M], events of each slot [K], partition of each slot [K], its row number [K])."""
        rows = np.empty(len(keys), dtype=np.int64)
        cuts = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), len(keys)] if keys else [0]
        for start, end in pairwise(cuts):
            rows[start:end] = self._row_numbers(int(partitions[start]), keys[start:end])
        codes, inverse, counts = np.unique((partitions << 40) | rows, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        slot_of_code = np.empty(len(order), dtype=np.int64)
        slot_of_code[order] = np.arange(len(order))
        codes = codes[order]
        return slot_of_code[inverse], counts[order], codes >> 40, codes & ((1 << 40) - 1)

    def _row_numbers(self, partition: int, keys: list[bytes | None]) -> list[int]:
        slab = self.slabs[partition]
        find = slab.index.get
        rows = [find(key, -1) for key in keys]
        if -1 in rows:
            for i, key in enumerate(keys):
                if rows[i] < 0:
                    row = find(key, -1)  # an earlier event of this batch may have made it
                    if row < 0:
                        row = slab.add(key)
                        slab.rows[row] = self.initial
                        slab.steps[row], slab.last_timestamp[row], slab.last_offset[row] = 0, 0, -1
                    rows[i] = row
        return rows

    def _scatter(self, gathered: Gathered) -> None:
        for slab, where, rows in self._each_slab(gathered):
            slab.rows[rows] = gathered.rows[where]
            slab.steps[rows] = gathered.steps[where]
            slab.last_timestamp[rows] = gathered.last_timestamp[where]
            slab.last_offset[rows] = gathered.last_offset[where]

    def _each_slab(self, gathered: Gathered) -> list[tuple[Slab, Ints | slice, Ints]]:
        present = np.unique(gathered.partitions).tolist()
        if len(present) == 1:
            return [(self.slabs[present[0]], slice(None), gathered.row_numbers)]
        wheres = [np.flatnonzero(gathered.partitions == p) for p in present]
        return [(self.slabs[p], w, gathered.row_numbers[w]) for p, w in zip(present, wheres, strict=True)]


def _by_turn(slot_of: Ints, counts: Ints) -> Ints:
    """Events ordered by (turn, slot): a key's first event is in turn 0, its second in turn 1, ..."""
    by_slot = np.argsort(slot_of, kind="stable")
    starts = np.cumsum(counts) - counts
    turn = np.empty(len(slot_of), dtype=np.int64)
    turn[by_slot] = np.arange(len(slot_of)) - np.repeat(starts, counts)
    return np.lexsort((slot_of, turn))


def _round_bounds(counts: Ints) -> Ints:
    """Cumulated sizes of the rounds; `counts` descend, so round r has as many events as counts exceed r."""
    if not len(counts):
        return np.zeros(1, dtype=np.int64)
    sizes = len(counts) - np.searchsorted(counts[::-1], np.arange(counts[0]), side="right")
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
