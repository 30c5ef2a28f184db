"""The metrics of all workers as one process would have them: the same names and labels, so that dashboards go on.

- Counters and histograms are added up. What a worker had counted before it was started again is kept, and so is what
  one that does not answer had counted last: a sum that falls looks to Prometheus like a restart of the whole, and all
  of it would count once more.
- Gauges are of now, so only of workers that answer now. `GAUGES` says how each is put together.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from lstmstream.workers.process import WorkerStatus

PARENT = -1  # its number among the processes; the workers count from 0

Rule = Callable[[float, float], float]
Key = tuple[str, str, tuple[tuple[str, str], ...]]  # family, sample, labels

GAUGES: Mapping[str, Rule] = {
    # Each partition has one owner. While it moves two may name it; the larger is then the older, not yet caught up.
    "lstmstream_consumer_lag_records": max,
    "lstmstream_consumer_lag_seconds": max,
    "lstmstream_state_floor_lag_records": max,
    "lstmstream_state_keys": operator.add,
    "lstmstream_state_bytes": operator.add,
    "lstmstream_restore_records_remaining": operator.add,
    "lstmstream_restore_seconds": max,  # they restore side by side: so long did the slowest take
    "lstmstream_state_snapshot_timestamp_seconds": max,
    "lstmstream_state_snapshot_bytes": max,
    "lstmstream_state_snapshot_seconds": max,
    "lstmstream_standby_keys": operator.add,
    "lstmstream_standby_bytes": operator.add,
    "lstmstream_standby_records_behind": operator.add,
    "lstmstream_ready": min,
    "lstmstream_last_progress_timestamp_seconds": max,
    "lstmstream_model_info": max,  # always 1; another model has other labels
    "process_virtual_memory_bytes": operator.add,
    "process_resident_memory_bytes": operator.add,
    "process_start_time_seconds": min,  # the parent's
    "process_open_fds": max,  # both of these are limits of each process: the worst
    "process_max_fds": min,
}


@dataclass
class Reading:
    """What one process said last."""

    run: int = 0  # of that worker: another one counts from 0 again
    answered: bool = False  # this time
    kinds: dict[str, tuple[str, str]] = field(default_factory=dict)  # family → type, documentation
    values: dict[Key, float] = field(default_factory=dict)


class MergedMetrics:
    """Takes readings of processes, by number, and puts them together. The parent is one of them."""

    def __init__(self) -> None:
        self._readings: dict[int, Reading] = {}
        self._before: dict[Key, float] = {}  # counted by processes that have ended
        self._parent = CollectorRegistry()
        ProcessCollector(registry=self._parent)

    def registry(self, workers: Iterable[WorkerStatus]) -> CollectorRegistry:
        """Everything, to be written out."""
        self.read(PARENT, 1, self._parent.collect())
        registry = CollectorRegistry()
        registry.register(_Collected([*self.collect(), *worker_metrics(workers, self)]))
        return registry

    def read(self, number: int, run: int, families: Iterable[Metric], stage: str | None = None) -> None:
        """Take what process `number` says, in its `run`-th life. `stage` becomes a label: stages are not added up."""
        last = self._readings.get(number)
        if last is not None and last.run != run:
            for key, value in last.values.items():
                if _is_counted(last, key):
                    self._before[key] = self._before.get(key, 0.0) + value
        new = self._readings[number] = Reading(run, answered=True)
        for family in families:
            new.kinds[family.name] = (family.type, family.documentation)
            for sample in family.samples:
                new.values[family.name, sample.name, tuple(sorted(_with_stage(sample.labels, stage).items()))] = (
                    sample.value
                )

    def missed(self, number: int) -> None:
        """Process `number` does not answer: what it is at now is not known."""
        if number in self._readings:
            self._readings[number].answered = False

    def value(self, number: int, name: str, stage: str | None = None) -> float | None:
        """A gauge without labels of one process; None where it is not known."""
        reading = self._readings.get(number)
        labels = tuple(_with_stage({}, stage).items())
        return None if reading is None or not reading.answered else reading.values.get((name, name, labels))

    def collect(self) -> Iterator[Metric]:
        """One family for each name, in the order in which the processes have them."""
        kinds = {name: kind for reading in self._readings.values() for name, kind in reading.kinds.items()}
        merged: dict[str, dict[Key, float]] = {name: {} for name in kinds}
        for key, value in self._before.items():
            if key[0] in merged:
                merged[key[0]][key] = value
        for reading in self._readings.values():
            for key, value in reading.values.items():
                counted = _is_counted(reading, key)
                if not counted and not reading.answered:
                    continue
                values = merged[key[0]]
                rule: Rule = operator.add if counted else GAUGES.get(key[0], max)
                values[key] = rule(values[key], value) if key in values else value
        for name, (kind, documentation) in kinds.items():
            family = Metric(name, documentation, kind)
            for (_, sample, labels), value in merged[name].items():
                family.add_sample(sample, dict(labels), value)
            yield family


def parse(text: str) -> Iterable[Metric]:
    """What a `/metrics` in Prometheus' text format says. Raises ValueError."""
    return list(text_string_to_metric_families(text))


def rule_name(kind: str, name: str) -> str:
    """How the metric `name` of this type is put together, in a word."""
    return "sum" if kind != "gauge" or GAUGES[name] is operator.add else GAUGES[name].__name__


def worker_metrics(workers: Iterable[WorkerStatus], merged: MergedMetrics) -> list[Metric]:
    """What only several workers have: which of them answers, and how often it was started again."""
    up = Metric("lstmstream_worker_up", "1 while the worker answers, 0 while it does not.", "gauge")
    restarts = Metric("lstmstream_worker_restarts", "Times that the worker was started again.", "counter")
    progress = Metric(
        "lstmstream_worker_last_progress_timestamp_seconds",
        "Time of the worker's last committed batch, in seconds since 1970 UTC.",
        "gauge",
    )
    for worker in workers:
        labels = _with_stage({"worker": str(worker.number)}, worker.stage)
        at_s = merged.value(worker.number, "lstmstream_last_progress_timestamp_seconds", worker.stage)
        up.add_sample(up.name, labels, 0.0 if at_s is None else 1.0)
        restarts.add_sample(f"{restarts.name}_total", labels, float(max(0, worker.run - 1)))
        if at_s is not None:
            progress.add_sample(progress.name, labels, at_s)
    return [up, restarts, progress]


class _Collected(Collector):
    """Families that were collected already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _is_counted(reading: Reading, key: Key) -> bool:
    return reading.kinds[key[0]][0] in {"counter", "histogram"}


def _with_stage(labels: Mapping[str, str], stage: str | None) -> dict[str, str]:
    """The label is not `stage`: that is of pipeline stages and of dead letters."""
    return dict(labels) if stage is None else {**labels, "stage_name": stage}
