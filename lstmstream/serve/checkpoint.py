"""Which states to write when, and how they look in the state topic.

The input log is the changelog: a state is written some time after it changed, oldest change first, and the *floor*
record of a partition says from which offset the input must be replayed. States are only ever written inside a
transaction that also carries offsets (see transport/base.py). Bringing states back is in restore.py.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

import numpy as np
import orjson

from lstmstream.serve.engine import Changes
from lstmstream.serve.records import Bools, Ints, Message
from lstmstream.serve.state import KeyState, StateStore

STATE_FORMAT = 1
EVENTS_PER_WRITE = 5  # states never take more than one write for five events
WRITES_PER_TRANSACTION = 200  # or two fifths of the batch, if that is more: what a small batch waits for is latency
WRITES_PER_TRANSACTION_AT_END = 10_000  # a shutdown has little time
FLOOR_EVERY_S = 1.0
FLOOR_KEY = b"\x00"

_STATE = struct.Struct("<4sB16sqqqqI")  # magic, format, owner, start, offset, steps, last timestamp, floats
_MAGIC = b"LSST"
_CRC = struct.Struct("<I")


class Damaged(ValueError):
    """A record of the state topic that cannot be trusted."""


class Owner(NamedTuple):
    """Who may use a state: the model, and the settings that belong to its meaning."""

    model: str
    version: str
    fingerprint: str
    ttl: str
    late: str
    key: str
    timestamp: str

    @property
    def digest(self) -> bytes:
        """16 bytes of name; a model's name and version are for people and do not count."""
        return sha256(orjson.dumps(self[2:])).digest()[:16]

    def __str__(self) -> str:
        return (
            f"model {self.model} version {self.version} (fingerprint {self.fingerprint}; ttl {self.ttl},"
            f" late {self.late}, key {self.key}, timestamp {self.timestamp})"
        )


class Floor(NamedTuple):
    """Every key whose last change lies before `offset` has a state record at least that new."""

    owner: Owner
    start: int  # where this owner's states began; a state counts only if it names the same start
    offset: int
    topic_id: str  # of the input topic
    partitions: int  # of the input topic


class StoredState(NamedTuple):
    """One key's state as it stands in the state topic."""

    owner: bytes
    start: int
    state: KeyState


def state_key(key: bytes | None) -> bytes:
    """One byte for the kind, then the key: no user key can meet a control record."""
    return b"\x02" if key is None else b"\x01" + key


def entity_key(record_key: bytes) -> bytes | None:
    """The inverse of `state_key`. Raises Damaged."""
    if record_key[:1] == b"\x01":
        return record_key[1:]
    if record_key == b"\x02":
        return None
    raise Damaged(f"unknown kind of key, first byte {record_key[:1].hex() or 'missing'}")


def encode_state(record_key: bytes, owner: bytes, start: int, state: KeyState) -> bytes:
    """Header, row in little-endian float32, CRC-32 of key and all before it."""
    head = _STATE.pack(
        _MAGIC, STATE_FORMAT, owner, start, state.last_offset, state.steps, state.last_timestamp, len(state.row)
    )
    body = head + state.row.astype("<f4").tobytes()
    return body + _CRC.pack(crc32(body, crc32(record_key)))


def decode_state(record_key: bytes, value: bytes) -> StoredState:
    """The inverse of `encode_state`. Raises Damaged for anything but what it wrote."""
    if len(value) < _STATE.size + _CRC.size:
        raise Damaged(f"{len(value)} bytes are too few")
    body = value[: -_CRC.size]
    if _CRC.unpack(value[-_CRC.size :])[0] != crc32(body, crc32(record_key)):
        raise Damaged("the checksum is wrong")
    magic, version, owner, start, offset, steps, last_timestamp, floats = _STATE.unpack_from(body)
    if (magic, version) != (_MAGIC, STATE_FORMAT):
        raise Damaged(f"format {version} is not known; this program reads {STATE_FORMAT}")
    if len(body) != _STATE.size + 4 * floats:
        raise Damaged("the row is cut short")
    row = np.frombuffer(body, dtype="<f4", offset=_STATE.size).astype(np.float32)
    return StoredState(owner, start, KeyState(row, steps, last_timestamp, offset))


def encode_floor(floor: Floor) -> bytes:
    """JSON, so that people can read it, with a CRC-32 of its other fields."""
    fields = {"format": STATE_FORMAT, **floor._asdict(), "owner": floor.owner._asdict()}
    return orjson.dumps({**fields, "crc": crc32(orjson.dumps(fields))})


