"""What can go wrong, split by what the daemon does next.

LstmstreamError
├── BadRecord        one record is wrong: it becomes a dead letter, the stream goes on
├── TryAgain         the broker may recover: roll back, make a new producer, rewind, retry
├── OwnershipLost    another process owns these keys or this transactional id: leave, commit nothing
├── Fatal            running cannot go on and starting again may help: exit code 1
└── CannotServe      config, model or topics are wrong: say what and how to mend it, exit code 2
"""

from __future__ import annotations


class LstmstreamError(Exception):
    """Root of everything this package raises on purpose."""


class BadRecord(LstmstreamError):
    """One input record cannot be answered; `stage` names the step that found it."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


class TryAgain(LstmstreamError):
    """A fault of the broker or the network that may pass. The transaction in progress is void."""


class OwnershipLost(LstmstreamError):
    """Another process has taken this one's place. Nothing may be committed from here on."""


class Fatal(LstmstreamError):
    """The daemon cannot go on from here (exit code 1)."""


class CannotServe(LstmstreamError):
    """A person has to mend something first (exit code 2). Each line says what, where and the remedy."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
