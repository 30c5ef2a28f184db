"""What the model remembers of each key: one slab of rows per partition, so that a partition moves as a whole.

A batch is worked on in *slots*, one for each distinct (partition, key), ordered by how often the key occurs in the
batch, most first. Round r (each key's r-th observation) is then the prefix of the slots that have more than r
observations: one gather and one scatter serve the whole batch. Knows nothing of Kafka, JSON or the model.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lstmstream.records import Floats, Ints, partition_numbers
from lstmstream.serve.key_table import Key, KeyTable
from lstmstream.serve.row_memory import RowMemory

CLEAN = -1  # in place of an offset: the state topic has this row
_FIRST_CAPACITY = 256
_GROWTH = 1.25
_NONE: np.ndarray[Any, np.dtype[Any]] = np.empty(0)  # while the memory grows


class KeyState(NamedTuple):
    """Everything that is kept of one key."""

    row: Floats  # [S]
    steps: int
    last_timestamp: int  # milliseconds; the largest event time seen
    last_offset: int  # of the last event that is in this state, or that failed on it
    failures: int = 0  # events in a row for which the model's output was not finite


class Slab:
    """The keys of one partition: a table from key to row number, and growing arrays by row number.

    Nothing is said of rows that no key has had yet; `add` prepares a row.

    Row numbers of removed keys are used again. What belongs to a row lives at its number, the mark of an unwritten
    change included, so that a new key never inherits anything from the one before.
    """

    def __init__(self, size: int) -> None:
        self.index = KeyTable()
        self._memory = [RowMemory(kind, width, _FIRST_CAPACITY) for kind, width in ((np.float32, size), (np.int64, 5))]
        self._use_memory()

    def _use_memory(self) -> None:
        self.rows: Floats
        self.rows, numbers = (memory.array() for memory in self._memory)
        # Side by side in memory, so that a key's numbers are fetched at once.
        self.steps: Ints = numbers[:, 0]
        self.last_timestamp: Ints = numbers[:, 1]
        self.last_offset: Ints = numbers[:, 2]
        self.failures: Ints = numbers[:, 3]
        self.first_unwritten: Ints = numbers[:, 4]  # offset of the first unwritten change

    def __len__(self) -> int:
        return len(self.index)

    @property
    def capacity(self) -> int:
        """Rows that the arrays have room for."""
        return len(self.steps)

    @property
    def nbytes(self) -> int:
        """Memory of the rows that keys have or had, of the keys and of the table."""
        return self.index.used_rows * sum(memory.row_bytes for memory in self._memory) + self.index.nbytes

    def find_or_add(self, keys: list[Key]) -> tuple[Ints, list[Key], Ints]:
        """(the row of each key [N], the K keys that had none, their rows [K]); the caller puts content into these."""
        rows, missing = self.index.find_all(keys)
        if not missing:
            return rows, [], rows[:0]
        where = np.flatnonzero(rows < 0)
        without_row = [keys[i] for i in where.tolist()]
        new = list(dict.fromkeys(without_row))
        added = self._add_all(new)
        rows[where] = added if len(new) == len(without_row) else self.index.find_all(without_row)[0]
        return rows, new, added

    def add(self, key: Key) -> int:
        """A row for a key that has none yet; the caller puts its content there. It is clean."""
        return int(self._add_all([key])[0])

    def _add_all(self, keys: list[Key]) -> Ints:
        rows = self.index.add_all(keys)
        if self.index.used_rows > self.capacity:
            self._grow()
        self.last_offset[rows] = -1
        self.first_unwritten[rows] = CLEAN
        return rows

    def remove(self, key: Key) -> None:
        """Forget a key; its row number is free."""
        row = self.index.remove(key)
        self.steps[row] = self.failures[row] = 0
        self.first_unwritten[row] = CLEAN

    def get(self, row: int) -> KeyState:
        """A copy of one row."""
        numbers = (self.steps[row], self.last_timestamp[row], self.last_offset[row], self.failures[row])
        return KeyState(self.rows[row].copy(), *map(int, numbers))

    def put(self, key: Key, state: KeyState) -> None:
        """Set a key's state."""
        row = self.index.get(key)
        if row is None:
            row = self.add(key)
        self.rows[row] = state.row
        self.steps[row], self.last_timestamp[row], self.last_offset[row], self.failures[row] = state[1:]

    def _grow(self) -> None:
        rows = max(2 * _FIRST_CAPACITY, int(self.capacity * _GROWTH), self.index.used_rows)
        self.rows = self.steps = self.last_timestamp = self.last_offset = self.failures = self.first_unwritten = _NONE
        for memory in self._memory:
            memory.grow(rows)
        self._use_memory()


