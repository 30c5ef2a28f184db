"""Whether memory, open files and threads of a daemon stay flat over many events and many failed transactions.

    python -m benchmarks.soak [--client NAME] [--events N] [--failures N]

One daemon answers 10,000,000 events of 100,000 keys, exactly once, and about 1,000 of its transactions fail, at their
begin, flush, offsets and commit in turn: after each its producers are thrown away and others are made. Resident
memory, open files and threads are looked at twenty times. Exit code 1 if not all events are answered.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.throughput.models import write_models
from benchmarks.throughput.workload import Workload, load_topic
from lstmstream.dev.broker import DevBroker
from tests.broker import harness
from tests.broker.harness import RunningDaemon, committed_offsets, create_topics, end_offsets, write_config

NAME = "soak"
PARTITIONS = 4
BATCH = 2_000  # events, so that there are enough transactions
LOOKS = 20
FAILED = ("aborted", "unknown")
STALL_S = 600.0


def look(daemon: RunningDaemon) -> tuple[int, int, int]:
    """Resident bytes, open files and threads."""
    files, threads = (len(list(Path(f"/proc/{daemon.pid}/{what}").iterdir())) for what in ("fd", "task"))
    return daemon.memory()[0], files, threads


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Memory, files and threads over time."
    )
    parser.add_argument("--client", choices=["kafka-python", "confluent"], default="confluent")
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--failures", type=int, default=1_000)
    given = parser.parse_args()
    harness.CLIENT = given.client
    every = max(2, given.events // BATCH // given.failures)
    with tempfile.TemporaryDirectory(prefix="lstmstream-soak-") as name:
        folder = Path(name)
        broker = DevBroker(folder / "broker")
        try:
            return run(broker.up(port=0), folder, events=given.events, every=every)
        finally:
            broker.down(wipe=True)


def run(servers: str, folder: Path, *, events: int, every: int) -> int:
    """Load, serve, look; the exit code."""
    create_topics(servers, [f"{NAME}.in", f"{NAME}.out"], partitions=PARTITIONS)
    load_topic(servers, f"{NAME}.in", Workload(events), lambda _time, _event: None)
    ends = end_offsets(servers, f"{NAME}.in", partitions=PARTITIONS)
    config = write_config(
        folder / "daemon.yaml",
        name=NAME,
        model=write_models(folder, hidden=64, layers=1).product,
        servers=servers,
        kafka={"properties": {**harness.SHORT_SESSION, "compression.type": "lz4"}},
        state={"checkpoint_interval": "5s"},
        batch={"max_events": BATCH},
    )
    command = [sys.executable, "-m", "tests.faults.failing_daemon", str(every), str(config)]
    print("| events | failed transactions | resident MiB | open files | threads |\n| --- | --- | --- | --- | --- |")
    with RunningDaemon(config, folder / "log", command=command) as daemon:
        daemon.wait_ready()
        for number in range(1, LOOKS + 1):
            due = events * number // LOOKS
            daemon.wait(partial(has_answered, servers, due), f"past {due} events", STALL_S)
            resident, files, threads = look(daemon)
            failures = sum(daemon.metrics()["lstmstream_transactions_total", (("outcome", how),)] for how in FAILED)
            print(
                f"| {answered(servers):,} | {failures:.0f} | {resident / 2**20:.0f} | {files} | {threads} |", flush=True
            )
        daemon.wait(lambda: committed_offsets(servers, NAME) == ends, "done", STALL_S)
        code = daemon.sigterm()
    out = sum(end_offsets(servers, f"{NAME}.out", partitions=PARTITIONS).values())
    print(f"\nexit code {code}; {sum(ends.values()):,} events, {out:,} offsets in the output topic, markers included")
    return int(code != 0)


def has_answered(servers: str, events: int) -> bool:
    """Whether so many are."""
    return answered(servers) >= events


def answered(servers: str) -> int:
    """Events before the group's offsets."""
    return sum(committed_offsets(servers, NAME).values())


if __name__ == "__main__":
    sys.exit(main())
