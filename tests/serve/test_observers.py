"""Who is told what the daemon does: several as one, metrics, health, and the time of each stage."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from lstmstream.serve.checkpoint import CheckpointPlan
from lstmstream.serve.engine import Result
from lstmstream.serve.health import Health
from lstmstream.serve.metrics import Metrics
from lstmstream.serve.observers import (
    Gauges,
    HealthObserver,
    MetricsObserver,
    Observer,
    Observers,
    PartitionGauges,
    StageTimer,
)
from lstmstream.serve.restore import Restored
from lstmstream.serve.traces import trace_of
from tests.serve.helpers import NumpyStep, batch, engine
from tests.serve.reference import Event

EVENTS = [name for name, _ in inspect.getmembers(Observer, inspect.isfunction) if name.startswith("on_")]


def arguments_of(event: str) -> list[object]:
    """One object for each parameter but self."""
    return [object() for _ in inspect.signature(getattr(Observer, event)).parameters][1:]


def test_there_are_events() -> None:
    assert {"on_loop", "on_commit", "on_abort", "on_gauges"} <= set(EVENTS)


@pytest.mark.parametrize("event", EVENTS)
def test_an_observer_that_overrides_nothing_does_nothing(event: str) -> None:
    assert getattr(Observer(), event)(*arguments_of(event)) is None


@pytest.mark.parametrize("event", EVENTS)
def test_each_event_reaches_every_observer_once_and_in_order(event: str) -> None:
    seen: list[tuple[int, tuple[object, ...]]] = []

    class Listens(Observer):
        def __init__(self, number: int) -> None:
            self.number = number

    setattr(Listens, event, lambda self, *given: seen.append((self.number, given)))
    given = arguments_of(event)
    getattr(Observers([Listens(0), Observer(), Listens(1)]), event)(*given)
    assert seen == [(0, tuple(given)), (1, tuple(given))]


class Counted:
    """A MetricsObserver and what it counted."""

    def __init__(self, late: str = "apply") -> None:
        self.now_s = 1_000.0
        self.monotonic_s = 5.0
        self.metrics = Metrics(CollectorRegistry())
        self.timer = StageTimer(lambda: self.monotonic_s)
        self.observer = MetricsObserver(
            self.metrics,
            NumpyStep().card,
            input_topic="in",
            late_policy=late,
            timer=self.timer,
            wall_s=lambda: self.now_s,
        )

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"lstmstream_{name}", labels)


def result_of(late: str = "apply", threshold: float | None = 3.0) -> Result:
    """Three predictions, of which one alerts, one is late and one is of an expired state; two dead letters."""
    made = engine(NumpyStep(), threshold=threshold, late=late, ttl_ms=5_000)
    events = [
        Event(0, 0, 990_000, b"a", b'{"amount":9}'),
        Event(0, 1, 996_000, b"a", b'{"amount":0}'),
        Event(0, 2, 995_000, b"a", b'{"amount":-1}'),
        Event(0, 3, -1, b"b", b'{"amount":1}'),
        Event(0, 4, 999_000, b"c", b'{"amount":666}'),
    ]
    return made.process(batch(events))


def plan_of(rows: int = 0) -> CheckpointPlan:
    written = {0: np.arange(rows), 1: np.arange(1)} if rows else {}
    return CheckpointPlan([], written, {}, {0: 5}, 0)


def test_a_committed_batch_is_counted() -> None:
    counted = Counted()
    counted.observer.on_commit(result_of(), plan_of(rows=4), 0.25)
    assert counted("events_total") == 5
    assert counted("predictions_total") == counted("score_count") == 3
    assert counted("alerts_total") == 1
    assert counted("dead_letters_total", stage="step") == 1
    assert counted("dead_letters_total", stage="validate") == 1
    assert counted("dead_letters_total", stage="decode") == 0
    assert counted("late_events_total", policy="apply") == 1
    assert counted("late_events_total", policy="drop") == 0
    assert counted("state_expired_total") == 1
    assert counted("state_checkpoints_total") == 5
    assert counted("batch_events_sum") == 5
    assert counted("transactions_total", outcome="committed") == 1
    assert counted("commit_seconds_count") == 1
    assert counted("commit_seconds_sum") == 0.25
    assert counted("last_progress_timestamp_seconds") == 1_000
    assert counted("event_latency_seconds_count") == 4, "one record has no timestamp"
    assert counted("event_latency_seconds_sum") == 10 + 4 + 5 + 1


def test_a_late_event_counts_under_its_policy() -> None:
    counted = Counted(late="drop")
    counted.observer.on_commit(result_of(late="drop"), plan_of(), 0.0)
    assert counted("late_events_total", policy="drop") == counted("dead_letters_total", stage="late") == 1
    assert counted("predictions_total") == 2


def test_a_commit_that_was_only_learnt_of_afterwards_has_no_duration() -> None:
    counted = Counted()
    counted.observer.on_commit(result_of(), plan_of(), None)
    assert counted("transactions_total", outcome="committed") == 1
    assert counted("commit_seconds_count") == 0


def test_an_aborted_transaction_counts_no_event_and_its_stages_are_forgotten() -> None:
    counted = Counted()
    with counted.timer("decode"):
        counted.monotonic_s += 3
    counted.observer.on_abort()
    assert counted("transactions_total", outcome="aborted") == 1
    assert counted("events_total") == 0
    counted.observer.on_commit(result_of(), plan_of(), 0.0)
    assert counted("stage_seconds_count", stage="decode") == 0


def test_the_time_of_each_stage_of_a_committed_batch() -> None:
    counted = Counted()
    for seconds in (1, 2):
        with counted.timer("decode"):
            counted.monotonic_s += seconds
    with counted.timer("step"):
        counted.monotonic_s += 0.5
    counted.observer.on_commit(result_of(), plan_of(), 0.0)
    assert (counted("stage_seconds_sum", stage="decode"), counted("stage_seconds_count", stage="decode")) == (3, 1)
    assert counted("stage_seconds_sum", stage="step") == 0.5
    counted.observer.on_commit(result_of(), plan_of(), 0.0)
    assert counted("stage_seconds_count", stage="decode") == 1, "the next batch has a time of its own"


def test_gauges_and_the_partitions_that_went() -> None:
    counted = Counted()
    gauges = Gauges(
        [PartitionGauges(0, floor_lag=7, consumer_lag=3), PartitionGauges(1, 0, None)],
        state_keys=12,
        state_bytes=3_400,
        restore_records_remaining=5,
    )
    counted.observer.on_gauges(gauges)
    assert counted("state_floor_lag_records", topic="in", partition="0") == 7
    assert counted("consumer_lag_records", topic="in", partition="0") == 3
    assert counted("consumer_lag_records", topic="in", partition="1") is None, "what is not known is not said"
    assert counted("state_floor_lag_records", topic="in", partition="1") == 0
    assert (counted("state_keys"), counted("state_bytes"), counted("restore_records_remaining")) == (12, 3_400, 5)
    counted.observer.on_rebalance()
    assert counted("rebalances_total") == 1
    assert counted("consumer_lag_records", topic="in", partition="0") == 3, "it may have stayed"
    counted.observer.on_close(0)
    for name in ("consumer_lag_records", "consumer_lag_seconds", "state_floor_lag_records"):
        assert counted(name, topic="in", partition="0") is None


def lag_s(counted: Counted, lag: int | None) -> float | None:
    counted.observer.on_gauges(Gauges([PartitionGauges(0, 0, lag)], 0, 0, 0))
    return counted("consumer_lag_seconds", topic="in", partition="0")


def commit(counted: Counted, *timestamps_ms: int) -> None:
    events = [Event(0, n, at_ms, b"a", b'{"amount":1}') for n, at_ms in enumerate(timestamps_ms)]
    counted.observer.on_commit(engine(NumpyStep()).process(batch(events)), plan_of(), 0.0)


def test_the_lag_in_seconds_is_the_age_of_the_last_committed_record_while_others_wait() -> None:
    counted = Counted()
    assert lag_s(counted, 0) == 0
    counted.now_s = 2_000.0
    assert lag_s(counted, 9) == 1_000, "of an unknown age, but not there when the lag was last 0"
    commit(counted, 1_300_000, 1_400_000)
    assert lag_s(counted, 7) == 600
    counted.now_s += 5
    assert lag_s(counted, 7) == 605, "nothing is committed: it grows"
    assert lag_s(counted, None) is None, "what is not known is not said"
    assert lag_s(counted, 0) == 0
    counted.now_s += 3
    commit(counted, 1_000_000)
    assert lag_s(counted, 1) == 3, "the lag was 0 then, whatever the record's timestamp says"


def test_the_lag_in_seconds_of_records_without_a_usable_timestamp() -> None:
    counted = Counted()
    assert lag_s(counted, 5) == 0, "first seen waiting now"
    counted.now_s += 4
    commit(counted, -1)
    assert lag_s(counted, 5) == 4
    commit(counted, 10**15)
    counted.now_s += 6
    assert lag_s(counted, 5) == 10, "a timestamp of the future says nothing"
    commit(counted, round(counted.now_s * 1000) - 50_000)
    counted.observer.on_close(0)
    assert lag_s(counted, 5) == 0, "it came back from another member"


TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_latency_has_the_trace_of_the_slowest_record_of_a_batch() -> None:
    events = [Event(0, n, at_ms, b"a", b'{"amount":1}') for n, at_ms in enumerate((999_000, -1, 997_000))]
    for headers, traced in (((("traceparent", TRACEPARENT),), True), ((("traceparent", b"\xff\n# 1"),), False)):
        counted = Counted()
        other = [("traceparent", TRACEPARENT.replace(b"4736", b"0000"))]
        records = batch(events, headers=[other, other, headers])
        counted.observer.on_commit(engine(NumpyStep()).process(records), plan_of(), 0.0)
        text = generate_openmetrics(counted.metrics.registry).decode()
        example = (
            'lstmstream_event_latency_seconds_bucket{le="5.0"} 2.0 # {span_id="00f067aa0ba902b7",'
            'trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 3.0 1000.0'
        )
        assert (example in text) is traced
        assert text.count("trace_id") == traced
        assert "trace_id" not in generate_latest(counted.metrics.registry).decode(), "the old format has no exemplars"


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01",
        b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        TRACEPARENT.upper(),
        TRACEPARENT + b"\n",
        TRACEPARENT[:-1],
    ],
)
def test_a_traceparent_that_is_none_is_no_trace(value: bytes | None) -> None:
    assert trace_of([("other", TRACEPARENT), ("traceparent", value)]) is None


def test_a_traceparent_of_a_later_version_may_be_longer() -> None:
    assert trace_of([("traceparent", b"cc" + TRACEPARENT[2:] + b"-more")]) is not None


def test_restores_and_stalled_fetches() -> None:
    counted = Counted()
    counted.observer.on_restored(Restored(0, 5, 1, 4, 1, duration_s=2.5))
    assert counted("restore_seconds") == 2.5
    counted.observer.on_stalled_fetch("seek")
    assert counted("stalled_fetches_total", action="seek") == 1
    assert counted("stalled_fetches_total", action="rejoin") == 0


def test_health_is_kept_true() -> None:
    now_s = [100.0]
    health = Health(stall_after=30.0, clock=lambda: now_s[0], blocked={})
    observer = HealthObserver(health)
    observer.on_phase("restoring")
    assert health.phase == "restoring"
    observer.on_blocked("restore", "2 partitions are being restored")
    assert health.readyz() == (False, ["2 partitions are being restored"])
    observer.on_unblocked("restore")
    assert health.readyz() == (True, [])
    now_s[0] += 31
    assert not health.livez()[0]
    observer.on_loop()
    assert health.livez()[0]


def test_a_timer_adds_up_and_begins_again() -> None:
    now_s = [0.0]
    timer = StageTimer(lambda: now_s[0])

    def fails() -> None:
        with timer("step"):
            now_s[0] += 2
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fails()
    with timer("step"):
        now_s[0] += 0.25
    assert dict(timer.take()) == {"step": 2.25}
    assert dict(timer.take()) == {}
