"""The transport over a client that is made up: what it does when the client fails."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import Fatal, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport import kafka, kafka_admin
from lstmstream.transport.clients import Fetched
from lstmstream.transport.clients.confluent import OPINION_S
from lstmstream.transport.decisions import BadCredentials, ErrorKind, Problem
from lstmstream.transport.kafka import KafkaTransport
from lstmstream.transport.ports import Membership
from lstmstream.transport.security import SecuritySettings
from tests.transport.hanging import LONG_S

MEMBERSHIP = Membership("m", valid=True, member_id="m-1")
CONNECT_S = 2.0  # of a new client, at leisure


class ClientError(Exception):
    def __init__(self, kind: ErrorKind) -> None:
        super().__init__(kind.name)
        self.kind = kind


class Anything:
    """A client object whose every call succeeds, but for those that `fail` names."""

    def __init__(self, fail: dict[str, ErrorKind], made: list[str], valid: Callable[[], bool] = lambda: True) -> None:
        self._fail, self._made, self._valid = fail, made, valid

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: object, **__: object) -> Any:
            self._made.append(name)
            if name in self._fail:
                raise ClientError(self._fail[name])
            if name == "partition_count":
                return 2
            if name == "poll":
                return Fetched(RecordBatch.empty("in"), MEMBERSHIP._replace(valid=self._valid()), {})
            return {}

        return call


class FakeClient:
    def __init__(self) -> None:
        self.fail: dict[str, ErrorKind] = {}
        self.calls: list[str] = []
        self.valid = True  # whether the consumer is in its group

    def _make(self, name: str) -> Any:
        self.calls.append(name)
        if name in self.fail:
            raise ClientError(self.fail[name])
        return Anything(self.fail, self.calls, lambda: self.valid)

    def admin(self) -> Any:
        return self._make("admin")

    def group_consumer(self, *_: object) -> Any:
        return self._make("group_consumer")

    def fetch_less(self) -> None:
        self.calls.append("fetch_less")

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


def test_refused_credentials_are_waited_for_and_new_ones_go_to_all_objects(tmp_path: Path) -> None:
    """librdkafka keeps the password that an object was made with."""
    file = tmp_path / "password"
    file.write_text("old")
    client = FakeClient()
    security = SecuritySettings("SASL_SSL", "PLAIN", "u", "old", secret_files={"password": file})
    transport = joined(client, security=security)
    client.fail["poll"] = ErrorKind.BAD_SETTINGS
    with pytest.raises(TryAgain, match="files are read again"):
        transport.poll(0.0, 1)
    client.fail["poll"] = ErrorKind.BAD_CREDENTIALS
    with pytest.raises(TryAgain, match=r"does not accept the credentials: .* files are read again"):
        transport.poll(0.0, 1)
    client.calls.clear()
    transport.recover()
    assert "group_consumer" not in client.calls, "the consumer is not to blame, as long as nothing has changed"
    file.write_text("new")
    client.fail.clear()
    client.calls.clear()
    transport.recover()
    assert {"admin", "group_consumer", "producer"} <= set(client.calls)
    client.calls.clear()
    transport.recover()
    assert "group_consumer" not in client.calls
    transport.close(1.0)


def test_credentials_of_the_configuration_itself_are_refused_for_good() -> None:
    client = FakeClient()
    transport = joined(client, security=SecuritySettings("SASL_SSL", "PLAIN", "u", "old"))
    client.fail["poll"] = ErrorKind.BAD_CREDENTIALS
    with pytest.raises(BadCredentials):
        transport.poll(0.0, 1)
    transport.close(1.0)


def test_a_consumer_that_lost_its_group_gets_new_files_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, client = Clock(monkeypatch), FakeClient()
    file = tmp_path / "ca.pem"
    file.write_text("old")
    transport = joined(client, security=SecuritySettings("SSL", ca=str(file)))
    file.write_text("new")
    transport.poll(0.0, 1)
    assert outside(client, transport, clock, most_s=60) == pytest.approx(kafka.CHANGED_S + 2)
    transport.close(1.0)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = time.monotonic()
        monkeypatch.setattr(kafka, "time", self)

    def monotonic(self) -> float:
        return self.now_s


def outside(client: FakeClient, transport: KafkaTransport, clock: Clock, *, most_s: float) -> float | None:
    """Seconds until the consumer, which is not in its group, is replaced; None if it is not."""
    client.valid = False
    for second in range(int(most_s)):
        clock.now_s += 1
        try:
            transport.poll(0.0, 1)
        except TryAgain:
            client.calls.clear()
            transport.recover()
            assert "group_consumer" in client.calls
            return second + 1
    return None


def test_a_consumer_that_does_not_find_its_group_after_an_outage_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may know the brokers by addresses that they no longer have. Without an outage it may wait for others."""
    clock, client = Clock(monkeypatch), FakeClient()
    transport = joined(client)
    transport.poll(0.0, 1)
    assert outside(client, transport, clock, most_s=60) is None, "others may take their time"
    client.valid = True
    transport.poll(0.0, 1)
    client.fail["producer"] = ErrorKind.TRANSIENT
    with pytest.raises(TryAgain):
        transport.recover()
    client.fail.clear()
    client.calls.clear()
    transport.recover()
    assert client.calls[0] == "admin", "the admin client is new after a recovery that failed"
    assert outside(client, transport, clock, most_s=60) == pytest.approx(20, abs=2)
    assert outside(client, transport, clock, most_s=60) == pytest.approx(40, abs=2), "the next one gets more time"
    client.valid = True
    clock.now_s += 1_000
    transport.poll(0.0, 1)
    assert outside(client, transport, clock, most_s=100) is None
    assert outside(client, transport, clock, most_s=100) is not None, "not for ever, with no outage either"
    transport.close(1.0)


