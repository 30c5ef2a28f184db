"""How fast the daemon is and what it costs, on this machine: throughput, latency, CPU, memory, restarts.

    python -m benchmarks.speed [--client auto] [--events N] [--seconds S] [--bootstrap-servers HOST:PORT] [--json FILE]

One daemon, an LSTM of 64 units, 100,000 keys whose frequencies follow Zipf's law, events of about 157 bytes of JSON, 4
partitions, client, broker and daemon on the same cores. Prints a table, then the same numbers as JSON. Judges nothing:
absolute figures differ from machine to machine. Ends by itself after a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from kafka.partitioner.default import murmur2
from rich.console import Console
from rich.table import Table

from benchmarks.parity import some_broker
from tests.broker import harness
from tests.broker.harness import Follower, Producing, RunningDaemon, Samples, create_topics, produce, write_config
from tests.models import random_model

PARTITIONS = 4
KEYS = 100_000
HIDDEN = 64
RATE = 2_000  # events a second, for latency, CPU and restarts
ZIPF = 1.1
WARM_S = 3.0  # of the steady stream, before latency counts
INSTANCE = {"group.instance.id": "speed-1", "session.timeout.ms": 10_000}  # as one would run a single daemon


class Keys:
    """The keys, how often each occurs, and where it belongs."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(64)
        self.names = [b"c%06d" % number for number in range(KEYS)]
        self.partitions = [(murmur2(name) & 0x7FFFFFFF) % PARTITIONS for name in self.names]
        weights = 1 / np.arange(1, KEYS + 1) ** ZIPF
        self._sums = np.cumsum(weights / weights.sum())
        self._places = self._random.permutation(KEYS)

    def draw(self, count: int) -> list[int]:
        """Keys of so many events, by number."""
        ranks = np.minimum(np.searchsorted(self._sums, self._random.random(count)), KEYS - 1)
        numbers: list[int] = self._places[ranks].tolist()
        return numbers

    def event(self, number: int, key: int, time_ms: int) -> tuple[bytes, bytes, int, int]:
        """Key, value (about 157 bytes), timestamp and partition of one event."""
        amount = (number * 7919 % 100_000) / 100
        value = (
            b'{"transaction_id":%d,"customer_id":"c%06d","terminal_id":"t%06d","time":%d,"amount":%.2f,"distance":%.2f,'
            b'"shop":"fuel","entry":"chip"}'
        ) % (1_000_000 + number, key, number * 31 % 10_000, time_ms, amount, amount / 10)
        return self.names[key], value, time_ms, self.partitions[key]


