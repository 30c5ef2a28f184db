"""Latency at a fixed rate: from the moment at which an event is sent to a read_committed reader in its own process.

The time of sending is in the record, in seconds with six decimals where the event's time is otherwise, and every app
carries it into its answer. Sender and reader use the same machine's clock.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer

from benchmarks.throughput.apps import App, Job
from benchmarks.throughput.measuring import AppFailed, Bench
from benchmarks.throughput.processes import Program, machine_busy_s, usage_of
from benchmarks.throughput.spread import percentiles_ms
from benchmarks.throughput.topics import Topics
from benchmarks.throughput.workload import LOG_LEVEL, Event, Workload

SHARES_OF_PEAK = (0.1, 0.5, 0.9)
START_S = 90.0
SETTLE_S = 3.0  # at the full rate, before anything counts
TAIL_S = 5.0  # for the last answers
SENDING_INTERVAL_S = 0.001
PREPARED = 100_000  # events made beforehand, then sent again and again
SAMPLES_PER_S = 20_000  # of the answers, so that the reader keeps up


class Sender:
    """Sends events at a rate, each with its time in the record."""

    def __init__(self, servers: str, topic: str, workload: Workload) -> None:
        self._topic = topic
        prepared = islice(workload.make_events(), PREPARED)
        self._events: Iterator[Event] = cycle([event for _, event in prepared])
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                "log_level": LOG_LEVEL,
                "partitioner": "murmur2_random",
                "linger.ms": 1,  # with 0 the broker would be busy with batches of one event
                "queue.buffering.max.messages": 1_000_000,
            }
        )

    def send(self, count: int) -> None:
        """So many events now."""
        for event in islice(self._events, count):
            self._producer.produce(self._topic, event.value(b"%.6f" % time.time()), event.key)
        self._producer.poll(0)

    def keep_rate(self, rate: float, seconds: float) -> int:
        """Send at the rate for a while; return the number of events, which is smaller if the rate is too high."""
        began, sent = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            due = min(int(passed * rate) - sent, 5000)
            self.send(due)
            sent += due
            time.sleep(SENDING_INTERVAL_S)
        return sent

    def flush(self) -> None:
        """Until all has been written."""
        self._producer.flush(30)


@contextmanager
def _answering(app: App, job: Job, bench: Bench, workload: Workload) -> Iterator[tuple[Program, Sender]]:
    """The app, started on an empty topic, once it has answered; and what sends it events."""
    command = app.command(job)
    bench.topics.create(job.input)
    bench.topics.create(job.output)
    sender = Sender(bench.topics.servers, job.input, workload)
    with Program(command, app.variables(job), job.folder / "output.log", bench.guard) as program:
        await_first_answer(program, sender, job, bench.topics)
        yield program, sender


def measure_latency(
    app: App, job: Job, rate: float, seconds: float, bench: Bench, workload: Workload
) -> dict[str, Any]:
    """Start the app on an empty topic and send at `rate`. Raises AppFailed, or BuildFailed from the app's command."""
    with _answering(app, job, bench, workload) as (program, sender):
        found_at = job.folder / "latency.json"
        with Program(_reader_command(job, rate, found_at), {}, job.folder / "reader.log", bench.guard) as reader:
            _await(found_at.with_suffix(".ready").exists, START_S, "the reader")
            sender.keep_rate(rate, SETTLE_S)
            before, began = _cpu_seconds(program, bench), time.time()
            sent = sender.keep_rate(rate, seconds)
            after, ended = _cpu_seconds(program, bench), time.time()
            sender.flush()
            time.sleep(TAIL_S)
            if reader.exit_code is not None:
                raise AppFailed(f"the reader ended: {reader.last_words()}")
            found_at.with_suffix(".stop").touch()
            _await(found_at.exists, 30, "the reader's figures")
        if program.exit_code is not None:
            raise AppFailed(f"ended with code {program.exit_code}: {program.last_words()}")
    samples = np.array(json.loads(found_at.read_text()))
    counted = samples[(samples[:, 0] >= began) & (samples[:, 0] < ended)] if len(samples) else samples
    if not len(counted):
        raise AppFailed("no answer to the events of the measured time was seen")
    cores = {name: round((after[name] - before[name]) / (ended - began), 3) for name in after}
    return {
        "app": app.name,
        "wanted_events_per_s": round(rate),
        "events_per_s": round(sent / (ended - began)),
        **cores,
        "answered_share": round(min(1.0, len(counted) * sampling_interval(rate) / sent), 3),
        "latency_ms": percentiles_ms(counted[:, 1] - counted[:, 0]),
    }


def _cpu_seconds(program: Program, bench: Bench) -> dict[str, float]:
    """Of the app, the broker and the whole machine, so far; on a machine that is full the latency says little."""
    return {
        "cores": program.usage().cpu_s,
        "broker_cores": usage_of(bench.broker_pid).cpu_s,
        "machine_cores": machine_busy_s(),
    }


def await_first_answer(program: Program, sender: Sender, job: Job, topics: Topics) -> None:
    """Send a few events until the app answers. Raises AppFailed."""

    def answered() -> bool:
        if program.exit_code is not None:
            raise AppFailed(f"ended with code {program.exit_code}: {program.last_words()}")
        sender.send(20)
        time.sleep(0.5)
        return topics.committed_end(job.output) > 0

    _await(answered, START_S, "the first answer")


def _await(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AppFailed(f"{what} did not come within {seconds:g} s")
        time.sleep(0.05)


def sampling_interval(rate: float) -> int:
    """The reader looks at each n-th answer only."""
    return max(1, int(rate / SAMPLES_PER_S))


def _reader_command(job: Job, rate: float, found_at: Path) -> list[str]:
    arguments = (job.servers, job.output, job.partitions, sampling_interval(rate), found_at)
    return [sys.executable, "-m", "benchmarks.throughput.latency_reader", *map(str, arguments)]


def measure_idle(app: App, job: Job, seconds: float, bench: Bench, workload: Workload) -> dict[str, Any]:
    """CPU of the app without input, after it has answered some events. Raises AppFailed."""
    with _answering(app, job, bench, workload) as (program, _):
        time.sleep(SETTLE_S)
        before, broker = program.usage(), usage_of(bench.broker_pid)
        time.sleep(seconds)
        if program.exit_code is not None:
            raise AppFailed(f"ended with code {program.exit_code}: {program.last_words()}")
        cores = (program.usage().cpu_s - before.cpu_s) / seconds
        broker_cores = (usage_of(bench.broker_pid).cpu_s - broker.cpu_s) / seconds
    return {"app": app.name, "seconds": seconds, "cores": round(cores, 4), "broker_cores": round(broker_cores, 4)}
