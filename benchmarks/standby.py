"""How long a takeover lasts with many keys, with and without `state.standby`, on this machine.

    python -m benchmarks.standby [--keys N] [--hidden H] [--partitions P] [--client NAME] [--rounds R]

One event for each of 1,000,000 keys, an LSTM of 64 units (512 bytes of state per key), 8 partitions. A daemon answers
them, writes all states and stops. Then two daemons share the partitions, with a session timeout of 6 s; one of them is
killed with -9, and an event of each of its partitions waits for the other one. It measures the time from the kill to
the first and to the last of their answers, and what the survivor restored. The way from the restore's beginning to the
running partition is in its log. Both ways begin with the same broker and the same states. An answer that is missing,
doubled or has the wrong `steps` is exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.restart import Answers, in_mib
from lstmstream.dev.broker import DevBroker
from tests.broker.harness import SHORT_SESSION, RunningDaemon, create_topics, produce, write_config
from tests.models import random_model

NAME = "takeover"
KEYS_PER_S = 1_000  # slowest accepted rate of loading and restoring; it only bounds the waits
SHUTDOWN_TIMEOUT_S = 300


class Case:
    """Two daemons over states that are there already."""

    def __init__(self, servers: str, folder: Path, options: argparse.Namespace) -> None:
        self._servers, self._folder = servers, folder
        self._keys, self._partitions = options.keys, options.partitions
        self._limit_s = 300 + options.keys / KEYS_PER_S
        self._model = random_model(folder, hidden=options.hidden, layers=1, numbers=("amount", "distance"))
        self._kafka: dict[str, Any] = {"properties": SHORT_SESSION}
        if options.client is not None:
            self._kafka["client"] = options.client
        self._lives = 0
        self._probes = iter(range(options.keys))  # each one is used once
        create_topics(servers, [f"{NAME}.in", f"{NAME}.out"], partitions=options.partitions)

    def start(self, standby: int) -> RunningDaemon:
        """A daemon."""
        self._lives += 1
        config = write_config(
            self._folder / f"{self._lives}.yaml",
            name=NAME,
            model=self._model,
            servers=self._servers,
            kafka=self._kafka,
            state={"standby": standby},
        )
        config.write_text(config.read_text() + f"shutdown_timeout: {SHUTDOWN_TIMEOUT_S}s\n")
        return RunningDaemon(config, self._folder / f"{self._lives}.log")

    def send(self, numbers: Iterable[int]) -> list[bytes]:
        """One event for each key number; the keys."""
        now_ms, sent = int(time.time() * 1000), []

        def records() -> Iterator[tuple[bytes | None, bytes | None, int | None, int]]:
            for number in numbers:
                sent.append(b"k%07d" % number)
                value = b'{"amount":%d.25,"distance":%d.5}' % (number % 1000, number % 100)
                yield sent[-1], value, now_ms, number % self._partitions

        produce(self._servers, f"{NAME}.in", records())
        return sent

    def fill(self) -> None:
        """A state for each key in the state topic."""
        self.send(range(self._keys))
        with self.start(0) as daemon:
            daemon.wait(lambda: daemon.count("events_total") >= self._keys, "all answered", self._limit_s)
            code = daemon.sigterm(SHUTDOWN_TIMEOUT_S + 15)
            assert code == 0, daemon.last_words()

    def take_over(self, standby: int) -> dict[str, Any]:
        """Kill one of two, and wait for the other."""
        with (
            self.start(standby) as first,
            self.start(standby) as second,
            Answers(self._servers, f"{NAME}.out", self._partitions) as answers,
        ):

            def shared() -> bool:
                mine, others = second.partitions(), first.partitions()
                half = self._partitions // 2
                there = first.count("state_keys") + second.count("state_keys") == self._keys
                return len(mine) == len(others) == half and not mine & others and there

            second.wait(shared, "sharing the partitions", self._limit_s)
            began_s = time.monotonic()
            if standby:
                second.wait(
                    lambda: (
                        second.count("standby_keys") == first.count("state_keys")
                        and second.count("standby_records_behind") == 0
                    ),
                    "all is followed",
                    self._limit_s,
                )
            followed_s = time.monotonic() - began_s
            followed_mib = in_mib(second.count("standby_bytes"))
            time.sleep(10)  # at rest
            lost = sorted(first.partitions())
            numbers = [number for number in self._next(20 * self._partitions) if number % self._partitions in lost]
            firsts = {number % self._partitions: number for number in reversed(numbers)}
            first.kill9()
            killed_s = time.monotonic()
            answers.expect(self.send(firsts.values()))
            second.wait(answers.complete, "all answered", self._limit_s)
            last_s = time.monotonic()
            lines = [line for line in second.log_lines if line["message"] == "partition restored"][-len(lost) :]
            found = {
                "standby": standby,
                "followed_s": round(followed_s, 1) if standby else None,
                "followed_mib": followed_mib,
                "first_answer_s": round(answers.first_s - killed_s, 2),
                "last_answer_s": round(last_s - killed_s, 2),
                "restore_s": max(line["duration_s"] for line in lines),
                "states": sum(line["states"] for line in lines),
                "from_standby": sum(line["from_standby"] or 0 for line in lines),
                "state_records_read": sum(line["state_records"] for line in lines),
                "rss_peak_mib": in_mib(second.memory()[1]),
            }
            assert second.sigterm(SHUTDOWN_TIMEOUT_S + 15) == 0, second.last_words()
            return found

    def _next(self, count: int) -> list[int]:
        return [next(self._probes) for _ in range(count)]


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.standby", description="A takeover with many keys.")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--hidden", type=int, default=64, help="units of the LSTM; 8 bytes of state each")
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--client", choices=["kafka-python", "confluent"])
    parser.add_argument("--rounds", type=int, default=3, help="takeovers of each kind")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lstmstream-standby-") as folder:
        broker = DevBroker(Path(folder) / "broker")
        try:
            case = Case(broker.up(port=0), Path(folder), given)
            case.fill()
            print(f"{given.keys:,} states in {given.partitions} partitions; load {os.getloadavg()[0]:.1f}", flush=True)
            for standby in (0, 1) * given.rounds:
                print(case.take_over(standby), flush=True)
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
        finally:
            broker.down(wipe=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
