"""What the daemon does about an error: the same for both clients."""

from __future__ import annotations

from typing import Any

import kafka.errors as kerr
import pytest
from confluent_kafka import KafkaError, KafkaException
from kafka import TopicPartition

from lstmstream.errors import (
    CannotServe,
    Fatal,
    LstmstreamError,
    MembershipRefused,
    OwnershipLost,
    RecordRefused,
    TryAgain,
)
from lstmstream.transport.clients import Client
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.decisions import DECISIONS, BadCredentials, ErrorKind, Problem, decide, write_failed
from lstmstream.transport.decompression import BatchTooLargeError
from lstmstream.transport.security import SecuritySettings


@pytest.fixture
def clients() -> dict[str, Client]:
    return {
        name: open_client(name, servers=["127.0.0.1:9"], group="g", properties={}, security=SecuritySettings())
        for name in ("kafka-python", "confluent")
    }


def librdkafka(code: int, **flags: bool) -> KafkaException:
    return KafkaException(KafkaError(code, "because", **flags))


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def test_each_kind_has_a_decision_and_says_what_the_client_said() -> None:
    assert set(DECISIONS) == set(ErrorKind)
    for kind in ErrorKind:
        assert "{braces} %s" in str(decide(Problem(kind, "{braces} %s")))


@pytest.mark.parametrize(
    ("ours", "theirs", "decision"),
    [
        (kerr.KafkaTimeoutError("late"), KafkaError._TIMED_OUT, TryAgain),
        (kerr.NotCoordinatorError(), KafkaError.NOT_COORDINATOR, TryAgain),
        (kerr.IllegalGenerationError(), KafkaError.ILLEGAL_GENERATION, MembershipRefused),
        (kerr.UnknownMemberIdError(), KafkaError.UNKNOWN_MEMBER_ID, MembershipRefused),
        (kerr.RebalanceInProgressError(), KafkaError.REBALANCE_IN_PROGRESS, TryAgain),
        (kerr.UnknownTopicOrPartitionError(), KafkaError.UNKNOWN_TOPIC_OR_PART, TryAgain),
        (kerr.FencedInstanceIdError(), KafkaError.FENCED_INSTANCE_ID, OwnershipLost),
        (kerr.MessageSizeTooLargeError(), KafkaError.MSG_SIZE_TOO_LARGE, RecordRefused),
        (kerr.RecordListTooLargeError(), KafkaError.RECORD_LIST_TOO_LARGE, RecordRefused),
        (kerr.InvalidTimestampError(), KafkaError.INVALID_TIMESTAMP, RecordRefused),
        (kerr.InvalidRecordError(), KafkaError.INVALID_RECORD, RecordRefused),
        (kerr.InvalidRecordError(), KafkaError._INVALID_DIFFERENT_RECORD, RecordRefused),
        (kerr.UnsupportedForMessageFormatError(), KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT, RecordRefused),
        (kerr.InvalidTopicError(), KafkaError.TOPIC_EXCEPTION, CannotServe),
        (kerr.InvalidConfigurationError(), KafkaError.INVALID_CONFIG, CannotServe),
        (kerr.InvalidPartitionsError(), KafkaError.INVALID_PARTITIONS, CannotServe),
        (kerr.GroupMaxSizeReachedError(), KafkaError.GROUP_MAX_SIZE_REACHED, TryAgain),
        (kerr.NotEnoughReplicasError(), KafkaError.NOT_ENOUGH_REPLICAS, TryAgain),
        (kerr.CoordinatorLoadInProgressError(), KafkaError.COORDINATOR_LOAD_IN_PROGRESS, TryAgain),
        (kerr.UnsupportedCodecError("lz4"), KafkaError._UNSUPPORTED_FEATURE, CannotServe),
        (BatchTooLargeError("in[0]@7: too large"), KafkaError._BAD_COMPRESSION, Fatal),
        (kerr.OffsetOutOfRangeError({TopicPartition("in", 0): 5}), KafkaError._AUTO_OFFSET_RESET, CannotServe),
        (kerr.TopicAuthorizationFailedError({"in"}), KafkaError.TOPIC_AUTHORIZATION_FAILED, CannotServe),
        (kerr.GroupAuthorizationFailedError("g"), KafkaError.GROUP_AUTHORIZATION_FAILED, CannotServe),
        (
            kerr.TransactionalIdAuthorizationFailedError(),
            KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
            CannotServe,
        ),
        (kerr.SaslAuthenticationFailedError("no"), KafkaError._AUTHENTICATION, BadCredentials),
        (kerr.PolicyViolationError(), KafkaError.POLICY_VIOLATION, CannotServe),
        (kerr.InvalidReplicationFactorError(), KafkaError.INVALID_REPLICATION_FACTOR, CannotServe),
        (kerr.KafkaConfigurationError("bad"), KafkaError._INVALID_ARG, CannotServe),
    ],
)
def test_both_clients_mean_the_same(
    clients: dict[str, Client], ours: kerr.KafkaError, theirs: int, decision: type[LstmstreamError]
) -> None:
    for name, error in (("kafka-python", ours), ("confluent", librdkafka(theirs))):
        problem = clients[name].problem(error)
        assert problem is not None
        assert type(decide(problem)) is decision, name


