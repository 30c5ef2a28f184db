"""What one event and one key cost on this machine: the engine's CPU, memory, a state's record, and reading it back."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lstmstream.capacity.events import Events
from lstmstream.config import Config
from lstmstream.model import Card
from lstmstream.records import RecordBatch
from lstmstream.serve.engine import Engine
from lstmstream.serve.factory import make_engine
from lstmstream.serve.identity import state_identity
from lstmstream.serve.partition import Partition
from lstmstream.serve.restore_errors import RestoreErrors
from lstmstream.serve.state import StateStore
from lstmstream.serve.state_loader import StateLoader
from lstmstream.serve.state_records import pack_states
from lstmstream.serve.step_model import StepModel

KEYS_BYTES = 256 << 20  # of the states that are measured with, at most
LEAST_KEYS, MOST_KEYS = 1_000, 200_000
RECORD_BYTES = 12  # of Kafka's log, for each record beside its key and value
WARM_UP_BATCHES = 3


class Costs(NamedTuple):
    """Of one key or one event."""

    cpu_us: float  # of the engine, for an event
    batch_events: int
    key_bytes: float  # of memory: state row, numbers, key and table
    record_bytes: float  # in the state topic
    states_per_s: float  # that a restore takes in


def measure(
    config: Config, step: StepModel, *, keys: int, seconds: float, clock: Callable[[], float] = time.process_time
) -> Costs:
    """Two thirds of `seconds` for events, the rest for states. Fewer than `keys` where these take much memory."""
    card = step.card
    chosen = int(np.clip(KEYS_BYTES // (4 * card.state.size + 100), LEAST_KEYS, MOST_KEYS))
    chosen = min(keys, chosen)
    engine = make_engine(config, step)
    states = engine.scorer.states
    slab = states.open(0)
    events = Events(config, card, chosen)
    batch = config.batch.max_events
    for _ in range(-(-chosen // batch)):  # every key, once
        _process(engine, events.next(batch))
    cpu_us = _cpu_us(engine, events, batch, seconds * 2 / 3, clock)
    rows = slab.index.rows()
    key_bytes = slab.nbytes / len(rows)
    digest = state_identity(config, card).digest
    record_keys, values = pack_states(slab, rows, digest, 0)
    record_bytes = sum(len(key or b"") + len(value or b"") for key, value in zip(record_keys, values, strict=True))
    records = RecordBatch.to_write(
        config.state.topic, np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64), record_keys, values
    )
    return Costs(
        cpu_us=cpu_us,
        batch_events=batch,
        key_bytes=key_bytes,
        record_bytes=record_bytes / len(rows) + RECORD_BYTES,
        states_per_s=_states_per_s(config, card, records, seconds / 3, clock),
    )


def _cpu_us(engine: Engine, events: Events, batch: int, seconds: float, clock: Callable[[], float]) -> float:
    """The median of batches, of CPU time: other programs do not count."""
    taken: list[float] = []
    end_s = clock() + seconds
    while clock() < end_s or len(taken) <= WARM_UP_BATCHES:
        records = events.next(batch)
        began_s = clock()
        _process(engine, records)
        taken.append(clock() - began_s)
    return 1e6 * float(np.median(taken[WARM_UP_BATCHES:])) / batch


def _process(engine: Engine, records: RecordBatch) -> None:
    result = engine.process(records)
    assert not result.dead_letters, result.dead_letters[0].message
    result.outputs.batches()
    engine.commit()


def _states_per_s(
    config: Config, card: Card, records: RecordBatch, seconds: float, clock: Callable[[], float]
) -> float:
    """How many records of states a restore takes in, without what the broker and Kafka's client take."""
    gc.collect()
    errors = RestoreErrors(config.input.topic, 0, config.state.topic, config.name)
    digest = state_identity(config, card).digest
    count, began_s = 0, clock()
    while clock() - began_s < seconds or not count:
        states = StateStore(np.asarray(card.state.initial, dtype=np.float32))
        loader = StateLoader(Partition(0, 0, states), digest, errors)
        for start in range(0, len(records), 4_096):
            loader.take(records.slice(start, min(len(records), start + 4_096)))
        count += len(records)
    return count / max(1e-9, clock() - began_s)
