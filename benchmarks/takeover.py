"""How long a partition is silent after one of several daemons was killed or restarted, on this machine.

    python -m benchmarks.takeover [--client NAME] [--only CASE] [--kills N] [--restarts N] [--rate EVENTS]
        [--partitions P] [--property NAME=VALUE]

Three daemons serve a steady stream, with a session timeout of 6 s. One of them is killed with -9 again and again:
members that are static and are started again at once, and members that are not, whose place the others take once the
session timeout is over. Then two daemons, one of which is stopped by SIGTERM and started again. The silence of a
partition is the time between two of its predictions as a read_committed reader gets them; of each kill or restart the
longest counts. A third of all events has one key: whoever gets its partition has much to catch up with, and the other
partitions that it got wait for that. So these kills and restarts have a line of their own too. At the end `lstmstream
verify` judges what was published; exit code 1 if it finds anything.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple
from zlib import crc32

from lstmstream.dev.broker import DevBroker
from tests.broker import harness
from tests.faults.fleet import Fleet, Worker
from tests.faults.load import HOT_KEY
from tests.faults.trial import Trial

SETTLE_S = 2.0  # after all is answered: the group is at rest, and each partition has had predictions


class Silence(NamedTuple):
    """The longest one of a partition after one kill or restart."""

    seconds: float
    of_hot: bool  # the member that was struck had the partition of the key that a third of the events has


def measure(
    folder: Path,
    servers: str,
    name: str,
    strike: Callable[[Worker], object],
    *,
    workers: int,
    static: bool,
    times: int,
    partitions: int,
    rate: float,
    properties: dict[str, int],
) -> list[Silence]:
    """One for each time that `strike` was done to one of the workers."""
    silences = []
    hot = crc32(HOT_KEY) % partitions
    folder.mkdir()
    kafka = {"properties": {**harness.SHORT_SESSION, **properties}}
    with (
        Trial(servers, name, folder, partitions=partitions, rate=rate, seed=1, kafka=kafka) as trial,
        Fleet(trial.config, workers, static=lambda _number: static) as fleet,
    ):
        fleet.wait_ready()
        trial.begin()
        for number in range(times):
            wait_answered(trial, fleet)
            time.sleep(SETTLE_S)
            struck = fleet.workers[number % workers]
            of_hot = hot in struck.daemon.partitions()
            trial.readers.begin_silences()
            strike(struck)
            fleet.wait_ready()
            wait_answered(trial, fleet)
            silences.append(Silence(trial.readers.longest_silence_s(), of_hot))
            note = f", partition {hot} was among those that it had" if of_hot else ""
            print(f"{name} {number + 1}: {trial.readers.longest_silence()}{note}", file=sys.stderr, flush=True)
        trial.settle(fleet.wait)
        fleet.stop()
        findings = trial.judge()
    if findings:
        raise SystemExit("\n".join(findings))
    return silences


def wait_answered(trial: Trial, fleet: Fleet) -> None:
    """Until the readers have all that stands in the input now."""
    ends = trial.ends()
    fleet.wait(lambda: trial.answered(ends), "all answered")
    fleet.wait(lambda: trial.readers.events() >= sum(ends.values()), "all read")


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.takeover", description="Silence after kill or restart.")
    parser.add_argument("--client", choices=["kafka-python", "confluent"], default="confluent")
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2000.0, help="events a second")
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--only", choices=["static", "dynamic", "restart", "dynamic-restart"], help="one case")
    parser.add_argument("--property", action="append", default=[], metavar="NAME=VALUE", help="of kafka.properties")
    given = parser.parse_args()
    properties = {name: int(value) for name, _, value in (one.partition("=") for one in given.property)}
    harness.CLIENT = given.client
    rows = []
    with tempfile.TemporaryDirectory(prefix="lstmstream-takeover-") as folder:
        broker = DevBroker(Path(folder) / "broker")
        servers = broker.up(port=0)
        try:
            for what, name, strike, workers, static, times in (
                ("kill -9 of one of 3, static, started at once", "static", Worker.kill9, 3, True, given.kills),
                ("kill -9 of one of 3, session timeout 6 s", "dynamic", Worker.kill9, 3, False, given.kills),
                ("restart of one of 2, static", "restart", Worker.stop_and_start, 2, True, given.restarts),
                ("restart of one of 2", "dynamic-restart", Worker.stop_and_start, 2, False, given.restarts),
            ):
                if given.only not in (None, name):
                    continue
                silences = measure(
                    Path(folder) / name,
                    servers,
                    name,
                    strike,
                    workers=workers,
                    static=static,
                    times=times,
                    partitions=given.partitions,
                    rate=given.rate,
                    properties=properties,
                )
                rows.append((what, silences))
        finally:
            broker.down(wipe=True)
    print(f"{given.client}, {given.rate:g} events/s, {given.partitions} partitions\n")
    print("| | times | median, s | longest, s |\n| --- | --- | --- | --- |")
    for what, silences in rows:
        print_row(what, silences)
        print_row(f"{what}: of the member with the hot key", [one for one in silences if one.of_hot])
        print_row(f"{what}: of another one", [one for one in silences if not one.of_hot])
    return 0


def print_row(what: str, silences: Sequence[Silence]) -> None:
    """Nothing where there are none."""
    if silences:
        seconds = [one.seconds for one in silences]
        print(f"| {what} | {len(seconds)} | {median(seconds):.2f} | {max(seconds):.2f} |")


if __name__ == "__main__":
    sys.exit(main())
