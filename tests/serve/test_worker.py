"""A worker's own side of `--workers`: what it changes of the configuration, and its line to the parent."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lstmstream.config import Config, load_config
from lstmstream.serve.worker import Worker, worker_config
from lstmstream.transport.kafka import open_kafka_transport


def loaded(folder: Path, **properties: str) -> Config:
    path = folder / "c.yaml"
    kafka = {"bootstrap_servers": "localhost:9092", "properties": {"client.id": "mine", **properties}}
    tree = {"name": "n", "model": "m.onnx", "kafka": kafka, "input": {"topic": "in"}, "output": {"topic": "out"}}
    path.write_text(yaml.safe_dump({**tree, "http": {"host": "0.0.0.0", "port": 9108, "stall_after": "7s"}}))
    return load_config(path, {})


def test_each_worker_has_an_identity_of_its_own(tmp_path: Path) -> None:
    config = loaded(tmp_path, **{"group.instance.id": "pod-1"})
    workers = [worker_config(config, number) for number in range(2)]
    assert [one.kafka.properties["group.instance.id"] for one in workers] == ["pod-1-0", "pod-1-1"]
    assert {one.kafka.properties["client.id"] for one in workers} == {"mine"}, "members are known as ours by it"
    ids = {open_kafka_transport(one)._transactional_id for one in workers}
    assert ids == {"n.pod-1-0", "n.pod-1-1"}
    assert config.kafka.properties["group.instance.id"] == "pod-1"


def test_without_an_identity_each_is_an_ordinary_member(tmp_path: Path) -> None:
    workers = [worker_config(loaded(tmp_path), number) for number in range(2)]
    assert all("group.instance.id" not in one.kafka.properties for one in workers)
    assert len({open_kafka_transport(one)._transactional_id for one in workers}) == 2


def test_its_endpoints_are_for_the_parent_and_all_else_stays(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    worker = worker_config(config, 1)
    assert (worker.http.host, worker.http.port, worker.http.stall_after) == ("127.0.0.1", 0, 7.0)
    assert worker.folder == config.folder
    assert worker.model_dump(exclude={"http", "kafka"}) == config.model_dump(exclude={"http", "kafka"})


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_it_tells_its_parent_and_stops_with_it(line: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = line
    ours.settimeout(60)
    ended: list[int] = []  # an Event would wait for its own lock if the signal came while this thread looks at it
    before = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    try:
        worker = Worker(1, 2, theirs)
        worker.report_port(4711)
        with ours.makefile() as said:
            assert [said.readline(), said.readline()] == ["started\n", "port 4711\n"]
        assert not ended
        ours.close()  # as the system does at the end of any process
        deadline_s = time.monotonic() + 60
        while not ended and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert ended
        worker.report_port(4712)  # to nobody
    finally:
        signal.signal(signal.SIGTERM, before)
