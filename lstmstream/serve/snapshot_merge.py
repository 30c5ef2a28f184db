"""A new snapshot: what an older one holds, with the records that the state topic got since.

The states come from the topic, never from the memory of the daemon, which is ahead of it: what is in a snapshot is
what a restore would find in the topic below the snapshot's offset, by the same rules.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lstmstream.records import RecordBatch
from lstmstream.serve.alert_memory import Incident
from lstmstream.serve.key_table import Key
from lstmstream.serve.snapshot_file import (
    BLOCK_STATES,
    Block,
    RecordBytes,
    SnapshotFile,
    SnapshotHead,
    SnapshotRefused,
    SnapshotWriter,
)
from lstmstream.serve.state_records import (
    ENTITY_KEY,
    IDENTITY_BYTES,
    NULL_KEY,
    CorruptStateRecord,
    OldStateFormat,
    StateColumns,
    floor_key,
    key_kind,
    pack_key,
    state_columns,
    unpack_floor,
    unpack_key,
    unpack_state,
    unpack_states,
)

_RECORD_OVERHEAD_BYTES = 200  # of Python's objects


class BadBase(SnapshotRefused):
    """The older snapshot is not sound."""


class Tail:
    """Records of one partition of the state topic, the newest of each key."""

    def __init__(self, digest: bytes) -> None:
        """`digest`: of the identity whose states are wanted."""
        self.bytes = 0  # memory, roughly
        self.states: dict[Key, bytes | None] = {}  # value of the newest record; None: a tombstone
        self.others: dict[bytes, RecordBytes | None] = {}  # by record key: floor records, and all that are not states
        self.unknown: dict[bytes | None, int] = {}  # record keys that are not lstmstream's → offset
        self._prefix = digest[:IDENTITY_BYTES]

    def add(self, batch: RecordBatch) -> None:
        """The next records."""
        offsets, times = batch.offsets.tolist(), batch.timestamps.tolist()
        for record_key, value, offset, time_ms in zip(batch.keys, batch.values, offsets, times, strict=True):
            try:
                kind, identity = key_kind(record_key)
            except (CorruptStateRecord, OldStateFormat):
                self.unknown.pop(record_key, None)
                if value is not None:
                    self.unknown[record_key] = offset
                continue
            assert record_key is not None
            if kind not in (ENTITY_KEY, NULL_KEY):
                self.others[record_key] = None if value is None else RecordBytes(record_key, value, offset, time_ms)
                self.bytes += len(value or b"")
            elif identity == self._prefix:
                key = unpack_key(record_key)
                before = self.states.get(key)
                self.bytes += len(value or b"") - len(before or b"")
                if key not in self.states:
                    self.bytes += len(record_key) + _RECORD_OVERHEAD_BYTES
                self.states[key] = value


class SnapshotJob(NamedTuple):
    """What is to be written."""

    folder: Path
    base: Path | None  # the older snapshot; None: the tail begins where the topic does
    tail: Tail
    head: SnapshotHead  # its other records are added
    digest: bytes
    name: str


class SnapshotWritten(NamedTuple):
    """A snapshot that is on the disk."""

    path: Path
    head: SnapshotHead
    states: int
    bytes: int


def write_snapshot(job: SnapshotJob, stopping: Callable[[], bool] = lambda: False) -> SnapshotWritten:
    """Write the file beside its name, and give it that once it is on the disk.

    A crash at any moment leaves what was there before, and at most a file that no restore looks at. Raises OSError;
    BadBase, and SnapshotRefused where a record of the tail is not sound or `stopping` says so.
    """
    job.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = job.folder / f".{job.name}.{os.getpid()}.tmp"
    path = job.folder / job.name
    try:
        with contextlib.ExitStack() as files:
            base = None if job.base is None else files.enter_context(_open_base(job.base))
            head = job.head._replace(others=_others(base, job.tail, job.digest))
            writer = SnapshotWriter(unfinished, head)
            files.callback(writer.close)
            states = 0
            for block in _joined(_merged(base, job)):
                if stopping():
                    raise SnapshotRefused("the daemon stops")
                writer.add(block)
                states += len(block.keys)
            size = writer.finish()
        unfinished.replace(path)
        _sync_folder(job.folder)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    return SnapshotWritten(path, head, states, size)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _others(base: SnapshotFile | None, tail: Tail, digest: bytes) -> tuple[RecordBytes, ...]:
    """The records that are not states, in their order. A restore must find our own floor sound, or refuse the topic."""
    if tail.unknown:
        raise SnapshotRefused(f"the state topic has a record at offset {min(tail.unknown.values())} that is not sound")
    found: dict[bytes, RecordBytes | None] = {} if base is None else {record.key: record for record in base.head.others}
    found |= tail.others
    floor = found.get(floor_key(digest))
    if floor is not None:
        try:
            unpack_floor(floor.value)
        except CorruptStateRecord as error:
            raise SnapshotRefused(f"the floor record at offset {floor.offset} is not sound: {error}") from error
    records = (record for record in found.values() if record is not None)
    return tuple(sorted(records, key=lambda record: record.offset))


def _merged(base: SnapshotFile | None, job: SnapshotJob) -> Iterator[Block]:
    """The states of the base that have no newer record, then those of the tail."""
    newer = job.tail.states
    for block in _base_blocks(base) if base is not None else ():
        kept = np.array([key not in newer for key in block.keys], np.bool_)
        if kept.all():
            yield block
        elif kept.any():
            yield _only(block, np.flatnonzero(kept))
    keys = (key for key, value in newer.items() if value is not None)
    while chunk := list(islice(keys, BLOCK_STATES)):
        yield _unpacked(chunk, job)


def _joined(blocks: Iterator[Block]) -> Iterator[Block]:
    """Small blocks as one: else there would be more of them with each snapshot."""
    waiting: list[Block] = []
    for block in blocks:
        waiting.append(block)
        if sum(len(one.keys) for one in waiting) >= BLOCK_STATES / 2:
            yield _concatenated(waiting)
            waiting = []
    if waiting:
        yield _concatenated(waiting)


def _concatenated(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    keys: list[Key] = []
    incidents: dict[int, Incident] = {}
    for block in blocks:
        incidents |= {len(keys) + at: incident for at, incident in block.incidents.items()}
        keys += block.keys
    columns = zip(*(block.columns for block in blocks), strict=True)
    return Block(keys, StateColumns._make(np.concatenate(parts) for parts in columns), incidents)


def _open_base(path: Path) -> SnapshotFile:
    try:
        return SnapshotFile(path)
    except (SnapshotRefused, OSError) as error:
        raise BadBase(str(error)) from error


def _base_blocks(base: SnapshotFile) -> Iterator[Block]:
    try:
        yield from base.blocks()
    except (SnapshotRefused, OSError) as error:
        raise BadBase(str(error)) from error


def _only(block: Block, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Block:
    place = {row: at for at, row in enumerate(rows.tolist())} if block.incidents else {}
    return Block(
        [block.keys[row] for row in rows.tolist()],
        StateColumns._make(column[rows] for column in block.columns),
        {place[row]: incident for row, incident in block.incidents.items() if row in place},
    )


def _unpacked(keys: list[Key], job: SnapshotJob) -> Block:
    """The tail's records of these keys, as a restore takes them."""
    record_keys = [pack_key(key, job.digest) for key in keys]
    values = [job.tail.states[key] or b"" for key in keys]
    columns = unpack_states(record_keys, values, job.digest, job.head.floats)
    incidents: dict[int, Incident] = {}
    if columns is None:  # one of them has an incident, is of an older format, or is not sound
        columns, incidents = _one_by_one(record_keys, values, job)
    if not np.isfinite(columns.rows).all():
        raise SnapshotRefused("the state topic has a state that is not finite")
    return Block(keys, columns, incidents)


def _one_by_one(
    record_keys: list[bytes], values: list[bytes], job: SnapshotJob
) -> tuple[StateColumns, dict[int, Incident]]:
    rows = np.empty((len(values), job.head.floats), np.float32)
    numbers = np.empty((5, len(values)), np.int64)
    incidents: dict[int, Incident] = {}
    for at, (record_key, value) in enumerate(zip(record_keys, values, strict=True)):
        try:
            digest, origin, state = unpack_state(record_key, value)
        except (CorruptStateRecord, OldStateFormat) as error:
            raise SnapshotRefused(f"the state topic has a state record that is not sound: {error}") from error
        is_empty = not state.steps and not len(state.row)  # of a key that was evicted
        if digest != job.digest or (len(state.row) != job.head.floats and not is_empty):
            raise SnapshotRefused("the state topic has a state record that does not fit the model")
        rows[at] = 0 if is_empty else state.row
        numbers[:, at] = origin, state.last_offset, state.steps, state.last_timestamp, state.failures
        if state.incident is not None:
            incidents[at] = state.incident
    return state_columns(numbers, rows), incidents
