"""Keys that are to be erased, and keys that were (docs/erasure.md).

`Erasures` is what the state topic says of one partition. `ErasureRequests` looks for new requests while it is served.
Its owner does not read the state topic otherwise, and most of what is new there it has written itself. So the ends of
the partitions are asked for every few seconds, with one request; only where an end has moved, the records up to it are
read, in slices.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from lstmstream.errors import TryAgain, UnreadableRecords
from lstmstream.records import Ints, Observations, pick
from lstmstream.serve.erasure_records import (
    DIGEST_BYTES,
    Erasure,
    digest_of,
    pack_erasure,
    unpack_erasure,
    unpack_request,
)
from lstmstream.serve.state_records import (
    ENTITY_KEY,
    IDENTITY_BYTES,
    NULL_KEY,
    REQUEST,
    CorruptStateRecord,
)
from lstmstream.transport.ports import Admin, LogReader

log = logging.getLogger(__name__)

INTERVAL_S = 5.0
BEHIND_INTERVAL_S = 1.0  # while more is new than one slice has read
READ_S = 0.1  # at once, of one partition
LOOK_S = 0.25  # of all partitions: the loop waits for it
RETENTION_INTERVAL_S = 60.0  # for a look at what the input no longer has
_NO_END = 2**62
FORGOTTEN_PER_TRANSACTION = 1_000  # erasures: all of them could take longer than a transaction may


class ErasurePlan(NamedTuple):
    """What a transaction does of one partition's erasures, and its records."""

    requests: Mapping[bytes, Sequence[bytes | None]]  # record key → the keys that it names
    forgotten: Sequence[bytes]  # record keys of erasures that nothing needs any more
    written: Sequence[bytes]  # record keys of the new ones
    keys: Sequence[bytes | None]  # of the records [N]
    values: Sequence[bytes | None]  # [N]


