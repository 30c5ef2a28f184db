"""The result of a check: one line."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Status(Enum):
    """Of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Check(NamedTuple):
    """One line."""

    name: str
    status: Status
    text: str


def ok(name: str, text: str) -> Check:
    """It is as it should be."""
    return Check(name, Status.OK, text)


def warning(name: str, text: str) -> Check:
    """A daemon would serve all the same."""
    return Check(name, Status.WARNING, text)


def failed(name: str, text: str) -> Check:
    """A daemon would not serve, or not as it should."""
    return Check(name, Status.FAILED, text)
