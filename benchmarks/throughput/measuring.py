"""The throughput of one app in one round: the growth of its output topic, as a read_committed reader sees it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.throughput.answers import Check, Sample, check_output
from benchmarks.throughput.apps import App, Job
from benchmarks.throughput.processes import Guard, Program, Usage, machine_busy_s, usage_of
from benchmarks.throughput.topics import Topics

START_S = 90.0  # until the first committed record
POLL_S = 0.1
SLOW_COMMITS_S = 20.0  # an app that commits seldom is watched so much longer, until it has committed twice
MOST_OF_INPUT = 0.95  # then the measurement ends, before the app runs dry
WARM_PART = 0.2  # of the input, where it is read before the warm-up has passed


class AppFailed(Exception):
    """An app gave no figure; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Window:
    """When the measurement begins after the first committed record, and how long it takes."""

    warm_s: float
    length_s: float


@dataclass(frozen=True, slots=True)
class Point:
    """What was seen when the output had just grown."""

    time_s: float
    records: int
    app: Usage
    broker_s: float
    machine_s: float


@dataclass(slots=True)
class Figures:
    """One app in one round."""

    app: str
    round: int
    events_per_s: float
    cpu_s_per_million: float
    peak_rss_mib: float
    app_cores: float
    broker_cores: float
    other_cores: float  # all other programs of the machine
    window_s: float
    first_answer_s: float
    check: Check = field(default_factory=Check)

    @property
    def broker_share(self) -> float:
        """Of the CPU time that app and broker used together."""
        return self.broker_cores / ((self.app_cores + self.broker_cores) or 1)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"broker_share": self.broker_share}


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements share."""

    topics: Topics
    input: str
    broker_pid: int
    folder: Path
    guard: Guard
    sample: Sample
    events: int


def measure(app: App, job: Job, number: int, window: Window, bench: Bench) -> Figures:
    """Run the app on the whole input until the window is over. Raises AppFailed, or BuildFailed from its command."""
    window = replace(window, warm_s=window.warm_s * app.warm_up_factor)
    command = app.command(job)
    bench.topics.create(job.output)
    started = time.monotonic()
    with Program(command, app.variables(job), job.folder / "output.log", bench.guard) as program:
        points = _watch(program, job, window, bench, started)
    figures = _figures(app, number, points, window, bench.events)
    figures.first_answer_s = points[0].time_s - started
    figures.check = check_output(bench.topics, job.output, bench.sample, app.guarantee)
    figures.events_per_s *= figures.check.records_per_offset
    figures.cpu_s_per_million /= figures.check.records_per_offset
    return figures


def _watch(program: Program, job: Job, window: Window, bench: Bench, started: float) -> list[Point]:
    points: list[Point] = []
    while True:
        time.sleep(POLL_S)
        records, now = bench.topics.committed_end(job.output), time.monotonic()
        if program.exit_code is not None:
            raise AppFailed(f"ended with code {program.exit_code}: {program.last_words()}")
        if records > (points[-1].records if points else 0):
            points.append(Point(now, records, program.usage(), usage_of(bench.broker_pid).cpu_s, machine_busy_s()))
        if not points:
            if now - started > START_S:
                raise AppFailed(f"no committed record within {START_S:g} s: {program.last_words()}")
            continue
        since_first = now - points[0].time_s
        ended = since_first > window.warm_s + window.length_s
        enough = len(_in_window(points, window, bench.events)) > 1
        too_slow = since_first > window.warm_s + window.length_s + SLOW_COMMITS_S
        if (ended and enough) or too_slow or records > MOST_OF_INPUT * bench.events:
            return points


def _in_window(points: list[Point], window: Window, events: int) -> list[Point]:
    """Without the warm-up, which ends early if the input would not last."""
    warm = [
        point
        for point in points
        if point.time_s - points[0].time_s >= window.warm_s or point.records > WARM_PART * events
    ]
    return warm if len(warm) > 1 else []


def _figures(app: App, number: int, points: list[Point], window: Window, events: int) -> Figures:
    """From the first to the last commit in the window: whole intervals, however seldom the app commits."""
    measured = _in_window(points, window, events)
    if not measured:
        raise AppFailed(f"committed {len(points)} times only, too seldom for a window of {window.length_s:g} s")
    first, last = measured[0], measured[-1]
    records, seconds = last.records - first.records, last.time_s - first.time_s
    app_s, broker_s = last.app.cpu_s - first.app.cpu_s, last.broker_s - first.broker_s
    return Figures(
        app=app.name,
        round=number,
        events_per_s=records / seconds,
        cpu_s_per_million=app_s / records * 1e6,
        peak_rss_mib=max(point.app.peak_rss_bytes for point in points) / 2**20,
        app_cores=app_s / seconds,
        broker_cores=broker_s / seconds,
        other_cores=max(0.0, last.machine_s - first.machine_s - app_s - broker_s) / seconds,
        window_s=seconds,
        first_answer_s=0.0,
    )
