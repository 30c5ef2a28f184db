"""`lstmstream run --workers N` on a real broker: workers share a stream, die, come back, and stop, as one daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import KafkaError

from lstmstream.serve.state_records import FLOOR, unpack_floor
from tests.broker.harness import (
    SHORT_SESSION,
    RunningDaemon,
    admin,
    committed_offsets,
    create_topics,
    produce,
    read_all,
    write_config,
)
from tests.broker.test_two_daemons import PARTITIONS, Case, Stream
from tests.models import random_model

NOW_MS = 1_700_000_000_000
EVENTS = 400  # of each partition, where all are there before the start
END_S = 45.0  # for workers whose parent is gone


class RunningWorkers(RunningDaemon):
    """A parent with its workers. Whoever is left at the end is killed."""

    def __init__(self, config: Path, log: Path, *, workers: int) -> None:
        command = [sys.executable, "-m", "lstmstream", "run", str(config), "--workers", str(workers)]
        super().__init__(config, log, command=command)

    def __exit__(self, *_: object) -> None:
        self.kill9()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                if running(pid):
                    os.kill(pid, signal.SIGKILL)

    def pids(self, worker: int | None = None) -> list[int]:
        """Of all processes that this worker, or any, has been."""
        return [line["pid"] for line in self.said("worker started") if worker in {None, line["worker"]}]

    def said(self, message: str) -> list[dict[str, Any]]:
        """The lines of its log with this message."""
        return [line for line in self.log_lines if line["message"] == message]

    def readiness(self) -> dict[str, Any]:
        """What /readyz says."""
        return dict(json.loads(self.get("/readyz")[1]))


def running(pid: int) -> bool:
    """Whether there is such a process, and not only its exit code that nobody has fetched."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def configured(tmp_path: Path, name: str, servers: str, properties: Mapping[str, Any] | None = None) -> Path:
    """States are written at the end only."""
    return write_config(
        tmp_path / "c.yaml",
        name=name,
        model=random_model(tmp_path, hidden=4),
        servers=servers,
        state={"checkpoint_interval": "1h"},
        kafka={"properties": {**SHORT_SESSION, **(properties or {})}},
    )


def fill(broker: str, name: str, partitions: int) -> None:
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=partitions)
    records = [
        (b"k%d-%d" % (p, i % 5), b'{"amount": %d}' % i, NOW_MS + i * 1000, p)
        for i in range(EVENTS)
        for p in range(partitions)
    ]
    produce(broker, f"{name}.in", records)


def wait_answered(daemon: RunningDaemon, broker: str, name: str, partitions: int) -> None:
    def answered() -> bool:
        with contextlib.suppress(KafkaError):  # the group's coordinator takes a moment
            return committed_offsets(broker, name) == dict.fromkeys(range(partitions), EVENTS)
        return False

    daemon.wait(answered, "all committed")


def floors(broker: str, name: str, partitions: int) -> dict[int, int]:
    """From which offset each partition would be replayed."""
    records = read_all(broker, f"{name}.state", partitions=partitions)
    return {r.partition: unpack_floor(r.value).offset for r in records if r.key[:1] == FLOOR}


