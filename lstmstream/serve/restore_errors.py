"""Why the states of a partition cannot be restored, and what to do about it, in words for the log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lstmstream.errors import CannotServe, Fatal, UnreadableRecords
from lstmstream.serve.checkpoint import StateTopic
from lstmstream.serve.state_records import Floor, StateIdentity
from lstmstream.wording import counted


def move_states(partitions: int) -> str:
    """What to do after the input has got so many partitions."""
    return (
        "Pause the producers, stop every member, and move the states with `lstmstream state repartition CONFIG"
        f" --partitions {partitions}` (docs/repartition.md); or start under another name, from the beginning"
    )


OPTIONS = {
    "fingerprint": "fingerprint",
    "ttl": "state.ttl",
    "late": "input.late",
    "key": "input.key",
    "timestamp": "input.timestamp",
    "max_bytes": "input.max_bytes",
}


def _apart(identities: Sequence[StateIdentity]) -> list[str]:
    """Each in words: the model, and of the settings those that are not the same for all."""
    first = identities[0]
    names = [name for name in OPTIONS if any(getattr(one, name) != getattr(first, name) for one in identities)]
    with_others = any(one.others != first.others for one in identities)
    found = []
    for one in identities:
        settings = [f"{OPTIONS[name]} {getattr(one, name)}" for name in names]
        if with_others:
            settings.append(one.others or "no other settings")
        found.append(f"model {one.model} version {one.version} ({', '.join(settings)})")
    return found


_RESET = "Delete the topic and set on_model_change: reset to start with empty states"


class RestoreErrors(NamedTuple):
    """Makes the errors of one partition's restore."""

    input_topic: str
    partition: int
    state_topic: str
    group: str

    @property
    def _where(self) -> str:
        return f"{self.input_topic}[{self.partition}]"

    # -- what the state topic holds

    def does_not_fit(self, offset: int) -> CannotServe:
        """A state of this identity that the model cannot take."""
        return CannotServe(
            f"{self._where}: a state record in topic {self.state_topic!r}, at offset {offset} or soon after,"
            f" does not fit the model or is not finite. {_RESET}"
        )

    def old_format(self, offset: int) -> CannotServe:
        """Records of format 1."""
        return CannotServe(
            f"topic {self.state_topic!r}, partition {self.partition}, offset {offset}: states of an earlier"
            f" version of lstmstream, which this one cannot read. {_RESET}, or delete the topic and the group's"
            " offsets to start from the beginning"
        )

    def floor_damaged(self, problem: str) -> CannotServe:
        """Nobody knows to which offset the states belong."""
        return CannotServe(
            f"{self._where}: the floor record in topic {self.state_topic!r}, partition {self.partition}, is damaged"
            f" ({problem}), so its states cannot be used. Restore the topic from a copy, or delete it and set"
            " on_model_change: reset to start with empty states"
        )

    def other_identity(self, ours: StateIdentity, others: Iterable[StateIdentity]) -> CannotServe:
        """Another model's states, and no reset was asked for."""
        here, *there = _apart([ours, *others])
        return CannotServe(
            f"{self._where}: its states belong to {' and '.join(there)}, but this is {here}. Serve the old"
            " one; or set on_model_change: replay to rebuild the states from the input, or reset to start with empty"
            " ones"
        )

    def evictions_missed(self, ours: StateIdentity, others: Iterable[StateIdentity]) -> CannotServe:
        """With `state.max_keys`, and no reset was asked for."""
        here, *there = _apart([ours, *others])
        return CannotServe(
            f"{self._where}: {' and '.join(there)} has answered since {here}, and with state.max_keys it"
            " depends on every event which keys have a state. Set on_model_change: replay to rebuild the states from"
            " the input, or reset to start with empty ones"
        )

    def no_states(self, committed: int) -> CannotServe:
        """The group has come somewhere, so there were states."""
        return CannotServe(
            f"{self._where}: the group's offset is {committed}, but topic {self.state_topic!r} holds no states."
            " Restore the topic; or set on_model_change: replay to rebuild the states from the input, or reset to start"
            " with empty ones"
        )

    def topics_changed(self, floor: Floor, topics: StateTopic) -> CannotServe | None:
        """The states were written for other topics of these names; None where they are the same."""
        if floor.input_topic_id != topics.input_topic_id:
            return CannotServe(
                f"the states in {self.state_topic!r} were not written for the topic {self.input_topic!r} that is there"
                " now: it was deleted and recreated, or another daemon with this state topic reads another input."
                " Use another name and state topic; or, if no other daemon uses them, delete the state topic and the"
                " group's offsets"
            )
        if floor.state_topic_id != topics.topic_id:
            return CannotServe(
                f"topic {self.state_topic!r} was deleted and recreated: the states that its floor record refers to"
                " are lost. Delete it and set on_model_change: reset to start with empty states"
            )
        if floor.partitions != topics.partitions:
            return self.input_grown(floor.partitions, topics.partitions)
        return None

    def input_grown(self, before: int, now: int) -> CannotServe:
        """Its number of partitions is another one."""
        return CannotServe(
            f"topic {self.input_topic!r} has {counted(now, 'partition')}, and had {before} when the states"
            f" in {self.state_topic!r}"
            f" were written: keys have moved. {move_states(now)}"
        )

    # -- the group's offset

    def offsets_gone(self, position: int | None) -> CannotServe:
        """States without a committed offset. `position`: how far the floor record says that the group had come."""
        known = "" if position is None else f": {position} after a clean stop, perhaps further after a crash"
        return CannotServe(
            f"{self._where}: its states exist, but the group's offsets are gone (expired or deleted), or the"
            " states are those of another daemon, and this one needs a state.topic of its own. Continuing would predict"
            f" everything twice. Set the group's offset of this partition to where it stopped{known}"
            " (kafka-consumer-groups --reset-offsets --to-offset); or delete topic"
            f" {self.state_topic!r} to start from the beginning"
        )

    def outside(self, committed: int, beginning: int, end: int) -> CannotServe:
        """The committed offset is not between the input's beginning and end."""
        if committed < beginning:
            return CannotServe(
                f"{self._where}: the group's offset is {committed}, but the input begins at {beginning}:"
                f" offsets {committed} to {beginning - 1} were deleted before they were read. Move the group's offset"
                f" to {beginning} (kafka-consumer-groups --reset-offsets --to-earliest) to continue without them; keep"
                " the state topic: its states stay in use"
            )
        return CannotServe(
            f"{self._where}: the group's offset is {committed}, but the input ends at {end}: records were lost, or"
            " the offset was set by hand. Move the group's offset to where the group stopped"
        )

    def skipped(self, answered: int, first: int, end: int) -> CannotServe:
        """Somebody else moved the offset forward, over records."""
        return CannotServe(
            f"{self._where}: the group's offset was moved from {answered} to {end}, and not by lstmstream:"
            f" offsets {first} to {end - 1} have no prediction. Another consumer may use this group id"
            f" ({self.group!r}), or a tool has reset the offset. Set the group's offset back to {first}"
            " (kafka-consumer-groups --reset-offsets --to-offset), or set input.on_foreign_commit: accept to"
            " continue without them"
        )

    # -- states that were there before the input

    def seed_unfinished(self) -> CannotServe:
        """The offset was committed by `lstmstream state import | build`, which has not finished."""
        return CannotServe(
            f"{self._where}: `lstmstream state import`, `build` or `repartition` is writing states for group"
            f" {self.group!r}, or was stopped before it had written all. Run it again, to its end; or delete the"
            " group's offsets (kafka-consumer-groups --delete-offsets) to start without states"
        )

    def seed_needed(self, reason: str) -> CannotServe:
        """The states would have to be rebuilt, and what was imported or built from history is not in the input."""
        return CannotServe(
            f"{self._where}: {reason}; and its states began with those that `lstmstream state import`, `build` or"
            " `repartition` has written, so the input alone does not give them. Set the group's offset back to where it"
            " stopped (kafka-consumer-groups --reset-offsets --to-offset) if it was moved; or import or build states"
            " again, under another name"
        )

    def before_erasure(self, committed: int, erased: int) -> CannotServe:
        """The committed offset lies before an erasure: its events would be in a state again."""
        return CannotServe(
            f"{self._where}: the group's offset was moved back to {committed}, before {erased}, where"
            " `lstmstream state delete` has erased a key: the events between would bring it back. Set the group's"
            f" offset to {erased} or later (kafka-consumer-groups --reset-offsets --to-offset)"
        )

    # -- the replay

    def before_origin(self, reason: str, origin: int) -> CannotServe:
        """A rebuild would need input from before the states began."""
        return CannotServe(
            f"{self._where}: {reason}, and this model's states begin at offset {origin}. Set the group's offset to"
            f" {origin} or to where it had come (kafka-consumer-groups --reset-offsets --to-offset)"
        )

    def input_gone(self, replay_from: int, beginning: int) -> CannotServe:
        """The input that the states must be rebuilt from was deleted."""
        return CannotServe(
            f"{self._where}: states must be rebuilt from offset {replay_from}, but the input begins at"
            f" {beginning}; its retention is too short. Delete the state topic and set on_model_change: reset to"
            " start with empty states"
        )

    def input_unreadable(self, error: UnreadableRecords) -> Fatal:
        """Input that was answered once cannot be decoded any more."""
        return Fatal(
            f"{error.problem}. It was already processed, and states must be rebuilt from it: restore it from a"
            f" copy of the topic, or delete topic {self.state_topic!r} and set on_model_change: reset to"
            " start with empty states"
        )