class Answers:
    """When each answer was seen, by the input's partition in order; one answer an event, since that is promised."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = [[] for _ in range(PARTITIONS)]

    def take(self, records: list[Any]) -> None:
        """For a follower."""
        now = time.time()
        for record in records:
            self.seen[record.partition].append(now)

    def last(self) -> float:
        """When the newest was seen."""
        return max((times[-1] for times in self.seen if times), default=0.0)


class Steady(Thread):
    """Sends RATE events a second until stopped, and notes when each went out, by partition in order."""

    def __init__(self, servers: str, topic: str, keys: Keys) -> None:
        super().__init__(daemon=True)
        self.sent: list[list[float]] = [[] for _ in range(PARTITIONS)]
        self.error: BaseException | None = None
        self._servers, self._topic, self._keys = servers, topic, keys
        self._ending = Event()

    def run(self) -> None:
        """The thread."""
        began, number = time.monotonic(), 0
        try:
            with Producing(self._servers, self._topic, linger_ms=0) as producer:
                while not self._ending.wait(0.002):
                    due = int((time.monotonic() - began) * RATE) - number
                    for key in self._keys.draw(due):
                        now = time.time()
                        record = self._keys.event(number, key, int(now * 1000))
                        producer.send(*record)
                        self.sent[record[3]].append(now)
                        number += 1
                producer.flush()
        except BaseException as error:  # raised again by finish
            self.error = error

    def finish(self) -> None:
        """Send no more."""
        self._ending.set()
        self.join(60)
        if self.error is not None:
            raise self.error


class Bench:
    """The measurements in their order; each adds to `found`."""

    def __init__(self, servers: str, name: str, folder: Path, say: Callable[[str], None]) -> None:
        self.found: dict[str, Any] = {}
        self._servers, self._name, self._say, self._folder = servers, name, say, folder
        self._keys, self._answers = Keys(), Answers()
        model = random_model(folder, hidden=HIDDEN, layers=1, numbers=("amount", "distance"))
        kafka = {"properties": INSTANCE}
        self._config = write_config(folder / "speed.yaml", name=name, model=model, servers=servers, kafka=kafka)
        self._daemons = 0
        self.daemon: RunningDaemon | None = None
        create_topics(servers, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
        self._in_topic = [0] * PARTITIONS

    def run(self, events: int, seconds: float) -> dict[str, Any]:
        """All of it."""
        try:
            self._fill(events)
            with Follower(self._servers, f"{self._name}.out", partitions=PARTITIONS, take=self._answers.take) as reader:
                self._backlog(events + KEYS, reader)
                self._steady(seconds)
        finally:
            if self.daemon is not None:
                self.daemon.kill9()
        return self.found

    def _fill(self, events: int) -> None:
        """Every key once, then Zipf's choice."""
        now, sizes = int(time.time() * 1000), 0

        def records() -> Iterator[tuple[bytes, bytes, int, int]]:
            nonlocal sizes
            for number, key in enumerate([*range(KEYS), *self._keys.draw(events)]):
                record = self._keys.event(number, key, now + number // 100)
                sizes += len(record[1])
                self._in_topic[record[3]] += 1
                yield record

        produce(self._servers, f"{self._name}.in", records())
        self.found["event_bytes"] = round(sizes / (events + KEYS))
        self._say(f"a backlog of {events + KEYS} events is written")

    def _start(self) -> float:
        self._daemons += 1
        self.daemon = RunningDaemon(self._config, self._folder / f"daemon-{self._daemons}.log")
        return self.daemon.wait_ready()

    def _backlog(self, total: int, reader: Follower) -> None:
        """Throughput: from ready to all committed, by the daemon's own count; and where the time went."""
        ready_s = self._start()
        daemon = self.daemon
        assert daemon is not None
        began, cpu = time.monotonic(), daemon.cpu_s()
        first = daemon.metrics()["lstmstream_events_total", ()]
        while (samples := daemon.metrics())["lstmstream_events_total", ()] < total:
            assert time.monotonic() - began < 600, f"only {samples['lstmstream_events_total', ()]} events in 600 s"
            time.sleep(0.1)
        took = time.monotonic() - began
        batches = samples["lstmstream_batch_events_count", ()]
        self.found |= {
            "backlog_events": total,
            "throughput_events_per_s": round((total - first) / took),
            "backlog_cpu_cores": round((daemon.cpu_s() - cpu) / took, 2),
            "cpu_us_per_event": round((daemon.cpu_s() - cpu) / (total - first) * 1e6, 1),
            "events_per_batch": round(samples["lstmstream_batch_events_sum", ()] / batches),
            "first_start_ready_s": round(ready_s, 2),
            "stage_share_percent": _stages(samples),
            "state_keys": round(samples["lstmstream_state_keys", ()]),
            "state_mib": round(samples["lstmstream_state_bytes", ()] / 2**20, 1),
        }
        reader.wait_for(total)
        self.found["rss_mib"], self.found["rss_peak_mib"] = (round(size / 2**20) for size in daemon.memory())
        self._say(f"backlog served in {took:.1f} s")

    def _steady(self, seconds: float) -> None:
        """RATE events a second: latency and CPU, then restarts while the stream goes on."""
        steady = Steady(self._servers, f"{self._name}.in", self._keys)
        steady.start()
        try:
            time.sleep(WARM_S)
            self._latency(seconds, steady)
            self._restart("sigterm", lambda daemon: daemon.sigterm())
            time.sleep(3)
            self._restart("kill9", _kill)
            time.sleep(3)
        finally:
            steady.finish()
        daemon = self.daemon
        assert daemon is not None
        self.found["exit_code"] = daemon.sigterm()

    def _latency(self, seconds: float, steady: Steady) -> None:
        daemon = self.daemon
        assert daemon is not None
        before, cpu, began = daemon.metrics(), daemon.cpu_s(), time.time()
        time.sleep(seconds)
        after, ended = daemon.metrics(), time.time()
        cores = (daemon.cpu_s() - cpu) / (ended - began)
        time.sleep(2)  # the last answers
        latencies = []
        for partition, sent in enumerate(steady.sent):
            seen = self._answers.seen[partition][self._in_topic[partition] :]
            latencies += [(s - t) * 1000 for t, s in zip(list(sent), seen, strict=False) if began <= t < ended - 1]
        events = after["lstmstream_events_total", ()] - before["lstmstream_events_total", ()]
        self.found |= {
            "steady_events_per_s": round(events / (ended - began)),
            "latency_ms": {name: round(float(np.percentile(latencies, q)), 1) for name, q in _QUANTILES.items()},
            "daemon_latency_ms": {name: _quantile(before, after, q / 100) for name, q in _QUANTILES.items()},
            "steady_cpu_cores": round(cores, 2),
            "steady_events_per_batch": round(events / _difference(before, after, "lstmstream_batch_events_count"), 1),
            "steady_stage_share_percent": _stages(after, before),
        }
        self._say(f"{RATE} events/s for {seconds:g} s measured")

    def _restart(self, how: str, end: Callable[[RunningDaemon], object]) -> None:
        """Under load: how long it takes to end, until ready again, until the first new answer, and without answers."""
        assert self.daemon is not None
        asked = time.time()
        code = end(self.daemon)
        ended, last = time.time(), self._answers.last()
        ready_s = self._start()
        deadline = time.time() + 60
        while self._answers.last() <= last:
            assert time.time() < deadline, f"no answer within 60 s after {how}"
            time.sleep(0.002)
        first = self._answers.last()
        self.found[f"restart_after_{how}_s"] = {
            "exit_code": code,
            "to_end": round(ended - asked, 2),
            "start_to_ready": round(ready_s, 2),
            "start_to_first_answer": round(first - ended, 2),
            "without_answers": round(first - last, 2),
        }
        self._say(f"restarted after {how}")


def _kill(daemon: RunningDaemon) -> int:
    daemon.kill9()
    return -signal.SIGKILL


_QUANTILES = {"p50": 50, "p99": 99, "p99.9": 99.9}


def _stages(samples: Samples, before: Samples | None = None) -> dict[str, float]:
    """Each stage's share of the time that all of them took."""
    sums = {
        dict(labels)["stage"]: value - (before or {}).get((name, labels), 0.0)
        for (name, labels), value in samples.items()
        if name == "lstmstream_stage_seconds_sum"
    }
    return {stage: round(100 * value / sum(sums.values()), 1) for stage, value in sums.items()}


def _difference(before: Samples, after: Samples, name: str) -> float:
    return after[name, ()] - before[name, ()]


def _quantile(before: Samples, after: Samples, share: float) -> str:
    """The bucket of the daemon's own histogram that holds the quantile, in ms."""
    name = "lstmstream_event_latency_seconds_bucket"
    counts = sorted(
        (float(dict(labels)["le"]), value - before[key, labels])
        for (key, labels), value in after.items()
        if key == name
    )
    at = next(i for i, (_, count) in enumerate(counts) if count >= share * counts[-1][1])
    low = counts[at - 1][0] if at else 0.0
    return f"{low * 1000:g}-{counts[at][0] * 1000:g}"


def show(found: dict[str, Any]) -> None:
    """A table for a person, then JSON for a program."""
    table = Table("measured", "value", title=f"{found['machine']['cores']} cores, {found['machine']['processor']}")
    for name, value in found.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, text)
    Console(width=140).print(table)
    print(json.dumps(found))


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = round(os.getloadavg()[0], 1)
    return {"cores": os.cpu_count(), "processor": (names or [platform.machine()])[0], "load_before": load}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--client", choices=("auto", "kafka-python", "confluent"), default="auto", help="of the daemon (auto)"
    )
    parser.add_argument("--events", type=int, default=400_000, help="of the backlog, beside one for each key (400000)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of 2,000 events/s (30)")
    parser.add_argument("--bootstrap-servers", help="a broker that runs; without, one is started here")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args(arguments)
    harness.CLIENT = options.client
    name = f"speed-{uuid.uuid4().hex[:8]}"
    found: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="lstmstream-speed-") as temporary:
        folder = Path(temporary)
        with some_broker(options.bootstrap_servers, folder, name) as servers:
            bench = Bench(servers, name, folder, lambda line: print(line, file=sys.stderr, flush=True))
            found |= bench.run(options.events, options.seconds)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
