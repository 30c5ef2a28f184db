"""A snapshot on disk, byte for byte: what one partition of the state topic holds below an offset (docs/snapshots.md).

    head      magic, format, length, JSON: which partition of which topics, whose states, up to which offset; digest
    blocks    up to BLOCK_STATES states each, column by column (_BLOCK, then the arrays); digest
    end       magic, count of states, count of blocks, length of the file; digest

Numbers are little-endian on every host. Each digest is a SHA-256 over what stands before it since the last one, and
covers the digest of the head and the block's number too: no part can be cut, exchanged or taken from another file.
(SHA-256 because the processors that have instructions for it are faster at it than zlib is at a CRC-32.)
"""

from __future__ import annotations

import os
import struct
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, cast

import numpy as np
import orjson

from lstmstream.records import Floats, Ints, RecordBatch, lengths
from lstmstream.serve.alert_memory import Incident
from lstmstream.serve.key_table import Key
from lstmstream.serve.state_records import StateColumns, state_columns

FORMAT = 2
BLOCK_STATES = 4096
_MAGIC, _END_MAGIC = b"LSTMSNAP", b"SNAPSEND"
_HEAD = struct.Struct("<8sII")  # magic, format, bytes of JSON
_BLOCK = struct.Struct("<IIIQ")  # block number, states, incidents, bytes of the keys
_END = struct.Struct("<8sQQQ")  # magic, states, blocks, bytes of the file
_DIGEST_BYTES = 32
_MAX_HEAD_BYTES = 256 << 20  # what is larger is damaged
_NULL = -1  # the length of a null key
_SYNC_BYTES = 32 << 20
_AHEAD_BYTES = 8 << 20  # of blocks that are read beside those in use; fewer, and loop and thread wait for each other
_NUMBERS = 5  # origin, last offset, steps, last timestamp, failures


class SnapshotRefused(Exception):
    """A snapshot that cannot be trusted, or that cannot be made; why, in words for the log."""


class RecordBytes(NamedTuple):
    """A record as it stands in the state topic."""

    key: bytes
    value: bytes
    offset: int
    timestamp_ms: int


class SnapshotHead(NamedTuple):
    """What a snapshot holds."""

    identity: str  # hexadecimal digest of the identity whose states these are
    state_topic: str
    state_topic_id: str
    input_topic_id: str
    partitions: int  # of both topics
    partition: int
    floats: int  # of a state row
    offset: int  # of the state topic: every record below it is taken into account, and none at or above it
    taken_ms: int  # when the state topic ended at `offset` or before; milliseconds since 1970 UTC
    tombstones_ms: int  # the topic's delete.retention.ms then
    others: tuple[RecordBytes, ...]  # all that are not states, such as floor records: the newest of each record key


class Block(NamedTuple):
    """States of n keys."""

    keys: list[Key]
    columns: StateColumns
    incidents: Mapping[int, Incident]  # index → of the few keys that have one


class SnapshotWriter:
    """Writes a new file. `finish`, or nothing that was written counts."""

    def __init__(self, path: Path, head: SnapshotHead) -> None:
        """Creates the file, for this user alone. Raises OSError."""
        # As os.umask says it too; a link that somebody has put there is not followed.
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        self._file = os.fdopen(number, "wb", buffering=0)
        self._states = self._blocks = self._bytes = self._synced = 0
        self._head_digest = b""
        text = _head_json(head)
        try:
            self._head_digest = self._write(_HEAD.pack(_MAGIC, FORMAT, len(text)), text)
        except BaseException:
            self._file.close()
            raise

    def add(self, block: Block) -> None:
        """States of keys that no block before had. Raises OSError."""
        columns, count = block.columns, len(block.keys)
        keys = b"".join(key or b"" for key in block.keys)
        numbers = np.empty((_NUMBERS, count), "<i8")
        numbers[:] = columns[:_NUMBERS]
        key_bytes = np.where([key is None for key in block.keys], _NULL, lengths(block.keys)).astype("<i4")
        incidents = np.array([(at, *one) for at, one in block.incidents.items()], "<i8").reshape(-1, 5)
        start = _BLOCK.pack(self._blocks, count, len(incidents), len(keys))
        rows = np.ascontiguousarray(columns.rows, "<f4")
        self._write(start, numbers, key_bytes, incidents, keys, rows)
        self._states += count
        self._blocks += 1
        if self._bytes - self._synced >= _SYNC_BYTES:  # so that the last one does not take long, nor block others
            os.fsync(self._file.fileno())
            self._synced = self._bytes

    def finish(self) -> int:
        """Everything is on the disk; the bytes of the file. Raises OSError."""
        size = self._bytes + _END.size + _DIGEST_BYTES
        self._write(_END.pack(_END_MAGIC, self._states, self._blocks, size))
        os.fsync(self._file.fileno())
        self._file.close()
        return size

    def close(self) -> None:
        """Give the file up, if it is not finished."""
        self._file.close()

    def _write(self, *parts: bytes | np.ndarray[Any, Any]) -> bytes:
        digest = sha256(self._head_digest)
        for part in parts:
            view = memoryview(part if isinstance(part, bytes) else part.tobytes())
            digest.update(view)
            while view:  # a full disk may take a part, and say so with the next one
                written = self._file.write(view) or 0
                self._bytes += written
                view = view[written:]
        check = digest.digest()
        self._file.write(check)
        self._bytes += len(check)
        return check


