"""Batches that hold nothing but states of keys are loaded without a look at each record: to the same end."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from lstmstream.records import RecordBatch
from lstmstream.serve import state_loader
from lstmstream.serve.partition import Partition
from lstmstream.serve.restore_errors import RestoreErrors
from lstmstream.serve.state import KeyState, Slab, StateStore
from lstmstream.serve.state_loader import StateLoader
from lstmstream.serve.state_records import are_of_keys, floor_key, pack_key, pack_states
from tests.serve.test_state_records import DIGEST, OTHER

pytestmark = pytest.mark.usefixtures("either_codec")

KEYS = [b"a", b"b", b"c", b"d", b"", b"\x00", b"x" * 300, DIGEST[:8]]


def records_of(source: random.Random, digest: bytes, keys: list) -> list[tuple[bytes | None, bytes | None]]:
    """State records of these keys, with states of their own."""
    slab = Slab(2)
    for key in keys:
        row = np.array([source.random(), source.random()], np.float32)
        slab.put(key, KeyState(row, source.randrange(1, 99), source.randrange(99), source.randrange(99)))
    return list(zip(*pack_states(slab, slab.index.rows(), digest, source.randrange(3)), strict=True))


def some_batch(source: random.Random, first: int) -> RecordBatch:
    """Mostly states; now and then of a null key or another model, tombstones, and damaged or foreign records."""
    records = [record for _ in range(3) for record in records_of(source, DIGEST, source.sample(KEYS, 4))]
    oddities: list[tuple[bytes | None, bytes | None]] = [
        (pack_key(source.choice(KEYS), DIGEST), None),
        (pack_key(source.choice(KEYS), DIGEST), b"damaged"),
        *records_of(source, DIGEST, [None]),
        *records_of(source, OTHER.digest, [b"a"]),
        (floor_key(DIGEST), b"damaged"),
        (b"\x07foreign", b"x"),
        (None, b"x"),
    ]
    for odd in source.sample(oddities, source.choice([0, 0, 1, 2])):
        records.insert(source.randrange(len(records) + 1), odd)
    keys, values = map(list, zip(*records, strict=True))
    offsets = np.arange(first, first + len(records))
    return RecordBatch("states", 0 * offsets, offsets, offsets, keys, values, [()] * len(records))


def loaded(batches: list[RecordBatch]) -> tuple[Any, ...]:
    """All that is known after these batches."""
    states = StateStore(np.zeros(2, np.float32))
    partition = Partition(0, 0, states)
    loader = StateLoader(partition, DIGEST, RestoreErrors("in", 0, "states", "group"))
    for batch in batches:
        loader.take(batch)
    slab = states.slabs[0]
    found = {
        key: (slab.get(row).row.tolist(), slab.get(row)[1:], int(loader.origins(np.array([row]))[0]))
        for key, row in slab.index.items()
    }
    return found, loader.damaged, loader.damaged_floor, loader.records, partition.erasures.identities


def test_a_batch_of_states_alone_is_loaded_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(1)
    runs = [[some_batch(source, 20 * number) for number in range(source.randrange(1, 4))] for _ in range(60)]
    alone = sum(are_of_keys(batch.keys, DIGEST) for batches in runs for batch in batches)
    assert 20 < alone < sum(map(len, runs)) - 20
    found = [loaded(batches) for batches in runs]
    monkeypatch.setattr(state_loader, "are_of_keys", lambda *_: False)
    assert found == [loaded(batches) for batches in runs]


def test_an_empty_batch_names_no_identity() -> None:
    nothing = RecordBatch.empty("states")
    assert loaded([nothing]) == ({}, {}, None, 0, set())
