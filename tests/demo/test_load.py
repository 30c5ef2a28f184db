"""The simulated meters, and the history that the shipped model was trained on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lstmstream.demo.load import Town, write_training
from lstmstream.model import load_model
from lstmstream.train.schema import load_training


def test_the_same_seed_gives_the_same_bytes_in_any_order() -> None:
    town = Town(homes=5, seed=3)
    later, first = town.day(4), town.day(0)
    assert Town(homes=5, seed=3).day(4).values() == later.values()
    assert Town(homes=5, seed=4).day(4).values() != later.values()
    assert later.numbers.tolist() == list(range(4 * 96 * 5, 5 * 96 * 5))
    assert set(np.diff(first.time_ms[first.home == 2]).tolist()) == {900_000}
    assert (np.diff(later.time_ms) >= 0).all()


def test_homes_have_two_peaks_a_day() -> None:
    day = Town(homes=300, seed=1).day(1)
    by_step = day.kw.reshape(96, 300).mean(axis=1)
    night, morning, noon, evening = (by_step[int(hour * 4)] for hour in (3, 7, 13, 19))
    assert min(morning, evening) > 2 * max(night, noon)
    assert (day.kw >= 0).all()


def test_an_event_is_what_the_shipped_model_reads() -> None:
    part = Town(homes=3, seed=1).day(0)[:2]
    assert part.keys() == [b"h0000", b"h0001"]
    events = [json.loads(value) for value in part.values()]
    card = load_model("builtin:load").card
    assert set(events[0]) == {"number", "home", "time", "kw"}
    assert [feature.name for feature in card.features] == ["kw"]
    assert (card.training["fields"]["key"], card.training["fields"]["timestamp"]) == ("home", "time")


def test_the_history_of_the_shipped_model_can_be_written_again(tmp_path: Path) -> None:
    write_training(tmp_path, days=1)
    with (tmp_path / "load.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (len(rows), set(rows[0])) == (96 * 100, {"home", "time", "kw"})
    assert load_training(tmp_path / "train.yaml").name == "load"


def test_a_town_without_homes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 home"):
        Town(homes=0)
