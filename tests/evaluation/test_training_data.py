"""How many events lie in a model's training data, beside sets of keys and times."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lstmstream.evaluation import training_data
from lstmstream.evaluation.training_data import overlap, training_record
from tests.random_events import history


def shared(events: Any, learned: Any, asked: Any, *, timed: bool = True) -> float:
    """The share of the rows `asked` with a key and, where there are times, a time of one of the sets of rows."""
    owner = np.repeat(np.array(events.keys), np.diff(events.starts))
    inside = np.zeros(len(asked), np.bool_)
    for rows in learned:
        known, times = set(owner[rows].tolist()), events.timestamp[rows]
        for index, row in enumerate(asked):
            in_range = not timed or times.min() <= events.timestamp[row] <= times.max()
            inside[index] |= in_range and owner[row] in known
    return float(inside.mean())


@pytest.mark.parametrize("timed", [True, False])
def test_the_share_is_that_of_sets_of_keys_and_times(timed: bool) -> None:
    for seed in range(5):
        events = replace(history(keys=60, longest=30, seed=seed, numbers=1, gap_s=60.0), timed=timed)
        events.timestamp[:] += np.repeat(np.random.default_rng(seed).integers(0, 3_000_000, 60), np.diff(events.starts))
        rng, rows = np.random.default_rng(seed), np.arange(len(events.timestamp))
        learned = [rows[: len(rows) // 3], rows[len(rows) // 3 : len(rows) // 2]]
        records = [training_record("train", events, one) for one in learned]
        records = json.loads(json.dumps(records))  # as a card holds them
        for asked in (rows, rows[len(rows) // 2 :], np.sort(rng.choice(rows, 50, replace=False))):
            found = overlap(records, events, asked)
            assert found is not None
            assert not found.at_most
            assert found.share == pytest.approx(shared(events, learned, asked, timed=timed))


def test_without_a_record_nothing_is_said() -> None:
    events = history(keys=3, longest=5, seed=0, numbers=1)
    assert overlap([], events, np.arange(len(events.timestamp))) is None


def test_of_many_keys_a_sample_tells_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "MAX_KEYS", 200)
    events = history(lengths=[2] * 5000, seed=0, numbers=1, gap_s=1.0)
    learned = np.arange(0, 6000)  # the first 3,000 keys
    record = training_record("train", events, learned)
    assert record["keys"] == 3000
    assert len(json.dumps(record)) < 1500
    found = overlap([record], events, np.arange(4000, 10_000))  # a third of them is known
    assert found is not None
    assert not found.at_most
    assert found.share == pytest.approx(1 / 3, abs=0.1)
    # a file with one key, which is not in the sample: nobody knows, so it is said as a limit
    limits = [overlap([record], events, np.arange(row, row + 2)) for row in range(0, 200, 2)]
    assert {(str(one), one.at_most) for one in limits if one is not None} >= {("up to 100%", True), ("100%", False)}


def test_a_record_has_no_key_in_it() -> None:
    events = history(keys=30, longest=5, seed=0, numbers=1)
    text = json.dumps(training_record("train", events, np.arange(len(events.timestamp))))
    assert not any(f'"{key}"' in text for key in events.keys)
