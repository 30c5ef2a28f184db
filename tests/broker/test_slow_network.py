"""A network that carries less than what one fetch asks for in the time that a consumer is waited for."""

from __future__ import annotations

from pathlib import Path

from kafka import KafkaProducer

from tests.broker.harness import RunningDaemon, committed_offsets, create_topics, write_config
from tests.broker.proxy import Api, KafkaProxy
from tests.models import random_model

EVENTS = 1_500
NOW_MS = 1_700_000_000_000


def test_fetches_that_never_come_to_their_end_become_smaller(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """All that waits fits into one fetch, which would take half a minute."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=1)
    producer = KafkaProducer(bootstrap_servers=broker, batch_size=8192)
    for number in range(EVENTS):
        value = b'{"amount": 1, "text": "%s"}' % (b"x" * 400)
        producer.send(f"{name}.in", key=b"k", value=value, timestamp_ms=NOW_MS + number, partition=0)
    producer.close()
    with KafkaProxy(broker) as proxy:
        proxy.slow_answers(Api.FETCH, 20_000)
        config = write_config(
            tmp_path / "c.yaml", name=name, model=random_model(tmp_path, hidden=4), servers=proxy.servers
        )
        with RunningDaemon(config, tmp_path / "log") as daemon:
            daemon.wait(lambda: committed_offsets(broker, name).get(0, 0) > 0, "moving", timeout_s=90)
            said = [line["message"] for line in daemon.log_lines if line["level"] == "warning"]
            assert any("fetches are smaller from now on" in line for line in said), daemon.last_words()
            assert daemon.sigterm() in (0, 1)
