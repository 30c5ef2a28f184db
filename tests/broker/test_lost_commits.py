"""Commits whose outcome the daemon does not learn, on a real broker: a proxy loses them on their way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lstmstream.serve.state_records import FLOOR, unpack_floor, unpack_key, unpack_state
from tests.broker.harness import RunningDaemon, committed_offsets, create_topics, produce, read_all, write_config
from tests.broker.proxy import Api, KafkaProxy
from tests.models import random_model

NOW_MS = 1_700_000_000_000
CHECKPOINT_S = 2


def events(key: bytes, first: int, count: int) -> list[tuple[bytes, bytes, int, int]]:
    """For partition 0, a second apart."""
    return [(key, b'{"amount": %d}' % n, NOW_MS + n * 1000, 0) for n in range(first, first + count)]


def written_states(servers: str, topic: str, *, isolation: str = "read_committed") -> dict[bytes | None, int]:
    """Key to the offset of the last event in its newest record."""
    records = list(read_all(servers, topic, partitions=1, isolation=isolation))
    return {
        unpack_key(record.key): unpack_state(record.key, record.value).state.last_offset
        for record in records
        if record.key[:1] != FLOOR and record.value is not None
    }


def floor(servers: str, topic: str) -> int:
    found = [record.value for record in read_all(servers, topic, partitions=1) if record.key[:1] == FLOOR]
    return unpack_floor(found[-1]).offset


def steps(servers: str, topic: str, key: str) -> list[int]:
    answers: list[dict[str, Any]] = [json.loads(record.value) for record in read_all(servers, topic, partitions=1)]
    return [answer["steps"] for answer in answers if answer["key"] == key]


@pytest.mark.parametrize("loss", ["request", "answer"])
def test_an_idle_checkpoint_whose_end_is_lost_loses_no_state(
    broker: str, topic_prefix: str, tmp_path: Path, loss: str
) -> None:
    """EndTxn vanishes, or its answer does, until the daemon makes a new producer; then others' traffic and kill -9."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=1)
    with KafkaProxy(broker) as proxy:
        config = write_config(
            tmp_path / "c.yaml",
            name=name,
            model=random_model(tmp_path, hidden=4),
            servers=proxy.servers,
            state={"checkpoint_interval": f"{CHECKPOINT_S}s"},
        )
        with RunningDaemon(config, tmp_path / "log") as daemon:
            daemon.wait_ready()
            produce(broker, f"{name}.in", events(b"a", 0, 12))
            daemon.wait(lambda: committed_offsets(broker, name).get(0) == 12, "all committed")
            assert written_states(broker, f"{name}.state") == {}, "the test is too slow for its checkpoint interval"
            lose = proxy.swallow if loss == "request" else proxy.lose_answer
            fault = lose(Api.END_TXN, client=f"lstmstream-{name}")
            producers = proxy.seen(Api.INIT_PRODUCER_ID)
            daemon.wait(lambda: bool(fault.struck), "writing the state of `a`")
            daemon.wait(lambda: proxy.seen(Api.INIT_PRODUCER_ID) > producers, "recovering")
            fault.lift()
            daemon.wait(lambda: any(line.get("message") == "recovered" for line in daemon.log_lines), "recovered")
            assert written_states(broker, f"{name}.state", isolation="read_uncommitted") == {b"a": 11}
            sent = 12

            def moved() -> bool:
                """Other keys' events, until a restart would no longer read those of `a`."""
                nonlocal sent
                produce(broker, f"{name}.in", events(b"b", sent, 5))
                sent += 5
                daemon.wait(lambda: committed_offsets(broker, name).get(0) == sent, "all committed")
                return floor(broker, f"{name}.state") >= 12

            daemon.wait(moved, "past the events of `a` with its floor")
            daemon.kill9()
        produce(broker, f"{name}.in", events(b"a", sent, 1))
        with RunningDaemon(config, tmp_path / "log2") as daemon:
            daemon.wait(lambda: committed_offsets(broker, name).get(0) == sent + 1, "all committed")
            assert daemon.sigterm() == 0, daemon.last_words()
    assert steps(broker, f"{name}.out", "a") == list(range(1, 14))
