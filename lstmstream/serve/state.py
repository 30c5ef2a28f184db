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

from lstmstream.records import Bools, Floats, Ints, partition_numbers, pick
from lstmstream.serve.alert_memory import Hour, Incident
from lstmstream.serve.key_table import Key, KeyTable
from lstmstream.serve.recency import Recency
from lstmstream.serve.row_memory import RowMemory
from lstmstream.serve.state_rows import BatchRows, HostBackend, LooseRows, StateBackend
from lstmstream.serve.stream_time import StreamTime

CLEAN = -1  # in place of an offset: the state topic has this row
_FIRST_CAPACITY = 256
_GROWTH = 1.25
_HOST = HostBackend()
_NONE: np.ndarray[Any, np.dtype[Any]] = np.empty(0)  # while the memory grows


class KeyState(NamedTuple):
    """Everything that is kept of one key."""

    row: Floats  # [S]
    steps: int
    last_timestamp: int  # milliseconds; the largest event time seen
    last_offset: int  # of the last event that is in this state, or that failed on it
    failures: int = 0  # events in a row for which the model's output was not finite
    incident: Incident | None = None  # that its last alert has begun


class Slab:
    """The keys of one partition: a table from key to row number, its state rows, and growing arrays by row number.

    Nothing is said of rows that no key has had yet; `add` prepares a row.

    Row numbers of removed keys are used again. What belongs to a row lives at its number, the mark of an unwritten
    change included, so that a new key never inherits anything from the one before.
    """

    def __init__(self, size: int, backend: StateBackend = _HOST) -> None:
        """`size` numbers in a state row, which is where `backend` puts it."""
        self.stream_time = StreamTime()
        self.recency: Recency | None = None  # once it is needed, for `state.max_keys`
        self.index = KeyTable()
        self.incidents: dict[Key, Incident] = {}  # of the few keys that have one
        self.alert_hours: tuple[Hour, ...] = ()  # of the partition, in the order in which they were first seen
        self.rows = backend.open(size, _FIRST_CAPACITY)
        self._memory = RowMemory(np.int64, 6, _FIRST_CAPACITY)
        self._use_memory()

    def _use_memory(self) -> None:
        # Side by side in memory, so that a key's numbers are fetched at once.
        numbers = self._memory.array()
        self.steps: Ints = numbers[:, 0]
        self.last_timestamp: Ints = numbers[:, 1]
        self.last_offset: Ints = numbers[:, 2]
        self.failures: Ints = numbers[:, 3]
        self.first_unwritten: Ints = numbers[:, 4]  # offset of the first unwritten change
        self.recorded: Ints = numbers[:, 5]  # 1: the state topic may have a record of the key, of whatever age; else 0

    def __len__(self) -> int:
        return len(self.index)

    @property
    def key_count(self) -> int:
        """Keys with a state; those of evicted keys stay in the table until the state topic has no record of them."""
        return len(self) if self.recency is None else self.recency.present

    @property
    def capacity(self) -> int:
        """Rows that the arrays have room for."""
        return len(self.steps)

    @property
    def nbytes(self) -> int:
        """Memory of the rows that keys have or had, of the keys and of the table."""
        return self.index.used_rows * (self.rows.row_bytes + self._memory.row_bytes) + self.index.nbytes

    def find_or_add(self, keys: list[Key]) -> tuple[Ints, list[Key], Ints]:
        """(the row of each key [N], the K keys that had none, their rows [K]); the caller puts content into these."""
        rows, missing = self.index.find_all(keys)
        if not missing:
            return rows, [], rows[:0]
        where = np.flatnonzero(rows < 0)
        without_row = pick(keys, where)
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
        self.recorded[rows] = 0
        return rows

    def has_state(self, key: Key) -> bool:
        """Whether the key has a state; that of an evicted one is empty."""
        row = self.index.get(key)
        return row is not None and bool(self.steps[row] > 0)

    def remove(self, key: Key) -> None:
        """Forget a key; its row number is free."""
        self.remove_all([key])

    def is_evicted(self, rows: Ints) -> Bools:
        """[n] Which rows have a key whose state was evicted: an empty state, at the offset of its eviction."""
        found: Bools = (self.steps[rows] == 0) & (self.last_offset[rows] >= 0)
        return found

    def remove_all(self, keys: list[Key]) -> None:
        """Forget several keys; their row numbers are free."""
        if not keys:
            return
        rows = self.index.remove_all(keys)
        if self.recency is not None:
            self.recency.present -= int(np.count_nonzero(self.steps[rows] > 0))
        self.steps[rows] = self.failures[rows] = self.recorded[rows] = 0
        self.last_offset[rows] = -1
        self.first_unwritten[rows] = CLEAN
        if self.incidents:
            for key in keys:
                self.incidents.pop(key, None)

    def get(self, row: int) -> KeyState:
        """A copy of one row."""
        steps, last_timestamp = int(self.steps[row]), int(self.last_timestamp[row])
        last_offset, failures = int(self.last_offset[row]), int(self.failures[row])
        incident = self.incidents.get(self.index.keys_at(np.array([row]))[0]) if self.incidents else None
        state_row = self.rows.read(np.array([row]))[0]
        return KeyState(state_row, steps, last_timestamp, last_offset, failures, incident)

    def put(self, key: Key, state: KeyState) -> None:
        """Set a key's state."""
        row = self.index.get(key)
        if row is None:
            row = self.add(key)
        self.rows.write(np.array([row]), state.row[np.newaxis])
        self.steps[row], self.last_timestamp[row], self.last_offset[row], self.failures[row] = state[1:5]
        self.set_incident(key, state.incident)

    def set_incident(self, key: Key, incident: Incident | None) -> None:
        """Set what goes on with a key; None: nothing."""
        if incident is None:
            self.incidents.pop(key, None)
        else:
            self.incidents[key] = incident

    def _grow(self) -> None:
        capacity = max(2 * _FIRST_CAPACITY, int(self.capacity * _GROWTH), self.index.used_rows)
        self.rows.grow(capacity)
        self.steps = self.last_timestamp = self.last_offset = self.failures = _NONE
        self.first_unwritten = self.recorded = _NONE
        self._memory.grow(capacity)
        self._use_memory()


