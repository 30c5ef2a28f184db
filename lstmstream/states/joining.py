"""Where states that were there before join the input: the first offset of each partition that the daemon answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats.timestamps import format_iso, timestamp_ms
from lstmstream.serve.engine import Engine
from lstmstream.transport.patient_broker import PatientBroker

FIRST_RECORDS = 500  # of a partition, whose event times say when its part of the input begins


class JoinAt(NamedTuple):
    """What the user asked for; without either, the input joins at its first retained record."""

    offsets: Mapping[int, int]  # of every partition
    time_ms: int | None = None  # of the records

    @classmethod
    def parse(cls, offsets: Sequence[str], time: str | None) -> JoinAt:
        """`offsets` as PARTITION:OFFSET. Raises CannotServe."""
        if offsets and time is not None:
            raise CannotServe("--at-offset and --at-time cannot be used together: give one of them")
        found: dict[int, int] = {}
        for text in offsets:
            partition, colon, offset = text.partition(":")
            if not colon or not all(part.isascii() and part.isdigit() for part in (partition, offset)):
                raise CannotServe(f"--at-offset {text}: is not PARTITION:OFFSET, such as 0:1500")
            if found.setdefault(int(partition), int(offset)) != int(offset):
                raise CannotServe(f"--at-offset {text}: partition {partition} was given another offset before")
        try:
            return cls(found, None if time is None else timestamp_ms(time, "--at-time"))
        except BadRecord as bad:
            raise CannotServe(f"--at-time {time}: is not an ISO 8601 time, such as 2026-01-05T10:00:00Z") from bad


class Join(NamedTuple):
    """Of one partition."""

    offset: int  # the first event that is answered, and that the states do not contain
    before_ms: int | None  # what the states contain must be older; None: given by offset, so that nobody can tell


def find_joins(broker: PatientBroker, topic: str, partitions: int, at: JoinAt, engine: Engine) -> dict[int, Join]:
    """Partition → where it joins. `engine` reads event times. Raises CannotServe."""
    if at.offsets:
        return _given(broker, topic, partitions, at.offsets)
    joins = {}
    for number in range(partitions):
        beginning, end = broker.offset_range(topic, number)
        if at.time_ms is None:
            joins[number] = Join(beginning, _first_ms(broker, topic, number, beginning, end, engine))
        else:
            found = broker.offset_for_time(topic, number, at.time_ms)
            joins[number] = Join(end if found is None else max(found, beginning), at.time_ms)
    return joins


def _given(broker: PatientBroker, topic: str, partitions: int, offsets: Mapping[int, int]) -> dict[int, Join]:
    problems = [
        f"--at-offset {p}:{o}: topic {topic!r} has no partition {p}" for p, o in offsets.items() if p >= partitions
    ]
    if missing := [str(number) for number in range(partitions) if number not in offsets]:
        problems.append(f"--at-offset: give one for each partition of {topic!r}; missing: {', '.join(missing)}")
    if problems:
        raise CannotServe(*problems)
    for number, offset in offsets.items():
        beginning, end = broker.offset_range(topic, number)
        if not beginning <= offset <= end:
            problems.append(f"--at-offset {number}:{offset}: partition {number} has offsets {beginning} to {end}")
    if problems:
        raise CannotServe(*problems)
    return {number: Join(offset, None) for number, offset in offsets.items()}


def _first_ms(broker: PatientBroker, topic: str, partition: int, start: int, end: int, engine: Engine) -> int | None:
    """The least event time of its first events; None where there are none."""
    found = []
    for records in broker.read(topic, partition, start, min(end, start + FIRST_RECORDS)):
        found += engine.decode(records).observations.timestamps.tolist()
    return min(found, default=None)


def overlap(name: str, key: bytes | None, partition: int, time_ms: int, join: Join) -> CannotServe:
    """An event that the states contain, at `time_ms`, is not older than what the input begins with."""
    assert join.before_ms is not None
    text = "null" if key is None else repr(key.decode("utf-8", "backslashreplace"))
    return CannotServe(
        f"{name}: has an event of key {text} at {format_iso(time_ms)}, and the input's partition {partition} goes on at"
        f" offset {join.offset} with {format_iso(join.before_ms)}: they overlap, and events in both would count twice."
        " Give --at-time or --at-offset with where the input is to go on; or leave out what is not older than that"
    )
