"""The metrics of several workers, added up: what Prometheus reads is what one process would have counted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lstmstream.serve.metrics import Metrics
from lstmstream.workers.metrics import GAUGES, MergedMetrics, parse, worker_metrics
from lstmstream.workers.process import WorkerStatus

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def worker_text(events: int = 0, *, keys: int = 0, lag: dict[int, int] | None = None, at_s: float = 0.0) -> str:
    """What the `/metrics` of a worker says after one batch."""
    metrics = Metrics(CollectorRegistry())
    metrics.model(name="m", version="1", fingerprint="f", device="cpu")
    if events:
        metrics.observe_batch(
            events=events,
            scores=np.linspace(0, 2, events),
            alerts=1,
            dead_letters={"step": 1},
            latencies_s=np.full(events, 0.02),
            now_s=at_s,
        )
        metrics.observe_stages({"step": 0.5})
        metrics.transaction("committed", 0.01)
    metrics.state_keys.set(keys)
    for partition, records in (lag or {}).items():
        metrics.lag("in", partition, records, float(records))
    return generate_latest(metrics.registry).decode()


def samples(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def merged_text(merged: MergedMetrics, workers: Iterable[WorkerStatus] = ()) -> str:
    return generate_latest(merged.registry(workers)).decode()


def status(number: int, *, run: int = 1) -> WorkerStatus:
    return WorkerStatus(number, run, running=True, since_s=0.0, port=1, ended="")


def value(found: Samples, metric: str, **labels: str) -> float:
    return found[metric, frozenset(labels.items())]


def test_every_metric_of_one_process_is_there_with_its_labels_type_and_text() -> None:
    one, merged = worker_text(5), MergedMetrics()
    for number in range(2):
        merged.read(number, 1, parse(one))
    both = merged_text(merged)
    assert samples(both).keys() == samples(one).keys()
    headers = [line for line in one.splitlines() if line.startswith("#")]
    assert [line for line in both.splitlines() if line.startswith("#") and "_worker_" not in line] == headers


def test_counters_and_histograms_are_added_up() -> None:
    merged = MergedMetrics()
    merged.read(0, 1, parse(worker_text(3)))
    merged.read(1, 1, parse(worker_text(5)))
    found = samples(merged_text(merged))
    assert value(found, "lstmstream_events_total") == 8
    assert value(found, "lstmstream_dead_letters_total", stage="step") == 2
    assert value(found, "lstmstream_batch_events_count") == 2
    assert value(found, "lstmstream_batch_events_sum") == 8
    assert value(found, "lstmstream_batch_events_bucket", le="4.0") == 1
    assert value(found, "lstmstream_batch_events_bucket", le="+Inf") == 2
    assert value(found, "lstmstream_stage_seconds_sum", stage="step") == 1.0
    assert value(found, "lstmstream_transactions_total", outcome="committed") == 2
    buckets = [v for (name, _), v in found.items() if name == "lstmstream_event_latency_seconds_bucket"]
    assert buckets == sorted(buckets), "buckets are cumulative, in their order"


def test_gauges_are_put_together_each_in_its_way() -> None:
    merged = MergedMetrics()
    merged.read(0, 1, parse(worker_text(1, keys=10, lag={0: 7, 1: 1}, at_s=100.0)))
    merged.read(1, 1, parse(worker_text(1, keys=20, lag={1: 5, 2: 3}, at_s=90.0)))
    found = samples(merged_text(merged, [status(0), status(1)]))
    assert value(found, "lstmstream_state_keys") == 30
    lags = [value(found, "lstmstream_consumer_lag_records", topic="in", partition=str(p)) for p in range(3)]
    assert lags == [7, 5, 3]
    assert value(found, "lstmstream_last_progress_timestamp_seconds") == 100.0
    assert value(found, "lstmstream_model_info", name="m", version="1", fingerprint="f", device="cpu") == 1
    progress = "lstmstream_worker_last_progress_timestamp_seconds"
    assert [value(found, progress, worker=str(n)) for n in range(2)] == [100.0, 90.0]


def test_the_processes_are_added_up_with_the_parent() -> None:
    merged = MergedMetrics()
    alone = samples(merged_text(merged))
    merged.read(0, 1, parse(worker_text()))
    found = samples(merged_text(merged))
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total"):
        assert value(found, name) >= value(alone, name) + value(samples(worker_text()), name) / 2
    assert value(found, "process_start_time_seconds") == value(alone, "process_start_time_seconds")


def test_a_worker_that_begins_again_takes_nothing_back() -> None:
    """A counter that falls means to Prometheus that all of it was counted anew."""
    merged = MergedMetrics()
    merged.read(0, 1, parse(worker_text(3, keys=10)))
    merged.read(1, 1, parse(worker_text(50, keys=20)))
    merged.missed(1)
    found = samples(merged_text(merged, [status(0), status(1)]))
    assert value(found, "lstmstream_events_total") == 53, "what it had counted is gone while it does not answer"
    assert value(found, "lstmstream_state_keys") == 10
    assert [value(found, "lstmstream_worker_up", worker=str(n)) for n in range(2)] == [1, 0]
    for run, events in ((2, 0), (2, 4), (3, 1)):
        merged.read(1, run, parse(worker_text(events)))
    found = samples(merged_text(merged, [status(0), status(1, run=3)]))
    assert value(found, "lstmstream_events_total") == 3 + 50 + 4 + 1
    assert value(found, "lstmstream_batch_events_bucket", le="+Inf") == 4
    assert value(found, "lstmstream_batch_events_bucket", le="8.0") == 3
    assert value(found, "lstmstream_state_keys") == 10
    assert value(found, "lstmstream_worker_restarts_total", worker="1") == 2


@pytest.mark.parametrize("text", [worker_text(), merged_text(MergedMetrics())])
def test_every_gauge_has_a_rule(text: str) -> None:
    """Whoever adds one decides whether it is a sum, a maximum or a minimum."""
    for family in text_string_to_metric_families(text):
        assert family.type in {"counter", "histogram", "gauge"}
        own = family.name.startswith("lstmstream_worker_")
        assert family.type != "gauge" or own or family.name in GAUGES, family.name


def test_stages_are_not_added_up_and_each_has_its_label() -> None:
    merged = MergedMetrics()
    for number, stage in enumerate(["terminal", "terminal", "customer"]):
        merged.read(number, 1, parse(worker_text(5)), stage)
    found = {
        sample.labels.get("stage_name"): sample.value
        for family in merged.collect()
        for sample in family.samples
        if sample.name == "lstmstream_events_total"
    }
    assert found == {"terminal": 2 * found["customer"], "customer": found["customer"]}
    assert found["customer"] > 0
    statuses = [status(number)._replace(stage=stage) for number, stage in enumerate(["terminal", "customer"])]
    up = next(family for family in worker_metrics(statuses, merged) if family.name == "lstmstream_worker_up")
    assert [sample.labels for sample in up.samples] == [
        {"worker": "0", "stage_name": "terminal"},
        {"worker": "1", "stage_name": "customer"},
    ]
