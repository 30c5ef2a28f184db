"""Every metric of the daemon, counted once per batch from plain numbers and arrays.

It knows no engine and no broker. No label holds a key, an offset or an error text: labels are topics and partitions of
this process, and words from the tuples below. All of those show 0 from the start, so that a rate is never missing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

DEAD_LETTER_STAGES = ("decode", "validate", "late", "step")
LATE_POLICIES = ("apply", "score", "drop")
OUTCOMES = ("committed", "aborted", "unknown")
STAGES = ("poll", "decode", "gather", "step", "stage", "encode", "commit")

_EVENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_SECONDS = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_STAGE_S = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, *_SECONDS)
_COMMIT_S = (*_SECONDS, 30)
_LATENCY_S = (*_SECONDS, 30, 60, 300, 1800, 3600, 86400)
_PROBABILITY = (0, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)
_SCORE = (*_PROBABILITY, 2, 3, 5, 10, 30, 100, 1000)  # anomaly models have no upper end


class BatchHistogram(Collector):
    """A histogram that takes an array at a time: one bucket search for the whole batch.

    prometheus-client's own takes one value a call, a few microseconds each, which would cost as much as the model.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        label: tuple[str, Sequence[str]] | None = None,
    ) -> None:
        """`bounds`: upper ends of the buckets, ascending. `label`: its name and every value it will ever have."""
        self._name = name
        self._documentation = documentation
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self._ends = [*(str(floatToGoString(bound)) for bound in bounds), "+Inf"]  # type: ignore[no-untyped-call]
        self._label = () if label is None else (label[0],)
        values = ("",) if label is None else tuple(label[1])
        self._counts: dict[str, NDArray[np.int64]] = {v: np.zeros(len(bounds) + 1, dtype=np.int64) for v in values}
        self._sums = dict.fromkeys(values, 0.0)
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: ArrayLike, label: str = "") -> None:
        """Count `values`, any shape. What is not finite is left out, since one NaN would spoil the sum for good.

        Raises KeyError for a label value that was not announced.
        """
        flat = np.asarray(values, dtype=np.float64).ravel()
        finite = np.isfinite(flat)
        if not finite.all():
            flat = flat[finite]
        # A bucket takes its upper end in, so the first bound that is not less than the value is its bucket.
        counts = np.bincount(np.searchsorted(self._bounds, flat, side="left"), minlength=len(self._ends))
        with self._lock:
            self._counts[label] += counts
            self._sums[label] += float(flat.sum())

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """The name alone, so that two metrics cannot share it."""
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._label)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Cumulative buckets, their count and sum, for each label value."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._label)
        with self._lock:
            rows = [(value, np.cumsum(counts).tolist(), self._sums[value]) for value, counts in self._counts.items()]
        for value, cumulative, total in rows:
            buckets = list(zip(self._ends, cumulative, strict=True))
            family.add_metric([value] if self._label else [], buckets, total)
        return [family]


