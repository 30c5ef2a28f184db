"""An end of a transaction that the library sent twice: the first one arrives in the middle of the next transaction."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lstmstream.errors import TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.kafka import KafkaTransport
from lstmstream.transport.security import SecuritySettings
from tests.broker.harness import create_topics, read_all
from tests.broker.proxy import Api, KafkaProxy

SHORT = {"session.timeout.ms": 30_000, "heartbeat.interval.ms": 500, "request.timeout.ms": 2_000}
FIRST_LATE_S = 4.0  # the library has asked again before


def answer(topic: str, value: bytes) -> RecordBatch:
    one = np.zeros(1, np.int64)
    return RecordBatch.to_write(topic, one, one + int(time.time() * 1000), [b"k"], [value])


@pytest.mark.only_client("confluent")  # kafka-python reports an end that had no answer as an error
def test_it_does_not_end_the_next_one(broker: str, topic_prefix: str, client: str) -> None:
    """KAFKA-17754: the records of the next one would be committed, without its offsets."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=1)
    with KafkaProxy(broker) as proxy:
        library = open_client(
            client, servers=[proxy.servers], group=name, properties=SHORT, security=SecuritySettings()
        )
        transport = KafkaTransport(library, group=name, input_topic=f"{name}.in")
        try:
            transport.connect()
            transport.join()
            deadline = time.monotonic() + 180
            while not (polled := transport.poll(0.1, 1)).assignment:
                assert time.monotonic() < deadline

            def commit(number: int) -> None:
                transport.commit(
                    [answer(f"{name}.out", b"%d" % number)],
                    [],
                    {0: 0},
                    nonce=f"n{number}",
                    membership=polled.membership,
                    timeout_s=8.0,
                )

            commit(0)
            first = proxy.delay(Api.END_TXN, FIRST_LATE_S, times=1)
            began_s = time.monotonic()
            commit(1)
            assert first.struck
            assert time.monotonic() - began_s < FIRST_LATE_S, "the library has not sent it twice"
            lost = proxy.swallow(Api.ADD_OFFSETS_TO_TXN)  # so that the first one arrives in the middle of this one
            with pytest.raises(TryAgain):
                commit(2)
            assert time.monotonic() - began_s > FIRST_LATE_S
            lost.lift()
            transport.recover(30.0)  # it is aborted
        finally:
            transport.close(5.0)
    assert [record.value for record in read_all(broker, f"{name}.out", partitions=1)] == [b"0", b"1"]
