"""What open tabs of the live page cost the stream.

    python -m benchmarks.live_page [--tabs 200] [--events 1500000] [--rounds 3] [--client NAME]

One daemon reads a backlog (an LSTM of 64 units, 100,000 keys, 4 partitions), in turns with so many readers of
`/live/events` and with none; broker, daemon and readers are on the same cores. Prints events/s, from the readiness of
the daemon to the last commit, and CPU seconds per million events. Judges nothing.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import Event, Process
from multiprocessing.synchronize import Event as EventType
from pathlib import Path
from statistics import median

from benchmarks.throughput.models import write_models
from benchmarks.throughput.topics import Topics
from benchmarks.throughput.workload import Workload, load_topic
from lstmstream.dev.broker import DevBroker
from tests.broker.harness import RunningDaemon, committed_offsets, write_config

PARTITIONS = 4
LIMIT_S = 600.0


def main() -> None:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tabs", type=int, default=200)
    parser.add_argument("--events", type=int, default=1_500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", choices=("kafka-python", "confluent"), default="kafka-python")
    options = parser.parse_args()
    found: dict[int, list[tuple[float, float]]] = {0: [], options.tabs: []}
    with tempfile.TemporaryDirectory(prefix="lstmstream-tabs-") as name:
        folder = Path(name)
        broker = DevBroker(folder / "broker")
        servers = broker.up(port=0)
        try:
            topics = Topics(servers, PARTITIONS)
            topics.create("events")
            model = write_models(folder, hidden=64, layers=1).product
            load_topic(servers, "events", Workload(options.events), lambda _key, _event: None)
            for number in range(options.rounds):
                for tabs, figures in found.items():
                    run = f"tabs-{number}-{tabs}"
                    topics.create(f"{run}.out")
                    config = write_config(
                        folder / f"{run}.yaml",
                        name=run,
                        model=model,
                        servers=servers,
                        kafka={"client": options.client},
                        input={"topic": "events"},
                        output={"topic": f"{run}.out", "threshold": 0.5},
                    )
                    figures.append(_measure(config, run, servers, options.events, tabs))
                    rate, cpu_s = figures[-1]
                    print(f"round {number + 1}, {tabs} tabs: {rate:,.0f} events/s, {cpu_s:.2f} CPU s per million")
        finally:
            broker.down(wipe=True)
    for what, place in (("events/s", 0), ("CPU s per million", 1)):
        ratios = [one[place] / none[place] for none, one in zip(*found.values(), strict=True)]
        of_rounds = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{what}, with {options.tabs} tabs / with none: {of_rounds}")


def _measure(config: Path, name: str, servers: str, events: int, tabs: int) -> tuple[float, float]:
    """Events per second, and CPU seconds per million."""
    with RunningDaemon(config, config.with_suffix(".log")) as daemon, ExitStack() as stack:
        daemon.wait(lambda: daemon.port is not None, "a port")
        if tabs:
            stack.enter_context(_open_tabs(daemon.port or 0, tabs))
        daemon.wait_ready()
        began_s, before, used_s = time.monotonic(), _done(servers, name), daemon.cpu_s()
        while (done := _done(servers, name)) < events:
            if time.monotonic() - began_s > LIMIT_S:
                raise SystemExit(f"only {done:,} of {events:,} events after {LIMIT_S:g} s")
            time.sleep(0.1)
        took_s, used_s = time.monotonic() - began_s, daemon.cpu_s() - used_s
    return (done - before) / took_s, used_s / (done - before) * 1e6


def _done(servers: str, group: str) -> int:
    return sum(committed_offsets(servers, group).values())


@contextmanager
def _open_tabs(port: int, count: int) -> Iterator[None]:
    """A process with so many readers of the page's events, each of which has its first byte."""
    ready, stop = Event(), Event()
    process = Process(target=_read, args=(port, count, ready, stop), daemon=True)
    process.start()
    try:
        if not ready.wait(60):
            raise SystemExit("the tabs do not open")
        yield
    finally:
        stop.set()
        process.join(10)


def _read(port: int, count: int, ready: EventType, stop: EventType) -> None:
    selector = selectors.DefaultSelector()
    for _ in range(count):
        tab = socket.create_connection(("127.0.0.1", port), timeout=30)
        tab.sendall(b"GET /live/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        tab.recv(1 << 16)  # one after the other: many that have not asked yet are dropped
        selector.register(tab, selectors.EVENT_READ, tab)
    ready.set()
    while not stop.is_set():
        for key, _ in selector.select(0.1):
            if not key.data.recv(1 << 16):
                raise SystemExit("a tab was closed")


if __name__ == "__main__":
    main()