class Metrics:
    """All metrics, in `registry`. Call from any thread; each metric by itself is consistent when scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # *_created would double the series for nothing
        self.registry = registry

        def counter(name: str, documentation: str, label: str = "", values: Sequence[str] = ()) -> Counter:
            made = Counter(f"lstmstream_{name}", documentation, [label] if label else [], registry=registry)
            for value in values:
                made.labels(value)
            return made

        def gauge(name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(f"lstmstream_{name}", documentation, labels, registry=registry)

        def histogram(
            name: str, documentation: str, bounds: Sequence[float], label: tuple[str, Sequence[str]] | None = None
        ) -> BatchHistogram:
            return BatchHistogram(f"lstmstream_{name}", documentation, bounds, registry, label)

        place = ("topic", "partition")
        self.events = counter("events_total", "Input records answered or put aside, once committed.")
        self.predictions = counter("predictions_total", "Predictions written, once committed.")
        self.alerts = counter("alerts_total", "Predictions at or above the threshold, once committed.")
        self.dead_letters = counter(
            "dead_letters_total", "Records put aside, by the stage that refused them.", "stage", DEAD_LETTER_STAGES
        )
        self.late_events = counter(
            "late_events_total", "Events older than their key's last, by what was done.", "policy", LATE_POLICIES
        )
        self.batch_events = histogram("batch_events", "Input records in one micro-batch.", _EVENTS)
        self.stage_seconds = histogram("stage_seconds", "Time of one batch in a stage.", _STAGE_S, ("stage", STAGES))
        self.event_latency_seconds = histogram(
            "event_latency_seconds", "Time from a record's timestamp to its committed answer.", _LATENCY_S
        )
        self.score = histogram("score", "Scores of the predictions.", _SCORE)

        self.consumer_lag_records = gauge("consumer_lag_records", "High watermark less committed offset.", place)
        self.rebalances = counter("rebalances_total", "Changes of this member's partitions.")
        self.transactions = counter("transactions_total", "Transactions, by how they ended.", "outcome", OUTCOMES)
        self.commit_seconds = histogram("commit_seconds", "Time to commit one transaction.", _COMMIT_S)
        self.last_progress_timestamp_seconds = gauge(
            "last_progress_timestamp_seconds", "When a batch was last committed, seconds since 1970 UTC."
        )

        self.state_keys = gauge("state_keys", "Keys whose state is in memory.")
        self.state_bytes = gauge("state_bytes", "Memory of the states in bytes.")
        self.state_checkpoints = counter("state_checkpoints_total", "States written to the state topic.")
        self.state_floor_lag_records = gauge(
            "state_floor_lag_records", "Input records that a restart would have to read again.", place
        )
        self.state_expired = counter("state_expired_total", "States replaced by a fresh one after state.ttl.")
        self.restore_records_remaining = gauge("restore_records_remaining", "Records left to read in a restore.")
        self.restore_seconds = gauge("restore_seconds", "Duration of the last restore, or of the present one so far.")
        self._model_info = gauge("model_info", "The model in use.", ("name", "version", "fingerprint", "device"))
        self._forgettable = (self.consumer_lag_records, self.state_floor_lag_records)
        ProcessCollector(registry=registry)

    def model(self, *, name: str, version: str, fingerprint: str, device: str) -> None:
        """The model in use; the one before is gone."""
        self._model_info.clear()
        self._model_info.labels(name, version, fingerprint, device).set(1)

    def observe_batch(
        self,
        *,
        events: int,
        scores: ArrayLike,
        alerts: int,
        dead_letters: Mapping[str, int],
        latencies_s: ArrayLike,
        now_s: float,
        late: int = 0,
        late_policy: str = "apply",
        expired: int = 0,
        checkpoints: int = 0,
    ) -> None:
        """Count one batch; call it when its transaction is committed and not before.

        `scores` [M], one for each prediction. `dead_letters`: stage to count. `latencies_s`: now less the records'
        timestamps, without those of records that have none; a clock that is behind counts as 0. `now_s`: wall clock.
        """
        self.events.inc(events)
        self.predictions.inc(np.size(scores))
        self.alerts.inc(alerts)
        for stage, count in dead_letters.items():
            self.dead_letters.labels(_known(stage, DEAD_LETTER_STAGES)).inc(count)
        self.late_events.labels(_known(late_policy, LATE_POLICIES)).inc(late)
        self.state_expired.inc(expired)
        self.state_checkpoints.inc(checkpoints)
        if events:
            self.batch_events.observe(events)
        self.score.observe(scores)
        self.event_latency_seconds.observe(np.maximum(np.asarray(latencies_s, dtype=np.float64), 0.0))
        self.last_progress_timestamp_seconds.set(now_s)

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Time that one batch spent in each of STAGES. KeyError for a stage that is not one of them."""
        for stage, spent in seconds.items():
            self.stage_seconds.observe(spent, stage)

    def transaction(self, outcome: str, seconds: float | None = None) -> None:
        """One transaction ended as one of OUTCOMES; `seconds`: how long its commit took."""
        self.transactions.labels(_known(outcome, OUTCOMES)).inc()
        if seconds is not None:
            self.commit_seconds.observe(seconds)

    def lag(self, topic: str, partition: int, records: int) -> None:
        """High watermark less committed offset of an owned partition."""
        self.consumer_lag_records.labels(topic, str(partition)).set(records)

    def floor_lag(self, topic: str, partition: int, records: int) -> None:
        """Committed offset less floor of an owned partition."""
        self.state_floor_lag_records.labels(topic, str(partition)).set(records)

    def forget_partition(self, topic: str, partition: int) -> None:
        """The partition belongs to another member now, which tells its lag."""
        for gauge in self._forgettable:
            gauge.remove(topic, str(partition))


def _known(value: str, values: Sequence[str]) -> str:
    """The label value, if it is one of those announced: an unbounded label would fill Prometheus."""
    if value not in values:
        raise KeyError(value)
    return value
