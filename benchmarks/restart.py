"""How long a daemon with many keys takes to stop and to start again, and what it costs, on this machine.

    python -m benchmarks.restart [--keys N] [--hidden H] [--partitions P] [--client NAME]
                                 [--snapshots] [--cold] [--checkout DIR ...] [--rounds R] [--json FILE]

One event for each of 1,000,000 keys, an LSTM of 64 units (512 bytes of state per key), 8 partitions; broker and daemon
share the cores. It measures a stop by SIGTERM, the start after it, a kill -9 under load, and the start after that.
`--snapshots`: with `state.dir`, and before the kill each partition has a snapshot of all its keys, in the page cache.
`--cold`: then another kill, and a start with the files of the broker and the snapshots out of the page cache.
`--checkout DIR` runs the daemon of another checkout. Given several times, the checkouts take turns, so that they can be
compared on a machine whose speed changes. The figures have no limits, since machines differ. But an answer that is
missing, doubled or has the wrong `steps` after a restart is exit code 1. Each wait has a time limit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import orjson
from kafka import KafkaConsumer, TopicPartition
from rich.console import Console
from rich.table import Table

from lstmstream.dev.broker import DevBroker
from lstmstream.model import load_model
from tests.broker.harness import RunningDaemon, create_topics, end_offsets, produce, write_config
from tests.models import random_model

ROOT = Path(__file__).resolve().parents[1]
NAME = "restart"
INSTANCE = {"group.instance.id": "restart-1", "session.timeout.ms": 30_000}  # a new process takes over at once
SHUTDOWN_TIMEOUT_S = 120
PROBES = 1_000  # keys whose answers are checked after each start
BUSY_KEYS = 100  # the first of the probes, which get more traffic before the kill
TRAFFIC = 20_000  # events on these; the daemon is killed once half of them are committed
KEYS_PER_S = 2_000  # slowest accepted rate of loading, serving and restoring; it only bounds the waits

Record = tuple[bytes | None, bytes | None, int | None, int]


class Answers:
    """Reads new predictions with read_committed and compares them with the events that were sent."""

    def __init__(self, servers: str, topic: str, partitions: int) -> None:
        """Starts at the end of the topic. Each key must have been answered exactly once so far."""
        self.first_s = 0.0  # monotonic time of the first answer after the last `expect`
        self._seen: Counter[bytes] = Counter()
        self._sent: Counter[bytes] = Counter()
        self._consumer = KafkaConsumer(
            bootstrap_servers=servers, isolation_level="read_committed", enable_auto_commit=False, fetch_max_wait_ms=20
        )
        ends = end_offsets(servers, topic, partitions=partitions)
        places = {TopicPartition(topic, number): end for number, end in ends.items()}
        self._consumer.assign(list(places))
        for place, end in places.items():
            self._consumer.seek(place, end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def expect(self, keys: Iterable[bytes]) -> None:
        """Expect one more answer for each of these keys, and record when the next answer arrives."""
        self._sent.update(keys)
        self.first_s = 0.0

    def complete(self) -> bool:
        """Read what is there; True once all events are answered. AssertionError for a duplicate or wrong `steps`."""
        self._read(20)
        return self._seen.total() == self._sent.total()

    def read_all_committed(self) -> None:
        """Read until nothing more arrives for a second."""
        while self._read(1000):
            pass

    def _read(self, timeout_ms: int) -> int:
        polled = self._consumer.poll(timeout_ms=timeout_ms, max_records=10_000)
        records = [record for records in polled.values() for record in records]
        if records and not self.first_s:
            self.first_s = time.monotonic()
        for record in records:
            key, steps = record.key, orjson.loads(record.value)["steps"]
            self._seen[key] += 1
            assert self._seen[key] <= self._sent[key], f"key {key!r} has more answers than events"
            right = 1 + self._seen[key]  # the initial load was its first event
            assert steps == right, (
                f"key {key!r}: steps is {steps} and should be {right}; its state was not restored correctly"
            )
        return len(records)


class Run:
    """One checkout, from an empty broker to the second restart. The results are in `found`."""

    def __init__(self, servers: str, folder: Path, checkout: Path, options: argparse.Namespace) -> None:
        self.found: dict[str, Any] = {}
        self._servers, self._folder, self._checkout = servers, folder, checkout
        self._keys, self._partitions = options.keys, options.partitions
        self._limit_s = 120 + options.keys / KEYS_PER_S  # of each wait
        model = random_model(folder, hidden=options.hidden, layers=1, numbers=("amount", "distance"))
        self.found["state_row_bytes"] = 4 * load_model(str(model)).card.state.size
        kafka: dict[str, Any] = {"properties": INSTANCE}
        if options.client is not None:
            kafka["client"] = options.client
        sections: dict[str, Any] = {"kafka": kafka}
        if options.snapshots:
            sections["state"] = {"dir": str(folder / "snapshots")}
        self._snapshots, self._cold = options.snapshots, options.cold
        self._config = write_config(folder / "restart.yaml", name=NAME, model=model, servers=servers, **sections)
        self._config.write_text(self._config.read_text() + f"shutdown_timeout: {SHUTDOWN_TIMEOUT_S}s\n")
        self._daemon: RunningDaemon | None = None
        self._start_count = 0
        self._probes = random.Random(0).sample(range(options.keys), min(PROBES, options.keys))

    def measure(self, say: Callable[[str], None]) -> None:
        """Run all phases. AssertionError for a wrong answer, an unexpected exit code, or a wait beyond its limit."""
        create_topics(self._servers, [f"{NAME}.in", f"{NAME}.out"], partitions=self._partitions)
        try:
            say(f"filling the topic with {self._keys} events")
            self._send(range(self._keys))
            self._backlog()
            say("all committed; stopping by SIGTERM")
            with Answers(self._servers, f"{NAME}.out", self._partitions) as answers:
                self._drain()
                answers.expect(self._send(self._probes))
                say("stopped; starting again")
                self._restart("after_sigterm", answers)
                lag = self._floor_lag()
                assert lag <= len(self._probes), f"after a clean stop there are {lag} records to replay"
                if self._snapshots:
                    say("restarted; waiting for snapshots")
                    self._wait_snapshots()
                say("restarted; killing under load")
                self._kill_under_load(answers)
                answers.expect(self._send(self._probes))
                say("killed; starting again")
                self._restart("after_kill9", answers)
                if self._cold:
                    say("restarted; killing once more, and emptying the page cache")
                    self._running.kill9()
                    forget_pages(self._folder)
                    answers.expect(self._send(self._probes))
                    self._restart("cold", answers)
            code = self._running.sigterm(SHUTDOWN_TIMEOUT_S + 15)
            assert code == 0, f"exit code {code} at the end\n{self._running.last_words()}"
        finally:
            if self._daemon is not None:
                self._daemon.kill9()

    @property
    def _running(self) -> RunningDaemon:
        assert self._daemon is not None
        return self._daemon

    def _start(self) -> RunningDaemon:
        self._start_count += 1
        log = self._folder / f"daemon-{self._start_count}.log"
        self._daemon = RunningDaemon(self._config, log, command=[*python_of(self._checkout), "run", str(self._config)])
        return self._daemon

    def _send(self, numbers: Iterable[int]) -> list[bytes]:
        """Send one event for each key number; returns the keys."""
        now_ms, sent = int(time.time() * 1000), []

        def records() -> Iterator[Record]:
            for count, number in enumerate(numbers):
                key = b"k%07d" % number
                sent.append(key)
                value = b'{"amount":%d.25,"distance":%d.5}' % (number % 1000, count % 100)
                yield key, value, now_ms + count // 100, number % self._partitions

        produce(self._servers, f"{NAME}.in", records())
        return sent

    def _backlog(self) -> None:
        """First start: serve the initial load until all of it is committed."""
        daemon = self._start()
        daemon.wait(lambda: daemon.count("events_total") >= self._keys, "all committed", self._limit_s)
        self.found["backlog_s"] = round(time.monotonic() - daemon.started, 1)
        counted = {name: daemon.count(f"{name}_total") for name in ("events", "predictions")}
        assert set(counted.values()) == {self._keys}, f"{counted} for {self._keys} keys"
        self.found["backlog_rss_mib"], self.found["backlog_rss_peak_mib"] = map(in_mib, daemon.memory())

    def _drain(self) -> None:
        """Stop by SIGTERM. Each key changed exactly once, so what is left to write is every state not written yet."""
        daemon = self._running
        due = self._keys - daemon.count("state_checkpoints_total")
        began_s = time.monotonic()
        code = daemon.sigterm(SHUTDOWN_TIMEOUT_S + 15)
        self.found["drain_s"] = round(time.monotonic() - began_s, 1)
        self.found |= {"drain_states_written": round(due), "drain_exit_code": code}
        assert code == 0, f"exit code {code} after SIGTERM\n{daemon.last_words()}"

    def _restart(self, how: str, answers: Answers) -> None:
        """Start again, and wait until it is ready and has answered the probes that are already in the topic."""
        daemon = self._start()
        ready_s = 0.0

        def done() -> bool:
            nonlocal ready_s
            if not ready_s and daemon.ready():
                ready_s = time.monotonic() - daemon.started
            return answers.complete() and ready_s > 0

        daemon.wait(done, f"ready, with all probes answered, {how}", self._limit_s)
        self._wait_gauges(how)
        rss, peak = daemon.memory()
        self.found |= {
            f"{how}_ready_s": round(ready_s, 1),
            f"{how}_first_answer_s": round(answers.first_s - daemon.started, 1),
            f"{how}_restore_seconds": round(daemon.count("restore_seconds"), 1),
            f"{how}_from_snapshot": self._from_snapshots(),
            f"{how}_cpu_s": round(daemon.cpu_s(), 1),
            f"{how}_rss_mib": in_mib(rss),
            f"{how}_rss_peak_mib": in_mib(peak),
            f"{how}_state_bytes_mib": in_mib(daemon.count("state_bytes")),
        }

    def _wait_gauges(self, how: str) -> None:
        """Check that all keys are in memory again, once the gauges (updated every second) show it."""
        daemon = self._running

        def right() -> bool:
            return bool(daemon.count("state_keys") == self._keys) and len(daemon.partitions()) == self._partitions

        daemon.wait(right, f"all {self._keys} keys in memory, {how} (/metrics: {daemon.count('state_keys'):g})", 10)

    def _wait_snapshots(self) -> None:
        """Until the newest ones have all keys: a partition is looked at once a minute."""
        daemon = self._running
        lines: list[dict[str, Any]] = []

        def complete() -> bool:
            nonlocal lines
            lines = [line for line in daemon.log_lines if line.get("message") == "snapshot written"]
            states: int = sum({line["partition"]: line["states"] for line in lines}.values())
            return bool(states >= self._keys)

        daemon.wait(complete, "snapshots of all keys", self._limit_s + 120)
        self.found["snapshots_mib"] = in_mib(sum({line["partition"]: line["bytes"] for line in lines}.values()))
        self.found["snapshot_longest_s"] = max(line["duration_s"] for line in lines)

    def _kill_under_load(self, answers: Answers) -> None:
        """Send more events for a few keys; kill -9 as soon as half of them are committed."""
        daemon = self._running
        before = daemon.count("events_total")
        busy = self._probes[:BUSY_KEYS]
        answers.expect(self._send(busy[count % len(busy)] for count in range(TRAFFIC)))
        daemon.wait(lambda: daemon.count("events_total") >= before + TRAFFIC / 2, "half answered", self._limit_s)
        daemon.kill9()
        answers.read_all_committed()

    def _from_snapshots(self) -> int:
        """States that the last start had from snapshots."""
        lines = [line for line in self._running.log_lines if line.get("message") == "partition restored"]
        return sum(line.get("from_snapshot") or 0 for line in lines)

    def _floor_lag(self) -> int:
        """Input records that a restart would have to replay, all partitions together."""
        samples = self._running.metrics()
        return round(sum(value for (name, _), value in samples.items() if name == "lstmstream_state_floor_lag_records"))


def forget_pages(folder: Path) -> None:
    """Take all files below the folder out of the page cache."""
    os.sync()  # pages that are not on the disk yet would stay
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def in_mib(size: float) -> int:
    """Bytes as whole MiB."""
    return round(size / 2**20)


def disk_mib(folder: Path) -> int:
    """Disk usage of a folder whose files may change meanwhile."""
    answer = subprocess.run(["du", "-sm", str(folder)], check=False, capture_output=True, text=True)
    return int(answer.stdout.split()[0])


def python_of(checkout: Path) -> list[str]:
    """Command that runs `lstmstream` from this checkout. -P keeps the current folder out of the import path."""
    return ["env", f"PYTHONPATH={checkout}", sys.executable, "-P", "-m", "lstmstream"]


def commit_of(checkout: Path) -> str:
    """The checkout's commit, with `+` if files are changed. SystemExit if lstmstream is not imported from there."""
    command = [*python_of(checkout)[:-2], "-c", "import lstmstream; print(lstmstream.__file__)"]
    found = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    if not found.is_relative_to(checkout):
        sys.exit(f"--checkout {checkout}: Python imports lstmstream from {found}; give the root folder of a checkout")
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
    described = subprocess.run(git, check=False, capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


def measure(checkout: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run on a broker of its own; the broker and its data are removed afterwards."""
    found: dict[str, Any] = {"commit": commit_of(checkout), "client": options.client or "auto"}
    with tempfile.TemporaryDirectory(prefix="lstmstream-restart-") as temporary:
        broker = DevBroker(Path(temporary) / "broker")
        try:
            run = Run(broker.up(port=0), Path(temporary), checkout, options)
            run.measure(lambda line: print(f"[{found['commit']}] {line}", file=sys.stderr, flush=True))
            found |= run.found | {"broker_disk_mib": disk_mib(broker.home)}
        finally:
            broker.down(wipe=True)
    return found


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """The machine and the options that the figures belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "processor": (names or [platform.machine()])[0],
        "load_before": round(os.getloadavg()[0], 1),
        "keys": options.keys,
        "hidden": options.hidden,
        "partitions": options.partitions,
    }


def show(setup: dict[str, Any], runs: Sequence[dict[str, Any]]) -> None:
    """Print a table with one column per run."""
    title = f"{setup['keys']:,} keys, {setup['partitions']} partitions; {setup['cores']} cores, {setup['processor']}"
    table = Table("measured", *(run["commit"] for run in runs), title=title)
    for name in runs[0]:
        if name != "commit":
            table.add_row(name, *(str(run[name]) for run in runs))
    Console(width=140).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys, one event each (1000000)")
    parser.add_argument("--hidden", type=int, default=64, help="units of the LSTM; 8 bytes of state each (64)")
    parser.add_argument("--partitions", type=int, default=8, help="partitions of each topic (8)")
    parser.add_argument("--client", choices=("kafka-python", "confluent"), help="kafka.client of the daemon (auto)")
    parser.add_argument("--snapshots", action="store_true", help="with local snapshots of the states")
    parser.add_argument("--cold", action="store_true", help="and a start with an empty page cache")
    parser.add_argument(
        "--checkout", type=Path, action="append", help="root folder of a checkout; may be repeated (this one)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="runs per checkout (1)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if not BUSY_KEYS <= options.keys <= 10_000_000:
        parser.error(f"--keys should lie between {BUSY_KEYS} and 10000000")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that broker and daemon are stopped too
    checkouts = [path.resolve() for path in options.checkout or [ROOT]]
    setup: dict[str, Any] = machine(options)
    runs: list[dict[str, Any]] = []
    try:
        for checkout in checkouts * options.rounds:
            runs.append(measure(checkout, options))  # noqa: PERF401 - earlier runs are shown even if a later one fails
    except AssertionError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        if runs:
            show(setup, runs)
    if options.json:
        options.json.write_text(json.dumps({"setup": setup, "runs": runs}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
