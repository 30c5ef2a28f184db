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
from lstmstream.dead_letter.letters import REPLAYED_SUFFIX, Filter, Letter, Place, read_letters, replayed_key
from lstmstream.errors import BadRecord, CannotServe, OwnershipLost, TryAgain
from lstmstream.formats.json_documents import ABSENT, Document, locate, parse_digits, parse_document
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


class _Event(NamedTuple):
    letter: Letter
    partition: int  # or BY_KEY
    key: bytes | None
    value: bytes


def set_fields(settings: Mapping[str, Any]) -> Change:
    """A change that sets fields of the event; dots lead into nested objects, as in the configuration."""

    def change(letter: Letter) -> bytes:
        parse_document(letter.value)
        document = parse_digits(letter.value or b"")  # integers of any length stay as they are written
        for path, value in settings.items():
            _set_field(document, path, value)
        return orjson.dumps(document)

    return change


def _set_field(document: Document, path: str, value: Any) -> None:
    if path in document:
        document[path] = value
        return
    end = path.rfind(".")
    while end > 0:
        inner = document.get(path[:end])
        if type(inner) is dict:
            _set_field(inner, path[end + 1 :], value)
            return
        end = path.rfind(".", 0, end)
    document[path] = value


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
        self._limit_s = limit_s
        self._topic = config.dead_letter.topic
        self._notes = self._topic + REPLAYED_SUFFIX
        self._sent: set[Place] = set()  # in this run, also in transactions whose outcome was not known
        self._written: dict[Place, Letter] = {}
        self._refused: dict[Place, tuple[Letter, str]] = {}
        self._earlier: set[Place] = set()  # that others have replayed

    def run(self, filter_: Filter) -> Outcome:
        """Replay what is meant and was not replayed before. Raises CannotServe."""
        found = self._topics()
        topic_id = found[self._topic].topic_id
        give_up_s = time.monotonic() + self._limit_s
        while True:
            before = len(self._written)
            try:
                self._attempt(filter_, topic_id, found[self._config.input.topic].partitions)
            except OwnershipLost as error:
                raise CannotServe(f"another replay of {self._topic} has begun; this one stops: {error}") from error
            except TryAgain as error:  # whether the last transaction went through, its notes will tell
                if len(self._written) > before:
                    give_up_s = time.monotonic() + self._limit_s
                if time.monotonic() > give_up_s:
                    raise CannotServe(f"nothing could be replayed for {self._limit_s:g} s: {error}") from error
                time.sleep(RETRY_S)
            else:
                return Outcome(list(self._written.values()), list(self._refused.values()), len(self._earlier))

    def _topics(self) -> dict[str, TopicInfo]:
        source = self._config.input.topic
        found = self._broker.describe([source, self._topic, self._notes])
        for option, name in (("input.topic", source), ("dead_letter.topic", self._topic)):
            if name not in found:
                raise CannotServe(f"{option}: topic {name!r} does not exist")
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
            for letters in _batches(read_letters(self._broker, self._topic, filter_)):
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
        writer.transact([batch, notes], None, time.monotonic() + CALL_TIMEOUT_S)
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
        topic, partition, _ = letter.source
        if topic != self._config.input.topic:
            raise BadRecord("replay", f"it is of topic {topic!r}, and input.topic is {self._config.input.topic!r}")
        if letter.value is None:
            raise BadRecord("replay", "it has no value")
        if self._change is None:
            return _Event(letter, partition, letter.key, letter.value)
        value, key = self._change(letter), letter.key
        name = self._config.input.key
        if name is not None and (new := _key(value, name)) != _key(letter.value, name) and new is not None:
            key, partition = new, BY_KEY  # it belongs where the events of that key are
        if partition >= partitions:
            raise BadRecord("replay", f"its partition {partition} does not exist in {topic!r} any more")
        return _Event(letter, partition, key, value)


def _key(value: bytes | None, name: str) -> bytes | None:
    """The entity key in a value; None where there is none."""
    try:
        found = locate(parse_document(value), name)
        return None if found is ABSENT else key_text(found, name).encode()
    except BadRecord:
        return None


def _batches(letters: Iterable[Letter]) -> Iterator[list[Letter]]:
    """As many as go into one transaction."""
    batch: list[Letter] = []
    size = 0
    for letter in letters:
        batch.append(letter)
        size += len(letter.value or b"")
        if len(batch) >= MAX_LETTERS or size >= MAX_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
