"""Arrays in the memory of the device that a model runs on, and sessions that leave their results there.

With the device `cpu` the same calls work on the memory of the host, which is how tests run them without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

Array = np.ndarray[Any, np.dtype[Any]]
_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(double)": np.dtype(np.float64),
}


class DeviceArray(NamedTuple):
    """A tensor on the device, or a part of one that lies in one piece."""

    owner: ort.OrtValue  # keeps the memory
    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def part(self, axis: int, start: int, stop: int) -> DeviceArray:
        """Indices start..stop of an axis; those before it have one element."""
        step = math.prod(self.shape[axis + 1 :]) * self.dtype.itemsize
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        return DeviceArray(self.owner, self.pointer + start * step, shape, self.dtype)

    def without_axis(self, axis: int) -> DeviceArray:
        """Without an axis that has one element."""
        assert self.shape[axis] == 1, (axis, self.shape)
        return self._replace(shape=self.shape[:axis] + self.shape[axis + 1 :])

    def numpy(self) -> Array:
        """A copy of the whole tensor on the host."""
        return np.array(self.owner.numpy())


class DeviceMemory:
    """Makes arrays on a device."""

    def __init__(self, device: str) -> None:
        """`device` is `cuda` or `cpu`."""
        self.device = device

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> DeviceArray:
        """Of any content."""
        return _wrap(ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type, self.device, 0), dtype)

    def upload(self, values: Array) -> DeviceArray:
        """A copy on the device; on the host itself, the array."""
        values = np.ascontiguousarray(values)
        return _wrap(ort.OrtValue.ortvalue_from_numpy(values, self.device, 0), values.dtype)


class DeviceSession:
    """A session whose inputs and outputs are arrays on the device."""

    def __init__(self, session: ort.InferenceSession, memory: DeviceMemory) -> None:
        self._session = session
        self._memory = memory
        self._binding = session.io_binding()
        self._types = {value.name: _TYPES[value.type] for value in session.get_outputs()}

    def run_into(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """All outputs go where `outputs` says; that may be the memory of an input."""
        binding, device = self._binding, self._memory.device
        for name, array in inputs.items():
            binding.bind_input(name, device, 0, array.dtype.type, array.shape, array.pointer)
        for name, array in outputs.items():
            binding.bind_output(name, device, 0, array.dtype.type, array.shape, array.pointer)
        self._session.run_with_iobinding(binding)

    def run(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """All outputs, in new memory."""
        binding, device = self._binding, self._memory.device
        for name, array in inputs.items():
            binding.bind_input(name, device, 0, array.dtype.type, array.shape, array.pointer)
        for name in self._types:
            binding.bind_output(name, device, 0)
        self._session.run_with_iobinding(binding)
        values = dict(zip(self._types, binding.get_outputs(), strict=True))
        binding.clear_binding_outputs()
        return {name: _wrap(value, self._types[name]) for name, value in values.items()}


def _wrap(value: ort.OrtValue, dtype: np.dtype[Any]) -> DeviceArray:
    return DeviceArray(value, value.data_ptr(), tuple(value.shape()), dtype)
