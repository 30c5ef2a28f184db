"""The errors of this package, grouped by what the daemon does next.

LstmstreamError
├── BadRecord          one record is wrong: it becomes a dead letter, the stream goes on
├── TryAgain           the broker may recover: roll back, make a new producer, rewind, retry
│   ├── SchemaRegistryDown  the broker may be well: read the same records again, and ask for the schema again
│   └── RecordRefused  the broker will never take one of the records: find it, and publish a dead letter in its place
├── OwnershipLost      another process owns these keys or this transactional id: leave, commit nothing
├── Fatal              cannot continue, and a restart may help: exit code 1
│   └── UnreadableRecords  the log holds bytes that are not records: say where, and how to continue without them
└── CannotServe        config, model or topics are wrong: say what and how to fix it, exit code 2
"""

from __future__ import annotations


class LstmstreamError(Exception):
    """Root of everything this package raises on purpose."""


class BadRecord(LstmstreamError):
    """One input record cannot be turned into a prediction. `stage` names the stage that rejected it."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


class TryAgain(LstmstreamError):
    """A temporary fault of the broker or the network. The transaction in progress is lost."""


class MembershipRefused(TryAgain):
    """The group does not know the membership under which offsets were to be committed."""


class SchemaRegistryDown(TryAgain):
    """A schema is needed that is not known yet, and the registry cannot be asked for it now."""


class OutcomeUnknown(TryAgain):
    """The transaction was about to be committed: whether it was, the group's offsets tell."""


class RecordRefused(TryAgain):
    """The broker refuses a record for good: its time, its key, its form or its size. The transaction is lost.

    `topic` and `partition` are those that it was written to; None where the client does not say.
    """

    def __init__(
        self, message: str, *, topic: str | None = None, partition: int | None = None, too_large: bool = False
    ) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition
        self.too_large = too_large


class OwnershipLost(LstmstreamError):
    """Another process has taken over. Nothing may be committed from here on."""


class Fatal(LstmstreamError):
    """The daemon cannot continue from here (exit code 1)."""


class UnreadableRecords(Fatal):
    """The log holds bytes that cannot be decoded, from `first` to before `next_offset` of one partition.

    `next_offset` is where reading can go on; `problem` is the text without the advice for the consumer group's input.
    """

    def __init__(self, topic: str, partition: int, first: int, next_offset: int, reason: str) -> None:
        self.first = first
        self.next_offset = next_offset
        offsets = f"the batch of offsets {first} to {next_offset - 1}"
        self.problem = f"{topic}[{partition}]@{first}: {offsets} cannot be decoded: {reason}"
        super().__init__(
            f"{self.problem}. To continue without these records, stop every member of the group, move its offset to"
            f" {next_offset} (kafka-consumer-groups --reset-offsets --to-offset {next_offset} --topic"
            f" {topic}:{partition} --execute), and restart"
        )


class CannotServe(LstmstreamError):
    """Something must be fixed before it can start (exit code 2). Each line says what, where and how to fix it."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
