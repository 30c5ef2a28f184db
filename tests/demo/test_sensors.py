"""The simulated machines: the same for the same seed, with faults that do what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lstmstream.demo.sensors import KINDS, KNOCK, LEAK, OVERHEATING, Plant, Readings

HOURS = 60


@pytest.fixture(scope="module")
def hours() -> list[Readings]:
    plant = Plant(machines=20, seed=3)
    return [plant.hour(hour) for hour in range(HOURS)]


def test_the_same_seed_gives_the_same_bytes_in_any_order(hours: list[Readings]) -> None:
    again = Plant(machines=20, seed=3)
    assert again.hour(7).values() == hours[7].values()
    assert again.hour(2).values() == hours[2].values()
    assert Plant(machines=20, seed=4).hour(7).values() != hours[7].values()


def test_numbers_and_times_ascend_and_each_machine_has_a_reading_a_minute(hours: list[Readings]) -> None:
    assert np.concatenate([one.numbers for one in hours]).tolist() == list(range(HOURS * 60 * 20))
    times = np.concatenate([one.time_ms for one in hours])
    assert (np.diff(times) >= 0).all()
    assert set(np.diff(times[hours[0].machine[0] == np.tile(np.arange(20), HOURS * 60)]).tolist()) == {60_000}


def test_each_fault_does_what_it_says(hours: list[Readings]) -> None:
    seen = set()
    for one in hours:
        for incident in set(one.incidents[one.incidents >= 0].tolist()):
            rows = np.flatnonzero(one.incidents == incident)
            (machine,) = set(one.machine[rows].tolist())
            (kind,) = set(one.kind[rows].tolist())
            seen.add(kind)
            before = (one.machine == machine) & (one.numbers < one.numbers[rows[0]])
            column, sign = {KNOCK: ("vibration", 1), LEAK: ("pressure", -1), OVERHEATING: ("temperature", 1)}[kind]
            values = getattr(one, column)
            assert sign * values[rows[0]] > (sign * values[before]).max(), KINDS[kind]
    assert seen == {KNOCK, LEAK, OVERHEATING}
    assert not np.concatenate([one.kind for one in hours[:5]]).any(), "the detector learns first"


def test_events_hold_no_label(hours: list[Readings]) -> None:
    part = hours[6][3:5]
    assert part.keys() == [b"m003", b"m004"]
    events = [json.loads(value) for value in part.values()]
    assert [set(event) for event in events] == [
        {"number", "machine", "time", "temperature", "vibration", "pressure"}
    ] * 2
    assert events[0]["number"] == 6 * 60 * 20 + 3


def test_a_plant_without_machines_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 machine"):
        Plant(machines=0)
