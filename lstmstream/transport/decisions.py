"""What the daemon does about an error of a client: one row for each kind of error, whichever client it comes from.

A client says of what kind its error is (`Client.problem`); the table says what follows from that. A new kind is a
member of `ErrorKind` and a row of `DECISIONS`. Of which kind the broker's errors are is in `error_codes.py`, by number;
the clients' own tables name the errors that they raise by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import NamedTuple

from lstmstream.errors import (
    CannotServe,
    Fatal,
    LstmstreamError,
    MembershipRefused,
    OwnershipLost,
    RecordRefused,
    TryAgain,
)


class ErrorKind(Enum):
    """What an error of a client means."""

    TRANSIENT = auto()  # of the broker, the network or the group; everything that no other kind names
    MEMBERSHIP_REFUSED = auto()  # by the group, of which this member or its generation is no part any more
    CONSUMER_BROKEN = auto()  # this consumer is of no more use, and another one may be
    INSTANCE_FENCED = auto()  # another process has joined under our group.instance.id
    PRODUCER_FENCED = auto()  # by another one of our transactional id, or by the broker, whose patience had ended
    RECORD_REFUSED = auto()  # the broker will never take one of the records
    RECORD_TOO_LARGE = auto()  # the same, for its size
    RECORDS_GONE = auto()  # the position is outside of the log
    RECORD_UNREADABLE = auto()  # the log holds something that cannot be decoded
    DENIED = auto()  # a right is missing
    BAD_CREDENTIALS = auto()  # authentication failed
    TOPIC_REFUSED = auto()  # a topic cannot be created as asked
    SETTING_REFUSED = auto()  # the broker will never take one of the client's settings
    BAD_SETTINGS = auto()  # the client does not accept its settings


REFUSED = frozenset({ErrorKind.RECORD_REFUSED, ErrorKind.RECORD_TOO_LARGE})
# Of a write, which can be tried again: a batch that reached the broker damaged was damaged on its way.
PASSING_OF_WRITES = frozenset({ErrorKind.TRANSIENT, ErrorKind.MEMBERSHIP_REFUSED, ErrorKind.RECORD_UNREADABLE})


class BadCredentials(CannotServe):
    """The broker does not accept who we are."""


class Problem(NamedTuple):
    """An error of a client in terms of the transport."""

    kind: ErrorKind
    text: str  # what the client says, with the place where it knows one; for a refused setting, which one


class Decision(NamedTuple):
    """What the daemon does next, and what it says; `{problem}` stands for the client's text."""

    error: type[LstmstreamError]
    message: str


DECISIONS: Mapping[ErrorKind, Decision] = {
    ErrorKind.TRANSIENT: Decision(TryAgain, "{problem}"),
    ErrorKind.MEMBERSHIP_REFUSED: Decision(MembershipRefused, "{problem}"),
    ErrorKind.CONSUMER_BROKEN: Decision(TryAgain, "{problem}"),
    ErrorKind.INSTANCE_FENCED: Decision(
        OwnershipLost, "another process has taken this one's group.instance.id: {problem}"
    ),
    ErrorKind.PRODUCER_FENCED: Decision(TryAgain, "the broker has fenced the producer: {problem}"),
    ErrorKind.RECORD_REFUSED: Decision(RecordRefused, "the broker refuses a record: {problem}"),
    ErrorKind.RECORD_TOO_LARGE: Decision(RecordRefused, "the broker refuses a record as too large: {problem}"),
    ErrorKind.RECORDS_GONE: Decision(
        CannotServe,
        "records that were still to be read are gone ({problem}); the topic's retention is too short, or it was"
        " truncated or recreated",
    ),
    ErrorKind.RECORD_UNREADABLE: Decision(
        Fatal, "{problem}. Move the group's offset past it, if you can do without it"
    ),
    ErrorKind.DENIED: Decision(CannotServe, "the broker denies access: {problem}; grant the permission it names"),
    ErrorKind.BAD_CREDENTIALS: Decision(
        BadCredentials, "the broker does not accept the credentials: {problem}; see kafka.security"
    ),
    ErrorKind.TOPIC_REFUSED: Decision(CannotServe, "the broker refuses the topic: {problem}; create it by hand"),
    ErrorKind.SETTING_REFUSED: Decision(CannotServe, "{problem}"),
    ErrorKind.BAD_SETTINGS: Decision(
        CannotServe, "the Kafka client does not accept its settings: {problem}; see kafka.properties and kafka.security"
    ),
}


def decide(problem: Problem) -> LstmstreamError:
    """The error for the daemon."""
    kind = problem.kind
    decision = DECISIONS[kind]
    if decision.error is RecordRefused:
        return RecordRefused(
            decision.message.format(problem=problem.text), too_large=kind is ErrorKind.RECORD_TOO_LARGE
        )
    return decision.error(decision.message.format(problem=problem.text))


def write_failed(problems: Iterable[tuple[Problem, str, int]]) -> LstmstreamError | None:
    """The error of records that could not be written, each with topic and partition: the one that will not pass.

    Other records fail because of it, and say nothing of the cause. None where the error is not that of a record.
    """
    passing: LstmstreamError | None = None
    for problem, topic, partition in problems:
        at = f"{topic}[{partition}]"
        if problem.kind in REFUSED:
            return record_refused(problem, topic, partition)
        if problem.kind is ErrorKind.DENIED:
            return CannotServe(
                f"{at}: the broker denies writing: {problem.text}; grant WRITE and DESCRIBE on {topic!r}"
            )
        if problem.kind is ErrorKind.TOPIC_REFUSED:
            return CannotServe(
                f"{at}: the broker refuses what is written: {problem.text}; see the policies of {topic!r}"
            )
        if problem.kind not in PASSING_OF_WRITES:
            return None
        passing = passing or TryAgain(f"{at}: {problem.text}")
    return passing


def record_refused(problem: Problem, topic: str, partition: int) -> RecordRefused:
    """The error of a record that was written to a known place."""
    too_large = problem.kind is ErrorKind.RECORD_TOO_LARGE
    what = "as too large" if too_large else "for good"
    text = f"{topic}[{partition}]: the broker refuses a record {what}: {problem.text}"
    return RecordRefused(text, topic=topic, partition=partition, too_large=too_large)
