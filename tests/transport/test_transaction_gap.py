"""Transactions of librdkafka do not follow so closely that the broker refuses the next one for 20 ms."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lstmstream.transport.clients import confluent_producer
from lstmstream.transport.clients.confluent_producer import BatchBytes, ConfluentProducer
from lstmstream.transport.decisions import ErrorKind, Problem


class LibraryProducer:
    """Transactions that take no time."""

    def __init__(self, settings: dict[str, Any]) -> None: ...

    def _succeed(self, *_: Any) -> None: ...

    begin_transaction = commit_transaction = abort_transaction = _succeed


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_one_begins_a_moment_after_the_end_of_the_last(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, slept_s = 100.0, []
    clock = SimpleNamespace(monotonic=lambda: now_s, sleep=slept_s.append)
    monkeypatch.setattr(confluent_producer, "RdProducer", LibraryProducer)
    monkeypatch.setattr(confluent_producer, "time", clock)
    producer = ConfluentProducer({}, BatchBytes(1), lambda error: Problem(ErrorKind.TRANSIENT, error.str()))
    producer.begin()
    getattr(producer, end)(1.0)
    now_s += 0.001
    producer.begin()
    getattr(producer, end)(1.0)
    now_s += 1.0
    producer.begin()
    assert slept_s == [0.0, pytest.approx(0.003), 0.0]
