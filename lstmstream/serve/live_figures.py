"""What snapshots of one daemon and of several workers share: sizes, and the arithmetic of latencies. Plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Snapshot = dict[str, Any]  # docs/reference.md, "Live figures"
Bucket = tuple[float, float | None, int]  # above, up to (None: no bound), number of values

MAX_ALERTS = 20
MAX_REASONS = 3  # of each stage of dead letters
MAX_PARTITIONS = 64
MAX_TEXT = 200  # characters of a key, a field or a reason


def latency(buckets: Sequence[Bucket]) -> dict[str, Any]:
    """Percentiles in seconds, with the buckets, ascending, that they are made of."""
    return {
        "p50_s": quantile(buckets, 0.5),
        "p99_s": quantile(buckets, 0.99),
        "buckets": [list(bucket) for bucket in buckets],
    }


def quantile(buckets: Sequence[Bucket], share: float) -> float | None:
    """The value that `share` of the values do not exceed, interpolated as Prometheus' histogram_quantile does.

    None without any value. Above the last bound it is that bound.
    """
    rank = share * sum(count for _, _, count in buckets)
    seen = 0
    for low, high, count in buckets:
        if count and seen + count >= rank:
            return rounded(low if high is None else low + (high - low) * (rank - seen) / count)
        seen += count
    return None


def rounded(value: float) -> float:
    """With four significant digits: more are noise, and bytes on the wire."""
    return float(f"{value:.4g}")