class Erasures:
    """What is known of one partition."""

    def __init__(self) -> None:
        self.read_to = 0  # offset of the state topic: requests before it are known
        self.identities: set[bytes] = set()  # whose states the partition has, by the bytes in their record keys
        self._requests: dict[bytes, Sequence[bytes | None]] = {}  # not applied yet
        self._applied: dict[bytes, int] = {}  # record key → input offset
        self._until: dict[bytes, int] = {}  # digest → the greatest offset
        self._forgotten: dict[bytes, None] = {}  # record keys of applied ones that nothing needs any more

    @property
    def due(self) -> bool:
        """Whether a transaction should be made for them."""
        return bool(self._requests or self._forgotten)

    @property
    def any_applied(self) -> bool:
        """Whether events may be in the input that are of no state any more."""
        return bool(self._applied)

    @property
    def last(self) -> int:
        """The input offset of the last one; -1 where there is none."""
        return max(self._until.values(), default=-1)

    def requested(self) -> list[bytes | None]:
        """The keys of requests that are not applied yet."""
        return [key for keys in self._requests.values() for key in keys]

    def begin(self, read_to: int) -> None:
        """A restore begins to read the state topic, up to there."""
        self.__init__()  # type: ignore[misc]
        self.read_to = read_to

    def take(self, record_key: bytes, value: bytes | None) -> None:
        """A record of kind REQUEST or ERASURE, in the order of the log. Raises CorruptStateRecord."""
        if record_key[:1] == REQUEST:
            if value is None:
                self._requests.pop(record_key, None)
            else:
                self._requests[record_key] = unpack_request(value)
        elif value is not None:
            self._add(record_key)
        else:
            self._remove(record_key)

    def plan(self, offset: int, salt: str, has_state: Callable[[bytes | None], bool]) -> ErasurePlan:
        """What to write for the first request, at the input offset up to which the states have all events."""
        requests = dict(islice(self._requests.items(), 1))
        forgotten = list(islice(self._forgotten, FORGOTTEN_PER_TRANSACTION))
        keys: list[bytes | None] = [*forgotten]
        values: list[bytes | None] = [None] * len(keys)
        written = []
        for request, named in requests.items():
            for key in named:
                record_key, value = pack_erasure(digest_of(key, salt), offset, request, found=has_state(key))
                written.append(record_key)
                states = [_state_key(key, identity) for identity in sorted(self.identities)]
                keys += [record_key, *states]
                values += [value, *[None] * len(states)]
            keys.append(request)
            values.append(None)
        return ErasurePlan(requests, forgotten, written, keys, values)

    def on_commit(self, plan: ErasurePlan) -> None:
        """Its records are in the state topic."""
        for record_key in plan.requests:
            self._requests.pop(record_key, None)
        for record_key in plan.forgotten:
            self._forgotten.pop(record_key, None)
            self._remove(record_key)
        for record_key in plan.written:
            self._add(record_key)

    def forget_before(self, beginning: int) -> None:
        """The input has no events before this offset, so nothing can revive keys that were erased up to it."""
        self._forgotten = {record_key: None for record_key, offset in self._applied.items() if offset <= beginning}

    def kept(self, observations: Observations, salt: str) -> Ints | None:
        """The rows of M observations, all of this partition, that no erasure forbids; None: all of them."""
        last = self.last
        early = np.flatnonzero(observations.offsets < last)
        if not len(early):
            return None
        until: dict[bytes | None, int] = {}
        kept = np.ones(len(observations.offsets), np.bool_)
        for row, offset in zip(early.tolist(), observations.offsets[early].tolist(), strict=True):
            key = observations.keys[row]
            if key not in until:
                until[key] = self._until.get(digest_of(key, salt), 0)
            kept[row] = offset >= until[key]
        return None if kept.all() else np.flatnonzero(kept)

    def applied(self) -> list[Erasure]:
        """All of them, by their offsets."""
        return sorted(map(unpack_erasure, self._applied), key=lambda one: one.offset)

    def _add(self, record_key: bytes) -> None:
        digest, offset = unpack_erasure(record_key)
        self._applied[record_key] = offset
        self._until[digest] = max(offset, self._until.get(digest, 0))

    def _remove(self, record_key: bytes) -> None:
        offset = self._applied.pop(record_key, None)
        digest = record_key[1 : 1 + DIGEST_BYTES]
        if offset is not None and self._until.get(digest) == offset:
            del self._until[digest]  # an earlier one of the same key is needed no more either


class RebuildErasures:
    """Those of a rebuild with `state.max_keys`, which takes a key's events before its erasure too.

    Until then the key had a place among those that have a state, so that others had to go. At its offset it leaves.
    """

    def __init__(self, erasures: Erasures, salt: str) -> None:
        self._waiting = deque(erasures.applied())
        self._salt = salt
        self._last = erasures.last
        self._digests = {one.digest for one in self._waiting}
        self._keys: dict[bytes, bytes | None] = {}  # digest → the key, of which an event has come

    @property
    def next_offset(self) -> int:
        """Of the next one; beyond all offsets where there is none."""
        return self._waiting[0].offset if self._waiting else _NO_END

    def note(self, observations: Observations) -> None:
        """Observations that are about to be applied: an erasure names only a digest of its key."""
        early = np.flatnonzero(observations.offsets < self._last)
        for key in dict.fromkeys(pick(observations.keys, early)):
            digest = digest_of(key, self._salt)
            if digest in self._digests:
                self._keys[digest] = key

    def take_due(self, offset: int) -> list[bytes | None]:
        """The keys that leave at or before this offset, each once; those without an event are left out."""
        found: dict[bytes | None, None] = {}
        while self.next_offset <= offset:
            digest = self._waiting.popleft().digest
            if digest in self._keys:
                found[self._keys[digest]] = None
        return list(found)


def _state_key(key: bytes | None, identity: bytes) -> bytes:
    assert len(identity) == IDENTITY_BYTES
    return NULL_KEY + identity if key is None else ENTITY_KEY + identity + key


