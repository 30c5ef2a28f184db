"""The broker is killed again and again under load, is away for long, and is away while a daemon starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lstmstream.dev.broker import DevBroker
from tests.broker.harness import RunningDaemon
from tests.faults.trial import Trial

KILLS = 5
LONG_S = 70.0
PARTITIONS = 4


@pytest.fixture
def own(tmp_path: Path) -> Iterator[DevBroker]:
    made = DevBroker(tmp_path / "broker")
    try:
        yield made
    finally:
        made.down(wipe=True)


@pytest.mark.timeout(600)
def test_a_broker_that_is_killed_five_times_and_then_away_for_long(
    own: DevBroker, tmp_path: Path, topic_prefix: str, seed: int
) -> None:
    with Trial(own.up(port=0), topic_prefix, tmp_path, partitions=PARTITIONS, rate=200, seed=seed) as trial:
        with RunningDaemon(trial.config, tmp_path / "log") as daemon:
            daemon.wait_ready()
            trial.begin()
            for number in range(KILLS):
                trial.wait_answered(daemon, f"kill {number}")
                assert own.kill(), "it had ended by itself"
                own.up(port=0)  # that of last time
            trial.wait_answered(daemon, "the last kill")
            own.kill()
            daemon.wait(lambda: not daemon.ready(), "aware that the broker is away")
            time.sleep(LONG_S)
            assert daemon.get("/livez")[0] == 200
            with RunningDaemon(trial.config, tmp_path / "late.log") as late:
                late.wait(lambda: late.get("/livez")[0] == 200, "alive without a broker")
                assert not late.ready()
                own.up(port=0)
                late.wait(late.ready, "ready with the broker")
                daemon.wait(daemon.ready, "ready again")
                trial.settle(daemon.wait)
                assert [daemon.sigterm(), late.sigterm()] == [0, 0], daemon.last_words()
        assert not (findings := trial.judge()), "\n".join(findings)