def test_a_fenced_producer_is_not_yet_another_process(clients: dict[str, Client]) -> None:
    """The broker fences too, and so does a process that has not joined the group: `recover` asks the group."""
    errors: list[tuple[str, Any]] = [
        ("kafka-python", kerr.ProducerFencedError()),
        ("kafka-python", kerr.InvalidProducerEpochError()),
        ("confluent", librdkafka(KafkaError._FENCED, fatal=True)),
        ("confluent", librdkafka(KafkaError.INVALID_PRODUCER_EPOCH)),
    ]
    for name, error in errors:
        problem = clients[name].problem(error)
        assert problem is not None
        assert problem.kind is ErrorKind.PRODUCER_FENCED
        assert type(decide(problem)) is TryAgain


def test_the_cause_within_counts(clients: dict[str, Client]) -> None:
    """kafka-python hides it in a bare KafkaError, librdkafka's binding in a SystemError."""
    for error in (
        kerr.KafkaError(kerr.FencedInstanceIdError("one")),
        caused(kerr.KafkaError("failed"), kerr.FencedInstanceIdError("one")),
        caused(kerr.KafkaError("failed"), kerr.KafkaError("again", kerr.FencedInstanceIdError("one"))),
    ):
        problem = clients["kafka-python"].problem(error)
        assert problem is not None
        assert problem.kind is ErrorKind.INSTANCE_FENCED
    problem = clients["confluent"].problem(caused(SystemError("result"), librdkafka(KafkaError._FENCED)))
    assert problem is not None
    assert problem.kind is ErrorKind.PRODUCER_FENCED


def test_an_error_that_is_not_the_librarys_is_not_explained(clients: dict[str, Client]) -> None:
    for client in clients.values():
        assert client.problem(AssertionError("a mistake of ours")) is None
        assert client.problem(SystemError("the interpreter's")) is None
        assert client.problem(ConnectionResetError("the network's")) is not None


TIMED_OUT = Problem(ErrorKind.TRANSIENT, "timed out")


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        (ErrorKind.DENIED, CannotServe, "out[3]: the broker denies writing: no; grant WRITE and DESCRIBE on 'out'"),
        (ErrorKind.TOPIC_REFUSED, CannotServe, "out[3]: the broker refuses what is written: no"),
        (ErrorKind.RECORD_REFUSED, RecordRefused, "out[3]: the broker refuses a record for good: no"),
        (ErrorKind.RECORD_UNREADABLE, TryAgain, "state[1]: timed out"),
        (ErrorKind.TRANSIENT, TryAgain, "state[1]: timed out"),
    ],
)
def test_a_write_that_failed_names_its_place_and_what_will_not_pass(
    kind: ErrorKind, error: type[LstmstreamError], said: str
) -> None:
    """A batch that arrived damaged is sent again: it is no damage of the log."""
    found = write_failed([(TIMED_OUT, "state", 1), (Problem(kind, "no"), "out", 3)])
    assert type(found) is error
    assert str(found).startswith(said)
    assert write_failed([(TIMED_OUT, "state", 1), (Problem(ErrorKind.PRODUCER_FENCED, "no"), "out", 3)]) is None
