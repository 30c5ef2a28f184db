"""The life of one input partition while this member owns it.

    assigned ──► RESTORING ──► RUNNING ──► CLOSED
                     └────────────────────────┘ (revoked, or restored again after its offset was moved)

A `Partition` owns what is known of it: phase, position, origin, floor, the slab with its states, the rows that are not
written yet. `restore.py` brings it from RESTORING to RUNNING, `checkpoint.py` decides what is written of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lstmstream.records import Bools, Floats, Ints
from lstmstream.serve.alert_memory import PartitionMemory, RulesFrom
from lstmstream.serve.erasures import Erasures
from lstmstream.serve.key_table import Key
from lstmstream.serve.old_models import OldModels
from lstmstream.serve.scored import ChangedRows
from lstmstream.serve.state import CLEAN, Slab, StateStore
from lstmstream.serve.stream_time import NEVER

if TYPE_CHECKING:
    from lstmstream.serve.restore import Restore

_CHUNK_ROWS = 4096


class PartitionPhase(Enum):
    """Where in its life a partition is."""

    RESTORING = "restoring"
    RUNNING = "running"
    CLOSED = "closed"


class _Chunk(NamedTuple):
    """Rows that one batch changed first, in the order of that change."""

    rows: Ints
    first_offsets: Ints
    since_s: float  # clock time of that change
    min_timestamp_ms: int  # of the input records that changed them


class DirtyRows:
    """Rows whose present state the state topic does not have, in the order of their first unwritten change.

    The mark itself lives with the row (`Slab.first_unwritten`): an entry whose row was written or removed meanwhile is
    out of date and is passed over.
    """

    def __init__(self, slab: Slab) -> None:
        self._slab = slab
        self._queue: deque[_Chunk] = deque()

    @property
    def count(self) -> int:
        """Rows that are dirty."""
        return sum(int(self._valid(chunk).sum()) for chunk in self._queue)

    def mark(self, changed: ChangedRows, since_s: float, min_timestamp_ms: int) -> None:
        """Mark rows that changed, and queue them; those that are dirty already keep their place."""
        self._enqueue(self.mark_only(changed), since_s, min_timestamp_ms)

    def mark_only(self, changed: ChangedRows) -> ChangedRows:
        """Mark rows that changed without queueing them, as a replay does; those that were clean."""
        marks = self._slab.first_unwritten
        new = marks[changed.rows] == CLEAN
        fresh = ChangedRows(changed.rows[new], changed.first_offsets[new])
        marks[fresh.rows] = fresh.first_offsets
        return fresh

    def enqueue_marked(self, since_s: float, min_timestamp_ms: int) -> None:
        """Queue all marked rows, once a replay is done: until then none may be written, and no floor may move."""
        marks = self._slab.first_unwritten[: self._slab.index.used_rows]  # rows that no key had yet have no mark
        rows = np.flatnonzero(marks != CLEAN)
        rows = rows[np.argsort(marks[rows], kind="stable")]
        self._enqueue(ChangedRows(rows, marks[rows]), since_s, min_timestamp_ms)

    def _enqueue(self, changed: ChangedRows, since_s: float, min_timestamp_ms: int) -> None:
        rows, first_offsets = changed
        for start in range(0, len(rows), _CHUNK_ROWS):
            end = start + _CHUNK_ROWS
            self._queue.append(_Chunk(rows[start:end], first_offsets[start:end], since_s, min_timestamp_ms))

    def oldest(self) -> tuple[float, int] | None:
        """(clock time of the oldest unwritten change, least timestamp of its records); None if all is clean."""
        while self._queue and not self._valid(self._queue[0]).any():
            self._queue.popleft()
        return (self._queue[0].since_s, self._queue[0].min_timestamp_ms) if self._queue else None

    def take(self, limit: int, *, before_s: float) -> tuple[Ints, int | None]:
        """Up to `limit` of the oldest rows that became dirty by `before_s`, and the first offset of the next one.

        They stay dirty until `clean`. The offset is None where nothing dirty is left beside them.
        """
        taken: list[Ints] = []
        for chunk in self._queue:
            valid = np.flatnonzero(self._valid(chunk))
            if not len(valid):
                continue
            room = limit - sum(map(len, taken)) if chunk.since_s <= before_s else 0
            taken.append(chunk.rows[valid[:room]])
            if room < len(valid):
                return np.concatenate(taken), int(chunk.first_offsets[valid[room]])
        return (np.concatenate(taken) if taken else np.empty(0, dtype=np.int64)), None

    def clean(self, rows: Ints) -> None:
        """The state topic has these rows as they are now."""
        self._slab.first_unwritten[rows] = CLEAN
        self.oldest()  # drops what is out of date at the head

    def _valid(self, chunk: _Chunk) -> Bools:
        valid: Bools = self._slab.first_unwritten[chunk.rows] == chunk.first_offsets
        return valid


class Partition:
    """One input partition of this member."""

    def __init__(self, number: int, epoch: int, states: StateStore) -> None:
        """`epoch` is new each time the partition is assigned."""
        self.number = number
        self.epoch = epoch
        self.phase = PartitionPhase.RESTORING
        self.restore: Restore | None = None  # while it is RESTORING
        self.position = 0  # next input offset to process: the committed one
        self.passed = 0  # offsets from the position to here hold no record: control records, aborted ones, gaps
        self.origin = 0  # input offset at which the states begin
        self.answers_from = -1  # input offset of this identity's first answer, where the states were rebuilt before it
        self.seed = 0  # of states that were there before the origin; see Floor
        self.moved_from = 0  # partitions before their number was changed; see Floor
        self.outside_times: tuple[tuple[int, int], ...] = ()  # stream times of events of elsewhere; see Floor
        self.moves: tuple[tuple[int, int, int], ...] = ()  # changes of the number of partitions; see Floor
        self.floor = 0  # as it stands in the state topic
        self.floor_written_s = 0.0
        self.floor_position = 0  # the position that the floor record names
        self.alert_rules: tuple[RulesFrom, ...] = ()  # the history of the settings by which alerts are published
        self.alerts_written: PartitionMemory | None = None  # as it stands in the floor record
        self.erasures = Erasures()
        self.old_models = OldModels()
        self.earlier: tuple[int, int] | None = (
            None  # answers of this identity before its states were dropped; see Floor
        )
        self.rebuilt_to = -1  # until the floor comes here, the records of a rebuild are too few to go on from
        self.swept_s = 0.0  # clock time
        self.deleted_s = 0.0  # clock time at which records of the state topic were deleted
        self._states = states
        self._use(states.open(number))

    def _use(self, slab: Slab) -> None:
        self.slab = slab
        self.dirty = DirtyRows(slab)
        self.to_delete = np.empty(0, np.int64)  # rows whose records in the state topic can go (expiry.py)
        self.sweep_row = 0  # where the sweeper goes on

    @property
    def initial(self) -> Floats:
        """[S] The row that a key starts with."""
        return self._states.initial

    @property
    def alerts(self) -> PartitionMemory | None:
        """What the floor record keeps for the alert policy; None: there is no policy."""
        return PartitionMemory(self.alert_rules, self.slab.alert_hours) if self.alert_rules else None

    @property
    def floor_lag(self) -> int:
        """Input records that a restart would have to read again."""
        return self.position - self.floor

    @property
    def next_offset(self) -> int:
        """Where to read on: all records before it are processed and committed, whether its offset is or not."""
        return max(self.position, self.passed)

    def erase(self, keys: Iterable[bytes | None]) -> None:
        """Forget keys, whether they have a state or not. Not while a batch is in flight."""
        self.slab.remove_all([key for key in dict.fromkeys(keys) if key in self.slab.index])

    def empty_states(self, keys: list[Key]) -> None:
        """Make these states empty ones, as of keys without events. The state topic has records of them."""
        slab = self.slab
        self.erase(keys)
        rows, _, _ = slab.find_or_add(keys)
        slab.rows.fill(rows, self.initial)
        slab.steps[rows] = slab.last_timestamp[rows] = slab.failures[rows] = 0
        slab.recorded[rows] = 1

    def begin_states(self, origin: int, answers_from: int = -1) -> None:
        """Forget all states (of a restore that starts again); from here on they begin at `origin`."""
        self._use(self._states.open(self.number))
        self.slab.stream_time.begin(origin, NEVER)
        self.origin, self.answers_from, self.seed, self.rebuilt_to = origin, answers_from, 0, -1
        self.moved_from, self.outside_times, self.moves = 0, (), ()

    def adopt(self, other: Partition) -> None:
        """Take over the states and erasures that were read from the state topic for it, which `other` loses."""
        self._use(self._states.adopt(self.number, other._states))
        self.erasures, other.erasures = other.erasures, Erasures()

    def run(self, *, position: int, floor: int, now_s: float, floor_position: int | None = None) -> None:
        """Its states are those of `position`: it can be served. `floor_position`: as the floor record has it."""
        assert self.phase is PartitionPhase.RESTORING, self.phase
        self.position, self.floor, self.floor_written_s = position, floor, now_s
        self.floor_position = position if floor_position is None else floor_position
        self.phase, self.restore = PartitionPhase.RUNNING, None

    def close(self) -> None:
        """Forget it. Not while a batch is in flight."""
        if self.restore is not None:
            self.restore.close()
        self.phase, self.restore = PartitionPhase.CLOSED, None
        self._states.close(self.number)


class Partitions:
    """The partitions that are assigned to this member, by number."""

    def __init__(self) -> None:
        self._owned: dict[int, Partition] = {}

    def __iter__(self) -> Iterator[Partition]:
        return iter(list(self._owned.values()))

    def __len__(self) -> int:
        return len(self._owned)

    def __getitem__(self, number: int) -> Partition:
        return self._owned[number]

    def add(self, partition: Partition) -> None:
        """A partition that was assigned."""
        self._owned[partition.number] = partition

    def remove(self, number: int) -> Partition | None:
        """A partition that was revoked; None where it was not here."""
        return self._owned.pop(number, None)

    def assignment(self) -> Mapping[int, int]:
        """Number → epoch, as `PollResult.assignment` has it."""
        return {number: partition.epoch for number, partition in self._owned.items()}

    def running(self) -> list[Partition]:
        """Those that are served."""
        return [partition for partition in self if partition.phase is PartitionPhase.RUNNING]

    def erasures_due(self) -> bool:
        """Whether keys of those that are served are to be erased."""
        return any(partition.erasures.due for partition in self.running())

    def pass_over(self, positions: Mapping[int, int], with_records: Collection[int]) -> None:
        """The client has come to `positions`; where it gave no records, there were none on the way."""
        for partition in self.running():
            if partition.number not in with_records:
                partition.passed = max(partition.passed, positions.get(partition.number, 0))

    def restoring(self) -> list[Restore]:
        """The restores that are not done, in the order of assignment."""
        return [partition.restore for partition in self if partition.restore is not None]

    def running_numbers(self) -> set[int]:
        """The numbers of those that are served."""
        return {partition.number for partition in self.running()}
