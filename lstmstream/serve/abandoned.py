"""Transactions that dead members of the group have left open: ended before a restore has to wait for them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.transport.ports import GroupMember, Membership

log = logging.getLogger(__name__)

RETRY_S = 1.0  # twice as long after each failure
ATTEMPTS = 5  # for one assignment; then the broker has ended them


class AbandonedTransactions:
    """`on_assigned` when partitions come, then `tick` before each slice of their restore.

    Where it fails, restores go on as they would without: they wait until the broker has ended the transaction.
    """

    def __init__(self, member: GroupMember, clock: Callable[[], float]) -> None:
        self._member = member
        self._clock = clock
        self._due_s = math.inf
        self._attempts = 0
        self._denied = False

    def on_assigned(self) -> None:
        """Partitions were assigned: who had them before may be gone."""
        self._due_s, self._attempts = self._clock(), 0

    def tick(self, membership: Membership) -> None:
        """End them, if that is due. Never raises TryAgain or CannotServe."""
        if self._clock() < self._due_s or self._denied:
            return
        self._due_s = math.inf
        try:
            self._member.end_abandoned(membership)
        except CannotServe as error:
            self._denied = True
            log.warning(
                "what a dead member of the group leaves open in a transaction cannot be ended; it stays open until its"
                " transaction.timeout.ms: %s",
                error,
            )
        except TryAgain as error:
            self._attempts += 1
            log.log(
                logging.INFO if self._attempts == 1 else logging.DEBUG,
                "whether a dead member of the group has left a transaction open is not known: %s",
                error,
            )
            if self._attempts < ATTEMPTS:
                self._due_s = self._clock() + RETRY_S * 2 ** (self._attempts - 1)
