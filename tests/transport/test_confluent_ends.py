"""A producer of librdkafka that was thrown away is gone at once, its threads with it: nothing keeps it alive."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import KafkaException

from lstmstream.errors import LstmstreamError, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport.calls import CallBound, ClientThread
from lstmstream.transport.clients import Producer
from lstmstream.transport.clients.confluent_producer import BatchBytes, ConfluentProducer
from lstmstream.transport.decisions import ErrorKind, Problem
from lstmstream.transport.writer import discard
from tests.transport.hanging import LONG_S

NOBODY = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
PRODUCERS = 5
ONE = RecordBatch.to_write("t", np.zeros(1, np.int64), np.zeros(1, np.int64), [b"k"], [b"v"])


def threads() -> int:
    """Those of librdkafka in this process."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            names.append((task / "comm").read_text())
    return sum(name.startswith("rdk:") for name in names)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """It comes too seldom: each producer has a handful of threads and pipes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def make() -> Producer:
    return ConfluentProducer(NOBODY, BatchBytes(1), lambda error: Problem(ErrorKind.TRANSIENT, error.str()))


def to_error(error: BaseException) -> LstmstreamError | None:
    return TryAgain("failed") if isinstance(error, KafkaException) else None


@pytest.mark.usefixtures("no_collector")
def test_a_producer_that_was_discarded_leaves_no_thread() -> None:
    """After a call that failed, and with a record that was not sent."""
    before = threads()
    for _ in range(PRODUCERS):
        bound = CallBound()
        producer = ClientThread.open("producer", make, to_error, bound, close=lambda p: p.discard(), timeout_s=LONG_S)
        producer.call(lambda p: p.send(ONE, [0]), LONG_S)
        with pytest.raises(TryAgain):
            producer.call(lambda p: p.flush(0.01), LONG_S)
        discard(producer)
        del producer
    deadline = time.monotonic() + 180
    while threads() > before:
        assert time.monotonic() < deadline, f"{threads() - before} threads are left"
        time.sleep(0.05)
