"""Faults while `lstmstream state build` writes states: in the end they are right, and a daemon goes on with them."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lstmstream.dev.broker import DevBroker
from tests.broker.harness import (
    RunningDaemon,
    admin,
    committed_offsets,
    create_topics,
    end_offsets,
    write_config,
    written_states,
)
from tests.broker.older_events import COLUMNS, PARTITIONS, Event, events, to_topic, write_lines
from tests.broker.test_verify import verify
from tests.faults.judge import open_transactions
from tests.models import random_model

NAME = "built"
OLDER, ALL = 6_000, 7_000  # events
KEYS = 3_000
TRANSACTION_BYTES = 4_096
STRIKES = 2
MEMBERS_S = 30.0
PAUSE_S = 8.0  # longer than the session timeout


class Builds:
    """`lstmstream state build` again and again, with a broker of their own."""

    def __init__(self, broker: DevBroker, folder: Path, found: list[Event]) -> None:
        self.broker, self._folder = broker, folder
        self.servers = broker.up(port=0)
        create_topics(self.servers, [f"{NAME}.{kind}" for kind in ("in", "out", "alerts")], partitions=PARTITIONS)
        to_topic(self.servers, f"{NAME}.in", found[OLDER:])
        self.history = write_lines(folder / "older.jsonl", found[:OLDER])
        self.config = write_config(
            folder / "c.yaml",
            name=NAME,
            model=random_model(folder, hidden=4),
            servers=self.servers,
            output={"include": ["n"], "alerts_topic": f"{NAME}.alerts", "threshold": 0.5},
            state={"ttl": "10d"},
        )
        self.count = 0

    def start(self) -> RunningDaemon:
        """One more, once the group has no member: one that was killed is there until its session is over."""
        self._wait_for_no_members()
        return self.start_beside()

    def start_beside(self) -> RunningDaemon:
        """One more, whoever is in the group."""
        self.count += 1
        command = [sys.executable, "-m", "tests.faults.small_transactions", str(TRANSACTION_BYTES), "state", "build"]
        log = self._folder / f"build-{self.count}.log"
        return RunningDaemon(self.config, log, command=[*command, str(self.config), str(self.history), *COLUMNS])

    def _wait_for_no_members(self) -> None:
        deadline = time.monotonic() + MEMBERS_S
        with admin(self.servers) as client:
            while self.count and client.describe_groups([NAME])[NAME]["members"]:
                assert time.monotonic() < deadline, "the group has members still"
                time.sleep(0.2)

    def freeze_in_the_middle(self, build: RunningDaemon, share: float) -> None:
        """Stop it where it stands, once it has written more than this share of the states."""
        before = self._written()
        build.freeze_when(lambda: self._written() - before > share * KEYS)

    def _written(self) -> int:
        """Those of builds that did not get to their end included."""
        return written_states(self.servers, NAME, partitions=PARTITIONS)


@pytest.fixture
def builds(tmp_path: Path) -> Iterator[Builds]:
    broker = DevBroker(tmp_path / "broker")
    try:
        yield Builds(broker, tmp_path, events(ALL, keys=KEYS))
    finally:
        if (pid := broker.status().pid) is not None:
            os.kill(pid, signal.SIGCONT)
        broker.down(wipe=True)


# Each strikes a build that stands still in the middle, and says with which codes it may end.


def kill(_builds: Builds, build: RunningDaemon) -> set[int]:
    build.kill9()
    return {-signal.SIGKILL}


def pause(_builds: Builds, build: RunningDaemon) -> set[int]:
    """The group has lost it meanwhile."""
    time.sleep(PAUSE_S)
    build.thaw()
    return {0, 2}


def kill_broker(builds: Builds, build: RunningDaemon) -> set[int]:
    build.thaw()
    assert builds.broker.kill(), "it had ended by itself"
    builds.broker.up(port=0)  # that of last time
    return {0, 2}


def pause_broker(builds: Builds, build: RunningDaemon) -> set[int]:
    pid = builds.broker.status().pid
    assert pid is not None
    build.thaw()
    os.kill(pid, signal.SIGSTOP)
    time.sleep(PAUSE_S)
    os.kill(pid, signal.SIGCONT)
    return {0, 2}


def build_twice(builds: Builds, build: RunningDaemon) -> set[int]:
    """The other one finds the group in use."""
    build.thaw()
    with builds.start_beside() as other:
        assert other.wait_end() == 2, other.last_words()
    return {0}


def start_daemon(builds: Builds, build: RunningDaemon) -> set[int]:
    """It refuses states of which some are missing, and has taken the group away from the build by then, or not."""
    build.thaw()
    with RunningDaemon(builds.config, builds.config.with_suffix(f".daemon-{builds.count}.log")) as daemon:
        build.wait_end()
        if build.exit_code != 0:
            assert daemon.wait_end() == 2, daemon.last_words()
            assert "was stopped before it had written all" in daemon.last_words()
    return {0, 2}


@pytest.mark.timeout(420)
@pytest.mark.parametrize("strike", [kill, pause, kill_broker, pause_broker, build_twice, start_daemon])
def test_states_of_a_build_that_was_struck(
    builds: Builds, tmp_path: Path, seed: int, strike: Callable[[Builds, RunningDaemon], set[int]]
) -> None:
    shares, done = random.Random(f"{seed} {strike.__name__}"), False
    for _ in range(STRIKES):
        with builds.start() as build:
            builds.freeze_in_the_middle(build, shares.uniform(0.0, 0.9))
            allowed = strike(builds, build)
            assert build.wait_end() in allowed, build.last_words()
        if done := build.exit_code == 0:
            break
    with builds.start() as build:  # from the start, unless all is there
        assert build.wait_end() == (2 if done else 0), build.last_words()
        assert ("has begun" in build.last_words()) == done
    serve_with_a_kill(builds, tmp_path)
    code, summary, said = verify(builds.config, "--history", str(builds.history), *COLUMNS)
    assert (code, summary["predictions"]) == (0, ALL - OLDER), said
    assert not open_transactions(builds.servers, NAME, partitions=PARTITIONS)


def serve_with_a_kill(builds: Builds, folder: Path) -> None:
    """Until all is answered."""
    servers = builds.servers
    ends = end_offsets(servers, f"{NAME}.in", partitions=PARTITIONS)
    begins = committed_offsets(servers, NAME)
    with RunningDaemon(builds.config, folder / "log1") as daemon:
        daemon.wait(lambda: committed_offsets(servers, NAME) != begins, "past the first events")
        daemon.kill9()
    with RunningDaemon(builds.config, folder / "log2") as daemon:
        daemon.wait(lambda: committed_offsets(servers, NAME) == ends, "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()
