"""The states that the state topic has of a daemon's keys, partition by partition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe
from lstmstream.model import Card, load_model
from lstmstream.records import Bools, Ints
from lstmstream.serve.erasures import Erasures
from lstmstream.serve.identity import state_identity
from lstmstream.serve.partition import Partition
from lstmstream.serve.restore_errors import RestoreErrors
from lstmstream.serve.state import Slab, StateStore
from lstmstream.serve.state_loader import StateLoader
from lstmstream.serve.state_records import StateIdentity
from lstmstream.serve.stream_time import NEVER
from lstmstream.transport.kafka_admin import open_kafka_admin
from lstmstream.transport.partitioner import partitions_of_keys
from lstmstream.transport.patient_broker import PatientBroker, connected

PREFIX_ROWS = 65_536  # keys that are looked at together


class StoredStates(NamedTuple):
    """The states of one partition that count: those of the configuration's model and settings."""

    partition: int
    slab: Slab
    rows: Ints  # [N] of the slab, in the order of the keys' first records
    damaged: int  # records that cannot be used: the daemon rebuilds these states from the input
    others: list[StateIdentity]  # models and settings whose states are here as well
    erasures: Erasures
    outside_times: tuple[tuple[int, int], ...]  # see Floor
    stream_time_ms: int  # with `input.max_lateness`, else NEVER; not less than the time of any state here


class StateTopicReader:
    """Reads the state topic of one configuration."""

    def __init__(self, config: Config, card: Card, broker: PatientBroker) -> None:
        """Raises CannotServe where there is no such topic."""
        self.card = card
        self._config = config
        self.broker = broker
        self.identity = state_identity(config, card)
        found = broker.describe([config.state.topic]).get(config.state.topic)
        if found is None:
            raise CannotServe(
                f"state.topic: there is no topic {config.state.topic!r}; the daemon makes it when it starts"
            )
        self.partitions = found.partitions

    def read(self, partition: int | None = None) -> Iterator[StoredStates]:
        """One partition after the other, or this one; only one of them is in memory. Raises CannotServe."""
        if partition is not None and partition >= self.partitions:
            count = self.partitions
            raise CannotServe(
                f"--partition {partition}: topic {self._config.state.topic!r} has partitions 0 to {count - 1}"
            )
        numbers = range(self.partitions) if partition is None else [partition]
        ends = self.broker.last_stable_offsets(self._config.state.topic, numbers)
        for number in numbers:
            yield self._read(number, ends[number])

    def _read(self, number: int, end: int) -> StoredStates:
        topic = self._config.state.topic
        states = StateStore(np.asarray(self.card.state.initial, dtype=np.float32))
        errors = RestoreErrors(self._config.input.topic, number, topic, self._config.name)
        partition = Partition(number, 0, states)
        loader = StateLoader(partition, self.identity.digest, errors)
        beginning, _ = self.broker.offset_range(topic, number)
        for batch in self.broker.read(topic, number, beginning, end):
            loader.take(batch)
        slab = states.slabs[number]
        if loader.damaged_floor is not None:
            raise errors.floor_damaged(loader.damaged_floor)
        rows = slab.index.rows()
        # Others are of a time before the states were reset, of an import that was not finished, or were evicted.
        counts = rows[:0] if loader.floor is None else rows[loader.floor.vouches_for(loader.origins(rows))]
        counts = counts[slab.steps[counts] > 0]
        if loader.floor is not None and loader.floor.moves:
            counts = counts[~_left_behind(slab, counts, number, *loader.floor.moves[-1])]
        others = [one.floor.identity for one in loader.others.values() if one.floor.dropped is None]
        outside_times = () if loader.floor is None else loader.floor.outside_times
        stream_time_ms = NEVER if loader.floor is None else loader.floor.stream_time_ms
        if stream_time_ms != NEVER:  # states may be newer than their floor
            stream_time_ms = max(stream_time_ms, int(slab.last_timestamp[counts].max(initial=NEVER)))
        return StoredStates(
            number, slab, counts, len(loader.damaged), others, partition.erasures, outside_times, stream_time_ms
        )


def _left_behind(slab: Slab, rows: Ints, number: int, offset: int, before: int, partitions: int) -> Bools:
    """[N] Of which keys the state has moved elsewhere: a `state repartition` that was cut has not cleared them away.

    `offset`: of the input, from which on the keys of `before` partitions are in as many as `partitions`.
    """
    keys = slab.index.keys_at(rows)
    has_key = np.array([key is not None for key in keys], np.bool_)
    left = (partitions_of_keys(keys, before) == number) & (partitions_of_keys(keys, partitions) != number)
    stale: Bools = has_key & left & (slab.last_offset[rows] < offset)
    return stale


@contextmanager
def opened(
    config: Path, *, stage: str | None, say: Callable[[str], None] = lambda _text: None
) -> Iterator[StateTopicReader]:
    """The state topic of a configuration. Raises CannotServe."""
    loaded = load_config(config, stage=stage)
    card = load_model(loaded.model, base=loaded.folder).card
    with connected(open_kafka_admin(loaded), "the state topic cannot be read", say=say) as broker:
        yield StateTopicReader(loaded, card, broker)


def with_prefix(stored: StoredStates, prefix: bytes | None) -> Ints:
    """The rows whose key begins with `prefix`; all of them without one. A key that is null begins with nothing."""
    if prefix is None:
        return stored.rows
    chosen = []
    for start in range(0, len(stored.rows), PREFIX_ROWS):
        rows = stored.rows[start : start + PREFIX_ROWS]
        keys = stored.slab.index.keys_at(rows)
        chosen.append(rows[[key is not None and key.startswith(prefix) for key in keys]])
    return np.concatenate(chosen) if chosen else stored.rows
