"""One input partition on its way through a verification: what is judged of it, and what is known of its events."""

from __future__ import annotations

from dataclasses import dataclass, field

from lstmstream.verify.alerts import Rules
from lstmstream.verify.erasures import Erasures
from lstmstream.verify.expected import Recomputation
from lstmstream.verify.floors import Span
from lstmstream.verify.published import parse
from lstmstream.verify.window import Window


@dataclass(slots=True)
class PartitionRange:
    """What is judged of one input partition."""

    start: int  # the first event that is read
    own: int  # from here on the events were answered with this model and these settings
    first: int  # the first event that was asked for
    last: int  # the end of what was asked for
    whole: bool  # whether the input still has the events since `own`, so that the state of every key is known
    between: tuple[Span, ...] = ()  # where others have answered since then
    newest_ms: int | None = None  # greatest event time before `own`, where that cannot be read any more
    outside_times: tuple[tuple[int, int], ...] = ()  # offset, and the time that events of elsewhere make it there
    moves: tuple[tuple[int, int, int], ...] = ()  # offset, this partition, and how many there are from there on
    alert_rules: tuple[tuple[int, Rules], ...] = ()  # policies for alerts, by the offset from which on they held
    seeded: bool = False  # whether its states began with some that were imported or built from history
    erasures: Erasures = field(default_factory=Erasures)
    input_topic_id: str = ""


@dataclass(slots=True)
class JudgedPartition:
    """What is known of one input partition."""

    range: PartitionRange
    recomputation: Recomputation
    window: Window
    end: int  # up to where the events are known
    known_from: dict[bytes | None, int] = field(default_factory=dict)  # entity key → where its state began
    done: bytearray = field(default_factory=bytearray)  # from the start on: whether an earlier window had the event
    complete_from: dict[str, int] = field(default_factory=dict)  # kind of record → outputs before are gone
    last_answered: dict[tuple[int, bytes | None], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The stream time that the first own event meets, and what raises it later."""
        self.recomputation.newest_ms = self.range.newest_ms
        self.recomputation.outside_times = list(self.range.outside_times)
        self.recomputation.moves = list(self.range.moves)

    def had(self, offset: int) -> bool:
        """Whether an earlier window had an event at this offset."""
        at = offset - self.range.start
        return at < len(self.done) and bool(self.done[at])

    def learn(self, value: bytes | None, row: int) -> None:
        """Where the input has lost events: a prediction may say that the state of its key began there."""
        key = self.window.entities[row]
        if self.recomputation.needs_all_states:
            return
        if key not in self.known_from and self.window.expected(row).steps == 1 and parse(value).get("steps") == 1:
            self.known_from[key] = self.window.offsets[row]

    def knows(self, row: int) -> bool:
        """Whether the state that the event met is known."""
        known_from = self.known_from.get(self.window.entities[row], self.range.last)
        return self.range.whole or self.window.offsets[row] >= known_from