@dataclass(slots=True)
class BatchStates:
    """The states of a batch's K distinct keys, copied out, in slots by descending count.

    Their rows are copied out when they are first asked for; whoever moves them where they are never asks.

    `by_round` lists the batch's M observations round by round; round r is
    `by_round[round_bounds[r]:round_bounds[r + 1]]`, and its i-th observation belongs to slot i.
    """

    stored: BatchRows  # the rows where they are
    initial: Floats  # [S]
    steps: Ints  # [K]
    last_timestamp: Ints  # [K]
    last_offset: Ints  # [K]
    failures: Ints  # [K]
    by_round: Ints  # [M] indices of observations
    round_bounds: Ints  # [rounds + 1]
    partitions: Ints  # [K]
    row_numbers: Ints  # [K] in the slab of the slot's partition
    _rows: Floats | None = None

    @property
    def rows(self) -> Floats:
        """[K, S] A copy, which becomes the states with `StateStore.apply`."""
        if self._rows is None:
            self._rows = self.stored.before().copy()
        return self._rows

    @rows.setter
    def rows(self, rows: Floats) -> None:
        self._rows = rows

    def write_rows(self) -> None:
        """Put the copy in place of the rows, if there is one."""
        if self._rows is not None:
            self.stored.write(self._rows)

    def restore_rows(self) -> None:
        """The rows are again what they were when they were gathered."""
        self._rows = None
        self.stored.restore()

    def up_to(self, wanted: Bools) -> BatchStates:
        """The states of the keys of the `wanted` observations [M], each with its observations up to the last of these.

        All that it has is a copy, which nothing puts in its place.
        """
        sizes = np.diff(self.round_bounds)
        rounds = np.repeat(np.arange(len(sizes)), sizes)
        slots = np.arange(len(rounds)) - self.round_bounds[rounds]
        counts = np.zeros(len(self.steps), dtype=np.int64)
        chosen = wanted[self.by_round]
        counts[slots[chosen]] = rounds[chosen] + 1  # rounds ascend: that of the last one stays
        kept = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        place = np.empty_like(counts)
        place[kept] = np.arange(len(kept))
        needed = np.flatnonzero(rounds < counts[slots])
        return BatchStates(
            LooseRows(self.stored.before()[kept]),
            self.initial,
            self.steps[kept],
            self.last_timestamp[kept],
            self.last_offset[kept],
            self.failures[kept],
            self.by_round[needed[np.lexsort((place[slots[needed]], rounds[needed]))]],
            _round_bounds(counts[kept]),
            self.partitions[kept],
            self.row_numbers[kept],
        )

    def numbers(self) -> BatchStates:
        """With number arrays of its own, and no copy of the rows; the others are shared."""
        return BatchStates(
            self.stored,
            self.initial,
            self.steps.copy(),
            self.last_timestamp.copy(),
            self.last_offset.copy(),
            self.failures.copy(),
            self.by_round,
            self.round_bounds,
            self.partitions,
            self.row_numbers,
        )


