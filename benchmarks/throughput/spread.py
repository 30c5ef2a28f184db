"""Median and range of rounds, and percentiles of latencies."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, with the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """At least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: Callable[[float], str]) -> str:
        """Median, and the range unless all are the same."""
        median, low, high = form(self.median), form(self.low), form(self.high)
        return median if low == high else f"{median} ({low} to {high})"


def percentiles_ms(latencies_s: ArrayLike) -> dict[str, float]:
    """Each of PERCENTILES, and the largest, in ms. At least one latency."""
    values = np.asarray(latencies_s, np.float64) * 1000
    found = {name: round(float(np.percentile(values, share)), 2) for name, share in PERCENTILES.items()}
    return found | {"max": round(float(values.max()), 2)}
