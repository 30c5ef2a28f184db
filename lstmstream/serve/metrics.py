"""Every metric of the daemon, counted once per batch from plain numbers and arrays.

This module knows neither engine nor broker. No label holds a key, an offset or an error message: labels are topics and
partitions of this process, fields of the model's card, and words from the tuples below. All but the first start at 0,
so that a rate is never missing.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from lstmstream.model import Card
from lstmstream.records import HELD_BACK, Ints

DEAD_LETTER_STAGES = ("decode", "validate", "late", "step", "publish")
HELD_BACK_REASONS = HELD_BACK[1:]
LATE_POLICIES = ("apply", "score", "drop")
STALLED_FETCH_ACTIONS = ("seek", "rejoin")
OUTCOMES = ("committed", "aborted", "unknown")
SNAPSHOT_OUTCOMES = ("written", "failed")
SOURCES = ("snapshot", "standby", "topic")  # of restored states
STAGES = ("poll", "decode", "gather", "step", "stage", "reasons", "encode", "commit")

_EVENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_SECONDS = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_STAGE_S = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, *_SECONDS)
_COMMIT_S = (*_SECONDS, 30)
_LATENCY_S = (*_SECONDS, 30, 60, 300, 1800, 3600, 86400)
_PROBABILITY = (0, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)
_SCORE = (*_PROBABILITY, 2, 3, 5, 10, 30, 100, 1000)  # anomaly models have no upper end


class BatchHistogram(Collector):
    """A histogram that observes a whole array at once, with one bucket search per batch.

    prometheus-client's own observes one value per call, a few microseconds each, which would cost as much as the model.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        label: tuple[str, Sequence[str]] | None = None,
    ) -> None:
        """`bounds`: upper bounds of the buckets, ascending. `label`: its name, and every value that it can have."""
        self._name = name
        self._documentation = documentation
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self._upper_bounds = [float(bound) for bound in bounds]  # the same, for bisect
        self._ends = [*(str(floatToGoString(bound)) for bound in bounds), "+Inf"]  # type: ignore[no-untyped-call]
        self._label = () if label is None else (label[0],)
        values = ("",) if label is None else tuple(label[1])
        self._counts: dict[str, NDArray[np.int64]] = {v: np.zeros(len(bounds) + 1, dtype=np.int64) for v in values}
        self._sums = dict.fromkeys(values, 0.0)
        self._exemplars: dict[tuple[str, int], Exemplar] = {}  # by label value and bucket: the last one
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: ArrayLike, label: str = "") -> None:
        """Count `values`, of any shape. Values that are not finite are left out: one NaN would spoil the sum forever.

        Raises KeyError for a label value that was not declared.
        """
        flat = np.asarray(values, dtype=np.float64).ravel()
        finite = np.isfinite(flat)
        if not finite.all():
            flat = flat[finite]
        # A bucket includes its upper bound, so the first bound that is not less than the value is its bucket.
        counts = np.bincount(np.searchsorted(self._bounds, flat, side="left"), minlength=len(self._ends))
        with self._lock:
            self._counts[label] += counts
            self._sums[label] += float(flat.sum())

    def observe_one(self, value: float, label: str = "") -> None:
        """Count one value as `observe` does, in a tenth of the time: that is what a batch of a few events notices."""
        if not math.isfinite(value):
            return
        bucket = bisect_left(self._upper_bounds, value)
        with self._lock:
            self._counts[label][bucket] += 1
            self._sums[label] += value

    def note_exemplar(self, value: float, labels: Mapping[str, str], at_s: float, label: str = "") -> None:
        """An example of what was counted in the bucket of `value`, for OpenMetrics; `at_s`: seconds since 1970 UTC."""
        bucket = bisect_left(self._upper_bounds, value)
        with self._lock:
            self._exemplars[label, bucket] = Exemplar(dict(labels), value, at_s)

    @property
    def bounds(self) -> list[float]:
        """Upper bounds of the buckets; one more bucket is above the last."""
        return self._upper_bounds

    def counts(self, label: str = "") -> Ints:
        """Number of the values so far in each bucket [bounds + 1]."""
        with self._lock:
            return self._counts[label].copy()

    def totals(self) -> dict[str, tuple[int, float]]:
        """Number and sum of the values so far, by label value."""
        with self._lock:
            return {value: (int(counts.sum()), self._sums[value]) for value, counts in self._counts.items()}

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return the name alone, so that the registry refuses a second metric of this name."""
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._label)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return cumulative buckets, count and sum for each label value."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._label)
        with self._lock:
            rows = [(value, np.cumsum(counts).tolist(), self._sums[value]) for value, counts in self._counts.items()]
            exemplars = dict(self._exemplars)
        for value, cumulative, total in rows:
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            for bucket, (end, count) in enumerate(zip(self._ends, cumulative, strict=True)):
                example = exemplars.get((value, bucket))
                buckets.append((end, count) if example is None else (end, count, example))
            family.add_metric([value] if self._label else [], buckets, total)
        return [family]


class Metrics:
    """All metrics, in `registry`. Safe to use from any thread; each single metric is consistent when scraped."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """None: a registry of its own."""
        disable_created_metrics()  # type: ignore[no-untyped-call] # *_created would double the series for no use
        registry = CollectorRegistry() if registry is None else registry
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

        topic_partition = ("topic", "partition")
        self.events = counter("events_total", "Input records that were processed, counted when committed.")
        self.predictions = counter("predictions_total", "Predictions, counted when committed.")
        self.silent_events = counter(
            "silent_events_total", "Events that updated a state without a prediction (input.silent)."
        )
        self.alerts = counter("alerts_total", "Predictions at or above the threshold, counted when committed.")
        self.alerts_held_back = counter(
            "alerts_held_back_total",
            "Alerts that were not published, by the option of alerts that held them back.",
            "reason",
            HELD_BACK_REASONS,
        )
        self.dead_letters = counter(
            "dead_letters_total", "Dead-lettered records, by the stage that rejected them.", "stage", DEAD_LETTER_STAGES
        )
        self.late_events = counter(
            "late_events_total",
            "Events older than the newest of their key, by the policy applied.",
            "policy",
            LATE_POLICIES,
        )
        self.records_without_key = counter(
            "records_without_key_total", "Records without a key; those of a partition share one state."
        )
        self.keys_in_several_partitions = counter(
            "keys_in_several_partitions_total",
            "Keys found with a state in more than one partition of this member (a sample is checked).",
        )
        self.missing_values = counter(
            "missing_values_total", "Scored events in which a field that the model reads was missing.", "field"
        )
        self.unknown_categories = counter(
            "unknown_categories_total",
            "Scored events with a category value that is not in the model's vocabulary.",
            "field",
        )
        self.batch_events = histogram("batch_events", "Input records per micro-batch.", _EVENTS)
        self.stage_seconds = histogram(
            "stage_seconds", "Time per batch in a pipeline stage, in seconds.", _STAGE_S, ("stage", STAGES)
        )
        self.event_latency_seconds = histogram(
            "event_latency_seconds",
            "Time from a record's timestamp to the commit of its prediction, in seconds.",
            _LATENCY_S,
        )
        self.score = histogram("score", "Scores of the predictions.", _SCORE)

        self.consumer_lag_records = gauge(
            "consumer_lag_records",
            "Last stable offset minus the group's position; absent while the broker cannot be asked.",
            topic_partition,
        )
        self.consumer_lag_seconds = gauge(
            "consumer_lag_seconds",
            "Age of the oldest record that waits: since the last committed record's timestamp, or since the lag was"
            " last 0, whichever is later; 0 while nothing waits, absent as the lag in records is.",
            topic_partition,
        )
        self.stalled_fetches = counter(
            "stalled_fetches_total",
            "Times that a partition returned no records although some were waiting, by the action taken.",
            "action",
            STALLED_FETCH_ACTIONS,
        )
        self.rebalances = counter("rebalances_total", "Changes of the partitions assigned to this member.")
        self.transactions = counter("transactions_total", "Transactions, by outcome.", "outcome", OUTCOMES)
        self.commit_seconds = histogram("commit_seconds", "Time to commit one transaction, in seconds.", _COMMIT_S)
        self.last_progress_timestamp_seconds = gauge(
            "last_progress_timestamp_seconds", "Time of the last committed batch, in seconds since 1970 UTC."
        )

        self.state_keys = gauge("state_keys", "Keys whose state is in memory.")
        self.state_bytes = gauge("state_bytes", "Memory of the states, their keys and the table of keys, in bytes.")
        self.state_checkpoints = counter("state_checkpoints_total", "States written to the state topic.")
        self.state_floor_lag_records = gauge(
            "state_floor_lag_records", "Input records that would be replayed after a crash.", topic_partition
        )
        self.state_expired = counter("state_expired_total", "States replaced by a fresh one after state.ttl.")
        self._begin_removals(counter)
        self.state_resets = counter(
            "state_resets_total", "States replaced by a fresh one after state.reset_after_failures."
        )
        self.restores = counter(
            "restores_total",
            "Partitions restored, from a local snapshot, a standby or from the state topic.",
            "source",
            SOURCES,
        )
        self._begin_takeovers(gauge)
        self.snapshots = counter(
            "state_snapshots_total", "Snapshots of a partition's states in state.dir.", "outcome", SNAPSHOT_OUTCOMES
        )
        self.snapshot_timestamp_seconds = gauge(
            "state_snapshot_timestamp_seconds",
            "Time of the newest snapshot in state.dir, in seconds since 1970 UTC.",
            topic_partition,
        )
        self.snapshot_bytes = gauge("state_snapshot_bytes", "Size of the newest snapshot, in bytes.", topic_partition)
        self.snapshot_seconds = gauge(
            "state_snapshot_seconds",
            "Time from the beginning of the last snapshot until it was on the disk, in seconds.",
        )
        self.ready = gauge("ready", "1 while /readyz answers 200, else 0.")
        self._model_info = gauge("model_info", "The model in use.", ("name", "version", "fingerprint", "device"))
        self._per_partition = (
            self.consumer_lag_records,
            self.consumer_lag_seconds,
            self.state_floor_lag_records,
            self.snapshot_timestamp_seconds,
            self.snapshot_bytes,
        )
        ProcessCollector(registry=registry)

    def _begin_takeovers(self, gauge: Callable[[str, str], Gauge]) -> None:
        """Of restores, and of what is followed of other members."""
        self.restore_records_remaining = gauge(
            "restore_records_remaining", "Records still to be read by the current restore."
        )
        self.restore_seconds = gauge(
            "restore_seconds", "Duration of the last restore, or of the current one so far, in seconds."
        )
        self.standby_keys = gauge("standby_keys", "Keys of other members' partitions followed with state.standby.")
        self.standby_bytes = gauge("standby_bytes", "Memory of the states followed with state.standby, in bytes.")
        self.standby_records_behind = gauge(
            "standby_records_behind", "Records of the state topic that a standby has not read yet."
        )

    def _begin_removals(self, counter: Callable[[str, str], Counter]) -> None:
        """Of keys and their records."""
        self.state_keys_removed = counter(
            "state_keys_removed_total", "Expired keys removed from memory (state.ttl with input.max_lateness)."
        )
        self.state_records_deleted = counter(
            "state_records_deleted_total", "Records of removed keys deleted from the state topic, by tombstones."
        )
        self.state_evicted = counter("state_evicted_total", "States discarded by state.max_keys.")

    def model(self, *, name: str, version: str, fingerprint: str, device: str) -> None:
        """Set the model in use, instead of the previous one."""
        self._model_info.clear()
        self._model_info.labels(name, version, fingerprint, device).set(1)

    def features(self, card: Card) -> None:
        """Begin to count by field: from 0, so that a rate is never missing."""
        for feature in card.features:
            self.missing_values.labels(feature.name)
        for feature in card.categories:
            self.unknown_categories.labels(feature.name)

    def observe_fields(self, card: Card, missing: Ints, unknown: Ints) -> None:
        """Count one batch's values by field: `missing` and `unknown` [features], in the order of the card."""
        for place, feature in enumerate(card.features):
            if missing[place]:
                self.missing_values.labels(feature.name).inc(int(missing[place]))
            if unknown[place]:
                self.unknown_categories.labels(feature.name).inc(int(unknown[place]))

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
        resets: int = 0,
        checkpoints: int = 0,
        silent: int = 0,
        deleted: int = 0,
        evicted: int = 0,
        held_back: Mapping[str, int] | None = None,
    ) -> None:
        """Count one batch. Call it when its transaction is committed, not before.

        `scores` [M], one for each prediction. `dead_letters`: stage → count. `latencies_s`: now minus the timestamps
        of those records that have one; a negative latency counts as 0. `now_s`: wall clock, seconds since 1970 UTC.
        `held_back`: reason → alerts.
        """
        self.events.inc(events)
        self.predictions.inc(np.size(scores))
        self.alerts.inc(alerts)
        for reason, count in (held_back or {}).items():
            self.alerts_held_back.labels(_checked_label(reason, HELD_BACK_REASONS)).inc(count)
        for stage, count in dead_letters.items():
            self.dead_letters.labels(_checked_label(stage, DEAD_LETTER_STAGES)).inc(count)
        self.late_events.labels(_checked_label(late_policy, LATE_POLICIES)).inc(late)
        self.silent_events.inc(silent)
        self.state_expired.inc(expired)
        self.state_resets.inc(resets)
        self.state_checkpoints.inc(checkpoints)
        self.state_records_deleted.inc(deleted)
        self.state_evicted.inc(evicted)
        if events:
            self.batch_events.observe_one(events)
        self.score.observe(scores)
        self.event_latency_seconds.observe(np.maximum(np.asarray(latencies_s, dtype=np.float64), 0.0))
        self.last_progress_timestamp_seconds.set(now_s)

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Observe the time of one batch in each stage, in seconds. Raises KeyError for any other stage."""
        for stage, spent in seconds.items():
            self.stage_seconds.observe_one(spent, stage)

    def batch_totals(self) -> tuple[int, int, dict[str, float]]:
        """Events, batches with events, and seconds by stage so far."""
        events = sum(sample.value for family in self.events.collect() for sample in family.samples)
        stages = {stage: seconds for stage, (_, seconds) in self.stage_seconds.totals().items()}
        return int(events), self.batch_events.totals()[""][0], stages

    def alert_total(self) -> int:
        """Alerts so far."""
        return int(sum(sample.value for family in self.alerts.collect() for sample in family.samples))

    def dead_letter_totals(self) -> dict[str, int]:
        """Dead letters so far, by stage."""
        samples = [sample for family in self.dead_letters.collect() for sample in family.samples]
        return {sample.labels["stage"]: int(sample.value) for sample in samples}

    def transaction(self, outcome: str, seconds: float | None = None) -> None:
        """Count one transaction with one of OUTCOMES; `seconds`: how long its commit took."""
        self.transactions.labels(_checked_label(outcome, OUTCOMES)).inc()
        if seconds is not None:
            self.commit_seconds.observe_one(seconds)

    def lag(self, topic: str, partition: int, records: int, age_s: float) -> None:
        """Set the lag of an assigned partition: last stable offset minus position, and the age of the oldest record."""
        self.consumer_lag_records.labels(topic, str(partition)).set(records)
        self.consumer_lag_seconds.labels(topic, str(partition)).set(age_s)

    def lose_lag(self, topic: str, partition: int) -> None:
        """Remove the lag of an assigned partition, while it is not known."""
        self.consumer_lag_records.remove(topic, str(partition))
        self.consumer_lag_seconds.remove(topic, str(partition))

    def floor_lag(self, topic: str, partition: int, records: int) -> None:
        """Set the floor lag of an assigned partition: committed offset minus floor."""
        self.state_floor_lag_records.labels(topic, str(partition)).set(records)

    def snapshot(self, topic: str, partition: int, taken_s: float, size: int) -> None:
        """Set time (since 1970 UTC) and bytes of the newest snapshot of an assigned partition."""
        self.snapshot_timestamp_seconds.labels(topic, str(partition)).set(taken_s)
        self.snapshot_bytes.labels(topic, str(partition)).set(size)

    def remove_partition(self, topic: str, partition: int) -> None:
        """Remove the gauges of a partition that now belongs to another member, which reports its lag."""
        for gauge in self._per_partition:
            gauge.remove(topic, str(partition))


def _checked_label(value: str, values: Sequence[str]) -> str:
    """Return the label value if it is one of those declared; an unbounded label would fill Prometheus."""
    if value not in values:
        raise KeyError(value)
    return value
