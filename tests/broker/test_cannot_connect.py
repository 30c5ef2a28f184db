"""What a daemon says of a broker that it cannot use, and that it waits for it, alive."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.broker.harness import RunningDaemon, create_topics, write_config
from tests.broker.proxy import Api, KafkaProxy
from tests.models import random_model

sys.path.append(str(Path(__file__).parents[1] / "transport"))
from tests.transport.servers import answering, serving, silent

ELSEWHERE = "kafka.zz1"  # as long as 127.0.0.1


def said(daemon: RunningDaemon) -> list[str]:
    """What it warns of while it cannot use the broker."""
    warnings = [line for line in daemon.log_lines if line["level"] == "warning"]
    return [line["message"] for line in warnings if line["logger"] == "lstmstream.serve.startup"]


def configured(tmp_path: Path, servers: str) -> Path:
    return write_config(tmp_path / "c.yaml", name="c", model=random_model(tmp_path, hidden=4), servers=servers)


def test_advertised_addresses_are_named(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    create_topics(broker, [f"{topic_prefix}.in"], partitions=1)
    with KafkaProxy(broker) as proxy:
        for api in (Api.METADATA, Api.FIND_COORDINATOR, Api.DESCRIBE_CLUSTER):
            proxy.change_answers(api, lambda answer: answer.replace(b"127.0.0.1", ELSEWHERE.encode()))
        with RunningDaemon(configured(tmp_path, proxy.servers), tmp_path / "log") as daemon:
            daemon.wait(lambda: any("advertised.listeners" in line for line in said(daemon)), "told")
            line = next(line for line in said(daemon) if "advertised.listeners" in line)
            assert f"{proxy.servers} can be reached" in line
            assert f"{ELSEWHERE}:{proxy.servers.rpartition(':')[2]} (there is no such host" in line
            assert daemon.sigterm() == 0, daemon.last_words()


@pytest.mark.parametrize(
    ("server", "cause"),
    [("closed", "connection refused"), ("http", "an HTTP server"), ("ssh", "an SSH server"), ("silent", "not answer")],
)
def test_the_cause_is_in_the_first_line_with_the_address(tmp_path: Path, server: str, cause: str) -> None:
    serve = {
        "http": answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        "ssh": answering(b"SSH-2.0-OpenSSH_9.2\r\n", first=True),
        "silent": silent,
    }
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
    with serving(serve.get(server, silent)) as at:
        servers = closed if server == "closed" else at
        with RunningDaemon(configured(tmp_path, servers), tmp_path / "log") as daemon:
            daemon.wait(lambda: bool(said(daemon)), "told")
            assert f"the broker at {servers} cannot be used yet, trying again: {servers}: " in said(daemon)[0]
            assert cause in said(daemon)[0]
            assert daemon.sigterm() == 0, daemon.last_words()


def test_it_lives_while_it_waits_for_a_broker_that_does_not_answer(tmp_path: Path) -> None:
    """`stall_after` is shorter than one call to the broker may take."""
    with serving(silent) as at:
        config = write_config(
            tmp_path / "c.yaml",
            name="c",
            model=random_model(tmp_path, hidden=4),
            servers=at,
            http={"port": 0, "stall_after": "2s"},
        )
        with RunningDaemon(config, tmp_path / "log") as daemon:
            daemon.wait(lambda: daemon.port is not None, "listening")
            answers = []

            def told() -> bool:
                answers.append(daemon.get("/livez")[0])
                return len(said(daemon)) >= 2

            daemon.wait(told, "two tries")
            assert set(answers) == {200}
            assert daemon.sigterm() == 0, daemon.last_words()
