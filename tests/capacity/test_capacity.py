"""`lstmstream capacity`: events that every model takes, costs of what was measured, and what follows from them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.capacity.command import lines, plan, print_capacity
from lstmstream.capacity.events import Events
from lstmstream.capacity.measure import RECORD_BYTES, Costs, measure
from lstmstream.config import Config
from lstmstream.errors import CannotServe
from lstmstream.serve.factory import load_step_model, make_engine
from lstmstream.serve.state_records import state_record_bytes
from tests.models import random_model

COSTS = Costs(cpu_us=2.0, batch_events=4096, key_bytes=500.0, record_bytes=600.0, states_per_s=200_000.0)


BASE: dict[str, Any] = {
    "name": "t",
    "model": "builtin:demo",
    "kafka": {"bootstrap_servers": "nowhere:1"},
    "input": {"topic": "in"},
    "output": {"topic": "out"},
}


def configured(model: Path | str, **changes: Any) -> Config:
    return Config.model_validate({**BASE, "model": str(model), **changes})


def written(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({**BASE, **changes}))
    return file


@pytest.mark.parametrize("model", ["builtin:demo", "builtin:load", "random"])
@pytest.mark.parametrize("fields", [{}, {"key": "who.id", "timestamp": "at"}], ids=["record", "fields"])
def test_the_model_takes_its_events(model: str, fields: dict[str, str], tmp_path: Path) -> None:
    config = configured(random_model(tmp_path) if model == "random" else model, input={"topic": "in", **fields})
    _, step = load_step_model(config)
    engine = make_engine(config, step)
    engine.scorer.states.open(0)
    result = engine.process(Events(config, step.card, keys=7).next(20))
    assert not result.dead_letters
    assert sorted(set(result.predictions.steps.tolist())) == [1, 2, 3]
    assert len({bytes(key or b"") for key in result.decoded.observations.keys}) == 7
    assert not np.isnan(result.decoded.observations.x).any()


def test_it_measures_with_the_clock_that_it_is_given(tmp_path: Path) -> None:
    """Each look at the clock is a hundredth of a second: so long takes a batch, and a round of 500 states."""
    config = configured(random_model(tmp_path, hidden=4), batch={"max_events": 100})
    _, step = load_step_model(config)
    ticks = itertools.count()
    costs = measure(config, step, keys=500, seconds=3.0, clock=lambda: next(ticks) / 100)
    assert costs.cpu_us == pytest.approx(1e6 * 0.01 / 100)
    assert costs.states_per_s == pytest.approx(500 / 0.01, rel=0.05)
    assert costs.record_bytes == state_record_bytes(step.card.state.size) + len("key-000000000001") + RECORD_BYTES
    assert costs.key_bytes > 4 * step.card.state.size + 5 * 8 + 16
    assert costs.batch_events == 100


def test_what_follows_from_the_costs() -> None:
    config = configured("builtin:demo", state={"checkpoint_interval": "30s"})
    needs = plan(config, COSTS, keys=1_000_000, rate=20_000.0)
    assert needs == {
        "memory_bytes": 5e8,
        "standby_bytes": 0.0,
        "cores": 0.04,
        "restart_s": 5.0,
        "state_topic_bytes": 6e8,
        "states_written_per_s": 4_000.0,
        "state_topic_bytes_per_s": 2.4e6,
    }
    assert plan(config, COSTS, keys=300, rate=20_000.0)["states_written_per_s"] == 10.0
    followed = configured("builtin:demo", state={"standby": 2})
    assert plan(followed, COSTS, keys=1_000_000, rate=1.0)["standby_bytes"] == 2 * (500 + 8) * 1e6


def test_what_people_read() -> None:
    config = configured("builtin:demo")
    _, step = load_step_model(config)
    needs = plan(config, COSTS, keys=10_000_000, rate=20_000.0)
    text = "\n".join(lines(step.card, COSTS, needs, keys=10_000_000, rate=20_000.0))
    for wanted in ("for 10,000,000 keys and 20,000 events/s", "500 bytes per key", "4.7 GiB", "0.04 cores", "50.0 s"):
        assert wanted in text
    assert "standby" not in text
    needs |= {"standby_bytes": 508e7}
    text = "\n".join(lines(step.card, COSTS, needs, keys=10_000_000, rate=20_000.0))
    assert "memory of standbys  " in text
    assert "4.7 GiB on the members that follow" in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path)
    assert print_capacity(file, keys=1_000, rate=10.0, seconds=0.1, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["needed"]["memory_bytes"] == pytest.approx(1_000 * found["measured"]["key_bytes"])
    assert print_capacity(file, keys=1_000, rate=10.0, seconds=0.1, as_json=False) == 0
    assert "for 1,000 keys and 10 events/s" in capsys.readouterr().out


def test_events_in_another_format_cannot_be_generated(tmp_path: Path) -> None:
    file = written(tmp_path, input={"topic": "in", "unwrap": "after"})
    with pytest.raises(CannotServe, match="capacity generates events as plain JSON"):
        print_capacity(file, keys=1, rate=1.0, seconds=0.1, as_json=True)
