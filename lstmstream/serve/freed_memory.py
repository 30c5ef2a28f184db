"""Memory that a batch has freed stays with the process, for the next batch.

glibc gives the end of its heap back to the system once a few megabytes of it are free. The arrays of a batch are as
large, so that the system had to clear the same pages for each batch: a tenth of the engine's time
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

import ctypes
import os
import platform

KEPT_BYTES = 128 << 20
MAPPED_FROM_BYTES = 32 << 20  # larger arrays are given back at once; the most that glibc takes
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """For this process. Other C libraries are left as they are, and what the environment sets for glibc counts."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _CHOSEN_BY_USER):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # a preloaded allocator may have none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
