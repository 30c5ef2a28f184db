"""The broker's disk is full: every write fails, the broker goes down, and comes back once there is room again."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from lstmstream.dev.broker import DevBroker
from tests.broker.harness import RunningDaemon
from tests.faults.trial import Trial

FULL_S = 5.0


@pytest.mark.timeout(400)
def test_a_disk_that_is_full_and_has_room_again(tmp_path: Path, topic_prefix: str, seed: int) -> None:
    """A limit of zero bytes for each file does to the broker's writes what a full disk does: they fail half-way."""
    own = DevBroker(tmp_path / "broker")
    servers = own.up(port=0)
    try:
        with Trial(servers, topic_prefix, tmp_path, partitions=4, rate=200, seed=seed) as trial:
            with RunningDaemon(trial.config, tmp_path / "log") as daemon:
                daemon.wait_ready()
                trial.begin()
                trial.wait_answered(daemon, "the first events")
                pid = own.status().pid
                assert pid is not None
                _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, most))
                daemon.wait(lambda: not own.status().running, "without a broker")
                time.sleep(FULL_S)
                own.up(port=0)  # that of last time, without the limit
                trial.wait_answered(daemon, "the full disk")
                trial.settle(daemon.wait)
                assert daemon.sigterm() == 0, daemon.last_words()
            assert not (findings := trial.judge()), "\n".join(findings)
    finally:
        own.down(wipe=True)
