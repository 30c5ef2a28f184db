"""Dead letters back to the input topic, each once: event and note of its replay are one transaction.

The notes are in a compacted topic of their own, so that the dead letters stay as they are. All replays of one
configuration share a transactional id: one that begins ends what another has left open, and reads its notes first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson

from lstmstream.config import Config
from lstmstream.dead_letter.fields import EventView, ReadFields
from lstmstream.dead_letter.letters import REPLAYED_SUFFIX, Filter, Letter, Place, read_letters, replayed_key
from lstmstream.dead_letter.moved_keys import MovedKeys
from lstmstream.errors import BadRecord, CannotServe, OwnershipLost, RecordRefused, TryAgain
from lstmstream.formats.json_documents import ABSENT, locate, parse_document
from lstmstream.formats.json_members import read_members
from lstmstream.formats.values import key_text
from lstmstream.records import BY_KEY, RecordBatch
from lstmstream.transport.patient_broker import LIMIT_S, PatientBroker
from lstmstream.transport.ports import CALL_TIMEOUT_S, TopicInfo

HEADER = "lstmstream.dead_letter"  # of a replayed event: its dead letter
MAX_LETTERS, MAX_BYTES = 500, 4_000_000  # of a transaction
RETRY_S = 0.5

Change = Callable[[Letter], bytes]  # the value to replay in place of a letter's. Raises BadRecord


class Writer(Protocol):
    """See transport/writer.py."""

    def transact(self, batches: list[RecordBatch], offsets: None, deadline: float) -> None:
        """One transaction."""

    def close(self, deadline: float) -> None:
        """Free it."""


class Kafka(Protocol):
    """As much of KafkaAdmin as is needed."""

    def create(self, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
        """Create a topic, unless it exists. Raises TryAgain, CannotServe."""

    def open_writer(self, transactional_id: str, timeout_s: float) -> Any:
        """A Writer that fences those before it. Raises TryAgain, CannotServe, OwnershipLost."""


class Outcome(NamedTuple):
    """What a replay has done."""

    replayed: Sequence[Letter]
    refused: Sequence[tuple[Letter, str]]  # with the reason
    earlier: int  # that were meant, and were replayed before
    missing: Sequence[Place]  # that were named, and are not there


class _Event(NamedTuple):
    letter: Letter
    partition: int  # or BY_KEY
    key: bytes | None
    value: bytes


def set_fields(settings: Mapping[str, Any], read: ReadFields | None = None) -> Change:
    """A change that sets fields of the event; dots lead into nested objects, as in the configuration.

    `read`: a field that the event does not have has to be one of these, else UnreadFields is raised; None: it may be
    any.
    """

    def change(letter: Letter) -> bytes:
        document = parse_document(letter.value)
        value = letter.value or b""
        changed = _with_fields(value, settings)
        added = [] if read is None else [path for path in settings if locate(document, path) is ABSENT]
        if read is not None and added:
            without = {path: _with_fields(value, {p: v for p, v in settings.items() if p != path}) for path in added}
            read.check(value, letter.headers, changed, without)
        return changed

    return change


def _with_fields(value: bytes, settings: Mapping[str, Any]) -> bytes:
    for path, found in settings.items():
        value = _with_field(value, path, orjson.dumps(found))
    return value


def _with_field(value: bytes, path: str, text: bytes) -> bytes:
    """The JSON object `value` with one field; all others stay as they are written, to the last digit."""
    members = read_members(value, "the value")
    ends = [end for end in range(len(path) - 1, 0, -1) if path[end] == "." and path not in members]
    inner = next((end for end in ends if members.get(path[:end], b"").startswith(b"{")), None)
    if inner is None:
        members[path] = text
    else:
        members[path[:inner]] = _with_field(members[path[:inner]], path[inner + 1 :], text)
    return b"{%b}" % b",".join(orjson.dumps(name) + b":" + raw for name, raw in members.items())


class Replay:
    """One run of `lstmstream dead-letter replay`."""

    def __init__(
        self,
        kafka: Kafka,
        broker: PatientBroker,
        config: Config,
        *,
        change: Change | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        """`change`: the values to replay in place of those that the dead letters have."""
        self._kafka, self._broker, self._config = kafka, broker, config
        self._change = change
        self._view = EventView(config)
        self._moved = MovedKeys(broker, config)
        self._limit_s = limit_s
        self._topic = config.dead_letter.topic
        self._notes = self._topic + REPLAYED_SUFFIX
        self._at_once = MAX_LETTERS
        self._sent: set[Place] = set()  # in this run, also in transactions whose outcome was not known
        self._written: dict[Place, Letter] = {}
        self._refused: dict[Place, tuple[Letter, str]] = {}
        self._earlier: set[Place] = set()  # that others have replayed
        self._seen: set[Place] = set()  # that were to be replayed

    def run(self, filter_: Filter) -> Outcome:
        """Replay what is meant and was not replayed before. Raises CannotServe."""
        found = self._topics()
        topic_id = found[self._topic].topic_id
        give_up_s = time.monotonic() + self._limit_s
        while True:
            before, at_once = len(self._written) + len(self._refused), self._at_once
            try:
                self._attempt(filter_, topic_id, found[self._config.input.topic].partitions)
            except OwnershipLost as error:
                raise CannotServe(f"another replay of {self._topic} has begun; this one stops: {error}") from error
            except TryAgain as error:  # whether the last transaction went through, its notes will tell
                if len(self._written) + len(self._refused) > before or self._at_once < at_once:
                    give_up_s = time.monotonic() + self._limit_s
                elif time.monotonic() > give_up_s:
                    raise CannotServe(f"nothing could be replayed for {self._limit_s:g} s: {error}") from error
                time.sleep(RETRY_S)
            else:
                self._seen = {*self._written, *self._refused}
                return Outcome(
                    list(self._written.values()), list(self._refused.values()), self.earlier, self.missing(filter_)
                )

    @property
    def earlier(self) -> int:
        """Of those that are meant, how many others have replayed."""
        return len(self._earlier)

    def missing(self, filter_: Filter) -> list[Place]:
        """After a run or a preview: the places that were named, and have no letter that is meant."""
        return sorted(filter_.places - self._seen - self._earlier)

    def preview(self, filter_: Filter) -> Iterator[tuple[Letter, bytes | BadRecord]]:
        """What is meant and was not replayed yet, with the value to write, or why not; writes nothing."""
        partitions = self._found_topics()[self._config.input.topic].partitions
        for letter in read_letters(self._broker, self._topic, filter_):
            if letter.replayed:
                self._earlier.add(letter.place)
                continue
            self._seen.add(letter.place)
            try:
                yield letter, self._event(letter, partitions).value
            except BadRecord as bad:
                yield letter, bad

    def _found_topics(self) -> dict[str, TopicInfo]:
        source = self._config.input.topic
        found = self._broker.describe([source, self._topic, self._notes])
        for option, name in (("input.topic", source), ("dead_letter.topic", self._topic)):
            if name not in found:
                raise CannotServe(f"{option}: topic {name!r} does not exist")
        return found

    def _topics(self) -> dict[str, TopicInfo]:
        """With that of the notes."""
        found = self._found_topics()
        if self._notes not in found:
            if not self._config.create_topics:
                raise CannotServe(
                    f"topic {self._notes!r} does not exist, and create_topics is false; create it with 1 partition and"
                    " cleanup.policy=compact: it says what was replayed"
                )
            self._kafka.create(self._notes, 1, {"cleanup.policy": "compact"})
        return found

    def _attempt(self, filter_: Filter, topic_id: str, partitions: int) -> None:
        """Everything that is still to be replayed. Raises TryAgain, and then it is not known what was."""
        writer: Writer = self._kafka.open_writer(f"{self._config.name}.dead-letter", CALL_TIMEOUT_S)
        try:  # from here on nobody else can write notes: those that there are, are all
            for letters in _batches(read_letters(self._broker, self._topic, filter_), min(self._at_once, MAX_LETTERS)):
                self._written |= {one.place: one for one in letters if one.replayed and one.place in self._sent}
                self._earlier |= {one.place for one in letters if one.replayed} - self._sent
                events = list(self._events([one for one in letters if not one.replayed], partitions))
                if events:
                    self._write(writer, topic_id, events)
        finally:
            writer.close(time.monotonic() + CALL_TIMEOUT_S)

    def _write(self, writer: Writer, topic_id: str, events: list[_Event]) -> None:
        letters = [event.letter for event in events]
        self._sent |= {letter.place for letter in letters}
        source, now_ms = self._config.input.topic, np.full(len(events), int(time.time() * 1000))
        batch = RecordBatch.to_write(
            source,
            np.array([event.partition for event in events], np.int64),
            np.array([letter.timestamp_ms for letter in letters], np.int64),
            [event.key for event in events],
            [event.value for event in events],
            [[*letter.headers, (HEADER, str(letter.place).encode())] for letter in letters],
        )
        notes = RecordBatch.to_write(
            self._notes,
            np.zeros(len(events), np.int64),
            now_ms,
            [replayed_key(topic_id, letter.place) for letter in letters],
            [orjson.dumps({"topic": source, "stage": letter.stage}) for letter in letters],
        )
        try:
            writer.transact([batch, notes], None, time.monotonic() + CALL_TIMEOUT_S)
        except RecordRefused as error:  # nothing of it was written; half as many next time, until the event is alone
            self._at_once = len(events) // 2 or MAX_LETTERS
            if len(events) == 1:
                self._refused[letters[0].place] = (letters[0], str(error))
            raise
        self._written |= {letter.place: letter for letter in letters}

    def _events(self, letters: Iterable[Letter], partitions: int) -> Iterator[_Event]:
        for letter in letters:
            if letter.place in self._refused:
                continue
            try:
                yield self._event(letter, partitions)
            except BadRecord as bad:
                self._refused[letter.place] = (letter, str(bad))

    def _event(self, letter: Letter, partitions: int) -> _Event:
        """Raises BadRecord."""
        topic, partition, offset = letter.source
        if topic != self._config.input.topic:
            raise BadRecord("replay", f"it is of topic {topic!r}, and input.topic is {self._config.input.topic!r}")
        if letter.value is None:
            raise BadRecord("replay", "it has no value")
        value, key = letter.value, letter.key
        entity = self._key(value, letter)
        if self._change is not None:
            value = self._change(letter)
            if (new := self._key(value, letter)) is not None and new != entity:
                return _Event(letter, BY_KEY, new, value)  # it belongs where the events of that key are
        partition = self._moved.partition(entity, partitions, partition, offset)
        if partition >= partitions:
            raise BadRecord("replay", f"its partition {partition} does not exist in {topic!r} any more")
        return _Event(letter, partition, key, value)

    def _key(self, value: bytes, letter: Letter) -> bytes | None:
        """The entity key of the letter's record with this value; None where it has none."""
        name = self._config.input.key
        if name is None:
            return letter.key
        found = locate(self._view.document(value, letter.headers), name)
        try:
            return None if found is ABSENT else key_text(found, name).encode()
        except BadRecord:
            return None


def _batches(letters: Iterable[Letter], limit: int) -> Iterator[list[Letter]]:
    """As many as go into one transaction, at most `limit`."""
    batch: list[Letter] = []
    size = 0
    for letter in letters:
        batch.append(letter)
        size += len(letter.value or b"")
        if len(batch) >= limit or size >= MAX_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
