"""Members of the consumer group that keep partitions without an answer: other programs, and members that we were."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.serve.observers import Observer
from lstmstream.transport.ports import GroupMember, MemberInfo, PollResult

log = logging.getLogger(__name__)

CLIENT_ID_PREFIX = "lstmstream-"
LOOK_S = 30.0  # after a rebalance; while it goes on the broker does not say who has which partition


class GroupCheck:
    """`on_poll` after each poll, `on_rebalance` when the assignment has changed, `check` now and then.

    A member whose broker was away for longer than the session joins again under another id. The broker may still have
    it under the earlier one, with its partitions, until a whole session has passed without a heartbeat.
    """

    def __init__(
        self, member: GroupMember, group: str, client_id: str | None, observer: Observer, clock: Callable[[], float]
    ) -> None:
        """`client_id`: of this daemon and so of its peers, where the configuration sets one."""
        self._member = member
        self._group = group
        self._client_id = client_id
        self._observer = observer
        self._clock = clock
        self._until_s = 0.0
        self._said: set[tuple[str, str]] = set()
        self._member_id = ""
        self._former_ids: set[str] = set()
        self._assigned: Collection[int] = ()  # to the present member
        self._waiting = False  # for a former member to expire

    def on_poll(self, polled: PollResult) -> None:
        """Remember which members this daemon was."""
        self._assigned = polled.assignment.keys()
        now = polled.membership.member_id
        if now and now != self._member_id:
            if self._member_id:
                self._former_ids.add(self._member_id)
            self._former_ids.discard(now)  # while a client joins it may name another id for a moment
            self._member_id = now

    def on_rebalance(self) -> None:
        """Somebody came or went."""
        self._until_s = self._clock() + LOOK_S

    def check(self) -> None:
        """Name each once. A broker that does not say who is in the group is no reason to fail."""
        if self._clock() >= self._until_s and not self._waiting:
            return
        try:
            members = self._member.group_members()
        except (TryAgain, CannotServe) as error:
            log.debug("the members of the group are not known: %s", error)
            return
        self._check_former(members)
        self._check_others(members)

    def _check_former(self, members: Sequence[MemberInfo]) -> None:
        kept = {
            number
            for one in members
            if one.member_id in self._former_ids
            for number in one.partitions
            if number not in self._assigned
        }
        if not kept:
            self._waiting = False
            self._observer.on_unblocked("former member")
            return
        self._observer.on_blocked(
            "former member",
            "the consumer group still has partitions assigned to the member that this daemon was before an outage;"
            " it drops that member after session.timeout.ms (45 s), unless group.instance.id is set",
        )
        if not self._waiting:
            self._waiting = True
            log.warning(
                "the consumer group still has partitions assigned to the member that this daemon was before an outage:"
                " their events wait until the broker drops it, up to session.timeout.ms (45 s). With group.instance.id"
                " set there is no such wait",
                extra={"partitions": sorted(kept)},
            )

    def _check_others(self, members: Sequence[MemberInfo]) -> None:
        for member in members:
            client_id, host = member.client_id, member.host
            ours = client_id.startswith(CLIENT_ID_PREFIX) or client_id == self._client_id
            if member.partitions and not ours and (client_id, host) not in self._said:
                self._said.add((client_id, host))
                log.warning(
                    "another program is a member of the consumer group %r and has partitions of the input: while it has"
                    " them, their events get no prediction. Give it another group.id, or this daemon another name",
                    self._group,
                    extra={"client_id": client_id, "host": host, "partitions": sorted(member.partitions)},
                )
