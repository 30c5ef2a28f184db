"""The protocol over a client that only notes what it is told: order, limits, and what comes after an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import CannotServe, OwnershipLost, RecordRefused, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport import kafka_admin, writer
from lstmstream.transport.clients import AssignmentListener, Fetched
from lstmstream.transport.decisions import ErrorKind, Problem
from lstmstream.transport.kafka import KafkaTransport
from lstmstream.transport.ports import CommittedOffset, MemberInfo, Membership, TopicInfo, Transport
from tests.transport.hanging import LONG_S, count_from

MEMBERSHIP = Membership("token", True, "m-1")


class Failure(Exception):
    """What a library raises."""

    def __init__(self, kind: ErrorKind) -> None:
        super().__init__(kind.name)
        self.kind = kind


class FakeClient:
    """Notes calls; `faults` says what a call does instead of nothing."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.faults: dict[str, Callable[[], object]] = {}
        self.listener: AssignmentListener | None = None
        self.member_id = "m-1"  # of the consumer
        self.members: list[MemberInfo] = []  # of the group, as the broker has it
        self.open_ids: list[str] = []  # transactional ids
        self.transactional_ids: list[str] = []  # of its producers
        self.hanging = threading.Event()  # a call waits for its event
        self._made = 0

    def note(self, call: str) -> None:
        self.calls.append(call)
        fault = self.faults.get(call.partition(" ")[0])
        if fault is not None:
            fault()

    def fail(self, call: str, kind: ErrorKind) -> None:
        def raise_it() -> None:
            del self.faults[call]
            raise Failure(kind)

        self.faults[call] = raise_it

    def hang(self, call: str) -> threading.Event:
        """It returns when the event is set."""
        go_on = threading.Event()

        def wait() -> None:
            del self.faults[call]
            self.hanging.set()
            assert go_on.wait(LONG_S)

        self.faults[call] = wait
        return go_on

    def take(self) -> list[str]:
        """The calls since the last time."""
        taken, self.calls = self.calls, []
        return taken

    def take_but_discards(self) -> list[str]:
        """A discarded producer's own thread discards it once more, whenever it gets there."""
        return [call for call in self.take() if call != "discard-tx"]

    def wait_for(self, call: str) -> None:
        """What a thread of its own does, whenever it gets there."""
        deadline_s = time.monotonic() + 60
        while call not in self.calls:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    def admin(self) -> FakeAdmin:
        self.note("open-admin")
        return FakeAdmin(self)

    def group_consumer(self, topic: str, listener: AssignmentListener) -> FakeConsumer:
        self._made += 1
        self.listener = listener
        self.note(f"open-consumer {topic}")
        return FakeConsumer(self, self._made)

    def fetch_less(self) -> None:
        self.note("fetch-less")

    def reader(self, topic: str, partition: int, start: int) -> FakeReader:
        self.note(f"open-reader {start}")
        return FakeReader(self)

    def producer(self, transactional_id: str | None) -> FakeProducer:
        name = "plain" if transactional_id is None else "tx"
        if transactional_id is not None:
            self.transactional_ids.append(transactional_id)
        self.note(f"open-{name}")
        return FakeProducer(self, name)

    def problem(self, error: BaseException) -> Problem | None:
        return Problem(error.kind, "because") if isinstance(error, Failure) else None


class FakeAdmin:
    def __init__(self, client: FakeClient) -> None:
        self._client = client

    def describe(self, topics: Sequence[str], timeout_s: float) -> dict[str, TopicInfo]:
        return {}

    def create(self, topic: str, partitions: int, settings: Mapping[str, str], timeout_s: float) -> None:
        self._client.note(f"create {topic}")

    def beginning_offset(self, topic: str, partition: int, timeout_s: float) -> int:
        return 3

    def end_offsets(
        self, topic: str, partitions: Collection[int], timeout_s: float, *, committed: bool
    ) -> dict[int, int]:
        return dict.fromkeys(partitions, 8 if committed else 9)

    def offset_for_time(self, topic: str, partition: int, timestamp_ms: int, timeout_s: float) -> int | None:
        return None

    def committed(self, topic: str, partitions: Collection[int], timeout_s: float) -> dict[int, CommittedOffset]:
        self._client.note("committed")
        return {}

    def group_members(self, group: str, topic: str, timeout_s: float) -> Sequence[MemberInfo]:
        self._client.note("group-members")
        return self._client.members

    def open_transactional_ids(self, timeout_s: float) -> Collection[str]:
        self._client.note("open-ids")
        return self._client.open_ids

    def fence(self, transactional_id: str, timeout_s: float) -> None:
        self._client.note(f"fence {transactional_id}")

    def close(self) -> None:
        self._client.note("close-admin")