class SnapshotFile:
    """Reads a snapshot. Head and end are checked when it is opened, each block when it is read."""

    def __init__(self, path: Path, executor: Executor | None = None) -> None:
        """`executor` reads the next blocks while some are in use. Raises SnapshotRefused, OSError."""
        self.path = path
        self._executor = executor
        self._unused: deque[Block] = deque()  # that were read
        self._ahead: Future[list[Block]] | None = None
        self._file = path.open("rb", buffering=0)
        try:
            self.bytes = os.fstat(self._file.fileno()).st_size
            self.head, self._head_digest = self._read_head()
            self._blocks_at = self._file.tell()
            self.states, self._blocks = self._read_end()
        except (SnapshotRefused, OSError):
            self._file.close()
            raise
        self._next = 0
        self._seen = 0
        self._file.seek(self._blocks_at)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def remaining(self) -> int:
        """States that were not read yet."""
        return self.states - self._seen

    def blocks(self) -> Iterator[Block]:
        """All blocks that were not read yet. Raises SnapshotRefused, OSError."""
        while (block := self.next()) is not None:
            yield block

    def next(self) -> Block | None:
        """The next block; None at the end. Raises SnapshotRefused, OSError."""
        try:
            return self._next_block()
        except (ValueError, struct.error, OverflowError) as error:  # its checksums are right all the same
            raise SnapshotRefused(f"block {self._next} cannot be read: {error}") from error

    def _next_block(self) -> Block | None:
        if self._next == self._blocks:
            if self._seen != self.states:
                raise SnapshotRefused(f"it has {self._seen} states where its end says {self.states}")
            return None
        if self._executor is None:
            self._unused.append(self._read_block(self._next))
        elif not self._unused:
            self._unused += self._read_blocks(self._next) if self._ahead is None else self._ahead.result()
            first, self._ahead = self._next + len(self._unused), None
            if first < self._blocks:
                self._ahead = self._executor.submit(self._read_blocks, first)
        block = self._unused.popleft()
        self._next += 1
        self._seen += len(block.keys)
        return block

    def _read_blocks(self, first: int) -> list[Block]:
        """From this one on, as many as are read ahead at once."""
        blocks, end = [], self._file.tell() + _AHEAD_BYTES
        for number in range(first, self._blocks):
            blocks.append(self._read_block(number))
            if self._file.tell() >= end:
                break
        return blocks

    def close(self) -> None:
        """Free it."""
        if self._ahead is not None and not self._ahead.cancel():
            self._ahead.exception()  # it reads
        self._ahead = None
        self._file.close()

    def _read_head(self) -> tuple[SnapshotHead, bytes]:
        start = _read(self._file, _HEAD.size)
        magic, version, size = _HEAD.unpack(start)
        if magic != _MAGIC:
            raise SnapshotRefused("it is not a snapshot")
        if version != FORMAT:
            raise SnapshotRefused(f"its format is {version}; this program reads {FORMAT}")
        if size > min(_MAX_HEAD_BYTES, self.bytes):
            raise SnapshotRefused("its head is damaged")
        text = _read(self._file, size)
        digest = _read(self._file, _DIGEST_BYTES)
        if digest != sha256(start + text).digest():
            raise SnapshotRefused("its head is damaged: the checksum is wrong")
        return _parse_head(text), digest

    def _read_end(self) -> tuple[int, int]:
        at = self.bytes - _END.size - _DIGEST_BYTES
        if at < self._blocks_at:
            raise SnapshotRefused("it is cut short")
        self._file.seek(at)
        end = _read(self._file, _END.size)
        magic, states, blocks, size = _END.unpack(end)
        right = _read(self._file, _DIGEST_BYTES) == sha256(self._head_digest + end).digest()
        if magic != _END_MAGIC or not right or size != self.bytes:
            raise SnapshotRefused("it is cut short, or its end is damaged")
        return states, blocks

    def _read_block(self, wanted: int) -> Block:
        start = _read(self._file, _BLOCK.size)
        number, count, incidents, key_bytes = _BLOCK.unpack(start)
        sizes = (8 * _NUMBERS * count, 4 * count, 8 * 5 * incidents, key_bytes, 4 * self.head.floats * count)
        if number != wanted or sum(sizes) > self.bytes:
            raise SnapshotRefused(f"block {wanted} is damaged")
        content = _read(self._file, sum(sizes))
        digest = sha256(self._head_digest)
        digest.update(start)
        digest.update(content)
        if _read(self._file, _DIGEST_BYTES) != digest.digest():
            raise SnapshotRefused(f"block {wanted} is damaged: the checksum is wrong")
        view, parts = memoryview(content), []
        for size in sizes:
            parts.append(view[:size])
            view = view[size:]
        numbers = np.frombuffer(parts[0], "<i8").reshape(_NUMBERS, count).astype(np.int64, copy=False)
        rows: Floats = np.frombuffer(parts[4], "<f4").reshape(count, self.head.floats).astype(np.float32, copy=False)
        if not np.isfinite(rows).all():
            raise SnapshotRefused(f"block {wanted} has a state that is not finite")
        found = np.frombuffer(parts[2], "<i8").reshape(-1, 5).tolist()
        return Block(
            _keys(np.frombuffer(parts[1], "<i4").astype(np.int64), bytes(parts[3])),
            state_columns(numbers, rows),
            {at: Incident(*one) for at, *one in found},
        )