class _Evicted(NamedTuple):
    """Rows of keys that were evicted, as they were before."""

    partition: int
    rows: Ints  # [n]
    states: Floats  # [n, S]
    numbers: tuple[Ints, Ints, Ints, Ints]  # steps, last timestamp, last offset, failures: [n]


@dataclass(slots=True)
class _Undo:
    """What a batch, or a part of one, found, and the keys that it made."""

    before: BatchStates
    created: list[tuple[int, list[Key]]] = field(default_factory=list)  # by partition, also of batches before
    incidents: list[tuple[int, Key, Incident | None]] = field(default_factory=list)  # before each change
    alert_hours: dict[int, tuple[Hour, ...]] = field(default_factory=dict)  # by partition
    timed: list[int] = field(default_factory=list)  # partitions whose stream time has moved on
    evicted: list[_Evicted] = field(default_factory=list)
    ended: list[_Evicted] = field(default_factory=list)  # by batches that were committed meanwhile
    earlier: _Undo | None = None  # of the part of the same batch before this one

    def parts(self) -> list[_Undo]:
        """Those of all parts of the batch, the newest first."""
        found, part = [], self
        while True:
            found.append(part)
            if part.earlier is None:
                return found
            part = part.earlier


class StateStore:
    """Slabs by partition. A batch is gathered, applied, and then committed or rolled back.

    Several batches may be in flight: `commit` ends the oldest, `rollback` the newest.
    """

    def __init__(self, initial: Floats, backend: StateBackend = _HOST) -> None:
        """`initial` is the [S] row that a key starts with; `backend` is where the rows are."""
        self.initial = initial
        self._backend = backend
        self.slabs: dict[int, Slab] = {}
        self._in_flight: deque[_Undo] = deque()
        self._timed: list[int] = []  # by the batch that is gathered next

    @property
    def in_flight(self) -> int:
        """Batches that were gathered and neither committed nor rolled back."""
        return len(self._in_flight)

    def open(self, partition: int) -> Slab:
        """Begin to keep a partition, with no keys."""
        self._close_rows(partition)
        self.slabs[partition] = Slab(len(self.initial), self._backend)
        return self.slabs[partition]

    def sibling(self) -> StateStore:
        """Another one without partitions, whose rows are in the same place."""
        return StateStore(self.initial, self._backend)

    def adopt(self, partition: int, other: StateStore) -> Slab:
        """Keep what `other` has of a partition, in place of what was here. `other` has it no longer."""
        self._close_rows(partition)
        self.slabs[partition] = other.slabs.pop(partition)
        return self.slabs[partition]

    def close(self, partition: int) -> None:
        """Forget a partition. Not while a batch is in flight: commit or roll back first."""
        assert not self._in_flight, "a batch is in flight"
        self._close_rows(partition)
        self.slabs.pop(partition, None)

    def _close_rows(self, partition: int) -> None:
        if partition in self.slabs:
            self.slabs[partition].rows.close()

    def gather(self, partitions: Ints, keys: list[Key], *, more: bool = False) -> BatchStates:
        """Copy out the states of M observations' keys; new keys come with the initial row and 0 steps.

        `more`: they belong to the newest batch in flight, which is committed or rolled back as a whole.
        """
        created: list[tuple[int, list[Key]]] = []
        rows = self._find_rows(partitions, keys, created)
        slot_partitions, slot_rows, by_round, round_bounds = _slots(partitions, rows)
        distinct = len(slot_rows)
        places = self._each_slab(slot_partitions, slot_rows)
        states = BatchStates(
            stored=self._backend.gather([(slab.rows, where, rows) for slab, where, rows in places], distinct),
            initial=self.initial,
            steps=np.empty(distinct, dtype=np.int64),
            last_timestamp=np.empty(distinct, dtype=np.int64),
            last_offset=np.empty(distinct, dtype=np.int64),
            failures=np.empty(distinct, dtype=np.int64),
            by_round=by_round,
            round_bounds=round_bounds,
            partitions=slot_partitions,
            row_numbers=slot_rows,
        )
        for slab, where, rows in places:
            states.steps[where] = slab.steps[rows]
            states.last_timestamp[where] = slab.last_timestamp[rows]
            states.last_offset[where] = slab.last_offset[rows]
            states.failures[where] = slab.failures[rows]
        earlier = self._in_flight.pop() if more else None
        self._in_flight.append(_Undo(states.numbers(), created, timed=self._timed, earlier=earlier))
        self._timed = []
        return states

    def pass_time(self, partition: int, offsets: Ints, timestamps: Ints) -> Ints:
        """See StreamTime.pass_batch. It belongs to the batch that is gathered next: `rollback` takes it back."""
        self._timed.append(partition)
        return self.slabs[partition].stream_time.pass_batch(offsets, timestamps)

    def newest_before(self) -> BatchStates:
        """What the newest batch in flight, or the last part of it, found. Its numbers are not to be changed."""
        return self._in_flight[-1].before

    def apply(self, states: BatchStates) -> None:
        """Write the batch's new states into the slabs; `rollback` takes them back."""
        states.write_rows()
        self._scatter_numbers(states)

    def set_incident(self, partition: int, key: Key, incident: Incident | None) -> None:
        """Of the newest batch in flight: `rollback` takes it back."""
        slab = self.slabs[partition]
        self._in_flight[-1].incidents.append((partition, key, slab.incidents.get(key)))
        slab.set_incident(key, incident)

    def set_alert_hours(self, partition: int, hours: tuple[Hour, ...]) -> None:
        """Of the newest batch in flight: `rollback` takes it back."""
        slab = self.slabs[partition]
        self._in_flight[-1].alert_hours.setdefault(partition, slab.alert_hours)
        slab.alert_hours = hours

    def evict(self, partition: int, rows: Ints, offsets: Ints) -> None:
        """Make the states at `rows` [n] empty ones at `offsets` [n]. Of the newest batch: `rollback` takes it back."""
        slab = self.slabs[partition]
        if slab.incidents:
            for key in slab.index.keys_at(rows):
                if key in slab.incidents:
                    self.set_incident(partition, key, None)
        numbers = slab.steps[rows], slab.last_timestamp[rows], slab.last_offset[rows], slab.failures[rows]
        self._in_flight[-1].evicted.append(_Evicted(partition, rows, slab.rows.read(rows), numbers))
        slab.rows.fill(rows, self.initial)
        slab.steps[rows] = slab.last_timestamp[rows] = slab.failures[rows] = 0
        slab.last_offset[rows] = offsets

    def commit(self) -> None:
        """Keep the oldest batch's states. A key that has no step even so (all dead letters) is forgotten."""
        if not self._in_flight:
            return
        parts = self._in_flight.popleft().parts()
        created = [one for part in reversed(parts) for one in part.created]
        evicted = [one for part in parts for one in part.evicted + part.ended]
        if self._in_flight:  # a later batch may use the row still
            self._in_flight[0].created += created
            self._in_flight[0].ended += evicted
            return
        self._remove_without_steps(created)
        self._remove_evicted(evicted)

    def rollback(self) -> None:
        """Leave every state as it was before the newest batch, and no trace of its new keys; without one, nothing."""
        if not self._in_flight:
            return
        parts = self._in_flight.pop().parts()
        for undo in parts:
            for evicted in undo.evicted:
                self._bring_back(evicted)
            undo.before.restore_rows()
            self._scatter_numbers(undo.before)
            for partition, key, incident in reversed(undo.incidents):
                self.slabs[partition].set_incident(key, incident)
            for partition, hours in undo.alert_hours.items():
                self.slabs[partition].alert_hours = hours
            for partition in undo.timed:
                self.slabs[partition].stream_time.take_back()
        for undo in parts:
            self._remove_without_steps(undo.created)  # those of a batch that was committed meanwhile have one
        self._remove_evicted([one for undo in parts for one in undo.ended])
        for slab in self.slabs.values():
            slab.recency = None

    def _bring_back(self, evicted: _Evicted) -> None:
        slab, rows = self.slabs[evicted.partition], evicted.rows
        slab.rows.write(rows, evicted.states)
        slab.steps[rows], slab.last_timestamp[rows], slab.last_offset[rows], slab.failures[rows] = evicted.numbers

    def _remove_evicted(self, evicted: list[_Evicted]) -> None:
        """Of committed batches: forget those that the state topic has no record of. The others stay for that long."""
        for one in evicted:
            slab = self.slabs[one.partition]
            gone = one.rows[slab.is_evicted(one.rows) & (slab.recorded[one.rows] == 0)]
            slab.remove_all(slab.index.keys_at(gone))

    def _remove_without_steps(self, created: list[tuple[int, list[Key]]]) -> None:
        for partition, keys in reversed(created):
            slab = self.slabs[partition]
            rows, _ = slab.index.find_all(keys)
            unused = np.flatnonzero((rows >= 0) & (slab.steps[rows] == 0) & (slab.last_offset[rows] < 0))
            slab.remove_all([keys[i] for i in reversed(unused.tolist())])  # the first made again gets the same row

    def _find_rows(self, partitions: Ints, keys: list[Key], created: list[tuple[int, list[Key]]]) -> Ints:
        """[M] The row of each key in the slab of its partition."""
        rows = np.empty(len(keys), dtype=np.int64)
        cuts = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), len(keys)] if keys else [0]
        for start, end in pairwise(cuts):
            rows[start:end] = self._row_numbers(int(partitions[start]), keys[start:end], created)
        return rows

    def _row_numbers(self, partition: int, keys: list[Key], created: list[tuple[int, list[Key]]]) -> Ints:
        slab = self.slabs[partition]
        rows, new, added = slab.find_or_add(keys)
        if new:
            slab.rows.fill(added, self.initial)
            slab.steps[added] = slab.last_timestamp[added] = slab.failures[added] = 0
            created.append((partition, new))
        return rows

    def _scatter_numbers(self, states: BatchStates) -> None:
        for slab, where, rows in self._each_slab(states.partitions, states.row_numbers):
            slab.steps[rows] = states.steps[where]
            slab.last_timestamp[rows] = states.last_timestamp[where]
            slab.last_offset[rows] = states.last_offset[where]
            slab.failures[rows] = states.failures[where]

    def _each_slab(self, partitions: Ints, row_numbers: Ints) -> list[tuple[Slab, Ints | slice, Ints]]:
        present = partition_numbers(partitions)
        if len(present) == 1:
            return [(self.slabs[present[0]], slice(None), row_numbers)]
        wheres = [np.flatnonzero(partitions == p) for p in present]
        return [(self.slabs[p], w, row_numbers[w]) for p, w in zip(present, wheres, strict=True)]