def decode_floor(value: bytes) -> Floor:
    """The inverse of `encode_floor`. Raises Damaged."""
    try:
        fields = orjson.loads(value)
        crc = fields.pop("crc")
        if crc != crc32(orjson.dumps(fields)):
            raise Damaged("the checksum is wrong")
        if fields.pop("format") != STATE_FORMAT:
            raise Damaged("unknown format")
        return Floor(**{**fields, "owner": Owner(**fields["owner"])})
    except Damaged:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"not a floor record: {type(error).__name__}") from error


class _Dirty(NamedTuple):
    """Rows that changed since they were last written, in the order of their first change."""

    rows: Ints
    first_offsets: Ints
    since_s: float  # clock time of that change
    record_ms: int  # timestamp of the oldest input record among them


@dataclass(slots=True)
class _Ledger:
    """What is known of one partition."""

    start: int
    position: int  # the next input offset
    floor: int  # as it stands in the state topic
    floor_written_s: float
    retention_ms: int | None
    queue: deque[_Dirty] = field(default_factory=deque)
    dirty: Bools = field(default_factory=lambda: np.zeros(256, dtype=np.bool_))

    def oldest_s(self) -> float:
        """Clock time of the first change that no state record contains yet."""
        return self.queue[0].since_s if self.queue else np.inf


class Plan(NamedTuple):
    """What one transaction should write besides the answers."""

    messages: list[Message]
    written: dict[int, Ints]  # partition → rows that become clean
    floors: dict[int, int]
    offsets: dict[int, int]  # of every partition that the transaction writes anything of: they carry the fence
    credit: int  # what is left of the write budget after it


