"""The first part of a restore: the states of one partition as the state topic has them.

A standby's states (`state.standby`) or those of a snapshot (`state.dir`) come first, where there are any. What the
state topic has after them is read in any case.
"""

from __future__ import annotations

from lstmstream.serve.partition import Partition
from lstmstream.serve.restore_context import RestoreContext
from lstmstream.serve.restore_errors import RestoreErrors
from lstmstream.serve.snapshot_file import SnapshotFile, SnapshotRefused, other_records
from lstmstream.serve.standby import Standby
from lstmstream.serve.state_loader import StateLoader
from lstmstream.transport.ports import LogReader


class StateLoad:
    """`read`, once the group's offset is known, until it says that all is there."""

    def __init__(self, partition: Partition, context: RestoreContext, errors: RestoreErrors) -> None:
        self._partition = partition
        self._context = context
        self._errors = errors
        self._reader: LogReader | None = None  # of the state topic
        self._snapshot: SnapshotFile | None = None  # that is being loaded
        self.states = self._nothing()  # what was read
        self.from_snapshot: int | None = None  # states
        self.from_standby: int | None = None  # states
        self.records = 0  # read from the state topic

    @property
    def remaining(self) -> int:
        """Records still to be read."""
        snapshot = 0 if self._snapshot is None else self._snapshot.remaining
        return snapshot if self._reader is None else snapshot + max(0, self._reader.end - self._reader.position)

    def read(self, deadline_s: float) -> bool:
        """Some of it, until about that clock time; whether all is there."""
        if self._reader is None:
            self._open()
        if self._snapshot is not None:
            self._read_snapshot(self._snapshot)
            return False
        reader = self._reader
        assert reader is not None
        if reader.position >= reader.end:
            return True
        before = self.states.records
        self.states.read(reader, max(0.0, deadline_s - self._context.clock()))
        self.records += self.states.records - before
        return False

    def forget(self) -> None:
        """What was read about the states: it was used, or is not wanted."""
        self.states = self._nothing()

    def close(self) -> None:
        """Free its readers."""
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _open(self) -> None:
        """From what leaves the least of the state topic to read; how far that goes is fixed here."""
        transport, topic = self._context.transport, self._context.checkpointer.topic.name
        number = self._partition.number
        # Up to the high watermark, not the last stable offset (KAFKA-10167): the reader waits for pending transactions.
        start, end = transport.offset_range(topic, number)
        self.close()
        self.from_snapshot = self.from_standby = None
        self.records = 0
        standby = self._find_sources(number, start, end)
        if standby is not None:
            start, self.from_standby = standby.offset, standby.states
        elif self._snapshot is not None:
            start, self.from_snapshot = self._snapshot.head.offset, self._snapshot.states
        self._reader = transport.open_reader(topic, number, start, end)
        self._partition.erasures.begin(end)
        self._partition.begin_states(0)
        if standby is not None:
            self.states = standby.hand_over(self._partition)
            self._partition.erasures.read_to = end

    def _nothing(self) -> StateLoader:
        return StateLoader(self._partition, self._context.checkpointer.identity.digest, self._errors)

    def _find_sources(self, number: int, start: int, end: int) -> Standby | None:
        """A standby, or the open snapshot: of the two, the one that leaves less of the state topic to read."""
        standbys, snapshots = self._context.standbys, self._context.snapshots
        standby = None if standbys is None else standbys.find(number, start, end)
        self._snapshot = None if snapshots is None else snapshots.open(number, start, end)
        if standby is None or self._snapshot is None:
            return standby
        if self._snapshot.head.offset > standby.offset:
            return None
        self._snapshot.close()
        self._snapshot = None
        return standby

    def _read_snapshot(self, snapshot: SnapshotFile) -> None:
        """Its next block; at its end, its other records. One that turns out to be damaged leaves nothing behind."""
        snapshots, slab = self._context.snapshots, self._partition.slab
        assert snapshots is not None
        try:
            block = snapshot.next()
        except (SnapshotRefused, OSError) as error:
            snapshots.refuse(snapshot.path, error)
            self.forget()
            self.close()  # it begins again
            return
        if block is not None:
            self.states.put(block.keys, block.columns)
            for at, incident in block.incidents.items():
                slab.set_incident(block.keys[at], incident)
            return
        self.states.take(other_records(snapshot.head))
        snapshot.close()
        self._snapshot = None
