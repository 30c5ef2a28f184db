"""Members of the consumer group that are no lstmstream: events of the partitions that they take get no prediction."""

from __future__ import annotations

import logging
from collections.abc import Callable

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.transport.ports import GroupMember

log = logging.getLogger(__name__)

CLIENT_ID_PREFIX = "lstmstream-"
LOOK_S = 30.0  # after a rebalance; while it goes on the broker does not say who has which partition


class GroupCheck:
    """`on_rebalance` when the assignment has changed, `check` now and then."""

    def __init__(self, member: GroupMember, group: str, client_id: str | None, clock: Callable[[], float]) -> None:
        """`client_id`: of this daemon and so of its peers, where the configuration sets one."""
        self._member = member
        self._group = group
        self._client_id = client_id
        self._clock = clock
        self._until_s = 0.0
        self._said: set[tuple[str, str]] = set()

    def on_rebalance(self) -> None:
        """Somebody came or went."""
        self._until_s = self._clock() + LOOK_S

    def check(self) -> None:
        """Name each once. A broker that does not say who is in the group is no reason to fail."""
        if self._clock() >= self._until_s:
            return
        try:
            members = self._member.group_members()
        except (TryAgain, CannotServe) as error:
            log.debug("the members of the group are not known: %s", error)
            return
        for client_id, host, partitions in members:
            ours = client_id.startswith(CLIENT_ID_PREFIX) or client_id == self._client_id
            if partitions and not ours and (client_id, host) not in self._said:
                self._said.add((client_id, host))
                log.warning(
                    "another program is a member of the consumer group %r and has partitions of the input: while it has"
                    " them, their events get no prediction. Give it another group.id, or this daemon another name",
                    self._group,
                    extra={"client_id": client_id, "host": host, "partitions": sorted(partitions)},
                )
