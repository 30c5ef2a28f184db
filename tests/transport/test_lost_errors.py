"""librdkafka's binding raises a fatal error among its callbacks, and loses it where another one runs after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from lstmstream.errors import RecordRefused
from lstmstream.transport.clients import confluent_producer
from lstmstream.transport.clients.confluent_producer import BatchBytes, ConfluentProducer
from lstmstream.transport.decisions import ErrorKind, Problem
from lstmstream.transport.ports import Membership
from tests.transport.test_protocol import batch

FENCED = KafkaException(KafkaError(KafkaError._FENCED, "fenced", fatal=True))
MESSAGE = "<built-in method> returned NULL without setting an exception"


class LibraryProducer:
    """Each call fails with `error`; the library itself knows `known` of its transaction."""

    error: BaseException
    known: KafkaException | None

    def __init__(self, settings: dict[str, Any]) -> None: ...

    def _fail(self, *_: Any) -> Any:
        raise self.error

    flush = commit_transaction = send_offsets_to_transaction = _fail

    def begin_transaction(self) -> None:
        if self.known is not None:
            raise self.known


CALLS: dict[str, Callable[[ConfluentProducer], None]] = {
    "flush": lambda producer: producer.flush(1.0),
    "send_offsets": lambda producer: producer.send_offsets("in", {}, Membership(None, True, "m-1"), 1.0),
    "commit": lambda producer: producer.commit(1.0),
}


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> ConfluentProducer:
    monkeypatch.setattr(confluent_producer, "RdProducer", LibraryProducer)
    return ConfluentProducer({}, BatchBytes(1), lambda error: Problem(ErrorKind.TRANSIENT, error.str()))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_library_is_asked_for_an_error_that_was_lost(
    producer: ConfluentProducer, call: Callable[[ConfluentProducer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a producer that another process has fenced would count as a fault of the program's."""
    monkeypatch.setattr(LibraryProducer, "error", SystemError(MESSAGE), raising=False)
    monkeypatch.setattr(LibraryProducer, "known", FENCED, raising=False)
    with pytest.raises(KafkaException) as raised:
        call(producer)
    assert raised.value is FENCED


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_error_that_has_a_cause_is_left_as_it_is(
    producer: ConfluentProducer, call: Callable[[ConfluentProducer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = SystemError(MESSAGE)
    error.__cause__ = FENCED
    monkeypatch.setattr(LibraryProducer, "error", error, raising=False)
    monkeypatch.setattr(LibraryProducer, "known", None, raising=False)
    with pytest.raises(SystemError) as raised:
        call(producer)
    assert raised.value is error


@pytest.mark.parametrize("order", [1, -1])
def test_a_record_that_is_refused_counts_before_those_that_go_with_its_transaction(
    order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction's own error does not name the topic, which the daemon needs to leave the record out."""
    kinds = {KafkaError.MSG_SIZE_TOO_LARGE: ErrorKind.RECORD_TOO_LARGE, KafkaError._PURGE_QUEUE: ErrorKind.TRANSIENT}
    too_large, purged = (KafkaError(code) for code in kinds)
    monkeypatch.setattr(confluent_producer, "RdProducer", LibraryProducer)
    monkeypatch.setattr(LibraryProducer, "flush", lambda _self, _limit_s: 0)
    monkeypatch.setattr(LibraryProducer, "known", KafkaException(too_large), raising=False)
    producer = ConfluentProducer({}, BatchBytes(1), lambda error: Problem(kinds[error.code()], error.str()))
    producer._sent.append(batch("out"))
    producer._undelivered.extend([(too_large, "out", 0), (purged, "out", 1)][::order])
    with pytest.raises(RecordRefused) as refused:
        producer.flush(1.0)
    assert (refused.value.topic, refused.value.partition, refused.value.too_large) == ("out", 0, True)


def test_a_batch_that_is_too_large_names_the_topic(caplog: pytest.LogCaptureFixture) -> None:
    assert BatchBytes(65_536).shrink(100, {"out", "in"})
    assert "topic 'in', 'out' does not accept batches of this size" in caplog.text
    assert "they have at most 16384 bytes" in caplog.text
