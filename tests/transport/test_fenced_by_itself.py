"""librdkafka's consumer after a session without an answer: who has fenced it?"""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError

from lstmstream.transport.clients import confluent_consumer
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.clients.confluent_consumer import ConfluentConsumer
from lstmstream.transport.decisions import ErrorKind
from lstmstream.transport.kafka import Assignments
from lstmstream.transport.security import SecuritySettings

MINE = b"CGMDv2:\x01\x00\x00\x00g\x00one-1\x00\x00one\x00"
NEXT = b"CGMDv2:\x02\x00\x00\x00g\x00one-1\x00\x00one\x00"  # of the next generation
DROPPED = b"CGMDv2:\xff\xff\xff\xffg\x00one-1\x00\x00one\x00"


def no_other_opinion(*_: object) -> Any:
    raise AssertionError("nothing is suspect here")


class FatalMessage:
    """The event that says it: no record, and no code of its own."""

    def error(self) -> KafkaError:
        return KafkaError(KafkaError._FATAL, "Static consumer fenced")

    def topic(self) -> None: ...

    def partition(self) -> None: ...

    def offset(self) -> None: ...


class FakeLibraryConsumer:
    """Polls nothing, then ends for good."""

    member = "one-1"
    metadata = MINE
    messages: list[Any]

    def __init__(self, settings: dict[str, Any]) -> None:
        self.messages = [None, FatalMessage()]

    def subscribe(self, topics: list[str], **callbacks: Any) -> None: ...

    def incremental_assign(self, partitions: list[Any]) -> None: ...

    def incremental_unassign(self, partitions: list[Any]) -> None: ...

    def pause(self, partitions: list[Any]) -> None: ...

    def offsets_for_times(self, partitions: list[Any], timeout: float) -> list[Any]:
        return []

    def poll(self, timeout: float) -> Any:
        return self.messages.pop(0) if self.messages else None

    def consume(self, count: int, timeout: float) -> list[Any]:
        return []

    def consumer_group_metadata(self) -> bytes:
        return self.metadata

    def memberid(self) -> str:
        return self.member


@pytest.mark.parametrize(
    ("member_after", "member_in_group", "kind"),
    [
        ("", "one-1", ErrorKind.CONSUMER_BROKEN),  # the group still has this one
        ("", "", ErrorKind.CONSUMER_BROKEN),  # it has nobody
        ("", "one-2", ErrorKind.INSTANCE_FENCED),  # another process came while this one slept
        ("one-1", "one-2", ErrorKind.INSTANCE_FENCED),  # the plain case
    ],
)
def test_a_fence_is_judged_each_time(
    monkeypatch: pytest.MonkeyPatch, member_after: str, member_in_group: str, kind: ErrorKind
) -> None:
    monkeypatch.setattr(confluent_consumer, "Consumer", FakeLibraryConsumer)
    client = open_client("confluent", servers=["a:1"], group="g", properties={}, security=SecuritySettings())
    consumer = ConfluentConsumer({}, "in", Assignments(iter(range(9))), lambda: member_in_group, no_other_opinion)
    consumer._on_assign(consumer._consumer, [])
    assert consumer.poll(0.0, 10).membership.valid
    monkeypatch.setattr(FakeLibraryConsumer, "member", member_after)
    for _ in range(2):  # the library says it once, and gives nothing from then on
        with pytest.raises(Exception, match="FENCED_INSTANCE_ID") as raised:
            consumer.poll(0.0, 10)
        problem = client.problem(raised.value)
        assert problem is not None
        assert problem.kind is kind


@pytest.mark.parametrize(
    ("token", "valid"),
    [
        (MINE, True),
        (DROPPED, False),  # no generation
        (b"CGMDv2:\x01\x00\x00\x00g\x00\x00\x01", False),  # no member
        (b"CGMDv9:\x01\x00\x00\x00g\x00one-1\x00\x01", False),  # of a version that is not known
        (b"", False),
    ],
)
def test_a_snapshot_without_a_member_is_not_valid(token: bytes, valid: bool) -> None:
    assert confluent_consumer._is_member(token) is valid


def test_a_new_generation_counts_once_its_partitions_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confluent_consumer, "Consumer", FakeLibraryConsumer)
    consumer = ConfluentConsumer({}, "in", Assignments(iter(range(9))), lambda: "one-1", no_other_opinion)
    library: Any = consumer._consumer
    library.messages = []
    assert not consumer.poll(0.0, 10).membership.valid, "the first join is answered, and nothing is assigned yet"
    consumer._on_assign(library, [])
    assert consumer.poll(0.0, 10).membership.valid
    library.metadata = NEXT
    assert not consumer.poll(0.0, 10).membership.valid, "some of the partitions may have another owner"
    consumer._on_revoke(library, [])
    assert consumer.poll(0.0, 10).membership.valid
    library.metadata = DROPPED
    consumer._on_revoke(library, [])
    assert not consumer.poll(0.0, 10).membership.valid
