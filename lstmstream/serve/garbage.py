"""Python's garbage collector looks for cycles seldom, and among new objects alone.

A batch makes an object or more for each record, and no cycles. With Python's own thresholds the collector searched
them, and all that the program has loaded, many times a second: 8 % of the CPU time with confluent-kafka
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

import gc

# Python's are 700, 10, 10. Not never: clients that were replaced are in cycles.
THRESHOLDS = (20_000, 10, 10)


def collect_seldom() -> None:
    """From now on, in this process; for when model and clients are there. What exists now is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
