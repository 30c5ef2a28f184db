"""The transport over a client that is made up: what it does when the client fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import OwnershipLost, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport.clients import Fetched
from lstmstream.transport.decisions import ErrorKind, Problem
from lstmstream.transport.kafka import KafkaTransport
from lstmstream.transport.ports import Membership

MEMBERSHIP = Membership("m", valid=True)


class ClientError(Exception):
    def __init__(self, kind: ErrorKind) -> None:
        super().__init__(kind.name)
        self.kind = kind


class Anything:
    """A client object whose every call succeeds, but for those that `fail` names."""

    def __init__(self, fail: dict[str, ErrorKind], made: list[str]) -> None:
        self._fail, self._made = fail, made

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: object, **__: object) -> Any:
            self._made.append(name)
            if name in self._fail:
                raise ClientError(self._fail[name])
            if name == "partition_count":
                return 2
            if name == "poll":
                return Fetched(RecordBatch.empty("in"), MEMBERSHIP, {})
            return {}

        return call


class FakeClient:
    def __init__(self) -> None:
        self.fail: dict[str, ErrorKind] = {}
        self.calls: list[str] = []

    def _make(self, name: str) -> Any:
        self.calls.append(name)
        if name in self.fail:
            raise ClientError(self.fail[name])
        return Anything(self.fail, self.calls)

    def admin(self) -> Any:
        return self._make("admin")

    def group_consumer(self, *_: object) -> Any:
        return self._make("group_consumer")

    def reader(self, *_: object) -> Any:
        return self._make("reader")

    def producer(self, *_: object) -> Any:
        return self._make("producer")

    def problem(self, error: BaseException) -> Problem | None:
        return Problem(error.kind, str(error)) if isinstance(error, ClientError) else None


def joined(client: FakeClient, **named: Any) -> KafkaTransport:
    transport = KafkaTransport(client, group="g", input_topic="in", **named)  # type: ignore[arg-type]
    transport.connect()
    transport.join()
    return transport


def commit(transport: KafkaTransport) -> None:
    zero = np.zeros(1, np.int64)
    batch = RecordBatch.to_write("out", zero, zero, [b"k"], [b"v"])
    transport.commit([batch], [], {0: 1}, nonce="n", membership=MEMBERSHIP, timeout_s=5)


def test_a_join_that_fails_is_made_good_by_the_next_recovery() -> None:
    """The consumer is replaced while the broker is away: without one there would be nothing to recover with."""
    client = FakeClient()
    transport = joined(client)
    client.fail["group_consumer"] = ErrorKind.TRANSIENT
    with pytest.raises(TryAgain):
        transport.join()
    with pytest.raises(TryAgain, match="no consumer"):
        transport.poll(0.0, 1)
    with pytest.raises(TryAgain):
        transport.recover()
    client.fail.clear()
    transport.recover()
    assert transport.poll(0.0, 1).membership == MEMBERSHIP
    transport.close(1.0)


@pytest.mark.parametrize(
    ("instance", "timeout_s", "error"),
    [("one", 10.0, OwnershipLost), ("one", 0.0, TryAgain), (None, 10.0, TryAgain)],
)
def test_a_fenced_producer_is_another_process_only_if_the_transaction_was_young(
    instance: str | None, timeout_s: float, error: type[Exception]
) -> None:
    """The broker fences the author of a transaction that it has ended itself, because it was open for too long."""
    client = FakeClient()
    transport = joined(client, instance=instance, transaction_timeout_s=timeout_s)
    commit(transport)
    client.fail["commit"] = ErrorKind.PRODUCER_FENCED
    with pytest.raises(error):
        commit(transport)
    client.fail.clear()
    transport.recover()
    commit(transport)
    transport.close(1.0)
