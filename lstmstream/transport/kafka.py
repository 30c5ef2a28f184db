"""Kafka's exactly-once protocol over either client library: a Transport (see ports.py).

Written once, here: the order of a transaction, the time limits, what an error means for the daemon, epochs of
assignments, the nonce in the offsets' metadata, and the order of `at_least_once`. What a library gets wrong, and what
is done about it, is written in its adapter (clients/).
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lstmstream.config import Config
from lstmstream.errors import Fatal, LstmstreamError, OwnershipLost, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport.abandoned import transactional_id_of
from lstmstream.transport.calls import ClientThread
from lstmstream.transport.clients import Client, GroupConsumer
from lstmstream.transport.credentials import Credentials
from lstmstream.transport.decisions import ErrorKind
from lstmstream.transport.kafka_admin import KafkaAdmin, client_of, diagnosis_of, security_of
from lstmstream.transport.ports import (
    CALL_TIMEOUT_S,
    CommittedOffset,
    MemberInfo,
    Membership,
    PollResult,
    Transport,
)
from lstmstream.transport.security import SecuritySettings
from lstmstream.transport.writer import CLOSE_TIMEOUT_S, GroupOffsets, Writer, left_s

log = logging.getLogger(__name__)


_KEEP_ALIVE_S = 2.0
# librdkafka does not accept a certificate whose key is another one's, as in the moment between two files.
_OF_CREDENTIALS = {ErrorKind.BAD_CREDENTIALS, ErrorKind.BAD_SETTINGS}
CHANGED_S = 5.0  # outside of the group, before files that were replaced are taken for the cause
OUTSIDE_S = 120.0  # more than a group needs: it waits 45 s for a member that died, and 60 s for the others to join
OUTSIDE_AFTER_OUTAGE_S = 20.0
HELPLESS_S = 300.0  # of recoveries that fail, though the brokers answer: longer than one needs that is starting
AFTER_OUTAGE_S = 180.0  # so long does a consumer count as one that may have missed what has changed


class Assignments:
    """The partitions of one consumer, each with a number that is new whenever it is assigned."""

    def __init__(self, epochs: Iterable[int]) -> None:
        self._epochs = iter(epochs)
        self._lock = threading.Lock()  # kafka-python calls from a thread of its own
        self._assigned: dict[int, int] = {}

    def assigned(self, partitions: Iterable[int]) -> None:
        """See AssignmentListener."""
        with self._lock:
            for partition in partitions:
                self._assigned[partition] = next(self._epochs)

    def revoked(self, partitions: Iterable[int]) -> None:
        """See AssignmentListener."""
        with self._lock:
            for partition in partitions:
                self._assigned.pop(partition, None)

    def snapshot(self) -> dict[int, int]:
        """Partition → epoch, now."""
        with self._lock:
            return dict(self._assigned)


class KafkaTransport(KafkaAdmin):
    """A Transport (see ports.py) over one client library."""

    def __init__(
        self,
        client: Client,
        *,
        group: str,
        input_topic: str,
        exactly_once: bool = True,
        instance: str | None = None,
        diagnose: Callable[[], str] = lambda: "",
        security: SecuritySettings | None = None,
    ) -> None:
        """`instance`: the group.instance.id, if there is one. `security`: whose files may be replaced.

        With it another process may follow under the same transactional id, which ends the transaction that this one
        may leave open. Without, the transactional id names the member, so that others can tell whether it is gone.
        """
        super().__init__(client, diagnose=diagnose)
        self._credentials = Credentials(security or SecuritySettings())
        self._group = group
        self._instance = instance
        self._input_topic = input_topic
        self._exactly_once = exactly_once
        self._transactional_id = f"{group}.{uuid.uuid4().hex if instance is None else instance}"
        self._epochs = itertools.count(1)
        self._assignments = Assignments(self._epochs)
        self._joined = False  # it was asked to: from then on it should have a consumer
        self._consumer_broken = False
        self._polled: Mapping[int, int] = {}  # the assignment that the last poll handed out
        self._consumer: ClientThread[GroupConsumer] | None = None
        self._writer: Writer | None = None
        self._outage = False  # the last recovery failed
        self._outage_end_s = -math.inf  # of the last one
        self._helpless_since_s: float | None = None  # recoveries fail, and nothing is wrong with the network
        self._outside_since_s: float | None = None  # the consumer is not in its group
        self._patience_s = OUTSIDE_S  # until it is replaced

    def connect(self) -> None:
        """See Transport."""
        with self._diagnosis.explaining():
            self._reconnect(CALL_TIMEOUT_S)
            self._recover(CALL_TIMEOUT_S)
        self._credentials.on_accepted()

    def stable_end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """See GroupMember."""
        return self.last_stable_offsets(self._input_topic, partitions)

    # -- reading

    def join(self, *, smaller_fetches: bool = False) -> None:
        """See GroupMember."""
        self._joined = True
        if smaller_fetches:
            self._client.fetch_less()
        self._join(time.monotonic() + CALL_TIMEOUT_S)

    def _join(self, deadline: float) -> None:
        if self._consumer is not None:
            limit_s = 0.0 if self._consumer.stuck else min(CLOSE_TIMEOUT_S, left_s(deadline) / 2)
            self._consumer.end(lambda consumer: consumer.close(limit_s), limit_s)
            self._consumer = None
        self._polled = {}
        self._outside_since_s = None
        self._credentials.on_join()
        # Of its own, so that what is still to come from the consumer before cannot touch it.
        assignments = self._assignments = Assignments(self._epochs)
        self._consumer = self._open(
            "consumer",
            lambda: self._client.group_consumer(self._input_topic, assignments),
            lambda consumer: consumer.close(CLOSE_TIMEOUT_S),
            left_s(deadline),
        )
        self._consumer_broken = False

    def poll(self, timeout_s: float, max_events: int) -> PollResult:
        """See GroupMember."""
        fetched = self._member().call(lambda consumer: consumer.poll(timeout_s, max_events), timeout_s + CALL_TIMEOUT_S)
        self._watch(in_group=fetched.membership.valid)
        # After the membership: a partition that goes meanwhile goes with a generation that fences this one.
        self._polled = self._assignments.snapshot()
        return PollResult(fetched.records, fetched.membership, self._polled, fetched.positions)

    def _watch(self, *, in_group: bool) -> None:
        """Replace a consumer that does not come back to its group. Raises TryAgain; `recover` does it.

        It may know the brokers by addresses that they had before an outage, and kafka-python never asks again at those
        of the configuration. It may also have to wait for others, which take their time: hence the patience.
        """
        now_s = time.monotonic()
        if in_group:
            after_outage = now_s - self._outage_end_s < AFTER_OUTAGE_S
            self._outside_since_s, self._patience_s = None, OUTSIDE_AFTER_OUTAGE_S if after_outage else OUTSIDE_S
            return
        if self._outside_since_s is None:
            self._outside_since_s = now_s
        outside_s = now_s - self._outside_since_s
        if outside_s > CHANGED_S and self._credentials.changed():
            self._consumer_broken = True
            raise TryAgain("the consumer is outside its group, and kafka.security has new files; replacing it")
        if outside_s > self._patience_s:
            self._patience_s *= 2  # the member that it was may have to expire first
            self._consumer_broken = True
            raise TryAgain(f"the consumer has been outside its group for {outside_s:.0f} s; replacing it")

    def resume(self, partition: int, offset: int) -> None:
        """See GroupMember."""
        epoch = self._polled.get(partition)
        if epoch is not None and self._assignments.snapshot().get(partition) == epoch:
            self._member().call(lambda consumer: consumer.resume(partition, offset), CALL_TIMEOUT_S)

    def committed_offsets(
        self, partitions: Collection[int], timeout_s: float = CALL_TIMEOUT_S
    ) -> dict[int, CommittedOffset]:
        """See GroupMember."""
        return self.group_offsets(self._input_topic, partitions, timeout_s)

    def group_members(self) -> Sequence[MemberInfo]:
        """See GroupMember."""
        return self.members_of(self._group, self._input_topic)

    # -- writing

    def commit(
        self,
        outputs: Sequence[RecordBatch],
        states: Sequence[RecordBatch],
        offsets: Mapping[int, int],
        *,
        nonce: str,
        membership: Membership,
        timeout_s: float,
    ) -> None:
        """See GroupMember. After any error the producers are of no more use: `recover` makes new ones."""
        assert offsets, "a transaction without offsets is not fenced"
        deadline = time.monotonic() + timeout_s
        with_nonce = {partition: CommittedOffset(offset, nonce) for partition, offset in offsets.items()}
        writer = self._writer
        if writer is None:
            raise TryAgain("there is no producer")
        renamed = self._take_name(membership.member_id)
        if writer.repeated or renamed:
            writer = self._replace_writer(deadline)
        transactional = [*outputs, *states] if writer.plain is None else states
        if writer.plain is not None:
            writer.write(writer.plain, outputs, deadline)
        if writer.plain is None or any(len(batch) for batch in states):  # only a transaction fences states
            writer.transact(transactional, GroupOffsets(self._input_topic, with_nonce, membership), deadline)
        else:
            left = left_s(deadline)
            self._member().call(lambda consumer: consumer.commit(with_nonce, membership, left), left)

    def _take_name(self, member_id: str) -> bool:
        """Whether the transactional id is another one from now on: that of the member that commits.

        Between two transactions only. What is left open after an error is ended under the id that it has.
        """
        before = self._transactional_id
        if self._instance is None and member_id:
            self._transactional_id = transactional_id_of(self._group, member_id)
        return self._transactional_id != before

    def end_abandoned(self, membership: Membership) -> int:
        """See GroupMember."""
        return self.end_abandoned_of(self._group, self._input_topic, membership.member_id)

    def recover(self, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """See GroupMember. New producers, since the old ones are not to be trusted after an error.

        An aborted transaction's offsets go out with the next one, and a late end of a transaction ends the next one
        (KAFKA-17754, librdkafka #5423). A new producer of the same transactional id ends what was open, and fences
        whatever a call that was left behind still sends.

        After a failed recovery the admin client is new too, and a consumer that does not find its group again soon is
        replaced (`_watch`): the brokers may have come back under other addresses. Where nothing helps, Fatal is raised.
        """
        try:
            with self._credentials.patient(), self._diagnosis.explaining():
                self._recover(timeout_s)
        except TryAgain as error:
            self._outage = True
            self._check_helpless(error)
            raise
        self._helpless_since_s = None
        self._credentials.on_accepted()
        if self._outage:
            self._outage, self._outage_end_s = False, time.monotonic()
            self._outside_since_s, self._patience_s = None, OUTSIDE_AFTER_OUTAGE_S

    def _check_helpless(self, error: TryAgain) -> None:
        """Brokers that are away are waited for. Where they answer, a new process may find out what this one cannot."""
        now_s = time.monotonic()
        if self._diagnosis.found:
            self._helpless_since_s = None
            return
        if self._helpless_since_s is None:
            self._helpless_since_s = now_s
        helpless_s = now_s - self._helpless_since_s
        if helpless_s > HELPLESS_S:
            raise Fatal(f"the brokers answer, but nothing has helped for {helpless_s:.0f} s: {error}. Start it again")

    def _recover(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        self._discard_writer()
        if self._credentials.changed():  # the consumer and the admin client may not know the new ones
            self._doubtful, self._consumer_broken = True, True
        if self._doubtful or self._outage:  # librdkafka's admin client was seen never to answer again after an outage
            self._reconnect(left_s(deadline))
        if self._joined and self._consumer is None:  # it could not be replaced the last time
            self._join(deadline)
        elif self._consumer is not None:
            self._keep_alive(self._consumer, deadline)
        self._replace_writer(deadline)

    def _replace_writer(self, deadline: float) -> Writer:
        """A library repeats the end of a transaction where no answer came, and says nothing of it.

        The first one may still arrive, and would end the next transaction in its middle (KAFKA-17754): its records
        would be committed, without its offsets. A new producer has another epoch, so the broker refuses it.
        """
        self._discard_writer()
        self._check_replaced()
        self._writer = self.open_writer(self._transactional_id, left_s(deadline), plain_too=not self._exactly_once)
        return self._writer

    def _discard_writer(self) -> None:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _check_replaced(self) -> None:
        """Raise OwnershipLost where the group has another member under our group.instance.id.

        Asked before each new producer, which would fence that member's. That ours was fenced says nothing of it: a
        process of the same id does so when it starts, before it joins, and so does the broker, when a transaction was
        open for too long (KIP-588). A client without a member id is about to join again, and the broker may already
        know the id that it will get.
        """
        if self._instance is None or self._consumer is None:
            return
        ours = self._consumer.call(lambda consumer: consumer.member_id(), CALL_TIMEOUT_S)
        if not ours:
            return
        for member in self.group_members():
            if member.group_instance_id == self._instance and member.member_id != ours:
                raise OwnershipLost(
                    f"another process has taken this one's group.instance.id: the group's member {self._instance!r} is"
                    f" {member.member_id!r} at {member.host}, and this one is {ours!r}"
                )

    def _keep_alive(self, consumer: ClientThread[GroupConsumer], deadline: float) -> None:
        """An outage may last longer than the group waits for a poll. A consumer that did not survive it is replaced."""
        if not consumer.stuck:
            try:
                consumer.call(lambda c: c.keep_alive(), min(_KEEP_ALIVE_S, left_s(deadline)))
            except TryAgain as error:
                log.info("the consumer reports an error: %s", error)
        if consumer.stuck or self._consumer_broken:
            self._join(deadline)

    def close(self, timeout_s: float) -> None:
        """See Transport."""
        deadline = time.monotonic() + timeout_s
        self._bound.deadline_s = math.inf  # it may have passed: what follows has limits of its own
        if self._writer is not None:
            self._writer.close(deadline)
        if self._consumer is not None:
            self._consumer.end(lambda consumer: consumer.close(left_s(deadline)), left_s(deadline) + 0.2)
        self._writer = self._consumer = None
        super().close(max(0.2, left_s(deadline)))

    # -- clients

    def _to_error(self, error: BaseException) -> LstmstreamError | None:
        problem = self._client.problem(error)
        if problem is not None and problem.kind is ErrorKind.CONSUMER_BROKEN:
            self._consumer_broken = True  # `recover` makes another one
        found = super()._to_error(error)
        if found is not None and problem is not None and problem.kind in _OF_CREDENTIALS:
            return self._credentials.judge(found)
        return found

    def _member(self) -> ClientThread[GroupConsumer]:
        if self._consumer is None:
            raise TryAgain("there is no consumer")
        return self._consumer


def open_kafka_transport(config: Config) -> KafkaTransport:
    """The transport that a configuration asks for; nothing is connected yet. Raises CannotServe."""
    instance = config.kafka.properties.get("group.instance.id")
    return KafkaTransport(
        client_of(config),
        group=config.name,
        input_topic=config.input.topic,
        exactly_once=config.delivery == "exactly_once",
        instance=None if instance is None else str(instance),
        diagnose=diagnosis_of(config),
        security=security_of(config),
    )


if TYPE_CHECKING:

    def _is_a_transport(transport: KafkaTransport) -> Transport:
        return transport