@dataclass(slots=True)
class BatchStates:
    """The states of a batch's K distinct keys, copied out, in slots by descending count.

    `by_round` lists the batch's M observations round by round; round r is
    `by_round[round_bounds[r]:round_bounds[r + 1]]`, and its i-th observation belongs to slot i.
    """

    rows: Floats  # [K, S]
    steps: Ints  # [K]
    last_timestamp: Ints  # [K]
    last_offset: Ints  # [K]
    failures: Ints  # [K]
    by_round: Ints  # [M] indices of observations
    round_bounds: Ints  # [rounds + 1]
    partitions: Ints  # [K]
    row_numbers: Ints  # [K] in the slab of the slot's partition

    def copy(self) -> BatchStates:
        """With state arrays of its own; the others are shared."""
        return BatchStates(
            self.rows.copy(),
            self.steps.copy(),
            self.last_timestamp.copy(),
            self.last_offset.copy(),
            self.failures.copy(),
            self.by_round,
            self.round_bounds,
            self.partitions,
            self.row_numbers,
        )


@dataclass(slots=True)
class _Undo:
    """What a batch found, and the keys that it made."""

    before: BatchStates
    created: list[tuple[int, list[Key]]] = field(default_factory=list)  # by partition, also of batches before


class StateStore:
    """Slabs by partition. A batch is gathered, applied, and then committed or rolled back.

    Several batches may be in flight: `commit` ends the oldest, `rollback` the newest.
    """

    def __init__(self, initial: Floats) -> None:
        """`initial` is the [S] row that a key starts with."""
        self.initial = initial
        self.slabs: dict[int, Slab] = {}
        self._in_flight: deque[_Undo] = deque()

    @property
    def in_flight(self) -> int:
        """Batches that were gathered and neither committed nor rolled back."""
        return len(self._in_flight)

    def open(self, partition: int) -> Slab:
        """Begin to keep a partition, with no keys."""
        self.slabs[partition] = Slab(len(self.initial))
        return self.slabs[partition]

    def close(self, partition: int) -> None:
        """Forget a partition. Not while a batch is in flight: commit or roll back first."""
        assert not self._in_flight, "a batch is in flight"
        self.slabs.pop(partition, None)

    def gather(self, partitions: Ints, keys: list[Key]) -> BatchStates:
        """Copy out the states of M observations' keys; new keys come with the initial row and 0 steps."""
        created: list[tuple[int, list[Key]]] = []
        slot_of, counts, slot_partitions, slot_rows = self._slots(partitions, keys, created)
        distinct = len(counts)
        states = BatchStates(
            rows=np.empty((distinct, len(self.initial)), dtype=np.float32),
            steps=np.empty(distinct, dtype=np.int64),
            last_timestamp=np.empty(distinct, dtype=np.int64),
            last_offset=np.empty(distinct, dtype=np.int64),
            failures=np.empty(distinct, dtype=np.int64),
            by_round=_by_round(slot_of, counts),
            round_bounds=_round_bounds(counts),
            partitions=slot_partitions,
            row_numbers=slot_rows,
        )
        for slab, where, rows in self._each_slab(states):
            states.rows[where] = slab.rows.take(rows, axis=0)  # half the time of `[rows]`
            states.steps[where] = slab.steps[rows]
            states.last_timestamp[where] = slab.last_timestamp[rows]
            states.last_offset[where] = slab.last_offset[rows]
            states.failures[where] = slab.failures[rows]
        self._in_flight.append(_Undo(states.copy(), created))
        return states

    def apply(self, states: BatchStates) -> None:
        """Write the batch's new states into the slabs; `rollback` takes them back."""
        self._scatter(states)

    def commit(self) -> None:
        """Keep the oldest batch's states. A key that has no step even so (all dead letters) is forgotten."""
        if not self._in_flight:
            return
        created = self._in_flight.popleft().created
        if self._in_flight:  # a later batch may use the row still
            self._in_flight[0].created += created
            return
        self._remove_without_steps(created)

    def rollback(self) -> None:
        """Leave every state as it was before the newest batch, and no trace of its new keys; without one, nothing."""
        if not self._in_flight:
            return
        undo = self._in_flight.pop()
        self._scatter(undo.before)
        self._remove_without_steps(undo.created)  # those of a batch that was committed meanwhile have one

    def _remove_without_steps(self, created: list[tuple[int, list[Key]]]) -> None:
        for partition, keys in reversed(created):
            slab = self.slabs[partition]
            rows, _ = slab.index.find_all(keys)
            unused = np.flatnonzero((rows >= 0) & (slab.steps[rows] == 0))
            for i in reversed(unused.tolist()):  # so that the first to be made again gets the same row
                slab.remove(keys[i])

    def _slots(
        self, partitions: Ints, keys: list[Key], created: list[tuple[int, list[Key]]]
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """(slot of each observation [M], observations of each slot [K], the slot's partition [K], row number [K])."""
        rows = np.empty(len(keys), dtype=np.int64)
        cuts = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), len(keys)] if keys else [0]
        for start, end in pairwise(cuts):
            rows[start:end] = self._row_numbers(int(partitions[start]), keys[start:end], created)
        codes, inverse, counts = np.unique((partitions << 40) | rows, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        slot_of_code = np.empty(len(order), dtype=np.int64)
        slot_of_code[order] = np.arange(len(order))
        codes = codes[order]
        return slot_of_code[inverse], counts[order], codes >> 40, codes & ((1 << 40) - 1)

    def _row_numbers(self, partition: int, keys: list[Key], created: list[tuple[int, list[Key]]]) -> Ints:
        slab = self.slabs[partition]
        rows, new, added = slab.find_or_add(keys)
        if new:
            slab.rows[added] = self.initial
            slab.steps[added] = slab.last_timestamp[added] = slab.failures[added] = 0
            created.append((partition, new))
        return rows

    def _scatter(self, states: BatchStates) -> None:
        for slab, where, rows in self._each_slab(states):
            slab.rows[rows] = states.rows[where]
            slab.steps[rows] = states.steps[where]
            slab.last_timestamp[rows] = states.last_timestamp[where]
            slab.last_offset[rows] = states.last_offset[where]
            slab.failures[rows] = states.failures[where]

    def _each_slab(self, states: BatchStates) -> list[tuple[Slab, Ints | slice, Ints]]:
        present = partition_numbers(states.partitions)
        if len(present) == 1:
            return [(self.slabs[present[0]], slice(None), states.row_numbers)]
        wheres = [np.flatnonzero(states.partitions == p) for p in present]
        return [(self.slabs[p], w, states.row_numbers[w]) for p, w in zip(present, wheres, strict=True)]


def _by_round(slot_of: Ints, counts: Ints) -> Ints:
    """Observations ordered by (round, slot): a key's first observation is in round 0, its second in round 1, ..."""
    by_slot = np.argsort(slot_of, kind="stable")
    starts = np.cumsum(counts) - counts
    number = np.empty(len(slot_of), dtype=np.int64)  # of the round
    number[by_slot] = np.arange(len(slot_of)) - np.repeat(starts, counts)
    return np.lexsort((slot_of, number))


def _round_bounds(counts: Ints) -> Ints:
    """Cumulated sizes of the rounds; `counts` descend: round r has as many observations as counts exceed r."""
    if not len(counts):
        return np.zeros(1, dtype=np.int64)
    sizes = len(counts) - np.searchsorted(counts[::-1], np.arange(counts[0]), side="right")
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
