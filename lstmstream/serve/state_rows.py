"""Where state rows are: what `StateStore` needs of that place, and the usual one, arrays of the host.

The other place is the memory of a GPU (device_slab.py). Steps, times and offsets of a key are always on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lstmstream.records import Floats, Ints, is_run
from lstmstream.serve.row_memory import RowMemory


class SlabRows(Protocol):
    """The state rows of one partition, by row number. What is in a row that was never written is not defined."""

    @property
    def size(self) -> int:
        """Numbers in a row: S."""

    @property
    def row_bytes(self) -> int:
        """Memory of a row."""

    def read(self, rows: Ints) -> Floats:
        """[n, S] A copy of n rows."""

    def write(self, rows: Ints, values: Floats) -> None:
        """Set n different rows to `values` [n, S]."""

    def fill(self, rows: Ints, row: Floats) -> None:
        """Set n different rows to the same one [S]."""

    def grow(self, capacity: int) -> None:
        """Make room for so many rows, more than before."""

    def close(self) -> None:
        """Give the memory back."""


class BatchRows(Protocol):
    """The state rows of a batch's K slots, and what they were when the batch was gathered."""

    def before(self) -> Floats:
        """[K, S] What they were; not to be changed."""

    def write(self, values: Floats) -> None:
        """Set them to `values` [K, S]."""

    def restore(self) -> None:
        """Make them what they were."""


class StateBackend(Protocol):
    """A place for state rows."""

    def open(self, size: int, capacity: int) -> SlabRows:
        """Begin to keep a partition's rows of S = `size` numbers."""

    def gather(self, slabs: Sequence[SlabSlots], slots: int) -> BatchRows:
        """Note what the rows of K = `slots` slots are."""


SlabSlots = tuple[SlabRows, Ints | slice, Ints]  # of one partition: rows, which slots are there, their row numbers


class HostRows:
    """SlabRows in an array."""

    def __init__(self, size: int, capacity: int) -> None:
        self._memory = RowMemory(np.float32, size, capacity)
        self.array: Floats = self._memory.array()

    @property
    def size(self) -> int:
        """See SlabRows."""
        return int(self.array.shape[1])

    @property
    def row_bytes(self) -> int:
        """See SlabRows."""
        return self._memory.row_bytes

    def read(self, rows: Ints) -> Floats:
        """See SlabRows."""
        return self.array.take(rows, axis=0)  # half the time of `[rows]`

    def write(self, rows: Ints, values: Floats) -> None:
        """See SlabRows."""
        if is_run(rows):
            self.array[rows[0] : rows[-1] + 1] = values
        else:
            self.array[rows] = values

    def fill(self, rows: Ints, row: Floats) -> None:
        """See SlabRows."""
        self.array[rows] = row

    def grow(self, capacity: int) -> None:
        """See SlabRows."""
        self.array = self.array[:0].copy()  # nothing may be seen of the memory while it grows
        self._memory.grow(capacity)
        self.array = self._memory.array()

    def close(self) -> None:
        """See SlabRows."""


class HostBatchRows:
    """BatchRows that were copied out of arrays."""

    def __init__(self, slabs: Sequence[SlabSlots], slots: int) -> None:
        self._slabs = slabs
        self._before = np.empty((slots, slabs[0][0].size if slabs else 0), dtype=np.float32)
        for slab, where, rows in slabs:
            self._before[where] = slab.read(rows)

    def before(self) -> Floats:
        """See BatchRows."""
        return self._before

    def write(self, values: Floats) -> None:
        """See BatchRows."""
        for slab, where, rows in self._slabs:
            slab.write(rows, values[where])

    def restore(self) -> None:
        """See BatchRows."""
        self.write(self._before)


class LooseRows:
    """BatchRows that belong to no slab: what becomes of them is seen by nobody else."""

    def __init__(self, rows: Floats) -> None:
        """`rows` [K, S]."""
        self._rows = rows

    def before(self) -> Floats:
        """See BatchRows."""
        return self._rows

    def write(self, values: Floats) -> None:
        """See BatchRows: there is no place to write to."""

    def restore(self) -> None:
        """See BatchRows: nothing was written."""


class HostBackend:
    """The StateBackend of a model on the CPU."""

    def open(self, size: int, capacity: int) -> SlabRows:
        """See StateBackend."""
        return HostRows(size, capacity)

    def gather(self, slabs: Sequence[SlabSlots], slots: int) -> BatchRows:
        """See StateBackend."""
        return HostBatchRows(slabs, slots)
