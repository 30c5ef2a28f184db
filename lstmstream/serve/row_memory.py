"""Memory for an array that grows by rows, without a copy.

numpy's own `resize` writes zeros into all that is new, which stops the daemon for a moment where a partition has
millions of keys, and uses memory that no key needs yet. Pages of the system's are zero, and used once they are written.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

HUGE_PAGES_FROM_BYTES = 4 << 20  # as numpy has it for its own arrays
HUGE_PAGE_BYTES = 2 << 20  # of x86, and of ARM with pages of 4 KiB


class RowMemory:
    """Rows of `width` values of a type; zero until they are written."""

    def __init__(self, kind: type[np.generic], width: int, rows: int) -> None:
        self._dtype = np.dtype(kind)
        self._width = width
        self._rows = rows
        self.row_bytes = self._dtype.itemsize * width
        self._map = _zeros(_mapped_bytes(rows * self.row_bytes))

    def array(self) -> np.ndarray[Any, np.dtype[Any]]:
        """All rows, as an array over this memory. It must be forgotten before `grow`, or that has to copy."""
        values = self._rows * self._width
        return np.frombuffer(self._map, self._dtype, values).reshape(self._rows, self._width)

    def grow(self, rows: int) -> None:
        """Make room for so many rows, more than before."""
        self._rows, size = rows, _mapped_bytes(rows * self.row_bytes)
        try:
            self._map.resize(size)
        except (BufferError, SystemError, AttributeError, OSError):
            # An array is in use somewhere; or the system has no mremap, as macOS, where newer Pythons have no `resize`.
            larger = _zeros(size)
            larger.write(memoryview(self._map))
            self._map = larger
        if size >= HUGE_PAGES_FROM_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)


def _mapped_bytes(size: int) -> int:
    """Whole huge pages: Linux then moves large memory by its page tables, not page by page, in a millisecond."""
    return max(1, size) if size < HUGE_PAGES_FROM_BYTES else -(-size // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES


def _zeros(size: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {size} bytes of states: {error.strerror}") from error