class ErasureRequests:
    """`check` in each round of the loop: requests that came since the restore, of partitions that are running."""

    def __init__(self, admin: Admin, clock: Callable[[], float], *, input_topic: str, state_topic: str) -> None:
        self._admin = admin
        self._clock = clock
        self._input_topic = input_topic
        self._state_topic = state_topic
        self._readers: dict[int, LogReader] = {}  # of partitions that had news at the last look
        self._read_at_s: dict[int, float] = {}  # clock time, by partition: the one that waits longest comes first
        self._next_s = 0.0
        self._next_retention_s = clock() + RETENTION_INTERVAL_S

    def check(self, running: Mapping[int, Erasures]) -> None:
        """Read what is new. A failure of the broker is left to those who need it."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + INTERVAL_S
        try:
            self._read_new(running)
            if now_s >= self._next_retention_s:
                self._next_retention_s = now_s + RETENTION_INTERVAL_S
                for number, erasures in running.items():
                    if erasures.any_applied:
                        erasures.forget_before(self._admin.offset_range(self._input_topic, number)[0])
        except TryAgain as error:
            self._close(self._readers)
            log.debug("erasure requests cannot be looked for: %s", error)

    def close(self) -> None:
        """Free the readers."""
        self._close(self._readers)

    def _read_new(self, running: Mapping[int, Erasures]) -> None:
        ends = self._admin.last_stable_offsets(self._state_topic, list(running)) if running else {}
        new = [number for number, erasures in running.items() if ends[number] > erasures.read_to]
        self._close(set(self._readers) - set(new))  # an idle consumer asks the broker for news all the time
        deadline_s = self._clock() + LOOK_S
        for number in sorted(new, key=lambda number: self._read_at_s.get(number, -math.inf)):
            if self._clock() >= deadline_s:
                break
            self._read(number, ends[number], running[number], min(deadline_s, self._clock() + READ_S))
            self._read_at_s[number] = self._clock()
        if any(running[number].read_to < ends[number] for number in new):
            self._next_s = self._clock() + BEHIND_INTERVAL_S

    def _read(self, number: int, end: int, erasures: Erasures, deadline_s: float) -> None:
        reader = self._readers.get(number)
        if reader is None or reader.position != erasures.read_to:  # it was restored meanwhile
            self._close([number])
            reader = self._admin.open_reader(self._state_topic, number, erasures.read_to, end)
            self._readers[number] = reader
        reader.end = end
        while reader.position < reader.end and (left_s := deadline_s - self._clock()) > 0:
            self._take_next(reader, number, erasures, left_s)
            if reader.position == erasures.read_to:  # nothing came in time
                break
            erasures.read_to = reader.position

    def _take_next(self, reader: LogReader, number: int, erasures: Erasures, timeout_s: float) -> None:
        try:
            batch = reader.next(timeout_s)
        except UnreadableRecords as error:
            log.error("an erasure request may be lost: %s", error.problem)  # noqa: TRY400 - for a person
            reader.position = min(error.next_offset, reader.end)
            return
        for i, record_key in enumerate(batch.keys):
            if record_key is not None and record_key[:1] == REQUEST:
                take_logged(erasures, record_key, batch.values[i], self._state_topic, number, int(batch.offsets[i]))

    def _close(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            if (reader := self._readers.pop(number, None)) is not None:
                reader.close()


def take_logged(
    erasures: Erasures, record_key: bytes, value: bytes | None, topic: str, partition: int, offset: int
) -> None:
    """`Erasures.take`; what cannot be read is logged with its place in the state topic."""
    try:
        erasures.take(record_key, value)
    except CorruptStateRecord as error:
        at = {"topic": topic, "partition": partition, "offset": offset}
        log.error("an erasure request cannot be used: %s. Ask for it again", error, extra=at)  # noqa: TRY400