def check_answers(broker: str, name: str, partitions: int) -> None:
    """Each event once, and the count of each key's events goes on."""
    answers = [json.loads(record.value) for record in read_all(broker, f"{name}.out", partitions=partitions)]
    sources = Counter((answer["source"]["partition"], answer["source"]["offset"]) for answer in answers)
    assert sources == Counter((p, offset) for p in range(partitions) for offset in range(EVENTS))
    assert {answer["steps"] == answer["source"]["offset"] // 5 + 1 for answer in answers} == {True}


def test_two_share_the_partitions_and_stop_with_their_states_written(
    broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
    config = configured(tmp_path, name, broker, {"group.instance.id": "w"})
    with RunningWorkers(config, tmp_path / "log", workers=2) as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: daemon.partitions() == set(range(PARTITIONS)), "serving all partitions")
        records = [
            (b"k%d-%d" % (p, i % 5), b'{"amount": %d}' % i, NOW_MS + i * 1000, p)
            for i in range(EVENTS)
            for p in range(PARTITIONS)
        ]
        produce(broker, f"{name}.in", records)
        wait_answered(daemon, broker, name, PARTITIONS)
        daemon.wait(lambda: daemon.count("events_total") == PARTITIONS * EVENTS, "counted, all workers together")
        daemon.wait(lambda: daemon.count("state_keys") == PARTITIONS * 5, "counting the keys of all")
        assert daemon.get("/livez")[0] == 200
        up = [daemon.metrics()["lstmstream_worker_up", (("worker", str(n)),)] for n in range(2)]
        assert up == [1, 1]
        with admin(broker) as client:
            (group,) = client.describe_groups([name]).values()
        instances = {member["group_instance_id"] for member in group["members"]}
        assert instances == {"w-0", "w-1"}
        assert daemon.sigterm() == 0, daemon.last_words()
        restored = {line["worker"]: set() for line in daemon.said("partition restored")}
        for line in daemon.said("partition restored"):
            restored[line["worker"]].add(line["partition"])
        assert set(restored) == {0, 1}, "one of them had nothing to do"
        assert [line["worker"] for line in daemon.said("clean shutdown, states written")] in ([0, 1], [1, 0])
        assert not any(line["level"] == "error" for line in daemon.log_lines), daemon.last_words(40)
        assert not any(running(pid) for pid in daemon.pids())
    check_answers(broker, name, PARTITIONS)
    assert floors(broker, name, PARTITIONS) == dict.fromkeys(range(PARTITIONS), EVENTS)


@pytest.mark.parametrize("instance", ["w", None])
def test_one_that_is_killed_under_load_is_started_again(
    broker: str, topic_prefix: str, tmp_path: Path, instance: str | None
) -> None:
    """Nothing is lost or doubled, and no answer is another than that of one process."""
    case = Case(broker, topic_prefix, tmp_path, events=30_000)
    if instance is not None:
        case.config.write_text(
            case.config.read_text().replace("properties:", f"properties:\n    group.instance.id: {instance}")
        )
    with (
        Stream(case.servers, case.name, case.events) as stream,
        RunningWorkers(case.config, tmp_path / "log", workers=2) as daemon,
    ):
        daemon.wait_ready()
        daemon.wait(lambda: daemon.partitions() == set(range(PARTITIONS)), "serving all partitions")
        stream.limit = 1.0
        stream.wait_for(0.4)
        (pid,) = daemon.pids(1)
        daemon.metrics()  # what is asked for now is known of it later
        os.kill(pid, signal.SIGKILL)
        daemon.wait(lambda: not running(pid), "without it")
        assert daemon.get("/livez")[0] == 200, "it is being started again"
        assert stream.sent < len(case.events), "nothing was left for the one that comes back"
        daemon.wait(lambda: len(daemon.pids(1)) == 2, "starting it again")
        stream.wait_for(1.0)
        daemon.wait(daemon.ready, "ready with both")
        counted = daemon.count("events_total")
        assert 0.9 * len(case.events) < counted <= len(case.events), "what the one that was killed had counted is lost"
        assert daemon.metrics()["lstmstream_worker_restarts_total", (("worker", "1"),)] == 1
        assert len(daemon.pids(0)) == 1
        (ended,) = [line for line in daemon.log_lines if "starting it again" in line["message"]]
        assert "signal SIGKILL" in ended["message"]
        assert ended["worker"] == 1
        assert daemon.sigterm() == 0, daemon.last_words()
    case.check(stream)


def test_workers_whose_parent_is_killed_end_by_themselves(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """Cleanly: their states are written. One of them has no partition, which was said once."""
    name = topic_prefix
    fill(broker, name, partitions=1)
    config = configured(tmp_path, name, broker)
    with RunningWorkers(config, tmp_path / "log", workers=2) as daemon:
        daemon.wait_ready()
        wait_answered(daemon, broker, name, partitions=1)
        pids = daemon.pids()
        assert len(pids) == 2
        daemon.kill9()
        deadline = time.monotonic() + END_S
        while any(running(pid) for pid in pids):
            assert time.monotonic() < deadline, daemon.last_words(40)
            time.sleep(0.02)
        assert len(daemon.said("the parent process has ended; stopping")) == 2
        warnings = [line["message"] for line in daemon.log_lines if "more workers" in line["message"]]
        assert len(warnings) == 1
        assert "more workers (2) than partitions of input.topic (1)" in warnings[0]
    check_answers(broker, name, partitions=1)
    assert floors(broker, name, partitions=1) == {0: EVENTS}


def test_a_worker_that_cannot_serve_ends_all(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=2)
    create_topics(broker, [f"{name}.state"], partitions=1)  # not as many as the input
    config = configured(tmp_path, name, broker)
    with RunningWorkers(config, tmp_path / "log", workers=2) as daemon:
        assert daemon.wait_end() == 2, daemon.last_words()
        assert any(f"{name}.state" in line["message"] and "worker" in line for line in daemon.log_lines)
        assert any("cannot serve" in line["message"] for line in daemon.log_lines)
        assert len(daemon.pids()) == 2, "it was started again, though that cannot help"
        assert not any(running(pid) for pid in daemon.pids())
