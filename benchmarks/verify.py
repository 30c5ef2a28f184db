"""How fast `lstmstream verify` judges what a daemon has published, on this machine, broker included.

    python -m benchmarks.verify [--events N] [--model FILE] [--client NAME]

The demo's card payments and its model. Prints the events per second; exit code 1 where something is found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lstmstream.demo.simulate import transactions
from lstmstream.dev.broker import DevBroker
from lstmstream.transport.partitioner import partition_of
from tests.broker.harness import RunningDaemon, committed_offsets, create_topics, end_offsets, produce, write_config

NAME, PARTITIONS, DAYS = "verify", 4, 40


def records(count: int) -> Iterator[tuple[bytes, bytes, int, int]]:
    made = transactions(customers=count // DAYS // 4 + 20, days=DAYS, seed=5)
    for key, value, time_ms in zip(
        made.keys()[:count], made.values()[:count], made.time_ms.tolist()[:count], strict=True
    ):
        yield key, value, time_ms, partition_of(key, PARTITIONS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--model", default="builtin:demo")
    parser.add_argument("--client", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lstmstream-bench-") as folder:
        broker = DevBroker(Path(folder) / "broker")
        servers = broker.up(port=0)
        try:
            return measure(servers, Path(folder), options)
        finally:
            broker.down(wipe=True)


def measure(servers: str, folder: Path, options: argparse.Namespace) -> int:
    config = write_config(folder / "c.yaml", name=NAME, model=Path("m"), servers=servers)
    text = config.read_text().replace("model: m\n", f"model: {options.model}\n").replace("auto", options.client)
    config.write_text(text)
    create_topics(servers, [f"{NAME}.in", f"{NAME}.out"], partitions=PARTITIONS)
    produce(servers, f"{NAME}.in", records(options.events))
    ends = end_offsets(servers, f"{NAME}.in", partitions=PARTITIONS)
    with RunningDaemon(config, folder / "log") as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: committed_offsets(servers, NAME) == ends, "done", timeout_s=600)
        daemon.sigterm()
    command = [sys.executable, "-m", "lstmstream", "verify", str(config), "--json"]
    began_s, cpu_s, load = time.monotonic(), _cpu_s(), os.getloadavg()[0]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=900)
    seconds, cpu_s = time.monotonic() - began_s, _cpu_s() - cpu_s
    summary = json.loads(done.stdout)
    print(
        f"{summary['events']:,} events in {seconds:.1f} s, {summary['events_per_second']:,.0f}/s,"
        f" {1e6 * seconds / max(1, summary['events']):.0f} us each ({1e6 * cpu_s / max(1, summary['events']):.0f} us of"
        f" CPU); exit code {done.returncode}; load {load:.1f}"
    )
    return done.returncode


def _cpu_s() -> float:
    """Of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    sys.exit(main())
