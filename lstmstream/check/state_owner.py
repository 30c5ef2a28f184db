"""Whose states the state topic has: a daemon that finds none but those of another model stops at its start."""

from __future__ import annotations

from collections.abc import Iterator

from lstmstream.check.results import Check, failed, ok, warning
from lstmstream.config import Config
from lstmstream.serve.restore_errors import RestoreErrors
from lstmstream.serve.state_records import (
    FLOOR,
    CorruptStateRecord,
    OldStateFormat,
    StateIdentity,
    key_kind,
    unpack_floor,
)
from lstmstream.transport.patient_broker import PatientBroker

LOOKED_AT = 10_000  # newest records of the state topic; a floor is written with each checkpoint, and last at a stop
REMEDIES = {"replay": "rebuilt from the input", "reset": "empty"}  # what states are at the start, by on_model_change


def check_states(broker: PatientBroker, config: Config, ours: StateIdentity, partitions: int) -> Iterator[Check]:
    """`partitions`: of the state topic. Says nothing where no daemon has written a floor yet."""
    topic = config.state.topic
    found = _owners(broker, topic, partitions)
    foreign = {number: owners for number, owners in found.items() if ours.digest not in owners}
    if not foreign:
        if found:
            yield ok("states", f"the states in {topic} belong to this model with these settings")
        return
    if config.on_model_change in REMEDIES:
        how = REMEDIES[config.on_model_change]
        yield ok(
            "states", f"those in {topic} belong to another model or other settings; this one's are {how} at its start"
        )
        return
    number, owners = next(iter(foreign.items()))
    first, end = broker.offset_range(topic, number)
    problem = str(RestoreErrors(config.input.topic, number, topic, config.name).other_identity(ours, owners.values()))
    if end - first <= LOOKED_AT // partitions:
        yield failed("states", problem)
    else:  # there may be some of this one further back
        yield warning("states", f"of the newest states: {problem}")


def _owners(broker: PatientBroker, topic: str, partitions: int) -> dict[int, dict[bytes, StateIdentity]]:
    """By partition, the identities that have a floor among the newest records."""
    records = broker.newest(topic, partitions, LOOKED_AT)
    found: dict[int, dict[bytes, StateIdentity]] = {}
    for number, key, value in zip(records.partitions.tolist(), records.keys, records.values, strict=True):
        try:
            if value is None or key_kind(key)[0] != FLOOR:
                continue
            floor = unpack_floor(value)
        except (CorruptStateRecord, OldStateFormat):
            continue  # the daemon says what is wrong with it
        if floor.dropped is None:
            found.setdefault(number, {})[floor.identity.digest] = floor.identity
    return found
