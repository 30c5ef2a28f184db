"""`verify` knows that events of `input.silent` have no prediction, and finds one that was published all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verify.test_findings import COUNT, kinds, made
from tests.verify.world import INPUT, LETTERS, OUTPUT, VerifyWorld

SILENT = {"field": "channel", "equals": "pos"}


def served(folder: Path, **serving: Any) -> VerifyWorld:
    world = made(folder, input={"topic": INPUT, "silent": SILENT})
    world.serve(**serving)
    return world


@pytest.mark.parametrize("sample", [1.0, 0.3])
def test_events_without_a_prediction_are_right(tmp_path: Path, sample: float) -> None:
    world = served(tmp_path)
    done = world.verify(sample=sample)
    assert kinds(done) == {}
    summary = done.summary()
    assert summary["silent"] > 30
    assert summary["events"] == COUNT == summary["predictions"] + summary["dead_letters"] + summary["silent"]
    assert (OUTPUT in world.broker.topics, LETTERS in world.broker.topics) == (True, True)


@pytest.mark.parametrize("sample", [1.0, 0.3])
def test_a_prediction_of_a_silent_event_is_found(tmp_path: Path, sample: float) -> None:
    world = served(tmp_path, input={"topic": INPUT})  # a daemon without the option
    done = world.verify(sample=sample)
    assert kinds(done).keys() >= {"wrong"}
    assert {finding.detail for finding in done.comparison.findings.kept} == {
        "the event should have none: see input.silent"
    }


def test_a_missing_prediction_is_still_missing(tmp_path: Path) -> None:
    world = served(tmp_path)
    del world.log(OUTPUT, 1)[5]
    world.number_again(OUTPUT, 1)
    assert kinds(world.verify()) == {"missing": 1}
