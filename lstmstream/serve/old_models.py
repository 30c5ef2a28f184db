"""States of models that were replaced: kept for `state.keep_old_models` after their last write, then deleted.

While a model's floor record is there, going back to it needs no rebuild. So the floor record goes first: it is written
again, marked as dropped, in a transaction of the partition's owner. From then on none of its states counts, and the
mark says how far the records of the state topic are deleted. The rest is done beside the work, some records a second.
verify still finds in it which events that model has answered. See docs/model-change.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from lstmstream.errors import LstmstreamError, UnreadableRecords
from lstmstream.records import RecordBatch
from lstmstream.serve.clock import Clock
from lstmstream.serve.failure_log import FailureLog
from lstmstream.serve.state_records import (
    ENTITY_KEY,
    NULL_KEY,
    CorruptStateRecord,
    Floor,
    OldStateFormat,
    key_kind,
)
from lstmstream.transport.ports import Admin, LogReader

if TYPE_CHECKING:
    from lstmstream.serve.partition import Partition

KEYS_AT_ONCE = 1_000  # deleted in a transaction, or as many as one read gives
KEYS_PER_S = 2_000
READ_S = 0.02  # of the loop, at once
INTERVAL_S = 0.25  # between two reads
LOOK_INTERVAL_S = 60.0  # for models whose time has come
RETRY_S = 30.0  # after a failure

log = logging.getLogger(__name__)


class OldModel(NamedTuple):
    """Another identity that has a floor record in a partition of the state topic."""

    floor: Floor
    written_ms: int  # when that was; milliseconds since 1970 UTC


class Deletion(NamedTuple):
    """What the next transaction does."""

    keys: list[bytes]  # of state records
    floors: Mapping[bytes, Floor]  # identity's bytes → its floor record from now on


class OldModels:
    """Those of one partition."""

    def __init__(self, models: Mapping[bytes, OldModel] | None = None) -> None:
        """`models`: by the bytes that name the identity in record keys."""
        self.models = dict(models or {})
        self.next: Deletion | None = None  # is to be committed before more is read
        self.look_at_s = -math.inf  # clock time; whether the time of one of them has come

    def unfinished(self) -> dict[bytes, Floor]:
        """The dropped ones of which records are left."""
        floors = {identity: model.floor for identity, model in self.models.items()}
        return {
            identity: floor
            for identity, floor in floors.items()
            if floor.dropped is not None and floor.dropped[0] < floor.dropped[1]
        }

    def due(self, before_ms: float) -> dict[bytes, Floor]:
        """Those whose last write lies before."""
        return {
            identity: model.floor
            for identity, model in self.models.items()
            if model.floor.dropped is None and model.written_ms <= before_ms
        }

    def on_commit(self, done: Deletion) -> None:
        """Its records are in the state topic."""
        for identity, floor in done.floors.items():
            self.models[identity] = self.models[identity]._replace(floor=floor)
        self.next = None


class OldModelSweeper:
    """`tick` once in each round of the loop: finds what the checkpointer deletes with the next transaction."""

    def __init__(self, keep_s: float | None, admin: Admin, state_topic: str, clock: Clock) -> None:
        """`keep_s`: since the last write of a model; None: for ever."""
        self._keep_s = keep_s
        self._admin = admin
        self._topic = state_topic
        self._clock = clock
        self._failures = FailureLog(log, clock.monotonic_s)
        self._reader: LogReader | None = None
        self._current: Partition | None = None  # that it reads
        self._next_s = 0.0

    def tick(self, running: Iterable[Partition]) -> None:
        """A little work."""
        now_s = self._clock.monotonic_s()
        if now_s < self._next_s:
            return
        self._next_s = now_s + INTERVAL_S
        partitions = list(running)
        if self._current is not None and self._current not in partitions:
            self.close()
        try:
            for partition in partitions:
                if now_s >= partition.old_models.look_at_s:
                    partition.old_models.look_at_s = now_s + LOOK_INTERVAL_S
                    self._mark(partition)
            self._delete(partitions)
        except LstmstreamError as error:  # no fault of the stream
            self.close()
            self._next_s = now_s + RETRY_S
            self._failures.note("the states of a replaced model cannot be deleted now; trying again", error)

    def close(self) -> None:
        """Free what it reads with."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._current = None

    def _mark(self, partition: Partition) -> None:
        """Drop the models whose time has come."""
        old = partition.old_models
        if self._keep_s is None or old.next is not None:
            return
        due = old.due(1000 * (self._clock.wall_s() - self._keep_s))
        if not due:
            return
        beginning, end = self._admin.offset_range(self._topic, partition.number)
        old.next = Deletion([], {name: floor._replace(dropped=(beginning, end)) for name, floor in due.items()})
        for floor in due.values():
            log.info(
                "deleting the states of %s, which has been replaced (state.keep_old_models)",
                floor.identity,
                extra={"partition": partition.number},
            )

    def _delete(self, partitions: Iterable[Partition]) -> None:
        """The next records of the partition whose turn it is."""
        if self._current is None or not self._current.old_models.unfinished():
            self.close()
            self._current = next((p for p in partitions if p.old_models.unfinished()), None)
        partition = self._current
        if partition is None or partition.old_models.next is not None:
            return
        floors = partition.old_models.unfinished()
        dropped = [floor.dropped for floor in floors.values() if floor.dropped is not None]
        end = max(last for _, last in dropped)
        if self._reader is None:
            start = max(min(first for first, _ in dropped), self._admin.offset_range(self._topic, partition.number)[0])
            self._reader = self._admin.open_reader(self._topic, partition.number, min(start, end), end)
        keys = self._read(self._reader, floors)
        at = self._reader.position
        if keys or at >= end:
            new = {name: floor._replace(dropped=_up_to(floor, at)) for name, floor in floors.items()}
            partition.old_models.next = Deletion(keys, new)
            self._next_s += len(keys) / KEYS_PER_S

    def _read(self, reader: LogReader, identities: Collection[bytes]) -> list[bytes]:
        """Record keys of states of these identities, each once."""
        found: dict[bytes, None] = {}
        deadline_s = self._clock.monotonic_s() + READ_S
        while reader.position < reader.end and len(found) < KEYS_AT_ONCE and self._clock.monotonic_s() < deadline_s:
            try:
                batch = reader.next(0.0)
            except UnreadableRecords as error:  # what is in it never counts again
                reader.position = min(error.next_offset, reader.end)
                continue
            if not len(batch):
                break
            found |= dict.fromkeys(_states_of(batch, identities))
        return list(found)


def _states_of(batch: RecordBatch, identities: Collection[bytes]) -> Iterable[bytes]:
    for record_key, value in zip(batch.keys, batch.values, strict=True):
        try:
            kind, identity = key_kind(record_key)
        except (CorruptStateRecord, OldStateFormat):
            continue
        if value is not None and kind in (ENTITY_KEY, NULL_KEY) and identity in identities:
            assert record_key is not None
            yield record_key


def _up_to(floor: Floor, offset: int) -> tuple[int, int]:
    assert floor.dropped is not None
    first, end = floor.dropped
    return min(end, max(first, offset)), end
