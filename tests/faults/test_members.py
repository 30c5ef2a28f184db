"""Members come and go without end, or claim one identity: the group goes on, and each event is answered once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.broker.harness import SHORT_SESSION, RunningDaemon
from tests.broker.proxy import Api, KafkaProxy
from tests.faults.test_requests import behind
from tests.faults.trial import Trial

PARTITIONS = 6
FOR_S = 60.0  # at least
VISITS = 5  # at least
EVERY_S = 2.0
STALL_S = 45.0  # without an answer; generous, for slow machines


def assigned(daemon: RunningDaemon) -> bool:
    return any(line["message"] == "partitions assigned" for line in daemon.log_lines)


@pytest.mark.timeout(900)
def test_a_member_that_comes_and_goes(broker: str, topic_prefix: str, tmp_path: Path, seed: int) -> None:
    """A member more for two seconds, again and again."""
    with Trial(broker, topic_prefix, tmp_path, partitions=PARTITIONS, rate=200, seed=seed) as trial:
        with RunningDaemon(trial.config, tmp_path / "log") as steady:
            steady.wait_ready()
            trial.begin()
            until, visits = time.monotonic() + FOR_S, 0
            while time.monotonic() < until or visits < VISITS:
                with RunningDaemon(trial.config, tmp_path / f"visit-{visits}.log") as visitor:
                    visitor.wait(lambda visitor=visitor: assigned(visitor), "assigned partitions")
                    time.sleep(EVERY_S)
                    assert visitor.sigterm() == 0, visitor.last_words()
                visits += 1
                ends = trial.ends()
                steady.wait(lambda ends=ends: trial.answered(ends), f"past visit {visits}", STALL_S)
            trial.settle(steady.wait)
            assert steady.count("rebalances_total") > visits, "nobody came"
            events = steady.count("events_total")
            assert steady.sigterm() == 0, steady.last_words()
        assert not (findings := trial.judge()), "\n".join(findings)
        assert events <= trial.summary["events"], "more was counted than there is"


@pytest.mark.short_fault
def test_two_processes_with_one_identity(broker: str, topic_prefix: str, tmp_path: Path, seed: int) -> None:
    """The older one leaves with 1, and the newer one keeps what it has: no ping-pong."""
    properties = {**SHORT_SESSION, "group.instance.id": "one"}
    with Trial(
        broker, topic_prefix, tmp_path, partitions=PARTITIONS, rate=200, seed=seed, kafka={"properties": properties}
    ) as trial:
        with RunningDaemon(trial.config, tmp_path / "older.log") as older:
            older.wait_ready()
            trial.begin()
            trial.wait_answered(older, "the first events")
            with RunningDaemon(trial.config, tmp_path / "newer.log") as newer:
                assert older.wait_end() == 1, older.last_words()
                trial.wait_answered(newer, "the end of the older")
                trial.settle(newer.wait)
                assert newer.sigterm() == 0, newer.last_words()
        assert not (findings := trial.judge()), "\n".join(findings)


@pytest.mark.short_fault
def test_partitions_go_on_while_a_rebalance_waits_for_a_dead_member(
    broker: str, topic_prefix: str, tmp_path: Path, seed: int
) -> None:
    """It waits for the whole session of that member. The others have their partitions until they give them up."""
    kafka = {"properties": {**SHORT_SESSION, "session.timeout.ms": 25_000}}
    with (
        Trial(broker, topic_prefix, tmp_path, partitions=PARTITIONS, rate=200, seed=seed, kafka=kafka) as trial,
        KafkaProxy(broker) as proxy,
        RunningDaemon(behind(proxy, trial.config), tmp_path / "steady.log") as steady,
    ):
        steady.wait_ready()
        trial.begin()
        with RunningDaemon(trial.config, tmp_path / "dead.log") as dead:
            dead.wait(lambda: len(dead.partitions()) == PARTITIONS // 2, "the owner of half of the partitions")
            dead.kill9()
        steady.wait(lambda: len(steady.partitions()) == PARTITIONS // 2, "without the other half")
        owned, joins = steady.partitions(), proxy.seen(Api.JOIN_GROUP)
        with RunningDaemon(trial.config, tmp_path / "new.log") as new:
            steady.wait(lambda: proxy.seen(Api.JOIN_GROUP) > joins, "in a rebalance")
            for _ in range(3):
                written = trial.load.written
                steady.wait(lambda written=written: trial.load.written > written + 200, "given more events")
                ends = {number: end for number, end in trial.ends().items() if number in owned}
                steady.wait(lambda ends=ends: trial.answered(ends), "past them")
            assert not any(line["message"] == "partitions assigned" for line in new.log_lines), "nobody was waited for"
            trial.settle(new.wait)
            assert [steady.sigterm(), new.sigterm()] == [0, 0], steady.last_words()
        assert not (findings := trial.judge()), "\n".join(findings)
