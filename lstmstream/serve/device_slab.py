"""The state rows of all partitions in one tensor on the device of the model.

A partition's rows are scattered over it: each row number has a *place*. What crosses the bus are places; rows do only
where somebody on the host needs them: states to be written to the state topic, states that are restored, and batches
that are worked on round by round (see Scorer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstmstream.model.slab_graph import ROWS, SLAB, SLAB_OUT, VALUES, fill_content, read_content, write_content
from lstmstream.records import Floats, Ints
from lstmstream.serve.device_memory import DeviceArray, DeviceMemory, DeviceSession
from lstmstream.serve.state_rows import BatchRows, SlabRows, SlabSlots

if TYPE_CHECKING:
    import onnxruntime as ort

_FIRST_CAPACITY = 1024
_GROWTH = 1.25
_FLOAT = np.dtype(np.float32)


class DeviceSlab:
    """The StateBackend on a device."""

    def __init__(self, size: int, memory: DeviceMemory, open_session: Callable[[bytes], ort.InferenceSession]) -> None:
        """Rows of S = `size` numbers."""
        self.size = size
        self.memory = memory
        self.array = memory.empty((_FIRST_CAPACITY, size), _FLOAT)  # [C, S]
        self._read = DeviceSession(open_session(read_content(size)), memory)
        self._write = DeviceSession(open_session(write_content(size)), memory)
        self._fill = DeviceSession(open_session(fill_content(size)), memory)
        self._free: Ints = np.arange(_FIRST_CAPACITY)[::-1]  # places, the next ones last

    @property
    def capacity(self) -> int:
        """Rows that there is memory for."""
        return self.array.shape[0]

    def open(self, size: int, capacity: int) -> SlabRows:
        """See StateBackend."""
        assert size == self.size, (size, self.size)
        return DeviceSlabRows(self, capacity)

    def gather(self, slabs: Sequence[SlabSlots], slots: int) -> BatchRows:
        """See StateBackend."""
        places = np.empty(slots, dtype=np.int64)
        for rows, where, numbers in slabs:
            assert isinstance(rows, DeviceSlabRows), rows
            places[where] = rows.places[numbers]
        return DeviceBatchRows(self, places)

    def take(self, count: int) -> Ints:
        """Places that nobody has."""
        if count > len(self._free):
            self._grow(self.capacity - len(self._free) + count)
        cut = len(self._free) - count
        taken, self._free = self._free[cut:][::-1], self._free[:cut]
        return taken

    def give_back(self, places: Ints) -> None:
        """Of a partition that is no longer kept."""
        self._free = np.concatenate([self._free, places])

    def read(self, places: DeviceArray) -> DeviceArray:
        """[n, S] A copy of the rows at places [n, 1], on the device."""
        return self._read.run({SLAB: self.array, ROWS: places})[VALUES]

    def write(self, places: DeviceArray, values: DeviceArray) -> None:
        """Set the rows at n different places [n, 1] to `values` [n, S]."""
        self._write.run_into({SLAB: self.array, ROWS: places, VALUES: values}, {SLAB_OUT: self.array})

    def fill(self, places: DeviceArray, row: Floats) -> None:
        """Set the rows at n different places [n, 1] to `row` [S]."""
        values = self.memory.upload(row[np.newaxis])
        self._fill.run_into({SLAB: self.array, ROWS: places, VALUES: values}, {SLAB_OUT: self.array})

    def upload_places(self, places: Ints) -> DeviceArray:
        """[n, 1] as the graphs take them."""
        return self.memory.upload(places[:, np.newaxis])

    def _grow(self, least: int) -> None:
        """For the time of the copy, old and new memory are both there."""
        old = self.capacity
        count = max(least, int(old * _GROWTH))
        try:
            larger = self.memory.empty((count, self.size), _FLOAT)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            size = count * self.size * _FLOAT.itemsize
            raise MemoryError(
                f"no memory on the GPU for {size} bytes of states, beside the {self.capacity} rows there; give"
                " state.max_keys or state.ttl, more workers with a GPU each, or device.device: cpu"
            ) from error
        everywhere = self.upload_places(np.arange(old))
        self._read.run_into({SLAB: self.array, ROWS: everywhere}, {VALUES: larger.part(0, 0, old)})
        self.array = larger
        self._free = np.concatenate([np.arange(old, self.capacity)[::-1], self._free])


class DeviceSlabRows:
    """SlabRows on the device."""

    def __init__(self, slab: DeviceSlab, capacity: int) -> None:
        self._slab = slab
        self.places = slab.take(capacity)  # by row number

    @property
    def size(self) -> int:
        """See SlabRows."""
        return self._slab.size

    @property
    def row_bytes(self) -> int:
        """See SlabRows: on both sides of the bus."""
        return self.places.itemsize + self._slab.size * _FLOAT.itemsize

    def read(self, rows: Ints) -> Floats:
        """See SlabRows."""
        if not len(rows):
            return np.empty((0, self._slab.size), dtype=np.float32)
        return self._slab.read(self._slab.upload_places(self.places[rows])).numpy()

    def write(self, rows: Ints, values: Floats) -> None:
        """See SlabRows."""
        if len(rows):
            self._slab.write(self._slab.upload_places(self.places[rows]), self._slab.memory.upload(values))

    def fill(self, rows: Ints, row: Floats) -> None:
        """See SlabRows."""
        if len(rows):
            self._slab.fill(self._slab.upload_places(self.places[rows]), row)

    def grow(self, capacity: int) -> None:
        """See SlabRows."""
        self.places = np.concatenate([self.places, self._slab.take(capacity - len(self.places))])

    def close(self) -> None:
        """See SlabRows."""
        self._slab.give_back(self.places[::-1])
        self.places = self.places[:0]


class DeviceBatchRows:
    """BatchRows in their places; what they were is a copy on the device."""

    def __init__(self, slab: DeviceSlab, places: Ints) -> None:
        self._slab = slab
        self.places = slab.upload_places(places)  # [K, 1]
        self._before = slab.read(self.places) if len(places) else slab.memory.empty((0, slab.size), _FLOAT)

    def before(self) -> Floats:
        """See BatchRows."""
        return self._before.numpy()

    def write(self, values: Floats) -> None:
        """See BatchRows."""
        if len(values):
            self._slab.write(self.places, self._slab.memory.upload(values))

    def restore(self) -> None:
        """See BatchRows."""
        if self._before.shape[0]:
            self._slab.write(self.places, self._before)
