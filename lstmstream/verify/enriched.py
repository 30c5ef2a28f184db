"""`output.events`: whether each event that was answered was written once more, with the right members added.

Such a record does not name its event, so records are matched by what they hold. One that is wrong is missing, then.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import orjson

from lstmstream.config import Config
from lstmstream.errors import CannotServe
from lstmstream.model import Card
from lstmstream.records import Headers, Ints, RecordBatch
from lstmstream.transport.partitioner import partition_of
from lstmstream.transport.patient_broker import PatientBroker
from lstmstream.verify.envelopes import Event
from lstmstream.verify.expected import Expected
from lstmstream.verify.findings import Finding, Findings
from lstmstream.verify.values import Refused, find, read_key, read_object
from lstmstream.verify.window import header_hash

ENRICHED = "enriched event"
_SPACE = b" \t\r\n"


class EnrichedEvents:
    """`expect` gives the hash of a record, `confirm` says that its event was answered, `take` reads the topic."""

    def __init__(self, config: Config, prediction_names: Sequence[str], *, partitions: int, inputs: int) -> None:
        """`partitions` of the topic, `inputs` of the input topic."""
        events = config.output.events
        self._add = [(orjson.dumps(name) + b":", output) for name, output in events.add.items()]
        self._names = list(prediction_names)
        self._key = events.key
        self._partitions = partitions
        self._hashed = events.key is not None or partitions != inputs
        self._exactly_once = config.delivery == "exactly_once"
        self._expected = (array("q"), array("q"), array("q"))  # hash; partition and offset of the event
        self._found = (array("q"), array("q"), array("q"), array("q"))  # hash; hash of the key; partition and offset
        self.count = 0  # records that are right

    def expect(self, partition: int, timestamp_ms: int, event: Event, headers: Headers, expected: Expected) -> int:
        """The hash of the record of an event that has a prediction; 0 where it should have none."""
        if not isinstance(event, bytes):
            return 0
        key = expected.key
        if self._key is not None:
            try:
                key = read_key(find(read_object(event), self._key))
            except Refused:
                return 0
        value = event
        if self._add:
            body = event.rstrip(_SPACE)[:-1].rstrip(_SPACE)
            members = b",".join(name + self._text(output, expected) for name, output in self._add)
            value = b"%b%b%b}" % (body, b"" if body.endswith(b"{") else b",", members)
        place = partition_of(key, self._partitions) if self._hashed else partition
        return _hash(key, value, timestamp_ms, headers, place)

    def _text(self, output: str, expected: Expected) -> bytes:
        if output == "alert":
            return b"true" if expected.alert else b"false"
        if output == "steps":
            return b"%d" % expected.steps
        number = expected.score
        if output != "score":
            assert expected.prediction is not None
            column = output.removeprefix("prediction[").removesuffix("]")
            number = expected.prediction[self._names.index(column) if column in self._names else int(column)]
        return orjson.dumps(number, option=orjson.OPT_SERIALIZE_NUMPY)

    def confirm(self, partition: int, offset: int, record: int) -> None:
        """The event was answered with the prediction that it should have; `record` is what `expect` gave."""
        if record:
            for column, value in zip(self._expected, (record, partition, offset), strict=True):
                column.append(value)

    def take(self, records: RecordBatch) -> None:
        """The next records of the topic."""
        for partition, offset, timestamp, key, value, headers in zip(
            records.partitions.tolist(),
            records.offsets.tolist(),
            records.timestamps.tolist(),
            records.keys,
            records.values,
            records.headers,
            strict=True,
        ):
            record = _hash(key, value, timestamp, headers, partition)
            for column, number in zip(self._found, (record, hash(key), partition, offset), strict=True):
                column.append(number)

    def judge(self, findings: Findings, topic: str, *, complete: bool, all_there: bool = True) -> None:
        """All records of the events that were confirmed have been taken.

        `complete`: these are all events of the input, in one round, so that no other one explains a record that is
        there twice. `all_there`: the topic still has all records that were written.
        """
        wanted, numbers, offsets = (np.array(column, np.int64) for column in self._expected)
        found, keys, places, positions = (np.array(column, np.int64) for column in self._found)
        wanted_order, found_order = np.argsort(wanted, kind="stable"), np.argsort(found, kind="stable")
        has = _rank(wanted, wanted_order) < _count(found[found_order], wanted)
        for row in np.flatnonzero(~has).tolist() if all_there else ():
            findings.add(Finding("missing", ENRICHED, int(numbers[row]), int(offsets[row]), f"there is no {ENRICHED}"))
        is_wanted = _rank(found, found_order) < _count(wanted[wanted_order], found)
        self.count += int(has.sum())
        # Equal records are those of equal events, the first of the first.
        sources, there = wanted_order[has[wanted_order]], found_order[is_wanted[found_order]]
        extra = np.flatnonzero(~is_wanted)
        if complete and self._exactly_once:
            for row in extra[np.isin(found[extra], wanted)].tolist():
                source = np.flatnonzero(wanted == found[row])[0]
                detail = f"there is more than one {ENRICHED}"
                event, at = (int(numbers[source]), int(offsets[source])), (int(places[row]), int(positions[row]))
                findings.add(Finding("duplicate", ENRICHED, *event, detail, None, None, None, topic, *at))
        if self._exactly_once:
            order = np.lexsort((positions[there], places[there], keys[there], numbers[sources]))
            sources, there = sources[order], there[order]
            same = (numbers[sources][1:] == numbers[sources][:-1]) & (keys[there][1:] == keys[there][:-1])
            same &= places[there][1:] == places[there][:-1]
            for row in (np.flatnonzero(same & (np.diff(offsets[sources]) < 0)) + 1).tolist():
                event = int(numbers[sources[row]]), int(offsets[sources[row]])
                detail = f"behind that of offset {offsets[sources[row - 1]]}"
                at = int(places[there[row]]), int(positions[there[row]])
                findings.add(Finding("out_of_order", ENRICHED, *event, detail, None, None, None, topic, *at))
        self._expected = (array("q"), array("q"), array("q"))
        rest = [array("q", column[extra].tolist()) for column in (found, keys, places, positions)]
        self._found = (rest[0], rest[1], rest[2], rest[3])


class EnrichedTopic:
    """The topic of `output.events`, read round by round."""

    def __init__(self, broker: PatientBroker, config: Config, card: Card, inputs: int, *, complete: bool) -> None:
        """`inputs`: partitions of the input. `complete`: see EnrichedEvents. Raises CannotServe: there is no topic."""
        assert config.output.events.topic is not None
        self.topic = config.output.events.topic
        found = broker.describe([self.topic])
        if self.topic not in found:
            raise CannotServe(f"output.events.topic: there is no topic {self.topic!r}")
        partitions = found[self.topic].partitions
        self.events = EnrichedEvents(config, card.prediction_names, partitions=partitions, inputs=inputs)
        self._positions = [broker.offset_range(self.topic, number)[0] for number in range(partitions)]
        self._ends = list(self._positions)
        self._all_there = not any(self._positions)  # else retention has deleted records
        self._complete = complete
        self._rounds = 0

    def find_ends(self, broker: PatientBroker) -> None:
        """How far to read in this round: asked after the group's offsets, so that all of their events' records are."""
        self._ends = [broker.offset_range(self.topic, number)[1] for number in range(len(self._ends))]

    def judge(self, broker: PatientBroker, findings: Findings) -> None:
        """Read what is new, and compare."""
        for number, end in enumerate(self._ends):
            for records in broker.read(self.topic, number, self._positions[number], end):
                self.events.take(records)
            self._positions[number] = end
        self._rounds += 1
        complete = self._complete and self._rounds == 1
        self.events.judge(findings, self.topic, complete=complete, all_there=self._all_there)


def _hash(key: bytes | None, value: bytes | None, timestamp_ms: int, headers: Headers, partition: int) -> int:
    return hash((key, value, timestamp_ms, header_hash(headers), partition)) or 1


def _rank(values: Ints, order: Ints) -> Ints:
    """[N] how many of the values before it are equal to each; `order` sorts them and is stable."""
    ordered = values[order]
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered, "left")
    return ranks


def _count(ordered: Ints, values: Ints) -> Ints:
    """[N] how many of the ascending `ordered` are equal to each of `values`."""
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")