def _keys(key_bytes: Ints, joined: bytes) -> list[Key]:
    size = int(key_bytes[0]) if len(key_bytes) else 0
    if size > 0 and (key_bytes == size).all():  # as of many topics, in a sixth of the time
        return cast("list[Key]", np.frombuffer(joined, f"V{size}").tolist())
    ends = np.concatenate([[0], np.cumsum(np.maximum(key_bytes, 0))]).tolist()
    keys: list[Key] = [joined[start:end] for start, end in pairwise(ends)]
    for at in np.flatnonzero(key_bytes == _NULL).tolist():
        keys[at] = None
    return keys


def _read(file: IO[bytes], size: int) -> bytes:
    """Exactly so many bytes."""
    found = bytearray()
    while len(found) < size:
        part = file.read(size - len(found))
        if not part:
            raise SnapshotRefused("it is cut short")
        if len(part) == size:
            return part
        found += part
    return bytes(found)


def other_records(head: SnapshotHead) -> RecordBatch:
    """The records of a snapshot that are not states, as the state topic had them."""
    count = len(head.others)
    return RecordBatch(
        head.state_topic,
        np.full(count, head.partition, np.int64),
        np.array([record.offset for record in head.others], np.int64),
        np.array([record.timestamp_ms for record in head.others], np.int64),
        [record.key for record in head.others],
        [record.value for record in head.others],
        [()] * count,
    )


def _head_json(head: SnapshotHead) -> bytes:
    others = [
        (b64encode(one.key).decode(), b64encode(one.value).decode(), one.offset, one.timestamp_ms)
        for one in head.others
    ]
    return orjson.dumps({**head._asdict(), "others": others})


def _parse_head(text: bytes) -> SnapshotHead:
    try:
        fields = orjson.loads(text)
        others = tuple(RecordBytes(b64decode(key), b64decode(value), *at) for key, value, *at in fields["others"])
        return SnapshotHead(**{**fields, "others": others})
    except (ValueError, TypeError, KeyError) as error:
        raise SnapshotRefused("its head cannot be read") from error
