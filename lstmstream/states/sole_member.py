"""A command as the only member of the daemon's group: the group is its lock, and the fence of what it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.serve.clock import Clock
from lstmstream.serve.committer import COMMIT_TIMEOUT_S
from lstmstream.transport.patient_broker import Broker
from lstmstream.transport.ports import MemberInfo, Membership, Transport

LIMIT_S = 60.0  # without success, until it gives up
RETRY_S = 0.5
POLL_S = 0.2

T = TypeVar("T")


class MemberTransport(Transport, Broker, Protocol):
    """A member of the group that can also be asked as a command asks."""


class SoleMember:
    """Of one group. Each transaction carries offsets, and so fails once anybody else has joined."""

    def __init__(self, group: str, transport: MemberTransport, clock: Clock) -> None:
        self._group, self._transport, self._clock = group, transport, clock

    def check_nobody_there(self) -> None:
        """Raises CannotServe where the group has members."""
        members = self.patiently("the group's members cannot be read", self._transport.group_members)
        if members:
            raise self._in_use(members)

    def join(self, partitions: int) -> None:
        """Get all partitions of the input. Raises CannotServe."""
        self.patiently("the group cannot be joined", self._transport.join)
        self.patiently("the group cannot be joined", lambda: self.membership(partitions))

    def membership(self, partitions: int) -> Membership:
        """Our place in the group, with all partitions. Raises TryAgain, and CannotServe where others are there too."""
        give_up_s = self._clock.monotonic_s() + LIMIT_S
        while True:
            polled = self._transport.poll(POLL_S, 1)
            if polled.membership.valid and len(polled.assignment) == partitions:
                return polled.membership
            if polled.membership.valid:
                ours = polled.membership.member_id
                others = [one for one in self._transport.group_members() if one.member_id != ours]
                if others:
                    raise self._in_use(others)
            if self._clock.monotonic_s() > give_up_s:
                raise CannotServe(f"group {self._group!r} gives no partitions to this command for {LIMIT_S:g} s")

    def commit(
        self,
        batches: Sequence[RecordBatch],
        offsets: Mapping[int, int],
        nonce: str,
        *,
        partitions: int,
        is_done: Callable[[], bool] = lambda: False,
    ) -> None:
        """One transaction, done again where its outcome is not known: the second time it writes the same.

        `partitions`: of the input. `is_done`: asked before it is done again. Raises CannotServe.
        """
        failed = False

        def attempt() -> None:
            nonlocal failed
            if failed:
                self._transport.recover()
                if is_done():
                    return
            failed = True
            membership = self.membership(partitions)
            self._transport.commit(
                [], list(batches), offsets, nonce=nonce, membership=membership, timeout_s=COMMIT_TIMEOUT_S
            )

        self.patiently("states cannot be written", attempt)

    def patiently(self, what: str, attempt: Callable[[], T], limit_s: float = LIMIT_S) -> T:
        """Try until it works. Raises CannotServe where it has not for so long."""
        give_up_s = self._clock.monotonic_s() + limit_s
        while True:
            try:
                return attempt()
            except TryAgain as error:
                if self._clock.monotonic_s() > give_up_s:
                    raise CannotServe(f"{what}, for {limit_s:g} s: {error}") from error
                self._clock.sleep(RETRY_S)

    def _in_use(self, members: Sequence[MemberInfo]) -> CannotServe:
        names = ", ".join(f"{one.client_id} at {one.host}" for one in members)
        return CannotServe(
            f"group {self._group!r} has other members: {names}. Stop the daemon, or the other command that writes"
            " states; one that was killed counts as a member until its session timeout is over. Then run this again"
        )