class StuckReader:
    """It gives nothing where it was opened; one that is opened later does."""

    def __init__(self, opened: list[int], at: int, fail: bool) -> None:
        self._first, self._at, self._fail = not opened, at, fail
        opened.append(at)

    def read(self, start: int, end: int, timeout_s: float) -> tuple[RecordBatch, int]:
        if self._first and self._fail:
            raise ClientError(ErrorKind.TRANSIENT)
        return RecordBatch.empty("in"), start if self._first and start >= 3 else start + 3

    def close(self) -> None: ...


@pytest.mark.parametrize("fail", [False, True])
def test_a_reader_that_comes_no_further_is_replaced(monkeypatch: pytest.MonkeyPatch, fail: bool) -> None:
    """It goes on from where it was, whether the old one failed or said nothing."""
    clock, client = Clock(monkeypatch), FakeClient()
    monkeypatch.setattr(kafka_admin, "time", clock)
    opened: list[int] = []
    monkeypatch.setattr(client, "reader", lambda topic, partition, start: StuckReader(opened, start, fail))
    transport = joined(client)
    reader = transport.open_reader("in", 0, 0, 9)
    for _ in range(40):
        clock.now_s += 1
        with contextlib.suppress(TryAgain):
            reader.next(0.0)
        if reader.position == 9:
            break
    assert opened == [0, 0 if fail else 3]
    assert reader.position == 9
    reader.close()
    transport.close(1.0)


def test_a_reader_has_time_to_ask_another_library() -> None:
    """Behind an open transaction nothing comes, and that is no failure of the broker."""
    assert kafka_admin.READ_GRACE_S >= OPINION_S + CONNECT_S


def test_waits_for_the_broker_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    client, beats, twice = FakeClient(), [0], threading.Event()
    transport = joined(client)

    def beat() -> None:
        beats[0] += 1
        if beats[0] >= 2:
            twice.set()

    def admin() -> Anything:
        assert twice.wait(LONG_S), "it waits in silence"
        return Anything({}, [])

    transport.on_wait(beat)
    monkeypatch.setattr(kafka_admin, "CALL_TIMEOUT_S", LONG_S)
    monkeypatch.setattr(client, "admin", admin)
    transport.connect()
    transport.close(1.0)


def test_where_brokers_answer_and_nothing_helps_it_leaves_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers that are away are waited for without end: a new process would find no more than this one."""
    clock, client, found = Clock(monkeypatch), FakeClient(), ["a:1: connection refused"]
    transport = joined(client, diagnose=lambda: found[0])
    client.fail["producer"] = ErrorKind.TRANSIENT

    def recover_for(seconds: float) -> None:
        until_s = clock.now_s + seconds
        while clock.now_s < until_s:
            transport._diagnosis._next_s = 0.0  # it is asked each time
            with pytest.raises(TryAgain):
                transport.recover()
            clock.now_s += 10

    recover_for(10 * kafka.HELPLESS_S)
    found[0] = ""
    recover_for(kafka.HELPLESS_S)
    client.fail.clear()
    transport.recover()
    client.fail["producer"] = ErrorKind.TRANSIENT
    recover_for(kafka.HELPLESS_S)
    clock.now_s += 1
    transport._diagnosis._next_s = 0.0
    with pytest.raises(Fatal, match="the brokers answer, but nothing has helped for"):
        transport.recover()
    transport.close(1.0)
