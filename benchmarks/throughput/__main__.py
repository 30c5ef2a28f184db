"""How many events per second the daemon and other ways to do the same score, and what it costs, on this machine.

    python -m benchmarks.throughput [--quick] [--rounds N] [--apps NAME,...] [--latency RATE] [--idle]

Starts a broker of its own, loads a topic, and in interleaved rounds has each app read the topic, run one step of the
same model per event with a state per key, and write one record per event. What counts is the growth of the output topic
as a read_committed reader sees it, after a warm-up; CPU and memory are those of the app with all its processes. The
answers of each app are compared with the same scores, computed event by event. A peer that cannot be built is named
with its reason. Writes results.json, results.md and throughput.svg. Exit code 1 if an app's answers were wrong.

Everything is bounded in time, and ends with this program.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from benchmarks.throughput import report
from benchmarks.throughput.answers import Sample
from benchmarks.throughput.apps import REFERENCE, App, Job, choose_apps, find_abilities, make_apps
from benchmarks.throughput.environments import BuildFailed
from benchmarks.throughput.latency import SHARES_OF_PEAK, measure_idle, measure_latency
from benchmarks.throughput.machine import describe_machine, describe_versions
from benchmarks.throughput.measuring import AppFailed, Bench, Figures, Window, measure
from benchmarks.throughput.models import Models, write_models
from benchmarks.throughput.options import CACHE, parse_options
from benchmarks.throughput.plot import Bar, bar_chart, plain_label
from benchmarks.throughput.processes import Guard
from benchmarks.throughput.topics import Topics
from benchmarks.throughput.workload import Workload, load_topic
from lstmstream.dev.broker import DevBroker

INPUT = "events"
# In the warm-up caches fill, and most of the keys get their state.
WINDOW, QUICK_WINDOW = Window(warm_s=5, length_s=10), Window(warm_s=1, length_s=3)
LATENCY_S, QUICK_LATENCY_S = 20.0, 5.0
IDLE_S, QUICK_IDLE_S = 30.0, 10.0
INTERRUPTED = 130


def say(line: str) -> None:
    """Progress, apart from the results."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


class BenchmarkRun:
    """One run of the benchmark on a broker with the loaded topic."""

    def __init__(self, options: Namespace, apps: Sequence[App], models: Models, bench: Bench) -> None:
        self.figures: list[Figures] = []
        self.latencies: list[dict[str, Any]] = []
        self.idle: list[dict[str, Any]] = []
        self.failures: defaultdict[str, list[str]] = defaultdict(list)  # reasons by app
        self.missing: list[str] = []  # the same in order, with what was to be measured
        self.wrong: list[str] = []
        self._options, self._apps, self._models, self._bench = options, apps, models, bench
        self._ends_at = time.monotonic() + 60 * options.minutes
        self._jobs = 0

    def run_all(self) -> None:
        """What the options ask for."""
        self.run_throughput(INPUT)
        if self._options.latency:
            self.run_latency(self._options.latency)
        if self._options.idle:
            self.run_idle()

    def run_throughput(self, input_topic: str) -> None:
        """All rounds. An app that cannot be built is not tried again."""
        window = QUICK_WINDOW if self._options.quick else WINDOW
        for number in range(self._options.rounds):
            turn = number % len(self._apps)
            for app in [*self._apps[turn:], *self._apps[:turn]]:  # each app is first once, if there are enough rounds

                def measured(job: Job, app: App = app, number: int = number) -> str:
                    job = replace(job, input=input_topic)
                    found = measure(app, job, number, window, self._bench)
                    self.figures.append(found)
                    self.wrong += [f"{app.name}: {problem}" for problem in found.check.problems[:3]]
                    return (
                        f"{found.events_per_s:,.0f} events/s, {found.cpu_s_per_million:.1f} CPU s per million,"
                        f" {found.check.compared} answers compared"
                    )

                self._run(app, f"round {number + 1}", measured)

    def run_latency(self, rate: float) -> None:
        """The fixed rate, then shares of the app's own median throughput where it was measured."""
        seconds = QUICK_LATENCY_S if self._options.quick else LATENCY_S
        peaks = {found.app.name: found.events_per_s.median for found in report.summarize(self._apps, self.figures)}
        for app in self._latency_apps():
            shares = [share * peaks[app.name] for share in SHARES_OF_PEAK] if app.name in peaks else []
            for wanted in [rate, *shares]:

                def measured(job: Job, app: App = app, wanted: float = wanted) -> str:
                    found = measure_latency(app, job, wanted, seconds, self._bench, self._workload())
                    self.latencies.append(found)
                    return f"{found['latency_ms']} ms, {found['cores']} cores"

                self._run(app, f"latency at {wanted:,.0f} events/s", measured)

    def run_idle(self) -> None:
        """The daemon's variants."""
        seconds = QUICK_IDLE_S if self._options.quick else IDLE_S
        for app in [app for app in self._apps if app.is_daemon]:

            def measured(job: Job, app: App = app) -> str:
                found = measure_idle(app, job, seconds, self._bench, self._workload())
                self.idle.append(found)
                return f"{found['cores']} cores"

            self._run(app, "idle", measured)

    def _latency_apps(self) -> list[App]:
        """The daemon's variants; with --apps, what was asked for."""
        return [app for app in self._apps if app.is_daemon or self._options.apps is not None]

    def _workload(self) -> Workload:
        return Workload(1_000_000, self._options.keys, self._options.zipf)

    def _run(self, app: App, what: str, measured: Callable[[Job], str]) -> None:
        """Run one app in a folder of its own, and clear away its topics."""
        if time.monotonic() > self._ends_at:
            self._fail(app, what, "the time was up")
            return
        if any(reason.startswith("cannot be built") for reason in self.failures[app.name]):
            return
        self._jobs += 1
        group = f"app-{self._jobs}"
        folder = self._bench.folder / group
        (folder / "state").mkdir(parents=True)
        topics = self._bench.topics
        job = Job(topics.servers, f"{group}.in", f"{group}.out", group, self._options.partitions, folder, self._models)
        try:
            say(f"{what}, {app.name}: {measured(job)}")
        except BuildFailed as error:
            self._fail(app, what, f"cannot be built: {error}")
        except (AppFailed, KafkaException, RuntimeError) as error:
            self._fail(app, what, str(error) or type(error).__name__)
        finally:
            topics.delete_all_but(INPUT)
            shutil.rmtree(folder, ignore_errors=True)

    def _fail(self, app: App, what: str, reason: str) -> None:
        say(f"{what}, {app.name}: {reason}")
        self.failures[app.name].append(reason)
        self.missing.append(f"{what}, {app.name}: {reason}")


