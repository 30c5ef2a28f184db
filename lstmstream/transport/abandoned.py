"""Which open transactions of a group have no author any more: their transactional ids name members that are gone.

A member that dies leaves its transaction to the broker, which ends it after `transaction.timeout.ms`; until then nobody
reads on behind it. Its transactional id holds the id that the group gave it, and the group never gives that to another
one, not even to the same process when it joins again: a member that the group does not have now is gone for good. So
its transaction can be ended by whoever sees it, at any later moment, and no member is ever fenced that the group has.
A process that was dropped and lives on is fenced too. It could commit nothing more, and makes a new producer.

Static members are not looked at: their transactional id is that of their `group.instance.id`, and they end what they
have left open as they start again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

# No instance id, and no group's name that begins with this one's and a dot, has a colon in it.
_OF_MEMBER = ".member:"


def transactional_id_of(group: str, member_id: str) -> str:
    """That under which a member without a `group.instance.id` writes."""
    return f"{group}{_OF_MEMBER}{member_id}"


def abandoned_ids(open_ids: Iterable[str], group: str, member_ids: Collection[str]) -> list[str]:
    """The transactional ids among those with an open transaction whose member the group does not have.

    The members must have been asked for after the transactions: one that joined in between has no other chance to be
    among them.
    """
    prefix = transactional_id_of(group, "")
    return sorted(one for one in open_ids if one.startswith(prefix) and one.removeprefix(prefix) not in member_ids)
