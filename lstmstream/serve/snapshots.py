"""Local snapshots of the states (`state.dir`): written beside the work, used at the next start. See docs/snapshots.md.

A snapshot is made from the state topic: the one before, and what the topic got since. The loop reads these records, a
few milliseconds at a time (loop_share.py), since the transport belongs to its thread; they stay bytes.
Everything that takes longer (unpacking, checksums, the disk) is on a thread of its own. One partition at a time.

Nothing depends on a snapshot: whatever is wrong with it or with the disk is a warning, and the topic is read.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lstmstream.errors import LstmstreamError
from lstmstream.serve.clock import Clock
from lstmstream.serve.failure_log import FailureLog
from lstmstream.serve.loop_share import SLICE_S, LoopShare
from lstmstream.serve.observers import Observer
from lstmstream.serve.partition import Partition
from lstmstream.serve.snapshot_file import SnapshotFile, SnapshotHead, SnapshotRefused
from lstmstream.serve.snapshot_folder import SnapshotFolder
from lstmstream.serve.snapshot_merge import BadBase, SnapshotJob, SnapshotWritten, Tail, write_snapshot
from lstmstream.transport.ports import Admin, LogReader

LOOK_INTERVAL_S = 60.0  # so often a partition is looked at
MAX_AGE_S = 900.0  # of the snapshot of a partition that changes
MIN_NEW_RECORDS = 10_000  # a snapshot is renewed before that age where the topic got so many records since,
NEW_FRACTION = 1 / 8  # and so many for each state that it holds
TAIL_BYTES = 64 << 20  # records that are held in memory, or if that is more,
TAIL_FRACTION = 1 / 4  # of the snapshot that they go to
STUCK_S = 120.0  # without a record: a transaction of somebody else hangs

log = logging.getLogger(__name__)


class SnapshotTaken(NamedTuple):
    """A new snapshot, for log and metrics."""

    partition: int
    offset: int  # of the state topic
    states: int
    bytes: int
    taken_ms: int
    duration_s: float


@dataclass
class _SnapshotInProgress:
    """A snapshot that is being made."""

    partition: int
    epoch: int
    reader: LogReader
    head: SnapshotHead  # with the offset that it will have at the end
    base: Path | None
    base_bytes: int
    tail: Tail
    began_s: float
    read_s: float  # clock time of the last record
    job: Future[SnapshotWritten] | None = None
    unfinished: list[Path] = field(default_factory=list)  # bases that were written on the way


class Snapshots:
    """Makes the snapshots of this member's partitions: `tick` once in each round of the loop."""

    def __init__(
        self, folder: SnapshotFolder, admin: Admin, observer: Observer, clock: Clock, executor: Executor | None
    ) -> None:
        """`executor` writes the files; without one, `tick` does."""
        self.folder = folder
        self._admin = admin
        self._observer = observer
        self._clock = clock
        self._executor = executor
        self._failures = FailureLog(log, clock.monotonic_s)
        self._current: _SnapshotInProgress | None = None
        self._look_at_s: dict[int, float] = {}  # clock time, by partition
        self._share = LoopShare(clock.monotonic_s)
        self._stopping = False

    @property
    def rest_s(self) -> float:
        """Seconds until it reads on; infinity while there is nothing to read."""
        return self._share.rest_s if self._reads else math.inf

    @property
    def _reads(self) -> bool:
        """Whether records are being read; else there is nothing to read, or a file is being written."""
        return self._current is not None and self._current.job is None

    def tick(self, running: Iterable[Partition], *, restoring: bool, idle: bool) -> None:
        """A little work. `restoring`: something is, which comes first. `idle`: no events came in this round."""
        began_s = self._clock.monotonic_s()
        if restoring and self._reads:
            self._drop()  # a reader that is not read from for long would be taken for one that hangs
        if restoring or self._stopping or self._share.rest_s:
            return
        partitions = {partition.number: partition for partition in running}
        try:
            self._work(partitions)
        except (LstmstreamError, SnapshotRefused, OSError, MemoryError) as error:  # no fault of the stream
            self._give_up(error)
        self._share.rest(began_s, idle=idle)

    def _work(self, partitions: dict[int, Partition]) -> None:
        current = self._current
        if current is None:
            self._look(partitions)
            return
        owned = current.partition in partitions and partitions[current.partition].epoch == current.epoch
        if current.job is not None:
            if current.job.done():
                self._on_written(current, current.job.result(), owned=owned)
        elif not owned:
            self._drop()  # it was revoked; its next owner makes one
        else:
            self._read(current)

    def _look(self, partitions: dict[int, Partition]) -> None:
        """Look at the partition whose turn it is."""
        now_s = self._clock.monotonic_s()
        # Not at once: what comes after a start, or a rebalance, has other work.
        self._look_at_s = {number: self._look_at_s.get(number, now_s + LOOK_INTERVAL_S) for number in partitions}
        at_s, number = min(((at_s, number) for number, at_s in self._look_at_s.items()), default=(now_s + 1, -1))
        if at_s > now_s:
            return
        self._look_at_s[number] = now_s + LOOK_INTERVAL_S
        folder, topic = self.folder, self.folder.topic
        now_ms = folder.now_ms()  # before `end` is asked for: every tombstone at or above it comes later
        beginning, end = self._admin.offset_range(topic.name, number)
        tombstones_ms = folder.tombstones_ms()
        if tombstones_ms is None or end <= beginning:
            return
        with contextlib.ExitStack() as files:
            base = folder.open(number, beginning, end)
            if base is not None:
                files.callback(base.close)
                self._observer.on_snapshot_kept(number, base.head.taken_ms, base.bytes)
                if not _is_due(base, end, now_ms, tombstones_ms):
                    return
            start = beginning if base is None else base.head.offset
            head = SnapshotHead(
                folder.digest.hex(),
                topic.name,
                topic.topic_id,
                topic.input_topic_id,
                topic.partitions,
                number,
                folder.floats,
                end,
                now_ms,
                tombstones_ms,
                (),
            )
            reader = self._admin.open_reader(topic.name, number, start, end)
            self._current = _SnapshotInProgress(
                number,
                partitions[number].epoch,
                reader,
                head,
                None if base is None else base.path,
                0 if base is None else base.bytes,
                Tail(folder.digest),
                now_s,
                now_s,
            )

    def _read(self, current: _SnapshotInProgress) -> None:
        """A slice of the topic. What does not fit into memory is written on the way, where no restore looks."""
        reader, now_s = current.reader, self._clock.monotonic_s()
        deadline_s = now_s + SLICE_S
        room = max(TAIL_BYTES, round(current.base_bytes * TAIL_FRACTION))
        while reader.position < reader.end and current.tail.bytes < room:
            batch = reader.next(0.0)
            current.tail.add(batch)
            now_s = self._clock.monotonic_s()
            if len(batch):
                current.read_s = now_s
            if not len(batch) or now_s >= deadline_s:
                break
        if now_s - current.read_s > STUCK_S:
            raise SnapshotRefused(f"the state topic cannot be read beyond offset {reader.position}")
        if now_s - current.began_s >= current.head.tombstones_ms / 2000:
            raise SnapshotRefused("reading the state topic takes longer than half of its delete.retention.ms")
        if reader.position >= reader.end or current.tail.bytes >= room:
            self._write(current)

    def _write(self, current: _SnapshotInProgress) -> None:
        last = current.reader.position >= current.reader.end
        current.reader.close()  # as above: this may take a while
        name = self.folder.new_name(current.partition, current.head.taken_ms)
        name = name if last else f".{name}.tmp"
        job = SnapshotJob(self.folder.path, current.base, current.tail, current.head, self.folder.digest, name)
        if self._executor is not None:
            current.job = self._executor.submit(write_snapshot, job, lambda: self._stopping)
            return
        current.job = Future()
        current.job.set_result(write_snapshot(job))

    def _on_written(self, current: _SnapshotInProgress, written: SnapshotWritten, *, owned: bool) -> None:
        if current.reader.position < current.reader.end:
            if current.unfinished:
                current.unfinished.pop().unlink(missing_ok=True)
            current.unfinished.append(written.path)
            current.base, current.base_bytes = written.path, written.bytes
            current.tail, current.job = Tail(self.folder.digest), None
            current.read_s = self._clock.monotonic_s()
            start, end = current.reader.position, current.reader.end
            current.reader = self._admin.open_reader(self.folder.topic.name, current.partition, start, end)
            return
        duration_s = round(self._clock.monotonic_s() - current.began_s, 3)
        head = written.head
        self._drop()
        taken = SnapshotTaken(head.partition, head.offset, written.states, written.bytes, head.taken_ms, duration_s)
        log.info("snapshot written", extra={**taken._asdict(), "file": str(written.path)})
        if owned:
            self._observer.on_snapshot(taken)
        self.folder.remove_old(written.path)

    def _give_up(self, error: Exception) -> None:
        """Until its next turn; what is there stays there."""
        current = self._current
        if current is not None and isinstance(error, BadBase) and current.base is not None:
            self.folder.refuse(current.base, error)
        self._drop()
        self._failures.note("no snapshot of the states could be written to state.dir; the daemon goes on", error)
        self._observer.on_snapshot_failed()

    def _drop(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.reader.close()
            for path in current.unfinished:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give up what is being made."""
        self._stopping = True
        self._drop()


def _is_due(base: SnapshotFile, end: int, now_ms: int, tombstones_ms: int) -> bool:
    """Whether a new snapshot is worth it: reading the rest of the topic would take a while, or the old one expires."""
    new, age_ms = end - base.head.offset, now_ms - base.head.taken_ms
    many = new >= max(MIN_NEW_RECORDS, base.states * NEW_FRACTION)
    return many or (new > 0 and age_ms >= 1000 * MAX_AGE_S) or age_ms >= tombstones_ms / 4