class Checkpointer:
    """Decides which states go into the next transaction. `plan`, then `committed` once it is."""

    def __init__(
        self,
        topic: str,
        owner: Owner,
        *,
        interval_s: float,
        input_id: str,
        partitions: int,
        clock: Callable[[], float],
        wall_ms: Callable[[], int],
    ) -> None:
        """`clock` is monotonic seconds, `wall_ms` milliseconds since 1970."""
        self.owner = owner
        self._topic = topic
        self._interval_s = interval_s
        self._input_id = input_id
        self._partitions = partitions
        self._clock = clock
        self._wall_ms = wall_ms
        self._ledgers: dict[int, _Ledger] = {}
        self._credit = 0  # committed events that no write was charged to yet

    def open(self, partition: int, *, start: int, position: int, floor: int, retention_ms: int | None) -> None:
        """Begin with a partition whose states are restored up to `position`."""
        self._ledgers[partition] = _Ledger(start, position, floor, self._clock(), retention_ms)

    def close(self, partition: int) -> None:
        """Forget a partition."""
        self._ledgers.pop(partition, None)

    def mark(self, partition: int, changes: Changes, record_ms: int) -> None:
        """Note rows that changed; those already waiting keep their place."""
        ledger = self._ledgers[partition]
        if len(changes.rows) and (top := int(changes.rows.max())) >= len(ledger.dirty):
            grown = np.zeros(max(top + 1, 2 * len(ledger.dirty)), dtype=np.bool_)
            grown[: len(ledger.dirty)] = ledger.dirty
            ledger.dirty = grown
        new = ~ledger.dirty[changes.rows]
        if new.any():
            ledger.dirty[changes.rows[new]] = True
            ledger.queue.append(_Dirty(changes.rows[new], changes.first_offsets[new], self._clock(), record_ms))

    def position(self, partition: int) -> int:
        """The next input offset of an open partition."""
        return self._ledgers[partition].position

    def floor_lag(self) -> dict[int, int]:
        """Records that a restart would have to replay, by partition."""
        return {p: ledger.position - ledger.floor for p, ledger in self._ledgers.items()}

    def due(self) -> bool:
        """Whether an idle owner should write states now."""
        latest = self._clock() - self._interval_s
        waiting = [ledger for ledger in self._ledgers.values() if ledger.queue]
        aged = self._credit >= EVENTS_PER_WRITE and any(ledger.queue[0].since_s <= latest for ledger in waiting)
        return aged or any(map(self._half_retained, waiting))

    def unwritten(self) -> int:
        """States that changed since they were written."""
        return sum(len(chunk.rows) for ledger in self._ledgers.values() for chunk in ledger.queue)

    def plan(
        self,
        states: StateStore,
        *,
        events: int,
        changes: Mapping[int, Changes],
        positions: Mapping[int, int],
        everything: bool = False,
    ) -> Plan:
        """States due for the transaction that takes the input to `positions` (partition → next offset).

        `changes` are those of the staged batch of `events` events; states are written as of that batch. `everything`
        is for a shutdown: all that is dirty, a transaction's worth at a time.
        """
        credit = self._credit + events
        now = self._clock()
        messages: list[Message] = []
        written: dict[int, Ints] = {}
        floors: dict[int, int] = {}
        usual = max(WRITES_PER_TRANSACTION, 2 * events // EVENTS_PER_WRITE)
        room = WRITES_PER_TRANSACTION_AT_END if everything else usual
        # Partitions oldest first too: where the budget is short, the first of them would else take all of it.
        for partition, ledger in sorted(self._ledgers.items(), key=lambda item: item[1].oldest_s()):
            urgent = everything or self._half_retained(ledger)
            allowed = room if urgent else min(room, credit // EVENTS_PER_WRITE)
            rows = self._take(ledger, allowed, before=np.inf if urgent else now - 0.9 * self._interval_s)
            room -= len(rows)
            credit = max(0, credit - EVENTS_PER_WRITE * len(rows))
            if len(rows):
                written[partition] = rows
                messages += self._state_messages(partition, ledger, states, rows)
            position = positions.get(partition, ledger.position)
            floor = self._floor_after(ledger, len(rows), changes.get(partition), position)
            # An older floor is no less right, so one a second is enough.
            if floor > ledger.floor and (everything or now - ledger.floor_written_s >= FLOOR_EVERY_S):
                floors[partition] = floor
                messages.append(self._floor_message(partition, ledger.start, floor))
        offsets = {p: self._ledgers[p].position for p in {*written, *floors}} | dict(positions)
        return Plan(messages, written, floors, offsets, credit)

    def committed(self, plan: Plan, changes: Mapping[int, Changes], oldest_ms: Mapping[int, int]) -> None:
        """The transaction with `plan` is through: its states are clean, the batch's others are dirty."""
        now = self._clock()
        self._credit = plan.credit
        for partition, rows in plan.written.items():
            ledger = self._ledgers[partition]
            self._drop(ledger, len(rows))
            ledger.dirty[rows] = False
        for partition, floor in plan.floors.items():
            self._ledgers[partition].floor, self._ledgers[partition].floor_written_s = floor, now
        for partition, position in plan.offsets.items():
            self._ledgers[partition].position = position
        for partition, change in changes.items():
            written = plan.written.get(partition)
            if written is not None and len(written):
                fresh = ~np.isin(change.rows, written)
                change = Changes(change.rows[fresh], change.first_offsets[fresh])  # noqa: PLW2901
            self.mark(partition, change, oldest_ms[partition])

    def first_floor(self, partition: int, start: int) -> Message:
        """The floor record that fixes where this owner's states begin."""
        return self._floor_message(partition, start, start)

    def _floor_message(self, partition: int, start: int, offset: int) -> Message:
        floor = Floor(self.owner, start, offset, self._input_id, self._partitions)
        return Message(self._topic, partition, FLOOR_KEY, encode_floor(floor), None, ())

    def _half_retained(self, ledger: _Ledger) -> bool:
        if ledger.retention_ms is None or not ledger.queue:
            return False
        return self._wall_ms() - ledger.queue[0].record_ms > ledger.retention_ms / 2

    @staticmethod
    def _take(ledger: _Ledger, allowed: int, *, before: float) -> Ints:
        """Up to `allowed` rows from the head of the queue that changed before that time; they stay queued."""
        taken: list[Ints] = []
        for chunk in ledger.queue:
            if allowed <= 0 or chunk.since_s > before:
                break
            taken.append(chunk.rows[:allowed])
            allowed -= len(taken[-1])
        return np.concatenate(taken) if taken else np.empty(0, dtype=np.int64)

    @staticmethod
    def _drop(ledger: _Ledger, count: int) -> None:
        while count > 0:
            chunk = ledger.queue.popleft()
            if len(chunk.rows) > count:
                rest = chunk._replace(rows=chunk.rows[count:], first_offsets=chunk.first_offsets[count:])
                ledger.queue.appendleft(rest)
            count -= len(chunk.rows)

    @staticmethod
    def _floor_after(ledger: _Ledger, taken: int, changes: Changes | None, position: int) -> int:
        """The floor once the `taken` oldest are written: the first change that no record contains."""
        for chunk in ledger.queue:
            if taken < len(chunk.rows):
                return int(chunk.first_offsets[taken])
            taken -= len(chunk.rows)
        if changes is not None and len(changes.rows):
            return int(changes.first_offsets[0])
        return position

    def _state_messages(self, partition: int, ledger: _Ledger, states: StateStore, rows: Ints) -> list[Message]:
        slab, owner = states.slabs[partition], self.owner.digest
        messages = []
        for row in rows.tolist():
            key = state_key(slab.keys[row])
            value = encode_state(key, owner, ledger.start, slab.get(row))
            messages.append(Message(self._topic, partition, key, value, None, ()))
        return messages