class FakeConsumer:
    def __init__(self, client: FakeClient, number: int) -> None:
        self._client = client
        self._number = number

    def poll(self, timeout_s: float, max_events: int) -> Fetched:
        self._client.note(f"poll {self._number}")
        return Fetched(RecordBatch.empty("in"), MEMBERSHIP, {})

    def member_id(self) -> str:
        return self._client.member_id

    def keep_alive(self) -> None:
        self._client.note("keep-alive")

    def resume(self, partition: int, offset: int) -> None:
        self._client.note(f"resume {partition} {offset}")

    def commit(self, offsets: Mapping[int, CommittedOffset], membership: Membership, timeout_s: float) -> None:
        self._client.note(f"consumer-commit {_shown(offsets)}")

    def close(self, timeout_s: float) -> None:
        self._client.note(f"close-consumer {self._number}")


class FakeReader:
    """Gives three records at a time."""

    def __init__(self, client: FakeClient) -> None:
        self._client = client

    def read(self, start: int, end: int, timeout_s: float) -> tuple[RecordBatch, int]:
        self._client.note(f"read {start}")
        return batch("in", min(3, end - start)), start + 3

    def close(self) -> None:
        self._client.note("close-reader")


class FakeProducer:
    def __init__(self, client: FakeClient, name: str) -> None:
        self._client = client
        self._name = name

    def partition_count(self, topic: str, timeout_s: float) -> int:
        return 4

    def init_transactions(self, timeout_s: float) -> None:
        self._client.note("init")

    def begin(self) -> None:
        self._client.note("begin")

    def send(self, batch: RecordBatch, partitions: Sequence[int]) -> None:
        self._client.note(f"{self._name}-send {batch.topic} {list(partitions)}")

    def flush(self, timeout_s: float) -> None:
        self._client.note(f"{self._name}-flush")

    def send_offsets(
        self, topic: str, offsets: Mapping[int, CommittedOffset], membership: Membership, timeout_s: float
    ) -> None:
        self._client.note(f"offsets {topic} {_shown(offsets)} {membership.token}")

    def commit(self, timeout_s: float) -> None:
        self._client.note("commit")

    def abort(self, timeout_s: float) -> None:
        self._client.note("abort")

    def discard(self) -> None:
        if f"discard-{self._name}" not in self._client.calls:  # twice is as good as once
            self._client.calls.append(f"discard-{self._name}")


def _shown(offsets: Mapping[int, CommittedOffset]) -> str:
    return ",".join(f"{partition}:{offset}:{nonce}" for partition, (offset, nonce) in offsets.items())


def batch(topic: str, count: int = 1, partition: int = 0) -> RecordBatch:
    partitions, timestamps = np.full(count, partition), np.zeros(count, dtype=np.int64)
    return RecordBatch.to_write(topic, partitions, timestamps, [b"k"] * count, [b"v"] * count)


def connected(*, exactly_once: bool = True, instance: str | None = None) -> tuple[FakeClient, KafkaTransport]:
    client = FakeClient()
    made = KafkaTransport(client, group="g", input_topic="in", exactly_once=exactly_once, instance=instance)
    as_port: Transport = made
    made._take_name(MEMBERSHIP.member_id)  # as after its first commit
    as_port.connect()
    as_port.join()
    client.take()
    return client, made


def commit(
    transport: KafkaTransport,
    outputs: Iterable[RecordBatch] = (),
    states: Iterable[RecordBatch] = (),
    timeout_s: float = 5.0,
) -> None:
    transport.commit(list(outputs), list(states), {1: 7}, nonce="n", membership=MEMBERSHIP, timeout_s=timeout_s)


TRANSACTION = ["begin", "tx-send out [0]", "tx-send state [2]", "tx-flush", "offsets in 1:7:n token", "commit"]


def test_a_transaction_in_its_order() -> None:
    client, transport = connected()
    commit(transport, [batch("out"), batch("dead", 0)], [batch("state", partition=2)])
    assert client.take() == TRANSACTION