def _slots(partitions: Ints, rows: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Of M observations: (partition of each slot [K], its row number [K], `by_round` and `round_bounds`).

    One sort: by partition, row and place in the batch, which are put side by side into one integer. No two are equal,
    so the fastest sort will do. An observation's place in `by_round` then follows from its round and its slot.
    """
    count = len(rows)
    row_bits, place_bits = int(rows.max(initial=0)).bit_length(), count.bit_length()
    assert int(partitions.max(initial=0)).bit_length() + row_bits + place_bits < 64, "more rows than memory can hold"
    tagged = np.sort(((partitions << row_bits | rows) << place_bits) | np.arange(count))
    observations, codes = tagged & ((1 << place_bits) - 1), tagged >> place_bits
    is_first = np.ones(count, dtype=np.bool_)
    np.not_equal(codes[1:], codes[:-1], out=is_first[1:])
    firsts = np.flatnonzero(is_first)  # of each key, ascending
    counts = np.diff(firsts, append=count)
    order = np.argsort(-counts, kind="stable")
    slot_of_key = np.empty(len(order), dtype=np.int64)
    slot_of_key[order] = np.arange(len(order))
    key = np.cumsum(is_first) - 1
    round_bounds = _round_bounds(counts[order])
    by_round = np.empty(count, dtype=np.int64)
    by_round[round_bounds[np.arange(count) - firsts[key]] + slot_of_key[key]] = observations
    codes = codes[firsts[order]]
    return codes >> row_bits, codes & ((1 << row_bits) - 1), by_round, round_bounds


def _round_bounds(counts: Ints) -> Ints:
    """Cumulated sizes of the rounds; `counts` descend: round r has as many observations as counts exceed r."""
    if not len(counts):
        return np.zeros(1, dtype=np.int64)
    sizes = len(counts) - np.searchsorted(counts[::-1], np.arange(counts[0]), side="right")
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
