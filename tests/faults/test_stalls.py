"""A daemon that stalls at a point of a transaction while another takes its partitions over: it commits nothing then."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.broker.harness import SHORT_SESSION, RunningDaemon
from tests.broker.proxy import Api, KafkaProxy
from tests.faults.fleet import own_config
from tests.faults.test_requests import behind
from tests.faults.trial import Trial

PARTITIONS = 4
POINTS = ("polled", "begun", "flushed", "offsets_sent")
SLEEP_S = 16  # at least: beyond the transaction's timeout, the time limit of a commit, and max.poll.interval.ms
PROPERTIES = {**SHORT_SESSION, "max.poll.interval.ms": 8000}


def stalling(trial: Trial, folder: Path, how: str, point: str) -> RunningDaemon:
    command = [sys.executable, "-m", "tests.faults.stalling_daemon", how, point, "3", str(trial.config)]
    return RunningDaemon(trial.config, folder / "stalls.log", command=command)


CASES = [*(("freeze", point) for point in POINTS), (str(SLEEP_S), "begun"), (str(SLEEP_S), "flushed")]


@pytest.mark.parametrize(
    ("how", "point"),
    [pytest.param(*case, marks=pytest.mark.short_fault if case == ("freeze", "flushed") else ()) for case in CASES],
)
def test_a_stalled_owner_commits_nothing_once_it_was_replaced(
    broker: str, topic_prefix: str, tmp_path: Path, seed: int, how: str, point: str
) -> None:
    kafka = {"properties": PROPERTIES}
    with Trial(broker, topic_prefix, tmp_path, partitions=PARTITIONS, rate=200, seed=seed, kafka=kafka) as trial:
        mark = trial.config.with_suffix(".stalls")
        with stalling(trial, tmp_path, how, point) as first:
            first.wait_ready()
            trial.begin()
            with RunningDaemon(trial.config, tmp_path / "other.log") as second:
                second.wait(mark.exists, "beside one that stalls")
                second.wait(lambda: second.partitions() == set(range(PARTITIONS)), "the owner of all partitions")
                trial.wait_answered(second, "the stall")
                if how == "freeze":
                    first.thaw()
                else:
                    trial.config.with_suffix(".wakes").touch()
                second.wait(lambda: first.exit_code is not None or first.ready(), "beside one that is back or gone")
                trial.settle(second.wait)
                # One that slept inside a call has to leave: nobody can tell what the call still does.
                code = first.exit_code if first.exit_code is not None else first.sigterm()
                assert code in {0, 1}, first.last_words()
                assert second.sigterm() == 0, second.last_words()
        assert mark.exists(), "nothing has stalled"
        assert not (findings := trial.judge()), "\n".join(findings)


LATE_S = 14.0  # beyond the session, and time for another member to take over and to answer


def test_a_member_that_was_dropped_within_a_rebalance(
    broker: str, topic_prefix: str, tmp_path: Path, seed: int
) -> None:
    """Another member comes and goes meanwhile. tests/serve/test_slept.py has the same without luck."""
    with (
        Trial(broker, topic_prefix, tmp_path, partitions=PARTITIONS, rate=200, seed=seed) as trial,
        KafkaProxy(broker) as proxy,
        RunningDaemon(behind(proxy, own_config(trial.config, 0)), tmp_path / "late.log") as late,
    ):
        late.wait_ready()
        trial.begin()
        trial.wait_answered(late, "the first events")
        fault = proxy.delay(Api.SYNC_GROUP, LATE_S, times=1, client=f"lstmstream-{topic_prefix}")
        with RunningDaemon(own_config(trial.config, 1), tmp_path / "other.log") as other:
            other.wait(lambda: bool(fault.struck), "in a rebalance")
            until = time.monotonic() + LATE_S
            other.wait(lambda: other.partitions() == set(range(PARTITIONS)), "the owner of all partitions")
            trial.wait_answered(other, "the rebalance")
            time.sleep(max(0.0, until - 1.0 - time.monotonic()))
            other.kill9()
        with RunningDaemon(own_config(trial.config, 1), tmp_path / "again.log") as other:
            other.wait_ready()
            trial.settle(other.wait)
            assert [late.sigterm(), other.sigterm()] == [0, 0], late.last_words()
        assert not (findings := trial.judge()), "\n".join(findings)
