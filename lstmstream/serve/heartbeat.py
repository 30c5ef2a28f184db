"""One log line a minute that says what the daemon did in it, and what is waiting."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lstmstream.records import Ints
from lstmstream.serve.observers import Gauges, Observer

if TYPE_CHECKING:
    from lstmstream.serve.checkpoint import CheckpointPlan
    from lstmstream.serve.engine import Result

INTERVAL_S = 60.0
_LATENCY_BOUNDS_S = np.geomspace(1e-3, 1e6, 500)  # a step is 4 %

log = logging.getLogger(__name__)


class Heartbeat(Observer):
    """Counts what is committed, and logs it once a minute, idle minutes too."""

    def __init__(self, clock: Callable[[], float], wall_s: Callable[[], float]) -> None:
        """`clock`: monotonic seconds; `wall_s`: seconds since 1970 UTC."""
        self._clock = clock
        self._wall_s = wall_s
        self._began_s = clock()
        self._counts: Counter[str] = Counter()
        self._dead_letters: Counter[str] = Counter()
        self._latencies: Ints = np.zeros(len(_LATENCY_BOUNDS_S) + 1, dtype=np.int64)
        self._gauges: Gauges | None = None
        self._phase = ""

    def on_phase(self, phase: str) -> None:
        """Part of the line."""
        self._phase = phase

    def on_gauges(self, gauges: Gauges) -> None:
        """Lag and keys."""
        self._gauges = gauges

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """Count the batch."""
        self._counts["events"] += len(result.records)
        self._counts["predictions"] += len(result.predictions.score)
        self._counts["alerts"] += int(np.count_nonzero(result.predictions.alert))
        self._counts["late"] += result.late_events
        self._counts["silent"] += result.silent_events
        self._dead_letters.update(letter.stage for letter in result.dead_letters)
        places = np.searchsorted(_LATENCY_BOUNDS_S, result.records.ages_s(self._wall_s()))
        self._latencies += np.bincount(places, minlength=len(self._latencies))

    def on_loop(self) -> None:
        """Log, if a minute has passed."""
        now_s = self._clock()
        if now_s - self._began_s < INTERVAL_S:
            return
        spent_s, self._began_s = now_s - self._began_s, now_s
        fields: dict[str, object] = {name: self._counts[name] for name in ("events", "predictions", "alerts")}
        fields["dead_letters"] = dict(sorted(self._dead_letters.items()))
        fields["late"] = self._counts["late"]
        if self._counts["silent"]:
            fields["silent"] = self._counts["silent"]
        fields["events_per_s"] = round(self._counts["events"] / spent_s, 1)
        if (p99_s := self._p99_s()) is not None:
            fields["latency_p99_s"] = p99_s
        if self._gauges is not None:
            lags = {p.number: p.consumer_lag for p in self._gauges.partitions if p.consumer_lag is not None}
            fields["lag"] = sum(lags.values()) if lags or not self._gauges.partitions else None  # None: not known
            if fields["lag"]:
                worst = max(lags, key=lambda number: lags[number])
                fields |= {"worst_partition": worst, "worst_partition_lag": lags[worst]}
            fields["keys"] = self._gauges.state_keys
        log.info("the last minute", extra={"phase": self._phase, "seconds": round(spent_s), **fields})
        self._counts.clear()
        self._dead_letters.clear()
        self._latencies[:] = 0

    def _p99_s(self) -> float | None:
        """The upper bound of the bucket that 99 % of the latencies reach; None without any."""
        total = int(self._latencies.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self._latencies), 0.99 * total))
        return float(f"{_LATENCY_BOUNDS_S[min(place, len(_LATENCY_BOUNDS_S) - 1)]:.3g}")
