"""Read one partition's records of the state topic into its slab: floor, states, what is damaged."""

from __future__ import annotations

import logging
from contextlib import suppress

import numpy as np

from lstmstream.errors import UnreadableRecords
from lstmstream.records import Ints, RecordBatch
from lstmstream.serve.erasures import take_logged
from lstmstream.serve.key_table import Key
from lstmstream.serve.old_models import OldModel
from lstmstream.serve.partition import Partition
from lstmstream.serve.restore_errors import RestoreErrors
from lstmstream.serve.state_records import (
    ERASURE,
    FLOOR,
    IDENTITY_BYTES,
    REQUEST,
    CorruptStateRecord,
    Floor,
    OldStateFormat,
    StateColumns,
    StateIdentity,
    are_of_keys,
    entity_keys,
    is_unusual,
    key_kind,
    unpack_floor,
    unpack_key,
    unpack_state,
    unpack_states,
)
from lstmstream.transport.ports import LogReader

log = logging.getLogger(__name__)


class StateLoader:
    """What the state topic holds of one partition so far. The newest record of a key counts."""

    def __init__(self, partition: Partition, digest: bytes, errors: RestoreErrors) -> None:
        """`digest`: of the identity whose states go into the partition's slab."""
        self.floor: Floor | None = None
        self.damaged_floor: str | None = None  # where our newest floor record is and why it cannot be read
        self.records = 0  # that were taken so far
        self.dropped: Floor | None = None  # our newest floor record, if it says that our states were dropped
        self.others: dict[bytes, OldModel] = {}  # identities that have a floor here, by their bytes
        self.served_last = b""  # the one that has written the newest of these
        self.damaged: dict[bytes | None, int] = {}  # record keys whose newest record cannot be trusted → its offset
        self._origins: Ints = np.empty(0, dtype=np.int64)  # by row number
        self._partition = partition
        self._digest = digest
        self._errors = errors

    def origins(self, rows: Ints) -> Ints:
        """The input offsets at which the states in these rows of the slab began."""
        return self._origin_room()[rows]

    def go_on_in(self, partition: Partition) -> None:
        """From now on it reads into this partition, which has what was read so far."""
        self._partition = partition

    def read(self, reader: LogReader, timeout_s: float) -> None:
        """The next batch of state records. Raises CannotServe, and what the reader raises."""
        try:
            batch = reader.next(timeout_s)
        except UnreadableRecords as error:  # states of unknown keys: they are rebuilt, as those of damaged records
            log.error("state records cannot be used: %s", error.problem)  # noqa: TRY400 - for a person
            self.damaged[b"batch %d" % error.first] = error.first
            reader.position = min(error.next_offset, reader.end)
        else:
            self.take(batch)

    def take(self, batch: RecordBatch) -> None:
        """A batch of state records, straight into the slab. Raises CannotServe."""
        self.records += len(batch)
        if len(batch) and are_of_keys(batch.keys, self._digest):  # as nearly all batches are
            self._partition.erasures.identities.add(self._digest[:IDENTITY_BYTES])
            ours = dict(zip(batch.keys, range(len(batch)), strict=True))
        else:
            ours = self._take_others(batch)
        self._read_states(batch, ours)

    def _take_others(self, batch: RecordBatch) -> dict[bytes, int]:
        """All but our states; the index of the newest record of each of these. Raises CannotServe."""
        ours: dict[bytes, int] = {}
        for i, record_key in enumerate(batch.keys):
            offset = int(batch.offsets[i])
            try:
                kind, identity = key_kind(record_key)
                assert record_key is not None
                if kind in (REQUEST, ERASURE):
                    self._read_erasure(record_key, batch.values[i], offset)
                    continue
                self._partition.erasures.identities.add(identity)
                if kind == FLOOR:
                    self._read_floor(identity, batch.values[i], offset, int(batch.timestamps[i]))
                elif identity == self._digest[:IDENTITY_BYTES]:
                    ours[record_key] = i
            except CorruptStateRecord as error:
                if batch.values[i] is None:  # somebody cleared away a record that was not ours
                    self.damaged.pop(record_key, None)
                    continue
                self.damaged[record_key] = offset
                self._log_damaged(error, offset)
            except OldStateFormat as error:
                raise self._errors.old_format(offset) from error
        return ours

    def _read_erasure(self, record_key: bytes, value: bytes | None, offset: int) -> None:
        take_logged(
            self._partition.erasures, record_key, value, self._errors.state_topic, self._errors.partition, offset
        )

    def _read_floor(self, identity: bytes, value: bytes | None, offset: int, written_ms: int) -> None:
        ours = identity == self._digest[:IDENTITY_BYTES]
        if value is None:  # somebody deleted it
            if ours:
                self.floor = self.dropped = self.damaged_floor = None
            else:
                self.others.pop(identity, None)
            return
        try:
            floor = unpack_floor(value)
        except CorruptStateRecord as error:
            if ours:
                self.damaged_floor = f"at offset {offset}: {error}"
            return
        if floor.dropped is None:
            self.served_last = identity
        if ours:
            self.floor, self.dropped = (floor, None) if floor.dropped is None else (None, floor)
            self.damaged_floor = None
        else:
            self.others[identity] = OldModel(floor, written_ms)

    def _read_states(self, batch: RecordBatch, ours: dict[bytes, int]) -> None:
        """The newest records of each of this identity's keys in the batch."""
        gone = [key for key, i in ours.items() if batch.values[i] is None] if None in batch.values else []
        for record_key in gone:
            del ours[record_key]
            self._forget(record_key)
            self.damaged.pop(record_key, None)
        if not ours:
            return
        slab = self._partition.slab
        columns = self._columns(batch, ours)
        if columns is None and (few := [key for key, i in ours.items() if is_unusual(batch.values[i] or b"")]):
            for record_key in few:
                i = ours.pop(record_key)
                self._read_state(record_key, batch.values[i] or b"", int(batch.offsets[i]))
            columns = self._columns(batch, ours) if ours else None
        if columns is None:  # one of them is not sound: one by one, to find which
            for record_key, i in ours.items():
                self._read_state(record_key, batch.values[i] or b"", int(batch.offsets[i]))
            return
        if not np.isfinite(columns.rows).all():
            raise self._errors.does_not_fit(int(batch.offsets[0]))
        keys = entity_keys(ours)
        self.put(keys, columns)
        if slab.incidents:
            for key in keys:
                slab.set_incident(key, None)
        if self.damaged:
            for record_key in ours:
                self.damaged.pop(record_key, None)

    def put(self, keys: list[Key], columns: StateColumns) -> None:
        """States of n different keys; incidents stay as they are."""
        slab = self._partition.slab
        rows, _, _ = slab.find_or_add(keys)
        empty = (columns.steps == 0) & (columns.last_offsets >= 0)  # evicted: a snapshot has no row of them
        content = np.where(empty[:, np.newaxis], self._partition.initial, columns.rows) if empty.any() else columns.rows
        slab.rows.write(rows, content)
        slab.steps[rows], slab.last_timestamp[rows] = columns.steps, columns.last_timestamps
        slab.last_offset[rows], slab.failures[rows] = columns.last_offsets, columns.failures
        slab.recorded[rows] = 1
        self._origin_room()[rows] = columns.origins

    def _columns(self, batch: RecordBatch, ours: dict[bytes, int]) -> StateColumns | None:
        values = [batch.values[i] or b"" for i in ours.values()]
        return unpack_states(list(ours), values, self._digest, self._partition.slab.rows.size)

    def _read_state(self, record_key: bytes, value: bytes, offset: int) -> None:
        try:
            stored = unpack_state(record_key, value)
        except CorruptStateRecord as error:
            self.damaged[record_key] = offset
            self._forget(record_key)
            self._log_damaged(error, offset)
            return
        except OldStateFormat as error:
            raise self._errors.old_format(offset) from error
        if stored.digest != self._digest:
            return
        slab = self._partition.slab
        if not stored.state.steps and not len(stored.state.row):
            stored = stored._replace(state=stored.state._replace(row=self._partition.initial))
        if len(stored.state.row) != slab.rows.size or not np.isfinite(stored.state.row).all():
            raise self._errors.does_not_fit(offset)
        self.damaged.pop(record_key, None)
        key = unpack_key(record_key)
        slab.put(key, stored.state)
        row = slab.index[key]
        slab.recorded[row] = 1
        self._origin_room()[row] = stored.origin

    def damaged_keys(self) -> list[Key]:
        """Whose newest record cannot be trusted, as far as that is known."""
        found: list[Key] = []
        for record_key in self.damaged:
            with suppress(CorruptStateRecord):
                if key_kind(record_key)[1] == self._digest[:IDENTITY_BYTES]:
                    found.append(unpack_key(record_key or b""))
        return found

    def other_identities(self) -> list[StateIdentity]:
        """Those that have a floor here."""
        return [other.floor.identity for other in self.others.values()]

    def drop(self, floor: Floor) -> None:
        """Of the states that are there, which `floor` is of, none is to be used."""
        self.floor, self.dropped = None, floor

    def _forget(self, record_key: bytes) -> None:
        key = unpack_key(record_key)
        if key in self._partition.slab.index:
            self._partition.slab.remove(key)

    def _origin_room(self) -> Ints:
        """`_origins`, with room for each row of the slab."""
        missing = self._partition.slab.capacity - len(self._origins)
        if missing > 0:
            self._origins = np.concatenate([self._origins, np.full(missing, -1, dtype=np.int64)])
        return self._origins

    def _log_damaged(self, error: CorruptStateRecord, offset: int) -> None:
        at = {"topic": self._errors.state_topic, "partition": self._errors.partition, "offset": offset}
        log.error("a state record cannot be used: %s", error, extra=at)
