"""What verify takes from floor records."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmstream.records import RecordBatch
from lstmstream.serve.state_records import Floor, StateIdentity, floor_key, pack_floor
from lstmstream.verify.floors import Origins, read_origins

OLD = StateIdentity("m", "1", "a" * 32, "none", "apply", "the record's", "the record's", "10000000")
NEW = OLD._replace(fingerprint="b" * 32)


def origins(wanted: StateIdentity, *floors: Floor) -> Origins:
    count = len(floors)
    batch = RecordBatch.to_write(
        "s",
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        [floor_key(floor.identity.digest) for floor in floors],
        [pack_floor(floor) for floor in floors],
    )
    decides = {name: value for name, value in wanted._asdict().items() if name not in ("model", "version")}
    return read_origins([batch], decides)[0]


def floor(identity: StateIdentity, **fields: Any) -> Floor:
    return Floor(identity, **{"input_topic_id": "I", "partitions": 1, "state_topic_id": "S", **fields})


def test_a_dropped_model_has_answered_what_it_has_answered() -> None:
    old = floor(OLD, origin=0, offset=90, position=100, dropped=(7, 7))
    new = floor(NEW, origin=0, offset=200, position=200, answers_from=100)
    found = origins(NEW, old, new)
    assert (found.first, found.own, found.between) == (0, 0, ((0, 100, True), (0, 100, True)))


def test_what_it_has_answered_before_it_began_again_is_not_forgotten() -> None:
    new = floor(NEW, origin=0, offset=300, position=300, answers_from=100)
    old = floor(OLD, origin=250, offset=400, position=400, answers_from=300, earlier=(0, 200))
    assert origins(NEW, new, old).between == ((300, 400, True), (0, 100, True), (0, 200, True))
    found = origins(OLD, new, old)
    assert (found.first, found.own) == (0, 250)
    assert found.between == ((250, 300, True), (250, 300, True))


def test_the_records_of_another_version_say_so() -> None:
    old = floor(OLD._replace(version="0"), origin=0, offset=90, position=100, answers_from=30, earlier=(0, 20))
    new = floor(NEW, origin=0, offset=200, position=200, answers_from=0)
    assert origins(NEW, old, new).between == ((30, 100, False), (0, 0, True), (0, 20, False))