def write_results(options: Namespace, done: BenchmarkRun, apps: Sequence[App], result: dict[str, Any]) -> str:
    """The three files; return the Markdown."""
    options.out.mkdir(parents=True, exist_ok=True)
    summaries = report.summarize(apps, done.figures)
    sections: list[tuple[str, str]] = []
    if options.rounds:
        sections.append(("Throughput", report.throughput_table(apps, summaries, done.failures)))
    if done.latencies:
        sections.append(("Latency to a read_committed reader", report.latency_table(apps, done.latencies)))
    if done.idle:
        sections.append(("CPU without input", report.idle_table(apps, done.idle)))
    if done.missing:
        sections.append(("Not measured", "\n".join(f"- {line}" for line in done.missing)))
    text = report.markdown(result, sections)
    (options.out / "results.md").write_text(text)
    (options.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    if summaries:
        bars = [
            Bar(
                f"{plain_label(found.app.title)} ({found.app.guarantee.replace('none', 'no guarantee')})",
                found.events_per_s,
                "own" if found.app.is_daemon else "reference" if found.app.name == REFERENCE else "other",
            )
            for found in summaries
        ]
        note = f"{result['machine']['processor']}, {result['machine']['cores']} cores; LSTM of"
        count = result["workload"]["rounds"]
        rounds = f"median and range of {count} rounds" if count > 1 else "one round"
        note += f" {options.layers} x {options.hidden} units; {rounds}"
        (options.out / "throughput.svg").write_text(bar_chart("Events per second", note, bars))
    return text


def run(options: Namespace, apps: Sequence[App], version: str) -> int:
    """Everything, from the broker's start to the files."""
    workload = Workload(options.events, options.keys, options.zipf)
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": describe_machine(),
        "versions": describe_versions(version),
        "workload": {
            name: getattr(options, name)
            for name in ("events", "keys", "zipf", "partitions", "hidden", "layers", "rounds", "quick")
        }
        | {"event_bytes": workload.event_bytes()},
    }
    with tempfile.TemporaryDirectory(prefix="lstmstream-throughput-") as temporary, Guard() as guard:
        folder = Path(temporary)
        models = write_models(folder, hidden=options.hidden, layers=options.layers)
        broker = DevBroker(folder / "broker")
        try:
            servers = broker.up(port=0)
            pid = broker.status().pid
            assert pid is not None
            guard.add(pid)
            topics, sample = Topics(servers, options.partitions), Sample(workload)
            if options.rounds:
                say(f"loading {workload.events:,} events")
                topics.create(INPUT)
                load_topic(servers, INPUT, workload, sample.see)
                written = topics.committed_end(INPUT)
                if written != workload.events:
                    raise RuntimeError(f"{written} events are in the topic, and should be {workload.events}")
                sample.score(models.plain)
            bench = Bench(topics, INPUT, pid, folder, guard, sample, options.events)
            done = BenchmarkRun(options, apps, models, bench)
            try:
                done.run_all()
            except KeyboardInterrupt:
                result["stopped"] = True
                say("stopped; these are the results so far")
        finally:
            broker.down()
    result["workload"]["rounds"] = len({found.round for found in done.figures})
    result |= {
        "throughput": [found.as_json() for found in done.figures],
        "latency": done.latencies,
        "idle": done.idle,
        "not_measured": done.missing,
        "problems": done.wrong,
    }
    print(write_results(options, done, apps, result))
    say(f"results are in {options.out}")
    if done.wrong:
        return 1
    return INTERRUPTED if result.get("stopped") else 0


def print_names(apps: Iterable[App]) -> None:
    """For --list."""
    for app in apps:
        print(f"{app.name:50} {plain_label(app.title)}, {app.guarantee}; state: {app.state}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parse_options(__doc__ or "", arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    abilities = find_abilities()
    try:
        apps = choose_apps(make_apps(abilities, CACHE), options.apps)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        print_names(apps)
        return 0
    try:
        return run(options, apps, abilities.version)
    except KeyboardInterrupt:  # before there are results
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
