"""What the daemon does about an error of a client: one row for each kind of error, whichever client it comes from.

A client says of what kind its error is (`Client.problem`); the table says what follows from that. A new kind is a
member of `ErrorKind` and a row of `DECISIONS`; the clients' own tables then name the errors that are of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import NamedTuple

from lstmstream.errors import CannotServe, Fatal, LstmstreamError, OwnershipLost, TryAgain


class ErrorKind(Enum):
    """What an error of a client means."""

    TRANSIENT = auto()  # of the broker, the network or the group; everything that no other kind names
    CONSUMER_BROKEN = auto()  # this consumer is of no more use, and another one may be
    INSTANCE_FENCED = auto()  # another process has joined under our group.instance.id
    PRODUCER_FENCED = auto()  # another producer has taken our transactional id
    RECORD_REFUSED = auto()  # the broker will never take one of the records
    RECORDS_GONE = auto()  # the position is outside of the log
    RECORD_UNREADABLE = auto()  # the log holds something that cannot be decoded
    DENIED = auto()  # a right is missing
    BAD_CREDENTIALS = auto()  # authentication failed
    TOPIC_REFUSED = auto()  # a topic cannot be created as asked
    BAD_SETTINGS = auto()  # the client does not accept its settings


class ProducerFenced(OwnershipLost):
    """By another producer of our transactional id, or by the broker, because the transaction was open for too long."""


class Problem(NamedTuple):
    """An error of a client in terms of the transport."""

    kind: ErrorKind
    text: str  # what the client says, with the place where it knows one


class Decision(NamedTuple):
    """What the daemon does next, and what it says; `{problem}` stands for the client's text."""

    error: type[LstmstreamError]
    message: str


DECISIONS: Mapping[ErrorKind, Decision] = {
    ErrorKind.TRANSIENT: Decision(TryAgain, "{problem}"),
    ErrorKind.CONSUMER_BROKEN: Decision(TryAgain, "{problem}"),
    ErrorKind.INSTANCE_FENCED: Decision(
        OwnershipLost, "another process has taken this one's group.instance.id: {problem}"
    ),
    ErrorKind.PRODUCER_FENCED: Decision(
        ProducerFenced, "another process has taken this one's group.instance.id: {problem}"
    ),
    ErrorKind.RECORD_REFUSED: Decision(
        Fatal,
        "the broker will not take a record: {problem}. Raise max.message.bytes of the output and dead-letter topics",
    ),
    ErrorKind.RECORDS_GONE: Decision(
        CannotServe,
        "records that were still to be read are gone ({problem}); the topic's retention is too short, or it was"
        " truncated or made again",
    ),
    ErrorKind.RECORD_UNREADABLE: Decision(
        Fatal, "{problem}. Move the group's offset past it, if it can be done without"
    ),
    ErrorKind.DENIED: Decision(CannotServe, "the broker denies it: {problem}; grant the right it names"),
    ErrorKind.BAD_CREDENTIALS: Decision(
        CannotServe, "the broker does not accept the credentials: {problem}; see kafka.security"
    ),
    ErrorKind.TOPIC_REFUSED: Decision(CannotServe, "the broker refuses the topic: {problem}; create it by hand"),
    ErrorKind.BAD_SETTINGS: Decision(
        CannotServe, "the Kafka client does not accept its settings: {problem}; see kafka.properties and kafka.security"
    ),
}


def decide(problem: Problem, *, static_member: bool) -> LstmstreamError:
    """The error for the daemon. A fenced producer means another process only where two could share an id.

    Without a group.instance.id the transactional id is random, so that its fence can only be our own successor's.
    """
    kind = problem.kind
    if kind is ErrorKind.PRODUCER_FENCED and not static_member:
        kind = ErrorKind.TRANSIENT
    decision = DECISIONS[kind]
    return decision.error(decision.message.format(problem=problem.text))
