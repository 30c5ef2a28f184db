"""Brokers of a cluster of three are killed and frozen one after another while two daemons serve."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.fleet import Fleet
from tests.faults.trial import Trial

PARTITIONS = 6
AWAY_S = 3.0  # while others lead in its place


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", ["kill9", "freeze"])
def test_brokers_go_one_after_another(
    cluster: Cluster, topic_prefix: str, tmp_path: Path, seed: int, fault: str
) -> None:
    with Trial(cluster.servers, topic_prefix, tmp_path, partitions=PARTITIONS, rate=200, seed=seed) as trial:
        with Fleet(trial.config, 2) as fleet:
            fleet.wait_ready()
            trial.begin()
            for node in random.Random(seed).sample(cluster.nodes, len(cluster.nodes)):
                written = trial.load.written
                (node.kill9 if fault == "kill9" else node.freeze)()
                cluster.wait_fenced(node)
                fleet.wait(lambda written=written: trial.load.written > written, "written to by the load")
                time.sleep(AWAY_S)
                (node.start if fault == "kill9" else node.thaw)()
                cluster.wait_whole()
                ends = trial.ends()
                fleet.wait(lambda ends=ends: trial.answered(ends), f"past {fault} of {node.address}")
            trial.settle(fleet.wait)
            assert not (stops := fleet.stop()), stops
            assert not (ends_by_itself := fleet.ends()), ends_by_itself
        assert not (findings := trial.judge()), "\n".join(findings)