@pytest.mark.parametrize("exactly_once", [True, False])
def test_after_a_slow_end_of_a_transaction_there_is_a_new_producer(
    exactly_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library may have sent it twice, and the first one may arrive in the middle of the next transaction."""
    client, transport = connected(exactly_once=exactly_once)
    states = [batch("state", partition=2)]
    commit(transport, [], states)
    assert "init" not in client.take()
    monkeypatch.setattr(writer, "REPEATED_S", -1.0)
    commit(transport, [], states)
    monkeypatch.undo()
    assert "init" not in client.take()
    commit(transport, [], states)
    calls = client.take()
    assert calls.index("discard-tx") < calls.index("init") < calls.index("begin")
    commit(transport, [], states)
    assert "init" not in client.take()


def test_at_least_once_in_its_order() -> None:
    client, transport = connected(exactly_once=False)
    commit(transport, [batch("out")], [batch("state", partition=2)])
    assert client.take() == [
        *("plain-send out [0]", "plain-flush"),
        *("begin", "tx-send state [2]", "tx-flush", "offsets in 1:7:n token", "commit"),
    ]
    commit(transport, [batch("out")], [batch("state", 0)])
    assert client.take() == ["plain-send out [0]", "plain-flush", "consumer-commit 1:7:n"]


@pytest.mark.parametrize("step", ["begin", "tx-send", "tx-flush", "offsets", "commit"])
def test_nothing_follows_a_step_that_failed_and_new_producers_come(step: str) -> None:
    client, transport = connected()
    client.fail(step, ErrorKind.TRANSIENT)
    with pytest.raises(TryAgain, match="because"):
        commit(transport, [batch("out")], [batch("state", partition=2)])
    first = next(i for i, call in enumerate(TRANSACTION) if call.startswith(step))
    assert client.take() == TRANSACTION[: first + 1]
    transport.recover()
    assert client.take() == ["discard-tx", "keep-alive", "open-tx", "init"]
    commit(transport, [batch("out")], [batch("state", partition=2)])
    assert client.take_but_discards() == TRANSACTION


@pytest.mark.parametrize("step", ["tx-flush", "offsets", "commit"])
def test_nothing_follows_a_step_that_was_late(step: str) -> None:
    """It goes on by itself, but not to the next step, nor with the next producer."""
    client, transport = connected()
    go_on = client.hang(step)
    count_from(transport._bound, client.hanging)
    with pytest.raises(TryAgain, match="did not answer"):
        commit(transport, [batch("out")], [batch("state", partition=2)], timeout_s=0.2)
    last = client.take()[-1]
    assert last.startswith(step)
    transport.recover()
    go_on.set()
    time.sleep(0.2)
    assert client.take() == ["discard-tx", "keep-alive", "open-tx", "init"]


def test_a_consumers_commit_that_waited_too_long_in_line_is_not_made() -> None:
    client, transport = connected(exactly_once=False)
    go_on = client.hang("poll")
    count_from(transport._bound, client.hanging)
    thread = transport._consumer
    assert thread is not None
    with pytest.raises(TryAgain):
        thread.call(lambda consumer: consumer.poll(0.0, 1), 0.1)
    with pytest.raises(TryAgain):
        commit(transport, [batch("out")], timeout_s=0.1)
    go_on.set()
    thread.call(lambda consumer: None, 60)
    assert not [call for call in client.take() if call.startswith("consumer-commit")]


def test_a_commit_without_producers_is_refused() -> None:
    client, transport = connected()
    client.fail("init", ErrorKind.TRANSIENT)
    with pytest.raises(TryAgain):
        transport.recover()
    with pytest.raises(TryAgain, match="no producer"):
        commit(transport, [batch("out")])
    assert "begin" not in client.take()


def member(member_id: str, instance: str = "one") -> MemberInfo:
    return MemberInfo(member_id, "lstmstream-g", "/10.0.0.7", [0], instance)


@pytest.mark.parametrize(
    ("instance", "member_id", "members", "replaced"),
    [
        ("one", "m-1", [member("m-1"), member("m-2", "two")], False),
        ("one", "m-1", [member("m-1", "two"), member("m-2")], True),
        ("one", "m-1", [member("m-2", "two")], False),  # it was dropped for its silence, and joins again
        ("one", "", [member("m-2")], False),  # m-2 may be the id that it is about to get
        (None, "m-1", [member("m-2", "")], False),
    ],
)
def test_a_fenced_producer_is_another_process_only_where_the_group_says_so(
    instance: str | None, member_id: str, members: list[MemberInfo], replaced: bool
) -> None:
    """A process that starts fences the one before, and joins later. Its own producer must not be fenced in turn."""
    client, transport = connected(instance=instance)
    client.fail("commit", ErrorKind.PRODUCER_FENCED)
    with pytest.raises(TryAgain):
        commit(transport, [batch("out")])
    client.member_id, client.members = member_id, members
    client.take()
    if replaced:
        with pytest.raises(OwnershipLost, match=r"'one' is 'm-2' at /10\.0\.0\.7, and this one is 'm-1'"):
            transport.recover()
        assert "init" not in client.take()
        with pytest.raises(TryAgain, match="no producer"):
            commit(transport, [batch("out")])
    else:
        transport.recover()
        assert client.take_but_discards()[-2:] == ["open-tx", "init"]
        commit(transport, [batch("out")])


def test_a_broken_consumer_is_replaced_by_recover() -> None:
    client, transport = connected()
    transport.poll(0.0, 1)
    client.fail("poll", ErrorKind.CONSUMER_BROKEN)
    with pytest.raises(TryAgain):
        transport.poll(0.0, 1)
    client.take()
    transport.recover()
    replaced = ["close-consumer 1", "open-consumer in"]
    assert client.take() == ["discard-tx", "keep-alive", *replaced, "open-tx", "init"]
    transport.poll(0.0, 1)
    transport.recover()
    assert client.take_but_discards() == ["poll 2", "keep-alive", "open-tx", "init"], "replaced once"
    client.fail("keep-alive", ErrorKind.CONSUMER_BROKEN)
    transport.recover()
    assert "open-consumer in" in client.take()
    client.fail("keep-alive", ErrorKind.INSTANCE_FENCED)
    with pytest.raises(OwnershipLost):
        transport.recover()


def test_an_admin_client_that_did_not_answer_is_replaced_by_recover() -> None:
    client, transport = connected()
    client.fail("committed", ErrorKind.TRANSIENT)
    with pytest.raises(TryAgain):
        transport.committed_offsets([0])
    client.fail("open-admin", ErrorKind.TRANSIENT)
    with pytest.raises(TryAgain):  # the broker is still away
        transport.recover()
    assert client.take() == ["committed", "discard-tx", "open-admin"]
    transport.recover()
    client.wait_for("close-admin")
    assert sorted(client.take_but_discards()) == ["close-admin", "init", "keep-alive", "open-admin", "open-tx"]
    assert transport.committed_offsets([0]) == {}
    transport.recover()
    assert "open-admin" not in client.take()


def test_only_what_a_poll_has_handed_out_can_be_resumed() -> None:
    client, transport = connected()
    listener: Any = client.listener
    listener.assigned([0, 1])
    transport.resume(0, 5)
    assert client.take() == [], "the daemon has not seen it yet"
    assert transport.poll(0.0, 1).assignment == {0: 1, 1: 2}
    listener.revoked([0])
    listener.assigned([0])
    transport.resume(0, 5)
    transport.resume(1, 6)
    assert client.take() == ["poll 1", "resume 1 6"], "0 came anew: it is silent until the daemon knows"
    assert transport.poll(0.0, 1).assignment == {0: 3, 1: 2}
    transport.join()
    listener.assigned([0])
    assert transport.poll(0.0, 1).assignment == {}, "the consumer before is not heard any more"


def test_a_read_that_was_late_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_admin, "READ_GRACE_S", 0.5)
    client, transport = connected()
    reader = transport.open_reader("in", 0, 2, 7)
    go_on = client.hang("read")
    count_from(transport._bound, client.hanging)
    with pytest.raises(TryAgain):
        reader.next(0.0)
    assert reader.position == 2
    monkeypatch.setattr(kafka_admin, "READ_GRACE_S", 60.0)
    go_on.set()
    assert len(reader.next(1.0)) == 3
    assert len(reader.next(1.0)) == 2
    assert reader.position == 7
    reader.close()
    assert client.take() == ["open-reader 2", "read 2", "read 2", "read 5", "close-reader"]


def test_close_aborts_what_is_open_and_frees_everything() -> None:
    client, transport = connected()
    client.fail("tx-flush", ErrorKind.RECORD_REFUSED)
    with pytest.raises(RecordRefused, match="because"):
        commit(transport, [batch("out")])
    client.take()
    transport.close(2.0)
    assert client.take() == ["abort", "discard-tx", "close-consumer 1", "close-admin"]
    transport.close(2.0)
    assert client.take() == []


def test_offsets_are_asked_for_as_they_should_be() -> None:
    client, transport = connected()
    assert transport.offset_range("t", 0) == (3, 9), "up to the high watermark"
    assert transport.stable_end_offsets([0, 1]) == {0: 8, 1: 8}
    client.fail("create", ErrorKind.DENIED)
    with pytest.raises(CannotServe, match="topic 't' cannot be created: the broker denies access: because"):
        transport.create("t", 1, {})
    client.fail("create", ErrorKind.TRANSIENT)
    with pytest.raises(TryAgain, match="creating topic 't': because"):
        transport.create("t", 1, {})


def test_an_instance_has_a_transactional_id_of_its_own() -> None:
    _, static = connected(instance="one")
    commit(static, [batch("out")])
    assert static._transactional_id == "g.one"


def other_member(member_id: str) -> Membership:
    return MEMBERSHIP._replace(member_id=member_id)


def test_without_an_instance_each_member_has_a_transactional_id_that_names_it() -> None:
    """From its first transaction on; until then it is one that nobody else has."""
    client = FakeClient()
    transport = KafkaTransport(client, group="g", input_topic="in")
    transport.connect()
    (first,) = client.transactional_ids
    assert first.startswith("g.")
    assert KafkaTransport(client, group="g", input_topic="in")._transactional_id != first
    transport.join()
    for member_id in ("m-1", "m-1", "m-2"):
        given = {"nonce": "n", "membership": other_member(member_id), "timeout_s": 5.0}
        transport.commit([batch("out")], [], {1: 7}, **given)
    assert client.transactional_ids == [first, "g.member:m-1", "g.member:m-2"]
    calls = [call for call in client.take() if call in ("init", "begin")]
    assert calls == ["init", *("init", "begin"), "begin", *("init", "begin")]


def test_what_failed_is_ended_under_the_id_that_it_had() -> None:
    """The member may have another one by then."""
    client, transport = connected()
    client.fail("commit", ErrorKind.TRANSIENT)
    with pytest.raises(TryAgain):
        commit(transport, [batch("out")])
    client.member_id = "m-2"
    transport.recover()
    assert set(client.transactional_ids) == {"g.member:m-1"}


OF_NOBODY = ["g.member:m-1", "g.member:m-2", "g.one", "g.0123", "g", "g.member", "g.x.member:m-9", "other.member:m-9"]


@pytest.mark.parametrize(
    ("open_ids", "ended"),
    [
        ([], []),
        (OF_NOBODY, []),
        ([*OF_NOBODY, "g.member:m-9", "g.member:m-8"], ["g.member:m-8", "g.member:m-9"]),
    ],
)
def test_the_transaction_of_a_member_that_is_gone_is_ended_and_no_other(open_ids: list[str], ended: list[str]) -> None:
    """Neither its own, nor that of a member that the group has, of a static one, of a stage or of another program."""
    client, transport = connected()
    client.open_ids, client.members = open_ids, [member("m-1", ""), member("m-2", "")]
    assert transport.end_abandoned(MEMBERSHIP) == len(ended)
    client.wait_for("close-admin")
    asked = ["group-members"] if ended or "g.member:m-2" in open_ids else []
    fenced = [f"fence {one}" for one in ended]
    assert client.take() == ["open-admin", "open-ids", *asked, *fenced, "close-admin"]
    assert len(client.transactional_ids) == 1, "no producer is made for it"


def test_members_are_asked_for_after_the_transactions() -> None:
    """One that joins in between, and writes, is not taken for one that is gone."""
    client, transport = connected()
    client.members = [member("m-1", "")]

    def join() -> None:
        client.open_ids = ["g.member:m-9", "g.member:m-8"]
        client.members.append(member("m-8", ""))

    client.faults["open-ids"] = join
    assert transport.end_abandoned(MEMBERSHIP) == 1
    assert [call for call in client.take() if call.startswith("fence")] == ["fence g.member:m-9"]


def test_a_coordinator_that_does_not_know_us_is_not_believed() -> None:
    client, transport = connected()
    client.open_ids, client.members = ["g.member:m-9"], [member("m-2", "")]
    with pytest.raises(TryAgain, match="does not name this member"):
        transport.end_abandoned(MEMBERSHIP)
    assert not [call for call in client.take() if call.startswith("fence")]


@pytest.mark.parametrize("call", ["open-admin", "open-ids", "group-members", "fence"])
@pytest.mark.parametrize(("kind", "error"), [(ErrorKind.TRANSIENT, TryAgain), (ErrorKind.DENIED, CannotServe)])
def test_what_fails_of_it_leaves_the_other_clients_as_they_are(
    call: str, kind: ErrorKind, error: type[Exception]
) -> None:
    client, transport = connected()
    client.open_ids, client.members = ["g.member:m-9"], [member("m-1", "")]
    client.fail(call, kind)
    with pytest.raises(error):
        transport.end_abandoned(MEMBERSHIP)
    client.take()
    assert transport.committed_offsets([0]) == {}
    commit(transport, [batch("out")], [batch("state", partition=2)])
    assert [one for one in client.take() if one != "close-admin"] == ["committed", *TRANSACTION]
    assert transport.end_abandoned(MEMBERSHIP) == 1
