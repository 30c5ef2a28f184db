"""`lstmstream state import`: the states of a file become those of a group that has not begun."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe, Fatal, OwnershipLost, TryAgain
from lstmstream.model import Card
from lstmstream.records import Ints
from lstmstream.row_progress import RowProgress
from lstmstream.serve.factory import load_step_model, make_engine, open_reader
from lstmstream.serve.state_records import StateColumns, pack_columns
from lstmstream.serve.stream_time import NEVER
from lstmstream.states.command import say
from lstmstream.states.joining import Join, JoinAt, find_joins, overlap
from lstmstream.states.seeding import Seeding, seed_offsets
from lstmstream.states.state_file import UNNAMED, FileStates, StateFile, check_states, open_state_file
from lstmstream.transport.kafka import open_kafka_transport
from lstmstream.transport.partitioner import partitions_of_keys
from lstmstream.wording import counted

NO_OFFSET = -1  # in place of the last event's: it is not in the input


def import_states(config: Path, file: Path, *, at: JoinAt, stage: str | None) -> int:
    """Write them, and how many. Raises CannotServe."""
    loaded = load_config(config, stage=stage)
    model, step = load_step_model(loaded)
    states = open_state_file(file, model.card)
    with opened_seeding(loaded, model.card) as seeding:
        engine = make_engine(loaded, step, reader=open_reader(loaded))
        joins = find_joins(seeding.broker, loaded.input.topic, seeding.partitions, at, engine)
        count = run_import(seeding, states, file, joins)
    say_joined(count, loaded, joins)
    return 0


@contextmanager
def opened_seeding(config: Config, card: Card) -> Iterator[Seeding]:
    """A run that nothing has been written of yet. Raises CannotServe."""
    with closing(Seeding(config, card, open_kafka_transport(_without_instance(config)), say=say)) as seeding:
        try:
            seeding.prepare()
            yield seeding
        except (TryAgain, Fatal, OwnershipLost) as error:
            raise CannotServe(f"the states cannot be written: {error}") from error


def _without_instance(config: Config) -> Config:
    """Without a `group.instance.id`: a static member stays in its group when it goes, and would keep its partitions."""
    properties = {name: value for name, value in config.kafka.properties.items() if name != "group.instance.id"}
    return config.model_copy(update={"kafka": config.kafka.model_copy(update={"properties": properties})})


def run_import(seeding: Seeding, states: StateFile, path: Path, joins: Mapping[int, Join]) -> int:
    """Look at all of the file first, then write it; how many states. Raises CannotServe."""
    offsets, newest_ms = _check(seeding, states, path, joins)
    seeding.begin(joins)
    count = read = 0
    digest = seeding.identity.digest
    with closing(RowProgress(f"import {path.name}")) as progress:
        for found in states.read(seeding.rows_at_once):
            check_states(path, found, seeding.identity)
            chunk, last_offsets = found, np.full(len(found.keys), NO_OFFSET)
            if offsets is not None and seeding.max_keys is not None:
                chunk, last_offsets = _most_recent(found, offsets[read:], seeding.max_keys)
            read, count = read + len(found.keys), count + len(chunk.keys)
            columns = StateColumns(
                np.full(len(chunk.keys), seeding.origin),
                last_offsets,
                chunk.steps,
                chunk.timestamps,
                chunk.failures,
                chunk.rows,
            )
            if len(chunk.keys):
                seeding.write(_partitions(path, chunk, seeding.partitions), *pack_columns(chunk.keys, columns, digest))
            progress.update(read, read / states.count if states.count else None)
        seeding.finish(times_ms=dict(enumerate(newest_ms.tolist())))
    if count < read:
        left_out = counted(read - count, "state of the least recent keys was", "states of the least recent keys were")
        say(f"{left_out} left out: state.max_keys is {seeding.max_keys:,} for each partition")
    return count


def _most_recent(chunk: FileStates, last_offsets: Ints, max_keys: int) -> tuple[FileStates, Ints]:
    """Those that have a place among the `max_keys` of their partition, and what stands for their last offsets.

    `last_offsets` of these C states, and of those that come after them.
    """
    kept = np.flatnonzero(last_offsets[: len(chunk.keys)] >= -max_keys)
    found = chunk._replace(
        keys=[chunk.keys[i] for i in kept.tolist()],
        partitions=chunk.partitions[kept],
        timestamps=chunk.timestamps[kept],
        steps=chunk.steps[kept],
        failures=chunk.failures[kept],
        rows=chunk.rows[kept],
    )
    return found, last_offsets[kept]


def say_joined(count: int, config: Config, joins: Mapping[int, Join]) -> None:
    """What was done, for a person."""
    where = ", ".join(f"{number}:{join.offset}" for number, join in sorted(joins.items()))
    say(
        f"{counted(count, 'state was', 'states were')} written; the input goes on at {config.input.topic}"
        f" {where} (partition:offset)"
    )


def _check(seeding: Seeding, states: StateFile, path: Path, joins: Mapping[int, Join]) -> tuple[Ints | None, Ints]:
    """All that can be wrong with the file, so that one that is refused leaves nothing behind.

    [N] With `state.max_keys` what stands for the states' last offsets, by the time of their last events; else None.
    [P] The stream time of each partition: the greatest one that its states name, or the greatest time of their last
    events; NEVER where it has none.
    """
    hashes = []
    newest_ms = np.full(len(joins), NEVER)
    places: list[tuple[Ints, Ints]] = []  # partitions and times
    for chunk in states.read(seeding.rows_at_once):
        check_states(path, chunk, seeding.identity)
        partitions = _partitions(path, chunk, seeding.partitions)
        for number, join in joins.items():
            if join.before_ms is None:
                continue
            if len(late := np.flatnonzero((partitions == number) & (chunk.timestamps >= join.before_ms))):
                i = int(late[0])
                where = f"{path}: row {chunk.first_row + i}"
                raise overlap(where, chunk.keys[i], number, int(chunk.timestamps[i]), join)
        np.maximum.at(newest_ms, partitions, np.maximum(chunk.timestamps, chunk.stream_times))
        if seeding.max_keys is not None:
            places.append((partitions, chunk.timestamps.copy()))
        hashes.append(np.fromiter(map(hash, zip(partitions.tolist(), chunk.keys, strict=True)), np.int64))
    every = np.concatenate(hashes) if hashes else np.empty(0, np.int64)
    if not len(every):
        raise CannotServe(f"{path}: has no states")
    if (np.diff(np.sort(every)) == 0).any():  # without argsort, which takes ten times as long
        order = np.argsort(every, kind="stable")
        twice = np.flatnonzero(np.diff(every[order]) == 0)
        one, other = order[twice[0]] + 1, order[twice[0] + 1] + 1
        raise CannotServe(f"{path}: rows {one} and {other} have the same key; a key can have one state only")
    if not places:
        return None, newest_ms
    every_partition, times = (np.concatenate(some) for some in zip(*places, strict=True))
    return seed_offsets(every_partition, np.argsort(times, kind="stable")), newest_ms


def _partitions(path: Path, states: FileStates, partitions: int) -> Ints:
    """[C] Where the events of their keys are. Raises CannotServe where the file says something else."""
    found = partitions_of_keys(states.keys, partitions)
    named = states.partitions
    if None in states.keys:  # these may be in any partition
        null = np.flatnonzero([key is None for key in states.keys])
        if partitions > 1 and len(unnamed := null[named[null] == UNNAMED]):
            raise CannotServe(
                f"{path}: row {states.first_row + unnamed[0]}: a state without a key must name its partition"
            )
        found[null] = np.where(named[null] == UNNAMED, 0, named[null])
    wrong = np.flatnonzero((named != UNNAMED) & (named != found) | (found >= partitions))
    if len(wrong):
        i = int(wrong[0])
        key = states.keys[i]
        text = "null" if key is None else repr(key.decode("utf-8", "backslashreplace"))
        raise CannotServe(
            f"{path}: row {states.first_row + i}: key {text} is in partition {named[i]}, and Kafka's partitioner"
            f" (murmur2) takes {found[i]} of {partitions}. If the input is partitioned that way, leave out the column"
            " partition; else these states cannot be imported"
        )
    return found
