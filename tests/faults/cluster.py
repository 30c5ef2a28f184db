"""Three real brokers on this machine's loopback, each a controller too, to be killed and frozen one by one.

Every topic has three replicas, and two must have a record before it is acknowledged.
"""

from __future__ import annotations

import base64
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from kafka.errors import KafkaError

from lstmstream.dev import broker as single
from lstmstream.dev.kafka_jars import fetch_jars, find_java
from tests.broker.harness import admin

NODES = 3
START_S = 120.0


class Node:
    """One broker of the cluster, with its data and its log in a folder."""

    def __init__(self, folder: Path, number: int, port: int, voters: dict[int, int]) -> None:
        """`voters`: node number to the port of its controller."""
        folder.mkdir(parents=True)
        self.address = f"127.0.0.1:{port}"
        self.log = folder / "broker.log"
        self._java = [find_java(), *single._JVM, *single._JVM_LOG, "-cp", f"{fetch_jars()}/*"]
        self._settings = folder / "server.properties"
        self._settings.write_text(
            single._server_properties(folder / "data", port, voters[number]) + _of_a_cluster(number, voters),
            encoding="ascii",
        )
        self._process: subprocess.Popen[bytes] | None = None

    def format(self, cluster: str) -> None:
        """Once, before the first start."""
        command = [*self._java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._settings)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self._settings)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill9(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)


class Cluster:
    """Three nodes, for as long as it is entered."""

    def __init__(self, folder: Path) -> None:
        ports: list[int] = []
        while len(ports) < 2 * NODES:
            port = single._choose_port(0, None)
            if port not in ports:
                ports.append(port)
        voters = {number: ports[NODES + number - 1] for number in range(1, NODES + 1)}
        self.nodes = [Node(folder / f"node-{n}", n, ports[n - 1], voters) for n in voters]

    @property
    def servers(self) -> str:
        """For `bootstrap_servers`."""
        return ",".join(node.address for node in self.nodes)

    def __enter__(self) -> Self:
        cluster = base64.urlsafe_b64encode(b"\x00" + secrets.token_bytes(15)).decode().rstrip("=")
        try:
            for node in self.nodes:
                node.format(cluster)
            for node in self.nodes:
                node.start()
            self.wait_whole()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.thaw()
            node.kill9()

    def wait_whole(self, timeout_s: float = START_S) -> None:
        """Until all nodes are there, and every replica of every partition has all records."""
        deadline = time.monotonic() + timeout_s
        while (lacks := self._lacks()) is not None:
            assert time.monotonic() < deadline, f"the cluster is not whole after {timeout_s:g} s: {lacks}"
            time.sleep(0.3)

    def wait_fenced(self, node: Node, timeout_s: float = START_S) -> None:
        """Until the others have noticed that this one is away, and lead in its place."""
        others = ",".join(other.address for other in self.nodes if other is not node)
        deadline = time.monotonic() + timeout_s
        while _brokers(others) != NODES - 1:
            assert time.monotonic() < deadline, f"{node.address} is not missed after {timeout_s:g} s"
            time.sleep(0.3)

    def _lacks(self) -> str | None:
        if _brokers(self.servers) != NODES:
            return "a node is away"
        try:
            with admin(self.servers) as client:
                for topic in client.describe_topics(client.list_topics()):
                    for partition in topic["partitions"]:
                        if len(partition["isr_nodes"]) < NODES:
                            return f"{topic['name']} {partition['partition_index']}: {partition['isr_nodes']}"
        except (KafkaError, OSError) as error:
            return str(error)
        return None


def _brokers(servers: str) -> int | None:
    """How many take part now; None where nobody says so."""
    try:
        with admin(servers) as client:
            return sum(not broker["is_fenced"] for broker in client.describe_cluster()["brokers"])
    except (KafkaError, OSError):
        return None


def _of_a_cluster(number: int, voters: dict[int, int]) -> str:
    """What takes the place of the single node's settings: of a name that is there twice, the last counts."""
    quorum = ",".join(f"{node}@127.0.0.1:{port}" for node, port in voters.items())
    return f"""\
node.id={number}
controller.quorum.voters={quorum}
default.replication.factor={NODES}
min.insync.replicas=2
offsets.topic.replication.factor={NODES}
transaction.state.log.replication.factor={NODES}
transaction.state.log.min.isr=2
replica.lag.time.max.ms=5000
"""
