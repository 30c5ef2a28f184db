"""Two daemons in one group share a stream: one comes, one goes, one dies, and no answer changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import pytest

from tests.broker.answers import Checker, Digest, Events, load_events, score_offline
from tests.broker.harness import Follower, Producing, RunningDaemon, create_topics, end_offsets, read_all, write_config
from tests.models import random_model

PARTITIONS = 4
EVENTS = 60_000
RATE = 3_000  # events a second
DEAD_S = 6.0  # the least session timeout: for so long the group does not know that a member was killed


class Stream:
    """Sends the events at a steady rate and notes the newest answer of each partition."""

    def __init__(self, servers: str, name: str, events: Events) -> None:
        self.sent = 0
        self.limit = 0.3  # of the events: no more are sent until a test raises it, however slow the machine is
        self.seen = Digest()
        self.last = dict.fromkeys(range(PARTITIONS), -1)  # offset of the newest answer, by partition
        self._servers, self._topic, self._events = servers, f"{name}.in", events
        self._stop = Event()
        self._error: BaseException | None = None
        self._sender = Thread(target=self._send, daemon=True)
        self.follower = Follower(servers, f"{name}.out", partitions=PARTITIONS, take=self._take)

    def __enter__(self) -> Self:
        self.follower.start()
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sender.join(60)
        self.follower.finish()
        if self._error is not None:
            raise self._error

    def wait_for(self, share: float) -> None:
        """Until so much of it is answered."""
        self.follower.wait_for(round(share * len(self._events)))

    def _take(self, records: list[Any]) -> None:
        self.seen.take(records)
        for record in records:
            self.last[record.partition] = record.offset

    def _send(self) -> None:
        began = time.monotonic()
        try:
            with Producing(self._servers, self._topic) as producer:
                for record in self._events.records():
                    while self.sent >= self.limit * len(self._events):
                        began = time.monotonic() - self.sent / RATE
                        if self._stop.wait(0.02):
                            return
                    while (early := self.sent / RATE - (time.monotonic() - began)) > 0:
                        if self._stop.wait(min(early, 0.05)):
                            return
                    producer.send(*record)
                    self.sent += 1
                producer.flush()
        except BaseException as error:  # raised again where the test can see it
            self._error = error


class Case:
    """One stream with its config, its events and their right answers."""

    def __init__(self, servers: str, name: str, folder: Path, *, events: int = EVENTS) -> None:
        self.servers, self.name, self.folder = servers, name, folder
        model = random_model(folder, hidden=16, categories={"terminal": 32})
        state = {"checkpoint_interval": "1s"}
        self.config = write_config(folder / "daemon.yaml", name=name, model=model, servers=servers, state=state)
        self.events = load_events(events / 1_236_698, partitions=PARTITIONS)
        self.expected = score_offline(self.config, self.events, folder)
        create_topics(servers, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)

    def daemon(self, letter: str) -> RunningDaemon:
        return RunningDaemon(self.config, self.folder / f"daemon-{letter}.log")

    def check(self, stream: Stream) -> None:
        """Complete, once, in order per key, bit for bit as one process would answer; nothing seen was taken back."""
        checker = Checker(self.events, self.expected, input_topic=f"{self.name}.in", partitions=PARTITIONS)
        digest = Digest()
        for record in read_all(self.servers, f"{self.name}.out", partitions=PARTITIONS):
            checker.take([record])
            digest.take([record])
        assert not checker.finish(), checker.report()
        assert stream.seen.seen() == digest.seen()
        assert not list(read_all(self.servers, f"{self.name}.dead-letter", partitions=PARTITIONS))


@pytest.fixture
def case(broker: str, topic_prefix: str, tmp_path: Path) -> Iterator[Case]:
    return Case(broker, topic_prefix, tmp_path)


def join(daemon: RunningDaemon, first: RunningDaemon) -> tuple[set[int], set[int]]:
    """Waits until the second daemon serves beside the first; what each of them has now."""
    daemon.wait_ready()

    def shared() -> bool:
        mine, others = daemon.partitions(), first.partitions()
        return bool(mine) and not mine & others and len(mine | others) == PARTITIONS

    daemon.wait(shared, "sharing the partitions")
    return daemon.partitions(), first.partitions()


def restored(daemon: RunningDaemon) -> list[int]:
    """The partitions that it brought back, in the order of its log."""
    return [line["partition"] for line in daemon.log_lines if line["message"] == "partition restored"]


def test_one_comes_in_mid_stream_and_the_first_goes(case: Case) -> None:
    with Stream(case.servers, case.name, case.events) as stream, case.daemon("a") as first:
        first.wait_ready()
        stream.wait_for(0.2)
        with case.daemon("b") as second:
            moved, kept = join(second, first)
            assert len(moved) == len(kept) == PARTITIONS // 2
            assert sorted(restored(first)) == list(range(PARTITIONS)), "what it kept was taken away and brought back"
            before = second.count("events_total")
            stream.limit = 0.8
            stream.wait_for(0.5)
            assert second.count("events_total") > before
            stream.limit = 1.0  # the first one goes while more comes
            assert first.sigterm() == 0, first.last_words()
            stream.wait_for(1.0)
            assert sorted(restored(second)) == list(range(PARTITIONS)), "what it had was taken away and brought back"
            assert second.sigterm() == 0, second.last_words()
    case.check(stream)


def test_one_is_killed_and_the_other_goes_on_with_its_own_then_takes_over(case: Case) -> None:
    with Stream(case.servers, case.name, case.events) as stream, case.daemon("a") as first:
        first.wait_ready()
        with case.daemon("b") as second:
            lost, kept = join(second, first)
            stream.limit = 0.6
            stream.wait_for(0.35)
            second.kill9()
            ends = end_offsets(case.servers, f"{case.name}.out", partitions=PARTITIONS)
            stream.limit = 1.0
            first.wait(lambda: all(stream.last[p] >= ends[p] for p in kept), "going on with its own")
            stream.wait_for(1.0)
            assert sorted(restored(first)) == sorted([*range(PARTITIONS), *lost]), "its own were taken away"
            assert first.sigterm() == 0, first.last_words()
    case.check(stream)


def test_one_that_sleeps_through_its_session_wakes_as_a_zombie_and_changes_nothing(case: Case) -> None:
    """Frozen inside a transaction for longer than its session while the other takes over; then it goes on."""
    with Stream(case.servers, case.name, case.events) as stream, case.daemon("a") as first:
        first.wait_ready()
        with case.daemon("b") as second:
            join(second, first)
            for share, limit in ((0.2, 0.6), (0.5, 1.0)):
                stream.wait_for(share)
                second.freeze()
                stream.limit = limit  # more to answer while it sleeps
                time.sleep(DEAD_S + 3.0)
                first.wait(lambda: first.partitions() == set(range(PARTITIONS)), "taking over")
                second.thaw()
                join(second, first)
            stream.wait_for(1.0)
            assert [daemon.sigterm() for daemon in (first, second)] == [0, 0]
    case.check(stream)
