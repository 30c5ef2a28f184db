"""Python's garbage collector searches new objects alone.

A batch makes an object or more for each record, and no cycles; but their number has the collector search all that the
program has loaded, many times a second (benchmarks/RESULTS.md). Its thresholds stay as they are: kafka-python leaves
cycles behind that hold the buffers of its requests, hundreds of megabytes where they wait for 20,000 objects.
"""

from __future__ import annotations

import gc


def search_new_objects_only() -> None:
    """From now on, in this process; for when model and clients are there. What exists now is never searched again."""
    gc.collect()
    gc.freeze()
